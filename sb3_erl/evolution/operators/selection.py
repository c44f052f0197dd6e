"""Selection of parents, elites and slots to be replaced, as decisions on indices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from sb3_erl.evolution.fitness.shaping import nan_is_worst


class Draws(Protocol):
    """Every random decision of a selection epoch, so that recorded draws can be replayed."""

    def tournaments(self, n: int, size: int, count: int) -> np.ndarray:
        """``(count, size)`` integers in [0, n), with replacement, row by row."""

    def index(self, n: int) -> int:
        """An integer in [0, n)."""

    def shuffle(self, items: Sequence[int]) -> list[int]:
        """The items in random order."""

    def choice(self, items: Sequence[int]) -> int:
        """One of the items."""

    def uniform(self) -> float:
        """A number in [0, 1)."""


class GeneratorDraws:
    """
    Draws from a NumPy generator.

    :param rng: the generator
    """

    def __init__(self, rng: np.random.Generator):
        self._rng = rng

    def tournaments(self, n: int, size: int, count: int) -> np.ndarray:
        """See :class:`Draws`."""
        return self._rng.integers(n, size=(count, size))

    def index(self, n: int) -> int:
        """See :class:`Draws`."""
        return int(self._rng.integers(n))

    def shuffle(self, items: Sequence[int]) -> list[int]:
        """See :class:`Draws`."""
        return [items[i] for i in self._rng.permutation(len(items))]

    def choice(self, items: Sequence[int]) -> int:
        """See :class:`Draws`."""
        return items[self.index(len(items))]

    def uniform(self) -> float:
        """See :class:`Draws`."""
        return float(self._rng.random())


def rank_best_first(fitness: np.ndarray) -> np.ndarray:
    """
    :param fitness: ``(n,)``, higher is better, NaN is worst
    :return: ``(n,)`` indices, best first; among equals the higher index first, as in the authors' code of ERL

    >>> rank_best_first(np.array([1.0, np.nan, 3.0, 1.0])).tolist()
    [2, 3, 0, 1]
    """
    return np.argsort(nan_is_worst(fitness), kind="stable")[::-1]


def tournament_winners(ranking: np.ndarray, n_tournaments: int, tournament_size: int, draws: Draws) -> list[int]:
    """
    Khadka & Tumer (2018), https://arxiv.org/abs/1805.07917, algorithm 1: the smallest of several drawn ranks wins.

    :param ranking: ``(n,)`` indices, best first
    :param n_tournaments: how many tournaments
    :param tournament_size: contestants per tournament, with replacement
    :param draws: random decisions
    :return: one winner per tournament, repeats included
    """
    contestants = draws.tournaments(len(ranking), tournament_size, n_tournaments)
    return ranking[contestants.min(axis=1)].tolist()


@dataclass
class Epoch:
    """
    The next population in terms of the current one.

    :param crossings: batches of slot pairs to be crossed; before each batch the copies in ``copies`` are made
    :param copies: for each batch the (source, slot) copies that precede it; sources are original individuals, ``n + k``
        being migrant k
    :param mutants: slots to be mutated at the end
    :param protected: slots that hold unchanged copies of the elites, best first
    :param winners: slots of the selected parents
    :param migrants: slots of the migrants
    """

    crossings: list[list[tuple[int, int]]]
    copies: list[list[tuple[int, int]]]
    mutants: list[int]
    protected: list[int]
    winners: list[int]
    migrants: list[int]


class _Plan:
    """Collects copies and crossings into batches in which no slot is crossed twice."""

    def __init__(self, n: int):
        self.sources = list(range(n))
        self.copies: list[list[tuple[int, int]]] = [[]]
        self.crossings: list[list[tuple[int, int]]] = [[]]
        self._crossed: set[int] = set()

    def copy(self, source: int, slot: int) -> None:
        if slot in self._crossed:
            self._next_batch()
        self.sources[slot] = self.sources[source] if source < len(self.sources) else source
        self.copies[-1].append((self.sources[slot], slot))

    def cross(self, first: int, second: int) -> None:
        if first == second:
            return
        if first in self._crossed or second in self._crossed:
            self._next_batch()
        self.crossings[-1].append((first, second))
        self._crossed |= {first, second}

    def _next_batch(self) -> None:
        self.copies.append([])
        self.crossings.append([])
        self._crossed = set()


def slots_of_elites(elites: Sequence[int], losers: list[int], winners: list[int], official: bool) -> list[int]:
    """
    The slots that elites are copied to, which leave the lists that they were in.

    An unselected slot for each; where none is left, that of the first parent whose loss costs no other elite, and where there
    is none, the elite's own. The authors' code of ERL takes the first parent's, whatever it holds, which may be the only copy
    of another elite, and fails where no parent is left.

    :param elites: individuals, best first
    :param losers: unselected slots, in random order; written
    :param winners: slots of the selected parents; written
    :param official: choose as the authors' code does
    :return: a slot for each elite
    """
    slots: list[int] = []
    for k, elite in enumerate(elites):
        if losers or official:
            slots.append((losers or winners).pop(0))
            continue
        still_to_copy = elites[k + 1 :]
        slot = next((winner for winner in winners if winner not in still_to_copy), elite)
        winners[:] = [winner for winner in winners if winner != slot]
        slots.append(slot)
    return slots


def plan_epoch(
    ranking: np.ndarray,
    offspring: Sequence[int],
    draws: Draws,
    *,
    n_elites: int,
    n_migrants: int = 0,
    crossover_prob: float = 0.0,
    mutation_prob: float = 0.9,
    repeat: Literal["random"] | int = "random",
    cross_each: bool = False,
    order: Sequence[int] | None = None,
    official: bool = False,
) -> Epoch:
    """
    One epoch of the ERL family's genetic algorithm (``SSNE.epoch`` of the authors' code), draw by draw.

    Selected parents stay in their slots; elites are copied over unselected slots, which protects the copies; the other
    unselected slots become crossings of an elite and a selected parent; all but the protected slots may be mutated.

    :param ranking: ``(n,)`` indices, best first
    :param offspring: distinct tournament winners
    :param draws: random decisions
    :param n_elites: individuals that survive unchanged
    :param n_migrants: individuals from outside that take unselected slots before the elites do, the first ones where there
        are fewer slots than individuals
    :param crossover_prob: probability of crossing two selected parents in place
    :param mutation_prob: probability of mutating an unprotected slot
    :param repeat: the parent that is repeated if their number is odd: a random one, or this index (the last winner)
    :param cross_each: decide about each selected parent, with a random mate (PDERL), not about consecutive pairs
    :param order: in which order individuals are visited, by default that of their numbers
    :param official: for comparisons, choose slots of elites (:func:`slots_of_elites`) and mates as the authors' code does
    :return: the plan
    """
    n = len(ranking)
    order = range(n) if order is None else order
    elites, winners = [int(i) for i in ranking[:n_elites]], list(offspring)
    if len(winners) % 2:
        winners.append(winners[draws.index(len(winners))] if repeat == "random" else int(repeat))
    chosen = set(winners) | set(elites)
    losers = draws.shuffle([i for i in order if i not in chosen])
    plan = _Plan(n)
    migrants = [losers.pop(0) for _ in range(min(n_migrants, len(losers)))]
    for k, slot in enumerate(migrants):
        plan.copy(n + k, slot)
    protected = slots_of_elites(elites, losers, winners, official)
    for elite, slot in zip(elites, protected, strict=True):
        plan.copy(elite, slot)
    if len(losers) % 2:
        losers.append(losers[draws.index(len(losers))])
    for first, second in zip(losers[::2], losers[1::2], strict=True):
        plan.copy(draws.choice(protected), first)
        plan.copy(draws.choice(winners), second)
        plan.cross(first, second)
    for first, mates in _couples(winners, cross_each, official):
        if draws.uniform() < crossover_prob and mates:
            plan.cross(first, draws.choice(mates) if cross_each else mates[0])
    spared = set(protected)
    mutants = [i for i in order if i not in spared and draws.uniform() < mutation_prob]
    return Epoch(plan.crossings, plan.copies, mutants, protected, sorted(set(offspring)), migrants)


def _couples(winners: list[int], cross_each: bool, official: bool) -> list[tuple[int, list[int]]]:
    """The selected parents that may be crossed, and with whom: each with any other, or consecutive ones."""
    if cross_each:
        return [(first, winners if official else [mate for mate in winners if mate != first]) for first in winners]
    return [(first, [second]) for first, second in zip(winners[::2], winners[1::2], strict=False)]
