"""Mate choice: which individuals become the parents of a distilled child."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np

Matching = Callable[[Sequence[int], np.ndarray], list[tuple[int, int]]]
"""From candidates for parenthood and the population's fitness to pairs, best first."""


def pairs_by_fitness(individuals: Sequence[int], fitness: np.ndarray) -> list[tuple[int, int]]:
    """
    All unordered pairs of a list of individuals by the sum of their fitness, best first.

    Bodnar, Day, Lio (AAAI 2020); authors' code: crisbodnar/pderl, ``SSNE.sort_groups_by_fitness``.

    :param individuals: candidates for parenthood, in an order that breaks ties
    :param fitness: ``(n,)`` of the whole population
    :return: pairs, the fitter one first

    >>> pairs_by_fitness([0, 1, 2], np.array([1.0, 3.0, 2.0]))
    [(1, 2), (1, 0), (2, 0)]
    """
    pairs = [(a, b) if fitness[a] >= fitness[b] else (b, a) for a, b in combinations(individuals, 2)]
    return sorted(pairs, key=lambda pair: -(fitness[pair[0]] + fitness[pair[1]]))


def pairs_by_distance(individuals: Sequence[int], fitness: np.ndarray, distance: np.ndarray) -> list[tuple[int, int]]:
    """
    All unordered pairs of a list of individuals by how differently they behave, most different first.

    :param individuals: candidates for parenthood
    :param fitness: ``(n,)`` of the whole population
    :param distance: ``(n, n)``, symmetric, see :func:`behavior_distance`
    :return: pairs, the fitter one first
    """
    pairs = [(a, b) if fitness[a] >= fitness[b] else (b, a) for a, b in combinations(individuals, 2)]
    return sorted(pairs, key=lambda pair: -distance[pair])


def behavior_distance(own: np.ndarray, others: np.ndarray) -> float:
    """
    :param own: actions ``(batch, action_dim)`` in some states
    :param others: another's actions in the same states
    :return: mean over the states of the squared distance, summed over action dimensions
    """
    return float(np.square(own - others).sum(axis=-1).mean())
