"""What is special about ESAC: what is counted, stored, learned and deployed, and when SAC has its phases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_erl import ESAC
from sb3_erl.core.parameters import read_parameters
from sb3_erl.engine.generation import Generation
from sb3_erl.engine.steps import every
from sb3_erl.learners.allocation import annealed_probability
from sb3_erl.rollouts.exploration import PolicyExploration, UniformExploration
from tests.contract.helpers import Tables, Witness, differences, snapshot, watch_phases
from tests.contract.settings import fast, make
from tests.envs import toy_vec_env

LENGTH = 8
"""Steps of an episode of the toy environment."""
PHASES: dict[str, Any] = {"sac_interval": 2, "sac_episodes": 3, "store_population_transitions": False, "train_freq": 1}
POPULATION, PHASE = 4 * LENGTH, 3 * LENGTH
"""Steps of the population in a generation, and of SAC in a phase, with these settings."""


def budget(n_generations: int) -> int:
    """Steps of so many generations, every second of which has a phase."""
    return n_generations * POPULATION + n_generations // 2 * PHASE


def run(n_generations: int, **settings: Any) -> Any:
    return make("esac", **{**PHASES, **settings}).learn(budget(n_generations))


def test_steps_are_counted_apart() -> None:
    """Gate (e): the population's episodes, those of the phases, and the paper's count; only the phases are stored."""
    model, witness = make("esac", **PHASES), Witness()
    tables = Tables(model)
    model.learn(budget(6), witness)
    assert witness.generation_ends == [budget(n) for n in range(1, 7)], "a generation is one rollout to callbacks"
    assert tables.column("time/population_timesteps") == [n * POPULATION for n in range(1, 7)]
    assert tables.column("time/sac_timesteps") == [n // 2 * PHASE for n in range(1, 7)]
    assert tables.column("time/counted_timesteps") == [1000 * n for n in range(1, 7)], "no time limit is known"
    assert model.num_timesteps == model.n_population_steps + model.n_learner_steps
    assert model.replay_buffer.size() == model.n_learner_steps == 3 * PHASE
    assert len(tables.column("rollout/learner_ep_rew_mean")) == 3, "of the phases"
    assert {"population/sigma", "population/learner_pairs_mean", "population/winner_pairs_mean"} <= set(tables.tables[-1])


def test_the_papers_run_in_steps() -> None:
    """1000 generations of episodes with 1000 steps: 20M of the population, about 142 phases of 5000 steps."""
    due = [k for k in range(1, 1001) if k % 5 == 0]
    assert sum(annealed_probability((1.0, 0.1, 1_200_000), 1000 * k) for k in due) == pytest.approx(142, abs=0.5)
    default = ESAC("Pendulum-v1", device="cpu")
    assert (default.n_rollouts - default.sac_episodes, default.sac_interval, default.sac_episodes) == (20, 5, 5)


def test_time_limit_is_what_a_generation_counts_for(tmp_path: Path) -> None:
    model = ESAC("Pendulum-v1", **fast("esac"))
    assert model.counted_timesteps(3) == 3 * 200
    model.save(tmp_path / "model")
    assert ESAC.load(tmp_path / "model").counted_timesteps(3) == 600
    assert ESAC.load(tmp_path / "model", env=gym.make("Pendulum-v1", max_episode_steps=7)).counted_timesteps(3) == 600


@pytest.mark.parametrize(("probability", "n_phases"), [((1.0, 1.0, 1.0), 3), ((0.0, 0.0, 1.0), 0), ((1.0, 0.0, 1.0), 0)])
def test_probability_of_phases(probability: Any, n_phases: int) -> None:
    model = make("esac", **PHASES, sac_probability=probability)
    actor = read_parameters(model.actor).clone()
    model.learn(6 * POPULATION + n_phases * PHASE)
    assert (model.n_generations, model.n_learner_steps) == (6, n_phases * PHASE)
    assert th.equal(read_parameters(model.actor), actor) == (n_phases == 0)


def test_phases_fall_by_chance() -> None:
    model = make("esac", sac_probability=(0.5, 0.5, 1.0), gradient_steps=0).learn(40 * POPULATION)
    assert 0.2 < model.n_learner_steps / LENGTH / model.n_generations < 0.8


def test_updates_follow_each_episode() -> None:
    """One per step at which there was more than a batch of 16 before: none, none, 7 of 8, and then all."""
    made: list[tuple[int, int]] = []
    model = make("esac", **PHASES)
    train = model.train

    def watch(n_updates: int) -> None:
        made.append((model.n_learner_steps, n_updates))
        train(n_updates)

    model.train = watch
    model.learn(budget(4))
    assert made == [(8, 0), (16, 0), (24, 7), (32, 8), (40, 8), (48, 8)] and model._n_updates == 31


@pytest.mark.parametrize(("buffer_size", "n_updates"), [(20, 31), (17, 31), (16, 0)])
def test_every_step_pays_once_the_buffer_is_full(buffer_size: int, n_updates: int) -> None:
    model = run(4, buffer_size=buffer_size)
    assert model.n_learner_steps == 2 * PHASE and model._n_updates == n_updates


def test_population_is_stored_on_demand() -> None:
    model = run(4, store_population_transitions=True)
    assert model.replay_buffer.size() == model.num_timesteps and model.n_learner_steps == 2 * PHASE
    assert model._n_updates == 2 * PHASE, "only SAC's steps pay"


def test_exploration_is_random_by_the_papers_count() -> None:
    model = make("esac", **{**PHASES, "sac_interval": 1}, learning_starts=2001)
    phases = watch_phases(model)
    model.learn(4 * (POPULATION + PHASE))
    explorers = [type(job.explorer) for jobs, _ in phases for job in jobs if not model.is_of_population(job)]
    assert explorers == 6 * [UniformExploration] + 6 * [PolicyExploration]
    assert all(job.explorer is None for jobs, _ in phases for job in jobs if model.is_of_population(job))


def test_copies_of_sac_are_those_of_before_the_phase() -> None:
    copies: list[th.Tensor] = []

    def look(model: Any, generation: Generation) -> None:
        copies.append((generation.asked[-2] + generation.asked[-1]) / 2)
        actors.append(read_parameters(model.actor).clone())

    actors: list[th.Tensor] = []
    model = make("esac", **PHASES, generation_steps=[every(1, look, after="tell")])
    actors.append(read_parameters(model.actor).clone())
    model.learn(budget(6))
    assert len(copies) == 6
    for copy, before, after in zip(copies, actors, actors[1:], strict=False):
        th.testing.assert_close(copy, before, rtol=0, atol=1e-6)
        assert th.equal(before, after) or not th.allclose(copy, after, rtol=0, atol=1e-6)
    assert len({tuple(actor.tolist()) for actor in actors}) == 4, "three phases"


@pytest.mark.parametrize("deploy", ["sac", "mother", "winner"])
def test_deployed(deploy: str, tmp_path: Path) -> None:
    best: list[th.Tensor] = []

    def look(model: Any, generation: Generation) -> None:
        best.append(generation.asked[int(np.argmax(generation.fitness))].clone())  # type: ignore[arg-type]

    model = make("esac", **PHASES, deploy=deploy, generation_steps=[every(1, look, after="score")])
    assert th.equal(read_parameters(model.policy.deployed), read_parameters(model.actor)), "before the first generation"
    model.learn(budget(3))
    agents = {"sac": model.learner_agent, "mother": model.mother_agent, "winner": model.winner_agent}
    expected = {"sac": read_parameters(model.actor), "mother": model.evolver.mean, "winner": best[-1]}
    assert th.equal(read_parameters(model.policy.deployed), expected[deploy])
    observation = np.ones(3, dtype=np.float32)
    for name, agent in agents.items():
        assert th.equal(read_parameters(agent), expected[name])
    action = model.predict(observation)[0]
    assert np.array_equal(action, model.predict(observation)[0]), "deployed policies do not sample"
    assert np.array_equal(action, agents[deploy].predict(observation, deterministic=True)[0])
    assert not np.array_equal(*(model.learner_agent.predict(observation)[0] for _ in range(2))), "the learner does"
    model.generation_steps = []
    model.save(tmp_path / "model")
    loaded = ESAC.load(tmp_path / "model")
    assert th.equal(read_parameters(loaded.winner_agent), best[-1]) and np.array_equal(loaded.predict(observation)[0], action)


def test_result_does_not_depend_on_environments() -> None:
    first, second = (make("esac", toy_vec_env(n), **PHASES).learn(budget(4)) for n in (1, 3))
    assert differences(snapshot(first), snapshot(second)) == []


def test_going_on_is_as_not_stopping(tmp_path: Path) -> None:
    whole, begun = run(6), run(4)
    begun.save(tmp_path / "model")
    begun.save_replay_buffer(tmp_path / "buffer")
    resumed = ESAC.load(tmp_path / "model", env=toy_vec_env())
    resumed.load_replay_buffer(tmp_path / "buffer")
    resumed.learn(budget(6) - budget(4), reset_num_timesteps=False)
    assert differences(snapshot(whole), snapshot(resumed)) == []
    assert (whole.n_population_steps, whole.evolver.sigma) == (resumed.n_population_steps, resumed.evolver.sigma)


@pytest.mark.parametrize("missing", [1, LENGTH + 1, PHASE + 1])
def test_a_generation_that_is_cut_short_tells_nobody(missing: int) -> None:
    """The budget ends in the last episode of the phase, in the one before it, or in the population's last."""
    complete, cut = run(3), make("esac", **PHASES).learn(budget(4) - missing)
    assert cut.n_generations == 3 and cut.num_timesteps == budget(4) - missing
    for name in ("mean", "winners", "grown", "n_told"):
        assert th.equal(getattr(cut.evolver, name), getattr(complete.evolver, name))


def test_networks_begin_as_in_the_authors_code() -> None:
    model = ESAC("Pendulum-v1", seed=1, device="cpu")
    for network in (model.actor, model.critic, model.policy.deployed, model.mother_agent):
        for layer in (layer for layer in network.modules() if isinstance(layer, nn.Linear)):
            bound = (6 / sum(layer.weight.shape)) ** 0.5
            assert 0.8 * bound < float(layer.weight.detach().abs().max()) <= bound and not layer.bias.detach().any()
    pairs = zip(model.critic.parameters(), model.critic_target.parameters(), strict=True)
    assert all(th.equal(online, target) for online, target in pairs)
    assert not th.equal(model.evolver.mean, read_parameters(model.actor)), "the mother is a network of her own"
