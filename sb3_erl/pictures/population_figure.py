"""The picture of a population: its fitness, its diversity, how old its individuals are and where its best come from."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from sb3_erl.evolution.operators.origins import ORIGINS
from sb3_erl.pictures.callback import TABLE
from sb3_erl.pictures.drawing import BLUE, CYCLE, GRAY, GREEN, ORANGE, VERMILION, finish, mark_warm_up, marker_of, new_figure
from sb3_erl.pictures.generation_files import ascending, read_about, read_rows

ORIGIN_COLORS = dict(zip(ORIGINS, (CYCLE[5], CYCLE[0], CYCLE[2], CYCLE[4], CYCLE[1], GRAY), strict=True))


class PopulationTable:
    """
    What a :class:`~sb3_erl.pictures.callback.PopulationCallback` has written.

    :param path: of the file, or of the folder that it is in
    :raises FileNotFoundError: if there is none
    :raises ValueError: if it has no generation yet
    """

    def __init__(self, path: pathlib.Path):
        self.path = path / TABLE if path.is_dir() else path
        if not self.path.is_file():
            raise FileNotFoundError(
                f"run must have a {TABLE}; there is none in {str(path)!r}. Train with callback=PopulationCallback(folder), in "
                "the Zoo with the hyperparameter callback: sb3_erl.PopulationCallback"
            )
        self.about, self._rows = read_about(self.path), read_rows(self.path)
        if not self._rows:
            raise ValueError(f"run must have finished a generation; got none in {str(self.path)!r}. Train it for longer")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, column: str) -> np.ndarray:
        """
        :param column: of the file, with numbers
        :return: ``(n_generations,)``; timesteps ascend, also over several calls of ``learn``
        """
        values = np.array([row[column] for row in self._rows], dtype=np.float64)
        return ascending(values) if column == "timesteps" else values

    @property
    def warm_up_ends(self) -> float:
        """Step from which on the learner learns: where the first generation after the warm-up ended; 0 without a warm-up."""
        steps, waits = self["timesteps"], self["warm_up"] == 1
        if not waits.any():
            return 0.0
        return float(steps[min(int(np.flatnonzero(waits)[-1]) + 1, len(steps) - 1)])

    @property
    def name(self) -> str:
        """System, environment and seed."""
        about = self.about
        return f"{about.get('algorithm', 'run')} on {about.get('env', 'an environment')}, seed {about.get('seed', 'unknown')}"


def has_generations(folder: pathlib.Path) -> bool:
    """
    :param folder: of a run
    :return: whether a :class:`~sb3_erl.pictures.callback.PopulationCallback` has written a generation there
    """
    return (folder / TABLE).is_file() and bool(read_rows(folder / TABLE))


def draw_population(path: pathlib.Path | str) -> Any:
    """
    :param path: folder of a run with ``population.csv``, or that file
    :return: a :class:`matplotlib.figure.Figure` with four parts
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if it has no generation yet
    :raises ImportError: without matplotlib
    """
    table = PopulationTable(pathlib.Path(path))
    figure = new_figure(12, 8.5)
    figure.suptitle(f"{table.name}: {table.about.get('pop_size', '?')} individuals, {len(table):,} generations", fontsize=13)
    parts = figure.subplots(2, 2)
    for axes, draw in zip(parts.flat, (_fitness, _diversity, _ages, _origins), strict=True):
        mark_warm_up(axes, table.warm_up_ends)
        draw(axes, table)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    return figure


def _fitness(axes: Any, table: PopulationTable) -> None:
    """Quantiles, and where they are returns the learner's and what is deployed."""
    steps, is_return = table["timesteps"], table["fitness_is_return"] == 1
    shown = is_return if is_return.any() else np.isfinite(table["fitness_median"])
    if shown.any():
        ribbon = {name: table[f"fitness_{name}"][shown] for name in ("min", "q25", "median", "q75", "max")}
        axes.fill_between(steps[shown], ribbon["min"], ribbon["max"], color=BLUE, alpha=0.15, linewidth=0, label="all")
        axes.fill_between(steps[shown], ribbon["q25"], ribbon["q75"], color=BLUE, alpha=0.35, linewidth=0, label="middle half")
        marked = {"marker": marker_of(int(shown.sum())), "markersize": 3}
        axes.plot(steps[shown], ribbon["median"], color=BLUE, linewidth=1.6, label="median individual", **marked)
    if is_return.any() or not shown.any():
        for column, color, style, name in (
            ("learner_return", ORANGE, "-", "learner"),
            ("deployed_return", VERMILION, "--", "deployed policy"),
        ):
            known = np.isfinite(table[column])
            if known.any():
                axes.plot(steps[known], table[column][known], style, color=color, linewidth=1.2, label=name)
        finish(axes, "Fitness of the population", "return of an episode (sum of rewards)", n_rows=2)
        return
    finish(axes, "Fitness of the population", f"fitness ({table.about.get('fitness', 'not a return')})", n_rows=2)


