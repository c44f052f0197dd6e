"""Where the episodes of a population ended, on the map."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from sb3_erl.pictures.callback import ENDS
from sb3_erl.pictures.drawing import BLUE, VERMILION, new_figure
from sb3_erl.pictures.generation_files import read_about, read_rows


def draw_ends(path: pathlib.Path | str) -> Any:
    """
    :param path: folder of a run with ``endpoints.csv``, or that file
    :return: a :class:`matplotlib.figure.Figure`
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if no episode has ended yet
    :raises ImportError: without matplotlib
    """
    path = pathlib.Path(path)
    path = path / ENDS if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"run must have an {ENDS}; there is none in {str(path.parent)!r}. PopulationCallback writes it where environments "
            "report a place, as the mazes do"
        )
    about, rows = read_about(path), read_rows(path)
    if not rows:
        raise ValueError(f"run must have finished a generation; got none in {str(path)!r}. Train it for longer")
    x, y, generations = (np.array([row[name] for row in rows], dtype=np.float64) for name in ("x", "y", "generation"))
    place, figure = about["map"], new_figure(7.5, 6.5)
    axes = figure.add_subplot(aspect="equal")
    for line in place["lines"]:
        axes.plot(*np.array(line).T, color="black", linewidth=2, zorder=2)
    ends = axes.scatter(x, y, c=generations, cmap="cividis", s=9, linewidth=0, zorder=3, label="end of an episode")
    axes.scatter(*place["start"], marker="o", color=BLUE, edgecolor="white", s=70, zorder=4, label="start")
    if place["goal"] is not None:
        axes.scatter(*place["goal"], marker="*", color=VERMILION, edgecolor="white", s=220, zorder=4, label="goal")
    if place["y_points_down"]:
        axes.invert_yaxis()
    axes.set_title(f"{about['algorithm']} on {about['env']}, seed {about['seed']}: where episodes ended", pad=26)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, borderaxespad=0.2)
    axes.set_xlabel("x (units of the map)")
    axes.set_ylabel("y (units of the map)")
    figure.colorbar(ends, label="generation", shrink=0.8)
    return figure
