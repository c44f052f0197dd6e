"""One epoch of PDERL's genetic algorithm as a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sb3_erl.evolution.operators.matching import Matching, pairs_by_fitness
from sb3_erl.evolution.operators.selection import Draws, slots_of_elites


@dataclass(frozen=True)
class DistilledEpoch:
    """
    The next population in terms of the current one, in order.

    :param copies: (source, slot): ``source`` is copied to ``slot``
    :param children: (first parent, second parent, slot) of each distilled child; parents are slots after the copies
    :param crossings: (slot, mate): selected parents that are replaced by a child of theirs
    :param mutants: slots to be mutated at the end
    :param protected: slots that hold unchanged copies of the elites, best first
    :param winners: slots of the selected parents
    """

    copies: list[tuple[int, int]]
    children: list[tuple[int, int, int]]
    crossings: list[tuple[int, int]]
    mutants: list[int]
    protected: list[int]
    winners: list[int]


def plan_distilled_epoch(
    ranking: np.ndarray,
    fitness: np.ndarray,
    offspring: Sequence[int],
    draws: Draws,
    *,
    n_elites: int,
    crossover_prob: float = 0.0,
    mutation_prob: float = 0.9,
    matching: Matching = pairs_by_fitness,
    official_pairing: bool = False,
) -> DistilledEpoch:
    """
    Bodnar, Day, Lio (AAAI 2020), algorithm 1; authors' code: crisbodnar/pderl, ``core/mod_neuro_evo.py: SSNE.epoch``.

    Elites are copied over unselected slots, the other unselected slots become distilled children of the best pairs among
    elites and selected parents. Differences: an elite's copy is ranked with the elite's fitness (theirs has the fitness of
    the individual it replaced), and no individual is paired with itself; where there is only one parent, the slots become
    copies of it.

    :param ranking: ``(n,)`` indices, best first
    :param fitness: ``(n,)``
    :param offspring: distinct tournament winners
    :param draws: random decisions
    :param n_elites: individuals that survive unchanged
    :param crossover_prob: probability of replacing a selected parent by a child of it and another selected parent
    :param mutation_prob: probability of mutating an unprotected slot
    :param matching: ranks pairs of parents
    :param official_pairing: pair parents, and choose slots of elites, as the authors' code does, for comparisons
    :return: the plan
    """
    n, elites, winners = len(ranking), [int(i) for i in ranking[:n_elites]], [int(i) for i in offspring]
    if len(winners) % 2:
        winners.append(winners[draws.index(len(winners))])
    chosen = set(winners) | set(elites)
    losers = draws.shuffle([i for i in range(n) if i not in chosen])
    sources = list(range(n))
    protected = slots_of_elites(elites, losers, winners, official_pairing)
    copies = list(zip(elites, protected, strict=True))
    for elite, slot in copies:
        sources[slot] = sources[elite]
    if official_pairing:
        pairs = matching([*protected, *winners], fitness)
    else:
        parents = list(dict.fromkeys(sources[slot] for slot in (*protected, *winners)))
        pairs = matching(parents, fitness)
    children = [(*pairs[k % len(pairs)], slot) for k, slot in enumerate(losers)] if pairs else []
    if not pairs:  # the only parent is copied instead
        copies += [(protected[0], slot) for slot in losers]
    crossings = []
    for slot in winners:
        if draws.uniform() < crossover_prob:
            others = [other for other in winners if other != slot]
            if others:
                crossings.append((slot, draws.choice(others)))
    mutants = [i for i in range(n) if i not in protected and draws.uniform() < mutation_prob]
    return DistilledEpoch(copies, children, crossings, mutants, protected, sorted(set(offspring)))
