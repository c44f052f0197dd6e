"""What Deep GA and random search promise beside what SB3 promises: genomes, an elite that is tried again, one noise table."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize

from sb3_erl import ALGOS, DeepGA
from sb3_erl.core.parameters import read_parameters
from sb3_erl.evolution.fitness.base import Fitness, FitnessContext
from sb3_erl.evolution.fitness.parts import Novelty
from sb3_erl.evolution.fitness.returns import episode_return
from sb3_erl.rollouts.jobs import EpisodeBatch
from tests.contract.helpers import Tables, Witness, watch_phases
from tests.contract.settings import make, n_rollouts, pop_size
from tests.envs import ToyEnv, toy_vec_env

NAMES = [name for name, cls in ALGOS.items() if issubclass(cls, DeepGA) and name != "ga_ns"]  # it has no finalists
"""The genetic algorithm, and the same without parents."""
EPISODE = 8  # steps of the toy environment
OBSERVATIONS = np.random.default_rng(5).uniform(-1, 1, (6, 3)).astype(np.float32)


class Certain(ToyEnv):
    """Every episode has the same start and the same noise."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        return super().reset(seed=0)


def generations(name: str, number: int) -> int:
    """Steps of a number of generations with fast settings."""
    return number * n_rollouts(name) * EPISODE


# ---------------------------------------------------------------- the elite


