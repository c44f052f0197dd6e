"""Every reset is played: a first episode is that of the VecEnv's first reset, and first observations pass all wrappers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from sb3_erl import GenerationCheckpoint, newest_checkpoint
from sb3_erl.remote.process import ProcessEvaluator
from sb3_erl.rollouts.jobs import Job
from tests.backends.records import Record, evaluate, transitions
from tests.contract.helpers import differences, snapshot
from tests.contract.settings import HYBRIDS, NAMES, STEPWISE, known, make, toy_actions
from tests.envs import toy_vec_env

BUFFERED = sorted({*HYBRIDS, *STEPWISE})
LENGTH = 5


class Counting(gym.Env):
    """
    Observes the number of the step and the number of the episode, which each reset raises by one.

    :param n_actions: so many discrete actions in place of a box
    :param reuses: whether the same array and the same info are returned each time
    """

    def __init__(self, n_actions: int | None = None, reuses: bool = False):
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space: spaces.Space = spaces.Box(-1, 1, (2,), np.float32)
        if n_actions is not None:
            self.action_space = spaces.Discrete(n_actions)
        self.reuses, self.place, self.info = reuses, np.zeros(2, dtype=np.float32), dict[str, Any]()
        self.log: list[str] = []
        self.options: list[Any] = []
        self.data = self.time = 0

    def _seen(self) -> np.ndarray:
        self.place[:] = self.time + 1, self.data
        return self.place if self.reuses else self.place.copy()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.data, self.time = self.data + 1, 0
        self.log.append("reset")
        self.options.append(options)
        return self._seen(), self.info if self.reuses else {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.time += 1
        self.log.append("step")
        return self._seen(), 1.0, False, self.time >= LENGTH, self.info if self.reuses else {}


class Scale(VecEnvWrapper):
    """Changes observations and not their space."""

    def reset(self) -> np.ndarray:
        return 10 * self.venv.reset()  # type: ignore[operator]

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = 10 * info["terminal_observation"]
        return 10 * observations, rewards, dones, infos  # type: ignore[operator]


class Simulator(VecEnv):
    """Steps all its states at once, in the same memory; there are no single environments."""

    def __init__(self, n_envs: int, n_actions: int | None = None):
        self.states = [Counting(n_actions) for _ in range(n_envs)]
        self.seen, self.infos = np.zeros((n_envs, 2), dtype=np.float32), [dict[str, Any]() for _ in range(n_envs)]
        self.rewards, self.dones = np.zeros(n_envs, dtype=np.float32), np.zeros(n_envs, dtype=bool)
        super().__init__(n_envs, self.states[0].observation_space, self.states[0].action_space)

    def reset(self) -> np.ndarray:
        for index, state in enumerate(self.states):
            self.seen[index] = state.reset(options=self._options[index] or None)[0]
        self._reset_options()
        return self.seen

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> Any:
        for index, (state, info) in enumerate(zip(self.states, self.infos, strict=True)):
            self.seen[index], self.rewards[index], _, self.dones[index], _ = state.step(self.actions[index])
            info.clear()
            info["TimeLimit.truncated"] = bool(self.dones[index])
            if self.dones[index]:
                info["terminal_observation"] = self.seen[index].copy()
                self.seen[index] = state.reset()[0]
        return self.seen, self.rewards, self.dones, self.infos

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        if attr_name == "render_mode":
            return [None] * self.num_envs
        raise NotImplementedError(attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError(attr_name)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError(method_name)

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs

    def close(self) -> None: ...


class Shouting(DummyVecEnv):
    """A subclass with a step of its own."""

    def step_wait(self) -> Any:
        observations, rewards, *others = super().step_wait()
        return observations, rewards + 100, *others


def single(name: str, **kwargs: Any) -> Counting:
    return Counting(**toy_actions(name), **kwargs)


def guarded(name: str, n_envs: int = 2, kind: type[VecEnv] = DummyVecEnv, **kwargs: Any) -> Any:
    """Environments whose Monitor refuses a reset in the middle of an episode, as SB3 refuses it there."""
    return kind([lambda: Monitor(single(name, **kwargs), allow_early_resets=False) for _ in range(n_envs)])  # type: ignore[call-arg, list-item]


def n_unplayed(log: list[str]) -> int:
    """Resets that another one follows, or nothing."""
    return sum(now == "reset" and after != "step" for now, after in itertools.zip_longest(log, log[1:]))


def check_buffer(model: Any, scale: float = 1.0) -> None:
    """All transitions are those of one episode, from its first observation to its last."""
    buffer = model.replay_buffer
    before, after = (getattr(buffer, part)[: buffer.pos].reshape(-1, 2) for part in ("observations", "next_observations"))
    assert len(before) > 0 and np.array_equal(after[:, 0], before[:, 0] + scale) and np.array_equal(after[:, 1], before[:, 1])
    assert set(before[:, 0] / scale) == set(range(1, LENGTH + 1))


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "bare": lambda env: env,
    "scaled": Scale,
    "normalized": lambda env: VecNormalize(env, norm_obs=False),
    "monitored": VecMonitor,
}


@pytest.mark.parametrize("kind", list(WRAPPERS))
@pytest.mark.parametrize("name", NAMES)
def test_every_reset_is_played_and_the_first_has_the_options(name: str, kind: str) -> None:
    """An environment that goes on by each reset, options for the first episode, and a Monitor that allows no early reset."""
    base = guarded(name)
    env = WRAPPERS[kind](base)
    env.set_options({"level": 3})
    model = make(name, env).learn(80)
    for one in (one.unwrapped for one in base.envs):
        assert one.log[:2] == ["reset", "step"] and n_unplayed(one.log) == 0
        assert one.options[0] == {"level": 3} and not any(one.options[1:])
        assert one.data == one.log.count("reset") >= 3
    if name in BUFFERED:
        check_buffer(model, 10.0 if kind == "scaled" else 1.0)


@pytest.mark.parametrize("name", ["erl", "openai_es", "td7"])
def test_every_reset_is_played_in_processes(name: str) -> None:
    env = VecNormalize(guarded(name, kind=SubprocVecEnv))
    env.set_options([{"level": 3}, {"level": 4}])
    try:
        make(name, env).learn(60)
        for log, options, level in zip(env.get_attr("log"), env.get_attr("options"), (3, 4), strict=True):
            assert n_unplayed(log) == 0 and log.count("reset") >= 3
            assert options[0] == {"level": level} and not any(options[1:])
    finally:
        env.close()


def test_workers_play_the_options_of_the_first_episodes() -> None:
    """The first jobs have the options of the environments whose slots would run them, whoever runs them."""
    with ProcessEvaluator(2, make_env=Optional) as remote:
        seen = []
        for back_end in (None, remote):
            env = DummyVecEnv([Optional, Optional])
            env.set_options([{"level": 3.0}, {"level": 4.0}])
            record = Record()
            for jobs in ([Job(0), Job(1), Job(2)], [Job(0)]):
                evaluate(env, jobs, record, remote=back_end)
            seen.append([steps[0].observation[1] for _, steps in record.stored])
    assert seen == [[3.0, 4.0, 0.0, 0.0]] * 2


class Optional(Counting):
    """Shows the option "level"."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.data = (options or {}).get("level", 0)
        return self._seen(), {}


