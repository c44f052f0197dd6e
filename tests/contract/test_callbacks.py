"""Callbacks see every step of everybody, with the variables SB3 promises, and their False ends training at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import (
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.vec_env import VecNormalize

from sb3_erl import ALGOS
from tests.contract.helpers import Witness, differences, snapshot, transitions
from tests.contract.settings import GENERATIONAL, HYBRIDS, NAMES, make, whole
from tests.envs import toy_vec_env


@pytest.mark.parametrize("name", NAMES)
def test_one_call_per_step(name: str) -> None:
    witness, env = Witness(), toy_vec_env()
    make(name, env).learn(150, witness)
    assert witness.counts == list(range(1, 151))
    assert env.get_attr("n_steps") == [150]
    assert witness.begun_with["total_timesteps"] == 150
    assert 2 <= len(witness.generation_ends) <= witness.n_begun <= len(witness.generation_ends) + 1
    assert name in GENERATIONAL or witness.n_begun == 150, "a rollout is a vector step"


@pytest.mark.parametrize("n_envs", [2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_one_call_per_vector_step(name: str, n_envs: int) -> None:
    witness, env = Witness(), toy_vec_env(n_envs)
    make(name, env).learn(150, witness)
    increments = np.diff([0, *witness.counts])
    assert 1 <= increments.min() and increments.max() == n_envs
    assert sum(env.get_attr("n_steps")) == witness.counts[-1] == increments.sum(), "environments without a job rest"


@pytest.mark.parametrize("answer", [False, np.bool_(False), th.tensor(False)], ids=["bool", "numpy", "torch"])
@pytest.mark.parametrize("stop_at", [1, 37])
@pytest.mark.parametrize("name", NAMES)
def test_false_ends_training_at_once(name: str, stop_at: int, answer: Any) -> None:
    witness, env = Witness(stop_at, answer), toy_vec_env()
    model = make(name, env).learn(150, witness)
    assert len(witness.counts) == stop_at == model.num_timesteps == env.get_attr("n_steps")[0]
    if name in GENERATIONAL:
        assert name not in HYBRIDS or model.replay_buffer.size() == stop_at, "what was stepped is stored"
        assert model.n_generations == len(witness.generation_ends)
    else:
        assert model.replay_buffer.size() == stop_at - 1 == len(witness.generation_ends), "as in SB3's own classes"


@pytest.mark.parametrize("name", GENERATIONAL)
def test_false_at_the_last_step_of_a_generation(name: str) -> None:
    probe = Witness()
    make(name).learn(150, probe)
    end = probe.generation_ends[1]
    witness = Witness(stop_at=end)
    model = make(name).learn(150, witness)
    assert model.num_timesteps == end and model.n_generations == 1


@pytest.mark.parametrize("name", NAMES)
def test_variables_at_each_step(name: str) -> None:
    seen: list[dict[str, Any]] = []

    def look(variables: dict[str, Any], _: dict[str, Any]) -> bool:
        seen.append({key: variables[key] for key in ("new_obs", "rewards", "dones", "infos", "actions")})
        assert variables["self"] is not None
        return True

    env = toy_vec_env(2)
    model = make(name, env).learn(100, look)
    for step in seen:
        assert model.observation_space.contains(step["new_obs"][0]) and step["new_obs"].shape == (2, 3)
        assert step["rewards"].shape == step["dones"].shape == (2,) and len(step["infos"]) == 2
        assert all(model.action_space.contains(action) for action in step["actions"])
    finished = sum("episode" in info for step in seen for info in step["infos"])
    assert finished >= sum(step["dones"].sum() for step in seen) > 0
    assert {int(info["episode"]["l"]) for step in seen for info in step["infos"] if "episode" in info} == {8}


@pytest.mark.parametrize("name", NAMES)
def test_children_share_their_parents_variables(name: str) -> None:
    inner, outer = Witness(), Witness()
    make(name).learn(60, CallbackList([outer, EveryNTimesteps(20, inner)]))
    assert inner.counts == [20, 40, 60]
    assert inner.locals["new_obs"] is outer.locals["new_obs"]


@pytest.mark.parametrize("name", NAMES)
def test_max_episodes(name: str) -> None:
    callback = StopTrainingOnMaxEpisodes(max_episodes=5)
    model = make(name, **whole(name)).learn(1000, callback)
    assert callback.n_episodes == 5 and model.num_timesteps == 40


@pytest.mark.parametrize("name", NAMES)
def test_evaluations_do_not_count(name: str, tmp_path: Path) -> None:
    env, evaluation_env = toy_vec_env(), toy_vec_env()
    callback = EvalCallback(evaluation_env, eval_freq=30, n_eval_episodes=2, best_model_save_path=str(tmp_path), verbose=0)
    model = make(name, env).learn(90, callback)
    assert callback.n_calls == model.num_timesteps == env.get_attr("n_steps")[0] == 90
    assert evaluation_env.get_attr("n_steps") == [3 * 2 * 8]
    best = ALGOS[name].load(tmp_path / "best_model")
    assert best.num_timesteps in (30, 60, 90)


@pytest.mark.parametrize("name", NAMES)
def test_an_evaluation_in_between_changes_nothing(name: str) -> None:
    quiet, watched = make(name).learn(100), make(name)
    watched.learn(100, EvalCallback(toy_vec_env(), eval_freq=15, n_eval_episodes=1, verbose=0))
    assert differences(snapshot(quiet), snapshot(watched)) == []


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_hold_buffer_and_statistics(name: str, tmp_path: Path) -> None:
    env = VecNormalize(toy_vec_env())
    callback = CheckpointCallback(50, str(tmp_path), save_replay_buffer=True, save_vecnormalize=True)
    make(name, env).learn(100, callback)
    loaded = ALGOS[name].load(tmp_path / "rl_model_50_steps", env=toy_vec_env())
    statistics = VecNormalize.load(str(tmp_path / "rl_model_vecnormalize_50_steps.pkl"), toy_vec_env())
    assert loaded.num_timesteps == 50
    if name in HYBRIDS:
        loaded.load_replay_buffer(tmp_path / "rl_model_replay_buffer_50_steps")
        assert 0 < loaded.replay_buffer.size() <= 50 and set(transitions(loaded)) >= {"observations", "timeouts"}
    assert statistics.obs_rms.count >= 50  # type: ignore[union-attr]
