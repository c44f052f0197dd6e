"""The steps of a rollout as arrays are its transitions, also on their way into a replay buffer."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise

from sb3_erl.buffers.append import AFTER_COPY, append_one_by_one, append_steps, is_written_directly
from sb3_erl.buffers.lap import DictLAPReplayBuffer, LAPReplayBuffer
from sb3_erl.buffers.rollout_steps import NO_INFO, StepRecorder, Steps
from sb3_erl.core.observations import copy_info
from sb3_erl.core.seeding import scoped_generators
from sb3_erl.rollouts.exploration import BLOCK, NoiseExploration, UnboundedExploration

OBSERVATIONS, ACTIONS = spaces.Box(-1, 1, (3,), np.float64), spaces.Box(-1, 1, (2,), np.float32)


def rollout(length: int, truncated: bool = False, seed: int = 0) -> Steps:
    rng = np.random.default_rng(seed)
    recorder = StepRecorder(rng.standard_normal(3), (2,), capacity=2)
    for t in range(length):
        info: dict[str, Any] = {"TimeLimit.truncated": truncated and t + 1 == length}
        recorder.add(rng.uniform(-1, 1, 2), rng.standard_normal(3), info)
    return recorder.steps(rng.standard_normal(length).astype(np.float32).astype(np.float64), done=True)


def test_infos_that_nobody_reads() -> None:
    """A buffer whose arrays are written directly holds the same without the infos before the last step."""
    for ends_by_limit in (False, True):
        for buffer_class in (ReplayBuffer, LAPReplayBuffer, NStepReplayBuffer):
            whole, brief = (buffer_class(20, OBSERVATIONS, ACTIONS, n_envs=1, device="cpu") for _ in range(2))
            steps = rollout(7, ends_by_limit)
            assert is_written_directly(whole)
            append_steps(whole, steps)
            infos = [NO_INFO] * 6 + [steps.infos[-1]]
            append_steps(brief, Steps(steps.observations, steps.actions, steps.rewards, infos, steps.done))
            for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
                assert np.array_equal(getattr(whole, name), getattr(brief, name)), name
    assert NO_INFO == {} and not is_written_directly(OwnBuffer(20, OBSERVATIONS, ACTIONS, n_envs=1, device="cpu"))


class OwnBuffer(ReplayBuffer):
    """May read anything in ``add``."""


def test_a_sequence_of_transitions() -> None:
    steps = rollout(7)
    assert len(steps) == len(list(steps)) == 7 and [step.done for step in steps] == [False] * 6 + [True]
    assert all(np.array_equal(a.next_observation, b.observation) for a, b in itertools.pairwise(steps))
    assert np.array_equal(steps[-1].next_observation, steps.observations[-1]) and steps[6].reward == steps.rewards[6]
    with pytest.raises(IndexError):
        steps[7]
    cut = steps.until(3)
    assert [step.done for step in cut] == [False, False, True] and cut[-1].info == {"TimeLimit.truncated": True}
    assert steps[2].info == {"TimeLimit.truncated": False}, "the whole is as it was"
    assert steps.until(7)[-1].info == {"TimeLimit.truncated": False} and len(Steps.none()) == len(steps.until(0)) == 0


def test_steps_have_their_own_rewards() -> None:
    """Also if Ctrl-C came between a reward and the rest of its step, and if only the last step is recorded."""
    rewards = np.arange(4.0)
    recorder = StepRecorder(np.zeros(1), (1,))
    for t in range(3):
        recorder.add(np.zeros(1), np.full(1, t), {})
    assert recorder.steps(rewards, done=False).rewards.tolist() == [0, 1, 2]
    last = StepRecorder(np.zeros(1), (1,), first=3, capacity=1)
    last.add(np.zeros(1), np.zeros(1), {})
    assert last.steps(rewards, done=True).rewards.tolist() == [3]


def test_other_rewards() -> None:
    steps = rollout(3)
    other = steps.with_rewards(np.array([0.0, 0.0, 5.0]))
    assert [step.reward for step in other] == [0, 0, 5] and other.observations is steps.observations and other[-1].done
    assert steps.rewards.sum() != 5, "the steps themselves are unchanged"
    with pytest.raises(ValueError, match=r"rewards must have shape \(3,\), one per step; got \(2,\)"):
        steps.with_rewards(np.zeros(2))


class Counting(ReplayBuffer):
    """A user's own buffer, which does something for each transition."""

    n_added = 0

    def add(self, *args: Any, **kwargs: Any) -> None:
        self.n_added += 1
        super().add(*args, **kwargs)


