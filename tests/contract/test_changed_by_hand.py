"""What users change after a model is made: weights, environments, attributes, who acts; and noises of their own."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from stable_baselines3.her import HerReplayBuffer

from sb3_erl import ALGOS, ERL, TD7, EvolutionaryAlgorithm
from sb3_erl.buffers.offline import fill_replay_buffer
from sb3_erl.core.checks import resolve_policy_and_env
from tests.contract.settings import make
from tests.envs import toy_vec_env

SEEN = np.full(3, 0.3, np.float32)


def acts(model: Any) -> np.ndarray:
    return model.predict(SEEN, deterministic=True)[0]


# ---------------------------------------------------------------- weights


def center(model: Any) -> th.Tensor:
    """Where the search is, and that what acts is there."""
    found: th.Tensor = model.evolver.center().float()
    th.testing.assert_close(found, model.population.representation.read(model.policy.deployed), rtol=0, atol=0)
    return found


@pytest.mark.parametrize("route", ["set_parameters", "load_state_dict"])
@pytest.mark.parametrize("name", ["openai_es", "cem", "cem_rl"])
def test_a_search_begins_at_weights_that_were_loaded(name: str, route: str) -> None:
    other, model = make(name, seed=7), make(name, seed=1)
    before = center(model)
    if route == "set_parameters":
        model.set_parameters({"policy": other.policy.state_dict()}, exact_match=False)
    else:
        model.policy.load_state_dict(other.policy.state_dict())
    model.learn(1)  # a generation that is not finished: nothing was learned
    assert th.equal(center(model), center(other)) and not th.equal(center(model), before)
    assert np.array_equal(acts(model), acts(other))


def test_weights_that_are_set_later_move_the_mean_too(tmp_path: Path) -> None:
    other, model = make("cem", seed=7, deploy="mean"), make("cem", seed=1, deploy="mean")
    model.learn(100)
    model.set_parameters({"policy": other.policy.state_dict()}, exact_match=False)
    assert th.equal(center(model), center(other))
    model.learn(100)
    model.save(tmp_path / "model")
    again = ALGOS["cem"].load(tmp_path / "model", env=toy_vec_env())
    assert th.equal(center(again), center(model)), "a file has both"


@pytest.mark.parametrize("name", ["deep_ga", "ns_es"])
def test_weights_that_an_evolver_cannot_take_are_named(name: str) -> None:
    model = make(name, seed=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="weights that the policy was given")
        model.learn(50)
    with pytest.warns(UserWarning, match="weights that the policy was given have no effect on"):
        model.set_parameters({"policy": make(name, seed=7).policy.state_dict()}, exact_match=False)


@pytest.mark.parametrize("route", ["set_parameters", "load_state_dict"])
def test_a_population_takes_weights_that_were_loaded_as_an_individual(route: str) -> None:
    other, model = (
        EvolutionaryAlgorithm("MlpPolicy", toy_vec_env(), seed=7),
        EvolutionaryAlgorithm("MlpPolicy", toy_vec_env(), seed=1),
    )
    wanted = other.population.representation.read(other.policy.deployed)
    assert not th.equal(model.evolver.candidates[0], wanted)
    if route == "set_parameters":
        model.set_parameters({"policy": other.policy.state_dict()}, exact_match=False)
    else:
        model.policy.load_state_dict(other.policy.state_dict())
    model.learn(1)
    assert th.equal(model.evolver.candidates[0], wanted)


# ---------------------------------------------------------------- who acts


@pytest.mark.parametrize(
    ("name", "saved", "wanted"),
    [
        ("erl", "champion", "learner"),
        ("erl", "learner", "champion"),
        ("td7", None, "learner"),
        ("evo_rainbow", "mean", "learner"),
        ("cem_rl", "mean", "champion"),
        ("cem", "champion", "mean"),
        ("cerl", "champion", "learner"),
        ("erl_re2", "champion", "learner"),
        ("esac", "sac", "mother"),
        ("pop_td7", None, "learner"),
    ],
)
def test_load_with_another_deploy_acts_at_once(name: str, saved: Any, wanted: str, tmp_path: Path) -> None:
    model = make(name, seed=1, deploy=saved)
    model.learn(400)
    model.save(tmp_path / "model")
    candidate = model.candidates_for_report()[wanted].predict(SEEN, deterministic=True)[0]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*next generation")
        again = ALGOS[name].load(tmp_path / "model", deploy=wanted)
        same = ALGOS[name].load(tmp_path / "model")
    np.testing.assert_array_equal(acts(again), candidate)
    np.testing.assert_array_equal(acts(same), acts(model))
    assert not np.array_equal(acts(again), acts(model))


def test_what_is_not_in_the_file_cannot_act(tmp_path: Path) -> None:
    model = make("td7", seed=1, deploy="learner")
    model.learn(300)
    model.save(tmp_path / "model")
    with pytest.warns(UserWarning, match=r"deploy='checkpoint' holds from the next generation .* the checkpoint"):
        again = ALGOS["td7"].load(tmp_path / "model", deploy="checkpoint")
    np.testing.assert_array_equal(acts(again), acts(model))


# ---------------------------------------------------------------- attributes


@pytest.mark.parametrize("name", ["td7", "pop_td7"])
def test_attributes_of_td7_that_are_set_later_count(name: str) -> None:
    model = make(name, seed=1)
    model.learn(200)
    model.policy_delay, model.target_policy_noise = 10**9, 0.7
    actors = [each.actor for each in getattr(model.policy, "individuals", [model])]
    before = [weight.clone() for actor in actors for weight in actor.parameters()]
    model.learn(200, reset_num_timesteps=False)
    after = [weight for actor in actors for weight in actor.parameters()]
    assert model._n_updates > 0 and all(th.equal(*pair) for pair in zip(before, after, strict=True))


def test_offline_then_online_by_an_attribute() -> None:
    model = make("td7", seed=1)
    model.learn(200)
    model.offline = True
    model.learn(50)
    assert model.learner.settings.bc_coef > 0
    model.offline = False
    model.learn(50)
    assert model.learner.settings.bc_coef == 0


# ---------------------------------------------------------------- environments


class Clock(gym.Env):
    """A large number that counts."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return np.array([1.7e9]), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return np.array([1.7e9 + self.t]), 0.0, False, self.t >= 20, {}


