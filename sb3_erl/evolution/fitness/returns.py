"""Fitness from whole episodes."""

from __future__ import annotations

import numpy as np

from sb3_erl.rollouts.jobs import EpisodeBatch


def episode_return(episodes: EpisodeBatch, n_candidates: int) -> np.ndarray:
    """
    Mean undiscounted return of each candidate's episodes.

    :param episodes: episodes of the candidates, raw rewards
    :param n_candidates: how many candidates there are
    :return: ``(n_candidates,)``, higher is better; NaN (the worst) for a candidate without episodes or a NaN reward
    """
    return episodes.mean_per_candidate([episode.total_reward for episode in episodes.episodes], n_candidates)


def discounted_return(rewards: np.ndarray, gamma: float) -> float:
    """
    :param rewards: ``(T,)``
    :param gamma: discount factor
    :return: ``sum_t gamma**t * rewards[t]``

    >>> discounted_return(np.array([1.0, 1.0]), 0.5)
    1.5
    """
    return float(rewards @ gamma ** np.arange(len(rewards)))
