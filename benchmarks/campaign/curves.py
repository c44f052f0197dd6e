"""The CSVs of the campaign as one table, and the numbers that a report needs of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd


def read_campaign(results: Path) -> pd.DataFrame:
    """
    :param results: folder with ``<task>/<method>_seed_<n>.csv``
    :return: all rows, with the columns ``task``, ``method`` and ``seed`` in front
    :raises ValueError: if there is no curve in it
    """
    tables = []
    for path in sorted(results.glob("*/*_seed_*.csv")):
        method, _, seed = path.stem.rpartition("_seed_")
        table = pd.read_csv(path)
        table.insert(0, "task", path.parent.name)
        table.insert(1, "method", method)
        table.insert(2, "seed", int(seed))
        tables.append(table)
    if not tables:
        raise ValueError(f"results must hold curves, <task>/<method>_seed_<n>.csv; got none in {results}. Run `make campaign`")
    return pd.concat(tables, ignore_index=True)


def at(curves: pd.DataFrame, steps: Mapping[str, int], column: str) -> pd.DataFrame:
    """
    Returns of finished runs.

    :param curves: see :func:`read_campaign`
    :param steps: where runs on a task are compared; a run that did not come so far is left out
    :param column: ``"mean"`` for the deployed policy, ``"reported"`` for the best of the candidates that the authors report
    :return: ``task``, ``method``, ``seed``, ``value``: the mean over the last three evaluations up to ``steps``, so that one
        lucky evaluation of ten episodes does not decide; ``train_seconds`` and ``cpu_seconds`` at ``steps``; ``machine``:
        commit and processor
    """
    rows = []
    for (task, method, seed), curve in finished(curves, steps).groupby(["task", "method", "seed"], sort=False):
        curve = curve.sort_values("steps")
        last = curve[curve.steps <= steps[task]].iloc[-3:]
        seconds = {name: last[name].iloc[-1] if name in last else np.nan for name in ("train_seconds", "cpu_seconds")}
        machine = " ".join(str(last[name].iloc[-1]) for name in ("commit", "cpu") if name in last)
        rows.append(
            {"task": task, "method": method, "seed": seed, "value": last[column].mean(), **seconds, "machine": machine}
        )
    return pd.DataFrame(rows, columns=["task", "method", "seed", "value", "train_seconds", "cpu_seconds", "machine"])


def finished(curves: pd.DataFrame, steps: Mapping[str, int]) -> pd.DataFrame:
    """
    :param curves: see :func:`read_campaign`
    :param steps: where runs on a task are compared
    :return: rows of runs that came so far
    """
    last = curves.groupby(["task", "method", "seed"]).steps.transform("max")
    return curves[last >= curves.task.map(steps)]


WAITING = 1.25
"""Wall time over CPU time above which a run, of one thread, counts as one that waited for other programs."""


def undisturbed(curves: pd.DataFrame) -> pd.DataFrame:
    """
    :param curves: see :func:`read_campaign`, or :func:`at`
    :return: rows of runs that had a core to themselves, so that their wall time says something about the method
    """
    last = curves.groupby(["task", "method", "seed"])[["train_seconds", "cpu_seconds"]].transform("max")
    return curves[last.train_seconds < WAITING * last.cpu_seconds]


def normalized(scores: pd.DataFrame, random: dict[str, float], baseline: str) -> pd.DataFrame:
    """
    Scores on one scale over tasks: 0 is a random policy, 1 the mean of the baseline.

    :param scores: see :func:`at`
    :param random: return of random actions, by task
    :param baseline: method whose mean is 1
    :return: the scores of tasks that the baseline was run on, with ``value`` on this scale
    """
    one = scores[scores.method == baseline].groupby("task").value.mean()
    known = scores[scores.task.isin([task for task in one.index if task in random])].copy()
    zero = known.task.map(random)
    known["value"] = (known.value - zero) / (known.task.map(one) - zero)
    return known


def matrices(scores: pd.DataFrame, methods: Sequence[str]) -> dict[str, np.ndarray]:
    """
    :param scores: see :func:`normalized`
    :param methods: to be compared with one another
    :return: ``(n_seeds, n_tasks)`` for each of them, over the tasks that all of them have, with as many seeds as each task
        of the method has
    """
    chosen = scores[scores.method.isin(methods)]
    counts = chosen.groupby(["task", "method"]).size().unstack(fill_value=0).reindex(columns=list(methods), fill_value=0)
    tasks = list(counts.index[(counts > 0).all(axis=1)])
    found = {}
    for method in methods if tasks else ():
        values = [chosen[(chosen.method == method) & (chosen.task == task)].sort_values("seed").value for task in tasks]
        n_seeds = min(len(value) for value in values)
        found[method] = np.stack([value.to_numpy()[:n_seeds] for value in values], axis=1)
    return found


def band(curves: pd.DataFrame, column: str, against: str = "steps") -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """
    Mean and extent over the seeds of one method on one task, both of the same interpolation.

    :param curves: rows of these runs
    :param column: what is averaged
    :param against: the horizontal axis: ``"steps"``, ``"train_seconds"`` or ``"cpu_seconds"``
    :return: position, mean, lowest, highest, each ``(50,)``, up to where the shortest run ends
    """
    runs = [run.sort_values(against) for _, run in curves.groupby("seed")]
    runs = [run[run[column].notna()] for run in runs]
    low, high = max(run[against].iloc[0] for run in runs), min(run[against].iloc[-1] for run in runs)
    grid = np.linspace(low, high, 50)
    table = np.stack([np.interp(grid, run[against], run[column]) for run in runs])
    return grid, table.mean(axis=0), table.min(axis=0), table.max(axis=0)
