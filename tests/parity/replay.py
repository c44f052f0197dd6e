"""Recorded random decisions, handed out in order."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import numpy as np


class RecordedNormals:
    """
    Plays back standard normal numbers in order, in whatever blocks they are asked for; asking for more fails.

    :param numbers: of any shape
    """

    def __init__(self, numbers: np.ndarray):
        self._left = np.asarray(numbers).reshape(-1)

    def standard_normal(self, *, out: np.ndarray) -> np.ndarray:
        assert out.size <= self._left.size
        out[:] = self._left[: out.size].reshape(out.shape)
        self._left = self._left[out.size :]
        return out

    @property
    def is_used_up(self) -> bool:
        return not self._left.size


class RecordedDraws:
    """
    Plays back the draws of one selection epoch; asking for more, or for other items, fails.

    :param tournament: rank draws, one row per tournament
    :param index: parity draws
    :param shuffle: lists after shuffling
    :param choice: picked items
    :param uniform: numbers in [0, 1)

    ``own_mates`` may be picked although they are not among the items.
    """

    own_mates: Container[int] = ()

    def __init__(self, tournament: Any, index: Any, shuffle: Any, choice: Any, uniform: Any):
        self._tournaments, self._indices, self._shuffles = list(tournament), list(index), list(shuffle)
        self._choices, self.uniforms = list(choice), list(uniform)

    def tournaments(self, n: int, size: int, count: int) -> np.ndarray:
        ranks = np.array([self._tournaments.pop(0) for _ in range(count)], dtype=np.int64).reshape(count, -1)
        assert count == 0 or (ranks.shape == (count, size) and ranks.max() < n)
        return ranks.reshape(count, size)

    def index(self, n: int) -> int:
        value = int(self._indices.pop(0))
        assert 0 <= value < n
        return value

    def shuffle(self, items: Sequence[int]) -> list[int]:
        shuffled = [int(i) for i in self._shuffles.pop(0)] if self._shuffles else []
        assert sorted(shuffled) == sorted(items)
        return shuffled

    def choice(self, items: Sequence[int]) -> int:
        value = int(self._choices.pop(0))
        assert value in items or value in self.own_mates
        return value

    def uniform(self) -> float:
        return float(self.uniforms.pop(0))

    @property
    def n_left(self) -> int:
        return sum(map(len, (self._tournaments, self._indices, self._shuffles, self._choices, self.uniforms)))

    @property
    def is_used_up(self) -> bool:
        return self.n_left == 0
