"""The campaign: the report of made-up curves with known answers, and the runner on small runs."""

from __future__ import annotations

import csv
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.campaign import intervals, report, runner
from benchmarks.campaign.curves import at, band, finished, matrices, normalized, read_campaign
from benchmarks.campaign.figures import label_ends, marks_within
from benchmarks.campaign.intervals import interquartile_means, probability_of_improvement
from benchmarks.campaign.plan import read_plan
from benchmarks.campaign.report import write_report
from benchmarks.campaign.runner import REPOSITORY, Workshop, make_runs, missing
from benchmarks.campaign.tables import candidate_table, pair_table, published_table, time_ratio
from benchmarks.evaluation import read_rows

PLAN = """
commit: HEAD
steps: 100
eval_freq: 50
eval_episodes: 2
checkpoint_freq: 50
methods:
  td3: {algo: td3, label: TD3}
  td7: {algo: td7, label: TD7}
  erl_re2_td7: {algo: erl_re2, label: ERL-Re2 on TD7, hyperparams: {learner: td7}}
tasks:
  Slow: {env: Pendulum-v1}
  Fast: {env: Pendulum-v1, hyperparams: {gamma: 0.9}}
order:
  - {seeds: [1], tasks: [Slow, Fast], methods: [td3, td7, erl_re2_td7]}
  - {seeds: [1, 2, 3], tasks: [Slow, Fast], methods: [td7, erl_re2_td7, td3]}
published:
  - {task: Slow, steps: 100000, value: 250, source: a paper}
"""
FINAL = {"td3": (100.0, 1000.0), "td7": (300.0, 1000.0), "erl_re2_td7": (200.0, 3000.0)}
"""Return at the end on the two made-up tasks, of the first seed; each further seed has 10 and 100 more."""


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "REPS", 100)


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.yml"
    path.write_text(PLAN)
    return path


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    for method, finals in FINAL.items():
        for task, final, step in zip(("Slow", "Fast"), finals, (10.0, 100.0), strict=True):
            for seed in (1, 2, 3):
                path = folder / task / f"{method}_seed_{seed}.csv"
                path.parent.mkdir(parents=True, exist_ok=True)
                steps = np.arange(1, 21) * 5000
                value = np.minimum(steps / 80_000, 1.0) * (final + step * (seed - 1))
                seconds = steps / (100.0 if method == "erl_re2_td7" else 200.0)
                columns = {
                    "steps": steps,
                    "mean": value,
                    "reported": value + 5,
                    "train_seconds": seconds,
                    "cpu_seconds": seconds,
                }
                pd.DataFrame(columns).to_csv(path, index=False)
    (folder / "random.json").write_text(json.dumps({"Slow": 0.0, "Fast": 100.0}))
    return folder


def test_the_plan_is_in_order_and_names_each_run_once(plan_file: Path) -> None:
    runs = read_plan(plan_file).runs
    assert len(runs) == len({(run.task, run.method, run.seed) for run in runs}) == 18
    first = [(run.task, run.method, run.seed) for run in runs[:6]]
    assert first == [(task, method, 1) for task in ("Slow", "Fast") for method in ("td3", "td7", "erl_re2_td7")]
    assert runs[5].hyperparams == {"learner": "td7", "gamma": 0.9}
    plan_file.write_text(PLAN.replace("methods: [td3, td7, erl_re2_td7]", "methods: [td9]"))
    with pytest.raises(ValueError, match=r"methods in the order .* got \['td9'\]"):
        read_plan(plan_file)


def test_numbers_of_known_curves(results: Path) -> None:
    curves = read_campaign(results)
    scores = at(curves, {"Slow": 100_000, "Fast": 100_000}, "mean")
    assert len(scores) == 18
    assert scores.set_index(["task", "method", "seed"]).value["Fast", "erl_re2_td7", 2] == 3100.0
    scaled = normalized(scores, {"Slow": 0.0, "Fast": 100.0}, "td3")
    # TD3: means 110 and 1100, so that 1 is 110 on Slow and, above random actions, 1000 on Fast
    assert scaled.set_index(["task", "method", "seed"]).value["Slow", "td7", 1] == pytest.approx(300 / 110)
    assert scaled.set_index(["task", "method", "seed"]).value["Fast", "erl_re2_td7", 3] == pytest.approx(3100 / 1000)
    iqm = interquartile_means(scaled, list(FINAL))
    runs = matrices(scaled, list(FINAL))["td7"]
    middle = np.sort(runs.ravel())[1:5]  # of six runs, a quarter is cut at each end: one, as rliable rounds down
    assert runs.shape == (3, 2) and iqm["td7"].point == pytest.approx(middle.mean())
    assert iqm["td7"].low <= iqm["td7"].point <= iqm["td7"].high
    better = probability_of_improvement(scaled, "td7", "td3")
    assert better is not None
    # on Slow each run of TD7 beats each of TD3; on Fast they are the same three numbers: half
    assert better.point == pytest.approx(0.75)
    assert probability_of_improvement(scaled, "td7", "sac") is None


