"""Layers of networks in NumPy, for stacks with one row per candidate; no row's result depends on the other rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from sb3_erl.policies.fused_mlp import has_hooks
from sb3_erl.policies.layers import NORM_EPSILON, AvgL1Norm, BestAction, BinnedAction, PlainNorm, StdNorm
from sb3_erl.policies.observation_statistics import ObservationStatistics
from sb3_erl.policies.sequential import BestActions, Bits
from sb3_erl.rollouts import single_row
from sb3_erl.rollouts.single_row import SingleRowActor

Stack = tuple[np.ndarray, ...]
"""Arrays with one row per candidate, or one row shared by all."""
Layer = tuple[Any, Stack]
"""The function of a layer, see :func:`function_of`, and its tensors."""


def _elu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.abs(x).mean(-1, keepdims=True), np.float32(AvgL1Norm.floor))


# Functions with names, so that actors can be sent to other processes.


def _relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def _leaky_relu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, np.float32(0.01) * x)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def _identity(x: np.ndarray) -> np.ndarray:
    return x


ACTIVATIONS: dict[type[nn.Module], Callable[[np.ndarray], np.ndarray]] = {
    nn.Tanh: np.tanh,
    nn.ReLU: _relu,
    nn.ELU: _elu,
    nn.LeakyReLU: _leaky_relu,
    nn.Sigmoid: _sigmoid,
    nn.SiLU: _silu,
    nn.Identity: _identity,
    AvgL1Norm: _unit,
}


def _linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    y = np.matmul(weight, x[..., None])[..., 0]
    y += bias
    return y


_EPSILON = np.array(NORM_EPSILON, dtype=np.float32)


def _std_norm(x: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    n = x.shape[-1]
    number = np.add.reduce(x, axis=-1, keepdims=True)
    number /= n
    y = x - number
    np.add.reduce(y * y, axis=-1, keepdims=True, out=number)
    number /= n - 1
    np.sqrt(number, out=number)
    number += _EPSILON
    y /= number
    y *= scale
    y += shift
    return y


def _plain_norm(x: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    centered = x - x.mean(-1, keepdims=True)
    variance = np.square(centered).mean(-1, keepdims=True)
    return centered / np.sqrt(variance + np.float32(PlainNorm.epsilon)) * scale + shift


def _best(scores: np.ndarray) -> np.ndarray:
    return scores.argmax(-1)[..., None].astype(np.float32)


def _bits(scores: np.ndarray) -> np.ndarray:
    return (scores > 0).astype(np.float32)


@dataclass(frozen=True)
class _BestOfEach:
    sizes: tuple[int, ...]

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        ends = np.cumsum(self.sizes)
        return np.stack([scores[..., e - n : e].argmax(-1) for n, e in zip(self.sizes, ends, strict=True)], -1).astype(
            np.float32
        )


@dataclass(frozen=True)
class _Standardized:
    clip: np.float32

    def __call__(self, x: np.ndarray, *tensors: np.ndarray) -> np.ndarray:
        mean, std = tensors[-2:]
        x = x - mean
        x /= std
        return np.minimum(np.maximum(x, -self.clip, out=x), self.clip, out=x)  # np.clip is slow on small arrays


@dataclass(frozen=True)
class _Binned:
    n_bins: int

    def __call__(self, x: np.ndarray, low: np.ndarray, width: np.ndarray) -> np.ndarray:
        return low + width * x.reshape(len(x), -1, self.n_bins).argmax(-1).astype(np.float32)


def function_of(module: nn.Module) -> Callable[..., np.ndarray] | None:
    """
    :param module: a layer
    :return: maps its input, given its tensors, to its output; ``None`` if the layer's class is not known here (a subclass of a
        known one is not, since it may compute something else)
    """
    if type(module) is ObservationStatistics:
        return _Standardized(np.float32(module.clip))
    if type(module) is BinnedAction:
        return _Binned(module.n_bins)
    if type(module) is BestActions:
        return _BestOfEach(module.sizes)
    return LAYERS.get(type(module))


LAYERS: dict[type[nn.Module], Callable[..., np.ndarray]] = {
    **ACTIVATIONS,
    nn.Linear: _linear,
    StdNorm: _std_norm,
    PlainNorm: _plain_norm,
    BestAction: _best,
    Bits: _bits,
}


def supported(modules: Sequence[nn.Module]) -> bool:
    """Whether :class:`~sb3_erl.rollouts.acting.NumpyActor` can run this sequence of modules."""
    known = all(function_of(m) is not None and not has_hooks(m) for m in modules)
    plain = all(m.alpha == 1.0 for m in modules if isinstance(m, nn.ELU))
    slopes = all(m.negative_slope == 0.01 for m in modules if isinstance(m, nn.LeakyReLU))
    return known and plain and slopes and all(m.bias is not None for m in modules if isinstance(m, nn.Linear))


def single_row_layer(function: Any, row: Stack) -> SingleRowActor:
    """
    :param function: of a layer, see :func:`function_of`
    :param row: the tensors of one candidate, without the leading axis
    :return: the layer for this candidate alone
    """
    if function is _linear:
        return single_row.linear(*row)
    if function is _std_norm:
        scale, shift = row
        return single_row.std_norm(scale, shift, np.float32(NORM_EPSILON))
    if isinstance(function, _Standardized):
        mean, std = row[-2:]
        return single_row.standardized(mean, std, function.clip)
    if function is np.tanh or function is _relu:
        return single_row.tanh if function is np.tanh else single_row.relu
    return single_row.of_stack(function, row)
