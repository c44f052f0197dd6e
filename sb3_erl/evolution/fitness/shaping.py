"""Returns turned into the weights of an update."""

from __future__ import annotations

from typing import Literal

import numpy as np

from sb3_erl.core.checks import check_choice

Ties = Literal["average", "stable"]
ShapingMode = Literal["centered_rank", "sign", "centered_sign_rank"]
SHAPING_MODES: tuple[ShapingMode, ...] = ("centered_rank", "sign", "centered_sign_rank")


def nan_is_worst(values: np.ndarray) -> np.ndarray:
    """:return: a float64 copy with ``-inf`` in place of NaN"""
    values = np.array(values, dtype=np.float64)
    values[np.isnan(values)] = -np.inf
    return values


def centered_ranks(values: np.ndarray, ties: Ties = "average") -> np.ndarray:
    """
    Ranks of all values together, whatever the shape, scaled to [-0.5, 0.5]; the best value gets 0.5.

    Salimans et al. (2017), section 2.1; authors' code: openai/evolution-strategies-starter,
    ``es_distributed/es.py: compute_centered_ranks``. Difference: equal values share their mean rank by default, so that a
    pair with equal returns has no influence (the authors leave their order to an unstable sort).

    :param values: any shape, higher is better, NaN is worst
    :param ties: equal values share their mean rank (``"average"``) or are ranked in flat order (``"stable"``)
    :return: float32, the same shape; zeros if there is only one value
    :raises ValueError: if ``ties`` is unknown

    >>> centered_ranks(np.array([3.0, 1.0, 1.0])).tolist()
    [0.5, -0.25, -0.25]
    """
    check_choice("ties", ties, ("average", "stable"))
    flat = nan_is_worst(values).ravel()
    if len(flat) < 2:
        return np.zeros(np.shape(values), dtype=np.float32)
    if ties == "average":
        _, group, counts = np.unique(flat, return_inverse=True, return_counts=True)
        ranks = (np.cumsum(counts) - (counts + 1) / 2)[group]
    else:
        ranks = np.empty(len(flat))
        ranks[np.argsort(flat, kind="stable")] = np.arange(len(flat))
    return (ranks / (len(flat) - 1) - 0.5).astype(np.float32).reshape(np.shape(values))


def shape_fitness(fitness: np.ndarray, mode: ShapingMode = "centered_rank", ties: Ties = "average") -> np.ndarray:
    """
    Salimans et al. (2017); authors' code: ``es_distributed/es.py``, ``return_proc_mode``.

    :param fitness: any shape, NaN is worst: returns for ``"centered_rank"``, otherwise sums of the signs of rewards; for
        ``"sign"``, whose numbers are weights, infinite ones count as the best and the worst of the others
    :param mode: centered ranks of returns, sums of reward signs as they are, or centered ranks of these sums
    :param ties: see :func:`centered_ranks`
    :return: float32, the same shape
    :raises ValueError: if ``mode`` or ``ties`` is unknown
    """
    check_choice("fitness_shaping", mode, SHAPING_MODES)
    if mode != "sign":
        return centered_ranks(fitness, ties)
    finite, largest = np.isfinite(fitness), np.finfo(np.float32).max
    worst, best = (fitness[finite].min(), fitness[finite].max()) if finite.any() else (0.0, 0.0)
    known = np.clip(np.where(np.isnan(fitness), worst, fitness), worst, best)
    return np.clip(known, -largest, largest).astype(np.float32)


def population_rank(evaluated: np.ndarray, population: np.ndarray) -> float:
    """
    Where unperturbed episodes stand among those of the population (authors' code: ``EvalPopRank``).

    :param evaluated: ``(n,)`` returns of the center, NaN is worst
    :param population: any shape, returns of the candidates, NaN is worst
    :return: mean share of the population that is strictly worse, in [0, 1]; NaN if either is empty

    >>> population_rank(np.array([2.0]), np.array([1.0, 2.0, 3.0, 0.0]))
    0.5
    """
    if np.size(evaluated) == 0 or np.size(population) == 0:
        return float("nan")
    ordered = np.sort(nan_is_worst(population), axis=None)
    return float(np.searchsorted(ordered, nan_is_worst(evaluated), side="left").mean() / len(ordered))
