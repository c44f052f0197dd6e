"""How old individuals are, how they came about and whom they descend from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sb3_erl.evolution.operators.origins import COPY, ORIGINS, OUTSIDE, Origins

NO_LINE = -1
"""Line of descent of an individual that is drawn from a distribution, or whose parents are not known."""


@dataclass
class Lineage:
    """
    What is known of the individuals of a generation.

    :param born: ``(n,)`` generation in which each was made, as it is now
    :param kinds: ``(n,)`` how it was made, one of :data:`~sb3_erl.evolution.operators.origins.ORIGINS`
    :param lines: ``(n,)`` number of the individual that it descends from by first parents: a random one, or one from outside;
        :data:`NO_LINE` where that is not known
    :param outside: ``(n,)`` whether that one came from outside, as copies of a learner do
    :param n_lines: lines that there have been
    """

    born: list[int]
    kinds: list[str]
    lines: list[int]
    outside: list[bool]
    n_lines: int = 0

    @classmethod
    def empty(cls) -> Lineage:
        """:return: that of no individuals, from which the first generation follows"""
        return cls([], [], [], [])

    def next(self, origins: Origins, number: int) -> Lineage:
        """
        :param origins: how the individuals of a generation came about
        :param number: of that generation, from 1
        :return: their lineage
        """
        following = Lineage([], [], [], [], self.n_lines)
        for i, (kind, parent) in enumerate(zip(origins.kinds, origins.parents, strict=True)):
            known = 0 <= parent < len(self.born)
            if kind == COPY and known:
                own = (self.born[parent], self.kinds[parent], self.lines[parent], self.outside[parent])
            else:
                kind = "unknown" if kind == COPY else kind
                line, outside = (self.lines[parent], self.outside[parent]) if known else (None, parent == OUTSIDE)
                if origins.founders:
                    line = origins.founders[i]
                elif line is None and kind not in ("random", "learner"):
                    line = NO_LINE
                elif line is None:
                    line, following.n_lines = following.n_lines, following.n_lines + 1
                own = (number, kind, line, outside)
            columns: list[list[Any]] = [following.born, following.kinds, following.lines, following.outside]
            for column, value in zip(columns, own, strict=True):
                column.append(value)
        return following

    def ages(self, number: int) -> np.ndarray:
        """
        :param number: of the generation
        :return: ``(n,)`` generations that each has lived through unchanged
        """
        return number - np.array(self.born, dtype=np.int64)

    def shares(self, chosen: Any) -> dict[str, float]:
        """
        :param chosen: indices of individuals
        :return: share of them that was made in each way
        """
        kinds = [self.kinds[i] for i in chosen]
        return {kind: kinds.count(kind) / len(kinds) if kinds else float("nan") for kind in ORIGINS}

    @property
    def n_alive(self) -> int:
        """Lines of descent that are left; 0 where some are not known."""
        lines = set(self.lines)
        return 0 if NO_LINE in lines else len(lines)
