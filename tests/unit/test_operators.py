from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sb3_erl.core.parameters import ParameterLayout
from sb3_erl.engine.population import Population
from sb3_erl.engine.replace import ReplaceWeakest, weakest_slot
from sb3_erl.evolution.ga import GA
from sb3_erl.evolution.operators import GaussianMutation, HeadMutation, HeadRowCrossover, RowCrossover
from sb3_erl.evolution.operators import mutation as mutation_module
from sb3_erl.evolution.operators.choice import make_operator
from sb3_erl.evolution.operators.distilled_epoch import plan_distilled_epoch
from sb3_erl.evolution.operators.mutation import WeightEvents, _distinct
from sb3_erl.evolution.operators.selection import Epoch, GeneratorDraws, plan_epoch, rank_best_first, tournament_winners

ACTOR = ParameterLayout(("l1.weight", "l1.bias", "out.weight", "out.bias"), ((6, 4), (6,), (2, 6), (2,)))
HEAD = ParameterLayout(("weight", "bias"), ((3, 10), (3,)))


def layout_for(key: str) -> ParameterLayout:
    return HEAD if key == "head_rows" else ACTOR


@pytest.mark.parametrize("key", ["rows", "head_rows"])
def test_crossover_only_moves_values_between_the_two_parents(key: str) -> None:
    layout = layout_for(key)
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 50, layout.n_params)).astype(np.float32)
    kept = first.copy(), second.copy()
    a, b = make_operator("crossover", key, layout)(first, second, rng)
    assert np.array_equal(first, kept[0]) and np.array_equal(second, kept[1])
    for child in (a, b):
        assert ((child == first) | (child == second)).all()
    assert not np.array_equal(a, first)


@pytest.mark.parametrize("key", ["gaussian", "head_rows"])
def test_mutation_leaves_parents_and_biases_alone(key: str) -> None:
    layout = layout_for(key)
    rng = np.random.default_rng(0)
    parents = rng.standard_normal((50, layout.n_params)).astype(np.float32)
    kept = parents.copy()
    mutants = make_operator("mutation", key, layout)(parents, rng)
    assert np.array_equal(parents, kept) and mutants.dtype == parents.dtype
    changed = mutants != parents
    biases = [name for name, shape in zip(layout.names, layout.shapes, strict=True) if len(shape) == 1]
    assert all(not changed[:, layout.slices[name]].any() for name in biases)
    assert changed.any(axis=1).mean() > 0.3


def test_row_crossover_moves_whole_rows() -> None:
    rng = np.random.default_rng(1)
    first, second = np.zeros((30, ACTOR.n_params)), np.ones((30, ACTOR.n_params))
    a, _ = RowCrossover(ACTOR)(first, second, rng)
    rows = a[:, ACTOR.slices["l1.weight"]].reshape(30, 6, 4)
    assert set(np.unique(rows.std(axis=-1))) == {0.0}
    assert 0.1 < rows.mean() < 0.9


def test_row_crossover_as_in_cerl() -> None:
    """Up to and including 0.3 of a matrix's rows; one entry of a fifth of the vectors."""
    operator = RowCrossover(ACTOR, max_matrix_share=0.5, vector_skip_prob=0.8, inclusive=True, single_entry=True)
    events = operator.draw(4000, np.random.default_rng(0))
    tensor = np.searchsorted([6, 12, 14, 16], events.row, side="right")  # rows of l1.weight, l1.bias, out.weight, out.bias
    counts = np.stack([np.bincount(events.pair[tensor == k], minlength=4000) for k in range(4)])
    assert set(counts[0]) == {0, 1, 2, 3} and set(counts[2]) == {0, 1}
    for vector in (counts[1], counts[3]):
        assert set(vector) == {0, 1} and vector.mean() == pytest.approx(0.2, abs=0.03)


