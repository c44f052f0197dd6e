"""What is special about CEM-RL and CEM: who is sampled, learned, reused and deployed."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.noise import NormalActionNoise

from sb3_erl import ALGOS, CEMRL
from sb3_erl.core.parameters import read_parameters, write_parameters
from sb3_erl.engine.generation import Generation
from sb3_erl.engine.rollout_phase import CountingStore
from sb3_erl.learners.gradient_steps import GradientSteps
from sb3_erl.learners.td_rule import DDPGRule
from tests.contract.helpers import Tables, Witness, differences, snapshot
from tests.contract.settings import SALE_KWARGS, fast, make
from tests.envs import toy_vec_env

LENGTH = 8
"""Steps of an episode of the toy environment."""


class Recording(CEMRL):
    """CEM-RL that remembers what its generations consisted of, and everything that was stored first-hand."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.asked: list[th.Tensor] = []
        self.kept: list[list[int]] = []
        self.told: list[tuple[th.Tensor, np.ndarray]] = []
        self.seen: set[tuple[bytes, bytes, float]] = set()
        super().__init__(*args, **kwargs)

    def _ask(self, generation: Generation) -> None:
        super()._ask(generation)
        self.asked.append(generation.asked.clone())
        self.kept.append(self._kept)

    def _deploy(self, generation: Generation) -> None:
        assert generation.fitness is not None
        self.told.append((generation.asked.clone(), generation.fitness.copy()))
        super()._deploy(generation)

    def _step_store(self) -> CountingStore:
        class Seeing(CountingStore):
            def store(self, job: Any, summary: Any) -> None:
                self.model.seen |= {_key(step.observation, step.action, step.reward) for step in summary}
                super().store(job, summary)

        return Seeing(self)


def _key(observation: Any, action: Any, reward: Any) -> tuple[bytes, bytes, float]:
    return np.asarray(observation, np.float32).tobytes(), np.asarray(action, np.float32).tobytes(), float(np.float32(reward))


def recording(env: Any = None, **overrides: Any) -> Any:
    return Recording("MlpPolicy", toy_vec_env() if env is None else env, **fast("cem_rl", **{"train_freq": 1, **overrides}))


MIXING: dict[str, Any] = {"importance_mixing": True, "pop_size": 6, "n_gradient_actors": 2}


# ---------------------------------------------------------------- importance mixing


def test_reused_individuals_keep_their_fitness() -> None:
    model = recording(**MIXING).learn(300)
    n_reused = 0
    for kept, before, now in zip(model.kept[1:], model.told, model.told[1:], strict=False):
        for row in kept:
            same = [k for k in range(2, 6) if th.equal(before[0][k], now[0][row])]
            assert len(same) == 1, "one of the individuals of the last generation that were not learned"
            assert now[1][row] == before[1][same[0]]
        n_reused += len(kept)
    assert n_reused > 3 and np.isfinite(model.told[-1][1]).all()


def test_transitions_of_reused_individuals_are_stored_again() -> None:
    witness = Witness()
    recording(**MIXING).learn(300, witness)
    model = recording(**MIXING)
    model.learn(witness.generation_ends[-1])
    n_reused = sum(len(kept) for kept in model.kept)
    buffer = model.replay_buffer
    assert model.n_env_steps == model.num_timesteps == len(model.seen)
    assert model.n_stored == buffer.size() == model.num_timesteps + LENGTH * n_reused
    episodes = [part[: buffer.size()].reshape(-1, LENGTH, 3) for part in (buffer.observations, buffer.next_observations)]
    again = np.concatenate(episodes, axis=2).reshape(len(episodes[0]), -1)
    assert len(again) - len(np.unique(again, axis=0)) == n_reused > 0
    assert model.budget == 6 * LENGTH, "reused episodes pay for gradient steps too"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"buffer_size": 70},
        {"buffer_size": 70, "optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}},
        {"learner": "td7", "policy_kwargs": SALE_KWARGS},
        {"n_steps": 3},
    ],
    ids=["plain", "small", "memory-saving", "prioritized", "n-step"],
)
def test_nothing_is_stored_that_did_not_happen(settings: dict[str, Any]) -> None:
    model = recording(**MIXING, **settings).learn(300)
    assert model.n_stored > model.n_env_steps
    assert _stored(model) <= model.seen


def test_a_buffer_that_was_not_loaded_is_not_read(tmp_path: Path) -> None:
    witness = Witness()
    recording(**MIXING).learn(150, witness)
    model = recording(**MIXING)
    model.learn(witness.generation_ends[-1])
    model.save(tmp_path / "model")
    loaded: Any = Recording.load(tmp_path / "model", env=toy_vec_env())
    loaded.learn(150, reset_num_timesteps=False)
    assert any(loaded.kept[len(model.kept) :])
    assert _stored(loaded) <= loaded.seen


