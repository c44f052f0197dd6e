"""The cross-entropy method as a planner: which actions to take, given a model and no policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sb3_erl.core.checks import check_choice, check_range

Rollout = Callable[[Any, np.ndarray], np.ndarray]
"""Model: a state and action sequences ``(n_candidates, horizon, action_dim)`` in, rewards ``(n_candidates, horizon)`` out."""


@dataclass(frozen=True)
class Plan:
    """
    What planning found.

    :param means: ``(n_iterations + 1, horizon, action_dim)``, the belief before the first and after each iteration
    :param stds: likewise
    :param returns: ``(n_iterations, n_candidates)``
    :param elites: ``(n_iterations, n_elites)`` indices, best first
    """

    means: np.ndarray
    stds: np.ndarray
    returns: np.ndarray
    elites: np.ndarray

    @property
    def action(self) -> np.ndarray:
        """``(action_dim,)``: first step of the last mean."""
        return self.means[-1, 0]


def spread(elites: np.ndarray, std_rule: Literal["std", "mad"] = "std", min_std: float = 1e-3) -> np.ndarray:
    """
    :param elites: ``(n_elites, ...)``
    :param std_rule: ``"std"`` is the root of population variance plus ``min_std**2`` (authors' code), ``"mad"`` the summed
        distance to the mean over ``n_elites - 1`` (paper), at least ``min_std``
    :param min_std: what keeps the spread above zero
    :return: ``(...)``
    """
    if std_rule == "std":
        return np.sqrt(elites.var(axis=0) + min_std**2)
    return np.maximum(np.abs(elites - elites.mean(axis=0)).sum(axis=0) / max(len(elites) - 1, 1), min_std)


class CEMPlanner:
    """
    Model-predictive control by the cross-entropy method over action sequences.

    Hafner et al. (2019), https://arxiv.org/abs/1811.04551, algorithm 2; authors' code: google-research/planet,
    ``planet/control/planning.py``. Difference: the discount is 1 by default, as in the paper (the authors' code has 0.99).

    Each call starts from a fresh belief. Sequences are clipped before they are scored; ties go to the lower index; a NaN
    reward ranks last.

    :param rollout: the model, see :data:`Rollout`; rewards after the end of an episode must be 0
    :param action_dim: number of action components, which are planned in [-1, 1]
    :param horizon: steps that are planned
    :param n_candidates: sequences per iteration
    :param n_elites: how many of them the belief is refitted on
    :param n_iterations: refits per plan
    :param discount: weight of each reward relative to the one before it, in [0, 1]
    :param init_std: standard deviation of the first belief
    :param min_std: see :func:`spread`
    :param std_rule: see :func:`spread`
    :raises ValueError: if a number is out of range
    """

    def __init__(
        self,
        rollout: Rollout,
        action_dim: int,
        horizon: int = 12,
        n_candidates: int = 1000,
        n_elites: int = 100,
        n_iterations: int = 10,
        discount: float = 1.0,
        init_std: float = 1.0,
        min_std: float = 1e-3,
        std_rule: Literal["std", "mad"] = "std",
    ):
        for name, value in (("action_dim", action_dim), ("horizon", horizon), ("n_iterations", n_iterations)):
            check_range(name, value, 1, integer=True)
        check_range("n_candidates", n_candidates, 2, integer=True)
        check_range("n_elites", n_elites, 1, n_candidates, integer=True)
        check_range("discount", discount, 0, 1)
        check_range("init_std", init_std, 0, open_low=True)
        check_range("min_std", min_std, 0)
        check_choice("std_rule", std_rule, ("std", "mad"))
        self.rollout = rollout
        self.shape = (n_iterations, n_candidates, horizon, action_dim)
        self.n_elites, self.discount = n_elites, discount
        self.init_std, self.min_std, self.std_rule = init_std, min_std, std_rule

    def plan(self, state: Any, rng: np.random.Generator) -> Plan:
        """
        :param state: whatever the model takes
        :param rng: generator
        :return: the plan; execute its ``action`` and plan again
        """
        return self.plan_with(state, rng.standard_normal(self.shape))

    def plan_with(self, state: Any, noise: np.ndarray) -> Plan:
        """
        :param state: whatever the model takes
        :param noise: ``(n_iterations, n_candidates, horizon, action_dim)`` standard normal numbers
        :return: the plan
        :raises ValueError: if the noise or the model's rewards have another shape
        """
        if noise.shape != self.shape:
            raise ValueError(f"noise must have shape {self.shape}; got {noise.shape}")
        _, n_candidates, horizon, _ = self.shape
        means, stds = [np.zeros(self.shape[2:])], [np.full(self.shape[2:], self.init_std)]
        returns, chosen = [], []
        weights = self.discount ** np.arange(horizon)
        for z in noise:
            sequences = np.clip(means[-1] + stds[-1] * z, -1, 1)  # (n_candidates, horizon, action_dim)
            rewards = np.asarray(self.rollout(state, sequences))
            if rewards.shape != (n_candidates, horizon):
                raise ValueError(f"rollout must return rewards of shape ({n_candidates}, {horizon}); got {rewards.shape}")
            returns.append(rewards @ weights)
            scores = np.where(np.isnan(returns[-1]), -np.inf, returns[-1])
            chosen.append(np.argsort(-scores, kind="stable")[: self.n_elites])
            elites = sequences[chosen[-1]]
            means.append(elites.mean(axis=0))
            stds.append(spread(elites, self.std_rule, self.min_std))
        return Plan(np.array(means), np.array(stds), np.array(returns), np.array(chosen))
