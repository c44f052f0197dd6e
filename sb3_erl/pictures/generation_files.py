"""Tables in files with one or more rows per generation, which a resumed run continues without a row twice."""

from __future__ import annotations

import csv
import io
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from sb3_erl.core.atomic_files import make_folder, replacing

KEY = "generation"


class GenerationFile:
    """
    A CSV file whose first line is a comment with facts about the run, as in SB3's monitor files.

    :param path: of the file
    :param columns: the first of them is ``"generation"``
    """

    def __init__(self, path: pathlib.Path, columns: Sequence[str]):
        self.path, self.columns = path, list(columns)
        self._file: Any = None

    def begin(self, about: dict[str, Any], n_generations: int) -> list[dict[str, Any]]:
        """
        Open the file; rows of generations that will be repeated are removed, and so is one that a kill has cut.

        :param about: facts about the run, for the first line
        :param n_generations: generations that the model has finished; without any the file begins anew
        :return: the rows that are kept
        """
        self.close()
        kept = [row for row in read_rows(self.path) if int(row[KEY]) <= n_generations] if self.path.exists() else []
        text = io.StringIO()
        text.write(f"#{json.dumps(about)}\n")
        writer = csv.DictWriter(text, self.columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        make_folder(self.path.parent)
        with replacing(self.path, self.path.suffix) as temporary:
            temporary.write_text(text.getvalue())
        self._file = open(self.path, "a", newline="")
        return kept

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """:param rows: of one generation, appended"""
        text = io.StringIO()
        csv.DictWriter(text, self.columns, restval="", lineterminator="\n").writerows(rows)
        self._file.write(text.getvalue())
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_about(path: pathlib.Path) -> dict[str, Any]:
    """
    :param path: of a :class:`GenerationFile`
    :return: facts about the run
    """
    with open(path) as file:
        line = file.readline()
    return json.loads(line[1:]) if line.startswith("#") else {}


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """
    :param path: of a :class:`GenerationFile`
    :return: its rows; numbers are numbers, empty cells NaN, and a last line without its end is left out
    """
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n") and not line.startswith("#")]
    return [{name: _value(cell) for name, cell in row.items()} for row in csv.DictReader(whole) if row[KEY]]


def ascending(steps: np.ndarray) -> np.ndarray:
    """
    :param steps: ``(n,)`` counts, which each call of ``learn`` with ``reset_num_timesteps`` begins anew
    :return: ``(n,)`` the same counted on from call to call

    >>> ascending(np.array([400.0, 800.0, 300.0, 700.0]))
    array([ 400.,  800., 1100., 1500.])
    """
    drops = np.flatnonzero(np.diff(steps) < 0)
    return steps + np.bincount(drops + 1, weights=steps[drops], minlength=len(steps)).cumsum()


def _value(cell: str | None) -> Any:
    try:
        return int(cell or "nan")
    except ValueError:
        pass
    try:
        return float(cell or "nan")
    except ValueError:
        return cell
