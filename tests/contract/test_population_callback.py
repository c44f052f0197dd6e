"""``PopulationCallback`` in every class: it changes nothing, what it writes is true, and a resumed run continues its files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import TD3
from stable_baselines3.common.callbacks import CallbackList, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize

from sb3_erl import ALGOS, GANS, GenerationCheckpoint, PopulationCallback, ProcessEvaluator
from sb3_erl.envs import VecHardMaze
from sb3_erl.pictures.callback import COLUMNS, ENDS, TABLE
from sb3_erl.pictures.generation_files import read_about, read_rows
from tests.contract.helpers import Tables, differences, snapshot
from tests.contract.settings import GENERATIONAL, HYBRIDS, STEPWISE, make, whole
from tests.envs import ToyEnv, toy_vec_env

STEPS = 260


class Look(PopulationCallback):
    """Keeps what the generations consisted of."""

    def __init__(self, *arguments: Any, **kwargs: Any):
        super().__init__(*arguments, **kwargs)
        self.fitness: dict[int, np.ndarray] = {}
        self.candidates: dict[int, th.Tensor] = {}

    def after_verb(self, verb: str, generation: Any) -> None:
        super().after_verb(verb, generation)
        if verb == "log" and generation.fitness is not None:
            self.fitness[generation.number] = generation.fitness.copy()
            self.candidates[generation.number] = generation.asked.clone()


@pytest.mark.parametrize("name", GENERATIONAL)
def test_a_run_is_the_same_with_and_without_it(name: str, tmp_path: Path) -> None:
    alone, observed = make(name, toy_vec_env(2)), make(name, toy_vec_env(2))
    alone.learn(STEPS)
    observed.learn(STEPS, PopulationCallback(tmp_path))
    assert differences(snapshot(alone), snapshot(observed)) == []
    state = th.get_rng_state(), np.random.get_state()[1].sum()
    PopulationCallback(tmp_path)
    assert th.equal(state[0], th.get_rng_state()) and state[1] == np.random.get_state()[1].sum()


@pytest.mark.parametrize("name", GENERATIONAL)
def test_rows_are_what_the_generations_were(name: str, tmp_path: Path) -> None:
    look, model = Look(tmp_path), make(name, **whole(name))
    tables = Tables(model)
    model.learn(STEPS, look)
    rows = read_rows(tmp_path / TABLE)
    assert [row["generation"] for row in rows] == list(range(1, model.n_generations + 1)) and len(look.fitness) >= 2
    assert len(tables.tables) == len(rows)
    for row, logged in zip(rows, tables.tables, strict=True):
        fitness = look.fitness.get(row["generation"])
        assert (fitness is None) == np.isnan(row["fitness_median"])
        assert row["timesteps"] == logged["time/total_timesteps"]
        if fitness is None:
            continue
        assert row["fitness_median"] == pytest.approx(np.nanmedian(fitness))
        assert row["fitness_max"] == pytest.approx(np.nanmax(fitness)) and row["n_scored"] == np.isfinite(fitness).sum()
        assert row["fitness_median"] == pytest.approx(logged["population/fitness_median"])
        candidates = look.candidates[row["generation"]].double().numpy()
        pairs = [np.linalg.norm(a - b) for i, a in enumerate(candidates) for b in candidates[:i]]
        assert row["parameter_diversity"] == pytest.approx(np.mean(pairs), rel=1e-4)
        assert 0 <= row["action_diversity"] < 2.9
        assert logged["diversity/actions"] == pytest.approx(row["action_diversity"])
        kinds = [row[column] for column in COLUMNS if column.startswith("elites_") and column != "elites_age"]
        assert sum(kinds) == pytest.approx(1) and row["elites_unknown"] == 0
        assert row["deployed"] and 0 <= row["oldest_age"] < row["generation"]
    assert read_about(tmp_path / TABLE)["env"] == "ToyEnv"
    frame = look.table()
    assert list(frame.columns) == list(COLUMNS) and len(frame) == len(rows)


@pytest.mark.parametrize("name", [name for name in HYBRIDS if name in GENERATIONAL])
def test_the_learner_is_measured_against_the_population(name: str) -> None:
    callback, model = PopulationCallback(), make(name, **whole(name))
    model.learn(STEPS, callback)
    waits = [row["warm_up"] for row in callback.rows]
    assert waits == sorted(waits, reverse=True) and waits[-1] == 0
    for row in callback.rows:
        if np.isfinite(row["learner_beats"]):
            assert row["fitness_is_return"] == 1 and 0 <= row["learner_beats"] <= 1
            assert (row["learner_beats"] == 1) == (row["learner_return"] > row["fitness_max"])


@pytest.mark.parametrize("name", GENERATIONAL)
def test_files_of_a_killed_and_resumed_run_have_no_row_twice(name: str, tmp_path: Path) -> None:
    """Killed some generations after its last checkpoint; environments with running statistics."""

    def train(folder: Path, total: int, model: Any) -> Any:
        model.set_logger(configure(str(folder), ["csv"]))
        saves = GenerationCheckpoint(40, folder / "checkpoints", keep=None)
        callbacks = CallbackList([saves, PopulationCallback(folder)])
        return model.learn(total, callbacks)

    def environment() -> VecNormalize:
        return VecNormalize(toy_vec_env(vary=3))

    straight = train(tmp_path / "straight", STEPS, make(name, environment()))
    folder = tmp_path / "killed"
    train(folder, STEPS, make(name, environment()))
    _, _, *later = sorted((folder / "checkpoints").glob("checkpoint_*"))
    for checkpoint in later:  # as if the process had died before they were written
        shutil.rmtree(checkpoint)
    text = (folder / TABLE).read_text()
    (folder / TABLE).write_text(text + "7,1234,0,")  # a line that the kill has cut
    resumed = ALGOS[name].resume_from(folder / "checkpoints", env=environment(), device="cpu")
    assert 0 < resumed.n_generations < straight.n_generations
    train(folder, STEPS, resumed)
    assert (folder / TABLE).read_text() == text == (tmp_path / "straight" / TABLE).read_text()


@pytest.mark.parametrize("name", STEPWISE)
def test_a_class_without_generations_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{type(make(name)).__name__}, which has no generations; leave it out"):
        make(name).learn(20, PopulationCallback())


def test_a_model_of_another_package_is_refused() -> None:
    with pytest.raises(TypeError, match="PopulationCallback needs a model of sb3_erl; got TD3"):
        TD3("MlpPolicy", "Pendulum-v1").learn(20, PopulationCallback())


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "64"])
def test_a_wrong_number_of_observations_is_named(wrong: Any) -> None:
    with pytest.raises(ValueError, match="n_observations must be a whole number"):
        PopulationCallback(n_observations=wrong)


def test_actions_need_not_be_compared() -> None:
    callback = PopulationCallback(n_observations=0)
    make("erl").learn(100, callback)
    assert callback.rows and all(np.isnan(row["action_diversity"]) for row in callback.rows)


def test_without_a_folder_rows_survive_a_checkpoint(tmp_path: Path) -> None:
    """And an interrupted generation is not counted twice."""
    straight, callback = make("erl"), PopulationCallback()
    straight.learn(STEPS, callback)
    begun, first = make("erl"), PopulationCallback()
    begun.learn(STEPS, [GenerationCheckpoint(60, tmp_path, keep=None), first])
    resumed, later = (
        ALGOS["erl"].resume_from(sorted(tmp_path.glob("checkpoint_*"))[0], env=toy_vec_env()),
        PopulationCallback(),
    )
    resumed.learn(STEPS, later)
    np.testing.assert_equal(later.rows, callback.rows)


def test_two_calls_of_learn_go_on_with_one_table(tmp_path: Path) -> None:
    """The first call ends within a generation, whose individuals are asked for again."""
    model, callback = make("erl"), PopulationCallback(tmp_path)
    model.learn(101, callback)
    model.learn(101, callback, reset_num_timesteps=False)
    assert [row["generation"] for row in read_rows(tmp_path / TABLE)] == list(range(1, model.n_generations + 1))
    assert all(row["elites_unknown"] == 0 for row in callback.rows)


def test_the_folder_of_monitor_files_is_found(tmp_path: Path) -> None:
    """As in the Zoo, which knows no argument of a callback."""
    env = VecNormalize(make_vec_env("Pendulum-v1", 2, monitor_dir=str(tmp_path)))
    model = ALGOS["cem"]("MlpPolicy", env, pop_size=2, policy_kwargs={"net_arch": [4]}, device="cpu")
    model.learn(800, PopulationCallback())
    assert [row["generation"] for row in read_rows(tmp_path / TABLE)] == list(range(1, model.n_generations + 1)) != []


def test_beside_other_processes_it_is_the_folder_of_evaluations(tmp_path: Path) -> None:
    """In the Zoo with ``--vec-env subproc``: monitor files of other processes are not asked for."""
    env = toy_vec_env(2, subprocess=True)
    evaluation = EvalCallback(toy_vec_env(), eval_freq=1000, log_path=str(tmp_path), verbose=0)
    make("cem", env).learn(100, [evaluation, PopulationCallback()])
    env.close()
    assert len(read_rows(tmp_path / TABLE)) >= 2


def test_no_folder_and_no_monitor_file_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    callback = PopulationCallback()
    make("cem").learn(100, callback)
    assert callback.rows and list(tmp_path.iterdir()) == []


def test_ends_of_episodes_in_a_maze(tmp_path: Path) -> None:
    """On the map that is written with them."""
    env = VecHardMaze(4, max_steps=30)
    model = GANS("MlpPolicy", env, pop_size=4, truncation=2, novelty_k=2, policy_kwargs={"net_arch": [4]}, device="cpu")
    model.learn(3 * 4 * 30, PopulationCallback(tmp_path))
    rows, about = read_rows(tmp_path / ENDS), read_about(tmp_path / ENDS)
    assert [row["generation"] for row in rows] == [1] * 4 + [2] * 4 + [3] * 4
    assert about["map"]["goal"] == list(env.maze.goal) and len(about["map"]["lines"]) == len(env.maze.lines)
    for row in rows:
        assert row["return"] == pytest.approx(-np.hypot(row["x"] - env.maze.goal[0], row["y"] - env.maze.goal[1]), rel=1e-4)


def test_in_worker_processes(tmp_path: Path) -> None:
    """Which report no observations of pure evolution: actions are compared on random ones then."""
    here, there = PopulationCallback(), PopulationCallback()
    make("erl").learn(120, here)
    make("erl", evaluator=ProcessEvaluator(1, make_env=ToyEnv)).learn(120, there)
    np.testing.assert_equal(here.rows, there.rows)
    alone = PopulationCallback()
    make("cem", evaluator=ProcessEvaluator(1, make_env=ToyEnv)).learn(120, alone)
    assert all(np.isfinite(row["action_diversity"]) for row in alone.rows)
