"""Genetic memories: what each individual has seen, in one array for the whole population."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import nn

_trims: ContextVar[bool] = ContextVar("_trims", default=False)


@contextmanager
def memories_trimmed() -> Iterator[None]:
    """In the block, state dicts have genetic memories without the slots that no individual has ever filled."""
    token = _trims.set(True)
    try:
        yield
    finally:
        _trims.reset(token)


class GeneticMemories(nn.Module):
    """
    A ring of observations and actions for each individual; an individual's memory is a row of common arrays.

    Bodnar, Day, Lio (AAAI 2020), https://arxiv.org/abs/1906.09807; authors' code: crisbodnar/pderl,
    ``core/replay_memory.py``. Rewards and next observations are left out: the operators do not read them. The arrays stay
    on the CPU; as buffers of a module they are saved with it.

    :param n: number of individuals
    :param capacity: transitions per individual
    :param obs_shape: shape of one observation
    :param obs_dtype: dtype of observations
    :param action_dim: length of an action
    :param rounds: store float64 as float32, which is what networks see; not where ``VecNormalize`` may come before them
    """

    _names = ("observations", "actions", "sizes", "positions")

    def __init__(
        self,
        n: int,
        capacity: int,
        obs_shape: tuple[int, ...],
        obs_dtype: np.dtype | type,
        action_dim: int,
        rounds: bool = True,
    ):
        super().__init__()
        self.capacity = capacity
        obs_dtype = np.float32 if rounds and np.dtype(obs_dtype) == np.float64 else obs_dtype
        self.observations = np.zeros((n, capacity, *obs_shape), dtype=obs_dtype)
        self.actions = np.zeros((n, capacity, action_dim), dtype=np.float32)
        self.sizes = np.zeros(n, dtype=np.int64)
        self.positions = np.zeros(n, dtype=np.int64)
        self.arrays = (self.observations, self.actions, self.sizes, self.positions)
        for name, array in zip(self._names, self.arrays, strict=True):
            self.register_buffer(f"stored_{name}", torch.from_numpy(array))  # the same memory

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name not in (*self._names, "arrays")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name in self._names:  # the same memory in a copy, too
            setattr(self, name, getattr(self, f"stored_{name}").numpy())
        self.arrays = (self.observations, self.actions, self.sizes, self.positions)

    def _apply(self, fn: Any, recurse: bool = True) -> GeneticMemories:
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if _trims.get():
            names = [f"{prefix}stored_{name}" for name in ("observations", "actions")]
            filled = [self._ever_filled(array) for array in (self.observations, self.actions)]
            destination.update({name: destination[name][:, : max(filled)].clone() for name in names})

    def _ever_filled(self, array: np.ndarray) -> int:
        """Number of slots up to the last one with a bit that is not zero, of whichever individual; what was there stays."""
        is_set = array.reshape(*array.shape[:2], -1).view(np.uint8).any(axis=(0, 2))
        return int(np.flatnonzero(is_set)[-1]) + 1 if is_set.any() else 0

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name, array in (("observations", self.observations), ("actions", self.actions)):
            key = f"{prefix}stored_{name}"
            found = state_dict.get(key)
            if found is not None and found.shape[1:2] < array.shape[1:2]:  # trimmed
                whole = torch.zeros(array.shape, dtype=found.dtype)
                whole[:, : found.shape[1]] = found
                state_dict = {**state_dict, key: whole}
        super()._load_from_state_dict(state_dict, prefix, *args)

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

    def draw(self, index: int, n: int, rng: np.random.Generator, newest: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """
        :param index: which individual
        :param n: how many different transitions, at most as many as there are
        :param rng: generator
        :param newest: draw from that many newest ones only
        :return: observations ``(n, *obs_shape)`` and actions ``(n, action_dim)``
        """
        size = int(self.sizes[index]) if newest is None else min(newest, int(self.sizes[index]))
        ages = rng.choice(size, n, replace=False, shuffle=False)
        slots = (self.positions[index] - 1 - ages) % self.capacity
        return self.observations[index, slots], self.actions[index, slots]

    def clear(self, index: int) -> None:
        """Forget everything an individual has seen."""
        self.sizes[index] = self.positions[index] = 0

    def take(self, sources: np.ndarray) -> None:
        """
        Give each individual the memory of another one, all at the same time.

        :param sources: ``(n,)``: whose memory each individual gets; the first ones may be given only
        """
        changed = np.flatnonzero(sources != np.arange(len(sources)))
        for array in self.arrays:
            array[changed] = array[np.asarray(sources)[changed]]

    def inherit(self, first: int, second: int, child: int, rng: np.random.Generator) -> None:
        """A child begins with the newest half-capacity of either parent, in random order."""
        heritage = [self.latest(parent, self.capacity // 2) for parent in (first, second)]
        self.clear(child)
        for transitions in heritage:
            self.append(child, *transitions)
        order = rng.permutation(int(self.sizes[child]))
        for array in (self.observations, self.actions):
            array[child, : len(order)] = array[child, order]