def _stored(model: Any) -> set[tuple[bytes, bytes, float]]:
    buffer, size = model.replay_buffer, model.replay_buffer.size()
    rows = [row for row in range(size) if not (buffer.optimize_memory_usage and buffer.full and row == buffer.pos)]
    return {_key(buffer.observations[row], buffer.actions[row], buffer.rewards[row, 0]) for row in rows}


def test_importance_mixing_continues_from_files(tmp_path: Path) -> None:
    witness = Witness()
    straight = make("cem_rl", **MIXING)
    straight.learn(250, witness)
    middle, end = witness.generation_ends[2], witness.generation_ends[-1]
    straight = make("cem_rl", **MIXING).learn(end)
    first = make("cem_rl", **MIXING).learn(middle)
    first.save(tmp_path / "model")
    first.save_replay_buffer(tmp_path / "buffer")
    resumed = CEMRL.load(tmp_path / "model", env=toy_vec_env())
    resumed.load_replay_buffer(tmp_path / "buffer")
    resumed.learn(end - middle, reset_num_timesteps=False)
    assert straight.n_stored > straight.num_timesteps
    assert differences(snapshot(straight), snapshot(resumed)) == []


@pytest.mark.parametrize("n_eval_episodes", [1, 2])
def test_importance_mixing_with_any_number_of_envs(n_eval_episodes: int) -> None:
    settings = {**MIXING, "n_eval_episodes": n_eval_episodes, "n_noisy_episodes": 1}
    witness = Witness()
    make("cem_rl", _varied(1), **settings).learn(250, witness)
    end = witness.generation_ends[-1]
    expected = make("cem_rl", _varied(1), **settings).learn(end)
    assert expected.n_stored > end
    for n_envs in (2, 4):
        result = make("cem_rl", _varied(n_envs), **settings).learn(end)
        assert differences(snapshot(expected), snapshot(result)) == []


def _varied(n_envs: int) -> Any:
    return toy_vec_env(n_envs, length=4, vary=5, ending="termination")


# ---------------------------------------------------------------- gradient steps


