"""VecEnvs and wrappers of one's own that SB3's classes train in: what policies see in them, and where episodes begin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from sb3_erl import ALGOS
from sb3_erl.engine.rollout_phase import time_limit
from sb3_erl.rollouts.slot_envs import SlotEnvs
from sb3_erl.rollouts.slot_reset import base_of, is_unknown, resets_slots
from tests.contract.settings import make
from tests.envs import DictEnv, ToyEnv, toy_vec_env

LENGTH = 5


class Tenfold(VecEnvWrapper):
    """Ten times the observations, also where one slot is reset."""

    def reset(self) -> np.ndarray:
        return 10 * self.venv.reset()  # type: ignore[operator]

    def step_wait(self) -> Any:
        observations, *others = self.venv.step_wait()
        return 10 * observations, *others  # type: ignore[operator]

    def reset_slot(self, index: int, observation: np.ndarray) -> np.ndarray:
        return 10 * observation


class Agents(VecEnvWrapper):
    """Takes each environment of four actions for two agents of two."""

    def __init__(self, venv: VecEnv):
        super().__init__(venv, action_space=spaces.Box(-2.0, 2.0, (2,), np.float32))
        self.num_envs = 2 * venv.num_envs

    def reset(self) -> np.ndarray:
        return np.repeat(self.venv.reset(), 2, axis=0)  # type: ignore[arg-type]

    def step_async(self, actions: np.ndarray) -> None:
        self.venv.step_async(actions.reshape(self.venv.num_envs, -1))

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        own = [dict(info) for info in infos for _ in range(2)]
        return np.repeat(observations, 2, axis=0), np.repeat(rewards, 2), np.repeat(dones, 2), own  # type: ignore[arg-type]


class Simulator(gym.Env):
    """Steps all its environments at once and knows no single one of them."""

    def __init__(self, n: int):
        self.n_copies, self.time = n, 0
        self.spec = EnvSpec("Simulator-v0", max_episode_steps=LENGTH)
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.time = 0
        return np.zeros((self.n_copies, 3), np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        self.time += 1
        is_over = np.full(self.n_copies, self.time % LENGTH == 0)
        seen = np.full((self.n_copies, 3), self.time % LENGTH, np.float32)
        return seen, 1 - np.abs(action).sum(axis=1), np.zeros_like(is_over), is_over, {}


class OfSimulator(VecEnv):
    """As Isaac Lab's: ``unwrapped`` is the simulator, and ``get_attr`` takes lists of numbers only."""

    def __init__(self, env: Simulator):
        self.env = env
        super().__init__(env.n_copies, env.observation_space, env.action_space)

    @property
    def unwrapped(self) -> Any:
        return self.env.unwrapped

    def reset(self) -> np.ndarray:
        return self.env.reset()[0]

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> Any:
        observations, rewards, terminated, truncated, _ = self.env.step(self.actions)
        infos = [
            {"TimeLimit.truncated": bool(over)} | ({"terminal_observation": row} if over else {})
            for over, row in zip(truncated, observations, strict=True)
        ]
        return observations, rewards, terminated | truncated, infos

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.env, attr_name)] * (self.num_envs if indices is None else len(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return getattr(self.env, method_name)(*args, **kwargs)

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        return [seed] * self.num_envs

    def close(self) -> None:
        pass


class Seen(BaseCallback):
    """Keeps what policies see after each vector step."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[np.ndarray] = []

    def _on_step(self) -> bool:
        self.seen.append(np.array(self.locals["new_obs"]))
        return True


@pytest.mark.parametrize(
    "outside", [VecMonitor, VecNormalize, lambda env: VecFrameStack(env, 2)], ids=["monitor", "norm", "stack"]
)
def test_a_wrapper_with_reset_slot_is_asked_once(outside: Callable[[VecEnv], VecEnv]) -> None:
    env = outside(Tenfold(toy_vec_env(2)))
    slots = SlotEnvs(env)
    with slots.attached(lambda index: None):
        slots.begin_all([1, 2])
        again: Any = slots.begin(0, 1)
    raw = 10 * toy_vec_env().envs[0].reset(seed=1)[0]  # type: ignore[attr-defined]
    normalizer = env if isinstance(env, VecNormalize) else None
    expected = raw if normalizer is None else normalizer.normalize_obs(raw)
    np.testing.assert_allclose(again[0][-3:], expected, rtol=1e-6)
    np.testing.assert_allclose(again[1][-3:], raw, rtol=1e-6)
    assert not resets_slots(env) and again[0].shape == env.observation_space.shape  # type: ignore[arg-type]


def test_a_wrapper_around_one_with_reset_slot_is_not_known_for_it() -> None:
    class Half(VecEnvWrapper):
        def reset(self) -> Any:
            return 0.5 * self.venv.reset()  # type: ignore[operator]

        def step_wait(self) -> Any:
            return self.venv.step_wait()

    assert is_unknown(Half(Tenfold(toy_vec_env()))) and not is_unknown(Tenfold(Half(toy_vec_env())))


@pytest.mark.parametrize(
    ("name", "normalized"), [(name, False) for name in ("erl", "openai_es", "td7", "esac")] + [("erl", True), ("td7", True)]
)
def test_a_simulator_whose_vecenv_says_it_is_unwrapped(name: str, normalized: bool) -> None:
    inner = OfSimulator(Simulator(2))
    env: VecEnv = VecNormalize(inner) if normalized else inner
    model = make(name, VecMonitor(env), seed=1)
    model.learn(120)
    assert model.num_timesteps >= 120 and {info["l"] for info in model.ep_info_buffer} == {LENGTH}
    assert base_of(model.env) is inner and time_limit(model.env) == LENGTH


@pytest.mark.parametrize("name", ["erl", "td7", "cem"])
def test_a_wrapper_with_more_environments_than_there_are(name: str) -> None:
    env = VecMonitor(Agents(toy_vec_env(1, action_shape=(4,), length=LENGTH)))
    model = make(name, env, seed=1)
    model.learn(60)
    assert model.num_timesteps >= 60 and {info["l"] for info in model.ep_info_buffer} == {LENGTH}


def test_a_wrapper_with_fewer_environments_than_there_are() -> None:
    class First(VecEnvWrapper):
        def __init__(self, venv: VecEnv):
            super().__init__(venv)
            self.num_envs = 1

        def reset(self) -> Any:
            return self.venv.reset()[:1]  # type: ignore[index]

        def step_async(self, actions: np.ndarray) -> None:
            self.venv.step_async(np.repeat(actions, 2, axis=0))

        def step_wait(self) -> Any:
            observations, rewards, dones, infos = self.venv.step_wait()
            return observations[:1], rewards[:1], dones[:1], infos[:1]  # type: ignore[index]

    model = make("erl", VecMonitor(First(toy_vec_env(2, length=LENGTH))), seed=1)
    model.learn(60)
    assert {info["l"] for info in model.ep_info_buffer} == {LENGTH}


class Whole(ToyEnv):
    """Observes whole numbers, of a dtype of whole numbers."""

    def __init__(self, dtype: Any = np.int64):
        super().__init__(LENGTH)
        self.observation_space = spaces.Box(0, 200, (3,), dtype)

    def _seen(self, state: np.ndarray) -> np.ndarray:
        return np.clip(100 + 50 * state, 0, 200).astype(self.observation_space.dtype)

    def reset(self, **arguments: Any) -> Any:
        state, info = super().reset(**arguments)
        return self._seen(state), info

    def step(self, action: Any) -> Any:
        state, *others = super().step(action)
        return self._seen(state), *others


@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
@pytest.mark.parametrize("name", ["erl", "cem"])
def test_whole_numbers_are_normalized_as_they_are(name: str, dtype: Any) -> None:
    env = VecNormalize(DummyVecEnv([lambda: Whole(dtype)]), norm_reward=False)
    callback = Seen()
    model = make(name, env, seed=1)
    model.learn(100, callback=callback)
    seen = np.concatenate(callback.seen)
    assert seen.dtype == np.float32 and np.abs(seen - np.rint(seen)).max() > 0.2 and seen.min() < -0.2
    if name == "erl":  # what is stored is what the environments give
        stored = model.replay_buffer.observations[: model.replay_buffer.size()]
        assert np.array_equal(stored, np.rint(stored)) and stored.max() > 50


def test_floats_that_a_wrapper_makes_of_whole_numbers_are_seen() -> None:
    class Unit(VecEnvWrapper):
        def reset(self) -> Any:
            return self.venv.reset() / np.float32(200)  # type: ignore[operator]

        def step_wait(self) -> Any:
            observations, *others = self.venv.step_wait()
            return observations / np.float32(200), *others  # type: ignore[operator]

    callback = Seen()
    make("cem", Unit(DummyVecEnv([Whole])), seed=1).learn(60, callback=callback)
    seen = np.concatenate(callback.seen)
    assert 0.2 < seen.mean() < 0.8 and seen.max() <= 1


class Says(ToyEnv):
    """Writes something into each info."""

    def __init__(self, **info: Any):
        super().__init__(LENGTH)
        self.info = info

    def step(self, action: Any) -> Any:
        *others, info = super().step(action)
        return *others, {**info, **self.info}


@pytest.mark.parametrize("info", [{"episode": None}, {"bc": "periodic"}, {"bc": None}, {"bc": {}}], ids=str)
@pytest.mark.parametrize("name", ["erl", "openai_es", "td7"])
def test_infos_that_mean_something_else(name: str, info: dict[str, Any]) -> None:
    model = make(name, DummyVecEnv([lambda: Says(**info)]), seed=1)
    model.learn(60, callback=Seen())
    assert model.num_timesteps >= 60


@pytest.mark.parametrize("kind", [DummyVecEnv, SubprocVecEnv])
@pytest.mark.parametrize("name", ["ns_es", "ga_ns"])
def test_a_behavior_that_is_needed_must_be_one(name: str, kind: Any) -> None:
    env = kind([lambda: Says(bc="periodic")])
    model = make(name, env, seed=1, behavior="info")
    with pytest.raises(ValueError, match="a behavior must be an array of at least one number"):
        model.learn(100)
    env.close()


# -------------------------------------------------------------------- last observations as behaviors


@pytest.mark.parametrize("name", ["ns_es", "ga_ns"])
@pytest.mark.parametrize("behavior", ["final_observation", "auto"])
@pytest.mark.parametrize("subprocess", [False, True])
def test_last_observations_are_compared_before_they_are_normalized(name: str, behavior: str, subprocess: bool) -> None:
    plain = make(name, toy_vec_env(2, length=LENGTH), seed=1, behavior="auto")
    plain.learn(50)
    env = toy_vec_env(2, subprocess, length=LENGTH)
    env.reset()
    normalized = make(name, VecNormalize(env, norm_reward=False), seed=1, behavior=behavior)
    normalized.learn(100)
    entries = np.array(normalized.archive.entries)
    assert len(entries) > 0 and np.abs(entries).max() < 1.5 and np.abs(np.array(plain.archive.entries)).max() < 1.5
    env.close()


def test_last_observations_of_dicts_in_the_order_of_keys() -> None:
    model = ALGOS["ga_ns"](
        "MultiInputPolicy",
        DummyVecEnv([lambda: DictEnv(LENGTH)]),
        behavior="final_observation",
        archive_prob=1.0,
        pop_size=4,
        seed=1,
    )
    model.learn(200)
    assert model.archive.entries and all(entry.shape == (4,) for entry in model.archive.entries)
    assert {entry[0] for entry in model.archive.entries} <= {0.0, 1.0, 2.0}  # choice, then vector


def test_fitness_by_novelty_reads_originals() -> None:
    model = make("erl", VecNormalize(toy_vec_env(length=LENGTH), norm_reward=False), seed=1, fitness="novelty")
    normalizer = model.get_vec_normalize_env()
    normalizer.obs_rms.mean, normalizer.training = normalizer.obs_rms.mean + 5.0, False
    model.learn(120)
    entries = np.array(model.fitness.archive.entries)
    assert len(entries) > 0 and np.abs(entries).max() < 2.0


def test_a_second_model_describes_behaviors_in_its_own_way() -> None:
    env = toy_vec_env(length=LENGTH)
    first = make("ga_ns", env, seed=1, behavior=lambda trace: np.array([7.0, 7.0]))
    first.learn(100)
    second = make("ga_ns", env, seed=1, behavior="auto")
    second.learn(100)
    for model in (first, second, first):
        model.learn(60)
        inner: Any = env.envs[0]  # type: ignore[attr-defined]
        depth = 0
        while hasattr(inner, "env"):
            inner, depth = inner.env, depth + 1
    assert all(entry.tolist() == [7.0, 7.0] for entry in first.archive.entries) and depth == 2
    assert all(entry.shape == (3,) for entry in second.archive.entries)


# -------------------------------------------------------------------- images in flat networks


def test_statistics_of_images_have_the_unit_of_the_network() -> None:
    class Noise(ToyEnv):
        def __init__(self) -> None:
            super().__init__(LENGTH)
            self.observation_space = spaces.Box(0, 255, (6, 6, 1), np.uint8)

        def reset(self, **arguments: Any) -> Any:
            super().reset(**arguments)
            return self.np_random.integers(0, 256, (6, 6, 1), dtype=np.uint8), {}

        def step(self, action: Any) -> Any:
            _, *others = super().step(action)
            return self.np_random.integers(0, 256, (6, 6, 1), dtype=np.uint8), *others

    model = make("openai_es", DummyVecEnv([Noise]), seed=1, obs_stat_prob=1.0)
    model.learn(400)
    statistics = model.policy.deployed.statistics
    assert 0.3 < float(statistics.mean.mean()) < 0.7 and 0.15 < float(statistics.std.mean()) < 0.5
    dark, light = (np.full((1, 6, 6, 1), value, np.uint8) for value in (20, 230))
    actions = [model.predict(picture, deterministic=True)[0] for picture in (dark, light)]
    assert np.abs(actions[0] - actions[1]).max() > 1e-3
