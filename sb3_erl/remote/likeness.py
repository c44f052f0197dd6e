"""Whether the environments of a VecEnv were made alike, so that one of them stands for all."""

from __future__ import annotations

import functools
import numbers
import types
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

INERT_WRAPPERS = (
    "stable_baselines3.common.monitor:Monitor",
    "gymnasium.wrappers.rendering:RecordVideo",
    "gymnasium.wrappers.rendering:RenderCollection",
    "gymnasium.wrappers.rendering:HumanRendering",
    "gymnasium.wrappers.common:RecordEpisodeStatistics",
)
"""Wrappers that change nothing of what an agent meets, and that often only one of several environments has."""
MAX_DEPTH = 8
"""Values that differ only deeper inside of others count as alike."""


def difference(one: EnvSpec, other: EnvSpec) -> str | None:
    """
    :param one: gymnasium's description of an environment, with the arguments of all its wrappers
    :param other: of another one
    :return: the two values of the first part in which they differ; ``None`` if an agent meets the same in both
    """
    ours, theirs = _parts(one), _parts(other)
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        found = [repr(parts.get(name, "not given"))[:100] for parts in (ours, theirs)]
        if name not in ours or name not in theirs or not is_alike(ours[name], theirs[name]):
            return f"{name} {found[0]} and {found[1]}"
    return None


def _parts(spec: EnvSpec) -> dict[str, Any]:
    wrappers = [wrapper for wrapper in spec.additional_wrappers if wrapper.entry_point not in INERT_WRAPPERS]
    parts: dict[str, Any] = {"entry_point": spec.entry_point, "max_episode_steps": spec.max_episode_steps, **spec.kwargs}
    parts["wrappers"] = [wrapper.entry_point for wrapper in wrappers]
    for number, wrapper in enumerate(wrappers):
        parts |= {f"{name} of wrapper {number} ({wrapper.name})": value for name, value in (wrapper.kwargs or {}).items()}
    return parts


def is_alike(one: Any, other: Any, depth: int = 0) -> bool:
    """
    Equality of arguments; functions are alike that were made twice by the same line with the same values around them.

    :param one: argument of an environment or a wrapper
    :param other: the same argument of another one
    :param depth: number of values that they are inside of
    :return: whether they mean the same
    """
    if one is other or depth > MAX_DEPTH:
        return True
    if isinstance(one, numbers.Number) and isinstance(other, numbers.Number):
        return bool(one == other or (one != one and other != other))
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray) and one.dtype != object:
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
    if isinstance(one, gym.Env | np.random.Generator | np.random.RandomState):  # what it refers to, not what it is
        return True
    if isinstance(one, str | bytes | type | types.ModuleType | types.BuiltinFunctionType | gym.Space):
        return bool(one == other)
    ours, theirs = _inside(one), _inside(other)
    if ours is None or theirs is None:
        return _is_equal(one, other)
    return ours.keys() == theirs.keys() and all(is_alike(ours[key], theirs[key], depth + 1) for key in ours)


def _inside(value: Any) -> dict[Any, Any] | None:
    """What a value is made of; ``None`` if only it knows what equality means."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list | tuple | np.ndarray):
        return dict(enumerate(value))
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        return {"code": value.__code__, "defaults": value.__defaults__, "named": value.__kwdefaults__, "cells": cells}
    if isinstance(value, types.MethodType):
        return {"function": value.__func__, "object": value.__self__}
    if isinstance(value, functools.partial):
        return {"function": value.func, "arguments": value.args, "named": value.keywords}
    has_own_equality = getattr(type(value), "__eq__", None) is not object.__eq__
    return None if has_own_equality or not hasattr(value, "__dict__") else vars(value)


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a variable that has no value yet
        return False


def _is_equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except (TypeError, ValueError, RuntimeError):  # arrays of another library, for example
        return repr(one) == repr(other)
