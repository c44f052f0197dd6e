"""The pictures of the report."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.campaign.curves import band
from benchmarks.campaign.intervals import performance_profiles
from benchmarks.campaign.plan import BASELINE, Plan

# Okabe and Ito's colors, which people with any color vision tell apart; black is kept for published figures
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#5C5C5C")


def _style(index: int) -> dict[str, str]:
    """:return: of the line of a method; where colors are used again, it is dashed"""
    return {"color": COLORS[index % len(COLORS)], "linestyle": "-" if index < len(COLORS) else "--"}


def _figure(n_columns: int = 1, n_rows: int = 1, width: float = 7.0, height: float = 4.5) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(n_rows, n_columns, squeeze=False)


def marks_within(curves: pd.DataFrame, plan: Plan, task: str) -> list[dict[str, Any]]:
    """:return: published figures of a task at steps that its curves reach: later ones would squeeze the curves"""
    farthest = curves[curves.task == task].steps.max()
    return [mark for mark in plan.published if mark["task"] == task and mark["steps"] <= farthest]


def label_ends(panel: Any, ends: list[tuple[float, str, str]]) -> None:
    """Texts beside the panel, at the heights where curves end, apart where they would cover each other."""
    low, high = panel.get_ylim()
    y = -float("inf")
    for height, text, color in sorted(ends):
        y = max(height, y + 0.06 * (high - low))
        panel.annotate(text, (1.01, y), xycoords=("axes fraction", "data"), fontsize=7, color=color, va="center")


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
        ends: list[tuple[float, str, str]] = []
        for index, method in enumerate(methods):
            rows = curves[(curves.task == task) & (curves.method == method)]
            rows = rows[rows[against].notna()] if against in rows else rows.iloc[:0]
            if rows.empty:
                continue
            n_seeds = rows.seed.nunique()
            grid, mean, low, high = band(rows, "mean", against)
            style = _style(index)
            panel.plot(grid / scale, mean, label=plan.labels.get(method, method), **style)
            panel.fill_between(grid / scale, low, high, color=style["color"], alpha=0.2, linewidth=0)
            ends.append((float(mean[-1]), f"n={n_seeds}", style["color"]))
        if against == "steps":
            for mark in marks_within(curves, plan, task):
                place = (mark["steps"] / scale, mark["value"])
                panel.plot(*place, "*", color="black", markersize=8, clip_on=False)
                panel.annotate(f"{mark['source']}  ", place, fontsize=7, ha="right", va="center")
        label_ends(panel, ends)
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


def draw_profiles(scores: pd.DataFrame, plan: Plan, methods: list[str], path: Path) -> None:
    """
    Performance profiles: the share of runs above each score.

    :param scores: on one scale
    :param plan: labels
    :param methods: which
    :param path: of the picture
    """
    taus, profiles, bounds = performance_profiles(scores, methods)
    figure, axes = _figure()
    panel = axes[0, 0]
    for index, method in enumerate(methods):
        style = _style(index)
        panel.plot(taus, profiles[method], label=plan.labels.get(method, method), **style)
        panel.fill_between(taus, *bounds[method], color=style["color"], alpha=0.15, linewidth=0)
    panel.set_xlabel(f"score (0: random actions, 1: mean of {plan.labels.get(BASELINE, BASELINE)})")
    panel.set_ylabel("share of runs with a higher score")
    panel.set_title("Performance profiles")
    panel.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=110)
