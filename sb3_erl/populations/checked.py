"""Checks of a population's arguments, and of whether searched values reach a model that trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecMonitor, is_vecenv_wrapped

from sb3_erl.core.checks import UnsupportedSpaceError, check_choice, check_range, constructor_explained
from sb3_erl.populations.applying import arguments_with, check_applies, check_is_kept, check_names, check_ready_steps
from sb3_erl.populations.member import new_model, packed, unpacked
from sb3_erl.populations.normalizers import statistics_kept
from sb3_erl.remote.choice import check_evaluator


@contextmanager
def spaces_explained(verbose: Any, policy_kwargs: Any) -> Iterator[None]:
    """
    Around SB3's own constructor, whose messages name classes and arguments that this package has not.

    :param verbose: see :func:`~sb3_erl.core.checks.constructor_explained`, as for errors other than of spaces
    :param policy_kwargs: the same
    :raises UnsupportedSpaceError: if SB3 refuses the spaces of the environment
    """
    try:
        with constructor_explained(verbose, policy_kwargs):
            yield
    except AssertionError as error:
        raise UnsupportedSpaceError(f"env must have spaces that SB3 can learn in: {error}") from error


def arguments_of_members(choice: Any) -> dict[str, Any]:
    """
    :param choice: argument ``algorithm_kwargs``
    :return: a copy, with the tuple that SB3 wants for ``train_freq`` where files have a list
    :raises TypeError: if it is no mapping
    """
    if choice is not None and not isinstance(choice, Mapping):
        raise TypeError(
            f"algorithm_kwargs must be None or a dict of arguments of the members' class; got {choice!r}. In a YAML file it "
            "is a mapping, such as {n_steps: 256}"
        )
    arguments = dict(choice or {})
    if isinstance(arguments.get("train_freq"), list):
        arguments["train_freq"] = tuple(arguments["train_freq"])
    return arguments


def check_arguments(model: Any) -> None:
    """
    :param model: a population whose arguments are attributes
    :raises ValueError: naming the argument that is out of range
    :raises TypeError: naming the argument that is of another type
    """
    check_range("pop_size", model.pop_size, 2, integer=True)
    n_saved = len(model._saved_members)
    if n_saved not in (0, model.pop_size):
        raise ValueError(
            f"pop_size must stay as it was saved, {n_saved} members; got {model.pop_size} instead. Make a new model for "
            "another population size"
        )
    check_range("ready_steps", model.ready_steps, 1, integer=True)
    check_range("n_eval_episodes", model.n_eval_episodes, 1, integer=True)
    check_range("n_report_episodes", model.n_report_episodes, 0, integer=True)
    check_range("n_threads", model.n_threads, 1, integer=True)
    check_choice("score", model.score, ("evaluation", "training"))
    check_evaluator(model.evaluator)
    env = model.env
    if env is not None and model.score == "training":
        if not is_vecenv_wrapped(env, VecMonitor) and not all(env.env_is_wrapped(Monitor)):
            raise ValueError(
                "score must be 'evaluation' for an env without SB3's Monitor, which notes the returns of training episodes; "
                "got 'training'. Wrap each environment in stable_baselines3.common.monitor.Monitor"
            )
    for name in ("env", "policy", "seed", "device"):
        if name in model.algorithm_kwargs:
            raise ValueError(f"algorithm_kwargs must not have {name!r}, which is an argument of PBT itself")
    for name in ("learning_rate", "policy_kwargs"):
        if getattr(model, name) and name in model.algorithm_kwargs:
            raise ValueError(f"algorithm_kwargs must not have {name!r} where PBT's own {name} is given; leave one of them out")


def checked_member(model: Any, values: Mapping[str, Any]) -> Any:
    """
    Make a member, save it and load it with other hyper-parameters, which says whether they can change while it trains.

    :param model: the population
    :param values: hyper-parameters with which the member begins
    :return: the member
    :raises ValueError: if one of the searched arguments cannot change, or ``ready_steps`` are fewer than a rollout
    :raises TypeError: if the members' class does not take an argument
    """
    space, recipe, name = model.space, model.recipe, model.member_class.__name__
    check_names(model.member_class, space, recipe.kwargs)
    with statistics_kept(model.env):
        try:
            member = new_model(recipe, model.env, values, model.run.address, 0)
        except AssertionError as error:
            if "space" not in str(error):
                raise ValueError(f"algorithm_kwargs must be arguments that {name} takes: {error}") from error
            raise UnsupportedSpaceError(f"env must be one that {name} can learn in: {error}") from error
        check_ready_steps(member, model.ready_steps, space)
        check_is_kept(member, space)
        for end in (0, -1):
            others = {key: knob.values()[end] for key, knob in space.items()}
            state = packed(member, others, with_buffer=False)
            try:
                again = unpacked(state, recipe, model.env)
            except Exception as error:
                raise ValueError(
                    f"search_space must name arguments of {name} that can change while a model trains; a saved one cannot be "
                    f"loaded with {others}: {error}"
                ) from error
            check_applies(again, arguments_with(others, recipe.kwargs))
    return member
