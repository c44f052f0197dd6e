"""A table of standard normal numbers that processes share, so that a perturbation is one integer."""

from __future__ import annotations

import threading
import warnings
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from torch import nn

from sb3_erl.core.checks import check_range

PUBLISHED_SIZE = 250_000_000
"""Size of the papers' tables, for networks of up to four million parameters."""
DEFAULT_SIZE = 25_000_000
WINDOWS = 100
"""Windows that a table should hold; the tables of the papers hold 60 to 1500."""
_BLOCK = 1 << 20
_lock = threading.Lock()
_drawn: WeakValueDictionary[tuple[int, int], np.ndarray] = WeakValueDictionary()


def _draw(size: int, seed: int) -> np.ndarray:
    """The numbers of ``RandomState(seed).randn(size)`` in float32, without ever holding them all in float64."""
    random, values = np.random.RandomState(seed), np.empty(size, dtype=np.float32)
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        values[start:stop] = random.randn(stop - start)
    values.setflags(write=False)
    return values


def sufficient_size(length: int) -> int:
    """
    :param length: parameters that are perturbed at once
    :return: 25 million numbers, or more where these are less than a hundred windows, but not more than the papers' 250 million
        unless ten windows need it

    >>> sufficient_size(72_000), sufficient_size(1_700_000)
    (25000000, 170000000)
    """
    return max(DEFAULT_SIZE, _enough(length))


def _enough(length: int) -> int:
    return max(10 * length, min(WINDOWS * length, PUBLISHED_SIZE))


class NoiseTable:
    """
    A long read-only vector of standard normal numbers; a perturbation of ``d`` parameters is a window of it.

    Salimans et al. (2017), https://arxiv.org/abs/1703.03864, section 2; authors' code:
    openai/evolution-strategies-starter, ``es_distributed/es.py: SharedNoiseTable``. Differences: 25 million numbers where
    the authors have 250 million, drawn when they are first needed. Tables of equal size and seed share their memory within
    a process. A pickle, and so a save, holds size and seed only.

    :param size: how many numbers (4 bytes each)
    :param seed: seed of the numbers, in [0, 2**32)
    :raises ValueError: if a number is out of range

    >>> NoiseTable(1000).window(7, 3).shape
    (3,)
    """

    def __init__(self, size: int = DEFAULT_SIZE, seed: int = 123):
        check_range("noise_table_size", size, 1, integer=True)
        check_range("noise_seed", seed, 0, 2**32 - 1, integer=True)
        self.size, self.seed = int(size), int(seed)
        self._values: np.ndarray | None = None

    @classmethod
    def for_network(cls, network: nn.Module, size: int | None, seed: int) -> NoiseTable:
        """
        :param network: whose parameters are perturbed
        :param size: how many numbers; ``None`` for what the network needs, see :func:`sufficient_size`
        :param seed: seed of the numbers
        :return: the table
        """
        n_params = sum(parameter.numel() for parameter in network.parameters())
        return cls(sufficient_size(n_params) if size is None else size, seed)

    @staticmethod
    def adopt(size: int, seed: int, values: np.ndarray) -> None:
        """
        Let the tables of this process use numbers that exist already, in memory that processes share.

        :param size: of the table
        :param seed: of the table
        :param values: ``(size,)`` float32, read-only; held by the caller for as long as tables may need it
        """
        _drawn[size, seed] = values

    @property
    def values(self) -> np.ndarray:
        """``(size,)`` float32, read-only."""
        if self._values is None:
            with _lock:
                values = _drawn.get((self.size, self.seed))
                if values is None:
                    values = _drawn[self.size, self.seed] = _draw(self.size, self.seed)
            self._values = values
        return self._values

    def check_length(self, length: int) -> None:
        """
        Check that windows of this length overlap seldom enough.

        :param length: of a window
        :raises ValueError: if the table is shorter than ten windows; a warning says so below a hundred windows
        """
        enough = _enough(length)
        if self.size < 10 * length:
            raise ValueError(
                f"noise_table_size must be at least 10 times the {length} parameters that are perturbed at once; "
                f"got {self.size}. Leave it out or set noise_table_size={10 * length} at least, or take a smaller network"
            )
        if self.size < enough:
            warnings.warn(
                f"noise_table_size={self.size} is less than {WINDOWS} times the {length} parameters that are perturbed at "
                f"once, so perturbations overlap often; noise_table_size={enough} is better",
                stacklevel=3,
            )

    def offsets(self, rng: np.random.Generator, n: int, length: int) -> np.ndarray:
        """
        :param rng: generator
        :param n: how many
        :param length: of a window
        :return: ``(n,)`` int64, where windows begin, uniform in [0, size - length]
        :raises ValueError: if no window fits
        """
        check_range("length", length, 1, self.size, integer=True)
        return rng.integers(self.size - length + 1, size=n)

    def window(self, offset: int, length: int) -> np.ndarray:
        """
        :param offset: where the window begins
        :param length: how many numbers
        :return: ``(length,)`` float32, a read-only view
        :raises ValueError: if it does not lie inside the table
        """
        if not 0 <= offset <= self.size - length:
            raise ValueError(
                f"offset must be in [0, {self.size - length}] for a window of {length} numbers; got {offset}. "
                "Use the noise_table_size that the offset was drawn for"
            )
        return self.values[offset : offset + length]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NoiseTable) and (self.size, self.seed) == (other.size, other.seed)

    def __hash__(self) -> int:
        return hash((self.size, self.seed))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.size, self.seed)

    def __repr__(self) -> str:
        return f"NoiseTable(size={self.size}, seed={self.seed})"


class SeededNoise(NoiseTable):
    """
    Independent perturbations in place of windows: the place of a window is the seed of its numbers.

    For few and short perturbations, which cost less to draw twice than a table costs to hold.

    >>> SeededNoise().window(7, 3).shape
    (3,)
    """

    def __init__(self) -> None:
        super().__init__(2**53)  # the seeds that a float64 holds exactly

    def check_length(self, length: int) -> None:
        """Windows do not overlap, whatever their length."""

    def window(self, offset: int, length: int) -> np.ndarray:
        """See :meth:`NoiseTable.window`."""
        return np.random.default_rng(offset).standard_normal(length, dtype=np.float32)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()
