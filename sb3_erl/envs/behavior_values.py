"""Behaviors as values: where an environment reports them, and what they must be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

KEY = "bc"
"""Where an environment's ``info`` holds the behavior."""


def read_behavior(info: Mapping[str, Any], key: str = KEY) -> np.ndarray:
    """
    :param info: of the last step of an episode
    :param key: of the entry
    :return: the behavior, a copy; ``(1,)`` for a single number
    :raises ValueError: if there is none

    >>> read_behavior({"bc": [1.0, 2.0]})
    array([1., 2.])
    """
    if key not in info:
        raise ValueError(
            f"env must give the behavior of an episode as info[{key!r}] of its last step; got only {sorted(info)}. Let the "
            "environment write it, or wrap it: BehaviorWrapper(env, behavior=function of the episode)"
        )
    return checked_behavior(np.array(info[key]))


def behavior_or_none(value: Any) -> np.ndarray | None:
    """
    :param value: what an environment's ``info`` holds under :data:`KEY`, perhaps for another purpose
    :return: the same as a behavior, ``None`` if it can be none
    """
    try:
        return checked_behavior(np.array(value))
    except ValueError:
        return None


def checked_behavior(behavior: np.ndarray) -> np.ndarray:
    """
    :param behavior: an array of numbers
    :return: the same, ``(1,)`` for a single number
    :raises ValueError: if it is empty or does not hold numbers
    """
    if behavior.size == 0 or behavior.dtype.kind not in "buif":
        raise ValueError(
            f"a behavior must be an array of at least one number; got {behavior.dtype} of shape {behavior.shape}. Return "
            "(dim,) for a vector or (T, n) for a sequence"
        )
    return np.atleast_1d(behavior)
