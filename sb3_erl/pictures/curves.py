"""Learning curves: what runs leave on disk, put on common steps, with the band of their seeds."""

from __future__ import annotations

import csv
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sb3_erl.pictures.callback import TABLE
from sb3_erl.pictures.drawing import CYCLE, finish, mark_warm_up, new_figure
from sb3_erl.pictures.generation_files import ascending
from sb3_erl.pictures.population_figure import PopulationTable, has_generations, running_mean

EVALUATIONS = "evaluations.npz"
MONITORS = "*monitor.csv"
SEEDS = "*seed_*.csv"
WINDOW = 20
"""Training episodes whose returns are averaged."""


@dataclass(frozen=True)
class Curve:
    """
    Returns of one run.

    :param steps: ``(n,)`` environment steps, ascending
    :param returns: ``(n,)``
    :param warm_up: step at which the learner began to learn, 0 if it is not known or at once
    """

    steps: np.ndarray
    returns: np.ndarray
    warm_up: float = 0.0


def evaluations(folder: pathlib.Path) -> Curve | None:
    """:return: mean returns that an ``EvalCallback`` has measured in this folder, ``None`` without any"""
    path = folder / EVALUATIONS
    if not path.is_file():
        return None
    with np.load(path) as found:
        return Curve(ascending(found["timesteps"].astype(np.float64)), found["results"].mean(axis=1), _warm_up(folder))


def monitored(folder: pathlib.Path) -> Curve | None:
    """:return: returns of training episodes in the monitor files of this folder, running means; ``None`` without any"""
    rows: list[tuple[float, float, float]] = []
    for path in sorted(folder.glob(MONITORS)):
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n") and line[0] != "#"]
        rows += [(float(row["t"]), float(row["l"]), float(row["r"])) for row in csv.DictReader(lines)]
    if not rows:
        return None
    _, lengths, returns = np.array(sorted(rows)).T
    return Curve(np.cumsum(lengths), running_mean(returns, WINDOW), _warm_up(folder))


def tested(path: pathlib.Path) -> Curve | None:
    """:return: the curve in a ``seed_N.csv`` of ``python -m benchmarks.learning``, ``None`` if it is something else"""
    if not path.is_file() or path.suffix != ".csv":
        return None
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"steps", "mean"} <= set(rows[0]):
        return None
    steps, mean = (np.array([float(row[name] or "nan") for row in rows]) for name in ("steps", "mean"))
    return Curve(steps, mean)


def of_deployed(folder: pathlib.Path) -> Curve | None:
    """:return: returns in training of what was deployed, as a ``PopulationCallback`` has noted them; ``None`` without any"""
    if not has_generations(folder):
        return None
    table = PopulationTable(folder)
    known = np.isfinite(table["deployed_return"])
    return Curve(table["timesteps"][known], table["deployed_return"][known], table.warm_up_ends) if known.any() else None


SOURCES: dict[str, tuple[str, Callable[[pathlib.Path], Curve | None]]] = {
    "evaluation": ("return of an evaluation episode", evaluations),
    "tests": ("return of a test episode", tested),
    "training": (f"return of a training episode (mean of {WINDOW})", monitored),
    "deployed": ("latest return of the deployed policy in training", of_deployed),
}
"""Where a curve can come from, best first: name of its vertical axis, and what reads it."""


def _warm_up(folder: pathlib.Path) -> float:
    return PopulationTable(folder).warm_up_ends if has_generations(folder) else 0.0


def runs_in(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """
    :param paths: folders of runs, folders with such folders in them, or files of benchmarks
    :return: runs: folders or files that have a curve or a population
    :raises FileNotFoundError: if a path does not exist, or nothing is found in it
    """
    found: list[pathlib.Path] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"run must be a folder or file of a run; there is no {str(path)!r}")
        own = [path] if _is_run(path) else sorted(path.glob(SEEDS), key=_number) if path.is_dir() else []
        own = own or [each for each in sorted(path.glob("*"), key=_number) if each.is_dir() and _is_run(each)]
        if not own:
            raise FileNotFoundError(
                f"run must have a {TABLE}, {EVALUATIONS}, {MONITORS} or {SEEDS}; there is none in {str(path)!r}. Give the "
                "folder that a run was logged to, such as logs/erl_re2/Pendulum-v1_1"
            )
        found += own
    return list(dict.fromkeys(found))


def _is_run(path: pathlib.Path) -> bool:
    if path.is_file():
        return tested(path) is not None
    return (path / EVALUATIONS).is_file() or (path / TABLE).is_file() or any(path.glob(MONITORS))


def _number(path: pathlib.Path) -> tuple[str, int]:
    stem, number = re.fullmatch(r"(.*?)(\d*)", path.stem).groups()  # type: ignore[union-attr]
    return stem, int(number or 0)


