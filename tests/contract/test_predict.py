"""Models act before they learn, in every accepted form of construction and for every accepted box."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from sb3_erl import ALGOS
from tests.contract.settings import ALL, CONTINUOUS, DISCRETE, GENERATIONAL, HYBRIDS, NAMES, fast, make, n_stored
from tests.envs import toy_vec_env


@pytest.mark.parametrize("name", ALL)
def test_before_any_learning(name: str) -> None:
    env = toy_vec_env()
    model = make(name, env)
    mean, std = evaluate_policy(model, env, n_eval_episodes=3, deterministic=True)
    assert np.isfinite(mean) and std > 0
    single, state = model.predict(np.zeros(3, dtype=np.float32), deterministic=True)
    batch, _ = model.predict(np.zeros((4, 3), dtype=np.float32), deterministic=True)
    assert single.shape == model.action_space.shape and state is None and model.action_space.contains(single)
    assert batch.shape == (4, *single.shape) and np.allclose(batch, np.broadcast_to(single, batch.shape), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_every_form_of_construction(name: str) -> None:
    cls, settings = ALGOS[name], fast(name)
    env_id, alias = "CartPole-v1" if name in DISCRETE else "Pendulum-v1", cls.default_policy
    models: list[Any] = [
        cls(env_id, **settings),
        cls(gym.make(env_id), **settings),
        cls(alias, env_id, **settings),
        cls(env=env_id, policy=alias, **settings),
        cls(cls.policy_aliases[alias], gym.make(env_id), **settings),
    ]
    observation = np.array([0.5, -0.2, 1.0, 0.3], dtype=np.float32)[: models[0].observation_space.shape[0]]
    actions = [model.predict(observation, deterministic=True)[0] for model in models]
    assert all(isinstance(model.get_env(), VecEnv) for model in models)
    assert all(np.array_equal(actions[0], action) for action in actions[1:])
    assert all(model.policy_class is models[0].policy_class for model in models)


@pytest.mark.parametrize("action_shape", [(1,), (2, 2)], ids=["1d", "2d"])
@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize(
    ("name", "net_arch"),
    [(name, arch) for name in CONTINUOUS for arch in ([[], [8]] if name in GENERATIONAL else [[8], [8, 4]])],
    ids=lambda value: "x".join(map(str, value)) or "linear" if isinstance(value, list) else None,
)
def test_shapes(name: str, n_envs: int, action_shape: tuple[int, ...], net_arch: list[int]) -> None:
    env = toy_vec_env(n_envs, action_shape=action_shape)
    model = make(name, env, policy_kwargs={"net_arch": net_arch}).learn(64)
    assert model.num_timesteps == 64 or (n_envs == 2 and model.num_timesteps == 65)
    action, _ = model.predict(np.ones(3, dtype=np.float32))
    assert action.shape == action_shape and model.action_space.contains(action)
    if name not in HYBRIDS:
        return
    assert model._n_updates > 0
    stored = model.replay_buffer.actions[: model.replay_buffer.size()]
    assert n_stored(model) == model.num_timesteps
    assert np.abs(stored).max() <= 1.0 and len(np.unique(stored)) > 30


@pytest.mark.parametrize("name", [name for name in HYBRIDS if name in CONTINUOUS])
def test_actions_reach_the_whole_box(name: str) -> None:
    """The buffer holds actions in [-1, 1], the environment gets them in its own box of [-2, 2]."""
    taken: list[np.ndarray] = []

    def keep(variables: dict[str, Any], _: dict[str, Any]) -> bool:
        taken.append(variables["actions"][0])
        return True

    model = make(name, learning_starts=1000).learn(60, keep)
    assert np.allclose(2 * model.replay_buffer.actions[:60, 0], taken, atol=1e-6)
