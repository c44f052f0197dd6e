"""Hybrids whose individuals are Q-networks: what all classes promise holds for them too."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_erl import ALGOS, CERL, ERL, PDERL, GenerationCheckpoint
from sb3_erl.evolution.fitness.base import make_fitness
from sb3_erl.evolution.operators.distillation import GreedyDistillation
from sb3_erl.learners.dqn import DQNLearner
from sb3_erl.remote.process import ProcessEvaluator
from tests.contract.helpers import Witness, differences, snapshot, transitions
from tests.contract.settings import make
from tests.envs import DiscreteEnv, ImageEnv, ToyEnv, toy_vec_env

DISCRETE = ["erl", "pderl"]
EPISODES: dict[str, Any] = {"length": 4, "vary": 5, "ending": "termination"}
SETTINGS: dict[str, Any] = {
    "learner": "dqn",
    "learner_kwargs": {"target_update_interval": 5},
    "sync_period": 1,
    "crossover_prob": 0.5,
    "exploration_fraction": 0.5,
}


def toy(n_envs: int = 1, subprocess: bool = False) -> VecEnv:
    return toy_vec_env(n_envs, subprocess, DiscreteEnv, **EPISODES)


def q_model(name: str, env: VecEnv | None = None, **overrides: Any) -> Any:
    return make(name, toy() if env is None else env, **{**SETTINGS, **overrides})


def ends(name: str, n_steps: int = 170) -> list[int]:
    """Steps at the ends of the generations of a run."""
    witness = Witness()
    q_model(name).learn(n_steps, witness)
    assert len(witness.generation_ends) >= 4
    return witness.generation_ends


@pytest.mark.parametrize("name", DISCRETE)
def test_individuals_are_q_networks_whose_fitness_is_the_return(name: str) -> None:
    model = q_model(name)
    asked: list[Any] = []
    score = model.fitness

    def remember(episodes: Any, context: Any) -> np.ndarray:
        fitness = score(episodes, context)
        totals = [sum(episode.rewards) for episode in episodes.episodes]
        np.testing.assert_allclose(fitness, totals, rtol=1e-5)
        asked.append((context.candidates.clone(), fitness))
        return fitness

    remember.needs = score.needs  # type: ignore[attr-defined]
    model.fitness = make_fitness(remember)
    model.learn(ends(name)[-1])
    assert type(model.learner) is DQNLearner and model._n_updates == model.learner.n_updates > 0
    candidates, fitness = asked[-1]
    best = model.population.representation.agent(candidates[int(np.argmax(fitness))])
    observations = np.random.default_rng(0).uniform(-2, 2, (50, 3)).astype(np.float32)
    wanted = best.q_net(best.obs_to_tensor(observations)[0]).argmax(dim=1).numpy()
    assert np.array_equal(model.predict(observations, deterministic=True)[0], wanted), "the champion is deployed"
    assert set(np.unique(transitions(model)["actions"])) == {0, 1, 2}


@pytest.mark.parametrize("name", DISCRETE)
def test_learner_is_deployed_and_replaces_the_weakest(name: str) -> None:
    model = q_model(name, deploy="learner").learn(ends(name)[-1])
    slot = model._injected_slot
    own, learner = (np.concatenate([p.detach().numpy().ravel() for p in agent.parameters()]) for agent in (
        model.individual(slot), model.learner_agent))  # fmt: skip
    assert np.array_equal(own, learner)
    observations = np.random.default_rng(0).uniform(-2, 2, (50, 3)).astype(np.float32)
    actions = [agent.predict(observations, deterministic=True)[0] for agent in (model, model.learner_agent)]
    assert np.array_equal(*actions)


@pytest.mark.parametrize("name", DISCRETE)
def test_same_run_for_any_environments_and_back_end(name: str) -> None:
    end = ends(name)[-1]
    expected = snapshot(q_model(name).learn(end))
    assert expected["_n_updates"] > 0
    for env in (toy(3), toy(2, subprocess=True)):
        assert differences(expected, snapshot(q_model(name, env).learn(end))) == []
    evaluator = ProcessEvaluator(2, partial(DiscreteEnv, **EPISODES))
    try:
        assert differences(expected, snapshot(q_model(name, evaluator=evaluator).learn(end))) == []
    finally:
        evaluator.close()


@pytest.mark.parametrize("name", DISCRETE)
def test_continued_from_files(name: str, tmp_path: Path) -> None:
    generation_ends = ends(name)
    middle, end = generation_ends[len(generation_ends) // 2], generation_ends[-1]
    straight, first = (q_model(name, exploration_fraction=1e-9) for _ in range(2))  # not a share of two other budgets
    straight.learn(end)
    first.learn(middle)
    first.save(tmp_path / "model")
    first.save_replay_buffer(tmp_path / "buffer")
    resumed = ALGOS[name].load(tmp_path / "model", env=toy(), device="cpu")
    observations = np.random.default_rng(0).uniform(-2, 2, (50, 3)).astype(np.float32)
    assert np.array_equal(resumed.predict(observations)[0], first.predict(observations)[0])
    resumed.load_replay_buffer(tmp_path / "buffer")
    resumed.learn(end - middle, reset_num_timesteps=False)
    assert differences(snapshot(straight), snapshot(resumed)) == []


@pytest.mark.parametrize("name", DISCRETE)
def test_an_interrupted_run_goes_on(name: str, tmp_path: Path) -> None:
    def env() -> VecEnv:
        return VecNormalize(toy())

    total = ends(name)[-1] + 3
    whole = q_model(name, env()).learn(total)
    stop = Witness(stop_at=total - 40)
    q_model(name, env()).learn(total, [GenerationCheckpoint(30, tmp_path), stop])
    resumed = ALGOS[name].resume_from(tmp_path, env=env(), device="cpu")
    assert 0 < resumed.num_timesteps < total - 30
    resumed.learn(total, GenerationCheckpoint(30, tmp_path))
    assert differences(snapshot(whole), snapshot(resumed)) == []


@pytest.mark.parametrize("name", DISCRETE)
def test_stock_callback(name: str, tmp_path: Path) -> None:
    evaluation = EvalCallback(toy(), n_eval_episodes=2, eval_freq=60, best_model_save_path=str(tmp_path), verbose=0)
    model = q_model(name, toy(2)).learn(150, evaluation)
    assert np.isfinite(evaluation.last_mean_reward) and model.num_timesteps >= 150
    best = ALGOS[name].load(tmp_path / "best_model")
    action, _ = best.predict(np.zeros(3, dtype=np.float32))
    assert best.action_space.contains(action) and action.shape == ()


def test_images() -> None:
    class Pictures(ImageEnv):
        def __init__(self, **kwargs: Any):
            super().__init__(**kwargs)
            self.action_space = spaces.Discrete(3)

        def step(self, action: Any) -> Any:
            return super().step(np.array([float(action) - 1.0]))

    policy_kwargs = {"features_extractor_kwargs": {"features_dim": 4}, "net_arch": []}
    env = toy_vec_env(2, env_class=Pictures, length=4)
    model = make("erl", env, "CnnPolicy", **{**SETTINGS, "policy_kwargs": policy_kwargs}).learn(80)
    assert model._n_updates > 0 and model.n_generations > 1


def test_pderl_teaches_greedy_actions() -> None:
    model = q_model("pderl").learn(ends("pderl")[-1])
    assert isinstance(model.evolver.crossover, GreedyDistillation) and model.evolver.distills and model.evolver.is_proximal
    changed = q_model("pderl", crossover="rows", mutation="gaussian").learn(100)
    assert not changed.evolver.distills and not changed.evolver.is_proximal


@pytest.mark.parametrize(
    ("cls", "env", "arguments", "message"),
    [
        (ERL, ToyEnv, {"learner": "dqn"}, "learner must be one for .*Box.*DQNLearner.*Choose learner='td3'.*discrete actions"),
        (PDERL, ToyEnv, {"learner": "dqn"}, "learner must be one for .*Box.*DQNLearner.*Choose learner='td3'"),
        (CERL, ToyEnv, {"learner": ["td3", "dqn"], "gammas": (0.9, 0.99)}, "DQNLearner.*Choose learner='td3'"),
        (ERL, DiscreteEnv, {"learner": "ddpg"}, "ERL needs an env with continuous actions.*ERL with learner='dqn'"),
        (ERL, DiscreteEnv, {"learner": "td3"}, "ERL needs an env with continuous actions.*ERL with learner='dqn'"),
        (ERL, DiscreteEnv, {"learner": "sac"}, "ERL needs an env with continuous actions.*ERL with learner='dqn'"),
        (PDERL, DiscreteEnv, {"learner": "td7"}, "PDERL needs an env with continuous actions.*ERL with learner='dqn'"),
        (CERL, DiscreteEnv, {"learner": "dqn"}, "CERL needs an env with continuous actions.*ERL with learner='dqn'"),
        (PDERL, DiscreteEnv, {"learner": "dqn", "parent_matching": "distance"}, "parent_matching must be 'fitness'"),
        (
            ERL,
            DiscreteEnv,
            {"learner": "dqn", "action_noise": NormalActionNoise(np.zeros(1), np.ones(1))},
            "action_noise must be None with discrete actions.*exploration_initial_eps",
        ),
    ],
)
def test_wrong_action_spaces(cls: Any, env: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls("MlpPolicy", toy_vec_env(env_class=env), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exchange": "imitate"}, "exchange must be left out with n_migrants=1.*got 'imitate'.*n_migrants=0"),
        ({"exchange_kwargs": {"otherwise": "next"}}, "exchange must be left out with n_migrants=1.*'otherwise'"),
        ({"population_policy_kwargs": {"net_arch": []}}, "population_policy_kwargs must be None with n_migrants=1.*imitate"),
    ],
)
def test_migrants_stand_in_for_an_exchange(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("erl", n_migrants=1, **arguments)
    assert make("erl", n_migrants=1, exchange="none").exchange is None
