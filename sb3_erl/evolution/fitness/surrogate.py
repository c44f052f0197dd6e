"""Fitness from partial rollouts that a value function completes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_erl.evolution.fitness.returns import discounted_return, episode_return
from sb3_erl.rollouts.jobs import EpisodeBatch

Value = Callable[[int, np.ndarray], float]
"""Value of a candidate at an observation."""

Surrogate = Literal["h_step_critic", "h_step_pevfa", "truncated_return"]
"""
How EvoRainbow measures partial rollouts: the discounted rewards, completed by the learner's first critic at the individual's
own action (``"h_step_critic"``) or by the first tower of the population's value function, which reads heads of the shared
architecture (``"h_step_pevfa"``); or the undiscounted rewards without a value (``"truncated_return"``). A ``fitness`` other
than ``"return"`` and ``"discounted_return"`` always is that of whole episodes.
"""
PEVFA: Surrogate = "h_step_pevfa"


def has_surrogate(fitness: Any) -> bool:
    """
    :param fitness: the argument of that name
    :return: whether partial rollouts can stand for it: values of a learner are about the return, not about other objectives
    """
    return isinstance(fitness, str) and fitness in ("return", "discounted_return")


def reward_unit(normalizer: VecNormalize | None) -> float:
    """
    :param normalizer: of the environment
    :return: what a learner's value of 1 is in rewards of the environment: learners see rewards that ``VecNormalize`` has
        divided by this, episodes keep those of the environment
    """
    if normalizer is None or not normalizer.norm_reward:
        return 1.0
    return float(np.sqrt(normalizer.ret_rms.var + normalizer.epsilon))


def h_step_value(episodes: EpisodeBatch, n_candidates: int, gamma: float, value: Value, unit: float = 1.0) -> np.ndarray:
    """
    Discounted return of each partial rollout plus the discounted value of where it was left.

    Hao et al. (2023), eq. 5: ``f = sum_t gamma**t r_t + gamma**H V(s_H)``. Difference from the authors' code: no
    bootstrap on a true terminal exactly at step H (they bootstrap there), and a bootstrap at a time limit.

    :param episodes: partial rollouts
    :param n_candidates: how many candidates there are
    :param gamma: the learner's discount factor
    :param value: the bootstrap
    :param unit: see :func:`reward_unit`
    :return: ``(n_candidates,)``, higher is better
    """
    scores: list[float] = []
    for episode in episodes.episodes:
        if episode.failed:
            scores.append(episode.total_reward)
            continue
        score = discounted_return(episode.rewards, gamma)
        if not episode.terminated:
            score += gamma**episode.length * unit * value(episode.job.candidate, episode.last_observation)
        scores.append(score)
    return episodes.mean_per_candidate(scores, n_candidates)


def surrogate_fitness(
    surrogate: Surrogate, episodes: EpisodeBatch, gamma: float, learner: Any, agents: Sequence[Any], unit: float = 1.0
) -> np.ndarray:
    """
    Fitness from partial rollouts as in EvoRainbow; authors' code: yeshenpy/EvoRainbow, ``agent.py: Agent.evaluate``.

    :param surrogate: what completes the rollouts
    :param episodes: partial rollouts
    :param gamma: the learner's discount factor
    :param learner: has the value functions
    :param agents: policies of the candidates
    :param unit: see :func:`reward_unit`
    :return: ``(n_candidates,)``, higher is better
    """

    @torch.no_grad()
    def value(candidate: int, observation: np.ndarray) -> float:
        agent = agents[candidate]
        tensor, _ = agent.obs_to_tensor(observation)
        if surrogate == PEVFA:
            layers = [module for module in agent.head.modules() if isinstance(module, nn.Linear)]
            head = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
            return float(learner.bootstrap(tensor, *head, pessimistic=False))
        return float(learner.value(tensor, agent._predict(tensor, deterministic=True), pessimistic=False))

    if surrogate == "truncated_return":
        return episode_return(episodes, len(agents))
    return h_step_value(episodes, len(agents), gamma, value, unit)
