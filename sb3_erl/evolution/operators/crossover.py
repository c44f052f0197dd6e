"""
Crossover operators: two stacks of parents and a generator in, two stacks of children out.

To add one, write a class with the signature of :class:`RowCrossover`. Its name is ``"package.module:Name"``, or a key by
:func:`sb3_erl.core.registry.register`. An operator with state defines ``state_dict()`` and ``load_state_dict(state)``, see
:class:`~sb3_erl.evolution.operators.choice.OperatorStates`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sb3_erl.core.parameters import ParameterLayout
from sb3_erl.evolution.operators.bounded import integers_below


@dataclass(frozen=True)
class RowEvents:
    """
    One-way row copies, in order.

    :param pair: ``(n_events,)`` which pair of parents
    :param row: ``(n_events,)`` which row, counted over all tensors
    :param into_first: ``(n_events,)`` whether the first individual receives the second's row
    """

    pair: np.ndarray
    row: np.ndarray
    into_first: np.ndarray


class RowCrossover:
    """
    Exchange rows (neurons) between two individuals by one-way copies.

    Khadka & Tumer (2018), authors' code ``core/mod_neuro_evo.py: SSNE.crossover_inplace``: per tensor n copies, n
    uniform in [0, 2 * rows) for a matrix and [0, rows) for a vector; each copy picks a direction and a row, with
    replacement, and sees the earlier ones. Since after a copy both have the same row, the first copy of each row
    decides, which makes the operator one indexing operation per tensor.

    :param layout: tensors of one individual; the second axis and later ones belong to a row
    :param max_matrix_share: copies per matrix are below this share of its rows
    :param vector_skip_prob: probability of leaving a vector alone (0 in the paper's code)
    :param inclusive: matrices may also get ``max_matrix_share`` itself (authors' code of CERL)
    :param single_entry: vectors that are not left alone get one copy (authors' code of CERL)
    """

    touches_kernels: ClassVar[bool] = True
    """Whether rows of tensors with more than two axes are exchanged, as those of matrices are."""

    def __init__(
        self,
        layout: ParameterLayout,
        max_matrix_share: float = 2.0,
        vector_skip_prob: float = 0.0,
        inclusive: bool = False,
        single_entry: bool = False,
    ):
        self.layout = layout
        self.vector_skip_prob, self.single_entry = vector_skip_prob, single_entry
        n_rows = [shape[0] if shape else 1 for shape in layout.shapes]
        self._first_row = np.cumsum([0, *n_rows])
        self._is_vector = np.array([len(shape) < 2 for shape in layout.shapes])
        self._limits = np.array(
            [
                rows if vector else int(max_matrix_share * rows + 1e-9) + inclusive
                for rows, vector in zip(n_rows, self._is_vector, strict=True)
            ]
        )
        if not self.touches_kernels:
            self._limits[[len(shape) > 2 for shape in layout.shapes]] = 0
        slices = [layout.slices[name] for name in layout.names]
        self._places = list(zip(slices, self._first_row[:-1].tolist(), n_rows, strict=True))
        """Of each tensor: its columns, its first row and the number of its rows."""

    @property
    def n_rows(self) -> int:
        """Rows of one individual, over all tensors."""
        return int(self._first_row[-1])

    def draw(self, n_pairs: int, rng: np.random.Generator) -> RowEvents:
        """
        :param n_pairs: how many pairs are crossed
        :param rng: generator
        :return: the events of all pairs
        """
        n_tensors = len(self._limits)
        counts = rng.integers(0, np.maximum(self._limits, 1), size=(n_pairs, n_tensors))
        if self.single_entry:
            counts[:, self._is_vector] = 1
        if self.vector_skip_prob > 0:
            counts[(rng.random(counts.shape) < self.vector_skip_prob) & self._is_vector] = 0
        tensor = np.repeat(np.tile(np.arange(n_tensors), n_pairs), counts.reshape(-1))
        pair = np.repeat(np.arange(n_pairs), counts.sum(axis=1))
        n_rows = np.diff(self._first_row)
        row = self._first_row[tensor] + integers_below(n_rows[tensor], rng)
        return RowEvents(pair, row, rng.random(len(row)) < 0.5)

    def apply(self, first: np.ndarray, second: np.ndarray, events: RowEvents) -> tuple[np.ndarray, np.ndarray]:
        """
        :param first: ``(n_pairs, n_params)``
        :param second: ``(n_pairs, n_params)``
        :param events: row copies
        :return: both children, new arrays
        """
        n = len(first)
        both = np.concatenate([first, second])
        self._exchange(both, np.arange(n), np.arange(n, 2 * n), events)
        return both[:n], both[n:]

    def cross_rows(self, population: np.ndarray, first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> None:
        """
        Cross pairs out of a population in place, as a call on copies of them would.

        :param population: ``(n, n_params)``, C-contiguous, overwritten
        :param first: ``(n_pairs,)`` rows of the first parents
        :param second: ``(n_pairs,)`` rows of the second parents; no row occurs twice
        :param rng: generator
        """
        self._exchange(population, first, second, self.draw(len(first), rng))

    def _exchange(self, population: np.ndarray, first: np.ndarray, second: np.ndarray, events: RowEvents) -> None:
        direction = np.zeros((len(first), self.n_rows), dtype=np.int8)
        # assigned last to first, so that the first copy of a row is the one that stays
        places = (events.pair * self.n_rows + events.row)[::-1].copy()
        direction.reshape(-1)[places] = np.where(events.into_first, np.int8(1), np.int8(-1))[::-1]
        for columns, start, n_rows in self._places:
            own, way = population[:, columns], direction[:, start : start + n_rows]  # views
            if own.shape[1] == n_rows:  # a vector: it is faster to write all of it
                one, other = own[first], own[second]
                own[first], own[second] = np.where(way > 0, other, one), np.where(way < 0, one, other)
                continue
            pair, row = np.nonzero(way)
            into_first = way[pair, row] > 0
            targets, sources = np.where(into_first, first[pair], second[pair]), np.where(into_first, second[pair], first[pair])
            rows = own.reshape(len(own), n_rows, -1)  # a view
            rows[targets, row] = rows[sources, row]

    def __call__(self, first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Children of ``n_pairs`` pairs; see :meth:`apply`."""
        return self.apply(first, second, self.draw(len(first), rng))


class LinearRowCrossover(RowCrossover):
    """
    :class:`RowCrossover` that leaves convolution kernels alone, though not their biases.

    Li et al. (ICML 2024), authors' code yeshenpy/VEB-RL, ``GA_VEB/agents/mod_neuro_evo.py: SSNE.crossover_inplace``.

    :param layout: tensors of one individual
    """

    touches_kernels = False

    def __init__(self, layout: ParameterLayout):
        super().__init__(layout)


class HeadRowCrossover(RowCrossover):
    """
    Behavior-level crossover of ERL-Re2: rows of linear heads (one action dimension each) with their biases.

    Hao et al. (2023), algorithm 2, in the form of the authors' code (``row_copies``): m uniform in {0, ..., 2A - 1}
    one-way copies with replacement. The paper gives every action dimension one coin.

    :param layout: a head: ``weight`` (A, d), then ``bias`` (A,)
    """

    def __init__(self, layout: ParameterLayout):
        super().__init__(ParameterLayout(layout.names[:1], layout.shapes[:1]))
        self.layout = layout
        self._places = [(layout.slices[name], 0, layout.shapes[0][0]) for name in layout.names]
