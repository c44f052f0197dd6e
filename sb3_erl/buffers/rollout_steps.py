"""The steps of one rollout as arrays, and how they are collected one by one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, overload

import numpy as np

TRUNCATED = "TimeLimit.truncated"

_PLAIN = frozenset({bool, int, float, str, type(None), np.bool_, np.float64, np.float32, np.int64, np.int32})
"""Types of which a copy is the same object."""


class Transition(NamedTuple):
    """One environment step as SB3's replay buffers take it (unnormalized, action in [-1, 1])."""

    observation: np.ndarray
    next_observation: np.ndarray
    action: np.ndarray
    reward: float
    done: bool
    info: dict[str, Any]


class Steps(Sequence[Transition]):
    """
    Consecutive steps of one rollout: a sequence of :class:`Transition` that is kept as arrays.

    :param observations: ``(T + 1, *obs_shape)``, the last one follows the last step
    :param actions: ``(T, *action_shape)`` in [-1, 1]
    :param rewards: ``(T,)`` raw rewards, rounded to float32
    :param infos: ``T`` of them
    :param done: whether the rollout ends with the last step, also at a time limit or because it is abandoned there
    """

    def __init__(
        self, observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray, infos: Sequence[dict[str, Any]], done: bool
    ):
        self.observations, self.actions, self.rewards, self.infos = observations, actions, rewards, infos
        self.done = done

    @classmethod
    def none(cls) -> Steps:
        """The steps of a rollout that did not begin."""
        return cls(np.empty(1), np.empty(0), np.empty(0), [], done=False)

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
        observations = self.observations[t], self.observations[t + 1]
        return Transition(*observations, self.actions[t], float(self.rewards[t]), done, self.infos[t])

    def until(self, n_steps: int) -> Steps:
        """
        :param n_steps: how many of the steps were taken
        :return: these; if the rollout would have gone on it is abandoned there, which to a replay buffer is a time limit
        """
        infos, is_over = list(self.infos[:n_steps]), self.done and n_steps == len(self)
        if infos and not is_over:  # n-step returns must not run into the next rollout
            infos[-1] = {**infos[-1], TRUNCATED: True}
        parts = self.observations[: n_steps + 1], self.actions[:n_steps], self.rewards[:n_steps]
        return Steps(*parts, infos, done=bool(infos))


class StepRecorder:
    """
    Collects the steps of one rollout.

    :param observation: first observation, as replay buffers store it
    :param action_shape: shape of one action
    :param first: number of the rollout's step after that observation, from 0
    :param capacity: steps for which there is room at first; it doubles when it is used up
    """

    def __init__(self, observation: np.ndarray, action_shape: tuple[int, ...], first: int = 0, capacity: int = 64):
        self._first = first
        observation = np.asarray(observation)
        self._observations = np.empty((capacity + 1, *observation.shape), dtype=observation.dtype)
        self._actions = np.empty((capacity, *action_shape), dtype=np.float32)
        self._observations[0] = observation
        self._infos: list[dict[str, Any]] = []

    def add(self, action: np.ndarray, observation: np.ndarray, info: dict[str, Any]) -> None:
        """
        :param action: that was taken
        :param observation: that follows
        :param info: of this step; kept as it is
        """
        t = len(self._infos)
        if t == len(self._actions):
            self._observations, self._actions = (
                np.concatenate([array, np.empty((t, *array.shape[1:]), dtype=array.dtype)])
                for array in (self._observations, self._actions)
            )
        self._actions[t] = action
        self._observations[t + 1] = observation
        self._infos.append(info)

    def steps(self, rewards: np.ndarray, done: bool) -> Steps:
        """
        :param rewards: of all steps of the rollout; after Ctrl-C perhaps of one more than were added
        :param done: see :class:`Steps`
        :return: the steps that were added
        """
        n = len(self._infos)
        own_rewards = rewards[self._first : self._first + n]
        return Steps(self._observations[: n + 1], self._actions[:n], own_rewards, self._infos, done)


def kept(info: dict[str, Any]) -> dict[str, Any]:
    """
    :param info: what an environment said of a step; it may write into it later
    :return: a copy that stays as it is
    """
    if _PLAIN.issuperset(map(type, info.values())):
        return dict(info)
    return copy.deepcopy(info)
