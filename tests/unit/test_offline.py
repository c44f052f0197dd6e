"""Offline learning from a dataset that Minari's own collector recorded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import EvalCallback

from sb3_erl import ERL, TD7
from sb3_erl.buffers.offline import LoadDataset, fill_replay_buffer
from tests.contract.helpers import Witness
from tests.envs import OddSpaces, toy_vec_env

minari = pytest.importorskip("minari", reason="needs the extra offline")
FAST: dict[str, Any] = {
    "batch_size": 16,
    "buffer_size": 200,
    "policy_kwargs": {"net_arch": [8, 8], "zs_dim": 4},
    "device": "cpu",
    "seed": 1,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Twelve episodes, half of which end in a true terminal state."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        gym.register("SB3ERLToyRecorded-v0", "tests.envs:ToyEnv", max_episode_steps=9, kwargs={"ending": "termination"})
        rng = np.random.default_rng(0)
        collector = minari.DataCollector(gym.make("SB3ERLToyRecorded-v0"))
        for episode in range(12):
            collector.reset(seed=episode)
            collector.unwrapped.limit = 8 if episode % 2 else 100  # the others run into the time limit
            over = False
            while not over:
                *_, terminated, truncated, _ = collector.step(rng.uniform(-2, 2, 2).astype(np.float32))
                over = terminated or truncated
        yield collector.create_dataset("toy/test-v0", algorithm_name="random", author="test", description="random actions")


def test_callback_fills_an_empty_buffer_once(dataset: Any) -> None:
    filled = TD7(toy_vec_env(), offline=True, **FAST)
    fill_replay_buffer(filled, dataset)
    filled.learn(10)
    model = TD7(toy_vec_env(), offline=True, **FAST)
    model.learn(4, LoadDataset(dataset)).learn(6, LoadDataset("not/there-v0"), reset_num_timesteps=False)
    assert model.replay_buffer.size() == dataset.total_steps and model._n_updates == 10
    for one, other in zip(model.policy.state_dict().values(), filled.policy.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="buffer_size must be at least the 102 steps of the dataset; got 20"):
        TD7(toy_vec_env(), offline=True, **{**FAST, "buffer_size": 20}).learn(4, LoadDataset(dataset))


def test_every_transition_arrives(dataset: Any) -> None:
    model = TD7(toy_vec_env(), offline=True, **FAST)
    n_added = fill_replay_buffer(model, dataset)
    buffer = model.replay_buffer
    assert buffer is not None and n_added == dataset.total_steps == buffer.size() == 6 * 8 + 6 * 9
    episodes = list(dataset.iterate_episodes())
    actions = np.concatenate([e.actions for e in episodes])
    np.testing.assert_allclose(buffer.actions[:n_added, 0], actions / 2, atol=1e-6)
    np.testing.assert_allclose(buffer.observations[:n_added, 0], np.concatenate([e.observations[:-1] for e in episodes]))
    np.testing.assert_allclose(buffer.next_observations[:n_added, 0], np.concatenate([e.observations[1:] for e in episodes]))
    np.testing.assert_allclose(buffer.rewards[:n_added, 0], np.concatenate([e.rewards for e in episodes]), rtol=1e-6)
    terminal = (buffer.dones * (1 - buffer.timeouts))[:n_added, 0]
    np.testing.assert_array_equal(terminal, np.concatenate([e.terminations for e in episodes]))
    assert terminal.sum() == 6 and buffer.dones[:n_added].sum() == 12


def test_learning_counts_updates_and_steps_no_environment(dataset: Any, tmp_path: Path) -> None:
    env = toy_vec_env()
    model = TD7(env, offline=True, **FAST)
    fill_replay_buffer(model, dataset)
    before = [p.clone() for p in model.policy.actor.parameters()]
    evaluations, witness = EvalCallback(toy_vec_env(), eval_freq=10, n_eval_episodes=2, log_path=str(tmp_path)), Witness()
    model.learn(30, [evaluations, witness])
    assert (model.num_timesteps, model._n_updates, env.get_attr("n_steps")) == (30, 30, [0])
    assert witness.counts == list(range(1, 31))
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == [10, 20, 30]
    assert not any(torch.equal(a, b) for a, b in zip(before, model.policy.actor.parameters(), strict=True))
    observation = np.ones((3, 3), np.float32)
    live = model.learner_agent.predict(observation, deterministic=True)[0]
    np.testing.assert_array_equal(model.predict(observation, deterministic=True)[0], live)


def test_cloning_term_pulls_toward_the_data(dataset: Any) -> None:
    def distance(bc_coef: float) -> float:
        model = TD7(toy_vec_env(), offline=True, bc_coef=bc_coef, learning_rate=1e-2, **FAST)
        fill_replay_buffer(model, dataset)
        model.learn(60)
        data = model.replay_buffer.sample(100)  # type: ignore[union-attr]
        with torch.no_grad():
            return float((model.actor(data.observations) - data.actions).square().mean())  # type: ignore[operator]

    assert distance(10.0) < 0.8 * distance(0.0)


def test_interrupted_and_continued_is_one_run(dataset: Any, tmp_path: Path) -> None:
    straight, first = (TD7(toy_vec_env(), offline=True, **FAST) for _ in range(2))
    for model in (straight, first):
        fill_replay_buffer(model, dataset)
    straight.learn(40)
    first.learn(15).save(tmp_path / "model")
    first.save_replay_buffer(tmp_path / "buffer")
    second = TD7.load(tmp_path / "model", env=toy_vec_env())
    second.load_replay_buffer(tmp_path / "buffer")
    second.learn(25, reset_num_timesteps=False)
    theirs = second.policy.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in straight.policy.state_dict().items())


def test_wrong_use(dataset: Any) -> None:
    with pytest.raises(ValueError, match="replay_buffer must hold transitions"):
        TD7(toy_vec_env(), offline=True, **FAST).learn(5)
    with pytest.raises(ValueError, match="use_checkpoints"):
        TD7(toy_vec_env(), offline=True, use_checkpoints=True, **FAST)
    with pytest.raises(ValueError, match="buffer_size must be at least the 102 steps"):
        fill_replay_buffer(TD7(toy_vec_env(), offline=True, **{**FAST, "buffer_size": 50}), dataset)
    with pytest.raises(ValueError, match="n_envs=2"):
        fill_replay_buffer(TD7(toy_vec_env(2), offline=True, **FAST), dataset)
    with pytest.raises(ValueError, match="actions of shape"):
        fill_replay_buffer(TD7("Pendulum-v1", offline=True, **FAST), dataset)


def choices(actions: list[int]) -> list[Any]:
    """One episode with these actions."""
    n_steps = len(actions)
    ends = np.arange(n_steps) == n_steps - 1
    steps = {"rewards": np.ones(n_steps), "terminations": ends, "truncations": np.zeros(n_steps, dtype=bool)}
    observations = np.zeros((n_steps + 1, 3), dtype=np.float32)
    return [SimpleNamespace(observations=observations, actions=np.array(actions), **steps)]


@pytest.mark.parametrize("start", [0, -1, 2])
def test_discrete_actions_arrive_as_the_model_stores_its_own(start: int) -> None:
    env = OddSpaces(spaces.Discrete(3, start=start))
    settings = {"policy_kwargs": {"net_arch": [8]}, "learning_starts": 0, "batch_size": 4, "buffer_size": 100, "device": "cpu"}
    model: Any = ERL("MlpPolicy", env, learner="dqn", **settings)
    model.learn(4, LoadDataset(choices([start, start + 2, start + 1])))
    assert model.replay_buffer.actions[:3, 0, 0].tolist() == [0, 2, 1]
    with pytest.raises(ValueError, match=rf"dataset must have actions of .*, from {start} to {start + 2}, .*; got {start} to"):
        fill_replay_buffer(model, choices([start, start + 3]))


def test_sb3_dqn_learns_from_discrete_actions_that_count_from_0() -> None:
    settings: dict[str, Any] = {"buffer_size": 100, "batch_size": 4, "device": "cpu"}
    model = DQN("MlpPolicy", toy_vec_env(n_actions=3), **settings)
    assert fill_replay_buffer(model, choices([0, 2, 1])) == 3
    assert model.replay_buffer.actions[:3, 0, 0].tolist() == [0, 2, 1]  # type: ignore[union-attr]
    model._setup_learn(1)
    model.train(1, 4)
    other = DQN("MlpPolicy", OddSpaces(spaces.Discrete(3, start=1)), **settings)
    with pytest.raises(ValueError, match="model must have actions that count from 0, since DQN acts so; got Discrete"):
        fill_replay_buffer(other, choices([1, 2]))
