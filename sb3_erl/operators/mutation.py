"""
Mutation operators: a stack of parents and a generator in, a new stack out.

To add one: write a class with the signature of :class:`GaussianMutation` and enter it in ``MUTATIONS`` of
``operators/__init__.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sb3_erl.common.parameters import ParameterLayout


@dataclass(frozen=True)
class WeightEvents:
    """
    Changes of single weights, in order.

    :param index: ``(n_events,)`` position in the flattened stack of parents
    :param kind: ``(n_events,)`` uniform in [0, 1): super mutation, reset or normal mutation by thresholds
    :param noise: ``(n_events,)`` standard normal
    """

    index: np.ndarray
    kind: np.ndarray
    noise: np.ndarray


def _occurrence(index: np.ndarray) -> np.ndarray:
    """How often each entry's value occurred before it."""
    order = np.argsort(index, kind="stable")
    ordered = index[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.empty(0, int)
    group = np.repeat(starts, np.diff(np.r_[starts, len(ordered)]))
    result = np.empty(len(index), dtype=np.int64)
    result[order] = np.arange(len(index)) - group
    return result


class GaussianMutation:
    """
    Change single weights of the matrices by noise relative to the weight, rarely by much, rarely by a reset.

    Khadka & Tumer (2018), authors' code ``core/mod_neuro_evo.py: SSNE.mutate_inplace``: a matrix is touched with
    probability ``min(1, 2u)``, u uniform per tensor; then up to a share of its weights, drawn with replacement. Later
    events see earlier ones. Biases and norms are mutated only if ``vector_scale`` says so (authors' code of CERL).

    :param layout: tensors of one individual
    :param strength: standard deviation of a normal mutation relative to the weight
    :param fraction: a matrix gets fewer than ``ceil(fraction * size)`` events
    :param super_prob: probability of a super mutation
    :param super_strength: its standard deviation relative to the weight
    :param reset_prob: probability of a reset
    :param reset_std: standard deviation of a reset weight
    :param limit: mutated weights are clipped to ±limit
    :param inclusive: a matrix may also get ``ceil(fraction * size)`` events (authors' code of CERL)
    :param vector_scale: factor on the probability of touching a vector (bias, norm); 0 leaves them alone
    :param vector_reset_std: standard deviation of a reset entry of a vector
    """

    def __init__(
        self,
        layout: ParameterLayout,
        strength: float = 0.1,
        fraction: float = 0.1,
        super_prob: float = 0.05,
        super_strength: float = 10.0,
        reset_prob: float = 0.05,
        reset_std: float = 1.0,
        limit: float = 1e6,
        inclusive: bool = False,
        vector_scale: float = 0.0,
        vector_reset_std: float = 1.0,
    ):
        self.layout = layout
        self.strength, self.fraction, self.limit, self.inclusive = strength, fraction, limit, inclusive
        self.super_prob, self.super_strength = super_prob, super_strength
        self.reset_prob = reset_prob
        is_vector = np.array([len(shape) < 2 for shape in layout.shapes], dtype=bool)
        self._mutable = np.flatnonzero(~is_vector | (vector_scale > 0))
        self._scale = np.where(is_vector, vector_scale, 1.0)[self._mutable]
        self._starts = np.cumsum([0, *layout.sizes])[:-1][self._mutable]
        self._sizes = np.array(layout.sizes)[self._mutable]
        self._reset_std = np.repeat(np.where(is_vector, vector_reset_std, reset_std), layout.sizes)

    def draw(self, n_parents: int, rng: np.random.Generator) -> WeightEvents:
        """
        :param n_parents: how many individuals are mutated
        :param rng: generator
        :return: the events of all of them
        """
        shape = (n_parents, len(self._mutable))
        touched = rng.random(shape) < 2 * rng.random(shape) * self._scale
        limits = np.ceil(np.round(self.fraction * self._sizes, 9)).astype(np.int64) + self.inclusive
        counts = np.where(touched, rng.integers(0, np.maximum(limits, 1), size=shape), 0)
        tensor = np.repeat(np.tile(np.arange(shape[1]), n_parents), counts.reshape(-1))
        parent = np.repeat(np.arange(n_parents), counts.sum(axis=1))
        index = parent * self.layout.n_params + self._starts[tensor] + rng.integers(0, self._sizes[tensor])
        return WeightEvents(index, rng.random(len(index)), rng.standard_normal(len(index)))

    def apply(self, parents: np.ndarray, events: WeightEvents) -> np.ndarray:
        """
        :param parents: ``(n, n_params)``
        :param events: changes of single weights
        :return: the mutants, a new array
        """
        mutants = parents.copy()
        self._change(mutants, np.arange(len(parents)), events)
        return mutants

    def mutate_rows(self, population: np.ndarray, rows: Sequence[int], rng: np.random.Generator) -> None:
        """
        Mutate some of a population in place, as a call on these rows would, without copying all of their weights.

        :param population: ``(n, n_params)``, overwritten
        :param rows: whom to mutate
        :param rng: generator
        """
        self._change(population, np.asarray(rows), self.draw(len(rows), rng))

    def _change(self, population: np.ndarray, rows: np.ndarray, events: WeightEvents) -> None:
        parent, column = np.divmod(events.index, self.layout.n_params)
        row = rows[parent]
        is_super = events.kind < self.super_prob
        is_reset = ~is_super & (events.kind < self.super_prob + self.reset_prob)
        gain = np.where(is_super, self.super_strength, self.strength)
        fresh = events.noise * self._reset_std[column]
        turn = _occurrence(events.index)
        for k in range(int(turn.max(initial=-1)) + 1):  # a weight that is hit twice compounds
            now = turn == k
            place, noise = (row[now], column[now]), events.noise[now]
            weight = population[place]
            changed = np.where(is_reset[now], fresh[now], weight + noise * gain[now] * weight)
            population[place] = np.clip(changed, -self.limit, self.limit)

    def __call__(self, parents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Mutants of the parents; see :meth:`apply`."""
        return self.apply(parents, self.draw(len(parents), rng))


class HeadMutation:
    """
    Behaviour-level mutation of ERL-Re2: every row of a linear head changes a share of its weights in one of three ways.

    Hao et al. (2023), section 4, in the form of the authors' code (``core/mod_neuro_evo.py: SSNE.mutate_inplace``): the
    head is touched with probability 0.75; then in every row distinct columns are chosen and one draw decides for the
    row between super mutation, reset and normal mutation. Biases are not mutated.

    :param layout: a head: ``weight`` (A, d), then ``bias`` (A,)
    :param fraction: share of each row's weights that change
    :param matrix_prob: probability that the head changes at all
    :param strength: standard deviation of a normal mutation relative to the weight
    :param super_prob: probability of a super mutation of a row
    :param super_strength: its standard deviation relative to the weight
    :param reset_prob: probability of a reset of a row
    :param reset_std: standard deviation of reset weights
    :param limit: weights are clipped to ±limit
    """

    def __init__(
        self,
        layout: ParameterLayout,
        fraction: float = 0.7,
        matrix_prob: float = 0.75,
        strength: float = 0.1,
        super_prob: float = 0.05,
        super_strength: float = 10.0,
        reset_prob: float = 0.05,
        reset_std: float = 1.0,
        limit: float = 1e6,
    ):
        self.layout = layout
        self.fraction, self.matrix_prob, self.strength, self.limit = fraction, matrix_prob, strength, limit
        self.super_prob, self.super_strength = super_prob, super_strength
        self.reset_prob, self.reset_std = reset_prob, reset_std

    def __call__(self, parents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """
        :param parents: ``(n, n_params)``
        :param rng: generator
        :return: the mutants, a new array
        """
        rows, columns = self.layout.shapes[0]
        n, size = len(parents), rows * columns
        ranked = rng.random((n, rows, columns))
        touched = np.flatnonzero(rng.random(n) < self.matrix_prob)
        kind = rng.random((n, rows, 1))[touched]
        noise = rng.standard_normal((n, rows, columns))[touched].astype(parents.dtype)
        weights = parents[touched, :size].reshape(-1, rows, columns)
        chosen = _distinct(ranked[touched], int(np.floor(columns * self.fraction + 1e-9)))
        is_super = kind < self.super_prob
        is_reset = ~is_super & (kind < self.super_prob + self.reset_prob)
        gain = np.where(is_super, self.super_strength, self.strength).astype(parents.dtype)
        changed = np.where(is_reset, noise * parents.dtype.type(self.reset_std), weights + noise * gain * weights)
        changed = np.where(chosen, changed, weights).clip(-self.limit, self.limit)
        mutants = parents.copy()
        mutants[touched, :size] = changed.reshape(-1, size)
        return mutants


def _distinct(numbers: np.ndarray, count: int) -> np.ndarray:
    """
    :param numbers: ``(..., n)`` random numbers, multiples of 2^-53 in [0, 1) as NumPy's generators draw them
    :param count: how many of each row to choose
    :return: ``(..., n)``, ``numbers.argsort(-1) < count``: ``count`` distinct places of each row, uniformly. Sorting whole
        numbers that carry the answer in their last bit takes a fraction of the time of an argsort
    """
    keys = (numbers * 2.0**54).astype(np.int64)  # even
    keys[..., :count] += 1
    keys.sort(axis=-1)
    return (keys & 1).astype(bool)
