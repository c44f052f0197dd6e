"""Candidates of a mirrored evolution strategy as windows of a noise table, rebuilt one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sb3_erl.core.noise_table import NoiseTable
from sb3_erl.evolution.rebuilt import AskedCandidates

_TILE, _GROUP = 1 << 16, 64
"""Parameters and pairs that are summed at a time: a part of the sum that stays in the processor's cache is faster."""


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


def mirrored_rows(centers: np.ndarray, sigma: float, pairs: Sequence[tuple[int, int]], windows: Windows) -> np.ndarray:
    """
    :param centers: ``(n_pairs, n_params)`` float32, what each pair perturbs
    :param sigma: standard deviation of perturbations
    :param pairs: for each pair where its window begins in the table and at which parameter it is put
    :param windows: of the table
    :return: ``(2 * n_pairs, n_params)`` float32: center + first perturbation, center - first perturbation, ...
    """
    rows = np.empty((2 * len(pairs), windows.n_params), dtype=np.float32)
    if windows.n_perturbed < windows.n_params:
        rows[:] = np.repeat(centers, 2, axis=0)
    for k, (pair, center) in enumerate(zip(pairs, centers, strict=True)):
        plus, minus = rows[2 * k : 2 * k + 2]
        for place, noise in windows.pieces(*pair):
            away = np.float32(sigma) * noise
            np.add(center[place], away, out=plus[place])
            np.subtract(center[place], away, out=minus[place])
    return rows


def weighted_sum(weights: np.ndarray, pairs: Sequence[tuple[int, int]], windows: Windows) -> np.ndarray:
    """
    The sum of weighted perturbations, which is bound by reading their windows once.

    Every parameter gets its terms in the order of the pairs, whatever is summed at a time.

    :param weights: ``(n,)`` of the first n pairs; pairs of weight 0 are left out
    :param pairs: for each pair where its window begins in the table and at which parameter it is put
    :param windows: of the table
    :return: ``(n_params,)`` float32
    """
    total, scratch = np.zeros(windows.n_params, dtype=np.float32), np.empty(_TILE, dtype=np.float32)
    used = [(weight, pair) for weight, pair in zip(weights.astype(np.float32), pairs, strict=False) if weight != 0]
    for first in range(0, len(used), _GROUP):
        terms = [(weight, *piece) for weight, pair in used[first : first + _GROUP] for piece in windows.pieces(*pair)]
        for start in range(0, windows.n_params, _TILE):
            for weight, place, noise in terms:
                low, high = max(start, place.start), min(start + _TILE, place.stop)
                if low < high:
                    part = noise[low - place.start : high - place.start]
                    total[low:high] += np.multiply(part, weight, out=scratch[: high - low])
    return total


class UnbuiltCandidates:
    """
    Stands for mirrored candidates that other processes make for themselves, and makes those that are asked for here.

    :param source: makes them one at a time, from number 0 on
    :param device: of the tensors that are made
    """

    def __init__(self, source: MirroredSource, device: torch.device):
        self._source, self._device = source, device
        self._built: Tensor | None = None
        self._asked: AskedCandidates | None = None

    def __len__(self) -> int:
        return 2 * len(self._source.pairs)

    @property
    def dtype(self) -> torch.dtype:
        """That of the tensors."""
        return torch.float32

    def built(self) -> Tensor:
        """:return: ``(n, n_params)``, all of them; always the same tensor"""
        if self._built is None:
            self._built = self._rows(0)
            self._asked = AskedCandidates(self._built, seed=int(self._source.pairs[0, 0]))
        return self._built

    def __getitem__(self, number: int) -> Tensor:
        """:return: ``(n_params,)``, one of them"""
        if self._built is not None:
            return self._built[number]
        return torch.from_numpy(self._source(range(len(self))[number])).to(self._device)

    def first(self, n: int) -> UnbuiltCandidates:
        """
        :param n: even
        :return: the first n of them
        """
        part = UnbuiltCandidates(replace(self._source, pairs=self._source.pairs[: n // 2]), self._device)
        part._built, part._asked = None if self._built is None else self._built[:n], self._asked
        return part

    def extend(self, source: MirroredSource) -> None:
        """
        :param source: of all candidates of the generation, of which those here are the first
        """
        n, self._source = len(self), source
        if self._built is not None and self._asked is not None:
            more = self._rows(n // 2)
            self._built = torch.cat([self._built, more])
            self._asked.add(more)

    def check(self, candidates: Tensor | UnbuiltCandidates) -> None:
        """
        :param candidates: that an evolver is told about: these or the first of them
        :raises ValueError: if they were changed, see :meth:`AskedCandidates.check`
        """
        told = candidates._built if isinstance(candidates, UnbuiltCandidates) else candidates
        if told is not None:
            self.built()
            assert self._asked is not None
            self._asked.check(told)

    def _rows(self, first_pair: int) -> Tensor:
        source = self._source
        pairs: Any = source.pairs[first_pair:].tolist()
        centers = np.broadcast_to(source.center, (len(pairs), source.center.size))
        return torch.from_numpy(mirrored_rows(centers, source.sigma, pairs, source.windows)).to(self._device)