def test_gaussian_mutation_as_in_cerl() -> None:
    """Vectors are touched too, but seldom; a count may reach its limit; a vector's reset has a width of its own."""
    operator = GaussianMutation(ACTOR, fraction=0.1, inclusive=True, vector_scale=0.04, reset_prob=1.0, super_prob=0.0)
    n = 20_000
    events = operator.draw(n, np.random.default_rng(0))
    parent, place = np.divmod(events.index, ACTOR.n_params)
    inside = {name: (place >= piece.start) & (place < piece.stop) for name, piece in ACTOR.slices.items()}
    counts = {name: np.bincount(parent[hit], minlength=n) for name, hit in inside.items()}
    assert set(counts["l1.weight"]) == {0, 1, 2, 3} and set(counts["l1.bias"]) == {0, 1}
    assert (counts["l1.weight"] > 0).mean() == pytest.approx(0.75 * 3 / 4, abs=0.02), "P(U < 2 U') = 3/4, not none of 0 to 3"
    assert (counts["l1.bias"] > 0).mean() == pytest.approx(0.04 / 2, abs=0.01), "P(U < 0.08 U') = 0.04, not none of 0 to 1"
    operator = GaussianMutation(ACTOR, vector_scale=1.0, reset_prob=1.0, super_prob=0.0, reset_std=0.1, vector_reset_std=5.0)
    mutants = operator(np.full((n, ACTOR.n_params), 9.0), np.random.default_rng(1))
    for name, expected in (("l1.weight", 0.1), ("out.weight", 0.1)):
        changed = mutants[:, ACTOR.slices[name]]
        assert changed[changed != 9.0].std() == pytest.approx(expected, rel=0.1)
    operator.inclusive = True
    changed = operator(np.full((n, ACTOR.n_params), 9.0), np.random.default_rng(1))[:, ACTOR.slices["l1.bias"]]
    assert changed[changed != 9.0].std() == pytest.approx(5.0, rel=0.1)


def test_smallest_number_of_elites() -> None:
    assert [make_ga(pop_size=10, elite_fraction=0.1, min_elites=k).n_elites for k in (1, 2)] == [1, 2]
    assert make_ga(pop_size=10, elite_fraction=0.4, min_elites=2).n_elites == 4
    with pytest.raises(ValueError, match=r"min_elites=6 keeps 6 of pop_size=6.*lower min_elites"):
        make_ga(min_elites=6)


def test_head_crossover_moves_the_bias_with_its_row() -> None:
    rng = np.random.default_rng(1)
    first, second = np.zeros((30, HEAD.n_params)), np.ones((30, HEAD.n_params))
    a, b = HeadRowCrossover(HEAD)(first, second, rng)
    for child in (a, b):
        rows = child[:, :30].reshape(30, 3, 10)
        assert np.array_equal(rows.mean(axis=-1), child[:, 30:])


def test_gaussian_mutation_compounds_repeated_hits_in_order() -> None:
    operator = GaussianMutation(ACTOR)
    parents = np.full((1, ACTOR.n_params), 2.0)
    events = WeightEvents(np.array([3, 3, 5]), np.array([0.5, 0.5, 0.07]), np.array([1.0, -2.0, 0.5]))
    mutant = operator.apply(parents, events)
    assert mutant[0, 3] == pytest.approx(2.0 * 1.1 * 0.8)
    assert mutant[0, 5] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "mutation",
    [GaussianMutation(ACTOR, fraction=1.0, vector_scale=1.0), HeadMutation(HEAD)],
    ids=["gaussian", "head_rows"],
)
def test_mutating_rows_in_place_is_mutating_copies_of_them(mutation: GaussianMutation | HeadMutation) -> None:
    rng = np.random.default_rng(0)
    population = rng.standard_normal((90, mutation.layout.n_params)).astype(np.float32)
    rows, expected = rng.permutation(90)[:70].tolist(), population.copy()
    expected[rows] = mutation(population[rows], np.random.default_rng(1))
    mutation.mutate_rows(population, rows, np.random.default_rng(1))
    assert np.array_equal(population, expected)


@pytest.mark.parametrize("operator", [RowCrossover(ACTOR), HeadRowCrossover(HEAD)], ids=["rows", "head_rows"])
def test_crossing_rows_in_place_is_crossing_copies_of_them(operator: RowCrossover) -> None:
    rng = np.random.default_rng(0)
    population = rng.standard_normal((20, operator.layout.n_params)).astype(np.float32)
    first, second = rng.permutation(20)[:14].reshape(2, 7)
    expected = population.copy()
    expected[first], expected[second] = operator(population[first], population[second], np.random.default_rng(1))
    operator.cross_rows(population, first, second, np.random.default_rng(1))
    assert np.array_equal(population, expected)


