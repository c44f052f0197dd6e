"""MujocoVecEnv: Gymnasium's numbers, bit for bit, and Gymnasium's own steps where they are not the ones that are known."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_erl import ERL
from sb3_erl.envs.mujoco import LeggedStep, MujocoVecEnv, legged_step, same_answers
from tests.contract.helpers import differences, snapshot

VARIANTS: list[dict[str, Any]] = [
    {},
    {"exclude_current_positions_from_observation": False, "forward_reward_weight": 0.7, "ctrl_cost_weight": 0.3},
    {"terminate_when_unhealthy": False, "healthy_reward": 0.4},
]


def layers(env: gym.Env) -> list[gym.Env]:
    chain = [env]
    while isinstance(chain[-1], gym.Wrapper):
        chain.append(chain[-1].env)
    return chain


def is_fast(env: gym.Env) -> bool:
    return any(isinstance(vars(layer).get("step"), LeggedStep) for layer in layers(env))


@pytest.mark.parametrize("kwargs", VARIANTS, ids=["default", "seen", "endless"])
@pytest.mark.parametrize("env_id", ["Hopper-v4", "Hopper-v5", "Walker2d-v4", "Walker2d-v5"])
def test_a_thousand_steps_are_gymnasiums(env_id: str, kwargs: dict[str, Any]) -> None:
    usual = Monitor(gym.make(env_id, max_episode_steps=150, **kwargs))
    vec_env = MujocoVecEnv([lambda: Monitor(gym.make(env_id, max_episode_steps=150, **kwargs))])
    (fast,) = vec_env.envs
    assert is_fast(fast)
    rng, n_ends, falls = np.random.default_rng(1), 0, 0
    assert np.array_equal(usual.reset(seed=3)[0], fast.reset(seed=3)[0])
    for step in range(1000):
        action = rng.uniform(-1, 1, usual.action_space.shape).astype(np.float32)
        expected, found = usual.step(action), fast.step(action)
        assert same_answers(expected, found), step
        assert [type(part) for part in found[:1]] == [type(part) for part in expected[:1]] and found[0].dtype == np.float64
        for name in ("qpos", "qvel", "cfrc_ext", "ctrl"):
            assert np.array_equal(getattr(usual.unwrapped.data, name), getattr(fast.unwrapped.data, name))
        if expected[2] or expected[3]:
            n_ends, falls = n_ends + 1, falls + bool(expected[2])
            assert expected[4]["episode"]["r"] == found[4]["episode"]["r"]
            assert np.array_equal(usual.reset()[0], fast.reset()[0])
    assert n_ends > 3 and bool(falls) == kwargs.get("terminate_when_unhealthy", True)


def test_a_run_is_the_same() -> None:
    runs = []
    for cls in (DummyVecEnv, MujocoVecEnv):
        env = make_vec_env("Hopper-v5", n_envs=3, seed=0, vec_env_cls=cls)
        model = ERL("MlpPolicy", env, seed=0, pop_size=4, learning_starts=50, policy_kwargs={"net_arch": [8]})
        runs.append(snapshot(model.learn(300)))
    assert differences(*runs) == []


def test_copies_step_their_own_simulation() -> None:
    (env,) = MujocoVecEnv([lambda: gym.make("Hopper-v5")]).envs
    env.reset(seed=0)
    env.step(np.zeros(3, dtype=np.float32))
    twin = copy.deepcopy(env)
    before = env.unwrapped.data.qpos.copy()
    twin.step(np.ones(3, dtype=np.float32))
    assert is_fast(twin) and np.array_equal(env.unwrapped.data.qpos, before)
    assert not np.array_equal(twin.unwrapped.data.qpos, before)


class OtherHopper(HopperEnv):
    """Of a user's, with a reward of its own."""

    def step(self, action: Any) -> Any:
        observation, _, *rest = super().step(action)
        return observation, 42.0, *rest


def test_what_is_not_known_is_stepped_as_it_is() -> None:
    vec_env = MujocoVecEnv([OtherHopper])
    vec_env.reset()
    assert not is_fast(vec_env.envs[0])
    assert vec_env.step(np.zeros((1, 3), dtype=np.float32))[1] == 42.0
    assert legged_step(gym.make("HalfCheetah-v5")) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not is_fast(MujocoVecEnv([HopperEnv]).envs[0]), "without a specification there is nothing to compare it with"


def test_other_versions_of_gymnasium_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = HopperEnv.control_cost
    monkeypatch.setattr(HopperEnv, "control_cost", lambda self, action: 2 * cost(self, action))
    with pytest.warns(UserWarning, match="HopperEnv of this version"):
        vec_env = make_vec_env("Hopper-v5", n_envs=2, vec_env_cls=MujocoVecEnv)
    assert not any(map(is_fast, vec_env.envs))
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(map(is_fast, make_vec_env("Hopper-v5", n_envs=2, vec_env_cls=MujocoVecEnv).envs))


def test_pictures_and_steps_before_a_reset_are_gymnasiums() -> None:
    (env,) = MujocoVecEnv([lambda: gym.make("Walker2d-v5")]).envs
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(6, dtype=np.float32))
    env.reset()
    env.step(np.zeros(6, dtype=np.float32))
    with pytest.raises(ValueError, match="Action dimension mismatch"):
        env.step(np.zeros(5, dtype=np.float32))