def grouped(runs: Sequence[pathlib.Path]) -> dict[str, list[pathlib.Path]]:
    """
    Runs that differ in their last number are seeds of one thing: ``erl/Pendulum-v1_1`` and ``erl/Pendulum-v1_2``.

    :param runs: folders or files
    :return: runs by what they are seeds of
    """
    groups: dict[str, list[pathlib.Path]] = {}
    for run in runs:
        whole = run.resolve()
        stem = re.sub(r"_\d+$", "", whole.stem if whole.is_file() else whole.name)
        stem = re.sub(r"_?seed$", "", stem) if whole.is_file() else stem
        name = f"{whole.parent.name}/{stem}" if stem else whole.parent.name
        groups.setdefault(name, []).append(run)
    return groups


def choose_source(runs: Sequence[pathlib.Path]) -> tuple[str, list[Curve]]:
    """
    :param runs: folders or files
    :return: name of the vertical axis, and a curve of each run, all of the same kind
    :raises ValueError: if there is no kind of curve that all of them have
    """
    for label, read in SOURCES.values():
        curves = [read(run) for run in runs]
        if all(curve is not None for curve in curves):
            return label, [curve for curve in curves if curve is not None]
    raise ValueError(
        f"runs must all have {EVALUATIONS}, or all monitor files, to be drawn together; got {[str(run) for run in runs]}. "
        "Draw them one by one, or train all with an EvalCallback"
    )


def aggregated(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """
    Put the curves on common steps, from where the last of them begins to where the first ends, and average them there.

    Mean and band are of the same interpolated numbers, so that the mean never leaves the band.

    :param curves: of several seeds
    :return: steps, mean, lower and upper end of the band, ``(n,)`` each: of three or more seeds the 95 % bootstrap interval
        of the mean (percentiles of 2000 resamples), of two their range, of one nothing
    :raises ValueError: if two curves have no steps in common
    """
    first, last = max(curve.steps[0] for curve in curves), min(curve.steps[-1] for curve in curves)
    if first > last:
        raise ValueError(f"runs of one group must have steps in common; one begins at {first:g} and another ends at {last:g}")
    densest = max(curves, key=lambda curve: int(((curve.steps >= first) & (curve.steps <= last)).sum())).steps
    steps = densest[(densest >= first) & (densest <= last)]
    values = np.stack([np.interp(steps, curve.steps, curve.returns) for curve in curves])
    mean = values.mean(axis=0)
    if len(curves) < 3:
        return steps, mean, values.min(axis=0), values.max(axis=0)
    picks = np.random.default_rng(0).integers(len(curves), size=(2000, len(curves)))
    lower, upper = np.percentile(values[picks].mean(axis=1), [2.5, 97.5], axis=0)
    return steps, mean, np.minimum(lower, mean), np.maximum(upper, mean)


def draw_curves(paths: Iterable[pathlib.Path | str]) -> Any:
    """
    :param paths: see :func:`runs_in`
    :return: a :class:`matplotlib.figure.Figure`
    :raises FileNotFoundError: if there is nothing to draw
    :raises ValueError: if runs have no kind of curve in common
    :raises ImportError: without matplotlib
    """
    runs = runs_in(pathlib.Path(path) for path in paths)
    label, curves = choose_source(runs)
    by_run = dict(zip(runs, curves, strict=True))
    figure = new_figure(9, 5.5)
    axes = figure.add_subplot()
    groups = grouped(runs)
    mark_warm_up(axes, max(curve.warm_up for curve in curves) if len(groups) == 1 else 0)
    n_seeds = set()
    for (name, members), color in zip(groups.items(), CYCLE * len(groups), strict=False):
        own = [by_run[run] for run in members]
        steps, mean, lower, upper = aggregated(own)
        n_seeds.add(len(own))
        text = f"{name} ({len(own)} seed{'s' * (len(own) > 1)})"
        if len(own) > 1:
            axes.fill_between(steps, lower, upper, color=color, alpha=0.2, linewidth=0)
        axes.plot(steps, mean, color=color, linewidth=1.8, label=text)
        ends = max(curve.warm_up for curve in own)
        if len(groups) > 1 and ends > 0:
            axes.axvline(ends, color=color, linestyle=":", linewidth=1.2, label=f"warm-up of {name} ends")
    title = "Learning curve" if len(groups) == 1 else "Learning curves"
    if max(n_seeds) > 1:
        band = "95 % interval of the mean" if max(n_seeds) > 2 else "range of the seeds"
        title += f": mean of the seeds, band: {band}"
    finish(axes, title, label, 2)
    return figure
