"""The cross-entropy method as a planner: which actions to take, given a model and no policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from gymnasium import spaces

from sb3_erl.core.checks import check_choice, check_range

Rollout = Callable[[Any, np.ndarray], np.ndarray]
"""Model: a state and action sequences ``(n_candidates, n_steps, action_dim)`` in, rewards ``(n_candidates, n_steps)`` out."""


@dataclass(frozen=True)
class Plan:
    """
    What planning found, in normalized actions.

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
    def mean(self) -> np.ndarray:
        """``(horizon, action_dim)``: the last mean, from which a plan with a warm start goes on."""
        return self.means[-1]

    @property
    def std(self) -> np.ndarray:
        """``(horizon, action_dim)``: the last standard deviation."""
        return self.stds[-1]

    @property
    def action(self) -> np.ndarray:
        """``(action_dim,)``: first step of the last mean."""
        return self.means[-1, 0]

    @property
    def best_return(self) -> float:
        """The largest return that the model predicted for a candidate of the last iteration; NaN if all are NaN."""
        return float(self.returns[-1, self.elites[-1, 0]])


def spread(elites: np.ndarray, std_rule: Literal["std", "mad"] = "std", min_std: float = 1e-3) -> np.ndarray:
    """
    :param elites: ``(n_elites, ...)``
    :param std_rule: ``"std"`` is the root of population variance plus ``min_std**2`` (authors' code), ``"mad"`` the summed
        distance to the mean over ``n_elites - 1`` (paper, appendix B), at least ``min_std``
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

    Sequences are clipped before they are scored; ties go to the lower index; a NaN return ranks last. Random shooting is the
    case ``n_iterations=1, n_elites=1``: the first action of the best of so many random sequences.

    :param model: what predicts rewards: one of :mod:`sb3_erl.planning`, any object with ``rollout(state, actions)``, or that
        function itself, see :data:`Rollout`. It gets actions of the environment, each one ``action_repeat`` times; rewards
        after the end of an episode must be 0
    :param action_space: a bounded ``Box`` with one axis; or the number of action components, for a model that takes the
        normalized actions themselves. Actions are planned in [-1, 1] and rescaled to the space
    :param horizon: decisions that are planned, at least 1
    :param n_candidates: sequences per iteration, at least 2
    :param n_elites: how many of them the belief is refitted on
    :param n_iterations: refits per plan
    :param discount: weight of each decision's rewards relative to the one before it, in [0, 1]
    :param action_repeat: environment steps per decision, whose rewards are added up
    :param action_noise_std: standard deviation of Gaussian noise on the executed action, in normalized units; 0.3 in the
        authors' code while data are collected, and none in a test
    :param init_std: standard deviation of the first belief, in normalized units
    :param min_std: see :func:`spread`
    :param std_rule: see :func:`spread`
    :param warm_start: begin with the previous plan, moved on by one decision, instead of zeros. PlaNet does not, to avoid
        local optima; with few candidates and without action repeat it can be the better choice (``docs/planning.md``)
    :param momentum: weight of the old belief in the new one, in [0, 1)
    :param seed: of the planner's own generator
    :param batch_size: sequences that are given to the model at once, all of them if ``None``
    :raises ValueError: if a number is out of range, the space is not supported, or the horizon is longer than an episode
    :raises TypeError: if an argument is of another type
    """

    def __init__(
        self,
        model: Any,
        action_space: spaces.Box | int,
        horizon: int = 12,
        n_candidates: int = 1000,
        n_elites: int = 100,
        n_iterations: int = 10,
        discount: float = 1.0,
        action_repeat: int = 1,
        action_noise_std: float = 0.0,
        init_std: float = 1.0,
        min_std: float = 1e-3,
        std_rule: Literal["std", "mad"] = "std",
        warm_start: bool = False,
        momentum: float = 0.0,
        seed: int | None = None,
        batch_size: int | None = None,
    ):
        for name, value in (("horizon", horizon), ("n_iterations", n_iterations), ("action_repeat", action_repeat)):
            check_range(name, value, 1, integer=True)
        check_range("n_candidates", n_candidates, 2, integer=True)
        if isinstance(n_elites, int | np.integer) and n_elites > n_candidates:
            raise ValueError(f"n_elites must be at most n_candidates ({n_candidates}); got {n_elites}")
        check_range("n_elites", n_elites, 1, n_candidates, integer=True)
        check_range("discount", discount, 0, 1)
        check_range("action_noise_std", action_noise_std, 0)
        check_range("init_std", init_std, 0, open_low=True)
        check_range("min_std", min_std, 0)
        check_choice("std_rule", std_rule, ("std", "mad"))
        check_range("momentum", momentum, 0)
        if momentum >= 1:
            raise ValueError(f"momentum must be below 1, or the belief never changes; got {momentum!r}")
        if batch_size is not None:
            check_range("batch_size", batch_size, 1, integer=True)
        self.low, self.high = _bounds(action_space)
        self.shape = (n_iterations, n_candidates, horizon, len(self.low))
        self.n_elites, self.discount, self.action_repeat = n_elites, discount, action_repeat
        self.init_std, self.min_std, self.std_rule = init_std, min_std, std_rule
        self.action_noise_std, self.warm_start, self.momentum = action_noise_std, warm_start, momentum
        self.batch_size = n_candidates if batch_size is None else batch_size
        self.model = model
        self.check_horizon()
        self.rng = np.random.default_rng(seed)
        self._previous: np.ndarray | None = None

    def check_horizon(self, episode_length: int | None = None) -> None:
        """
        :param episode_length: most steps of an episode, if the caller knows it; ``None``: what the model knows
        :raises ValueError: if more is planned than that
        """
        limit = getattr(self.model, "episode_length", None) if episode_length is None else episode_length
        if limit is not None and self.shape[2] * self.action_repeat > limit:
            raise ValueError(
                f"horizon must be at most the length of an episode, {limit} steps ({limit // self.action_repeat} decisions "
                f"with action_repeat={self.action_repeat}); got {self.shape[2]}"
            )

    def plan(
        self,
        state: Any,
        *,
        mean: np.ndarray | None = None,
        rng: np.random.Generator | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Plan]:
        """
        :param state: whatever the model takes
        :param mean: ``(horizon, action_dim)``, with ``warm_start`` the last mean of the plan to go on from; the planner's own
            last one if ``None``
        :param rng: generator instead of the planner's own
        :param deterministic: without noise on the action
        :return: the action ``(action_dim,)`` in units of the action space, and the plan. Execute it ``action_repeat`` times
            and plan again
        """
        rng = self.rng if rng is None else rng
        mean = self._previous if mean is None else mean
        plan = self.plan_with(state, rng.standard_normal(self.shape), mean if self.warm_start else None)
        self._previous = plan.mean if self.warm_start else None
        action = plan.action
        if self.action_noise_std > 0 and not deterministic:
            action = np.clip(action + self.action_noise_std * rng.standard_normal(action.shape), -1, 1)
        return self.unscale(action), plan

    def reset(self) -> None:
        """Forget the previous plan: a new episode begins."""
        self._previous = None

    def go_on_from(self, other: CEMPlanner, with_generator: bool = True) -> None:
        """
        Take over where another planner is.

        :param other: with whatever arguments; its previous plan is left out if it has another horizon
        :param with_generator: whether the next random numbers are those that ``other`` would have drawn
        """
        if with_generator:
            self.rng.bit_generator.state = other.rng.bit_generator.state
        if other._previous is not None and other._previous.shape == self.shape[2:]:
            self._previous = other._previous.copy()

    def unscale(self, actions: np.ndarray) -> np.ndarray:
        """
        :param actions: ``(..., action_dim)`` in [-1, 1]
        :return: the same in units of the action space
        """
        scaled = 0.5 * (self.low + self.high) + 0.5 * (self.high - self.low) * actions  # exact where the space is [-1, 1]
        return np.clip(scaled, self.low, self.high)  # rounding exceeds some bounds

    def plan_with(self, state: Any, noise: np.ndarray, previous: np.ndarray | None = None) -> Plan:
        """
        :param state: whatever the model takes
        :param noise: ``(n_iterations, n_candidates, horizon, action_dim)`` standard normal numbers
        :param previous: ``(horizon, action_dim)``, a mean to go on from, one decision later; ``None`` for a fresh belief
        :return: the plan
        :raises ValueError: if the noise or the model's rewards have another shape
        """
        if noise.shape != self.shape:
            raise ValueError(f"noise must have shape {self.shape}; got {noise.shape}")
        means, stds = [np.zeros(self.shape[2:])], [np.full(self.shape[2:], self.init_std)]
        if previous is not None:
            means[0][:-1] = previous[1:]
        returns, chosen = [], []
        for z in noise:
            sequences = np.clip(means[-1] + stds[-1] * z, -1, 1)  # (n_candidates, horizon, action_dim)
            returns.append(self._returns(state, sequences))
            scores = np.where(np.isnan(returns[-1]), -np.inf, returns[-1])
            chosen.append(np.argsort(-scores, kind="stable")[: self.n_elites])
            elites = sequences[chosen[-1]]
            mean, std = elites.mean(axis=0), spread(elites, self.std_rule, self.min_std)
            means.append(mean if self.momentum == 0 else self.momentum * means[-1] + (1 - self.momentum) * mean)
            stds.append(std if self.momentum == 0 else self.momentum * stds[-1] + (1 - self.momentum) * std)
        return Plan(np.array(means), np.array(stds), np.array(returns), np.array(chosen))

    def _returns(self, state: Any, sequences: np.ndarray) -> np.ndarray:
        """:return: ``(n_candidates,)``, the discounted sum of what the model predicts for each sequence"""
        _, n_candidates, horizon, _ = self.shape
        rollout = self.model.rollout if hasattr(self.model, "rollout") else self.model
        actions = np.repeat(self.unscale(sequences), self.action_repeat, axis=1)
        parts = [actions[i : i + self.batch_size] for i in range(0, n_candidates, self.batch_size)]
        rewards = np.concatenate([self._checked(rollout(state, part), part) for part in parts])
        per_decision = rewards.reshape(n_candidates, horizon, self.action_repeat).sum(axis=2)
        return per_decision @ self.discount ** np.arange(horizon)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "model": None}  # it belongs to whoever made it, and may hold an environment

    @staticmethod
    def _checked(rewards: Any, actions: np.ndarray) -> np.ndarray:
        rewards = np.asarray(rewards)
        if rewards.shape != actions.shape[:2]:
            raise ValueError(
                f"rollout must return rewards of shape {actions.shape[:2]}, one per candidate and step; got {rewards.shape}"
            )
        return rewards


def _bounds(action_space: Any) -> tuple[np.ndarray, np.ndarray]:
    """:return: the smallest and the largest action, each ``(action_dim,)``"""
    if isinstance(action_space, spaces.Space):
        if not isinstance(action_space, spaces.Box) or len(action_space.shape) != 1:
            raise ValueError(
                "action_space must be a bounded Box with one axis, since actions are planned as real numbers; "
                f"got {action_space}. Use a continuous version of the task"
            )
        if not action_space.is_bounded():
            raise ValueError(
                f"action_space must have finite bounds, to which plans in [-1, 1] are rescaled; got {action_space}. "
                "Wrap the environment in gymnasium.wrappers.RescaleAction or ClipAction"
            )
        return action_space.low.astype(np.float64), action_space.high.astype(np.float64)
    check_range("action_space (number of components)", action_space, 1, integer=True)
    return -np.ones(action_space), np.ones(action_space)