@pytest.mark.parametrize("name", NAMES)
def test_elite_never_gets_worse_where_episodes_do_not_vary(name: str) -> None:
    own = {"sigma": 0.1} if name == "deep_ga" else {}
    model = make(name, toy_vec_env(env_class=Certain), **own)
    tables = Tables(model)
    model.learn(generations(name, 15), log_interval=1)
    scores = np.array(tables.column("population/elite_return"))
    assert len(scores) == 15 and (np.diff(scores) > -1e-6).all() and scores[-1] > scores[0] + 0.01
    assert evaluate_policy(model, toy_vec_env(env_class=Certain), 1)[0] == pytest.approx(scores[-1], abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_best_and_the_elite_are_evaluated_again(name: str) -> None:
    model = make(name, n_finalists=3, n_finalist_episodes=2, n_eval_episodes=2)
    phases, n = watch_phases(model), pop_size(name)
    model.learn((2 * n + 3 * 2) * EPISODE)
    former = model.evolver.elite
    model.learn((2 * n + 3 * 2) * EPISODE, reset_num_timesteps=False)
    assert [len(jobs) for jobs, _ in phases] == [2 * n, 6, 2 * n, 6]
    assert [job.candidate for job in phases[3][0]] == [n, n, n + 1, n + 1, n + 2, n + 2]
    first = phases[2][1].mean_per_candidate([episode.total_reward for episode in phases[2][1].episodes], n)
    again = [episode.total_reward for episode in phases[3][1].episodes]
    means = np.mean(np.reshape(again, (3, 2)), axis=1)
    best = np.argsort(-first)[:2]
    children = model.evolver.population
    assert model.evolver.elite == [former, *(children[i] for i in best)][int(means.argmax())], "by the further episodes only"


@pytest.mark.parametrize("name", NAMES)
def test_the_elite_is_deployed(name: str) -> None:
    model = make(name).learn(generations(name, 3))
    assert th.equal(read_parameters(model.policy.deployed), model.evolver.rebuild(model.evolver.elite))
    assert model.policy.deployed.statistics is None, "moving statistics would change what old genomes mean"


# ---------------------------------------------------------------- fitness


class Counting(Fitness):
    """The return; its state is how many candidates it has scored."""

    def __init__(self) -> None:
        self.n_scored = 0
        self.calls: list[int] = []

    def __call__(self, episodes: EpisodeBatch, context: FitnessContext) -> np.ndarray:
        self.calls.append(self.n_scored)
        self.n_scored += context.n_candidates
        return episode_return(episodes, context.n_candidates)

    def state_dict(self) -> dict[str, Any]:
        return {"n_scored": self.n_scored}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.n_scored = state["n_scored"]


@pytest.mark.parametrize("name", NAMES)
def test_the_state_of_a_fitness_moves_once_in_a_generation(name: str) -> None:
    model, n = make(name, fitness=Counting).learn(generations(name, 2)), pop_size(name)
    assert model.fitness.calls == [0, 0, n, n], "both evaluations are scored by the state of before"
    assert model.fitness.n_scored == 2 * n


@pytest.mark.parametrize("name", NAMES)
def test_a_second_evaluation_that_is_cut_off_leaves_no_trace_in_a_fitness_with_state(name: str) -> None:
    whole = make(name, fitness=Counting).learn(generations(name, 2))
    model = make(name, fitness=Counting).learn(generations(name, 2) + (pop_size(name) + 1) * EPISODE)
    assert model.n_generations == whole.n_generations == 2 and model.num_timesteps > whole.num_timesteps
    assert model.fitness.state_dict() == whole.fitness.state_dict() and len(model.fitness.calls) == 5


@pytest.mark.parametrize("fitness", ["novelty", Novelty, {"return": 1.0, "novelty": 0.1}], ids=["name", "class", "sum"])
@pytest.mark.parametrize("name", NAMES)
def test_novelty_has_a_class_of_its_own(name: str, fitness: Any) -> None:
    message = rf"fitness must be without 'novelty' in {ALGOS[name].__name__}.*got .*ovelty.*GANS\(\.\.\.\) is"
    with pytest.raises(ValueError, match=message):
        make(name, fitness=fitness)


def test_a_file_of_a_version_that_took_novelty_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr("sb3_erl.algorithms.deep_ga.refuse_novelty", lambda *_: None)
        model = make("deep_ga", fitness="novelty").learn(generations("deep_ga", 2))
    assert len(model.fitness.archive) == 2 * pop_size("deep_ga"), "those that are evaluated again do not enter"
    model.save(tmp_path / "model")
    loaded = DeepGA.load(tmp_path / "model", env=toy_vec_env())
    assert np.array_equal(loaded.predict(OBSERVATIONS)[0], model.predict(OBSERVATIONS)[0])
    loaded.learn(generations("deep_ga", 1), reset_num_timesteps=False)
    assert len(loaded.fitness.archive) == 3 * pop_size("deep_ga")


# ---------------------------------------------------------------- observations


@pytest.mark.parametrize("name", [*NAMES, "ga_ns"])
def test_warns_of_statistics_that_move_under_genomes(name: str) -> None:
    with pytest.warns(UserWarning, match=r"VecNormalize.*training=False.*norm_obs=False") as caught:
        make(name, VecNormalize(toy_vec_env())).learn(EPISODE)
    assert [warning.filename for warning in caught] == [__file__], "once, and it points to the user's line"
    model = make(name, VecNormalize(toy_vec_env(), training=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(EPISODE)
        model.set_env(VecNormalize(toy_vec_env(), norm_obs=False))
        model.learn(EPISODE)
        model.set_env(VecNormalize(toy_vec_env()))
    with pytest.warns(UserWarning, match="VecNormalize"):
        model.learn(EPISODE)


# ---------------------------------------------------------------- genomes


def test_a_generation_adds_one_mutation_and_no_more() -> None:
    model, lengths = make("deep_ga"), []
    for _ in range(6):
        model.learn(generations("deep_ga", 1), reset_num_timesteps=False)
        lengths.append([len(genome.offsets) for genome in model.evolver.population])
    assert lengths[0] == [1] * 4, "the first generation is random"
    assert all(2 <= length <= age for age, row in enumerate(lengths[1:], 2) for length in row)
    assert max(lengths[-1]) > 3


def test_random_search_has_no_parents() -> None:
    model = make("random_search").learn(generations("random_search", 5))
    assert model.n_generations == 5 and model.evolver.parents == []
    assert all(len(genome.offsets) == 1 for genome in [model.evolver.elite, *model.evolver.population])
    with pytest.raises(TypeError, match="truncation"):
        make("random_search", truncation=2)


def test_memory_of_an_individual_is_logged() -> None:
    model = make("deep_ga", policy_kwargs={"net_arch": [16, 16]})
    tables = Tables(model)
    model.learn(generations("deep_ga", 5), log_interval=1)
    n_params = read_parameters(model.policy.deployed).numel()
    assert tables.column("population/parameters") == [n_params] * 5
    per_genome = [8 * (2 * len(genome.offsets) - 1) for genome in model.evolver.population]
    logged = tables.column("population/bytes_per_genome")
    assert logged[0] == 8 and logged[-1] == pytest.approx(np.mean(per_genome))
    assert logged[-1] <= 8 * 9 < 4 * n_params, "an offset at first, and an offset and a power for each of four mutations"
    elite = tables.column("population/elite_genome_length")
    assert elite[-1] == len(model.evolver.elite.offsets) and elite[0] == 1


def test_mutations_keep_the_power_of_their_time() -> None:
    model = make("deep_ga", sigma=lambda left: left + 0.01)
    witness, total = Witness(), generations("deep_ga", 4)
    model.learn(total, witness)
    ages = {round(1 - end / total + 0.01, 6) for end in [0, *witness.generation_ends]}
    powers = {round(power, 6) for genome in model.evolver.population for power in genome.powers}
    assert len(powers) > 1 and powers <= ages


# ---------------------------------------------------------------- files

LOAD = """
import json, sys
import numpy as np
from sb3_erl import {cls}
model = {cls}.load(sys.argv[1], device="cpu")
observations = np.array(json.loads(sys.argv[2]), dtype=np.float32)
print(json.dumps([model.predict(observations)[0].tolist(), model.evolver.candidates.tolist()]))
"""


def test_genomes_mean_the_same_in_another_process(tmp_path: Path) -> None:
    model = make("deep_ga").learn(generations("deep_ga", 4) + 20)
    model.save(tmp_path / "model.zip")
    words = [sys.executable, "-c", LOAD.format(cls="DeepGA"), str(tmp_path / "model.zip"), json.dumps(OBSERVATIONS.tolist())]
    result = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    actions, candidates = json.loads(result.stdout)
    assert np.array_equal(np.array(actions, np.float32), model.predict(OBSERVATIONS)[0])
    assert th.equal(th.tensor(candidates), model.evolver.candidates)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("noise_seed", 7), ("noise_table_size", 200_000), ("init", "unit_norm"), ("init_output_std", 0.5)],
)
@pytest.mark.parametrize("name", NAMES)
def test_genomes_are_not_read_with_other_eyes(name: str, argument: str, value: Any, tmp_path: Path) -> None:
    make(name).learn(generations(name, 1)).save(tmp_path / "model")
    with pytest.raises(ValueError, match=rf"{argument}.*{value} instead of"):
        ALGOS[name].load(tmp_path / "model", **{argument: value})


def test_another_truncation_is_only_another_selection(tmp_path: Path) -> None:
    model = make("deep_ga").learn(generations("deep_ga", 3))
    model.save(tmp_path / "model")
    loaded = DeepGA.load(tmp_path / "model", env=toy_vec_env(), truncation=3)
    assert loaded.evolver.elite == model.evolver.elite
    loaded.learn(generations("deep_ga", 2), reset_num_timesteps=False)
    assert len(loaded.evolver.parents) == 3


# ---------------------------------------------------------------- arguments and learning


@pytest.mark.parametrize("name", NAMES)
def test_episodes_end_at_the_limit(name: str) -> None:
    model = make(name, episode_cutoff=3).learn(2 * n_rollouts(name) * 3)
    assert model.n_generations == 2


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        *((name, argument, 0) for name in NAMES for argument in ("n_finalists", "n_finalist_episodes", "episode_cutoff")),
        *((name, "n_finalists", 99) for name in NAMES),
        *((name, "init", "zeros") for name in NAMES),
        ("deep_ga", "truncation", 99),
        ("deep_ga", "sigma", 0.0),
    ],
)
def test_wrong_values_are_named(name: str, argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{argument}.*{value}"):
        make(name, **{argument: value})


@pytest.mark.parametrize("name", NAMES)
def test_a_pole_is_balanced_with_discrete_actions(name: str) -> None:
    env = Monitor(gym.make("CartPole-v1", max_episode_steps=200))
    own = {"truncation": 3, "sigma": 0.5} if name == "deep_ga" else {}
    shared: dict[str, Any] = {"pop_size": 20, "n_finalists": 3, "n_finalist_episodes": 3, "noise_table_size": 100_000}
    model = ALGOS[name]("LinearPolicy", env, init_output_std=1.0, seed=0, device="cpu", **shared, **own)
    before, _ = evaluate_policy(model, env, n_eval_episodes=5)
    model.learn(6000)
    assert before < 60 and evaluate_policy(model, env, n_eval_episodes=10)[0] > 180
