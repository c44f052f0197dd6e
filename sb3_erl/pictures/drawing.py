"""What all pictures share: colors that color-blind people can tell apart, axes with units, legends that cover nothing."""

from __future__ import annotations

import pathlib
from typing import Any

from sb3_erl.core.extras import missing_extra

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, GRAY = "#56B4E9", "#CC79A7", "#7F7F7F"
"""Okabe & Ito (2008), "Color Universal Design", https://jfly.uni-koeln.de/color/; and a gray."""
CYCLE = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GRAY)
STEPS = "environment steps"


def new_figure(width: float, height: float) -> Any:
    """
    :param width: in inches, as ``height``
    :return: an empty :class:`matplotlib.figure.Figure`, which no window shows
    :raises ImportError: without matplotlib
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("pictures need matplotlib", "plots") from error
    return Figure(figsize=(width, height), layout="constrained")


def finish(axes: Any, title: str, ylabel: str, n_columns: int = 3, others: Any = None, n_rows: int = 0) -> None:
    """
    Give axes over steps their title, names with units, and a legend between title and data.

    :param axes: of matplotlib
    :param title: what is shown
    :param ylabel: of the vertical axis, with its unit
    :param n_columns: entries of the legend in a row
    :param others: further axes in the same place, whose lines belong into the legend
    :param n_rows: rows of the legend for which there is room, at least as many as it has
    """
    handles, labels = axes.get_legend_handles_labels()
    if others is not None:
        more = others.get_legend_handles_labels()
        handles, labels = handles + more[0], labels + more[1]
    n_rows = max(n_rows, -(-len(handles) // n_columns))
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=8 + 15 * n_rows)
    if handles:
        where: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "ncols": n_columns, "borderaxespad": 0.2}
        axes.legend(handles, labels, **where, frameon=False, fontsize=8.5, columnspacing=1.2, handlelength=1.6)
    axes.set_xlabel(STEPS)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25)
    axes.margins(x=0.01)
    axes.set_xlim(left=0)
    axes.spines["top"].set_visible(False)
    thousands(axes)


def marker_of(n: int) -> str:
    """:return: how points of a line are marked, which has to be seen if there are few of them"""
    return "o" if n < 12 else ""


def thousands(axes: Any) -> None:
    """Steps as 10k or 2.5M."""
    axes.xaxis.set_major_formatter(lambda value, _: short(value))


def short(value: float) -> str:
    """
    :param value: a number of steps
    :return: it in a few signs

    >>> short(0), short(2500), short(1e6)
    ('0', '2.5k', '1M')
    """
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def mark_warm_up(axes: Any, until: float) -> None:
    """
    Shade the steps before the learner began to learn.

    :param axes: of matplotlib
    :param until: step at which the warm-up ended, 0 for none
    """
    if until > 0:
        axes.axvspan(0, until, color=GRAY, alpha=0.18, linewidth=0, zorder=0, label="warm-up")


def save(figure: Any, path: pathlib.Path) -> pathlib.Path:
    """
    :param figure: of matplotlib
    :param path: of the picture; its ending says the format
    :return: the path
    :raises ValueError: if the ending is none that matplotlib writes
    """
    known = figure.canvas.get_supported_filetypes()
    if path.suffix.lstrip(".") not in known:
        raise ValueError(f"output must end in one of {', '.join('.' + name for name in sorted(known))}; got {str(path)!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path
