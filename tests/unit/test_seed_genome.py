"""Genomes as lists of seeds: from genome to parameters, and the genetic algorithm that breeds them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sb3_erl.core.noise_table import NoiseTable
from sb3_erl.core.parameters import ParameterLayout
from sb3_erl.evolution.seed_ga import ELITE, SeedGA, best_first, finalists, parents_after
from sb3_erl.evolution.seed_genome import Genome, GenomeDecoder, Initialization

TABLE = NoiseTable(30_000, 8)
LAYOUT = ParameterLayout.of(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)))
D = LAYOUT.n_params


def ga(**kwargs: Any) -> SeedGA:
    return SeedGA(LAYOUT, **{"pop_size": 12, "truncation": 3, "sigma": 0.05, "n_finalists": 4, "table": TABLE, **kwargs})


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def generation(evolver: SeedGA, seed: int, fitness: np.ndarray | None = None, **kwargs: Any) -> list[Genome]:
    """One generation; by default small parameters are good ones."""
    candidates = evolver.ask(rng(seed))
    population = evolver.population
    evolver.tell(candidates, worth(candidates) if fitness is None else fitness, **kwargs)
    return population


def worth(candidates: torch.Tensor) -> np.ndarray:
    return -candidates.square().sum(dim=1).numpy().astype(float)


# ------------------------------------------------------------------ genome to parameters


def test_initial_parameters_scale_with_the_number_of_inputs() -> None:
    window = TABLE.window(11, D)
    parts = LAYOUT.split(Initialization(LAYOUT, output_std=0.2)(window)[None])
    noise = LAYOUT.split(window[None])
    np.testing.assert_allclose(parts["0.weight"], noise["0.weight"] / 2, rtol=1e-6)
    np.testing.assert_allclose(parts["2.weight"], noise["2.weight"] * 0.2 / np.sqrt(3), rtol=1e-6)
    for bias in ("0.bias", "1.bias", "2.bias"):
        assert not parts[bias].any()
    assert (parts["1.weight"] == 1).all(), "a norm layer with scale 0 would be dead"


def test_units_of_a_given_length() -> None:
    layout = ParameterLayout(("conv.weight", "out.weight"), ((5, 2, 3, 3), (4, 45)))
    window = TABLE.window(0, layout.n_params)
    parts = layout.split(Initialization(layout, "unit_norm", hidden_std=2.0, output_std=0.5)(window)[None])
    np.testing.assert_allclose(np.sqrt(np.square(parts["conv.weight"][0]).sum(axis=(1, 2, 3))), 2.0, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(parts["out.weight"][0], axis=1), 0.5, rtol=1e-6)
    other = layout.split(Initialization(layout, "unit_norm", hidden_std=2.0, unit_axis=-1)(window)[None])
    np.testing.assert_allclose(np.sqrt(np.square(other["conv.weight"][0]).sum(axis=(0, 1, 2))), 2.0, rtol=1e-6)
    scaled = layout.split(Initialization(layout).scale[None])
    np.testing.assert_allclose(scaled["conv.weight"], 1 / np.sqrt(18), rtol=1e-6)


def test_mutations_add_windows_with_their_own_powers_to_all_parameters() -> None:
    decoder = GenomeDecoder(TABLE, Initialization(LAYOUT))
    parent = Genome((5, 900), (0.1,))
    child = parent.child(77, 0.25)
    assert child == Genome((5, 900, 77), (0.1, 0.25)) and parent == Genome((5, 900), (0.1,))
    np.testing.assert_array_equal(decoder(child), decoder(parent) + np.float32(0.25) * TABLE.window(77, D))
    assert child.n_bytes == 8 * 5


def test_replay_is_that_of_a_kept_ancestor_to_the_last_bit() -> None:
    replay, kept = (GenomeDecoder(TABLE, Initialization(LAYOUT)) for _ in range(2))
    genome, generator = Genome((3,)), rng()
    for k in range(50):
        kept.keep([genome, Genome((4,))])
        genome = genome.child(int(generator.integers(20_000)), float(generator.random()))
        np.testing.assert_array_equal(replay(genome), kept(genome), err_msg=str(k))
    assert kept.kept_bytes == 2 * 4 * D and replay.kept_bytes == 0
    kept(genome)[:] = 0
    kept.keep([genome])
    kept(genome)[:] = 0
    np.testing.assert_array_equal(kept(genome), replay(genome))
    assert kept.kept_bytes == 4 * D


def test_another_lineage_of_the_same_length_is_not_mistaken_for_kin() -> None:
    kept, replay = (GenomeDecoder(TABLE, Initialization(LAYOUT)) for _ in range(2))
    kept.keep([Genome((1, 2), (0.5,)), Genome((9, 8, 7, 6), (0.1, 0.1, 0.1))])
    for genome in (Genome((1, 2, 3), (0.4, 0.5)), Genome((2,)), Genome((9, 8, 5), (0.1, 0.1)), Genome((1, 2, 3), (0.5, 0.5))):
        np.testing.assert_array_equal(kept(genome), replay(genome))


def test_decoding_is_one_addition_from_the_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    evolver = ga()
    for g in range(4):
        generation(evolver, g)
    evolver.ask(rng(9))
    asked: list[int] = []
    window = NoiseTable.window

    def counted(self: NoiseTable, offset: int, length: int) -> np.ndarray:
        asked.append(offset)
        return window(self, offset, length)

    monkeypatch.setattr(NoiseTable, "window", counted)
    evolver.finalists(np.arange(12.0))
    assert len(asked) == 3, "three children; the elite is kept"


# ------------------------------------------------------------------ selection


def test_order_candidates_and_parents() -> None:
    fitness = np.array([1.0, np.nan, 3.0, 1.0, 2.0])
    assert best_first(fitness).tolist() == [2, 4, 0, 3, 1]
    assert finalists(fitness, 3, False) == [2, 4, 0] and finalists(fitness, 3, True) == [ELITE, 2, 4]
    assert parents_after(fitness, 4, 2) == [2, 4]
    assert parents_after(fitness, 0, 2) == [0, 2]
    assert parents_after(fitness, ELITE, 2) == [ELITE, 2]
    assert parents_after(fitness, ELITE, 0) == []


def test_first_generation_is_random_and_later_ones_are_mutants_of_the_best() -> None:
    evolver = ga(pop_size=200, truncation=3)
    first = generation(evolver, 0)
    assert all(len(genome.offsets) == 1 for genome in first) and len({genome.offsets for genome in first}) > 190
    fitness = worth(torch.stack([evolver.rebuild(genome) for genome in first]))
    best = [first[i] for i in best_first(fitness)[:3]]
    assert evolver.parents == best and evolver.elite == best[0]
    evolver.sigma = 0.125
    evolver.ask(rng(1))
    children = evolver.population
    lines = [Genome(child.offsets[:-1], child.powers[:-1]) for child in children]
    counts = [lines.count(genome) for genome in best]
    assert sum(counts) == 200 and min(counts) > 40, "each child has one of the parents, picked uniformly"
    assert {child.powers for child in children} == {(0.125,)}
    assert len({child.offsets[-1] for child in children}) > 190


def test_candidates_are_the_parameters_of_the_genomes() -> None:
    evolver = ga()
    for g in range(3):
        asked = evolver.ask(rng(g))
        fresh = GenomeDecoder(TABLE, Initialization(LAYOUT))
        for row, genome in zip(asked, evolver.population, strict=True):
            np.testing.assert_array_equal(row, fresh(genome))
        evolver.tell(asked, worth(asked))
        assert torch.equal(evolver.candidates, asked), "those of the children, whatever the present parents"
        assert torch.equal(evolver.rebuild(evolver.parents[0]), torch.from_numpy(fresh(evolver.parents[0])))


def test_elite_is_the_best_of_the_validation_not_of_the_training() -> None:
    evolver, fitness = ga(), np.arange(12.0)
    first = generation(evolver, 0, fitness, validation=np.array([1.0, np.nan, 5.0, 5.0]))
    assert evolver.elite == first[9], "third of 11, 10, 9, 8; the first of equals; a crash is worst"
    assert evolver.parents == [first[11], first[10], first[9]], "the elite is among the best three already"
    second = generation(ga(), 0, fitness, validation=np.array([1.0, 2.0, 3.0, 4.0]))
    assert second == first


def test_elite_outside_the_parents_replaces_the_last_of_them() -> None:
    evolver = ga()
    first = generation(evolver, 0, np.arange(12.0), validation=np.array([1.0, 2.0, 3.0, 4.0]))
    assert evolver.elite == first[8] and evolver.parents == [first[8], first[11], first[10]]


def test_elite_is_carried_over_and_can_be_dethroned() -> None:
    evolver, fitness = ga(), np.arange(12.0)
    first = generation(evolver, 0, fitness, validation=np.array([9.0, 0, 0, 0]))
    evolver.ask(rng(1))
    stack = evolver.finalists(fitness)
    assert stack.shape == (4, D) and torch.equal(stack[0], evolver.rebuild(first[11]))
    population = evolver.population
    assert torch.equal(stack[1:], torch.stack([evolver.rebuild(population[i]) for i in (11, 10, 9)]))
    evolver.tell(evolver.candidates, fitness, validation=np.array([0.5, 0.4, 0.3, 0.2]))
    assert evolver.elite == first[11] and evolver.parents == [first[11], population[11], population[10]]
    third = generation(evolver, 2, fitness, validation=np.array([0.3, 0.2, 0.4, 0.1]))
    assert evolver.elite == third[10], "its earlier 9.0 and 0.5 do not count"
    assert evolver.parents == [third[11], third[10], third[9]]
    assert len(third[10].offsets) == 3 or len(third[10].offsets) == 2


def test_without_validation_the_best_single_episode_counts() -> None:
    evolver = ga()
    first = generation(evolver, 0, np.arange(12.0))
    generation(evolver, 1, np.arange(12.0) - 5)
    assert evolver.elite == first[11] and evolver.elite_score == 11
    third = generation(evolver, 2, np.arange(12.0) + 0.5)
    assert evolver.elite == third[11] and evolver.elite_score == 11.5


def test_random_search_never_mutates_but_keeps_its_best() -> None:
    evolver = ga(truncation=0)
    for g in range(3):
        population = generation(evolver, g)
        assert all(len(genome.offsets) == 1 for genome in population) and evolver.parents == []
    assert evolver.elite is not None and float(evolver.elite_score) >= worth(evolver.candidates).max()


def test_improves() -> None:
    evolver = ga(pop_size=40, truncation=5, sigma=0.05)
    scores = []
    for g in range(40):
        generation(evolver, g)
        scores.append(float(evolver.elite_score))
    # The layer norm's scales begin at 1, far from what is asked for here.
    assert scores == sorted(scores) and scores[-1] > 0.25 * scores[0]


# ------------------------------------------------------------------ state


def test_saved_state_is_genomes_and_continues_to_the_last_bit() -> None:
    def run(evolver: SeedGA, generations: range) -> SeedGA:
        for g in generations:
            generation(evolver, g)
        return evolver

    whole, half = (run(ga(), range(n)) for n in (7, 4))
    file = io.BytesIO()
    torch.save(half.state_dict(), file)
    file.seek(0)
    loaded = ga()
    loaded.load_state_dict(torch.load(file))
    assert loaded.population == half.population and loaded.elite == half.elite and loaded.parents == half.parents
    assert torch.equal(loaded.candidates, half.candidates)
    run(loaded, range(4, 7))
    assert loaded.population == whole.population and loaded.parents == whole.parents
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
        assert tensor.is_floating_point() and tensor.numel() > 0
    shorter, busy = run(ga(), range(1)), ga()
    busy.ask(rng())
    for other in (loaded, busy):
        other.load_state_dict(shorter.state_dict())
        assert other.population == shorter.population and other.parents == shorter.parents


def test_saved_state_does_not_grow_with_the_network() -> None:
    sizes = []
    for width in (3, 60):
        layout = ParameterLayout.of(nn.Linear(width, width))
        evolver = ga() if width == 3 else SeedGA(layout, 12, 3, 0.05, 4, table=NoiseTable(4_000_000, 8))
        for g in range(3):
            generation(evolver, g, np.arange(12.0))
        sizes.append(sum(tensor.numel() for tensor in evolver.state_dict().values()))
    assert sizes[0] == sizes[1] < 100


def test_offsets_of_the_largest_table_survive_saving() -> None:
    evolver = ga()
    evolver.ask(rng())
    evolver.offspring[0, 1] = 249_999_999
    other = ga()
    other.load_state_dict(evolver.state_dict())
    assert other.population[0] == Genome((249_999_999,))


def test_any_numbers_can_be_loaded() -> None:
    """SB3's tests load random numbers between 0 and 1 into everything, then learn."""
    evolver = ga()
    generation(evolver, 0)
    random = {name: torch.rand_like(tensor) for name, tensor in evolver.state_dict().items()}
    evolver.load_state_dict(random)
    assert all(torch.equal(tensor, random[name]) for name, tensor in evolver.state_dict().items())
    assert evolver.candidates.shape == (12, D)
    generation(evolver, 1)


