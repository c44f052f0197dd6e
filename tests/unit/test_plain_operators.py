"""The GA's numbers and the state it leaves its generator in are those of one event after the other, drawn as NumPy draws."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from sb3_erl.core.parameters import ParameterLayout
from sb3_erl.evolution.cem import DiagonalCEM
from sb3_erl.evolution.ga import GA
from sb3_erl.evolution.operators import mutation as mutation_module
from sb3_erl.evolution.operators.bounded import integers_below
from sb3_erl.evolution.operators.selection import GeneratorDraws, plan_epoch, rank_best_first, tournament_winners
from sb3_erl.evolution.operators.spare import SpareArrays

LAYOUT = ParameterLayout(("a.weight", "a.bias", "scale", "b.weight", "b.bias"), ((7, 9), (7,), (), (3, 7), (3,)))
POP_SIZE, N_ELITES = 60, 6


def cross_plainly(population: np.ndarray, pairs: Sequence[tuple[int, int]], rng: np.random.Generator) -> None:
    shapes = LAYOUT.shapes
    n_rows = np.array([shape[0] if shape else 1 for shape in shapes])
    limits = np.array([shape[0] * 2 if len(shape) > 1 else max(1, *shape, 1) for shape in shapes])
    counts = rng.integers(0, limits, size=(len(pairs), len(shapes)))
    places = [(pair, t) for k, pair in enumerate(pairs) for t in range(len(shapes)) for _ in range(counts[k, t])]
    rows = rng.integers(0, n_rows[[t for _, t in places]])
    coins = rng.random(len(places)) < 0.5
    for (pair, t), row, into_first in zip(places, rows, coins, strict=True):
        target, source = pair if into_first else pair[::-1]
        width = LAYOUT.sizes[t] // n_rows[t]
        start = LAYOUT.slices[LAYOUT.names[t]].start + row * width
        population[target, start : start + width] = population[source, start : start + width]


def mutate_plainly(population: np.ndarray, mutants: Sequence[int], rng: np.random.Generator) -> None:
    tensors = [name for name, shape in zip(LAYOUT.names, LAYOUT.shapes, strict=True) if len(shape) > 1]
    sizes = np.array([LAYOUT.slices[name].stop - LAYOUT.slices[name].start for name in tensors])
    shape = (len(mutants), len(tensors))
    touched = rng.random(shape) < 2 * rng.random(shape)
    counts = np.where(touched, rng.integers(0, np.ceil(0.9 * sizes).astype(np.int64), size=shape), 0)
    places = [(slot, t) for k, slot in enumerate(mutants) for t in range(len(tensors)) for _ in range(counts[k, t])]
    columns = rng.integers(0, sizes[[t for _, t in places]])
    kinds, noises = rng.random(len(places)), rng.standard_normal(len(places))
    for (slot, t), column, kind, noise in zip(places, columns, kinds, noises, strict=True):
        at = slot, LAYOUT.slices[tensors[t]].start + column
        weight = float(population[at])
        gain = 10.0 if kind < 0.05 else 0.1
        changed = float(noise) if 0.05 <= kind < 0.1 else weight + float(noise) * gain * weight
        population[at] = np.float32(min(max(changed, -2.0), 2.0))


def tell_plainly(population: np.ndarray, fitness: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    ranking, draws = rank_best_first(fitness), GeneratorDraws(rng)
    winners = tournament_winners(ranking, POP_SIZE - N_ELITES, 3, draws)
    epoch = plan_epoch(ranking, sorted(set(winners)), draws, n_elites=N_ELITES, crossover_prob=0.5)
    new = population.copy()
    for copies, pairs in zip(epoch.copies, epoch.crossings, strict=True):
        for source, slot in copies:
            new[slot] = population[source]
        if pairs:
            cross_plainly(new, pairs, rng)
    mutate_plainly(new, epoch.mutants, rng)
    return new


@pytest.mark.parametrize("block", [13, 1 << 14])
def test_generations_are_those_of_one_event_after_the_other(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutation_module, "_EVENTS", block)
    plain = np.random.default_rng(0).standard_normal((POP_SIZE, LAYOUT.n_params)).astype(np.float32)
    ga = GA(torch.from_numpy(plain), LAYOUT, crossover_prob=0.5, mutation_kwargs={"fraction": 0.9, "limit": 2.0})
    ours, theirs, before = np.random.default_rng(1), np.random.default_rng(1), plain
    for _ in range(4):
        candidates = ga.ask(ours)
        assert np.array_equal(candidates.numpy(), plain)
        fitness = theirs.standard_normal(POP_SIZE)
        ga.tell(candidates, ours.standard_normal(POP_SIZE), ours)
        plain = tell_plainly(plain, fitness, theirs)
        assert ours.bit_generator.state == theirs.bit_generator.state
    assert np.array_equal(ga.candidates.numpy(), plain) and not np.array_equal(plain, before)
    assert (np.abs(plain) == 2).any()  # also of weights that were clipped


@pytest.mark.parametrize(
    "limits",
    [[5, 300, 16384, 2], [1, 7, 1, 1], [3 << 29, (1 << 31) - 1, 3], [(1 << 31), 1 << 40, 9]],
    ids=["usual", "one choice", "often rejected", "more than 31 bits"],
)
@pytest.mark.parametrize("odd", [False, True], ids=["whole", "half a word left"])
def test_numbers_below_limits_are_those_of_numpy(limits: list[int], odd: bool) -> None:
    ours, theirs = np.random.default_rng(3), np.random.default_rng(3)
    if odd:  # NumPy keeps the second half of 64 random bits for the next number
        assert ours.integers(10, dtype=np.uint32) == theirs.integers(10, dtype=np.uint32)
    many = np.tile(np.array(limits, dtype=np.int64), 20_001)
    assert np.array_equal(integers_below(many, ours), theirs.integers(0, many))
    assert ours.bit_generator.state == theirs.bit_generator.state
    assert integers_below(many[:0], ours).shape == (0,)


def test_memory_is_used_again_only_when_nobody_holds_it() -> None:
    spare = SpareArrays()
    first = spare.empty((3, 4), np.float32)
    address = first.ctypes.data
    view = torch.from_numpy(first)[1:].numpy()[:, 1:]
    del first
    second = spare.empty((3, 4), np.float32)
    assert second.ctypes.data != address  # a view of a tensor of the first is held
    del view
    assert spare.empty((3, 4), np.float32).ctypes.data == address
    assert spare.empty((2, 4), np.float32).shape == (2, 4) and spare.empty((2, 4), np.float64).dtype == np.float64
    for other in (copy.deepcopy(spare), pickle.loads(pickle.dumps(spare))):
        assert other.empty((3, 4), np.float64) is not spare.empty((3, 4), np.float64)


@pytest.mark.parametrize("key", ["ga", "cem"])
def test_candidates_that_were_kept_do_not_change(key: str) -> None:
    start = torch.randn(POP_SIZE, LAYOUT.n_params)
    evolver = GA(start, LAYOUT) if key == "ga" else DiagonalCEM(start[0], POP_SIZE)
    rng, kept = np.random.default_rng(0), []
    for number in range(6):
        candidates = evolver.ask(rng)
        evolver.tell(candidates, rng.standard_normal(POP_SIZE), rng)
        if number % 2 == 0:
            kept += [(tensor, tensor.clone()) for tensor in (candidates, *([evolver.candidates] if key == "ga" else []))]
    assert all(torch.equal(tensor, copied) for tensor, copied in kept)