def test_how_many_events_are_carried_out_at_a_time_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    operator, rng = GaussianMutation(ACTOR), np.random.default_rng(0)
    parents = rng.standard_normal((3, ACTOR.n_params))
    events = WeightEvents(rng.integers(0, parents.size, 500), rng.random(500), rng.standard_normal(500))
    together = operator.apply(parents, events)
    monkeypatch.setattr(mutation_module, "_EVENTS", 1)
    assert np.array_equal(operator.apply(parents, events), together)


def test_distinct_places_are_those_of_an_argsort() -> None:
    numbers = np.random.default_rng(0).random((50, 4, 31))
    numbers[0, 0, :2] = 0.0, np.nextafter(1.0, 0.0)
    for count in (0, 1, 20, 31):
        assert np.array_equal(_distinct(numbers, count), numbers.argsort(axis=-1) < count)


@pytest.mark.parametrize(("fraction", "expected"), [(0.7, 7), (0.29, 2), (1.0, 10), (0.0, 0)])
def test_head_mutation_changes_exactly_the_share_of_columns(fraction: float, expected: int) -> None:
    parents = np.ones((200, HEAD.n_params), dtype=np.float64)
    mutants = HeadMutation(HEAD, fraction=fraction, matrix_prob=1.0)(parents, np.random.default_rng(0))
    counts = (mutants[:, :30] != 1.0).reshape(200, 3, 10).sum(-1)
    assert set(np.unique(counts)) == {expected}


def test_ranking_puts_nan_last_and_ties_by_higher_index() -> None:
    assert rank_best_first(np.array([np.nan, 1.0, 2.0, 1.0, -np.inf])).tolist() == [2, 3, 1, 4, 0]


def test_tournaments_are_drawn_together_as_they_are_one_by_one() -> None:
    together, single = (GeneratorDraws(np.random.default_rng(3)) for _ in range(2))
    rows = [single.tournaments(1000, 3, 1)[0] for _ in range(7)]
    assert np.array_equal(together.tournaments(1000, 3, 7), rows)
    assert together.uniform() == single.uniform()


def test_epoch_protects_copies_of_the_elites() -> None:
    for seed in range(100):
        rng = np.random.default_rng(seed)
        fitness = rng.standard_normal(10)
        draws = GeneratorDraws(rng)
        ranking = rank_best_first(fitness)
        winners = sorted(set(tournament_winners(ranking, 8, 3, draws)))
        epoch = plan_epoch(ranking, winners, draws, n_elites=2, mutation_prob=1.0)
        assert len(epoch.protected) == 2 and not set(epoch.protected) & set(epoch.mutants)
        assert epoch.copies[0][0] == (int(ranking[0]), epoch.protected[0])


@pytest.mark.parametrize(
    ("pop_size", "n_elites", "n_migrants"), [(10, 4, 4), (10, 9, 0), (10, 6, 0), (6, 4, 4), (5, 2, 4), (5, 2, 2), (3, 2, 0)]
)
def test_every_elite_survives_where_there_is_hardly_room(pop_size: int, n_elites: int, n_migrants: int) -> None:
    for seed in range(100):
        ga = make_ga(pop_size, min_elites=n_elites, elite_fraction=0.0, crossover_prob=1.0, mutation_prob=1.0)
        rng = np.random.default_rng(seed)
        candidates, fitness = ga.ask(rng), rng.standard_normal(pop_size)
        ga.tell(candidates, fitness, rng, torch.randn(n_migrants, ACTOR.n_params) if n_migrants else None)
        best = np.argsort(-fitness)[:n_elites]
        assert len(set(ga.protected)) == n_elites
        assert torch.equal(ga.candidates[ga.protected], candidates[best])


def test_a_parent_is_crossed_with_another_one() -> None:
    met = set()
    for seed in range(50):
        draws = GeneratorDraws(np.random.default_rng(seed))
        epoch = plan_epoch(np.arange(6), [2, 5], draws, n_elites=1, crossover_prob=1.0, mutation_prob=0.0, cross_each=True)
        met |= {pair for batch in epoch.crossings for pair in batch if set(pair) <= {2, 5}}
        assert sum(set(pair) == {2, 5} for batch in epoch.crossings for pair in batch) == 2, "each of them, never itself"
    assert met == {(2, 5), (5, 2)}


