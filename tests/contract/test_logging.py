"""What a run logs: SB3's keys, the population's, plain values; folders and intervals as in SB3."""

from __future__ import annotations

import csv
from numbers import Real
from pathlib import Path

import numpy as np
import pytest
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.logger import configure

from sb3_erl import ALGOS
from tests.contract.helpers import Tables, Witness
from tests.contract.settings import (
    EXPLORING,
    GENERATIONAL,
    HYBRIDS,
    NAMES,
    SCORED_BY_EPISODES,
    STEPWISE,
    apart,
    known,
    make,
    n_rollouts,
    split_returns,
    whole,
)
from tests.envs import toy_vec_env

ALWAYS = {
    "rollout/ep_rew_mean",
    "rollout/ep_len_mean",
    "time/fps",
    "time/total_timesteps",
    "time/episodes",
    "time/time_elapsed",
}
POPULATION = {"population/fitness_max", "population/fitness_mean", "population/fitness_std"}


@pytest.mark.parametrize("name", NAMES)
def test_keys_and_values(name: str) -> None:
    model = make(name)
    tables = Tables(model)
    model.learn(max(200, 6 * n_rollouts(name) * 8 if name in GENERATIONAL else 0))
    assert all(ALWAYS <= set(table) for table in tables.tables)
    warm = tables.tables[3:]
    assert len(warm) >= 2
    for table in warm:
        assert ("rollout/learner_ep_rew_mean" in table) == (name in EXPLORING)
        assert ("train/n_updates" in table) == (name in HYBRIDS)
        losses = [key for key in table if key.startswith("train/") and key.endswith("loss")]
        assert bool(losses) == (name in HYBRIDS)
        assert all(isinstance(value, Real | str) for value in table.values())
    if name in HYBRIDS:
        updates = tables.column("train/n_updates")
        assert updates == sorted(updates) and 0 < updates[-1] <= model._n_updates


@pytest.mark.parametrize("name", GENERATIONAL)
def test_keys_and_values_of_generations(name: str) -> None:
    probe = Witness()
    make(name).learn(200, probe)
    model = make(name)
    tables = Tables(model)
    model.learn(probe.generation_ends[-1])
    assert all(POPULATION <= set(table) for table in tables.tables[3:])
    assert tables.column("time/generations") == list(range(1, model.n_generations + 1))
    assert tables.column("train/n_updates")[-1:] == ([model._n_updates] if name in HYBRIDS else [])
    assert all(np.isfinite(tables.column("population/fitness_mean")))


@pytest.mark.parametrize("name", STEPWISE)
def test_keys_and_values_of_assessments(name: str) -> None:
    model = make(name)
    tables = Tables(model)
    model.learn(100, log_interval=1)
    for table in tables.tables[4:]:
        assert {"train/encoder_loss", "train/critic_loss", "train/actor_loss", "train/max_priority"} <= set(table)
        assert {"train/value_min", "train/value_max", "checkpoint/score", "checkpoint/episodes_per_assessment"} <= set(table)
        assert table["checkpoint/n_accepted"] + table["checkpoint/n_rejected"] > 0


@pytest.mark.parametrize("name", STEPWISE)
def test_numbers_are_those_of_the_last_episode(name: str) -> None:
    model = make(name)
    tables, returns = Tables(model), []

    def keep(variables: dict, _: dict) -> bool:
        returns.extend(info["episode"]["r"] for info in variables["infos"] if "episode" in info)
        return True

    model.learn(80, keep, log_interval=1)
    assert len(returns) == len(tables.tables) == 10
    learner = tables.column("rollout/learner_ep_rew_mean")
    assert learner == pytest.approx(returns[2:], abs=1e-5), "after two episodes of warm-up"
    assert tables.column("rollout/ep_rew_mean")[-1] == pytest.approx(np.mean(returns), abs=1e-5)
    assert set(tables.column("rollout/ep_len_mean")) == {8.0}