def test_runs_that_did_not_come_so_far_are_left_out(results: Path) -> None:
    path = results / "Slow" / "td7_seed_3.csv"
    pd.read_csv(path).iloc[:10].to_csv(path, index=False)
    steps = {"Slow": 100_000, "Fast": 100_000}
    scores = at(read_campaign(results), steps, "mean")
    assert len(scores) == 17
    whole = finished(read_campaign(results), steps)
    assert (
        whole.groupby(["task", "method", "seed"]).ngroups == 17
        and whole.groupby(["task", "method", "seed"]).size().min() == 20
    )
    scaled = normalized(scores, {"Slow": 0.0, "Fast": 100.0}, "td3")
    assert matrices(scaled, ["td7", "td3"])["td7"].shape == (2, 2)


def test_policies_of_a_method_stand_side_by_side(results: Path, plan_file: Path) -> None:
    plan_file.write_text(PLAN.replace("steps: 100\n", "steps: 100_000\n"))
    plan = read_plan(plan_file)
    assert candidate_table(read_campaign(results), plan) == ""
    for path in results.glob("*/*.csv"):
        table = pd.read_csv(path).assign(learner_return=7.0)
        if path.name.startswith("erl_re2"):
            table["champion_return"] = 9.0 + int(path.stem[-1])
        table.to_csv(path, index=False)
    text = write_report(results, plan).read_text()
    assert "| ERL-Re2 on TD7 | learner | 7.0 ± 0.0 (3) | 7.0 ± 0.0 (3) |" in text
    assert "| ERL-Re2 on TD7 | champion | 11.0 ± 1.0 (3) | 11.0 ± 1.0 (3) |" in text
    assert "| TD7 | learner |" not in text, "there is nothing to choose"


def test_one_seed_has_no_interval(results: Path) -> None:
    scores = at(read_campaign(results), {"Slow": 100_000, "Fast": 100_000}, "mean")
    single = probability_of_improvement(scores[scores.seed == 1], "td7", "td3")
    assert single is not None and str(single) == "0.75" and np.isnan([single.low, single.high]).all()
    assert "[" in str(probability_of_improvement(scores, "td7", "td3"))


def test_a_method_whose_runs_go_on_takes_no_task_from_the_others(results: Path, plan_file: Path) -> None:
    plan_file.write_text(PLAN.replace("steps: 100\n", "steps: 100_000\n"))
    for seed in (1, 2, 3):
        (results / "Fast" / f"td7_seed_{seed}.csv").unlink()
    text = write_report(results, read_plan(plan_file)).read_text()
    page = text.partition("## Over all tasks")[2].partition("## Curves")[0]
    assert "Slow, Fast" in page or "Fast, Slow" in page
    assert "| TD3 |" in page and "| ERL-Re2 on TD7 |" in page and "| TD7 |" not in page
    for seed in (2, 3):  # of one run there is no interquartile mean
        (results / "Fast" / f"erl_re2_td7_seed_{seed}.csv").unlink()
    page = write_report(results, read_plan(plan_file)).read_text().partition("## Over all tasks")[2].partition("## Curves")[0]
    assert "| TD3 |" in page and "| ERL-Re2 on TD7 |" not in page


def test_the_long_run_is_shown_as_far_as_it_has_come(results: Path, plan_file: Path) -> None:
    methods = "  readme: {algo: erl_re2, label: the long run, steps: 1_000_000}\ntasks:\n  Long: {env: Pendulum-v1}\n"
    order = "order:\n  - {seeds: [1], tasks: [Long], methods: [readme]}\n"
    text = PLAN.replace("steps: 100\n", "steps: 100_000\n").replace("tasks:\n", methods).replace("order:\n", order)
    plan_file.write_text(text)
    (results / "Long").mkdir()
    pd.read_csv(results / "Slow" / "td7_seed_1.csv").iloc[:10].to_csv(results / "Long" / "readme_seed_1.csv", index=False)
    page = write_report(results, read_plan(plan_file)).read_text()
    assert "(long_run.png)" in page and (results / "long_run.png").stat().st_size > 10_000
    assert "of 19 curves, of which 18 are finished" in page and "the long run" not in page


