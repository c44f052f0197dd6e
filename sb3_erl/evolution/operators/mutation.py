"""
Mutation operators: a stack of parents and a generator in, a new stack out.

To add one, write a class with the signature of :class:`GaussianMutation`. Its name is ``"package.module:Name"``, or a key by
:func:`sb3_erl.core.registry.register`. An operator with state defines ``state_dict()`` and ``load_state_dict(state)``, see
:class:`~sb3_erl.evolution.operators.choice.OperatorStates`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sb3_erl.core.parameters import ParameterLayout
from sb3_erl.evolution.operators.bounded import integers_below

_EVENTS, _HEADS = 1 << 14, 32
"""How many events, or heads, are worked on at a time: arrays that stay in the processor's cache are several times faster."""


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

    touches_kernels: ClassVar[bool] = True
    """Whether tensors with more than two axes count as matrices."""

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
        is_left_alone = np.array([len(shape) > 2 and not self.touches_kernels for shape in layout.shapes], dtype=bool)
        self._mutable = np.flatnonzero((~is_vector | (vector_scale > 0)) & ~is_left_alone)
        self._scale = np.where(is_vector, vector_scale, 1.0)[self._mutable]
        self._starts = np.cumsum([0, *layout.sizes])[:-1][self._mutable]
        self._sizes = np.array(layout.sizes)[self._mutable]
        self._n_params = layout.n_params
        self._reset_std = np.repeat(np.where(is_vector, vector_reset_std, reset_std), layout.sizes)

    def draw(self, n_parents: int, rng: np.random.Generator) -> WeightEvents:
        """
        :param n_parents: how many individuals are mutated
        :param rng: generator
        :return: the events of all of them
        """
        return self._draw(np.arange(n_parents), rng)

    def _draw(self, rows: np.ndarray, rng: np.random.Generator) -> WeightEvents:
        """Events of individuals that stand in these rows of the stack."""
        shape = (len(rows), len(self._mutable))
        touched = rng.random(shape) < 2 * rng.random(shape) * self._scale
        limits = np.ceil(np.round(self.fraction * self._sizes, 9)).astype(np.int64) + self.inclusive
        counts = np.where(touched, rng.integers(0, np.maximum(limits, 1), size=shape), 0).reshape(-1)
        index = integers_below(np.repeat(np.tile(self._sizes, len(rows)), counts), rng)
        index += np.repeat((rows[:, None] * self._n_params + self._starts).reshape(-1), counts)
        return WeightEvents(index, rng.random(len(index)), rng.standard_normal(len(index)))

    def apply(self, parents: np.ndarray, events: WeightEvents) -> np.ndarray:
        """
        :param parents: ``(n, n_params)``
        :param events: changes of single weights
        :return: the mutants, a new array
        """
        mutants = parents.copy()
        self._change(mutants, events)
        return mutants

    def mutate_rows(self, population: np.ndarray, rows: Sequence[int], rng: np.random.Generator) -> None:
        """
        Mutate some of a population in place, as a call on these rows would, without copying all of their weights.

        :param population: ``(n, n_params)``, C-contiguous, overwritten
        :param rows: ``(n_parents,)`` rows that are mutated
        :param rng: generator
        """
        self._change(population, self._draw(np.asarray(rows), rng))

    def _change(self, population: np.ndarray, events: WeightEvents) -> None:
        weights = population.reshape(-1)  # a view
        written = weights.view(f"i{weights.itemsize}")  # holds numbers of events for a moment
        numbers = np.arange(_EVENTS, dtype=written.dtype)
        backward = numbers[::-1].copy()
        for start in range(0, len(events.index), _EVENTS):
            now = slice(start, start + _EVENTS)
            place, kind, noise = events.index[now], events.kind[now], events.noise[now]
            while len(place):  # a weight that is hit twice compounds
                n = len(place)
                changed = self._changed(weights.take(place), place, kind, noise)
                written[place[::-1].copy()] = backward[_EVENTS - n :]  # of several numbers the last one assigned stays
                first = written.take(place)
                again = np.flatnonzero(first != numbers[:n])
                changed[again] = changed[first[again]]  # of several hits the first counts in this round
                weights[place] = changed
                place, kind, noise = place[again], kind[again], noise[again]

    def _changed(self, weight: np.ndarray, place: np.ndarray, kind: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """:return: ``(n_events,)``, weights after one event each"""
        rare = np.flatnonzero(kind < self.super_prob + self.reset_prob)
        is_super = kind[rare] < self.super_prob
        supers, resets = rare[is_super], rare[~is_super]
        changed, before = noise * self.strength, weight.astype(np.float64)
        changed[supers] = noise[supers] * self.super_strength
        changed *= before
        changed += before
        changed[resets] = noise[resets] * self._reset_std[place[resets] % self._n_params]
        return changed.clip(-self.limit, self.limit, out=changed).astype(weight.dtype)

    def __call__(self, parents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Mutants of the parents; see :meth:`apply`."""
        return self.apply(parents, self.draw(len(parents), rng))


class LinearMutation(GaussianMutation):
    """
    :class:`GaussianMutation` that leaves convolution kernels alone, with the tiny steps of VEB-RL.

    Li et al. (ICML 2024), authors' code yeshenpy/VEB-RL, ``GA_VEB/agents/mod_neuro_evo.py: SSNE.mutate_inplace``: the only
    change with an effect is the reset of single weights of linear layers.

    :param layout: tensors of one individual
    :param strength: standard deviation of a normal mutation relative to the weight
    :param fraction: a matrix gets fewer than ``ceil(fraction * size)`` events
    :param super_prob: probability of a super mutation
    :param super_strength: its standard deviation relative to the weight
    :param reset_prob: probability of a reset
    :param reset_std: standard deviation of a reset weight
    :param limit: mutated weights are clipped to ±limit
    """

    touches_kernels = False

    def __init__(
        self,
        layout: ParameterLayout,
        strength: float = 5e-6,
        fraction: float = 0.1,
        super_prob: float = 0.05,
        super_strength: float = 5e-4,
        reset_prob: float = 0.05,
        reset_std: float = 1.0,
        limit: float = 1e6,
    ):
        super().__init__(layout, strength, fraction, super_prob, super_strength, reset_prob, reset_std, limit)


class HeadMutation:
    """
    Behavior-level mutation of ERL-Re2: every row of a linear head changes a share of its weights in one of three ways.

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
        mutants = parents.copy()
        self.mutate_rows(mutants, np.arange(len(parents)), rng)
        return mutants

    def mutate_rows(self, population: np.ndarray, rows: Sequence[int] | np.ndarray, rng: np.random.Generator) -> None:
        """
        Mutate some of a population in place, as a call on copies of them would.

        :param population: ``(n, n_params)``, C-contiguous, overwritten
        :param rows: ``(n_parents,)`` rows that are mutated
        :param rng: generator
        """
        rows = np.asarray(rows)
        n, n_rows, columns = len(rows), *self.layout.shapes[0]
        heads = population[:, : n_rows * columns].reshape(-1, n_rows, columns)  # a view
        dtype = population.dtype.type
        count = int(np.floor(columns * self.fraction + 1e-9))
        ranked = rng.random((n, n_rows, columns))
        touched = rng.random(n) < self.matrix_prob
        kind = rng.random((n, n_rows, 1))
        is_super = kind < self.super_prob
        is_reset = ~is_super & (kind < self.super_prob + self.reset_prob)
        gain = np.where(is_super, self.super_strength, self.strength).astype(dtype)
        for start in range(0, n, _HEADS):
            noise = rng.standard_normal((min(_HEADS, n - start), n_rows, columns))
            within = np.flatnonzero(touched[start : start + _HEADS])
            hit, noise = start + within, noise[within].astype(dtype)
            weights = heads[rows[hit]]
            changed = np.where(is_reset[hit], noise * dtype(self.reset_std), weights + noise * gain[hit] * weights)
            chosen = _distinct(ranked[hit], count)
            heads[rows[hit]] = np.where(chosen, changed, weights).clip(-self.limit, self.limit)


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