@pytest.mark.parametrize("learner", ["td3", "ddpg", "td7"])
def test_batched_steps_are_the_sequential_ones(learner: str) -> None:
    """Against the authors' loop: one individual after the other, each with an Adam of its own."""
    kwargs = {"policy_kwargs": SALE_KWARGS} if learner == "td7" else {}
    model = make("cem_rl", learner=learner, **kwargs).learn(100)
    size, n, n_critic, n_actor = 16, 3, 4, 6
    candidates = model.evolver.sample(np.random.default_rng(0).standard_normal((n, model.evolver.mean.numel())))
    np.random.seed(0)
    batches = [[model.replay_buffer.sample(size) for _ in range(n_critic)] for _ in range(n)]
    observations = [[model.replay_buffer.sample(size).observations for _ in range(n)] for _ in range(n_actor)]
    plain = copy.deepcopy(model.learner)
    for rule in (model.learner, plain):
        rule.buffer = None  # no priorities for batches that were drawn beforehand

    left, many = [batch for block in batches for batch in block], list(observations)
    steps = GradientSteps(model.policy.make_actor(), lambda tensors: th.optim.Adam(tensors, lr=1e-3))
    th.manual_seed(0)
    improved, losses = steps(model.learner, candidates, lambda: left.pop(0), lambda k: many.pop(0)[:k], n_critic, n_actor)
    assert not left and not many

    rows = [model.policy.make_actor() for _ in range(n)]
    th.manual_seed(0)  # after the last network was initialized
    for row, candidate in zip(rows, candidates, strict=True):
        write_parameters(candidate, row)
    if learner == "td7":  # on the critic as it is after all critic steps
        for row, block in zip(rows, batches, strict=True):
            for batch in block:
                plain.critic_update(batch, row)
    for i, row in enumerate(rows):
        if learner != "td7":
            for batch in batches[i]:
                plain.critic_update(batch, row)
        else:
            row.encoder.load_state_dict(plain.policy.actor.encoder.state_dict())
        optimizer = th.optim.Adam(row.parameters(), lr=1e-3)
        for k in range(n_actor):
            values = plain.all_values(observations[k][i], row(observations[k][i]))
            loss = -(values if learner == "td7" else values[0]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    expected = th.stack([read_parameters(row) for row in rows])
    moved = (expected - candidates).abs()
    assert moved.amax() > 1e-3 and th.isfinite(th.tensor(list(losses.values()))).all()
    assert th.allclose(improved.float(), expected, rtol=0, atol=2e-5)
    critic, reference = (read_parameters(rule.policy.critic) for rule in (model.learner, plain))
    assert th.allclose(critic, reference, rtol=0, atol=1e-6)


def test_the_first_rows_are_learned_once_there_is_a_budget() -> None:
    model = recording(learning_starts=40).learn(200)
    for number, (asked, (told, _)) in enumerate(zip(model.asked, model.told, strict=False)):
        learned = [not th.equal(before, after) for before, after in zip(asked, told, strict=True)]
        assert learned == [number > 1, number > 1, False, False], "32 steps are not more than 40"


def test_no_gradient_step_is_taken_twice(tmp_path: Path) -> None:
    """A generation that was cut costs its rollouts; its learned individuals wait for the next one, in files too."""
    model = recording().learn(64 + 3)
    assert model._n_updates == 64 and model.n_generations == 2
    waiting = model.learned.waiting.clone()
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded: Any = Recording.load(tmp_path / "model", env=toy_vec_env())
    loaded.load_replay_buffer(tmp_path / "buffer")
    for continued in (model, loaded):
        continued.learn(32, reset_num_timesteps=False)
        assert continued._n_updates == 64 and continued.learned.waiting is None
        assert th.equal(continued.told[-1][0][:2].float(), waiting)
        continued.learn(32, reset_num_timesteps=False)
        assert continued._n_updates == 96
    assert differences(snapshot(model), snapshot(loaded)) == []


def test_other_settings_do_without_what_is_waiting(tmp_path: Path) -> None:
    make("cem_rl", **MIXING).learn(70).save(tmp_path / "model")
    loaded = CEMRL.load(tmp_path / "model", env=toy_vec_env(), n_gradient_actors=3)
    assert loaded.learned.waiting is None and loaded.learned.rows.shape[0] == 3
    assert loaded.learn(100).n_generations > 1


def test_no_learned_individuals_make_cem() -> None:
    hybrid = make("cem_rl", n_gradient_actors=0)
    plain = make("cem")
    plain.evolver.mean.copy_(read_parameters(hybrid.actor))
    hybrid.learn(4 * 32)
    plain.learn(4 * 32)
    assert hybrid._n_updates == 0 and hybrid.n_generations == plain.n_generations == 4
    for name, value in plain.evolver.state_dict().items():
        assert th.equal(value, hybrid.evolver.state_dict()[name]), name
    assert th.equal(read_parameters(plain.policy.deployed), read_parameters(hybrid.policy.deployed))


# ---------------------------------------------------------------- rollouts


def test_episodic_rewards() -> None:
    dense, episodic = (make("cem_rl", reward_mode=mode) for mode in ("dense", "episodic"))
    tables = [Tables(dense), Tables(episodic)]
    for model in (dense, episodic):
        model.learn(2 * 32)
    stored, rewards = (model.replay_buffer.rewards[:64, 0].reshape(-1, LENGTH) for model in (dense, episodic))
    assert (rewards[:, :-1] == 0).all() and (rewards[:, -1] != 0).all()
    assert np.allclose(rewards[:4, -1], stored[:4].sum(axis=1), atol=1e-5), "before anything was learned from them"
    assert rewards[:4, -1].mean() == pytest.approx(tables[1].column("population/fitness_mean")[0], abs=1e-5)
    assert tables[0].column("population/fitness_mean")[0] == tables[1].column("population/fitness_mean")[0]


def test_noisy_episodes() -> None:
    """They come first, are the first individuals with noise, and count for everything but fitness."""
    noise = NormalActionNoise(np.zeros(2), np.full(2, 0.3))
    model = recording(n_noisy_episodes=2, action_noise=noise, learning_starts=1000)
    quiet = recording(learning_starts=1000)
    tables = Tables(model)
    model.learn(6 * LENGTH)
    quiet.learn(4 * LENGTH)
    assert model.n_generations == 1 and model.budget == 6 * LENGTH and model.replay_buffer.size() == 6 * LENGTH
    assert np.array_equal(model.told[0][1], quiet.told[0][1])
    returns = model.replay_buffer.rewards[: 2 * LENGTH, 0].reshape(2, -1).sum(axis=1)
    assert tables.column("rollout/learner_ep_rew_mean") == pytest.approx([returns.mean()], abs=1e-5)
    for i in range(2):
        block = slice(i * LENGTH, (i + 1) * LENGTH)
        planned = model.individual(i).predict(model.replay_buffer.observations[block, 0], deterministic=True)[0] / 2
        gap = model.replay_buffer.actions[block, 0] - planned
        assert 0.1 < gap.std() < 0.6


@pytest.mark.parametrize("name", ["cem", "cem_rl"])
def test_individuals_act_as_they_were_evaluated(name: str) -> None:
    steps: list[tuple[np.ndarray, np.ndarray]] = []

    def keep(variables: dict[str, Any], _: dict[str, Any]) -> bool:
        steps.append((variables["new_obs"][0], variables["actions"][0]))
        return True

    model = make(name).learn(3 * 32, keep)
    for i in range(4):
        episode = steps[64 + i * LENGTH : 64 + (i + 1) * LENGTH]
        for (observation, _), (_, action) in itertools.pairwise(episode):
            assert np.allclose(model.individual(i).predict(observation, deterministic=True)[0], action, atol=1e-5)


# ---------------------------------------------------------------- the distribution


@pytest.mark.parametrize(("pop_size", "antithetic", "mirrored"), [(4, None, True), (4, False, False), (5, None, False)])
def test_mirrored_rows(pop_size: int, antithetic: bool | None, mirrored: bool) -> None:
    model = recording(pop_size=pop_size, antithetic=antithetic)
    mean = model.evolver.mean.clone()
    model.learn(10)
    middle = (model.asked[0][:2] + model.asked[0][2:4]) / 2
    assert th.allclose(middle, mean.expand(2, -1), rtol=0, atol=1e-12) == mirrored
    assert (model.asked[0] - mean).std() == pytest.approx(1e-3**0.5, rel=0.3)


@pytest.mark.parametrize("elitism", [True, False])
def test_elitism(elitism: bool) -> None:
    model = recording(elitism=elitism).learn(200)
    assert not any(th.equal(row, model.evolver.elite) for row in model.asked[0])
    for (candidates, fitness), asked in zip(model.told, model.asked[1:], strict=False):
        assert th.equal(asked[-1], candidates[int(fitness.argmax())]) == elitism


@pytest.mark.parametrize("name", ["cem", "cem_rl"])
@pytest.mark.parametrize("deploy", ["mean", "champion"])
def test_deployed(name: str, deploy: str) -> None:
    model = make(name, deploy=deploy).learn(3 * 32 + 5)
    mean, elite = (part.float() for part in (model.evolver.mean, model.evolver.elite))
    assert th.equal(read_parameters(model.policy.deployed), mean if deploy == "mean" else elite)
    assert any(th.equal(elite, row.float()) for row in model.evolver.candidates) and not th.equal(mean, elite)
    if name == "cem_rl":
        assert th.equal(read_parameters(model.policy.actor), mean), "gradient steps leave it alone"
        assert model.learner_agent is model.actor is model.policy.actor


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"elitism": True, "importance_mixing": True}, "elitism must be False with importance_mixing=True"),
        ({"n_gradient_actors": 4, "importance_mixing": True}, "n_gradient_actors must be at least 0 and at most 3"),
        ({"learner_kwargs": {"policy_delay": 2}}, "learner_kwargs.*policy_delay"),
        ({"policy_kwargs": {"share_features_extractor": True}}, "share_features_extractor must be False"),
        ({"antithetic": True, "pop_size": 5}, "antithetic.*pop_size=5"),
        ({"evolver_kwargs": {"covariance_rule": "full"}}, "covariance_rule.*full"),
    ],
)
def test_combinations_that_mean_nothing(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make("cem_rl", **settings)


def test_train_needs_transitions() -> None:
    model = make("cem_rl")
    model.train(gradient_steps=1)
    assert model._n_updates == 0


def test_cem_has_the_networks_of_cem_rl() -> None:
    plain, hybrid = (ALGOS[name]("Pendulum-v1", device="cpu") for name in ("cem", "cem_rl"))
    assert str(plain.policy.deployed) == str(hybrid.policy.deployed)
    assert [tuple(p.shape) for p in plain.policy.deployed.parameters()][::2] == [(400, 3), (300, 400), (1, 300)]


class SlowActors(DDPGRule):
    """A rule whose actors have a rate of their own."""

    learning_rates = (1e-5, 1e-3)


@pytest.mark.parametrize(("given", "actors", "critic"), [(None, 1e-5, 1e-3), (0.3, 0.3, 0.3)])
def test_individuals_learn_at_the_rate_of_actors(given: float | None, actors: float, critic: float) -> None:
    rates: list[float] = []

    class Adam(th.optim.Adam):
        def __init__(self, tensors: Any, lr: float, **kwargs: Any):
            rates.append(lr)
            super().__init__(tensors, lr=lr, **kwargs)

    model = make("cem_rl", learner=SlowActors, learning_rate=given)
    model.policy.optimizer_class = Adam
    model.learn(4 * LENGTH * model.pop_size)
    assert set(rates) == {actors} and model.policy.critic.optimizer.param_groups[0]["lr"] == critic
