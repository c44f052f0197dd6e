"""Genetic memories: what each individual has seen, in one array for the whole population."""

from __future__ import annotations

import numpy as np


class GeneticMemories:
    """
    A ring of observations and actions for each individual.

    Bodnar, Day, Lio (AAAI 2020), https://arxiv.org/abs/1906.09807; authors' code: crisbodnar/pderl,
    ``core/replay_memory.py``. Rewards and next observations are left out: the operators do not read them.

    :param n: number of individuals
    :param capacity: transitions per individual
    :param obs_shape: shape of one observation
    :param obs_dtype: dtype of observations
    :param action_dim: length of an action
    """

    def __init__(self, n: int, capacity: int, obs_shape: tuple[int, ...], obs_dtype: np.dtype | type, action_dim: int):
        self.capacity = capacity
        self.observations = np.zeros((n, capacity, *obs_shape), dtype=obs_dtype)
        self.actions = np.zeros((n, capacity, action_dim), dtype=np.float32)
        self.sizes = np.zeros(n, dtype=np.int64)
        self.positions = np.zeros(n, dtype=np.int64)

    def append(self, index: int, observations: np.ndarray, actions: np.ndarray) -> None:
        """
        Add transitions to an individual's memory, overwriting its oldest ones.

        :param index: which individual
        :param observations: ``(k, *obs_shape)`` in time order
        :param actions: ``(k, action_dim)``
        """
        start, k = self.positions[index], len(observations)
        slots = (start + np.arange(k)) % self.capacity
        newest = slice(max(k - self.capacity, 0), None)  # earlier ones would be overwritten at once
        self.observations[index, slots[newest]] = observations[newest]
        self.actions[index, slots[newest]] = actions[newest]
        self.positions[index] = (start + k) % self.capacity
        self.sizes[index] = min(self.sizes[index] + k, self.capacity)

    def latest(self, index: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """
        :param index: which individual
        :param n: how many transitions at most
        :return: observations and actions of the newest ones, the oldest of them first
        """
        n = min(n, int(self.sizes[index]))
        slots = (self.positions[index] - n + np.arange(n)) % self.capacity
        return self.observations[index, slots], self.actions[index, slots]

    def clear(self, index: int) -> None:
        """Forget everything an individual has seen."""
        self.sizes[index] = self.positions[index] = 0

    def copy(self, source: int, target: int) -> None:
        """The target forgets its own memory and gets that of the source, in time order."""
        if source != target:
            memory = self.latest(source, self.capacity)
            self.clear(target)
            self.append(target, *memory)

    def shuffle(self, index: int, rng: np.random.Generator) -> None:
        """Forget the order in which an individual has seen things."""
        order = rng.permutation(int(self.sizes[index]))
        for array in (self.observations, self.actions):
            array[index, : len(order)] = array[index, order]
