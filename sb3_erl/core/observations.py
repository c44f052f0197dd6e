"""Observations as one array or, for a Dict space, as a dict of arrays, with the same operations for both; copies of infos."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

Observation = np.ndarray | dict[str, np.ndarray]
"""One observation, or several along the first axis of each array."""
Shape = tuple[int, ...] | dict[str, tuple[int, ...]]
"""Shape of an observation; one per key for a Dict space."""
Rows = int | slice | list[int] | None
"""Which rows of the first axis; ``None`` adds an axis before it."""
_IMMUTABLE = frozenset({bool, int, float, str, type(None), np.bool_, np.float64, np.float32, np.int64, np.int32})
"""Types whose values cannot change, so that they need no copy."""


def shape_of(space: spaces.Space) -> Shape:
    """
    :param space: an observation space
    :return: shape of one observation
    """
    if isinstance(space, spaces.Dict):
        return {key: part.shape or () for key, part in space.spaces.items()}
    return space.shape or ()


def several(shape: Shape, n_rows: int) -> Shape:
    """
    :param shape: of one observation
    :param n_rows: number of observations
    :return: shape of so many
    """
    return {key: (n_rows, *part) for key, part in shape.items()} if isinstance(shape, dict) else (n_rows, *shape)


def zeros(space: spaces.Space, n_rows: int) -> Observation:
    """
    :param space: an observation space
    :param n_rows: number of observations
    :return: so many observations of zeros, in the dtype of the space
    """
    if isinstance(space, spaces.Dict):
        return {key: np.zeros((n_rows, *(part.shape or ())), dtype=part.dtype) for key, part in space.spaces.items()}
    return np.zeros((n_rows, *(space.shape or ())), dtype=space.dtype)


def take(observations: Observation, rows: Rows) -> Observation:
    """
    :param observations: several of them
    :param rows: index, slice or indices on the first axis
    :return: these rows of each array; views where NumPy gives views
    """
    if isinstance(observations, dict):
        return {key: array[rows] for key, array in observations.items()}
    return observations[rows]


def put(observations: Observation, rows: Rows, values: Observation) -> None:
    """
    Write some rows in place.

    :param observations: written to
    :param rows: index, slice or indices on the first axis
    :param values: what is written; keys that ``observations`` does not have are ignored
    """
    if isinstance(observations, dict):
        assert isinstance(values, dict)
        for key, array in observations.items():
            array[rows] = values[key]
    else:
        observations[rows] = values


def row_access(observation: Observation) -> tuple[Callable[..., Any], Callable[..., None]]:
    """
    :param observation: one of the observations whose rows will be read and written
    :return: :func:`take` and :func:`put`; for arrays plain indexing, which takes a fraction of their time
    """
    return (take, put) if isinstance(observation, dict) else (operator.getitem, operator.setitem)


def combine(function: Callable[..., Any], *observations: Any) -> Any:
    """
    Apply a function to arrays, for dicts key by key.

    :param function: takes one array of each observation
    :param observations: all arrays, or all dicts with the keys of the first
    :return: an array, or a dict of arrays

    >>> combine(np.add, {"x": np.ones(1)}, {"x": np.ones(1)})
    {'x': array([2.])}
    """
    first = observations[0]
    if isinstance(first, dict):
        return {key: function(*(one[key] for one in observations)) for key in first}
    return function(*observations)


def copied(observation: Observation) -> Any:
    """
    :param observation: array or dict of arrays
    :return: a copy that shares no memory with it
    """
    return combine(np.array, observation)


def arrays_of(observation: Observation) -> Sequence[np.ndarray]:
    """
    :param observation: array or dict of arrays
    :return: its arrays
    """
    return list(observation.values()) if isinstance(observation, dict) else [observation]


def packed(observations: dict[str, np.ndarray]) -> np.ndarray:
    """
    The bytes of dicts of arrays, for what keeps observations in one array.

    :param observations: several of them
    :return: ``(n, n_bytes)`` of uint8

    >>> rows = {"a": np.ones((2, 1), np.float32), "b": np.zeros((2, 3), np.uint8)}
    >>> packed(rows).shape
    (2, 7)
    """
    parts = [np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8) for array in observations.values()]
    return np.concatenate(parts, axis=1)


def unpacked(rows: np.ndarray, space: spaces.Dict) -> dict[str, np.ndarray]:
    """
    :param rows: ``(n, n_bytes)``, see :func:`packed`
    :param space: of these observations
    :return: several observations
    """
    found, start = {}, 0
    for key, array in zeros(space, 1).items():  # type: ignore[union-attr]
        part = np.ascontiguousarray(rows[:, start : start + array.nbytes]).view(array.dtype)
        found[key], start = part.reshape(len(rows), *array.shape[1:]), start + array.nbytes
    return found


def copy_info(info: dict[str, Any]) -> dict[str, Any]:
    """
    :param info: what an environment returned with a step and may write into later
    :return: a copy that does not change with it
    """
    if _IMMUTABLE.issuperset(map(type, info.values())):
        return dict(info)
    return copy.deepcopy(info)