def test_curves_of_another_plan_stand_beside_those_of_a_plan(results: Path, plan_file: Path) -> None:
    methods = "methods:\n  gentle: {algo: erl_re2, label: no resets}\n"
    text = "beside: {plan: [td7]}\n" + PLAN.split("methods:")[0].replace("steps: 100\n", "steps: 100_000\n") + methods
    text += "tasks:\n  Slow: {env: Pendulum-v1}\norder:\n  - {seeds: [1, 2], tasks: [Slow], methods: [gentle]}\n"
    ideas = plan_file.with_name("ideas.yml")
    ideas.write_text(text)
    (results.with_name("ideas") / "Slow").mkdir(parents=True)
    for seed in (1, 2):
        name = f"gentle_seed_{seed}.csv"
        (results / "Slow" / f"erl_re2_td7_seed_{seed}.csv").rename(results.with_name("ideas") / "Slow" / name)
    results = results.rename(results.with_name("plan"))
    page = write_report(results.with_name("ideas"), read_plan(ideas)).read_text()
    assert "of 5 curves, with those of some methods of plan, of which 5 are finished; the plan has 2" in page
    assert "| TD7 | 310 ± 10 (3) |\n| no resets | 205 ± 7 (2) |" in page and "TD3" not in page and "Fast" not in page
    ideas.write_text(text.replace("[td7]", "[td9]"))
    with pytest.raises(ValueError, match=r"beside in ideas.yml must name methods of plan.yml, .* got \['td9'\]"):
        read_plan(ideas)


def test_times_of_different_machines_are_not_compared(results: Path) -> None:
    for method in ("td7", "erl_re2_td7"):
        for seed in (1, 2, 3):
            path = results / "Slow" / f"{method}_seed_{seed}.csv"
            other = method == "td7" and seed != 2
            table = pd.read_csv(path).assign(commit="a", cpu="slow" if other else "fast")
            table[["train_seconds", "cpu_seconds"]] *= 50 if other else 1
            table.to_csv(path, index=False)
    scores = at(read_campaign(results), {"Slow": 100_000}, "mean")
    assert time_ratio(scores, "erl_re2_td7", "td7", "cpu_seconds") == pytest.approx(2.0)
    assert time_ratio(scores[scores.seed != 2], "erl_re2_td7", "td7", "cpu_seconds") is None


def test_wall_times_of_runs_that_waited_are_not_compared(results: Path) -> None:
    path = results / "Slow" / "td7_seed_2.csv"
    table = pd.read_csv(path)
    table.assign(train_seconds=3 * table.train_seconds).to_csv(path, index=False)
    scores = at(read_campaign(results), {"Slow": 100_000}, "mean")
    assert time_ratio(scores, "erl_re2_td7", "td7", "train_seconds") == pytest.approx(2.0)
    assert time_ratio(scores[scores.seed == 2], "erl_re2_td7", "td7", "train_seconds") is None
    assert time_ratio(scores[scores.seed == 2], "erl_re2_td7", "td7", "cpu_seconds") == pytest.approx(2.0)


