"""The tables of the report, in Markdown."""

from __future__ import annotations

import numpy as np
import pandas as pd

from benchmarks.campaign.curves import at, undisturbed
from benchmarks.campaign.intervals import probability_of_improvement
from benchmarks.campaign.plan import Plan

QUESTIONS = (
    ("erl_re2_td7", "td7", "a population beside TD7"),
    ("erl_re2_td7", "td7_warm_up_10k", "a population beside TD7 with as many random steps"),
    ("td7_warm_up_10k", "td7", "TD7 with 10,000 random steps instead of 25,000"),
    ("warm_up_5k", "td7_warm_up_5k", "a population beside TD7 with 5,000 random steps"),
    ("light_pevfa", "erl_re2_td7", "PeVFA's loss times 0.1"),
    ("gentle", "erl_re2_td7", "no resets and super mutations"),
    ("small", "erl_re2_td7", "3 heads, H 50, theta 0.2"),
    ("three_episodes", "erl_re2_td7", "worst of 3 episodes instead of one"),
    ("rare_injection", "erl_re2_td7", "injection every 10 generations"),
    ("warm_up_5k", "erl_re2_td7", "5,000 random steps instead of 10,000"),
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
CANDIDATES = ("learner", "champion", "mean", "checkpoint")
"""Policies of a model that could be deployed; each has a column in the curves."""
ABOUT_POLICIES = (
    "Every policy of a method that could be deployed: the gradient learner's, the champion of the population, the mean of a "
    "distribution, TD7's checkpoint. `predict` acts with the one in the first table."
)
ABOUT_PAIRS = (
    "Numbers of seeds, of the first and of the second, stand in parentheses. Probability of improvement (Agarwal et al. "
    "2021): that a run of the first beats a run of the second on a task of the campaign; the interval is of a stratified "
    "bootstrap (95 %), for which every task needs two seeds. Times are of training alone, without evaluation, of runs of one "
    "commit on one processor. Runs have the lowest priority, so wall times are compared only of those that waited for other "
    "programs less than a fifth of their time."
)


def _tasks(scores: pd.DataFrame, plan: Plan) -> list[str]:
    return [task for task in dict.fromkeys(run.task for run in plan.runs) if task in set(scores.task)]


def _cell(values: pd.Series) -> str:
    digits = 0 if len(values) and values.abs().max() >= 100 else 1
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread} ({len(values)})" if len(values) else ""


def task_table(scores: pd.DataFrame, plan: Plan) -> str:
    """:return: Markdown: mean and standard deviation over seeds of each method on each task, with the number of seeds"""
    tasks = _tasks(scores, plan)
    lines = ["| method | " + " | ".join(tasks) + " |", "|---" * (len(tasks) + 1) + "|"]
    for method, label in plan.labels.items():
        rows = scores[scores.method == method]
        if not rows.empty:
            lines.append(f"| {label} | " + " | ".join(_cell(rows[rows.task == task].value) for task in tasks) + " |")
    return "\n".join(lines)


def candidate_table(curves: pd.DataFrame, plan: Plan) -> str:
    """
    :param curves: see :func:`~benchmarks.campaign.curves.read_campaign`
    :param plan: labels, and the steps at which runs are compared
    :return: Markdown: what each policy of a method reaches that could be deployed, of methods with several; empty without one
    """
    columns = [name for name in CANDIDATES if f"{name}_return" in curves]
    scores = {name: at(curves, plan.compared_at, f"{name}_return").dropna(subset="value") for name in columns}
    tasks = _tasks(curves, plan)
    lines = ["| method | policy | " + " | ".join(tasks) + " |", "|---" * (len(tasks) + 2) + "|"]
    for method, label in plan.labels.items():
        own = {name: rows for name, table in scores.items() if not (rows := table[table.method == method]).empty}
        for name, rows in own.items() if len(own) > 1 else ():
            lines.append(f"| {label} | {name} | " + " | ".join(_cell(rows[rows.task == task].value) for task in tasks) + " |")
    return "\n".join(lines) if len(lines) > 2 else ""


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
        scores = undisturbed(scores)
    seconds = scores[scores.method.isin([one, other])].groupby(["task", "machine", "method"])[column].mean().unstack()
    seconds = seconds.dropna() if {one, other} <= set(seconds.columns) else seconds.iloc[:0]
    return None if seconds.empty else float(np.exp(np.log(seconds[one] / seconds[other]).mean()))
