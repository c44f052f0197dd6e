"""The report of the campaign, made of the CSVs alone: aggregates with intervals, figures, tables."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from benchmarks.campaign.curves import at, finished, normalized, read_campaign, undisturbed
from benchmarks.campaign.figures import draw_curves, draw_profiles
from benchmarks.campaign.intervals import interquartile_means
from benchmarks.campaign.plan import BASELINE, LONG_RUN, Plan
from benchmarks.campaign.tables import ABOUT_PAIRS, ABOUT_POLICIES, candidate_table, pair_table, published_table, task_table


def main_tasks(plan: Plan) -> list[str]:
    """:return: tasks on which at least half of the methods are to be run, in the order of the plan"""
    methods: dict[str, set[str]] = {}
    for run in plan.runs:
        methods.setdefault(run.task, set()).add(run.method)
    return [task for task, names in methods.items() if 2 * len(names) >= len(set().union(*methods.values()))]


def complete_methods(scores: pd.DataFrame, plan: Plan) -> list[str]:
    """
    :param scores: of the tasks that are aggregated
    :param plan: methods in their order
    :return: methods that have two seeds on all of these tasks: a method whose runs go on does not take tasks from the others,
        and of one run on each of a few tasks there is no interquartile mean
    """
    tasks = set(scores.task)
    n_runs = scores.groupby(["method", "task"]).size().unstack(fill_value=0)
    return [name for name in plan.labels if tasks and name in n_runs.index and n_runs.loc[name].min() >= 2]


def _aggregates(scores: pd.DataFrame, plan: Plan, folder: Path) -> list[str]:
    """:return: parts of the page about scores on one scale; none before the baseline has two tasks"""
    methods = complete_methods(scores, plan)
    if scores.task.nunique() < 2 or not methods:
        return []
    means = interquartile_means(scores, methods)
    draw_profiles(scores, plan, methods, folder / "profiles.png")
    lines = ["| method | interquartile mean [95 %] |", "|---|---|"]
    lines += [f"| {plan.labels[name]} | {value} |" for name, value in means.items()]
    return [
        "## Over all tasks",
        f"Interquartile mean of the score on {', '.join(dict.fromkeys(scores.task))}, of the methods with two seeds on all "
        f"of them; 0 is a random policy, 1 the mean of {plan.labels[BASELINE]}.",
        "\n".join(lines),
        "![Performance profiles](profiles.png)",
    ]


def all_curves(results: Path, plan: Plan) -> pd.DataFrame:
    """:return: the plan's curves, and those of other plans that are shown beside them, on its tasks"""
    tables, tasks = [read_campaign(results)], {run.task for run in plan.runs}
    for other, names in plan.beside.items():
        curves = read_campaign(results.with_name(other))
        tables.append(curves[curves.method.isin(names) & curves.task.isin(tasks)])
    return pd.concat(tables, ignore_index=True)


def write_report(results: Path, plan: Plan) -> Path:
    """
    Write ``report.md`` and its pictures beside the curves.

    :param results: folder with the curves, and ``random.json``: the return of random actions by task, without which scores
        are not put on one scale
    :param plan: labels, order of tasks, steps at which runs on each task are compared, published figures
    :return: the page
    """
    curves = all_curves(results, plan)
    zero = json.loads(path.read_text()) if (path := results / "random.json").is_file() else {}
    steps = plan.compared_at
    deployed, reported = at(curves, steps, "mean"), at(curves, steps, "reported")
    scaled = normalized(deployed[deployed.task.isin(main_tasks(plan))], zero, BASELINE)
    shown = [name for name in plan.labels if name in set(deployed.method) and name != LONG_RUN]
    pictures, whole = [], finished(curves, steps)
    for against in ("steps", "train_seconds", "cpu_seconds"):
        drawn = undisturbed(whole) if against == "train_seconds" else whole
        if set(shown) & set(drawn.method):
            draw_curves(drawn, plan, shown, against, results / f"curves_{against}.png")
            pictures.append(f"![Curves](curves_{against}.png)")
    n_runs = curves.groupby(["task", "method", "seed"]).ngroups
    others = f", with those of some methods of {' and '.join(plan.beside)}" if plan.beside else ""
    parts = [
        "# Report of the campaign",
        f"Made by `python -m benchmarks.campaign report --plan {plan.name}` of {n_runs} curves{others}, of which "
        f"{len(deployed)} are finished; the plan has {len(plan.runs)}. "
        f"Tables are at {' or '.join(f'{n:,}' for n in sorted(set(steps.values())))} steps: the mean of the last "
        "three evaluations of ten episodes each, mean ± standard deviation over seeds (number of seeds).",
        "## What `predict` acts with",
        task_table(deployed, plan),
        "## Best of the candidates that the authors report",
        "For comparison with published figures; a maximum over several policies is biased upwards.",
        task_table(reported, plan),
    ]
    if policies := candidate_table(curves, plan):
        parts += ["## Which policy to deploy", ABOUT_POLICIES, policies]
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