def test_pictures_show_finished_runs_and_wall_times_of_those_that_did_not_wait(
    results: Path, plan_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_file.write_text(PLAN.replace("steps: 100\n", "steps: 100_000\n"))
    path = results / "Slow" / "td7_seed_2.csv"
    table = pd.read_csv(path)
    table.assign(train_seconds=3 * table.train_seconds).to_csv(path, index=False)
    pd.read_csv(results / "Fast" / "td3_seed_1.csv").iloc[:10].to_csv(results / "Fast" / "td3_seed_1.csv", index=False)
    drawn: dict[str, int] = {}

    def record(curves: pd.DataFrame, plan: object, methods: object, against: str, path: object) -> None:
        drawn[against] = curves.groupby(["task", "method", "seed"]).ngroups

    monkeypatch.setattr(report, "draw_curves", record)
    write_report(results, read_plan(plan_file))
    assert drawn == {"steps": 17, "cpu_seconds": 17, "train_seconds": 16}


def test_published_figures_beyond_the_curves_are_in_the_table_alone(results: Path, plan_file: Path) -> None:
    plan_file.write_text(PLAN + "  - {task: Slow, steps: 300000, value: 400, source: a paper}\n")
    plan = read_plan(plan_file)
    assert [mark["steps"] for mark in marks_within(read_campaign(results), plan, "Slow")] == [100_000]
    assert "| a paper | 300,000 | 400 |" in published_table(plan)


def test_labels_beside_the_curves_do_not_cover_each_other() -> None:
    panel = Figure(figsize=(4.2, 3.2), dpi=100).subplots()
    panel.set_ylim(0, 100)
    label_ends(panel, [(40.0, "n=3", "red"), (80.0, "n=1", "blue"), (41.0, "n=2", "green"), (40.0, "n=4", "black")])
    renderer = FigureCanvasAgg(panel.figure).get_renderer()
    boxes = {text.get_text(): text.get_window_extent(renderer) for text in panel.texts}
    assert [name for name, _ in sorted(boxes.items(), key=lambda item: item[1].y0)] == ["n=3", "n=4", "n=2", "n=1"]
    places = sorted((box.y0, box.y1) for box in boxes.values())
    assert all(below[1] <= above[0] for below, above in itertools.pairwise(places))
    assert min(box.x0 for box in boxes.values()) >= panel.get_window_extent(renderer).x1
    assert panel.texts[-1].xy[1] == 80.0, "one that is in nobody's way stays where its curve ends"


def test_mean_and_band_have_one_interpolation(results: Path) -> None:
    curves = read_campaign(results)
    grid, mean, low, high = band(curves[(curves.task == "Slow") & (curves.method == "td3")], "mean")
    assert grid[0] == 5000 and grid[-1] == 100_000
    assert mean[-1] == pytest.approx(110) and low[-1] == pytest.approx(100) and high[-1] == pytest.approx(120)
    assert np.all(low <= mean) and np.all(mean <= high)


def test_the_report_of_known_curves(results: Path, plan_file: Path) -> None:
    plan_file.write_text(PLAN.replace("steps: 100\n", "steps: 100_000\n"))
    plan = read_plan(plan_file)
    text = write_report(results, plan).read_text()
    assert "| TD7 | 310 ± 10 (3) | 1100 ± 100 (3) |" in text and "| TD7 | 315 ± 10 (3) | 1105 ± 100 (3) |" in text
    rows = pair_table(at(read_campaign(results), {"Slow": 100_000, "Fast": 100_000}, "mean"))
    assert "| a population beside TD7 | Fast (3:3) | Slow (3:3) | 0.50 [" in rows and "| 2.00 times | 2.00 times |" in rows
    assert "## What others report" in text and "| a paper | 100,000 | 250 |" in text
    pictures = [results / f"curves_{name}.png" for name in ("steps", "train_seconds", "cpu_seconds")]
    assert all(path.stat().st_size > 10_000 for path in [*pictures, results / "profiles.png"])
    (results / "random.json").unlink()
    unscaled = write_report(results, plan).read_text()
    assert rows in unscaled and "Interquartile mean" in text and "Interquartile mean" not in unscaled
    with pytest.raises(ValueError, match=r"make campaign"):
        read_campaign(results / "nothing")


class InPlace(Workshop):
    """Makes runs with the code that is being tested."""

    def checkout(self, commit: str) -> tuple[Path, str]:
        return REPOSITORY, sys.executable


@pytest.mark.skipif(not Path("/proc/self/autogroup").is_file(), reason="the system has no groups of sessions")
def test_runs_leave_the_processor_to_programs_of_other_terminals() -> None:
    before = Path("/proc/self/autogroup").read_text()
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        runner.lower_priority_of_session(process.pid)
        assert Path(f"/proc/{process.pid}/autogroup").read_text().endswith("nice 19\n")
        assert Path("/proc/self/autogroup").read_text() == before
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_missing_runs_are_made_and_continued(tmp_path: Path, plan_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "lower_priority", lambda: None)  # of the process of the tests
    sessions: list[int] = []
    monkeypatch.setattr(runner, "lower_priority_of_session", sessions.append)
    monkeypatch.setattr(runner, "_git", lambda *arguments: "abc")
    plan, workshop = read_plan(plan_file), InPlace(tmp_path / "work", tmp_path / "results")
    assert make_runs(plan, workshop, jobs=1, count=1) == 0
    first = plan.runs[0]
    assert workshop.is_finished(first) and next(missing(plan, workshop)) == plan.runs[1] and len(sessions) == 1
    rows = read_rows(workshop.results / first.file)
    assert [row["steps"] for row in rows] == ["50", "100"] and {row["commit"] for row in rows} == {"abc"}
    assert "torch=" in rows[0]["versions"] and rows[0]["cpu"]

    # a curve that was cut is no finished run, and the run is not begun with another commit
    with (workshop.results / first.file).open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerow(rows[0])
    assert not workshop.is_finished(first) and workshop.commit_of(first, "def") == "abc"
    assert make_runs(plan, workshop, jobs=1, count=1) == 0 and workshop.is_finished(first)
