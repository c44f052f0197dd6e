"""Candidates of a mirrored evolution strategy as windows of a noise table, rebuilt one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sb3_erl.core.noise_table import NoiseTable


@dataclass(frozen=True)
class Windows:
    """
    Perturbations as parts of a noise table.

    :param table: where they come from
    :param n_perturbed: length of a window, in parameters
    :param n_params: length of the vector that is perturbed
    """

    table: NoiseTable
    n_perturbed: int
    n_params: int

    def pieces(self, offset: int, start: int) -> list[tuple[slice, np.ndarray]]:
        """Which parameters get which part of the window: one piece, or two where it wraps around."""
        window = self.table.window(offset, self.n_perturbed)
        split = min(self.n_perturbed, self.n_params - start)
        pieces = [(slice(start, start + split), window[:split])]
        return pieces if split == self.n_perturbed else [*pieces, (slice(0, self.n_perturbed - split), window[split:])]

    def perturb(self, vector: np.ndarray, sigma: float, offset: int, start: int) -> None:
        """
        Add a perturbation in place.

        :param vector: ``(n_params,)`` float32
        :param sigma: what the noise is multiplied with; negative for the mirrored perturbation
        :param offset: where the window begins in the table
        :param start: at which parameter it is put
        """
        for place, noise in self.pieces(offset, start):
            vector[place] += np.float32(sigma) * noise


@dataclass(frozen=True)
class MirroredSource:
    """
    Makes the candidates of :class:`~sb3_erl.evolution.es.MirroredES` one at a time; see
    :class:`~sb3_erl.remote.recipes.CandidateSource`. A message to a worker holds two numbers for each pair of candidates.

    :param mean: ``(n_params,)``, what candidates with numbers below ``first`` are
    :param center: ``(n_params,)`` what is perturbed
    :param sigma: standard deviation of perturbations
    :param pairs: ``(n_pairs, 2)`` for each pair where its window begins in the table and at which parameter it is put
    :param windows: of the table
    :param first: number of the first candidate
    """

    mean: np.ndarray
    center: np.ndarray
    sigma: float
    pairs: np.ndarray
    windows: Windows
    first: int = 1

    @property
    def noise_tables(self) -> tuple[NoiseTable, ...]:
        """See :class:`~sb3_erl.remote.recipes.CandidateSource`."""
        return (self.windows.table,)

    def __call__(self, candidate: int) -> np.ndarray:
        """See :class:`~sb3_erl.remote.recipes.CandidateSource`."""
        index = candidate - self.first
        if index < 0:
            return self.mean.copy()
        vector, pair = self.center.copy(), self.pairs[index // 2].tolist()
        self.windows.perturb(vector, -self.sigma if index % 2 else self.sigma, *pair)
        return vector

    def __reduce__(self) -> tuple[Any, ...]:  # what is perturbed is mostly the mean, and windows begin at 0
        center = None if np.array_equal(self.center, self.mean) else self.center
        pairs = self.pairs if self.pairs[:, 1].any() else np.ascontiguousarray(self.pairs[:, 0])
        return _mirrored_source, (self.mean, center, self.sigma, pairs, self.windows, self.first)


def _mirrored_source(
    mean: np.ndarray, center: np.ndarray | None, sigma: float, pairs: np.ndarray, *rest: Any
) -> MirroredSource:
    """Inverse of :meth:`MirroredSource.__reduce__`."""
    if pairs.ndim == 1:
        pairs = np.stack([pairs, np.zeros_like(pairs)], axis=1)
    return MirroredSource(mean, mean if center is None else center, sigma, pairs, *rest)
