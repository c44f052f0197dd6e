"""LAP: a replay buffer that draws transitions in proportion to a priority, in logarithmic time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_erl.core.interrupts import uninterrupted
from sb3_erl.core.observations import combine

BRANCHES = 16
"""Children per node: a batch of a few hundred draws is then served by some five vectorized steps."""
MAX_STALE = 1024
"""Changes whose sums may wait for the next draw."""


class PriorityTree:
    """
    Priorities of the slots of a ring, with partial sums in a tree; drawing and writing cost O(log capacity) per item.

    :param capacity: number of slots

    >>> tree = PriorityTree(4)
    >>> tree.append(np.arange(3)); tree.write(np.array([1]), np.array([2.0]))
    >>> tree.find(np.array([0.0, 0.5, 0.99])).tolist()
    [0, 1, 2]
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.priority = np.zeros(capacity, dtype=np.float32)
        """``(capacity,)``, 0 for slots that were never filled."""
        self.max_priority = 1.0
        """What a new transition gets."""
        self.size = 0
        """Number of filled slots."""
        self._clear_sums()

    def _clear_sums(self) -> None:
        sizes = [-(-self.capacity // BRANCHES)]
        while sizes[-1] > 1:
            sizes.append(-(-sizes[-1] // BRANCHES))
        # sums[k][i] is the total of node i of level k, level 0 being groups of slots; padded to whole groups
        self._leaves = np.zeros(sizes[0] * BRANCHES)
        self._sums = [np.zeros(-(-size // BRANCHES) * BRANCHES if size > 1 else 1) for size in sizes]
        self._stale: list[np.ndarray] = []

    def __getstate__(self) -> dict[str, Any]:
        """Without the sums, which are three times as large as the priorities that they are made of."""
        state = {name: value for name, value in vars(self).items() if name not in ("_leaves", "_sums")}
        return {**state, "_old": [self._leaves[slots] for slots in self._stale]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if "_sums" in state:  # a file of an earlier version
            return
        self._clear_sums()
        self._leaves[: self.size] = self.priority[: self.size]
        self._stale = state["_stale"]
        for slots, values in zip(self._stale, vars(self).pop("_old"), strict=True):
            self._leaves[slots] = values
        below, n_filled = self._leaves, self.size
        for level in self._sums:
            n_filled = -(-n_filled // BRANCHES)
            level[:n_filled] = below[: n_filled * BRANCHES].reshape(-1, BRANCHES).sum(axis=1)
            below = level

    def append(self, slots: np.ndarray) -> None:
        """Give new transitions the highest priority."""
        self._mark(slots)
        self.size = max(self.size, int(slots.max()) + 1)
        self.priority[slots] = self.max_priority

    def write(self, slots: np.ndarray, priorities: np.ndarray) -> None:
        """
        :param slots: ``(n,)``, the last value wins where one appears twice
        :param priorities: ``(n,)``, not negative
        """
        self._mark(slots)
        self.priority[slots] = priorities
        self.max_priority = max(self.max_priority, float(np.max(priorities)))

    def reset_max_priority(self) -> None:
        """Let new transitions enter at the highest priority that is in the ring now."""
        self.max_priority = float(self.priority[: self.size].max())

    def find(self, uniform: np.ndarray) -> np.ndarray:
        """
        :param uniform: ``(n,)`` in [0, 1)
        :return: ``(n,)``: for each ``u`` the first slot up to which the priorities add up to ``u`` times their total
        """
        self._settle()
        rest = np.asarray(uniform, dtype=np.float64) * self._sums[-1][0]
        node = np.zeros(len(rest), dtype=np.int64)
        for level in (*self._sums[-2::-1], self._leaves):
            sums = level.reshape(-1, BRANCHES)[node].cumsum(axis=1)
            child = (sums[:, :-1] < rest[:, None]).sum(axis=1)
            rest = rest - np.where(child > 0, sums[np.arange(len(node)), child - 1], 0.0)
            node = node * BRANCHES + child
        return np.minimum(node, self.size - 1)

    def _mark(self, slots: np.ndarray) -> None:
        """Their sums follow with the next draw; called before priorities change, so that Ctrl-C leaves no wrong sums."""
        if len(self._stale) >= MAX_STALE:
            self._settle()
        self._stale.append(np.array(slots))

    def _settle(self) -> None:
        if self._stale:
            self._sum_up(np.concatenate(self._stale))
            self._stale = []

    def _sum_up(self, slots: np.ndarray) -> None:
        self._leaves[slots] = self.priority[slots]
        below = self._leaves
        for level in self._sums:
            slots = slots // BRANCHES
            level[slots] = below.reshape(-1, BRANCHES)[slots].sum(axis=1)
            below = level


class LAPReplayBuffer(ReplayBuffer):
    """
    Replay buffer with loss-adjusted prioritization; also usable alone through ``replay_buffer_class``.

    Fujimoto, Meger, Precup (2020), https://arxiv.org/abs/2007.06049; authors' code: sfujim/TD7, ``buffer.py: LAP``. New
    transitions enter at the highest priority; batches are drawn with replacement, without importance weights, because
    the matching loss (Huber) corrects for them. Priorities are written as they come: exponent and floor belong to the
    learner. Without a learner that writes priorities it draws uniformly.

    Differences: sums are kept in a tree instead of being added up for every batch; float64 observations are stored as
    float32, which is what the networks see, unless :class:`VecNormalize` changes them first (see
    :func:`~sb3_erl.buffers.append.store_for_networks`).

    :param buffer_size: transitions in total
    :param observation_space: of the environment, an array; :class:`DictLAPReplayBuffer` takes Dict observations
    :param action_space: of the environment
    :param device: device of the batches
    :param n_envs: transitions that are added at a time
    :param optimize_memory_usage: must be ``False``: it cannot tell time limits from terminal states
    :param handle_timeout_termination: store time limits as truncations
    :param n_priorities: number of independent sets of priorities (one per individual that learns from this buffer)
    :raises ValueError: if ``optimize_memory_usage`` is set
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        n_priorities: int = 1,
    ):
        if optimize_memory_usage:
            raise ValueError("optimize_memory_usage must be False for a LAPReplayBuffer; lower buffer_size to save memory")
        if isinstance(observation_space, spaces.Box) and observation_space.dtype == np.float64:
            low, high = (bound.astype(np.float32) for bound in (observation_space.low, observation_space.high))
            observation_space = spaces.Box(low, high, dtype=np.float32)
        super().__init__(
            buffer_size,
            observation_space,
            action_space,
            device,
            n_envs=n_envs,
            optimize_memory_usage=False,
            handle_timeout_termination=handle_timeout_termination,
        )
        self.trees = [PriorityTree(self.buffer_size * self.n_envs) for _ in range(n_priorities)]
        self._drawn = np.zeros(0, dtype=np.int64)

    def add(self, *args: Any, **kwargs: Any) -> None:
        """See ``ReplayBuffer.add``; slot ``row * n_envs + env`` gets the highest priority."""
        slots = self.pos * self.n_envs + np.arange(self.n_envs)
        with uninterrupted():  # what has no priority would never be drawn
            super().add(*args, **kwargs)
            for tree in self.trees:
                tree.append(slots)

    def reset(self) -> None:
        """Forget all transitions and their priorities."""
        super().reset()
        self.trees = [PriorityTree(tree.capacity) for tree in self.trees]

    def sample(self, batch_size: int, env: VecNormalize | None = None, owner: int | None = 0) -> ReplayBufferSamples:
        """
        :param batch_size: number of transitions, drawn with replacement
        :param env: normalizes observations and rewards
        :param owner: whose priorities count, ``None`` for a uniform draw
        :return: the batch
        """
        if owner is None:
            return self._get_samples(np.random.randint(0, self.size() * self.n_envs, size=batch_size), env)
        self._drawn = self.trees[owner].find(np.random.random_sample(batch_size))
        return self._get_samples(self._drawn, env)

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Transitions of flat slots ``row * n_envs + env``."""

        def take(array: np.ndarray) -> np.ndarray:
            return array.reshape(-1, *array.shape[2:])[batch_inds]  # a view of the buffer, then a copy of these rows

        data = (
            self._normalize_obs(combine(take, self.observations), env),
            take(self.actions),
            self._normalize_obs(combine(take, self.next_observations), env),
            (take(self.dones) * (1 - take(self.timeouts)))[:, None],
            self._normalize_reward(take(self.rewards)[:, None], env),
        )
        samples_class: Any = DictReplayBufferSamples if isinstance(self.observations, dict) else ReplayBufferSamples
        return samples_class(*(combine(self.to_torch, part) for part in data))

    def update_priorities(self, priorities: np.ndarray | th.Tensor, owner: int = 0) -> None:
        """
        Write the priorities of the transitions that were drawn last.

        :param priorities: ``(batch_size,)``
        :param owner: whose priorities they are
        """
        values = priorities.cpu().numpy() if isinstance(priorities, th.Tensor) else np.asarray(priorities)
        self.trees[owner].write(self._drawn, values)

    def reset_max_priority(self, owner: int = 0) -> None:
        """See :meth:`PriorityTree.reset_max_priority`."""
        self.trees[owner].reset_max_priority()


class DictLAPReplayBuffer(LAPReplayBuffer, DictReplayBuffer):  # type: ignore[misc]
    """
    :class:`LAPReplayBuffer` for Dict observations, which are stored in the dtypes of their space.

    Its parameters are those of :class:`LAPReplayBuffer`.
    """
