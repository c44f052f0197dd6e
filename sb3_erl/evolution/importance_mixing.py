"""Importance mixing: reuse evaluated candidates that still look like draws of the new search distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class DiagonalGaussian:
    """
    :param mean: ``(n_params,)``
    :param variance: ``(n_params,)``
    """

    mean: np.ndarray
    variance: np.ndarray

    def log_density(self, x: np.ndarray) -> float:
        """:return: log-density of ``(n_params,)`` summed over coordinates, without the constant"""
        return float(-0.5 * (np.square(x - self.mean) / self.variance + np.log(self.variance)).sum())

    def draw(self, noise: np.ndarray) -> np.ndarray:
        """:return: ``mean + noise * sqrt(variance)``"""
        return self.mean + noise * np.sqrt(self.variance)


class MixingDraws(Protocol):
    """Random numbers of importance mixing."""

    def uniform(self) -> float:
        """A number in [0, 1)."""

    def normal(self, n: int) -> np.ndarray:
        """``(n,)`` standard normal numbers."""


@dataclass(frozen=True)
class GeneratorMixingDraws:
    """:class:`MixingDraws` from a NumPy generator."""

    rng: np.random.Generator

    def uniform(self) -> float:
        return float(self.rng.random())

    def normal(self, n: int) -> np.ndarray:
        return self.rng.standard_normal(n)


def importance_mixing(
    old_samples: np.ndarray, old: DiagonalGaussian, new: DiagonalGaussian, n: int, draws: MixingDraws
) -> tuple[np.ndarray, list[int]]:
    """
    Compose a sample of ``new`` that keeps as many of the old samples as it may.

    Sun et al. (2009); authors' code: apourchot/CEM-RL, ``samplers.py: IMSampler``. Old samples are kept with probability
    ``min(1, p_new / p_old)`` and fill the result from the front; fresh draws are kept with probability
    ``max(0, 1 - p_old / p_new)`` and fill it from the back; what is missing in the end is drawn without a test.

    :param old_samples: ``(m, n_params)``
    :param old: their distribution
    :param new: the distribution that is wanted
    :param n: number of samples wanted
    :param draws: random numbers
    :return: ``(n, n_params)`` and the numbers of the old samples in its first rows
    """
    n_params = old_samples.shape[1]
    front: list[np.ndarray] = []
    back: list[np.ndarray] = []
    reused: list[int] = []
    for index, sample in enumerate(old_samples):
        if len(front) + len(back) == n:
            break
        if np.log(draws.uniform()) < new.log_density(sample) - old.log_density(sample):
            front.append(sample)
            reused.append(index)
        if len(front) + len(back) == n:
            break
        candidate = new.draw(draws.normal(n_params))
        if np.log(1 - draws.uniform()) >= old.log_density(candidate) - new.log_density(candidate):
            back.append(candidate)
    missing = n - len(front) - len(back)
    middle = [new.draw(draws.normal(n_params)) for _ in range(missing)]
    rows = [*front, *middle, *back[::-1]]
    return np.stack(rows) if rows else np.zeros((0, n_params)), reused
