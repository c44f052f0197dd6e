"""
Layers that act for one candidate: the arithmetic of :class:`~sb3_erl.rollouts.acting.NumpyActor` on one row, to the last bit.

The time of a small network is the time of its calls of NumPy. There are as few calls as possible here, on vectors, and they
write into memory that was allocated before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

SingleRowActor = Callable[[np.ndarray], np.ndarray]
"""From one observation to an action ``(action_dim,)``, or within a network from the input of one layer ``(n_inputs,)`` to its
output ``(n_outputs,)``; the next call overwrites the result."""
Row = tuple[np.ndarray, ...]
"""Tensors of one layer of one candidate."""


def linear(weight: np.ndarray, bias: np.ndarray) -> SingleRowActor:
    """See ``torch.nn.Linear``."""
    out, dot, add = np.empty(len(weight), dtype=np.float32), weight.dot, np.add

    def run(x: np.ndarray) -> np.ndarray:
        return add(dot(x, out), bias, out)

    return run


def std_norm(scale: np.ndarray, shift: np.ndarray, epsilon: np.float32) -> SingleRowActor:
    """See :class:`~sb3_erl.policies.layers.StdNorm`."""
    add_up, add, subtract, multiply, divide = np.add.reduce, np.add, np.subtract, np.multiply, np.divide
    sqrt, as_float32 = math.sqrt, np.float32  # to look each of them up takes as long as it needs for a few numbers
    out, squares = np.empty_like(scale), np.empty_like(scale)
    number = np.empty((), dtype=np.float32)  # NumPy takes longer to convert a scalar than to compute with it
    n, n_free = np.float32(len(scale)), np.float32(len(scale) - 1)

    def run(x: np.ndarray) -> np.ndarray:
        number[()] = add_up(x) / n
        subtract(x, number, out)
        variance = add_up(multiply(out, out, squares)) / n_free
        number[()] = as_float32(sqrt(variance)) + epsilon  # rounded as a root in float32 is
        divide(out, number, out)
        multiply(out, scale, out)
        return add(out, shift, out)

    return run


def standardized(mean: np.ndarray, std: np.ndarray, clip: np.float32) -> SingleRowActor:
    """See :class:`~sb3_erl.policies.observation_statistics.ObservationStatistics`."""

    def run(x: np.ndarray) -> np.ndarray:
        x = x - mean
        np.divide(x, std, x)
        return np.minimum(np.maximum(x, -clip, out=x), clip, out=x)

    return run


def tanh(x: np.ndarray) -> np.ndarray:
    """Hyperbolic tangent in place."""
    return np.tanh(x, out=x)


def relu(x: np.ndarray) -> np.ndarray:
    """The positive part, in place."""
    return np.maximum(x, 0, out=x)


def of_stack(function: Any, row: Row) -> SingleRowActor:
    """
    :param function: maps a stack of inputs to a stack of outputs, given the layer's tensors as stacks
    :param row: the tensors of the layer of one candidate
    :return: applies it to one input
    """
    stack = tuple(tensor[None] for tensor in row)
    return lambda x: function(x[None], *stack)[0]


def in_sequence(parts: Sequence[SingleRowActor]) -> SingleRowActor:
    """
    :param parts: layers in order
    :return: from one observation of any shape and type to the output of the last layer
    """

    def run(observation: np.ndarray) -> np.ndarray:
        x = observation.astype(np.float32)
        x = x if x.ndim == 1 else x.reshape(-1)
        for part in parts:
            x = part(x)
        return x

    return run


def with_embedding(first: SingleRowActor, embedding: SingleRowActor, rest: SingleRowActor) -> SingleRowActor:
    """
    :param first: from the observation to the output of the first layers
    :param embedding: from the observation to its embedding
    :param rest: from both outputs, side by side, to the action
    :return: from the observation to the action
    """

    def run(observation: np.ndarray) -> np.ndarray:
        return rest(np.concatenate((first(observation), embedding(observation))))

    return run