@pytest.mark.parametrize(
    ("buffer_class", "kwargs"),
    [
        (ReplayBuffer, {}),
        (ReplayBuffer, {"handle_timeout_termination": False}),
        (ReplayBuffer, {"optimize_memory_usage": True, "handle_timeout_termination": False}),
        (NStepReplayBuffer, {"n_steps": 3}),
        (NStepReplayBuffer, {"n_steps": 3, "handle_timeout_termination": False}),
        (LAPReplayBuffer, {"n_priorities": 2}),
        (Counting, {}),
    ],
)
def test_stored_at_once_as_one_by_one(buffer_class: type[ReplayBuffer], kwargs: dict[str, Any]) -> None:
    ours, theirs = (buffer_class(11, OBSERVATIONS, ACTIONS, "cpu", **kwargs) for _ in range(2))
    for number, length in enumerate((4, 3, 4, 9, 25, 1)):  # to the end, around it, more than once around
        steps = rollout(length, truncated=number % 2 == 0, seed=number)
        append_steps(ours, steps)
        append_one_by_one(theirs, steps)
        for name, value in vars(theirs).items():
            if isinstance(value, np.ndarray | int):
                assert np.array_equal(getattr(ours, name), value), (number, name)
    assert getattr(ours, "n_added", 46) == 46
    for buffer in (ours, theirs):
        for tree in getattr(buffer, "trees", ()):
            tree.write(np.arange(4), np.arange(4.0, dtype=np.float32))
    draws = []
    for buffer in (ours, theirs):
        with scoped_generators(np.random.SeedSequence(3)):
            draws.append(buffer.sample(64))
    assert all(np.array_equal(a, b) for a, b in zip(*draws, strict=True) if a is not None)


@pytest.mark.parametrize("known", list(AFTER_COPY))
def test_a_subclass_that_overrides_add_gets_every_transition(known: type[ReplayBuffer]) -> None:
    calls: list[float] = []

    class Own(known):  # type: ignore[valid-type, misc]
        def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: Any) -> None:
            calls.append(float(reward[0]))
            super().add(obs, next_obs, action, reward, done, infos)

    has_views = known in (DictReplayBuffer, DictLAPReplayBuffer)
    buffer, steps = Own(11, VIEWS if has_views else OBSERVATIONS, ACTIONS, "cpu"), views(5) if has_views else rollout(5)
    append_steps(buffer, steps)
    assert calls == steps.rewards.tolist() and buffer.size() == 5


VIEWS = spaces.Dict(
    {"x": spaces.Box(-1, 1, (3,), np.float64), "image": spaces.Box(0, 255, (2, 2, 1), np.uint8), "n": spaces.Discrete(4)}
)


def views(length: int, seed: int = 0) -> Steps:
    """A rollout with Dict observations."""
    rng = np.random.default_rng(seed)

    def observation() -> dict[str, Any]:
        return {"x": rng.standard_normal(3), "image": rng.integers(0, 256, (2, 2, 1), np.uint8), "n": rng.integers(4)}

    recorder = StepRecorder(observation(), (2,), capacity=2)
    for _ in range(length):
        recorder.add(rng.uniform(-1, 1, 2), observation(), {})
    return recorder.steps(rng.standard_normal(length).astype(np.float32).astype(np.float64), done=True)


def test_dict_observations() -> None:
    steps = views(9)
    assert {key: array.shape for key, array in steps.observations.items()} == {
        "x": (10, 3),
        "image": (10, 2, 2, 1),
        "n": (10,),
    }
    assert {key: array.dtype for key, array in steps.observations.items()} == {
        "x": np.float64,
        "image": np.uint8,
        "n": np.int64,
    }
    for before, after in itertools.pairwise(steps):
        np.testing.assert_equal(before.next_observation, after.observation)
    np.testing.assert_equal(steps.until(3)[-1].next_observation, steps[3].observation)


