"""Fitness from partial rollouts that a value function completes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sb3_erl.evolution.fitness.returns import discounted_return
from sb3_erl.rollouts.jobs import EpisodeBatch

Value = Callable[[int, np.ndarray], float]
"""Value of a candidate at an observation."""


def h_step_value(episodes: EpisodeBatch, n_candidates: int, gamma: float, value: Value) -> np.ndarray:
    """
    Discounted return of each partial rollout plus the discounted value of where it was left.

    Hao et al. (2023), eq. 5: ``f = sum_t gamma**t r_t + gamma**H V(s_H)``. Difference from the authors' code: no
    bootstrap on a true terminal exactly at step H (they bootstrap there), and a bootstrap at a time limit.

    :param episodes: partial rollouts
    :param n_candidates: how many candidates there are
    :param gamma: the learner's discount factor
    :param value: the bootstrap
    :return: ``(n_candidates,)``, higher is better
    """
    scores: list[float] = []
    for episode in episodes.episodes:
        if episode.failed:
            scores.append(episode.total_reward)
            continue
        score = discounted_return(episode.rewards, gamma)
        if not episode.terminated:
            score += gamma**episode.length * value(episode.job.candidate, episode.last_observation)
        scores.append(score)
    return episodes.mean_per_candidate(scores, n_candidates)
