"""The steps of one rollout as arrays, and their collection one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, overload

import numpy as np

from sb3_erl.core.observations import Observation, combine, row_access, take

TRUNCATED = "TimeLimit.truncated"
NO_INFO: dict[str, Any] = {}
"""Stands for the info of a step that nobody reads; never written to."""


class Transition(NamedTuple):
    """One environment step as SB3's replay buffers take it (observations not normalized, action in [-1, 1] or an index)."""

    observation: Observation
    next_observation: Observation
    action: np.ndarray
    reward: float
    done: bool
    info: dict[str, Any]


class Steps(Sequence[Transition]):
    """
    Consecutive steps of one rollout, kept as arrays; also a sequence of :class:`Transition`.

    :param observations: ``(T + 1, *obs_shape)``, a dict of such arrays for a Dict space; the last one follows the last step
    :param actions: ``(T, *action_shape)`` in [-1, 1], or indices of discrete actions
    :param rewards: ``(T,)`` raw rewards, rounded to float32
    :param infos: ``T`` infos
    :param done: whether the rollout ends with the last step, also at a time limit or because it is abandoned there
    """

    def __init__(
        self, observations: Observation, actions: np.ndarray, rewards: np.ndarray, infos: Sequence[dict[str, Any]], done: bool
    ):
        self.observations: Any = observations
        self.actions, self.rewards, self.infos, self.done = actions, rewards, infos, done

    @classmethod
    def none(cls) -> Steps:
        """The steps of a rollout that did not begin."""
        return cls(np.empty(0), np.empty(0), np.empty(0), [], done=False)

    def __len__(self) -> int:
        return len(self.rewards)

    @overload
    def __getitem__(self, index: int) -> Transition: ...

    @overload
    def __getitem__(self, index: slice) -> list[Transition]: ...

    def __getitem__(self, index: int | slice) -> Transition | list[Transition]:
        if isinstance(index, slice):
            return [self[t] for t in range(len(self))[index]]
        t = range(len(self))[index]
        done = self.done and t + 1 == len(self)
        observations = take(self.observations, t), take(self.observations, t + 1)
        return Transition(*observations, self.actions[t], float(self.rewards[t]), done, self.infos[t])

    def until(self, n_steps: int) -> Steps:
        """
        The first steps. If the rollout would have gone on it is abandoned there, which a replay buffer takes as a time limit.

        :param n_steps: how many of the steps were taken
        :return: these steps
        """
        infos, is_over = list(self.infos[:n_steps]), self.done and n_steps == len(self)
        if infos and not is_over:  # n-step returns must not run into the next rollout
            infos[-1] = {**infos[-1], TRUNCATED: True}
        observations = take(self.observations, slice(n_steps + 1))
        return Steps(observations, self.actions[:n_steps], self.rewards[:n_steps], infos, done=bool(infos))

    def with_rewards(self, rewards: np.ndarray) -> Steps:
        """
        The same steps with other rewards.

        :param rewards: ``(T,)``
        :return: steps that share everything else with these
        :raises ValueError: if there is not one reward per step
        """
        if rewards.shape != (len(self),):
            raise ValueError(f"rewards must have shape ({len(self)},), one per step; got {rewards.shape}")
        return Steps(self.observations, self.actions, rewards, self.infos, self.done)


class StepRecorder:
    """
    Collects the steps of one rollout.

    :param observation: first observation, as replay buffers store it
    :param action_shape: shape of one action
    :param first: number of the rollout's step after that observation, from 0
    :param capacity: steps for which there is room at first; it doubles when it is used up
    """

    def __init__(self, observation: Observation, action_shape: tuple[int, ...], first: int = 0, capacity: int = 64):
        self._first, self._capacity = first, capacity
        self._observations = combine(lambda array: _room_for(capacity + 1, np.asarray(array)), observation)
        self._actions = np.empty((capacity, *action_shape), dtype=np.float32)
        self._put = row_access(observation)[1]
        self._put(self._observations, 0, observation)
        self._infos: list[dict[str, Any]] = []

    def add(self, action: np.ndarray, observation: Observation, info: dict[str, Any]) -> None:
        """
        :param action: the action that was taken
        :param observation: the observation that follows
        :param info: of this step; kept without a copy
        """
        t = len(self._infos)
        if t == self._capacity:
            self._observations = combine(lambda array: _grown(array, t), self._observations)
            self._actions = _grown(self._actions, t)
            self._capacity = len(self._actions)
        self._actions[t] = action
        self._put(self._observations, t + 1, observation)
        self._infos.append(info)

    def steps(self, rewards: np.ndarray, done: bool) -> Steps:
        """
        :param rewards: of all steps of the rollout; after Ctrl-C perhaps of one more than were added
        :param done: see :class:`Steps`
        :return: the steps that were added
        """
        n = len(self._infos)
        own_rewards = rewards[self._first : self._first + n]
        return Steps(take(self._observations, slice(n + 1)), self._actions[:n], own_rewards, self._infos, done)


def _room_for(n: int, like: np.ndarray) -> np.ndarray:
    return np.empty((n, *like.shape), dtype=like.dtype)


def _grown(array: np.ndarray, n: int) -> np.ndarray:
    return np.concatenate([array, np.empty((n, *array.shape[1:]), dtype=array.dtype)])