@pytest.mark.parametrize("name", SCORED_BY_EPISODES)
def test_numbers_are_those_of_the_episodes(name: str) -> None:
    """The last generation's fitness against the returns that Monitor measured; one env runs jobs in order."""
    model = make(name, **known(name, {"learning_starts": 0}), **whole(name))
    tables, returns, witness = Tables(model), [], Witness()

    def keep(variables: dict, _: dict) -> bool:
        returns.extend(info["episode"]["r"] for info in variables["infos"] if "episode" in info)
        return True

    n_episodes = n_rollouts(name)
    model.learn(2 * n_episodes * 8, [ConvertCallback(keep), witness])
    assert witness.generation_ends[-1] == 2 * n_episodes * 8 and len(returns) == 2 * n_episodes
    population, learners = split_returns(name, returns[n_episodes:])
    assert tables.column("population/fitness_max")[-1] == pytest.approx(max(population), abs=1e-5)
    assert tables.column("population/fitness_mean")[-1] == pytest.approx(np.mean(population), abs=1e-5)
    assert tables.column("population/fitness_std")[-1] == pytest.approx(np.std(population), abs=1e-5)
    if len(learners):
        assert tables.column(apart(name))[-1] == pytest.approx(np.mean(learners), abs=1e-5)
    assert tables.column("rollout/ep_rew_mean")[-1] == pytest.approx(np.mean(returns), abs=1e-5)
    assert set(tables.column("rollout/ep_len_mean")) == {8.0}


@pytest.mark.parametrize(("interval", "expected"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4]), (None, [])])
@pytest.mark.parametrize("name", STEPWISE)
def test_interval_counts_episodes(name: str, interval: int | None, expected: list[int]) -> None:
    model = make(name, learning_starts=1000)
    tables = Tables(model)
    model.learn(5 * 8, log_interval=interval)
    assert tables.column("time/episodes") == expected


@pytest.mark.parametrize(("interval", "expected"), [(1, [1, 2, 3, 4]), (2, [2, 4]), (None, [])])
@pytest.mark.parametrize("name", GENERATIONAL)
def test_interval_counts_generations(name: str, interval: int | None, expected: list[int]) -> None:
    model = make(name, **known(name, {"learning_starts": 0}), **whole(name))
    tables = Tables(model)
    model.learn(4 * n_rollouts(name) * 8, log_interval=interval)
    assert tables.column("time/generations") == expected


@pytest.mark.parametrize("name", NAMES)
def test_csv_file_is_a_table(name: str, tmp_path: Path) -> None:
    model = make(name)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(200)
    with open(tmp_path / "progress.csv") as file:
        header, *rows = list(csv.reader(file))
    assert {len(row) for row in rows} == {len(header)}
    counted = [int(row[header.index("time/generations" if name in GENERATIONAL else "time/episodes")]) for row in rows]
    assert counted == (list(range(1, model.n_generations + 1)) if name in GENERATIONAL else list(range(4, 26, 4)))


@pytest.mark.parametrize("name", NAMES)
def test_tensorboard_folders(name: str, tmp_path: Path) -> None:
    model, cls = make(name, tensorboard_log=str(tmp_path)), ALGOS[name].__name__
    model.learn(60)
    assert [p.name for p in tmp_path.iterdir()] == [f"{cls}_1"]
    model.learn(60, reset_num_timesteps=False)
    assert [p.name for p in tmp_path.iterdir()] == [f"{cls}_1"]
    model.learn(60, tb_log_name="other")
    model.learn(60, tb_log_name="other")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([f"{cls}_1", "other_1", "other_2"])


@pytest.mark.parametrize("name", NAMES)
def test_window_of_the_means(name: str) -> None:
    model = make(name, toy_vec_env(), stats_window_size=2, **whole(name)).learn(100)
    assert model.ep_info_buffer.maxlen == 2 and len(model.ep_info_buffer) == 2