def test_a_normalizer_that_comes_later_normalizes_what_was_not_rounded() -> None:
    env = VecNormalize(DummyVecEnv([Clock]), training=False, norm_reward=False)
    env.obs_rms.mean[:], env.obs_rms.var[:] = 1.7e9 + 10, 36.0  # type: ignore[union-attr]
    model = make("td7", Clock(), seed=1)
    model.set_env(env)
    model.learn(100)
    assert model.replay_buffer.observations.dtype == np.float64
    assert len(np.unique(model._sample(200).observations.numpy())) >= 15


class Reach(gym.Env):
    """Goals whose tolerance is the environment's."""

    observation_space = spaces.Dict(
        {name: spaces.Box(-1, 1, (1,), np.float32) for name in ("observation", "achieved_goal", "desired_goal")}
    )
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, tolerance: float = 0.1):
        self.tolerance = tolerance

    def compute_reward(self, achieved: Any, desired: Any, info: Any) -> Any:
        return (np.abs(achieved - desired).max(axis=-1) <= self.tolerance).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        seen = self.observation_space.sample()
        return seen, float(self.compute_reward(seen["achieved_goal"], seen["desired_goal"], {})), False, self.t >= 10, {}


@pytest.mark.parametrize("name", ["erl", "td7"])
def test_hindsight_asks_the_environment_of_now(name: str) -> None:
    model = make(name, Reach(), "MultiInputPolicy", seed=1, replay_buffer_class=HerReplayBuffer, learning_starts=20)
    model.learn(60)
    model.set_env(Reach(tolerance=9.0))
    assert model.replay_buffer.env is model.env
    model.learn(40, reset_num_timesteps=False)


