"""Arguments of ``load`` that take the place of saved ones: with what follows from them, or an error that names them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_erl.core.arguments import accepted_parameters, plain_numbers
from sb3_erl.core.checks import warn_caller
from sb3_erl.policies.erl import UnfitPolicyError
from sb3_erl.policies.observation_statistics import wants_statistics
from sb3_erl.runs.moved_modules import RENAMED_ATTRIBUTES, attributes_of_today
from sb3_erl.runs.safe_files import ModelFileError

ARGUMENTS = {**RENAMED_ATTRIBUTES, "stats_window_size": "_stats_window_size"}
"""Argument of constructors -> attribute that has its value, where their names differ."""

FOLLOWING: dict[str, Callable[[Any], dict[str, Any]]] = {
    "n_pairs": lambda n_pairs: {"pop_size": 2 * n_pairs if isinstance(n_pairs, int) else 0},
    "episode_cutoff": lambda _: {"cutoff": None},
    "stats_window_size": lambda _: {"ep_info_buffer": None},
}
"""Argument whose new value changes further attributes -> these; ``None`` for those that are made again from it."""

WITHOUT_SIZE = ("learning_rate", "seed", "stats_window_size", "tensorboard_log", "verbose")
"""Arguments that no network and no size follows from."""


def check_names(cls: Any, given: Collection[str], saved: Collection[str]) -> None:
    """
    :param cls: class of the model
    :param given: arguments of ``load`` by name
    :param saved: attributes in the file
    :raises TypeError: if one of the arguments is neither an argument of the constructor nor an attribute
    """
    # SB3's own tests hand the arguments of off-policy classes to every class
    known = {*saved, *accepted_parameters(cls.__mro__), *accepted_parameters(OffPolicyAlgorithm.__mro__)} - {"self"}
    known.discard("algorithm")  # which says of what class the model in the file is
    unknown = sorted(set(given) - known)
    if unknown:
        close = {name: difflib.get_close_matches(name, known, n=1) for name in unknown}
        raise TypeError(f"load() got {unknown}, which {cls.__name__} does not have; the closest are {close}")


@dataclass(frozen=True)
class Overrides:
    """
    Arguments of ``load`` that take the place of saved ones.

    :param attributes: values by the names of attributes, with those that follow from them
    :param changed: new and saved values by the names of arguments, where they differ
    """

    attributes: dict[str, Any]
    changed: dict[str, tuple[Any, Any]]

    @classmethod
    def of(cls, given: dict[str, Any], saved: dict[str, Any], env: Any = None) -> Overrides:
        """
        :param given: arguments of ``load`` by name
        :param saved: attributes in the file, perhaps of an earlier version
        :param env: environment to go on in
        :return: what the loaded model gets
        """
        saved, given = attributes_of_today(saved), plain_numbers(given)
        if given.get("normalize_obs") and saved.get("normalize_obs") is False:  # as in the constructor
            given["normalize_obs"] = wants_statistics(given["normalize_obs"], env)
        names = {name: ARGUMENTS[name] if ARGUMENTS.get(name) in saved else name for name in given}
        pairs = {name: (given[name], saved[new]) for name, new in names.items() if new in saved}
        changed = {name: pair for name, pair in pairs.items() if _plain(pair[0]) != _plain(pair[1])}
        attributes = {new: given[name] for name, new in names.items()}
        for name in set(changed) & set(FOLLOWING):
            attributes |= {key: value for key, value in FOLLOWING[name](given[name]).items() if key in saved}
        return cls(attributes, changed)

    @contextmanager
    def explained(self, file: str) -> Iterator[None]:
        """
        Turn errors about tensors that do not fit into one that names the arguments which differ from the file's.

        :param file: its name, for the message
        :raises ModelFileError: if there are such arguments, and the model does not fit
        """
        try:
            yield
        except (AttributeError, AssertionError, KeyError, IndexError, RuntimeError, UnfitPolicyError) as error:
            changed = {name: pair for name, pair in self.changed.items() if name not in WITHOUT_SIZE}
            if not changed:
                raise
            new, old = (", ".join(f"{name}={pair[i]!r:.80}" for name, pair in changed.items()) for i in (0, 1))
            cause = cause_of(error)
            raise ModelFileError(
                f"{file} was saved with {old} and does not fit a model with {new}, from which other networks or sizes follow "
                f"({type(cause).__name__}: {' '.join(str(cause).split())[:200]}). Load it without changing them, or make a "
                "new model; if it does not load without, either, it comes from another version"
            ) from error


def deployed_as_said(model: Any, overrides: Overrides) -> Any:
    """
    Let a loaded model act with what its argument ``deploy`` now names, where the file has that.

    :param model: that was just loaded
    :param overrides: what ``load`` was given
    :return: the model
    """
    if "deploy" not in overrides.changed:
        return model
    wanted, saved = overrides.changed["deploy"]
    model.deploy = saved  # as what is deployed is
    found, model.deploy = model.candidates_for_report(), wanted
    name, was = ({None: "checkpoint", "sac": "learner"}.get(each, each) for each in (wanted, saved))
    agent, deployed = found.get(name), model.policy.deployed
    stands_in = agent is None or next(agent.parameters()).data_ptr() == next(deployed.parameters()).data_ptr()
    if stands_in and was != name:
        warn_caller(
            f"deploy={model.deploy!r} holds from the next generation or assessment on: the file does not have the {name}"
        )
    elif not stands_in:
        model.policy.deploy(agent)
    return model


def _plain(value: Any) -> Any:
    """A value as it stands in a file, for a comparison; lists and tuples are the same there."""
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def cause_of(error: BaseException) -> BaseException:
    """:return: the error about parameters that do not fit, which SB3's ``load`` hides behind a KeyError"""
    return error.__context__ if isinstance(error, KeyError) and error.__context__ is not None else error
