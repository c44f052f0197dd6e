"""RL -> EA: the learner's actor takes the place of a weak individual."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from sb3_erl.evolution.base import Evolver
from sb3_erl.evolution.operators.distilled_epoch import DistilledEpoch
from sb3_erl.evolution.operators.selection import Epoch


def weakest_slot(
    fitness: np.ndarray, protected: Collection[int], otherwise: Literal["next", "next_weakest"] = "next_weakest"
) -> int | None:
    """
    The slot that the learner takes: that of the least fit individual, unless it holds a protected elite copy.

    :param fitness: ``(n,)`` of the individuals that were evaluated, NaN is worst
    :param protected: slots that must not be overwritten
    :param otherwise: where the weakest slot is protected: the next slot (authors' code of ERL-Re2) or the slot of the
        next weakest individual
    :return: the slot, ``None`` if all are protected

    >>> weakest_slot(np.array([3.0, 1.0, 2.0]), protected=[1]), weakest_slot(np.array([3.0, 1.0, 2.0]), [1], "next")
    (2, 2)
    """
    n = len(fitness)
    order = np.argsort(np.where(np.isnan(fitness), -np.inf, fitness), kind="stable")
    candidates = order if otherwise == "next_weakest" else (order[0] + np.arange(n)) % n
    return next((int(slot) for slot in candidates if slot not in protected), None)


@dataclass
class ReplaceWeakest:
    """
    Every ``sync_period`` generations a copy of the learner's actor overwrites the weakest individual.

    Khadka & Tumer (2018), algorithm 1, line 21. It follows evolution, so the copy is evaluated unmutated. Difference
    from the authors' code of ERL: slots with protected elite copies are never overwritten.

    :param sync_period: generations between two injections, at least 1
    :param otherwise: see :func:`weakest_slot`
    """

    sync_period: int
    otherwise: Literal["next", "next_weakest"] = "next_weakest"

    def rl_to_ea(
        self, learner: Tensor, evolver: Evolver, fitness: np.ndarray, protected: Collection[int], generation: int
    ) -> int | None:
        """
        :param learner: ``(n_params,)``, copied
        :param evolver: its candidates are overwritten
        :param fitness: ``(pop_size,)`` of this generation
        :param protected: slots that stay
        :param generation: number of this generation, from 1
        :return: the slot that was overwritten, ``None`` if none
        """
        if generation % self.sync_period:
            return None
        slot = weakest_slot(fitness, protected, self.otherwise)
        if slot is not None:
            evolver.candidates[slot].copy_(learner)
        return slot


def fate(
    slot: int, epoch: Epoch | DistilledEpoch, ranking: np.ndarray, n_elites: int
) -> Literal["elite", "selected", "discarded"]:
    """
    What became of the individual that had been injected into ``slot`` before the epoch.

    :param slot: where it was
    :param epoch: the decisions of the epoch
    :param ranking: ``(n,)`` indices, best first, of that epoch
    :param n_elites: how many of them are elites
    """
    if slot in ranking[:n_elites]:
        return "elite"
    return "selected" if slot in epoch.winners else "discarded"
