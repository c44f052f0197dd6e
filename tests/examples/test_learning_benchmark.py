"""``python -m benchmarks.learning``: interrupted and continued runs, result files, comparison plots."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.evaluation import COLUMNS, Checkpoints, Curve, read_rows
from benchmarks.learning import folder_name, parse_arguments, prepare
from benchmarks.report import SeedCurve, aggregate
from benchmarks.settings import Experiment, algorithm_class, load_settings, parse_hyperparams

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["learning_starts:200", "fitness_horizon:50", "batch_size:16"]


def command(out: Path, steps: int, *extra: str) -> list[str]:
    arguments = ["--algo", "erl_re2", "--env", "Pendulum-v1", "--steps", str(steps), "--jobs", "1", "--out", str(out)]
    schedule = ["--eval-freq", "100", "--checkpoint-freq", "200", "--eval-episodes", "2", "--name", "run"]
    return [sys.executable, "-m", "benchmarks.learning", *arguments, *schedule, "--hyperparams", *QUICK, *extra]


def curve(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_killed_run_continues_to_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "erl_re2_Pendulum-v1" / "run"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(command(tmp_path, 1500), cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    deadline = time.monotonic() + 300
    while Checkpoints(folder / "checkpoints" / "seed_1").newest() is None:  # a whole one, not one that is being written
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    run.terminate()
    output, _ = run.communicate(timeout=60)
    assert not (folder / "seed_1.json").exists(), output

    done = subprocess.run(command(tmp_path, 1500), cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "continued from the checkpoint" in done.stdout
    rows = curve(folder / "seed_1.csv")
    steps = [int(row["steps"]) for row in rows]
    assert steps == list(range(100, 1501, 100))  # one environment: nothing doubled, nothing lost
    seconds = [float(row["train_seconds"]) for row in rows]
    assert seconds == sorted(seconds)
    assert all(float(row["total_seconds"]) >= float(row["train_seconds"]) for row in rows)
    assert all(-2000 < float(row["mean"]) < 0 and row["learner_return"] != "" for row in rows)
    for row in rows:
        assert float(row["reported"]) == max(float(row["learner_return"]), float(row["champion_return"]))
    assert not list(folder.glob("checkpoints/seed_1/*"))
    summary = json.loads((folder / "summary.json").read_text())
    seed = summary["seeds"]["1"]
    assert seed["final"] == pytest.approx(float(rows[-1]["mean"]))
    assert seed["final_reported"] == pytest.approx(float(rows[-1]["reported"])) == summary["final_reported_mean_over_seeds"]
    assert (folder / "curve.png").stat().st_size > 5_000

    again = subprocess.run(
        [*command(tmp_path, 1500), "--compare", f"{folder}=the same"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0 and "finished already" in again.stdout
    assert curve(folder / "seed_1.csv") == rows


def test_folder_of_another_experiment_is_refused(tmp_path: Path) -> None:
    arguments = ["--env", "Pendulum-v1", "--out", str(tmp_path), "--name", "run", "--steps"]
    prepare(parse_arguments([*arguments, "1000"]))
    prepare(parse_arguments([*arguments, "1e3"]))
    with pytest.raises(ValueError, match="holds a run with other steps"):
        prepare(parse_arguments([*arguments, "2000"]))


def test_curve_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "seed_1.csv"
    first = Curve(path, 0)
    for steps in (100, 200, 300):
        first.append({column: steps for column in COLUMNS})
    with path.open("a") as file:
        file.write("400,1.0")  # cut by a crash
    Curve(path, 250)
    assert [row["steps"] for row in read_rows(path)] == ["100", "200"]


def test_interrupted_checkpoint_is_not_taken(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.newest() is None
    for name in ("step_900", "step_1000", "step_2000.tmp"):
        (tmp_path / name).mkdir()
    newest = checkpoints.newest()
    assert newest is not None and newest.name == "step_1000"
    checkpoints.clear(keep=newest)
    assert [path.name for path in tmp_path.iterdir()] == ["step_1000"]


def test_settings_come_from_the_zoo_file_and_the_command_line() -> None:
    settings, origin = load_settings("erl_re2", "HalfCheetah-v4")
    assert settings["mc_fitness_prob"] == 0.3 and "HalfCheetah-v4" in origin
    assert "'default'" in load_settings("erl_re2", "NoSuchTask-v0")[1]
    settings.update(parse_hyperparams(["n_envs:3", "normalize:True", "gamma:0.9", "policy_kwargs:dict(net_arch=[8])"]))
    experiment = Experiment("erl_re2", "HalfCheetah-v4", settings, 500)
    assert experiment.n_envs == 3
    assert experiment.normalize == {"gamma": 0.9}
    assert experiment.model_kwargs["policy_kwargs"] == {"net_arch": [8]}
    assert "n_timesteps" not in experiment.model_kwargs


@pytest.mark.parametrize("algo", ["td3", "sac", "tqc"])
def test_algorithms_of_sb3_serve_as_baselines(algo: str) -> None:
    assert algorithm_class(algo).__name__.lower() == algo
    settings, origin = load_settings(algo, "Pendulum-v1")
    assert settings["policy"] == "MlpPolicy" and "Pendulum-v1" in origin


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match=r"--algo must be one of .*erl_re2.*'no_such'"):
        algorithm_class("no_such")
    with pytest.raises(ValueError, match="name:value"):
        parse_hyperparams(["gamma=0.9"])
    assert folder_name(["policy_kwargs:dict(a=[1, 2])"]) == "policy_kwargs=dict_a=_1,_2_"


def test_interval_over_seeds() -> None:
    steps = np.array([100.0, 200.0])
    curves = [SeedCurve(i, steps, steps * i, steps * 0, steps, steps, steps) for i in range(1, 5)]
    grid, mean, lower, upper = aggregate(curves, [c.mean for c in curves])
    assert grid.tolist() == [100, 200] and mean.tolist() == [250, 500]
    assert (lower < mean).all() and (mean < upper).all() and (upper <= 4 * steps).all()
    _, _, lower, upper = aggregate(curves[:2], [c.mean for c in curves[:2]])
    assert lower.tolist() == [100, 200] and upper.tolist() == [200, 400]
