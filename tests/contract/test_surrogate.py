"""Partial rollouts that a value completes: in which units, and for which fitness."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_erl.evolution.fitness.base import FitnessContext, needs
from sb3_erl.evolution.fitness.returns import discounted_return
from sb3_erl.rollouts.jobs import EpisodeBatch
from tests.contract.settings import make
from tests.envs import ToyEnv, toy_vec_env

PARTIAL: dict[str, dict[str, Any]] = {"erl_re2": {"mc_fitness_prob": 0.0}, "evo_rainbow": {"surrogate_prob": 1.0}}
HORIZON, GAMMA = 5, 0.9


@needs("rewards")
def largest_reward(episodes: EpisodeBatch, context: FitnessContext) -> np.ndarray:
    return episodes.mean_per_candidate([float(np.max(episode.rewards)) for episode in episodes.episodes], context.n_candidates)


def measured(model: Any, n_timesteps: int) -> list[tuple[str, np.ndarray, EpisodeBatch]]:
    """The measure, the fitness and the episodes of each generation."""
    seen: list[tuple[str, np.ndarray, EpisodeBatch]] = []
    score = model._score

    def watch(generation: Any) -> None:
        score(generation)
        if generation.fitness is not None:
            population = generation.evaluated.of(range(model.pop_size))
            seen.append((model.fitness_mode, generation.fitness, population))

    model._score = watch
    model.learn(n_timesteps)
    return seen


@pytest.mark.parametrize("name", PARTIAL)
@pytest.mark.parametrize("norm_reward", [True, False])
def test_a_value_of_normalized_rewards_is_added_to_rewards_in_their_own_unit(name: str, norm_reward: bool) -> None:
    rewards_times_50 = DummyVecEnv([lambda: gym.wrappers.TransformReward(ToyEnv(), lambda reward: 50 * reward)])
    env = VecNormalize(rewards_times_50, norm_obs=False, norm_reward=norm_reward, gamma=0.99)
    model = make(name, env, fitness_horizon=HORIZON, gamma=GAMMA, **PARTIAL[name])
    for value in ("bootstrap", "value"):
        setattr(model.learner, value, lambda *_, **__: 7.0)
    generations = measured(model, 60)
    assert generations
    for mode, fitness, episodes in generations:
        assert mode == "surrogate" and not any(episode.terminated for episode in episodes.episodes)
        returns = np.array([discounted_return(episode.rewards, GAMMA) for episode in episodes.episodes])
        units = (fitness - returns) / (7 * GAMMA**HORIZON)
        np.testing.assert_allclose(units, units[0], rtol=1e-5)
    unit = np.sqrt(env.ret_rms.var + env.epsilon) if norm_reward else 1.0
    assert units[0] == pytest.approx(unit, rel=0.2 if norm_reward else 1e-5), "that of the last generation's moment"


@pytest.mark.parametrize("name", PARTIAL)
def test_values_stand_for_returns_only(name: str) -> None:
    """With another objective all generations have whole episodes, so that none is ranked by the return instead."""
    model = make(name, toy_vec_env(), fitness=largest_reward, fitness_horizon=HORIZON, **PARTIAL[name])
    for mode, fitness, episodes in measured(model, 100):
        assert mode == "mc" and {episode.length for episode in episodes.episodes} == {8}
        np.testing.assert_allclose(fitness, [np.max(episode.rewards) for episode in episodes.episodes])
    assert model.n_evaluations > 1
    discounted = make(name, toy_vec_env(), fitness="discounted_return", fitness_horizon=HORIZON, **PARTIAL[name])
    assert {mode for mode, *_ in measured(discounted, 60)} == {"surrogate"}