@pytest.mark.parametrize("wrapper", [lambda env: env, Scale], ids=["bare", "scaled"])
@pytest.mark.parametrize("name", NAMES)
def test_a_simulator_without_single_environments(name: str, wrapper: Callable[[Any], Any]) -> None:
    """All its slots begin together in each phase, and go on with the episodes that it begins itself."""
    base = Simulator(2, **toy_actions(name))
    base.set_options({"level": 3})
    model = make(name, wrapper(base)).learn(80)
    assert 80 <= model.num_timesteps <= 81 and all(state.options[0] == {"level": 3} for state in base.states)
    if name in BUFFERED:
        check_buffer(model, 1.0 if wrapper is not Scale else 10.0)
    if name in STEPWISE:
        assert all(n_unplayed(state.log[:-1]) == 0 for state in base.states)


@pytest.mark.parametrize("name", NAMES)
def test_a_dummy_vec_env_with_steps_of_its_own(name: str) -> None:
    """Its own method is called, and the environments in it get the seeds of the jobs."""
    env = Shouting([lambda: single(name) for _ in range(2)])
    model = make(name, env).learn(80)
    assert 80 <= model.num_timesteps <= 81 and all(n_unplayed(one.log[:-1]) <= 12 for one in env.envs)  # type: ignore[attr-defined]
    if name in BUFFERED:
        check_buffer(model)
        assert (model.replay_buffer.rewards[: model.replay_buffer.pos] == 101).all()