def _diversity(axes: Any, table: PopulationTable) -> None:
    """Of parameters on the left, of actions on the right."""
    steps, right = table["timesteps"], axes.twinx()
    for place, column, color, style, name in (
        (axes, "parameter_diversity", GREEN, "-", "parameters (left)"),
        (right, "action_diversity", VERMILION, "--", "actions (right)"),
    ):
        known = np.isfinite(table[column])
        if known.any():
            place.plot(steps[known], table[column][known], style, color=color, linewidth=1.4, label=name)
        place.set_ylim(bottom=0)
    right.set_ylabel("distance of actions, scaled to [-1, 1]")
    right.spines["top"].set_visible(False)
    finish(axes, "Diversity: mean distance of two individuals", "distance of parameters", others=right, n_rows=2)


def _ages(axes: Any, table: PopulationTable) -> None:
    """How long individuals stay, and how many lines of descent are left."""
    steps, lines = table["timesteps"], table["lines"]
    if not np.isfinite(lines).any() and not (table["oldest_age"] > 0).any():
        axes.text(0.5, 0.5, "individuals are new in every generation", ha="center", va="center", transform=axes.transAxes)
        axes.set_yticks([])
        finish(axes, "Ages and lines of descent", "age (generations unchanged)", n_rows=2)
        return
    for column, color, style, name in (
        ("oldest_age", GRAY, ":", "oldest individual"),
        ("elites_age", BLUE, "-", "elites (mean)"),
        ("champion_age", VERMILION, "--", "best individual"),
    ):
        known = np.isfinite(table[column])
        if known.any():
            axes.plot(steps[known], table[column][known], style, color=color, linewidth=1.4, label=name)
    axes.set_ylim(-0.04 * max(axes.get_ylim()[1], 1), max(axes.get_ylim()[1], 1))
    axes.yaxis.get_major_locator().set_params(integer=True)
    known, right = np.isfinite(lines), None
    if known.any():
        right = axes.twinx()
        right.plot(steps[known], lines[known], color=GREEN, linewidth=1.4, drawstyle="steps-post", label="lines left (right)")
        right.set_ylim(-0.04 * max(lines[known].max(), 1), 1.05 * max(lines[known].max(), 1))
        right.yaxis.get_major_locator().set_params(integer=True)
        right.set_ylabel("lines of descent that are left")
        right.spines["top"].set_visible(False)
    finish(axes, "Ages and lines of descent", "age (generations unchanged)", 3, right, n_rows=2)


def _origins(axes: Any, table: PopulationTable) -> None:
    """Stacked shares of how the elites were made, as running means."""
    known = np.isfinite(table["elites_random"])
    if known.any():
        window = running_window(int(known.sum()))
        shares = {kind: running_mean(table[f"elites_{kind}"][known], window) for kind in ORIGINS}
        present = {kind: share for kind, share in shares.items() if share.max() > 0}
        colors = [ORIGIN_COLORS[kind] for kind in present]
        names = [{"sample": "drawn"}.get(kind, kind) for kind in present]
        axes.stackplot(
            table["timesteps"][known], *present.values(), colors=colors, labels=names, alpha=0.85, linewidth=0, step="mid"
        )
        title = "How elites were made" + ("" if window == 1 else f" (mean of {window} generations)")
    else:
        title = "How elites were made"
    axes.set_ylim(0, 1)
    finish(axes, title, "share of the elites", 4, n_rows=2)


def running_window(n: int) -> int:
    """:return: generations over which shares are averaged where there are ``n``"""
    return max(1, n // 30)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """
    :param values: ``(n,)``
    :param window: how many are averaged, at least 1
    :return: ``(n,)`` mean of each and the ones before it

    >>> running_mean(np.array([1.0, 3.0, 5.0]), 2).tolist()
    [1.0, 2.0, 4.0]
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