def test_dict_observations_are_stored_at_once_as_one_by_one() -> None:
    ours, theirs = (DictReplayBuffer(11, VIEWS, ACTIONS, "cpu") for _ in range(2))
    for number, length in enumerate((4, 3, 9, 25)):
        steps = views(length, seed=number)
        append_steps(ours, steps)
        append_one_by_one(theirs, steps)
        for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts", "pos", "full"):
            np.testing.assert_equal(getattr(ours, name), getattr(theirs, name))
    assert ours.observations["image"].any() and not np.array_equal(ours.observations["x"], ours.next_observations["x"])


def test_indices_of_discrete_actions_are_stored_as_integers() -> None:
    buffers = [ReplayBuffer(5, OBSERVATIONS, spaces.Discrete(3), "cpu") for _ in range(2)]
    recorder = StepRecorder(np.zeros(3), ())
    for action in (2, 0, 1):
        recorder.add(np.float32(action), np.zeros(3), {})  # type: ignore[arg-type]
    steps = recorder.steps(np.zeros(3), done=True)
    append_steps(buffers[0], steps)
    append_one_by_one(buffers[1], steps)
    for buffer in buffers:
        assert buffer.actions[:3, 0, 0].tolist() == [2, 0, 1] and buffer.actions.dtype == np.int64


def test_infos_are_copied_as_deeply_as_they_have_to() -> None:
    place = np.zeros(2)
    info = {"x": np.float64(1.0), "n": 3}
    copy, deep = copy_info(info), copy_info({"place": place, "nested": {"list": [1]}})
    info["n"], place[0] = 4, 9.0
    assert copy == {"x": 1.0, "n": 3} and deep["place"].tolist() == [0.0, 0.0]


def noises() -> list[Any]:
    mean, sigma = np.array([0.1, -0.2]), np.array([0.3, 0.05])
    return [NormalActionNoise(mean, sigma), OrnsteinUhlenbeckActionNoise(mean, sigma)]


@pytest.mark.parametrize("kind", [0, 1])
def test_noise_in_blocks_is_noise_step_by_step(kind: int) -> None:
    sequence, noise = np.random.SeedSequence(5), noises()[kind]
    explorer = NoiseExploration(noise)
    explorer.begin(sequence)
    actions = [explorer(np.zeros(3), np.full(2, 0.9, dtype=np.float32)) for _ in range(2 * BLOCK + 3)]
    if kind == 0:
        rng = np.random.default_rng(sequence)
        expected = [rng.normal(noise._mu, noise._sigma) for _ in actions]
    else:
        noise.reset()
        with scoped_generators(sequence):
            expected = [noise() for _ in actions]
    assert np.array_equal(actions, np.clip(np.float32(0.9) + np.array(expected), -1, 1).astype(np.float32))


def test_unbounded_noise_in_blocks() -> None:
    explorer, sequence = UnboundedExploration(0.7), np.random.SeedSequence(6)
    explorer.begin(sequence)
    rng = np.random.default_rng(sequence)
    for _ in range(BLOCK + 2):
        action = np.ones(2, dtype=np.float32)
        assert np.array_equal(explorer(np.zeros(3), action), (action + 0.7 * rng.standard_normal(2)).astype(np.float32))


class OwnNStepBuffer(NStepReplayBuffer):
    """Gets one call per transition."""


@pytest.mark.parametrize("buffer_class", [NStepReplayBuffer, OwnNStepBuffer])
@pytest.mark.parametrize("handles_time_limits", [True, False])
def test_returns_of_n_steps_end_where_a_rollout_was_cut(
    buffer_class: type[NStepReplayBuffer], handles_time_limits: bool
) -> None:
    kwargs: Any = {"n_steps": 3, "gamma": 1.0, "handle_timeout_termination": handles_time_limits}
    buffer = buffer_class(6, OBSERVATIONS, ACTIONS, "cpu", **kwargs)
    for reward in (1.0, 10.0, 100.0, 1000.0):  # the last two over the first two
        recorder = StepRecorder(np.full(3, reward), (2,), capacity=2)
        for t in range(2):
            recorder.add(np.zeros(2), np.full(3, reward + t + 1), {"TimeLimit.truncated": False})
        append_steps(buffer, recorder.steps(np.full(2, reward), done=False).until(2))
    sample = buffer._get_samples(np.array([4, 5, 0, 1, 2]))
    assert sample.rewards.flatten().tolist() == [200, 100, 2000, 1000, 20]
    assert sample.next_observations[:, 0].tolist() == [102, 102, 1002, 1002, 12]
    assert not sample.dones.any(), "a value goes on from there"
