"""Numbers about a population: its diversity, its best part, and the learner's place in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from sb3_erl.core.observations import Observation
from sb3_erl.core.seeding import scoped_generators
from sb3_erl.evolution.base import best_first

MOST_INDIVIDUALS = 32
"""Diversity is measured on so many individuals at most, evenly spaced over the population."""
MOST_PARAMETERS = 1 << 15
"""Distances of parameters are measured on so many of them at most, drawn once and for all."""


def sampled_rows(n: int, most: int = MOST_INDIVIDUALS) -> np.ndarray:
    """
    :param n: number of individuals
    :param most: how many are looked at
    :return: their numbers, evenly spaced

    >>> sampled_rows(3).tolist(), sampled_rows(100, 3).tolist()
    ([0, 1, 2], [0, 49, 99])
    """
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).astype(int)


def parameter_diversity(candidates: Tensor) -> float:
    """
    :param candidates: ``(n, n_params)``
    :return: mean Euclidean distance of two individuals' parameters; with many individuals or parameters an estimate from a
        sample of them. NaN with a single individual
    """
    n, n_params = candidates.shape
    rows = torch.from_numpy(sampled_rows(n)).to(candidates.device)
    if n_params > MOST_PARAMETERS:
        columns = np.sort(np.random.default_rng(n_params).choice(n_params, MOST_PARAMETERS, replace=False))
        chosen = candidates[rows[:, None], torch.from_numpy(columns).to(candidates.device)]
    else:
        chosen = candidates[rows]
    if len(rows) < 2:
        return float("nan")
    distances = torch.nn.functional.pdist(chosen.detach().to("cpu", torch.float32))
    return float(distances.mean()) * float(np.sqrt(n_params / chosen.shape[1]))


def action_diversity(model: Any, candidates: Tensor, observations: Observation) -> float:
    """
    :param model: with a population
    :param candidates: ``(n, n_params)``
    :param observations: ``(k, *obs_shape)`` as networks see them
    :return: mean distance of two individuals' actions on the same observation: Euclidean, of actions scaled to [-1, 1]; with
        discrete actions the share of observations in which they differ. At most :data:`MOST_INDIVIDUALS` are compared
    """
    rows = sampled_rows(len(candidates))
    if len(rows) < 2:
        return float("nan")
    representation, answers = model.population.representation, []
    with scoped_generators(np.random.SeedSequence(0)):  # the network that is made here must not touch the run's numbers
        network = representation.agent(candidates[int(rows[0])])
        for row in rows:
            representation.write(candidates[int(row)], network)
            answers.append(network.predict(observations, deterministic=True)[0])
    actions, space = np.stack(answers), model.action_space  # (individuals, observations, ...)
    first, second = np.triu_indices(len(rows), k=1)
    if not isinstance(space, spaces.Box):
        return float((actions[first] != actions[second]).mean())
    scaled = ((actions - space.low) / (space.high - space.low) * 2 - 1).reshape(*actions.shape[:2], -1)
    return float(np.linalg.norm(scaled[first] - scaled[second], axis=-1).mean())


def elites(model: Any, fitness: np.ndarray) -> list[int]:
    """
    :param model: with an evolver
    :param fitness: ``(n,)``, higher is better, NaN is worst
    :return: the individuals that the evolver keeps, breeds from or refits on, best first: as many as its ``n_elites``,
        ``truncation`` or ``n_parents`` say, otherwise the best fifth
    """
    evolver, fifth = model.evolver, max(1, len(fitness) // 5)
    wanted = next(
        (getattr(evolver, name) for name in ("n_elites", "truncation", "n_parents") if hasattr(evolver, name)), fifth
    )
    return [int(i) for i in best_first(fitness)[: max(1, int(wanted))]]


def learner_beats(fitness: np.ndarray, learner: float) -> float:
    """
    :param fitness: ``(n,)`` returns of the individuals
    :param learner: the learner's return
    :return: share of the individuals that it is better than, in [0, 1]; NaN where one of both is not known

    >>> learner_beats(np.array([1.0, 2.0, np.nan]), 1.5)
    0.5
    """
    finite = fitness[np.isfinite(fitness)]
    return float((finite < learner).mean()) if len(finite) and np.isfinite(learner) else float("nan")


def mean_return(episodes: Sequence[Any]) -> float:
    """
    :param episodes: some episodes
    :return: mean return of those that were played to their end, NaN without any
    """
    returns = [episode.total_reward for episode in episodes if not episode.failed and not episode.cut]
    return float(np.mean(returns)) if returns else float("nan")
