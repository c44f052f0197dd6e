"""Pictures show what the files say: lines are compared with rows, number by number."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_erl import ERL, GANS, PopulationCallback
from sb3_erl.envs import VecHardMaze
from sb3_erl.pictures import measures
from sb3_erl.pictures.callback import ENDS, TABLE
from sb3_erl.pictures.curves import Curve, aggregated, draw_curves, grouped, runs_in
from sb3_erl.pictures.ends_figure import draw_ends
from sb3_erl.pictures.fixed_observations import FixedObservations
from sb3_erl.pictures.generation_files import GenerationFile, read_about, read_rows
from sb3_erl.pictures.population_figure import draw_population, running_mean
from sb3_erl.zoo.plot import main as plot

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run as a user would record it: monitor files, evaluations and a population."""
    folder = tmp_path_factory.mktemp("erl") / "Pendulum-v1_1"
    folder.mkdir()
    env = make_vec_env("Pendulum-v1", 2, monitor_dir=str(folder))
    small: dict[str, Any] = {"pop_size": 3, "policy_kwargs": {"net_arch": [8]}, "batch_size": 16, "train_freq": 10}
    evaluation = EvalCallback(make_vec_env("Pendulum-v1"), eval_freq=400, n_eval_episodes=1, log_path=str(folder), verbose=0)
    model = ERL("MlpPolicy", env, learning_starts=1500, seed=0, device="cpu", **small)
    model.learn(4100, [PopulationCallback(), evaluation])
    return folder


@pytest.fixture(scope="module")
def maze(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ga_ns")
    env = VecHardMaze(4, max_steps=20)
    small: dict[str, Any] = {"pop_size": 4, "truncation": 2, "novelty_k": 2, "policy_kwargs": {"net_arch": [4]}}
    GANS("MlpPolicy", env, device="cpu", **small).learn(5 * 80, PopulationCallback(folder))
    return folder


def column(folder: Path, name: str) -> np.ndarray:
    """Read without the code that is tested."""
    with open(folder / TABLE) as file:
        file.readline()
        return np.array([float(row[name]) for row in csv.DictReader(file)])


def lines_of(figure: Any) -> dict[str, Any]:
    return {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("median individual", "fitness_median"),
        ("learner", "learner_return"),
        ("deployed policy", "deployed_return"),
        ("parameters (left)", "parameter_diversity"),
        ("actions (right)", "action_diversity"),
        ("elites (mean)", "elites_age"),
        ("oldest individual", "oldest_age"),
        ("best individual", "champion_age"),
        ("lines left (right)", "lines"),
    ],
)
def test_lines_of_the_population_are_columns_of_the_file(run: Path, label: str, name: str) -> None:
    line, values = lines_of(draw_population(run))[label], column(run, name)
    known = np.isfinite(values)
    assert known.sum() >= 4
    np.testing.assert_array_equal(line.get_xdata(), column(run, "timesteps")[known])
    np.testing.assert_array_equal(line.get_ydata(), values[known])


def corners(collection: Any) -> np.ndarray:
    return np.concatenate([path.vertices for path in collection.get_paths()])


def test_the_ribbon_is_the_range_and_the_middle_half(run: Path) -> None:
    axes = draw_population(run).axes[0]
    ribbons = {each.get_label(): corners(each) for each in axes.collections}
    for label, low, high in (("all", "fitness_min", "fitness_max"), ("middle half", "fitness_q25", "fitness_q75")):
        for step, lower, upper in zip(column(run, "timesteps"), column(run, low), column(run, high), strict=True):
            at = ribbons[label][ribbons[label][:, 0] == step][:, 1]
            assert at.min() == lower and at.max() == upper


def test_shares_of_origins_are_stacked(run: Path) -> None:
    axes = draw_population(run).axes[3]
    stacks = {each.get_label(): corners(each) for each in axes.collections}
    steps = column(run, "timesteps")
    total = np.zeros(len(steps))
    for label, name in (("random", "elites_random"), ("mutation", "elites_mutation"), ("learner", "elites_learner")):
        share = column(run, name)
        if share.max() > 0:
            total = total + share
            last = stacks[label][stacks[label][:, 0] == steps[-1]][:, 1]
            assert last.max() == pytest.approx(np.sum(total[-1])), label
    assert max(corners(each)[:, 1].max() for each in axes.collections) == pytest.approx(1)


def test_the_warm_up_is_marked_until_the_learner_learns(run: Path) -> None:
    waits, steps = column(run, "warm_up"), column(run, "timesteps")
    assert waits[0] == 1 and waits[-1] == 0
    for axes in draw_population(run).axes[:4]:
        (mark,) = [patch for patch in axes.patches if patch.get_label() == "warm-up"]
        assert mark.get_x() == 0 and mark.get_width() == steps[waits == 0][0]


