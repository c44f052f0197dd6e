"""A model that is a plain function: known equations of motion and a reward."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from sb3_erl.planning.base import PlanningModel


class FunctionModel(PlanningModel):
    """
    Equations of motion and rewards that are known, for many states at once.

    :param f: ``f(states (n, ...), actions (n, action_dim)) -> next_states (n, ...)``
    :param r: ``r(states, actions) -> rewards (n,)``, or with a third argument ``r(states, actions, next_states)``
    :param terminated: ``terminated(next_states) -> (n,)`` booleans; rewards after that are 0. ``None``: episodes do not end
    :param state_of: turns an observation into a state; ``None`` if observations are states
    :param episode_length: most steps of an episode, which a horizon may not exceed; ``None`` for no limit
    :raises TypeError: if one of them is no function

    >>> model = FunctionModel(lambda x, a: x + a, lambda x, a, following: -abs(following[:, 0]))
    >>> model.rollout(np.array([1.0]), np.array([[[-1.0], [-1.0]]])).tolist()
    [[-0.0, -1.0]]
    """

    def __init__(
        self,
        f: Callable[[np.ndarray, np.ndarray], np.ndarray],
        r: Callable[..., np.ndarray],
        terminated: Callable[[np.ndarray], np.ndarray] | None = None,
        state_of: Callable[[np.ndarray], Any] | None = None,
        episode_length: int | None = None,
    ):
        for name, function, optional in (
            ("f", f, False),
            ("r", r, False),
            ("terminated", terminated, True),
            ("state_of", state_of, True),
        ):
            if not callable(function) and not (optional and function is None):
                raise TypeError(f"{name} must be a function{' or None' if optional else ''}; got {function!r}")
        self.f, self.r, self.terminated, self.state_of = f, r, terminated, state_of
        self.episode_length = episode_length
        self._sees_next = _n_arguments(r) >= 3

    def rollout(self, state: Any, actions: np.ndarray) -> np.ndarray:
        """
        :param state: an observation ``(...)``
        :param actions: ``(n_candidates, n_steps, action_dim)`` in units of the environment
        :return: rewards ``(n_candidates, n_steps)``
        :raises ValueError: if a reward has another shape than one per candidate
        """
        n_candidates, n_steps, _ = actions.shape
        start = np.asarray(state if self.state_of is None else self.state_of(state), dtype=np.float64)
        states = np.repeat(start[None], n_candidates, axis=0)  # (n_candidates, ...)
        rewards, is_alive = np.zeros((n_candidates, n_steps)), np.ones(n_candidates, dtype=bool)
        for t in range(n_steps):
            following = self.f(states, actions[:, t])
            reward = np.asarray(self.r(states, actions[:, t], following) if self._sees_next else self.r(states, actions[:, t]))
            if reward.shape != (n_candidates,):
                raise ValueError(f"r must return rewards of shape ({n_candidates},), one per state; got {reward.shape}")
            rewards[:, t] = np.where(is_alive, reward, 0.0)
            if self.terminated is not None:
                is_alive &= ~np.asarray(self.terminated(following), dtype=bool)
            states = following
        return rewards


def _n_arguments(function: Callable[..., Any]) -> int:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a function in C has none
        return 2
    return sum(parameter.kind in kinds and parameter.default is inspect.Parameter.empty for parameter in parameters)