# ---------------------------------------------------------------- noises


class Fading(ActionNoise):
    """Less with every call."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 0.5

    def __call__(self) -> np.ndarray:
        self.scale *= 0.99
        return np.random.normal(0, self.scale, 2)

    def __repr__(self) -> str:
        return "Fading()"


class Uniform(ActionNoise):
    """The same in every call."""

    def __call__(self) -> np.ndarray:
        return np.random.uniform(-0.1, 0.1, 2)

    def __repr__(self) -> str:
        return "Uniform()"


@pytest.mark.parametrize("name", ["erl", "td7"])
def test_a_noise_that_changes_with_each_call_is_named(name: str) -> None:
    with pytest.warns(UserWarning, match=r"action_noise=Fading\(\) changes with each call"):
        make(name, action_noise=Fading(), seed=1)
    constant = (Uniform(), NormalActionNoise(np.zeros(2), np.ones(2)), OrnsteinUhlenbeckActionNoise(np.zeros(2), np.ones(2)))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*changes with each call")
        for noise in constant:
            make(name, action_noise=noise, seed=1)


class Flat(gym.Env):
    """A table of actions."""

    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Box(-1, 1, (2, 3), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return SEEN, {}

    def step(self, action: Any) -> Any:
        assert action.shape == (2, 3)
        self.t += 1
        return SEEN, 0.0, False, self.t >= 10, {}


@pytest.mark.parametrize("kind", [NormalActionNoise, OrnsteinUhlenbeckActionNoise])
@pytest.mark.parametrize("name", ["erl", "td7"])
def test_noise_of_the_shape_of_the_actions(name: str, kind: Any) -> None:
    runs = []
    for shape in ((2, 3), (6,)):
        model = make(name, Flat(), seed=1, action_noise=kind(np.zeros(shape), np.full(shape, 0.1)))
        model.learn(150)
        runs.append(model.replay_buffer.actions.ravel())
    np.testing.assert_array_equal(*runs)


# ---------------------------------------------------------------- seeds, data, other packages


@pytest.mark.parametrize("name", ["openai_es", "erl", "td7"])
def test_set_random_seed_seeds_models_without_a_seed(name: str) -> None:
    runs = []
    for _ in range(2):
        set_random_seed(0)
        model = make(name, make_vec_env("Pendulum-v1", seed=0), seed=None)
        model.learn(250)
        runs.append((model.run_seed, model.predict(SEEN, deterministic=True)[0].tolist()))
    assert runs[0] == runs[1]
    assert make(name, seed=None).run_seed != make(name, seed=None).run_seed


def test_actions_of_a_dataset_with_a_fixed_component() -> None:
    env = toy_vec_env()
    env.action_space = spaces.Box(np.array([-1.0, 2.0], np.float32), np.array([1.0, 2.0], np.float32))
    model = ERL("MlpPolicy", env, buffer_size=50)
    episode = SimpleNamespace(
        observations=np.zeros((4, 3), np.float32),
        actions=np.array([[0.5, 2.0]] * 3, np.float32),
        rewards=np.ones(3),
        terminations=np.array([False, False, True]),
        truncations=np.zeros(3, bool),
    )
    assert fill_replay_buffer(model, [episode]) == 3
    assert model.replay_buffer is not None
    np.testing.assert_allclose(model.replay_buffer.actions[:3, 0], [[0.5, 0.0]] * 3)


def test_environments_of_another_package_are_left_to_sb3() -> None:
    old = SimpleNamespace(observation_space=SimpleNamespace(shape=(3,)), action_space=SimpleNamespace(shape=(2,)))
    assert resolve_policy_and_env("MlpPolicy", old, "MlpPolicy", TD7.policy_aliases) == ("MlpPolicy", old)