def test_another_pop_size_is_refused_and_another_truncation_is_not() -> None:
    evolver = ga()
    generation(evolver, 0)
    with pytest.raises(ValueError, match=r"pop_size.* 12 children, this model 13 "):
        ga(pop_size=13).load_state_dict(evolver.state_dict())
    other = ga(truncation=5)
    other.load_state_dict(evolver.state_dict())
    generation(other, 1)
    assert len(other.parents) == 5


def test_footprint() -> None:
    evolver = ga()
    evolver.ask(rng())
    assert evolver.footprint.genome_bytes == 8 and evolver.footprint.kept_bytes == 0
    evolver.tell(evolver.candidates, np.arange(12.0))
    evolver.ask(rng())
    report = evolver.footprint
    assert (report.n_params, report.parameter_bytes, report.genome_bytes) == (D, 4 * D, 24)
    assert report.kept_bytes == 3 * 4 * D


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"pop_size": 1}, "pop_size"),
        ({"truncation": 13}, "truncation"),
        ({"truncation": -1}, "truncation"),
        ({"n_finalists": 0}, "n_finalists"),
        ({"n_finalists": 13}, "n_finalists"),
        ({"sigma": 0.0}, "sigma"),
        ({"init": "xavier"}, "init must be one of"),
        ({"init_output_std": 0.0}, "init_output_std"),
        ({"table": NoiseTable(100)}, "noise_table_size"),
    ],
)
def test_wrong_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ga(**kwargs)


def test_wrong_order_and_sizes() -> None:
    evolver = ga()
    with pytest.raises(ValueError, match="ask"):
        evolver.tell(torch.zeros(12, D), np.zeros(12))
    assert evolver.population == [] and evolver.elite is None
    evolver.ask(rng())
    for n in (11, 13):
        with pytest.raises(ValueError, match=rf"fitness must have shape \(12,\).*got \({n},\)"):
            evolver.tell(torch.zeros(n, D), np.zeros(n))
    with pytest.raises(ValueError, match=r"validation must have shape \(4,\).*got \(4, 30\)"):
        evolver.tell(evolver.candidates, np.zeros(12), validation=np.zeros((4, 30)))
    with pytest.raises(ValueError, match="noise_table_size"):
        evolver.rebuild(Genome((30_000,)))
