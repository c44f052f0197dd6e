"""Aggregates of scores with intervals of a stratified bootstrap, by rliable."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from rliable import library, metrics

from benchmarks.campaign.curves import matrices
from sb3_erl.core.seeding import scoped_generators

REPS = 2000
"""Samples of the bootstrap."""


@dataclass(frozen=True)
class Interval:
    """A point estimate with its 95 % interval of a stratified bootstrap; NaN where one seed a task leaves nothing to draw."""

    point: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.point:.2f}" if np.isnan(self.low) else f"{self.point:.2f} [{self.low:.2f}, {self.high:.2f}]"


def _intervals(samples: dict[str, Any], statistic: Any) -> dict[str, Interval]:
    with scoped_generators(np.random.SeedSequence(0)):  # rliable draws from the global generator
        points, bounds = library.get_interval_estimates(samples, statistic, reps=REPS)
    found = {}
    for name, runs in samples.items():
        can_draw = min(len(matrix) for matrix in (runs if isinstance(runs, tuple) else (runs,))) > 1
        low, high = (float(np.ravel(bounds[name][side])[0]) if can_draw else np.nan for side in (0, 1))
        found[name] = Interval(float(np.ravel(points[name])[0]), low, high)
    return found


def interquartile_means(scores: pd.DataFrame, methods: Iterable[str]) -> dict[str, Interval]:
    """
    :param scores: on one scale, see :func:`~benchmarks.campaign.curves.normalized`
    :param methods: compared over the tasks that all of them have
    :return: interquartile mean over runs and tasks of each method; empty if no task has all of them
    """
    found = matrices(scores, list(methods))
    return _intervals(found, lambda runs: np.array([metrics.aggregate_iqm(runs)])) if found else {}


def probability_of_improvement(scores: pd.DataFrame, one: str, other: str) -> Interval | None:
    """
    :param scores: see :func:`~benchmarks.campaign.curves.at`; only their order within a task matters
    :param one: method
    :param other: method
    :return: how probable it is that a run of one beats a run of the other on a task, over the tasks that both have; ``None``
        without such tasks
    """
    found = matrices(scores, [one, other])
    if not found:
        return None
    return _intervals({"pair": (found[one], found[other])}, metrics.probability_of_improvement)["pair"]


def performance_profiles(scores: pd.DataFrame, methods: Iterable[str]) -> tuple[np.ndarray, Any, Any]:
    """
    :param scores: on one scale
    :param methods: with a task that all of them have
    :return: scores ``(101,)``; by method the share of runs above each, and the bounds of its interval
    :raises ValueError: if there is no such task
    """
    found = matrices(scores, list(methods))
    if not found:
        raise ValueError(f"methods must have a task in common to be compared; got {list(methods)} and scores without one")
    taus = np.linspace(min(0.0, *(runs.min() for runs in found.values())), max(runs.max() for runs in found.values()), 101)
    with scoped_generators(np.random.SeedSequence(0)):
        return taus, *library.create_performance_profile(found, taus, reps=REPS // 4)
