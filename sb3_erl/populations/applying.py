"""Which arguments of a member may be searched, and how a new value reaches a model that has been trained."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import FloatSchedule

from sb3_erl.core.checks import check_range
from sb3_erl.populations.space import Knob, Uniform

_NETWORKS = "it decides which networks a model has, and those cannot change while they are trained"
_STORED = "it decides what a model has stored, and that cannot change while it is trained"
_ENVIRONMENT = "PBT gives it to all members"
REFUSED: dict[str, str] = {
    **dict.fromkeys(("policy", "policy_kwargs", "use_sde", "net_arch", "n_quantiles", "zero_policy"), _NETWORKS),
    **dict.fromkeys(
        (
            "buffer_size",
            "optimize_memory_usage",
            "replay_buffer_class",
            "replay_buffer_kwargs",
            "rollout_buffer_class",
            "rollout_buffer_kwargs",
        ),
        _STORED,
    ),
    **dict.fromkeys(("env", "seed", "device", "verbose", "tensorboard_log", "stats_window_size"), _ENVIRONMENT),
    "action_noise": "it is an object with a state of its own; search a number of it with a subclass of the algorithm",
    "n_delta": "it is the number of candidates of an iteration of ARS, with which n_top has to agree",
    "pop_size": "it is the size of the member's own population",
    "_init_setup_model": "it is no hyper-parameter",
}
"""Arguments that cannot be searched, by name, with the reason."""

_SHARE, _COUNT = (0.0, 1.0), (1, math.inf)
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("gamma", "gae_lambda", "tau", "exploration_fraction", "exploration_final_eps"), _SHARE),
    **dict.fromkeys(("batch_size", "n_epochs", "n_steps", "policy_delay", "target_update_interval"), _COUNT),
}
"""Smallest and largest sensible value of arguments of which SB3 takes any number."""

SCHEDULES = ("learning_rate", "clip_range", "clip_range_vf", "delta_std")
"""Arguments that SB3 takes as a number or as a function of the remaining progress."""


class Scaled:
    """
    A user's schedule that begins at a searched value.

    :param schedule: function of the remaining progress, 1 at the beginning
    :param value: of the new schedule at the beginning
    """

    def __init__(self, schedule: Callable[[float], float], value: float):
        self.schedule, self.value = schedule, value

    def __call__(self, progress_remaining: float) -> float:
        """:return: the user's schedule times a factor"""
        begin = float(self.schedule(1.0))
        return self.value * float(self.schedule(progress_remaining)) / begin if begin else self.value

    def __repr__(self) -> str:
        return f"Scaled({self.schedule!r}, {self.value!r})"