@pytest.mark.parametrize("kind", list(WRAPPERS))
@pytest.mark.parametrize("name", BUFFERED)
def test_environments_that_use_their_memory_again(name: str, kind: str) -> None:
    """The same array and the same info at each step: a last observation is not the first one of the next episode."""
    model = make(name, WRAPPERS[kind](guarded(name, reuses=True))).learn(80)
    check_buffer(model, 10.0 if kind == "scaled" else 1.0)


# ---------------------------------------------------------------- values from the middle of the stack


def normalized_below(name: str, **kwargs: Any) -> VecEnv:
    return VecFrameStack(VecNormalize(guarded(name), **kwargs), 2)


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(BUFFERED)))
def test_frames_of_normalized_observations_without_a_buffer(name: str) -> None:
    model = make(name, normalized_below(name)).learn(80)
    assert 80 <= model.num_timesteps <= 81 and model.observation_space.shape == (4,)


@pytest.mark.parametrize("name", BUFFERED)
def test_frames_of_normalized_observations_with_a_buffer(name: str) -> None:
    """There are no originals that could be normalized when they are drawn: the error says how to turn the wrappers round."""
    with pytest.raises(ValueError, match=r"VecNormalize outside of VecFrameStack.*VecNormalize\(VecFrameStack\(...\)\)"):
        make(name, normalized_below(name))
    model = make(name, VecNormalize(VecFrameStack(guarded(name), 2)))
    with pytest.raises(ValueError, match="VecNormalize outside of VecFrameStack"):
        model.set_env(normalized_below(name))
    model = make(name, normalized_below(name, norm_obs=False)).learn(80)  # rewards only
    stored = model.replay_buffer.observations[: model.replay_buffer.pos, 0]
    assert np.array_equal(stored[1, :2], stored[0, 2:]) and set(stored[:, 2]) == set(range(1, LENGTH + 1))


@pytest.mark.parametrize("name", BUFFERED)
def test_an_unknown_wrapper_that_changes_normalized_observations(name: str) -> None:
    with pytest.raises(ValueError, match="VecNormalize outside of Scale"):
        make(name, Scale(VecNormalize(guarded(name)))).learn(80)


def test_frames_of_normalized_observations_are_recorded_as_the_policy_sees_them() -> None:
    env = VecFrameStack(VecNormalize(DummyVecEnv([Counting, Counting]), training=False), 2)
    _, record = evaluate(env, [Job(0), Job(1), Job(2)])
    for _, steps in record.stored:
        assert not steps[0].observation[:2].any()
        for before, after in itertools.pairwise(steps):
            assert np.array_equal(before.observation[2:], after.observation[:2])
            assert np.array_equal(before.next_observation, after.observation)
    assert len(transitions(record)) == 3 * LENGTH


# ---------------------------------------------------------------- going on with a run


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("name", ["erl", "openai_es", "td7", "veb_rl"])
def test_a_run_goes_on_exactly_with_statistics_of_observations(name: str, n_envs: int, tmp_path: Path) -> None:
    """First observations enter the running statistics once, whether a run was interrupted before or after them."""

    def learn(folder: Path, stop_after: int | None) -> Any:
        env = VecNormalize(toy_vec_env(n_envs, vary=3, **toy_actions(name)))
        model = make(name, env, **known(name, {"use_checkpoints": False}))
        if newest_checkpoint(folder) is not None:
            model = type(model).resume_from(folder, env=env, device="cpu")
        stop = StopTrainingOnMaxSteps(stop_after)
        return model.learn(160, [GenerationCheckpoint(40, folder), stop])

    expected = learn(tmp_path / "whole", None)
    assert learn(tmp_path / "parts", 110).num_timesteps < 160
    result = learn(tmp_path / "parts", None)
    ours, theirs = result.get_vec_normalize_env().obs_rms, expected.get_vec_normalize_env().obs_rms
    assert np.array_equal(ours.mean, theirs.mean) and ours.count == theirs.count
    assert differences(snapshot(expected), snapshot(result)) == []


class StopTrainingOnMaxSteps(BaseCallback):
    """Stops as a kill would, without a last checkpoint."""

    def __init__(self, n_steps: int | None):
        super().__init__()
        self.n_steps = n_steps

    def _on_step(self) -> bool:
        return self.n_steps is None or self.num_timesteps < self.n_steps
