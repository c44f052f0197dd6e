"""How the individuals of a generation came about: at random, by an operator, or from outside."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

ORIGINS = ("random", "sample", "mutation", "crossover", "learner", "unknown")
"""
Ways in which an individual can be made: drawn anew, drawn from a search distribution, mutated, crossed (and possibly mutated
then), put in from outside (the learner, or a step of a user's own), or in a way that its evolver does not tell.
"""
COPY = "copy"
"""Stands for one of :data:`ORIGINS` where an individual is an unchanged copy: it keeps the origin of what it is a copy of."""
NO_PARENT, OUTSIDE = -1, -2


@dataclass(frozen=True)
class Origins:
    """
    How each individual of a generation came about.

    :param kinds: ``(n,)``, each one of :data:`ORIGINS` or :data:`COPY`
    :param parents: ``(n,)`` number of the first parent among the individuals that were told last, :data:`NO_PARENT` without
        one, :data:`OUTSIDE` for descendants of an individual from outside
    :param founders: ``(n,)`` numbers of the random individuals that they descend from, empty where they are not known
    """

    kinds: tuple[str, ...]
    parents: tuple[int, ...]
    founders: tuple[int, ...] = ()

    @classmethod
    def all_of(cls, kind: str, n: int) -> Origins:
        """
        :param kind: one of :data:`ORIGINS`
        :param n: number of individuals
        :return: individuals without parents that all came about in the same way

        >>> Origins.all_of("sample", 2)
        Origins(kinds=('sample', 'sample'), parents=(-1, -1), founders=())
        """
        return cls((kind,) * n, (NO_PARENT,) * n)

    def with_outsiders(self, slots: Iterable[int]) -> Origins:
        """
        :param slots: that hold individuals from outside
        :return: the same with these
        """
        places = set(slots)
        kinds = tuple("learner" if i in places else kind for i, kind in enumerate(self.kinds))
        return Origins(kinds, tuple(OUTSIDE if i in places else parent for i, parent in enumerate(self.parents)))


def origins_of_epoch(epoch: Any, n: int) -> Origins:
    """
    :param epoch: an :class:`~sb3_erl.evolution.operators.selection.Epoch` or a
        :class:`~sb3_erl.evolution.operators.distilled_epoch.DistilledEpoch`
    :param n: number of individuals
    :return: how those came about that follow from it; of a crossing the slot that is written is the first parent
    """
    kinds, parents = [COPY] * n, list(range(n))

    def copy(source: int, slot: int) -> None:
        kinds[slot], parents[slot] = (COPY, source) if source < n else ("learner", OUTSIDE)

    if hasattr(epoch, "children"):
        for elite, slot in epoch.copies:
            copy(parents[elite], slot)
        before = list(parents)
        for first, _, slot in epoch.children:
            kinds[slot], parents[slot] = "crossover", before[first]
        for slot, _ in epoch.crossings:
            kinds[slot] = "crossover"
    else:
        for copies, pairs in zip(epoch.copies, epoch.crossings, strict=True):
            for source, slot in copies:
                copy(source, slot)
            for pair in pairs:
                for slot in pair:
                    kinds[slot] = "crossover"
    for slot in epoch.mutants:
        kinds[slot] = "mutation" if kinds[slot] != "crossover" else "crossover"
    return Origins(tuple(kinds), tuple(int(parent) for parent in parents))