@pytest.mark.parametrize("n_elites", [1, 4, 7, 9])
def test_every_elite_survives_an_epoch_with_distilled_children(n_elites: int) -> None:
    for seed in range(100):
        rng = np.random.default_rng(seed)
        fitness, draws = rng.standard_normal(10), GeneratorDraws(rng)
        ranking = rank_best_first(fitness)
        offspring = sorted(set(tournament_winners(ranking, 10 - n_elites, 3, draws)))
        epoch = plan_distilled_epoch(ranking, fitness, offspring, draws, n_elites=n_elites, crossover_prob=1.0)
        holds = list(range(10))
        for source, slot in epoch.copies:
            holds[slot] = source
        changed = {*epoch.mutants, *(slot for *_, slot in epoch.children), *(slot for slot, _ in epoch.crossings)}
        assert not changed & set(epoch.protected)
        assert [holds[slot] for slot in epoch.protected] == ranking[:n_elites].tolist()


def make_ga(pop_size: int = 6, **kwargs: object) -> GA:
    torch.manual_seed(0)
    return GA(torch.randn(pop_size, ACTOR.n_params), ACTOR, **kwargs)  # type: ignore[arg-type]


def test_ga_keeps_the_champion_bit_for_bit_and_does_not_write_candidates() -> None:
    ga = make_ga()
    rng = np.random.default_rng(0)
    candidates = ga.ask(rng)
    kept = candidates.clone()
    fitness = np.array([0.0, 5.0, 1.0, np.nan, 2.0, 3.0])
    ga.tell(candidates, fitness, rng)
    assert torch.equal(candidates, kept)
    assert ga.epoch is not None
    assert torch.equal(ga.candidates[ga.epoch.protected[0]], kept[1])
    assert not torch.equal(ga.candidates, kept)


def test_ga_is_a_function_of_its_generator() -> None:
    first, second = make_ga(), make_ga()
    for ga in (first, second):
        ga.tell(ga.ask(np.random.default_rng(3)), np.arange(6.0), np.random.default_rng(3))
    assert torch.equal(first.candidates, second.candidates)


def test_ga_migrants_take_unselected_slots() -> None:
    ga = make_ga(mutation_prob=0.0)
    migrants = torch.full((1, ACTOR.n_params), 7.0)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        ga.tell(ga.ask(rng), np.arange(6.0), rng, migrants)
        assert ga.epoch is not None
        for slot in ga.epoch.migrants:
            assert slot not in ga.epoch.winners and torch.equal(ga.candidates[slot], migrants[0])


def test_ga_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match=r"fitness must have shape \(6,\).*got \(5,\)"):
        make_ga().tell(torch.zeros(6, ACTOR.n_params), np.zeros(5), np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"elite_fraction=1.0 keeps 6 of pop_size=6"):
        make_ga(elite_fraction=1.0)
    with pytest.raises(ValueError, match=r"crossover must be one of.*got 'blend'"):
        make_ga(crossover="blend")
    with pytest.raises(ValueError, match=r"tournament_size must be at least 2; got 1"):
        make_ga(tournament_size=1)
    with pytest.raises(ValueError, match=r"it holds 6 candidates.*this model 4"):
        make_ga(4).load_state_dict(make_ga(6).state_dict())


def test_learner_replaces_the_weakest_by_a_copy() -> None:
    ga = make_ga()
    learner = torch.ones(ACTOR.n_params)
    ga.epoch = Epoch([[]], [[]], [], [2], [], [])
    population: Any = Population(ga, SimpleNamespace(from_learner=lambda: learner))  # type: ignore[arg-type]
    exchange = ReplaceWeakest(sync_period=2)
    fitness = np.array([3.0, 1.0, np.nan, 0.0, 5.0, 4.0])
    assert exchange(population, fitness, 1, None) is None
    assert exchange(population, fitness, 2, None) == 3
    learner.zero_()
    assert ga.candidates[3].eq(1).all()


def test_weakest_slot_rules() -> None:
    fitness = np.array([1.0, 0.0, 2.0])
    assert weakest_slot(fitness, []) == 1
    assert weakest_slot(fitness, [1], "next") == 2
    assert weakest_slot(fitness, [1], "next_weakest") == 0
    assert weakest_slot(fitness, [0, 1, 2]) is None