def test_every_part_has_a_title_named_axes_and_a_legend_that_covers_no_data(run: Path, maze: Path) -> None:
    for figure in (draw_population(run), draw_curves([run]), draw_ends(maze), draw_population(maze)):
        figure.canvas.draw()
        for axes in figure.axes:
            legend = axes.get_legend()
            if legend is not None:
                assert axes.get_title("left") or axes.get_title()
                assert axes.get_xlabel() and axes.get_ylabel()
                assert legend.get_window_extent().y0 >= axes.get_window_extent().y1 - 1
                top = max(title.get_window_extent().y0 for title in (axes.title, axes._left_title) if title.get_text())
                assert top >= legend.get_window_extent().y1 - 1


def test_lines_of_one_part_differ_also_without_colors(run: Path) -> None:
    """In lightness or in their style, for those who see no colors at all; hues are those of Okabe and Ito."""
    for axes in draw_population(run).axes:
        looks = []
        for line in axes.get_lines():
            red, green, blue = (int(line.get_color()[i : i + 2], 16) / 255 for i in (1, 3, 5))
            looks.append((round(0.2126 * red + 0.7152 * green + 0.0722 * blue, 1), line.get_linestyle()))
        assert len(set(looks)) == len(looks)


# -------------------------------------------------------------------- learning curves


def test_the_curve_of_a_run_is_that_of_its_evaluations(run: Path) -> None:
    figure = draw_curves([run])
    with np.load(run / "evaluations.npz") as found:
        (line,) = [line for line in figure.axes[0].get_lines() if "seed" in line.get_label()]
        np.testing.assert_array_equal(line.get_xdata(), found["timesteps"])
        np.testing.assert_array_equal(line.get_ydata(), found["results"].mean(axis=1))
    assert figure.axes[0].get_ylabel() == "return of an evaluation episode"


def test_without_evaluations_it_is_that_of_the_monitor_files(tmp_path: Path) -> None:
    """Of several environments, in the order in which their episodes ended."""
    for number, rows in enumerate([[(-10.0, 5, 1.0), (-6.0, 5, 3.0)], [(-2.0, 10, 2.0)]]):
        text = "".join(f"{r},{length},{t}\n" for r, length, t in rows)
        (tmp_path / f"{number}.monitor.csv").write_text(f'#{{"t_start": 0}}\nr,l,t\n{text}')
    (line,) = draw_curves([tmp_path]).axes[0].get_lines()
    np.testing.assert_array_equal(line.get_xdata(), [5, 15, 20])
    np.testing.assert_allclose(line.get_ydata(), [-10, -6, -6])


def seeds(folder: Path, starts: list[tuple[int, int, float]]) -> None:
    for seed, (first, last, level) in enumerate(starts):
        steps = np.arange(first, last + 1, 100 + 10 * seed)
        lines = [f"{step},{level * np.sqrt(step)}" for step in steps]
        (folder / f"seed_{seed}.csv").write_text("steps,mean\n" + "\n".join(lines) + "\n")


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_mean_and_band_of_seeds_are_of_the_same_numbers(n: int, tmp_path: Path) -> None:
    seeds(tmp_path, [(100, 2000 - 100 * k, 1.0 + k) for k in range(n)])
    figure = draw_curves([tmp_path])
    (line,) = figure.axes[0].get_lines()
    steps, mean = line.get_xdata(), line.get_ydata()
    curves = [np.loadtxt(path, delimiter=",", skiprows=1).T for path in sorted(tmp_path.glob("seed_*.csv"))]
    assert steps[0] >= max(c[0][0] for c in curves) and steps[-1] <= min(c[0][-1] for c in curves)
    np.testing.assert_allclose(mean, np.mean([np.interp(steps, *curve) for curve in curves], axis=0))
    if n == 1:
        assert not figure.axes[0].collections
        return
    band = corners(figure.axes[0].collections[0])
    for step, value in zip(steps, mean, strict=True):
        at = band[band[:, 0] == step][:, 1]
        assert at.min() <= value <= at.max() and at.max() > at.min()
    assert f"({n} seeds)" in line.get_label()


def test_seeds_without_common_steps_are_refused() -> None:
    first, second = (Curve(np.array([start, start + 1.0]), np.zeros(2)) for start in (0.0, 5.0))
    with pytest.raises(ValueError, match="must have steps in common; one begins at 5 and another ends at 1"):
        aggregated([first, second])


def test_runs_are_grouped_by_all_but_their_number(tmp_path: Path) -> None:
    for name in ("erl/Ant-v4_1", "erl/Ant-v4_2", "td3/Ant-v4_1"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "0.monitor.csv").write_text("#{}\nr,l,t\n1.0,1,1.0\n")
    runs = runs_in([tmp_path / "erl", tmp_path / "td3" / "Ant-v4_1"])
    assert {name: len(each) for name, each in grouped(runs).items()} == {"erl/Ant-v4": 2, "td3/Ant-v4": 1}


