"""Which learner of a portfolio gets how many of the exploring episodes (CERL), and how often a learner has any (ESAC)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sb3_erl.core.checks import check_range


def normalized_values(values: np.ndarray) -> np.ndarray:
    """:return: ``(v - min v) / (sum(v - min v) + 0.1)``"""
    shifted = values - values.min()
    return shifted / (shifted.sum() + 0.1)


def ucb_scores(values: np.ndarray, visits: np.ndarray, coefficient: float = 0.9) -> np.ndarray:
    """
    Upper confidence bounds, Khadka et al. (ICML 2019), https://arxiv.org/abs/1905.00976, equation 1.

    :param values: ``(n,)`` smoothed returns of the learners
    :param visits: ``(n,)`` finished episodes, at least 1 each
    :param coefficient: weight of the exploration term
    :return: ``(n,)``

    >>> ucb_scores(np.array([1.0, 1.0]), np.array([1, 1]), 1.0).round(3).tolist()
    [0.833, 0.833]
    """
    return normalized_values(values) + coefficient * np.sqrt(np.log(visits.sum()) / visits)


def allocation_probabilities(scores: np.ndarray) -> np.ndarray:
    """:return: ``(n,)``, proportional to the scores; all ones if the scores are all 0"""
    shifted = scores - scores.min() + abs(scores.min())
    total = shifted.sum()
    return np.ones(len(scores)) if total == 0 else shifted / total


def allocate(scores: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """
    Draw learners in proportion to their scores, with replacement.

    :param scores: ``(n,)``
    :param uniforms: ``(size,)`` in [0, 1)
    :return: ``(size,)`` numbers of learners
    """
    edges = np.cumsum(allocation_probabilities(scores))
    return np.minimum(np.searchsorted(edges, uniforms, side="right"), len(scores) - 1)


class ResourceManager:
    """
    Shares a fixed number of episodes per generation out to the learners of a portfolio.

    Authors' code: IntelAI/cerl, ``core/learner.py`` and ``core/ucb.py``. Begins round robin.

    :param n_learners: number of learners
    :param n_episodes: episodes per generation, at least one per learner
    :param coefficient: see :func:`ucb_scores`
    :param smoothing: weight of a new return in a learner's value
    :raises ValueError: if there are fewer episodes than learners
    """

    def __init__(self, n_learners: int, n_episodes: int, coefficient: float = 0.9, smoothing: float = 0.2):
        if n_episodes < n_learners:
            raise ValueError(
                f"rollout_size must be at least the number of learners, {n_learners}, so that each of them is tried; got "
                f"{n_episodes}. Raise rollout_size or give fewer gammas"
            )
        self.coefficient, self.smoothing = coefficient, smoothing
        self.values, self.visits = np.zeros(n_learners), np.zeros(n_learners)
        self.is_known = np.zeros(n_learners, dtype=bool)  # whether a return of the learner was finite so far
        self.allocation = np.arange(n_episodes) % n_learners

    def report(self, learner: int, total_reward: float) -> None:
        """An episode of a learner ended with this return; one that is not finite counts but leaves the value as it is."""
        self.visits[learner] += 1
        if not np.isfinite(total_reward):
            return
        new, old = self.smoothing * total_reward, (1 - self.smoothing) * self.values[learner]
        self.values[learner] = new + old if self.is_known[learner] else total_reward
        self.is_known[learner] = True

    def reallocate(self, uniforms: np.ndarray) -> np.ndarray:
        """
        :param uniforms: ``(n_episodes,)`` in [0, 1)
        :return: the next generation's allocation
        """
        self.allocation = allocate(self.scores, uniforms)
        return self.allocation

    @property
    def state(self) -> dict[str, list[float]]:
        """Values, visits, allocation, and which values are known, as plain numbers."""
        return {name: getattr(self, name).tolist() for name in ("values", "visits", "allocation", "is_known")}

    def restore(self, state: dict[str, list[float]]) -> None:
        """
        Go on from a :attr:`state`; with another number of episodes the next allocation is round robin again.

        :raises ValueError: if it is that of another number of learners
        """
        n_learners, found = len(self.values), len(state["values"])
        if found != n_learners:
            raise ValueError(
                f"gammas must stay as they were saved, one for each of {found} learners; got {n_learners} instead. "
                "Make a new model for another portfolio"
            )
        self.values, self.visits = np.array(state["values"]), np.array(state["visits"])
        self.is_known = np.array(state["is_known"], dtype=bool) if "is_known" in state else self.visits > 0
        if len(state["allocation"]) == len(self.allocation):
            self.allocation = np.array(state["allocation"], dtype=int)

    @property
    def comparable(self) -> np.ndarray:
        """``(n_learners,)``, the values; those that are not known are below all others."""
        return np.where(self.is_known, self.values, -np.inf)

    @property
    def scores(self) -> np.ndarray:
        """``(n_learners,)``, see :func:`ucb_scores`; a learner without a finite return so far has the lowest of the values."""
        lowest = self.values[self.is_known].min() if self.is_known.any() else 0.0
        return ucb_scores(np.where(self.is_known, self.values, lowest), self.visits, self.coefficient)


def annealed_probability(schedule: Sequence[float], n_timesteps: float) -> float:
    """
    Probability that a learner which has its turn takes it, falling with time (ESAC).

    Suri et al. (2020), https://arxiv.org/abs/2007.13690; authors' code: karush17/esac, ``main.py: epsilon_by_frame``.

    :param schedule: (start, end, decay), see :func:`check_annealing`
    :param n_timesteps: steps counted so far, at least 0
    :return: a number between start and end

    >>> annealed_probability((1.0, 0.1, 1_200_000), 0)
    1.0
    """
    start, end, decay = schedule
    return end + (start - end) * math.exp(-n_timesteps / decay)


def check_annealing(name: str, schedule: Any) -> None:
    """
    :param name: of the argument
    :param schedule: (start, end, decay): where a probability begins, what it falls to, both in [0, 1], and the positive number
        of steps in which the distance to that falls by a factor of e
    :raises TypeError: if one of them is not a number
    :raises ValueError: if it is something else, or a number is out of range
    """
    if not isinstance(schedule, list | tuple) or len(schedule) != 3:
        raise ValueError(f"{name} must be (start, end, decay), such as (1.0, 0.1, 1_200_000); got {schedule!r}")
    check_range(f"{name} (start)", schedule[0], 0, 1)
    check_range(f"{name} (end)", schedule[1], 0, 1)
    check_range(f"{name} (decay)", schedule[2], 0, open_low=True)
