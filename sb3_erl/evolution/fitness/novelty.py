"""Novelty: distances between behaviors, and an archive of those seen before."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from sb3_erl.core.array_text import array_of_npy, array_to_text, text_to_array
from sb3_erl.core.checks import check_choice, check_range

Behaviors = np.ndarray | Sequence[np.ndarray]
"""``(n, dim)``, or n arrays: vectors ``(dim,)``, or sequences ``(T, ...)`` whose lengths T may differ."""

Distance = Literal["euclidean", "sqeuclidean"]

DISTANCES = ("euclidean", "sqeuclidean")

_BLOCK = 4_000_000
"""Largest number of elements of a temporary array."""


def behavior_distances(queries: Behaviors, entries: Behaviors, distance: Distance = "euclidean") -> np.ndarray:
    """
    Distance of each query to each entry, computed in float64.

    Conti et al. (2018), https://arxiv.org/abs/1712.06560; authors' code: uber-research/deep-neuroevolution,
    ``es_distributed/nses.py: euclidean_distance``. Of two sequences, the shorter one is continued with its own last row,
    so the distance is that of two arrays of equal length.

    :param queries: n behaviors
    :param entries: m behaviors
    :param distance: ``"euclidean"`` (the ES variants) or ``"sqeuclidean"``, its square (the genetic algorithm)
    :return: ``(n, m)``; not finite where a behavior is not
    :raises ValueError: if behaviors differ in more than the length of sequences, or ``distance`` is unknown

    >>> behavior_distances(np.array([[3.0, 4.0]]), np.array([[0.0, 0.0], [3.0, 0.0]])).tolist()
    [[5.0, 4.0]]
    """
    check_choice("distance", distance, DISTANCES)
    rows, columns = _listed(queries), _listed(entries)
    if not rows or not columns:
        return np.zeros((len(rows), len(columns)))
    _check_alike([*rows, *columns])
    if rows[0].ndim == 1:
        squares = _vector_squares(np.stack(rows).astype(np.float64), np.stack(columns).astype(np.float64))
    else:
        squares = np.array([[_sequence_square(row, column) for column in columns] for row in rows])
    return squares if distance == "sqeuclidean" else np.sqrt(squares)


def k_nearest_mean(distances: np.ndarray, k: int) -> np.ndarray:
    """
    :param distances: ``(n, m)``, NaN for an entry that is not a neighbor
    :param k: number of neighbors, at least 1; all of them if there are fewer
    :return: ``(n,)`` mean of the k smallest; NaN without any neighbor

    >>> k_nearest_mean(np.array([[3.0, 1.0, 2.0]]), 2).tolist()
    [1.5]
    """
    check_range("k", k, 1, integer=True)
    means = np.full(len(distances), np.nan)
    for i, row in enumerate(distances):
        known = row[~np.isnan(row)]
        if known.size:
            # Sorted before the sum: the result does not depend on the order in which entries were added.
            nearest = known if known.size <= k else np.partition(known, k - 1)[:k]
            means[i] = np.sort(nearest).mean()
    return means


class NoveltyArchive:
    """
    The behaviors seen so far, and the novelty of others: the mean distance to the k nearest of them.

    Lehman & Stanley (2011); Conti et al. (2018), https://arxiv.org/abs/1712.06560; authors' code:
    uber-research/deep-neuroevolution, ``es_distributed/nses.py: compute_novelty_vs_archive``. An entry equal to the query
    counts as a neighbor at distance 0, and equal entries count each. It grows, hence it is no ``nn.Module``: keep it as a
    plain attribute, which is pickled with the model, or write it with :meth:`save`.

    :param distance: ``"euclidean"`` or ``"sqeuclidean"``
    :param max_size: number of entries to keep, the newest; ``None`` for all of them
    :raises ValueError: if ``distance`` is unknown or ``max_size`` is below 1

    >>> archive = NoveltyArchive()
    >>> archive.extend(np.array([[0.0, 0.0], [3.0, 4.0]]))
    2
    >>> archive.novelty(np.array([[0.0, 0.0]]), k=10).tolist()
    [2.5]
    """

    def __init__(self, distance: Distance = "euclidean", max_size: int | None = None):
        check_choice("distance", distance, DISTANCES)
        if max_size is not None:
            check_range("max_size", max_size, 1, integer=True)
        self.distance: Distance = distance
        self.max_size = max_size
        self.entries: list[np.ndarray] = []
        """Oldest first; treat them as read-only."""
        self.n_added = 0
        """How many entries were added in all; a copy elsewhere is brought up to date by it, see :meth:`since`."""

    def __len__(self) -> int:
        return len(self.entries)

    def append(self, behavior: np.ndarray) -> bool:
        """
        :param behavior: one behavior; it is copied
        :return: whether it was added; one that is not finite (a failed episode) has no distances and is left out
        :raises ValueError: if it is unlike the entries in more than its length
        """
        return self.extend([np.asarray(behavior)]) == 1

    def extend(self, behaviors: Behaviors) -> int:
        """
        :param behaviors: n behaviors, in order
        :return: how many were added, see :meth:`append`
        :raises ValueError: if one is unlike the entries in more than its length
        """
        new = [_stored(behavior) for behavior in _listed(behaviors)]
        new = [behavior for behavior in new if np.isfinite(behavior).all()]
        _check_alike([*self.entries[:1], *new])
        self.entries += new
        self.n_added += len(new)
        if self.max_size is not None:
            del self.entries[: -self.max_size]
        return len(new)

    def since(self, n_added: int) -> list[np.ndarray]:
        """
        :param n_added: what :attr:`n_added` was
        :return: the entries that were added since and are still there, oldest first
        """
        n_new = min(self.n_added - n_added, len(self.entries))
        return self.entries[len(self.entries) - n_new :]

    def novelty(
        self, queries: Behaviors, k: int, extra: Behaviors | None = None, exclude_self: Iterable[int] | None = None
    ) -> np.ndarray:
        """
        :param queries: n behaviors
        :param k: number of neighbors, at least 1; all of them if there are fewer
        :param extra: further behaviors that count as neighbors, for example the current population
        :param exclude_self: ``(n,)`` index in ``extra`` of each query, which is then not its own neighbor
        :return: ``(n,)`` mean distances, at least 0; NaN without any neighbor or for a query that is not finite
        :raises ValueError: if behaviors are unlike, ``k`` is below 1 or ``exclude_self`` does not fit
        """
        rows, others = _listed(queries), [] if extra is None else _listed(extra)
        own = None
        if exclude_self is not None:
            if extra is None:
                raise ValueError("exclude_self needs extra, to which its indices refer; got extra=None")
            own = _own_columns(exclude_self, len(rows), len(others))
        novelty = np.full(len(rows), np.nan)
        step = max(1, _BLOCK // max(1, len(self.entries) + len(others)))
        for start in range(0, len(rows), step):
            block = slice(start, start + step)
            among = behavior_distances(rows[block], others, self.distance)
            if own is not None:
                among[np.arange(len(among)), own[block]] = np.nan
            distances = np.concatenate([behavior_distances(rows[block], self.entries, self.distance), among], axis=1)
            distances[~np.isfinite(distances)] = np.nan
            novelty[block] = k_nearest_mean(distances, k)
        return novelty

    def novelty_among(self, behaviors: Behaviors, k: int) -> np.ndarray:
        """
        :param behaviors: n behaviors of a population
        :param k: as in :meth:`novelty`
        :return: ``(n,)`` novelty of each, the others being neighbors too; 0 without any neighbor, NaN if it is not finite
        """
        novelty = self.novelty(behaviors, k, extra=behaviors, exclude_self=range(len(behaviors)))
        for index in np.flatnonzero(np.isnan(novelty)).tolist():
            if np.isfinite(behaviors[index]).all():  # alone, which is not as bad as failing
                novelty[index] = 0.0
        return novelty

    def save(self, path: str | Path | IO[bytes]) -> None:
        """Write entries and settings to an ``.npz`` file, by name or open, without pickled objects."""
        lengths = np.array([len(entry) for entry in self.entries], dtype=np.int64)
        rows = np.concatenate(self.entries) if self.entries else np.zeros(0)
        settings = np.array([self.n_added, self.max_size or 0])
        own: Any = open(path, "wb") if isinstance(path, str | Path) else nullcontext(path)  # NumPy appends a suffix to names
        with own as file:
            np.savez(file, rows=rows, lengths=lengths, settings=settings, distance=np.array(self.distance))

    @classmethod
    def load(cls, path: str | Path | IO[bytes]) -> NoveltyArchive:
        """
        :param path: file that :meth:`save` wrote, by name or open
        :return: an equal archive
        """
        with zipfile.ZipFile(path) as file:
            if any(info.compress_type != zipfile.ZIP_STORED for info in file.infolist()):
                raise ValueError(f"path must be a file that save() wrote; {path} is compressed")
            arrays = {name: array_of_npy(file.read(f"{name}.npy")) for name in ("rows", "lengths", "settings", "distance")}
        n_added, max_size = (int(value) for value in arrays["settings"])
        archive = cls(str(arrays["distance"]), max_size or None)  # type: ignore[arg-type]
        archive.entries = [part.copy() for part in np.split(arrays["rows"], np.cumsum(arrays["lengths"])[:-1]) if len(part)]
        archive.n_added = n_added
        return archive

    def as_text(self) -> str:
        """:return: what :meth:`save` writes, as text that JSON can hold"""
        file = io.BytesIO()
        self.save(file)
        return array_to_text(np.frombuffer(file.getvalue(), dtype=np.uint8))

    @classmethod
    def of_text(cls, text: str) -> NoveltyArchive:
        """
        :param text: what :meth:`as_text` returned
        :return: an equal archive
        """
        return cls.load(io.BytesIO(text_to_array(text).tobytes()))


def _listed(behaviors: Behaviors) -> list[np.ndarray]:
    listed = [np.asarray(behavior) for behavior in behaviors]
    if any(behavior.ndim == 0 or behavior.size == 0 for behavior in listed):
        raise ValueError(
            "behaviors must be n arrays of at least one number each, as (n, dim) or as a list; got a single behavior or "
            "an empty one. Put a single behavior into a list"
        )
    return listed


def _own_columns(exclude_self: Iterable[int], n_queries: int, n_extra: int) -> np.ndarray:
    own = np.asarray(list(exclude_self), dtype=np.int64)
    if own.shape != (n_queries,) or not ((own >= 0) & (own < n_extra)).all():
        raise ValueError(
            f"exclude_self must hold {n_queries} indices of extra, one per query, from 0 to {n_extra - 1}; got {own}"
        )
    return own


def _stored(behavior: np.ndarray) -> np.ndarray:
    """A copy; bytes stay bytes, because a whole episode's memory is eight times as large in float64."""
    return behavior.copy() if behavior.dtype.kind in "bui" else behavior.astype(np.float64)


def _check_alike(behaviors: Sequence[np.ndarray]) -> None:
    shapes = sorted({b.shape if b.ndim == 1 else ("any", *b.shape[1:]) for b in behaviors}, key=str)
    if len(shapes) > 1:
        raise ValueError(
            f"behaviors must have equal shapes, sequences (T, ...) up to their length T; got {shapes}. Describe all "
            "episodes by the same quantities, and start a new archive when they change"
        )


def _vector_squares(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    squares = np.empty((len(rows), len(columns)))
    step = max(1, _BLOCK // columns.size)
    for start in range(0, len(rows), step):
        # Differences rather than the expanded square, which cancels where neighbors nearly coincide.
        squares[start : start + step] = np.square(rows[start : start + step, None] - columns[None]).sum(axis=2)
    return squares


def _sequence_square(first: np.ndarray, second: np.ndarray) -> float:
    short, long = (first, second) if len(first) <= len(second) else (second, first)
    short, long = short.astype(np.float64), long.astype(np.float64)  # bytes would wrap around
    common = np.square(long[: len(short)] - short).sum()
    return float(common + np.square(long[len(short) :] - short[-1]).sum())