# -------------------------------------------------------------------- mazes and the command


def test_ends_are_drawn_where_they_are(maze: Path) -> None:
    axes, about = draw_ends(maze).axes[0], read_about(maze / ENDS)
    rows = read_rows(maze / ENDS)
    points = {each.get_label(): each.get_offsets() for each in axes.collections}
    np.testing.assert_array_equal(points["end of an episode"], [(row["x"], row["y"]) for row in rows])
    assert points["goal"].tolist() == [about["map"]["goal"]] and points["start"].tolist() == [about["map"]["start"]]
    drawn = [np.stack([line.get_xdata(), line.get_ydata()], axis=1).tolist() for line in axes.get_lines()]
    assert drawn == about["map"]["lines"] and axes.yaxis_inverted()


def test_the_command_writes_all_there_is(run: Path, maze: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plot([str(run)]) == [run / "population.png", run / "learning_curve.png"]
    assert plot([str(maze)]) == [maze / "population.png", maze / "endpoints.png"]
    assert capsys.readouterr().out.split() == [str(run / n) for n in ("population.png", "learning_curve.png")] + [
        str(maze / n) for n in ("population.png", "endpoints.png")
    ]
    out = tmp_path / "new" / "x.svg"
    assert plot([str(maze), "--output", str(out)]) == [out, out.with_name("x_ends.svg")]
    assert all(path.stat().st_size > 1000 for path in (run / "population.png", out))
    assert plot([str(run), "--kind", "curves", "--output", str(tmp_path / "c.png")]) == [tmp_path / "c.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "there is no 'nowhere'"),
        (["{empty}"], "run must have a population.csv, evaluations.npz, .* there is none in"),
        (["{run}", "--output", "x.abc"], "output must end in one of .*.png.*got 'x.abc'"),
        (["{run}", "{maze}", "--kind", "population"], "run must be a single one for --kind population; got 2"),
        (["{run}", "--kind", "ends"], "run must have an endpoints.csv"),
        (["{run}", "{half}"], "runs must all have evaluations.npz"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    words: list[str], message: str, run: Path, maze: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "empty").mkdir()
    seeds(tmp_path / "half", [(100, 500, 1.0)])
    with pytest.raises(SystemExit):
        plot([word.format(empty=tmp_path / "empty", half=tmp_path / "half", run=run, maze=maze) for word in words])
    text = capsys.readouterr().err
    assert re.search(message, " ".join(text.split())), text


def test_without_matplotlib_the_line_for_pip_is_shown(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = [name for name in sys.modules if name.split(".")[0] in ("matplotlib", "pandas")]
    for name in (*loaded, "matplotlib", "pandas"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pictures need matplotlib; pip install 'sb3-erl\[plots\]'"):
        draw_population(run)
    with pytest.raises(ImportError, match=r"pip install 'sb3-erl\[plots\]', or read .rows"):
        PopulationCallback().table()


# -------------------------------------------------------------------- the parts


def test_diversity_of_many_is_an_estimate_from_some() -> None:
    many = th.randn(500, 50_000, generator=th.Generator().manual_seed(0))
    assert measures.parameter_diversity(many) == pytest.approx(np.sqrt(2 * 50_000), rel=0.01)
    assert np.isnan(measures.parameter_diversity(many[:1]))


def test_observations_are_spread_over_all_steps() -> None:
    few = FixedObservations(8)
    for step in range(1000):
        few.look(np.array([[float(step)]]))
    few.complete(None)  # type: ignore[arg-type]
    assert few.batch is not None and few.batch.shape == (8, 1)  # type: ignore[union-attr]
    assert few.batch.min() < 100 and few.batch.max() > 800 and len(np.unique(few.batch)) == 8  # type: ignore[union-attr]


def test_a_file_begins_anew_with_a_new_run(tmp_path: Path) -> None:
    file = GenerationFile(tmp_path / "a.csv", ("generation", "word"))
    assert file.begin({"env": "A"}, 0) == []
    file.write([{"generation": n, "word": f"w{n}"} for n in (1, 2, 3)])
    file.close()
    kept = GenerationFile(tmp_path / "a.csv", ("generation", "word")).begin({"env": "A"}, 2)
    assert kept == [{"generation": 1, "word": "w1"}, {"generation": 2, "word": "w2"}]
    assert GenerationFile(tmp_path / "a.csv", ("generation", "word")).begin({"env": "B"}, 0) == []
    assert read_rows(tmp_path / "a.csv") == [] and read_about(tmp_path / "a.csv") == {"env": "B"}


def test_running_means_have_no_gap_at_the_beginning() -> None:
    values = np.random.default_rng(0).random(50)
    expected = [values[max(0, i - 6) : i + 1].mean() for i in range(50)]
    np.testing.assert_allclose(running_mean(values, 7), expected)
