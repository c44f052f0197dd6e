"""Read finished curves, put them side by side in a plot, and summarize them in numbers."""

import importlib.metadata
import json
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evaluation import LOGGED, RETURN, read_rows

PACKAGES = ("sb3-erl", "stable-baselines3", "sb3-contrib", "gymnasium", "mujoco", "torch", "numpy")


@dataclass(frozen=True)
class SeedCurve:
    """
    One seed: evaluation points of shape (n_points,).

    :param mean: of the deployed policy's returns
    :param std: of the same
    :param reported: what the authors would report; NaN in curves of earlier versions, which did not test it
    :param candidates: mean returns of learner, champion and whatever else was tested, NaN where it was not
    """

    seed: int
    steps: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    reported: np.ndarray
    train_seconds: np.ndarray
    total_seconds: np.ndarray
    candidates: dict[str, np.ndarray] = field(default_factory=dict)


def read_curves(folder: Path) -> list[SeedCurve]:
    """Read every ``seed_N.csv`` of ``folder`` that has at least one evaluation, in the order of the seeds."""
    curves = []
    for path in sorted(folder.glob("seed_*.csv"), key=lambda path: int(path.stem.removeprefix("seed_"))):
        rows = read_rows(path)
        if not rows:
            continue
        columns: dict[str, Any] = {
            key: _numbers(rows, key) for key in ("steps", "mean", "std", "reported", "train_seconds", "total_seconds")
        }
        tested = {key.removesuffix(RETURN): key for key in rows[0] if key.endswith(RETURN) and key not in LOGGED}
        if "learner" in rows[0]:  # of earlier versions, whose column "champion" held no test
            tested.setdefault("learner", "learner")
        columns["candidates"] = {name: _numbers(rows, key) for name, key in tested.items()}
        curves.append(SeedCurve(seed=int(path.stem.removeprefix("seed_")), **columns))
    return curves


def _numbers(rows: list[dict[str, str]], key: str) -> np.ndarray:
    """A column, NaN where it is empty or missing."""
    return np.array([float(row.get(key) or np.nan) for row in rows])


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
        reported = [curve.reported for curve in curves]
        if any((np.abs(curve.reported - curve.mean) > 0).any() for curve in curves):
            steps, mean, _, _ = aggregate(curves, reported)
            axes.plot(steps, mean, color=color, linestyle="--", label=f"{label}: what the authors would report")
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
    """
    Write ``summary.json``: last and best evaluation and the time of every seed, the command, the versions used.

    Without another word, numbers are those of the deployed policy; only ``reported`` may stand beside a published number.
    """
    config = json.loads((folder / "config.json").read_text())
    seeds: dict[str, dict[str, float | bool | None]] = {}
    curves = read_curves(folder)
    for curve in curves:
        best = int(np.argmax(curve.mean))
        reported = None if np.isnan(curve.reported[-1]) else float(curve.reported[-1])
        seeds[str(curve.seed)] = {
            "finished": (folder / f"seed_{curve.seed}.json").is_file(),
            "steps": float(curve.steps[-1]),
            "final": float(curve.mean[-1]),
            "final_std": float(curve.std[-1]),
            "final_reported": reported,
            **{f"final_{name}": None if np.isnan(c[-1]) else float(c[-1]) for name, c in curve.candidates.items()},
            "best": float(curve.mean[best]),
            "best_at_steps": float(curve.steps[best]),
            "train_seconds": float(curve.train_seconds[-1]),
            "total_seconds": float(curve.total_seconds[-1]),
        }
    finals = [float(curve.mean[-1]) for curve in curves]
    reported_finals = [float(curve.reported[-1]) for curve in curves if not np.isnan(curve.reported[-1])]
    summary = {
        "command": command,
        "config": config,
        "final_mean_over_seeds": float(np.mean(finals)) if finals else None,
        "final_reported_mean_over_seeds": float(np.mean(reported_finals)) if reported_finals else None,
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
