"""The priority tree against the naive sum, and what LAP's buffer promises without an algorithm around it."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_erl.buffers.lap import MAX_STALE, LAPReplayBuffer, PriorityTree


def naive(tree: PriorityTree, uniform: np.ndarray) -> np.ndarray:
    """First slot up to which the priorities add up to ``u`` times their total."""
    sums = np.cumsum(tree.priority.astype(np.float64))
    return np.searchsorted(sums, uniform * sums[-1])


@pytest.mark.parametrize("capacity", [1, 2, 15, 16, 17, 100, 256, 257, 5000])
def test_finds_what_the_cumulative_sum_finds(capacity: int) -> None:
    """Sizes around powers of the number of branches, through several rounds of the ring."""
    rng = np.random.default_rng(capacity)
    tree, position = PriorityTree(capacity), 0
    for _ in range(12):
        count = int(rng.integers(1, max(2, capacity // 3)))
        for _ in range(count):  # one at a time, as a buffer does
            tree.append(np.array([position]))
            position = (position + 1) % capacity
        slots = rng.integers(0, tree.size, 20)
        tree.write(slots, rng.integers(1, 64, 20) / 16)  # sums of these are exact, so is the comparison
        uniform = np.concatenate([rng.random(200), [0.0, np.nextafter(1.0, 0.0)]])
        assert np.array_equal(tree.find(uniform), naive(tree, uniform))
    assert tree.size == capacity or position == tree.size


def test_real_numbers_differ_from_the_sum_by_rounding_only() -> None:
    rng = np.random.default_rng(0)
    tree = PriorityTree(3000)
    tree.append(np.arange(3000))
    tree.write(np.arange(3000), rng.gamma(0.3, size=3000) + 1e-3)
    uniform = rng.random(20_000)
    assert (tree.find(uniform) != naive(tree, uniform)).mean() < 1e-3
    assert np.abs(tree.find(uniform) - naive(tree, uniform)).max() <= 1


def test_frequencies_are_proportional_to_priorities() -> None:
    tree = PriorityTree(40)
    tree.append(np.arange(30))
    priorities = np.linspace(0.0, 3.0, 30, dtype=np.float32)
    tree.write(np.arange(30), priorities)
    counts = np.bincount(tree.find(np.random.default_rng(1).random(100_000)), minlength=40)
    expected = 100_000 * priorities / priorities.sum()
    assert counts[0] == 0 == counts[30:].sum(), "neither priority 0 nor slots that were never filled"
    assert np.abs(counts[:30] - expected).max() < 5 * np.sqrt(expected.max())


def test_of_duplicates_the_last_value_stays() -> None:
    tree = PriorityTree(20)
    tree.append(np.arange(20))
    tree.write(np.array([3, 17, 3, 3]), np.array([9.0, 2.0, 5.0, 4.0]))
    assert tree.priority[3] == 4.0 and tree.priority[17] == 2.0
    assert tree.max_priority == 9.0, "the highest that was ever written"
    uniform = np.linspace(0, 0.999, 500)
    assert np.array_equal(tree.find(uniform), naive(tree, uniform))
    tree.reset_max_priority()
    assert tree.max_priority == 4.0
    tree.append(np.array([0]))
    assert tree.priority[0] == 4.0


def test_a_pickled_tree_goes_on_in_the_same_way() -> None:
    rng = np.random.default_rng(2)
    tree = PriorityTree(70)
    tree.append(np.arange(50))
    tree.write(np.arange(50), rng.random(50))
    tree.append(np.arange(50, 60))  # sums of these are still to be made
    twin = pickle.loads(pickle.dumps(tree))
    for one in (tree, twin):
        one.write(np.array([5, 6]), np.array([7.0, 8.0]))
        one.append(np.array([60]))
    uniform = rng.random(300)
    assert np.array_equal(tree.find(uniform), twin.find(uniform)) and twin.max_priority == 8.0


def test_additions_without_draws_do_not_pile_up() -> None:
    tree = PriorityTree(50)
    for i in range(3 * MAX_STALE):
        tree.append(np.array([i % 50]))
    assert len(tree._stale) <= MAX_STALE
    assert np.array_equal(np.bincount(tree.find(np.arange(0.01, 1, 0.02))), np.ones(50))


# ------------------------------------------------------------------ the buffer

BOX = spaces.Box(-10, 1000, (2,), np.float32)
ACTIONS = spaces.Box(-1, 1, (1,), np.float32)


def fill(buffer: ReplayBuffer, n_rows: int, first: int = 0) -> None:
    """Row i, column e is full of the number 10 i + e; every fourth row ends an episode, by a time limit in column 0."""
    n_envs = buffer.n_envs
    for i in range(first, first + n_rows):
        values = 10.0 * i + np.arange(n_envs)
        ends = np.full(n_envs, i % 4 == 3)
        infos = [{"TimeLimit.truncated": bool(ends[e]) and e == 0} for e in range(n_envs)]
        observations = np.repeat(values[:, None], 2, axis=1)
        buffer.add(observations, observations + 0.5, np.zeros((n_envs, 1)), values, ends, infos)


def test_slots_are_row_times_n_envs_plus_column() -> None:
    buffer = LAPReplayBuffer(24, BOX, ACTIONS, "cpu", n_envs=3)
    fill(buffer, 5)
    batch = buffer._get_samples(np.arange(15))
    expected = th.tensor([10.0 * (slot // 3) + slot % 3 for slot in range(15)])
    assert th.equal(batch.rewards[:, 0], expected) and th.equal(batch.observations[:, 1], expected)
    assert th.equal(batch.next_observations[:, 0], expected + 0.5)
    assert th.equal(batch.dones[:, 0].nonzero()[:, 0], th.tensor([10, 11])), "slot 9 ended by its time limit"
    fill(buffer, 5, first=5)  # rows 0 and 1 are overwritten
    assert buffer.trees[0].size == 24 and buffer.pos == 2
    assert th.equal(buffer._get_samples(np.array([0, 5])).rewards[:, 0], th.tensor([80.0, 92.0]))


def test_priorities_go_to_what_was_drawn() -> None:
    buffer = LAPReplayBuffer(30, BOX, ACTIONS, "cpu", n_envs=3)
    fill(buffer, 6)
    np.random.seed(0)
    batch = buffer.sample(40)
    assert len(batch.rewards.unique()) > 10, "uniform as long as nobody wrote priorities"
    buffer.update_priorities(batch.rewards[:, 0])
    written: dict[int, float] = {int(slot): 10.0 * (slot // 3) + slot % 3 for slot in buffer._drawn}
    assert buffer.trees[0].priority[:18].tolist() == [written.get(slot, 1.0) for slot in range(18)]
    assert buffer.trees[0].max_priority == max(written.values())
    fill(buffer, 1, first=6)
    assert buffer.trees[0].priority[18:21].tolist() == [max(written.values())] * 3


def test_owners_have_priorities_of_their_own() -> None:
    buffer = LAPReplayBuffer(30, BOX, ACTIONS, "cpu", n_priorities=2)
    fill(buffer, 10)
    buffer._drawn = np.arange(10)
    buffer.update_priorities(np.eye(10)[4] * 5, owner=1)
    assert buffer.sample(20, owner=1).rewards.unique().tolist() == [40.0]
    assert buffer.trees[0].priority[:10].tolist() == [1.0] * 10
    fill(buffer, 1, first=10)
    assert [tree.priority[10] for tree in buffer.trees] == [1.0, 5.0]
    buffer.trees[1].priority[4] = 2.0
    buffer.reset_max_priority(owner=1)
    assert [tree.max_priority for tree in buffer.trees] == [1.0, 5.0], "the new transition entered at 5"


def test_reset_forgets_priorities() -> None:
    buffer = LAPReplayBuffer(30, BOX, ACTIONS, "cpu", n_priorities=2)
    fill(buffer, 10)
    buffer._drawn = np.arange(10)
    buffer.update_priorities(np.full(10, 7.0), owner=1)
    buffer.reset()
    assert buffer.size() == 0
    fill(buffer, 2, first=20)
    assert set(buffer.sample(50, owner=1).rewards.ravel().tolist()) == {200.0, 210.0}
    assert [tree.max_priority for tree in buffer.trees] == [1.0, 1.0]


def test_stores_float64_observations_as_float32() -> None:
    buffer = LAPReplayBuffer(8, spaces.Box(-1, 1, (2,), np.float64), ACTIONS, "cpu")
    assert buffer.observations.dtype == np.float32


def test_refuses_to_save_memory() -> None:
    with pytest.raises(ValueError, match="optimize_memory_usage"):
        LAPReplayBuffer(8, BOX, ACTIONS, "cpu", optimize_memory_usage=True)
