"""The report of the campaign, made of the CSVs alone: aggregates with intervals, figures, tables."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rliable import library, metrics

from benchmarks.campaign.curves import at, band, matrices, normalized, read_campaign, undisturbed
from benchmarks.campaign.plan import Plan
from sb3_erl.core.seeding import scoped_generators

# Okabe and Ito's colors, which people with any color vision tell apart; black is kept for published figures
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#5C5C5C")
REPS = 2000
BASELINE = "td3"
LONG_RUN = "readme"
"""The method of one long run, which has a figure of its own and is shown as far as it has come."""
QUESTIONS = (
    ("erl_re2_td7", "td7", "a population beside TD7"),
    ("erl_re2", "erl_re2_no_evolution", "the population in ERL-Re2 on TD3"),
    ("erl_re2", "td3", "ERL-Re2 on TD3 against SB3's TD3"),
    ("td7", "td3", "TD7 against SB3's TD3"),
    ("cem_rl", "td3", "CEM-RL against SB3's TD3"),
    ("evo_rainbow", "td3", "EvoRainbow against SB3's TD3"),
    ("evo_rainbow", "erl_re2", "EvoRainbow against ERL-Re2"),
    ("evo_rainbow_exp", "evo_rainbow_exp_no_soft_update", "the soft update in EvoRainbow-Exp"),
    ("veb_rl_cem", "veb_rl_no_evolution", "VEB-RL (CEM) against its DQN alone"),
    ("veb_rl_ga", "veb_rl_no_evolution", "VEB-RL (GA) against its DQN alone"),
)
"""Pairs (one, other, what it asks)."""
ABOUT_PAIRS = (
    "Numbers of seeds, of the first and of the second, stand in parentheses. Probability of improvement (Agarwal et al. "
    "2021): that a run of the first beats a run of the second on a task of the campaign; the interval is of a stratified "
    "bootstrap (95 %), for which every task needs two seeds. Times are of training alone, without evaluation, of runs of one "
    "commit on one processor. Runs have the lowest priority, so wall times are compared only of those that waited for other "
    "programs less than a fifth of their time."
)


@dataclass(frozen=True)
class Interval:
    """A point estimate with its 95 % interval of a stratified bootstrap; NaN where one seed a task leaves nothing to draw."""

    point: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.point:.2f}" if np.isnan(self.low) else f"{self.point:.2f} [{self.low:.2f}, {self.high:.2f}]"


def _intervals(samples: dict[str, Any], statistic: Any) -> dict[str, Interval]:
    with scoped_generators(np.random.SeedSequence(0)):  # rliable draws from the global generator
        points, bounds = library.get_interval_estimates(samples, statistic, reps=REPS)
    found = {}
    for name, runs in samples.items():
        can_draw = min(len(matrix) for matrix in (runs if isinstance(runs, tuple) else (runs,))) > 1
        low, high = (float(np.ravel(bounds[name][side])[0]) if can_draw else np.nan for side in (0, 1))
        found[name] = Interval(float(np.ravel(points[name])[0]), low, high)
    return found


def interquartile_means(scores: pd.DataFrame, methods: Iterable[str]) -> dict[str, Interval]:
    """
    :param scores: on one scale, see :func:`~benchmarks.campaign.curves.normalized`
    :param methods: compared over the tasks that all of them have
    :return: interquartile mean over runs and tasks of each method; empty if no task has all of them
    """
    found = matrices(scores, list(methods))
    return _intervals(found, lambda runs: np.array([metrics.aggregate_iqm(runs)])) if found else {}


def probability_of_improvement(scores: pd.DataFrame, one: str, other: str) -> Interval | None:
    """
    :param scores: see :func:`~benchmarks.campaign.curves.at`; only their order within a task matters
    :param one: method
    :param other: method
    :return: how probable it is that a run of one beats a run of the other on a task, over the tasks that both have; ``None``
        without such tasks
    """
    found = matrices(scores, [one, other])
    if not found:
        return None
    return _intervals({"pair": (found[one], found[other])}, metrics.probability_of_improvement)["pair"]


# ------------------------------------------------------------------ figures


def _figure(n_columns: int = 1, n_rows: int = 1, width: float = 7.0, height: float = 4.5) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(n_rows, n_columns, squeeze=False)


def draw_curves(curves: pd.DataFrame, plan: Plan, methods: list[str], against: str, path: Path) -> None:
    """
    One panel per task: the deployed policy's return against steps or time, mean over seeds with their extent.

    :param curves: see :func:`~benchmarks.campaign.curves.read_campaign`
    :param plan: labels and published figures
    :param methods: which, in the order of their colors
    :param against: ``"steps"``, ``"train_seconds"`` or ``"cpu_seconds"``
    :param path: of the picture
    """
    curves = curves[curves.method.isin(methods)]
    tasks = [task for task in dict.fromkeys(run.task for run in plan.runs) if task in set(curves.task)]
    n_columns = min(3, len(tasks))
    n_rows = -(-len(tasks) // n_columns)
    figure, axes = _figure(n_columns, n_rows, 4.2 * n_columns, 3.2 * n_rows + 0.9)
    kind = {"train_seconds": "wall time", "cpu_seconds": "CPU time"}.get(against)
    scale, unit = (1000.0, "thousand environment steps") if kind is None else (60.0, f"minutes of training ({kind})")
    for panel, task in zip(axes.flat, tasks, strict=False):
        for index, method in enumerate(methods):
            rows = curves[(curves.task == task) & (curves.method == method)]
            rows = rows[rows[against].notna()] if against in rows else rows.iloc[:0]
            if rows.empty:
                continue
            n_seeds = rows.seed.nunique()
            grid, mean, low, high = band(rows, "mean", against)
            color = COLORS[index % len(COLORS)]
            panel.plot(grid / scale, mean, color=color, label=plan.labels.get(method, method))
            panel.fill_between(grid / scale, low, high, color=color, alpha=0.2, linewidth=0)
            panel.annotate(f"n={n_seeds}", (grid[-1] / scale, mean[-1]), fontsize=7, color=color, ha="right", va="bottom")
        if against == "steps":
            farthest = curves[curves.task == task].steps.max()
            for mark in (mark for mark in plan.published if mark["task"] == task and mark["steps"] <= farthest):
                place = (mark["steps"] / scale, mark["value"])
                panel.plot(*place, "*", color="black", markersize=8, clip_on=False)
                panel.annotate(f"{mark['source']}  ", place, fontsize=7, ha="right", va="center")
        panel.set_title(task, fontsize=10)
        panel.set_xlabel(unit)
        panel.grid(alpha=0.3)
    for panel in list(axes.flat)[len(tasks) :]:
        panel.set_visible(False)
    for row in axes:
        row[0].set_ylabel("return of the deployed policy")
    handles = {label: handle for panel in axes.flat for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, 2 * n_columns), fontsize=8)
    title = "Mean over seeds (n), band from the worst to the best seed; stars: published figures"
    figure.suptitle(textwrap.fill(title, 52 * n_columns), fontsize=10)
    figure.savefig(path, dpi=110)


def draw_profiles(scores: pd.DataFrame, plan: Plan, methods: list[str], path: Path) -> bool:
    """
    Performance profiles: the share of runs above each score.

    :param scores: on one scale
    :param plan: labels
    :param methods: which
    :param path: of the picture
    :return: whether there is a task that all methods have
    """
    found = matrices(scores, methods)
    if not found:
        return False
    taus = np.linspace(min(0.0, *(runs.min() for runs in found.values())), max(runs.max() for runs in found.values()), 101)
    with scoped_generators(np.random.SeedSequence(0)):
        profiles, bounds = library.create_performance_profile(found, taus, reps=REPS // 4)
    figure, axes = _figure()
    panel = axes[0, 0]
    for index, method in enumerate(found):
        color = COLORS[index % len(COLORS)]
        panel.plot(taus, profiles[method], color=color, label=plan.labels.get(method, method))
        panel.fill_between(taus, *bounds[method], color=color, alpha=0.15, linewidth=0)
    panel.set_xlabel(f"score (0: random actions, 1: mean of {plan.labels.get(BASELINE, BASELINE)})")
    panel.set_ylabel("share of runs with a higher score")
    panel.set_title("Performance profiles")
    panel.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=110)
    return True


# ------------------------------------------------------------------ tables


def task_table(scores: pd.DataFrame, plan: Plan) -> str:
    """:return: Markdown: mean and standard deviation over seeds of each method on each task, with the number of seeds"""
    tasks = [task for task in dict.fromkeys(run.task for run in plan.runs) if task in set(scores.task)]
    lines = ["| method | " + " | ".join(tasks) + " |", "|---" * (len(tasks) + 1) + "|"]
    for method, label in plan.labels.items():
        rows = scores[scores.method == method]
        if rows.empty:
            continue
        cells = []
        for task in tasks:
            values = rows[rows.task == task].value
            digits = 0 if len(values) and values.abs().max() >= 100 else 1
            spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.{digits}f}{spread} ({len(values)})" if len(values) else "")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def published_table(plan: Plan) -> str:
    """:return: Markdown: what others report at how many steps, by task"""
    tasks = list(dict.fromkeys(mark["task"] for mark in plan.published))
    lines = ["| source | steps | " + " | ".join(tasks) + " |", "|---" * (len(tasks) + 2) + "|"]
    for source, steps in dict.fromkeys((mark["source"], mark["steps"]) for mark in plan.published):
        values = {mark["task"]: mark["value"] for mark in plan.published if (mark["source"], mark["steps"]) == (source, steps)}
        lines.append(f"| {source} | {steps:,} | " + " | ".join(str(values.get(task, "")) for task in tasks) + " |")
    return "\n".join(lines)


def pair_table(scores: pd.DataFrame) -> str:
    """:return: Markdown: for each question, on which tasks the one is better, and how probable a better run is"""
    lines = ["| question | better on | worse on | probability of improvement | wall time | CPU time |", "|---" * 6 + "|"]
    for one, other, question in QUESTIONS:
        means = scores[scores.method.isin([one, other])].groupby(["task", "method"]).value.mean().unstack()
        means = means.dropna() if {one, other} <= set(means.columns) else means.iloc[:0]
        if means.empty:
            continue
        n_seeds = scores[scores.method.isin([one, other])].groupby(["task", "method"]).size().unstack().loc[means.index]
        is_better = means[one] > means[other]
        cells = [
            ", ".join(f"{task} ({n_seeds[one][task]:.0f}:{n_seeds[other][task]:.0f})" for task in means.index[chosen])
            for chosen in (is_better, ~is_better)
        ]
        probability = probability_of_improvement(scores, one, other)
        ratios = [time_ratio(scores, one, other, column) for column in ("train_seconds", "cpu_seconds")]
        times = ["" if ratio is None else f"{ratio:.2f} times" for ratio in ratios]
        lines.append("| " + " | ".join([question, *cells, str(probability or ""), *times]) + " |")
    return "\n".join(lines)


def time_ratio(scores: pd.DataFrame, one: str, other: str, column: str) -> float | None:
    """
    How long one method takes, in units of another; only runs of one commit on one processor are compared.

    Wall times are those of runs, each of one thread, that waited for other programs less than a fifth of the time.

    :param scores: see :func:`~benchmarks.campaign.curves.at`
    :param one: method
    :param other: method
    :param column: ``"train_seconds"`` or ``"cpu_seconds"``
    :return: geometric mean over tasks, ``None`` without a pair of comparable runs
    """
    if column == "train_seconds":
        scores = undisturbed(scores.assign(steps=0))
    seconds = scores[scores.method.isin([one, other])].groupby(["task", "machine", "method"])[column].mean().unstack()
    seconds = seconds.dropna() if {one, other} <= set(seconds.columns) else seconds.iloc[:0]
    return None if seconds.empty else float(np.exp(np.log(seconds[one] / seconds[other]).mean()))


def main_tasks(plan: Plan) -> list[str]:
    """:return: tasks on which at least half of the methods are to be run, in the order of the plan"""
    methods: dict[str, set[str]] = {}
    for run in plan.runs:
        methods.setdefault(run.task, set()).add(run.method)
    return [task for task, names in methods.items() if 2 * len(names) >= len(plan.labels)]


def complete_methods(scores: pd.DataFrame, plan: Plan) -> list[str]:
    """
    :param scores: of the tasks that are aggregated
    :param plan: methods in their order
    :return: methods that have runs on all of these tasks: a method whose runs go on does not take tasks from the others
    """
    tasks = set(scores.task)
    return [name for name in plan.labels if tasks and set(scores[scores.method == name].task) == tasks]


def _aggregates(scores: pd.DataFrame, plan: Plan, folder: Path) -> list[str]:
    """:return: parts of the page about scores on one scale; none without a method that has all tasks of the baseline"""
    methods = complete_methods(scores, plan)
    means = interquartile_means(scores, methods) if methods else {}
    if not means or not draw_profiles(scores, plan, methods, folder / "profiles.png"):
        return []
    lines = ["| method | interquartile mean [95 %] |", "|---|---|"]
    lines += [f"| {plan.labels[name]} | {value} |" for name, value in means.items()]
    return [
        "## Over all tasks",
        f"Interquartile mean of the score on {', '.join(dict.fromkeys(scores.task))}, of the methods that have runs on all of "
        f"them; 0 is a random policy, 1 the mean of {plan.labels[BASELINE]}.",
        "\n".join(lines),
        "![Performance profiles](profiles.png)",
    ]


def write_report(results: Path, plan: Plan) -> Path:
    """
    Write ``report.md`` and its pictures beside the curves.

    :param results: folder with the curves, and ``random.json``: the return of random actions by task, without which scores
        are not put on one scale
    :param plan: labels, order of tasks, steps at which runs on each task are compared, published figures
    :return: the page
    """
    curves = read_campaign(results)
    zero = json.loads(path.read_text()) if (path := results / "random.json").is_file() else {}
    steps = plan.compared_at
    deployed, reported = at(curves, steps, "mean"), at(curves, steps, "reported")
    scaled = normalized(deployed[deployed.task.isin(main_tasks(plan))], zero, BASELINE)
    shown = [name for name in plan.labels if name in set(deployed.method) and name != LONG_RUN]
    pictures = []
    for against in ("steps", "train_seconds", "cpu_seconds"):
        drawn = undisturbed(curves) if against == "train_seconds" else curves
        if set(shown) & set(drawn.method):
            draw_curves(drawn, plan, shown, against, results / f"curves_{against}.png")
            pictures.append(f"![Curves](curves_{against}.png)")
    n_runs = curves.groupby(["task", "method", "seed"]).ngroups
    parts = [
        "# Report of the campaign",
        f"Made by `python -m benchmarks.campaign report --plan {plan.name}` of {n_runs} curves, of which {len(deployed)} are "
        f"finished. Tables are at {' or '.join(f'{n:,}' for n in sorted(set(steps.values())))} steps: the mean of the last "
        "three evaluations of ten episodes each, mean ± standard deviation over seeds (number of seeds).",
        "## What `predict` acts with",
        task_table(deployed, plan),
        "## Best of the candidates that the authors report",
        "For comparison with published figures; a maximum over several policies is biased upwards.",
        task_table(reported, plan),
    ]
    if plan.published:
        parts += ["## What others report", "Not measured here, some of it read off figures.", published_table(plan)]
    parts += ["## Does it pay?", pair_table(deployed), ABOUT_PAIRS, *_aggregates(scaled, plan, results)]
    parts += ["## Curves", *pictures]
    if LONG_RUN in set(curves.method):
        draw_curves(curves, plan, [LONG_RUN], "steps", results / "long_run.png")
        parts += ["## The long run", "As far as it has come.", "![Curve](long_run.png)"]
    page = results / "report.md"
    page.write_text("\n\n".join(parts) + "\n")
    return page
