"""VecNormalize: raw transitions in the buffer, raw returns as fitness, statistics that follow ``set_env``."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_erl.evolution.fitness.base import FitnessContext, needs
from sb3_erl.evolution.fitness.returns import episode_return
from sb3_erl.rollouts.jobs import EpisodeBatch
from tests.contract.helpers import Tables
from tests.contract.settings import (
    HYBRIDS,
    NAMES,
    SCORED_BY_EPISODES,
    STEPWISE,
    apart,
    known,
    make,
    n_rollouts,
    pop_size,
    whole,
)
from tests.envs import ToyEnv, toy_vec_env

FLOAT64 = spaces.Box(-np.inf, np.inf, ToyEnv().observation_space.shape, np.float64)


@pytest.mark.parametrize("name", HYBRIDS)
def test_buffer_holds_what_the_environment_said(name: str) -> None:
    env = VecNormalize(toy_vec_env())
    original: list[tuple[np.ndarray, float]] = []

    def keep(variables: dict[str, Any], _: dict[str, Any]) -> bool:
        done = variables["dones"][0]
        observation = env.get_original_obs()[0]
        if done:
            observation = env.unnormalize_obs(variables["infos"][0]["terminal_observation"])
        original.append((observation, env.get_original_reward()[0]))
        return True

    model = make(name, env).learn(100, keep)
    buffer = model.replay_buffer
    assert np.array_equal(buffer.rewards[:100, 0], np.array([reward for _, reward in original], dtype=np.float32))
    assert np.allclose(buffer.next_observations[:100, 0], np.array([o for o, _ in original]), atol=1e-5)
    assert model.get_vec_normalize_env() is env
    batch = buffer.sample(32, env=env)
    assert not np.isin(batch.rewards.numpy().ravel(), buffer.rewards[:100].ravel()).all(), "normalized when sampled"


@pytest.mark.parametrize("name", STEPWISE)
def test_score_is_the_raw_return(name: str) -> None:
    env = VecNormalize(toy_vec_env(), norm_obs=False, clip_reward=0.01)
    model = make(name, env)
    tables, returns = Tables(model), []

    def keep(variables: dict[str, Any], _: dict[str, Any]) -> bool:
        returns.extend(info["episode"]["r"] for info in variables["infos"] if "episode" in info)
        return True

    model.learn(40, keep, log_interval=1)
    assert tables.column("rollout/learner_ep_rew_mean") == pytest.approx(returns[2:], abs=1e-4)
    assert max(abs(r) for r in returns) > 0.08, "more than eight clipped rewards could give"


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("name", SCORED_BY_EPISODES)
def test_fitness_is_the_raw_return(name: str, n_envs: int) -> None:
    env = VecNormalize(toy_vec_env(n_envs), clip_reward=0.01)
    model = make(name, env, **known(name, {"learning_starts": 0}), **whole(name))
    tables, returns = Tables(model), []

    def keep(variables: dict[str, Any], _: dict[str, Any]) -> bool:
        ended = zip(variables["dones"], variables["infos"], strict=True)  # an environment without a rollout is stepped too
        returns.extend(info["episode"]["r"] for done, info in ended if done)
        return True

    model.learn(8 * n_rollouts(name), keep)
    total = pop_size(name) * tables.column("population/fitness_mean")[-1]
    if n_rollouts(name) > pop_size(name):
        total += (n_rollouts(name) - pop_size(name)) * tables.column(apart(name))[-1]
    assert total == pytest.approx(sum(returns), abs=1e-4) and len(returns) == n_rollouts(name)
    assert max(abs(r) for r in returns) > 0.08, "more than eight clipped rewards could give"


@pytest.mark.parametrize("name", NAMES)
def test_statistics_follow_set_env_and_evaluation(name: str) -> None:
    first, second = VecNormalize(toy_vec_env()), VecNormalize(toy_vec_env())
    evaluation = VecNormalize(toy_vec_env(), training=False)
    model = make(name, first)
    model.learn(40)
    count = first.obs_rms.count
    model.set_env(second)
    assert model.get_vec_normalize_env() is second
    model.learn(60, EvalCallback(evaluation, eval_freq=60, n_eval_episodes=1, verbose=0))
    assert first.obs_rms.count == count, "the old env is left alone"
    assert np.array_equal(evaluation.obs_rms.mean, second.obs_rms.mean)
    model.set_env(toy_vec_env())
    assert model.get_vec_normalize_env() is None
    assert model.learn(40).num_timesteps == 40


class Broken(ToyEnv):
    """Observes NaN at its third step, without an end."""

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        return (np.full_like(observation, np.nan) if self.time == 3 else observation), *rest


class Ends(ToyEnv):
    """Ends at its third step."""

    def step(self, action: Any) -> Any:
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, self.time == 3, truncated, info


def test_a_broken_observation_costs_no_other_environment_its_episode() -> None:
    """They end in the same step, and what normalizes the last observation of the one has seen the NaN of the other."""
    env = VecNormalize(DummyVecEnv([Broken, Ends]))
    seen: list[Any] = []

    @needs("rewards")
    def fitness(episodes: EpisodeBatch, context: FitnessContext) -> np.ndarray:
        seen.extend(episodes.episodes)
        return episode_return(episodes, context.n_candidates)

    model = make("erl", env, pop_size=4, fitness=fitness)
    with pytest.warns(UserWarning, match="failed"):
        model.learn(40)
    assert any(episode.failed for episode in seen)
    assert any(episode.length == 3 and not episode.failed for episode in seen), "of the environment that ended then"
    buffer = model.replay_buffer
    for array in (buffer.observations, buffer.next_observations):
        assert np.isfinite(array[: buffer.size()]).all()
    assert np.isfinite(env.obs_rms.mean).all() and "update" not in vars(env.obs_rms)


@pytest.mark.parametrize("name", STEPWISE)
def test_a_buffer_in_the_models_file_keeps_what_it_holds(name: str, tmp_path: Path) -> None:
    def environment() -> VecNormalize:
        return VecNormalize(DummyVecEnv([lambda: gym.wrappers.TransformObservation(ToyEnv(), np.float64, FLOAT64)]))

    model = make(name, environment()).learn(60)
    model.save(tmp_path / "model", include=["replay_buffer"])
    loaded = type(model).load(tmp_path / "model", env=environment())
    for array in ("observations", "next_observations", "actions", "rewards"):
        ours, theirs = getattr(model.replay_buffer, array), getattr(loaded.replay_buffer, array)
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs) and ours.any()


def test_statistics_are_sb3s_own_again_after_an_interrupt() -> None:
    """They go into files that are read without this package, and into copies for evaluation."""
    env = VecNormalize(DummyVecEnv([lambda: ToyEnv(interrupt_at=5)]))
    with pytest.raises(KeyboardInterrupt):
        make("erl", env).learn(40)
    for statistics in (env.obs_rms, env.ret_rms):
        assert set(vars(statistics)) == {"mean", "var", "count", "epsilon"} & set(vars(statistics))
        assert b"sb3_erl" not in pickle.dumps(statistics)