def arguments_with(values: Mapping[str, Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param values: searched values by name
    :param kwargs: what the user gave for all members, with schedules perhaps
    :return: values as the constructor, or ``load``, takes them
    """
    return {name: Scaled(kwargs[name], value) if callable(kwargs.get(name)) else value for name, value in values.items()}


def settle(model: Any, values: Mapping[str, Any]) -> None:
    """
    Let a loaded model read searched values also where its file has overwritten them, or where they have another name.

    SB3's ``load`` sets attributes before ``_setup_model``, which makes of them what the constructor would: schedules of
    ``learning_rate`` and ``clip_range``, the rollout buffer with ``n_steps``, ``gamma`` and ``gae_lambda``, DQN's exploration,
    ``train_freq``. What is left is here.

    :param model: that was loaded with the values
    :param values: as :func:`arguments_with` gives them
    """
    if "ent_coef" in values and getattr(model, "ent_coef_tensor", None) is not None:  # a tensor of the file
        model.ent_coef_tensor = th.tensor(float(values["ent_coef"]), device=model.device)
    if "delta_std" in values and hasattr(model, "delta_std_schedule"):
        model.delta_std_schedule = FloatSchedule(values["delta_std"])
    if isinstance(getattr(model, "weights", None), th.Tensor):  # of ARS, which its load leaves at zero
        model.weights = th.nn.utils.parameters_to_vector(model.policy.parameters()).detach()


def settle_buffer(model: Any, values: Mapping[str, Any]) -> None:
    """
    :param model: with the replay buffer that was loaded
    :param values: see :func:`settle`; n-step returns are discounted in the buffer
    """
    buffer: Any = getattr(model, "replay_buffer", None)
    if "gamma" in values and hasattr(buffer, "gamma"):
        buffer.gamma = values["gamma"]
        if "gamma" in (getattr(model, "replay_buffer_kwargs", None) or {}):
            model.replay_buffer_kwargs["gamma"] = values["gamma"]


# -------------------------------------------------------------------- what can be searched


def constructor_arguments(algorithm: type[BaseAlgorithm]) -> Mapping[str, inspect.Parameter]:
    """:return: arguments of a class by name"""
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(algorithm.__init__).parameters
    return {name: p for name, p in parameters.items() if p.kind not in variable and name != "self"}


def check_names(algorithm: type[BaseAlgorithm], space: Mapping[str, Knob], kwargs: Mapping[str, Any]) -> None:
    """
    :param algorithm: class of the members
    :param space: that is searched
    :param kwargs: what the user gave for all members
    :raises ValueError: if the class has no such argument, or it cannot be searched
    :raises TypeError: if ``algorithm_kwargs`` has an argument that the class does not have
    """
    known, name = constructor_arguments(algorithm), algorithm.__name__
    for argument in kwargs:
        if argument not in known:
            close = difflib.get_close_matches(argument, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"algorithm_kwargs must be arguments of {name}, which has no {argument!r}{hint}")
    for argument in SCHEDULES:
        if isinstance(kwargs.get(argument), str):
            raise ValueError(
                f"algorithm_kwargs must have a number or a function of the remaining progress for {argument!r}; got "
                f"{kwargs[argument]!r}. Texts such as 'lin_3e-4' are for the settings of the Zoo"
            )
    for argument in space:
        if argument in REFUSED:
            raise ValueError(f"search_space must not name {argument!r}: {REFUSED[argument]}. Give it in algorithm_kwargs")
        if argument not in known:
            close = difflib.get_close_matches(argument, known, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"search_space must name arguments of {name}, which has no {argument!r}{hint}")
        if callable(kwargs.get(argument)) and argument not in SCHEDULES:
            raise ValueError(
                f"search_space must not name {argument!r} while algorithm_kwargs has a function for it, which only "
                f"{', '.join(SCHEDULES)} can be"
            )
        _check_values(argument, known[argument], space[argument])
    if "n_steps" in space and not issubclass(algorithm, OnPolicyAlgorithm):
        raise ValueError(f"search_space must not name 'n_steps' for {name}: {_STORED}. Give it in algorithm_kwargs")


def _check_values(name: str, parameter: inspect.Parameter, knob: Knob) -> None:
    """:raises ValueError: if a value is no integer where the class wants one, or outside :data:`RANGES`"""
    low, high = RANGES.get(name, (-math.inf, math.inf))
    for value in knob.values():
        is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        is_integer = isinstance(value, int | np.integer) and is_number and not isinstance(knob, Uniform)
        if parameter.annotation in (int, "int") and not is_integer:
            raise ValueError(f"search_space must have integers for {name!r}, such as IntUniform or Choice of them; got {knob}")
        if is_number and not low <= value <= high:
            upper = f" and at most {high:g}" if math.isfinite(high) else ""
            raise ValueError(f"search_space must have values of at least {low:g}{upper} for {name!r}; got {knob}")


def check_is_kept(model: Any, names: Iterable[str]) -> None:
    """
    :param model: a new member
    :param names: of the searched arguments
    :raises ValueError: if the model keeps no such attribute, so that nothing would read a new value
    """
    for name in names:
        if not hasattr(model, _attribute(model, name)):
            raise ValueError(
                f"search_space must not name {name!r}: {type(model).__name__} reads it only when a model is constructed, so "
                "it cannot change while one trains. Give it in algorithm_kwargs"
            )


def _attribute(model: Any, name: str) -> str:
    return "delta_std_schedule" if name == "delta_std" and hasattr(model, "delta_std_schedule") else name


def check_applies(model: Any, values: Mapping[str, Any]) -> None:
    """
    :param model: that was saved and loaded with new values
    :param values: as :func:`arguments_with` gives them
    :raises ValueError: if the model has another value, for example because it has rounded it
    """
    for name, value in values.items():
        found = model.lr_schedule if name == "learning_rate" else getattr(model, _attribute(model, name))
        if callable(found):
            found, value = found(1.0), value(1.0) if callable(value) else value
        is_number = isinstance(found, int | float | np.number) and not isinstance(value, str)
        if is_number and value is not None and not np.isclose(float(found), float(value), atol=0.0):
            raise ValueError(
                f"search_space must not name {name!r}: {type(model).__name__} has {found} after it was given {value}, so it "
                "cannot change while a model trains. Give it in algorithm_kwargs"
            )


def check_ready_steps(model: Any, ready_steps: int, space: Mapping[str, Knob]) -> None:
    """
    :param model: a member
    :param ready_steps: environment steps of a member in a generation
    :param space: that is searched
    :raises ValueError: if they are fewer than a rollout of an on-policy algorithm, the longest that may come
    """
    check_range("ready_steps", ready_steps, 1, integer=True)
    if not isinstance(model, OnPolicyAlgorithm):
        return
    n_steps = max([model.n_steps, *(space["n_steps"].values() if "n_steps" in space else ())])
    rollout = n_steps * model.n_envs
    if ready_steps < rollout:
        raise ValueError(
            f"ready_steps must be at least one rollout of {type(model).__name__}, which is n_steps * n_envs = {n_steps} * "
            f"{model.n_envs} = {rollout} steps; got {ready_steps}. Raise it, or lower n_steps in algorithm_kwargs or the "
            "number of environments"
        )
