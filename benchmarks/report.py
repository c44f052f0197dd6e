"""Read finished curves, put them side by side in a plot, and summarize them in numbers."""

import importlib.metadata
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evaluation import read_rows

PACKAGES = ("sb3-erl", "stable-baselines3", "sb3-contrib", "gymnasium", "mujoco", "torch", "numpy")


@dataclass(frozen=True)
class SeedCurve:
    """One seed: evaluation points of shape (n_points,); ``learner`` is NaN where it was not evaluated."""

    seed: int
    steps: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    learner: np.ndarray
    train_seconds: np.ndarray
    total_seconds: np.ndarray


def read_curves(folder: Path) -> list[SeedCurve]:
    """Read every ``seed_N.csv`` of ``folder`` that has at least one evaluation, in the order of the seeds."""
    curves = []
    for path in sorted(folder.glob("seed_*.csv"), key=lambda path: int(path.stem.removeprefix("seed_"))):
        rows = read_rows(path)
        if not rows:
            continue
        columns = {
            key: np.array([float(row[key]) if row[key] != "" else np.nan for row in rows])
            for key in ("steps", "mean", "std", "learner", "train_seconds", "total_seconds")
        }
        curves.append(SeedCurve(seed=int(path.stem.removeprefix("seed_")), **columns))
    return curves


def aggregate(curves: list[SeedCurve], values: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """
    Mean over seeds on a common grid, with an interval.

    The grid is the first curve's steps up to where the shortest curve ends. Three or more seeds: 95 % bootstrap interval
    of the mean (10000 resamples, percentile); two seeds: minimum and maximum; one seed: its mean only.

    :param values: one array per curve, for example ``[curve.mean for curve in curves]``
    :return: steps, mean, lower end, upper end, each of shape (n_points,)
    """
    longest = min(curve.steps[-1] for curve in curves)
    steps = curves[0].steps[curves[0].steps <= longest]
    table = np.stack([np.interp(steps, curve.steps, value) for curve, value in zip(curves, values, strict=True)])
    mean = table.mean(axis=0)
    if len(curves) < 3:
        return steps, mean, table.min(axis=0), table.max(axis=0)
    picks = np.random.default_rng(0).integers(len(curves), size=(10_000, len(curves)))
    lower, upper = np.percentile(table[picks].mean(axis=1), [2.5, 97.5], axis=0)
    return steps, mean, lower, upper


def _legend(label: str, n_seeds: int) -> str:
    interval = {1: "1 seed, +- std of its episodes", 2: "2 seeds, min-max"}
    return f"{label} ({interval.get(n_seeds, f'{n_seeds} seeds, 95 % bootstrap interval')})"


def plot(path: Path, title: str, folders: dict[str, Path]) -> bool:
    """
    Draw the evaluation curves of one or more result folders.

    :param folders: label -> folder with ``seed_N.csv`` files; empty folders are left out
    :return: False if there was nothing to draw
    """
    found = {label: curves for label, folder in folders.items() if (curves := read_curves(folder))}
    if not found:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, (label, curves) in enumerate(found.items()):
        color = f"C{index}"
        steps, mean, lower, upper = aggregate(curves, [curve.mean for curve in curves])
        if len(curves) == 1:
            lower, upper = mean - curves[0].std, mean + curves[0].std
        axes.plot(steps, mean, color=color, label=_legend(label, len(curves)))
        axes.fill_between(steps, lower, upper, color=color, alpha=0.2, linewidth=0)
        if len(curves) > 1:
            for curve in curves:
                axes.plot(curve.steps, curve.mean, color=color, linewidth=0.6, alpha=0.6)
    axes.set_xlabel("environment steps")
    axes.set_ylabel("return of the deployed policy")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    figure.savefig(path, dpi=150)
    return True


def summarize(folder: Path, command: str) -> dict[str, Any]:
    """Write ``summary.json``: last and best evaluation and the time of every seed, the command, the versions used."""
    config = json.loads((folder / "config.json").read_text())
    seeds: dict[str, dict[str, float | bool | None]] = {}
    curves = read_curves(folder)
    for curve in curves:
        best = int(np.argmax(curve.mean))
        learner = curve.learner[-1]
        seeds[str(curve.seed)] = {
            "finished": (folder / f"seed_{curve.seed}.json").is_file(),
            "steps": float(curve.steps[-1]),
            "final": float(curve.mean[-1]),
            "final_std": float(curve.std[-1]),
            "final_learner": None if np.isnan(learner) else float(learner),
            "best": float(curve.mean[best]),
            "best_at_steps": float(curve.steps[best]),
            "train_seconds": float(curve.train_seconds[-1]),
            "total_seconds": float(curve.total_seconds[-1]),
        }
    finals = [float(curve.mean[-1]) for curve in curves]
    summary = {
        "command": command,
        "config": config,
        "final_mean_over_seeds": float(np.mean(finals)) if finals else None,
        "final_std_over_seeds": float(np.std(finals, ddof=1)) if len(finals) > 1 else None,
        "seeds": seeds,
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
        "versions": {package: _version(package) for package in PACKAGES},
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
