"""Who individuals descend from: what evolvers say of their offspring, and what follows over generations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_erl.core.parameters import ParameterLayout
from sb3_erl.evolution.cem import DiagonalCEM
from sb3_erl.evolution.es import MirroredES
from sb3_erl.evolution.ga import GA
from sb3_erl.evolution.operators.distilled_epoch import DistilledEpoch
from sb3_erl.evolution.operators.origins import COPY, OUTSIDE, Origins, origins_of_epoch
from sb3_erl.evolution.operators.selection import Epoch
from sb3_erl.evolution.seed_ga import SeedGA
from sb3_erl.pictures.lineage import NO_LINE, Lineage

LAYOUT = ParameterLayout.of(th.nn.Linear(4, 3))


def ga(pop_size: int = 8, **kwargs: Any) -> GA:
    return GA(th.randn(pop_size, LAYOUT.n_params, generator=th.Generator().manual_seed(0)), LAYOUT, **kwargs)


@pytest.mark.parametrize("crossover_prob", [0.0, 1.0])
@pytest.mark.parametrize("n_migrants", [0, 2])
def test_a_genetic_algorithm_tells_the_truth_about_its_offspring(crossover_prob: float, n_migrants: int) -> None:
    """Copies are equal to what they are copies of, everything else has changed; migrants come from outside."""
    evolver, rng = (
        ga(crossover_prob=crossover_prob, mutation_prob=0.5, mutation_kwargs={"fraction": 1.0}),
        np.random.default_rng(1),
    )
    migrants = th.full((n_migrants, LAYOUT.n_params), 7.0) if n_migrants else None
    assert evolver.origins() is None
    seen, changed = set(), []
    for _ in range(20):
        before = evolver.ask(rng)
        evolver.tell(before, rng.standard_normal(8), rng, migrants)
        origins, after = evolver.origins(), evolver.candidates
        assert origins is not None
        for slot, (kind, parent) in enumerate(zip(origins.kinds, origins.parents, strict=True)):
            seen.add(kind)
            if kind == COPY:
                assert th.equal(after[slot], before[parent])
            elif kind == "learner":
                assert parent == OUTSIDE and (after[slot] == 7).all()
            elif kind == "mutation" and parent != OUTSIDE:
                changed.append(not th.equal(after[slot], before[parent]))
    assert np.mean(changed) > 0.4, "a mutation may touch no weight"
    assert {COPY, "mutation", "crossover"} <= seen and ("learner" in seen) == (n_migrants > 0)


def test_an_injected_individual_is_the_learner_s_until_the_next_tell() -> None:
    evolver, rng = ga(), np.random.default_rng(1)
    evolver.tell(evolver.ask(rng), rng.standard_normal(8), rng)
    evolver.inject(th.zeros(1, LAYOUT.n_params), [3])
    origins = evolver.origins()
    assert origins is not None and origins.kinds[3] == "learner" and origins.parents[3] == OUTSIDE
    distribution = DiagonalCEM(th.zeros(5), 4)
    distribution.inject(th.ones(1, 5), [2])
    assert distribution.origins().kinds == ("sample", "sample", "learner", "sample")
    distribution.tell(distribution.ask(rng), rng.standard_normal(4))
    assert distribution.origins().kinds == ("sample",) * 4


def test_plans_in_terms_of_origins() -> None:
    plain = Epoch([[(0, 1)], []], [[(3, 2)], [(4, 1), (6, 5)]], [0, 4, 5], [2], [0], [5])
    assert origins_of_epoch(plain, 6) == Origins(
        ("crossover", COPY, COPY, COPY, "mutation", "mutation"), (0, 4, 3, 3, 4, OUTSIDE)
    )
    distilled = DistilledEpoch([(3, 2)], [(2, 0, 1)], [(4, 0)], [0], [2], [0, 4])
    assert origins_of_epoch(distilled, 5) == Origins(("mutation", "crossover", COPY, COPY, "crossover"), (0, 3, 3, 3, 4))


def test_seeds_and_mirrored_pairs() -> None:
    rng, evolver = np.random.default_rng(0), SeedGA(LAYOUT, 4, truncation=2, n_finalists=1)
    candidates = evolver.ask(rng)
    first = evolver.origins()
    assert first is not None and set(first.kinds) == {"random"} and len(set(first.founders)) == 4
    evolver.tell(candidates, np.array([4.0, 3.0, 2.0, 1.0]))
    assert evolver.origins() is None
    evolver.ask(rng)
    second = evolver.origins()
    assert second is not None and set(second.kinds) == {"mutation"} and set(second.founders) <= set(first.founders[:2])
    assert MirroredES(th.zeros(5), 4).origins() == Origins.all_of("sample", 4)


def test_ages_and_lines_over_generations() -> None:
    first = Lineage.empty().next(Origins.all_of("random", 3), 1)
    assert first.ages(1).tolist() == [0, 0, 0] and first.n_alive == 3
    second = first.next(Origins((COPY, "mutation", "learner"), (1, 1, OUTSIDE)), 2)
    assert second.ages(2).tolist() == [1, 0, 0] and second.kinds == ["random", "mutation", "learner"]
    assert second.lines == [1, 1, 3] and second.outside == [False, False, True] and second.n_alive == 2
    third = second.next(Origins(("crossover", COPY, COPY), (2, 2, 0)), 3)
    assert third.ages(3).tolist() == [0, 1, 2] and third.outside == [True, True, False]
    assert third.shares([0, 1]) == {"random": 0, "sample": 0, "mutation": 0, "crossover": 0.5, "learner": 0.5, "unknown": 0}
    drawn = third.next(Origins.all_of("sample", 3), 4)
    assert drawn.lines == [NO_LINE] * 3 and drawn.n_alive == 0
    lost = Lineage.empty().next(Origins((COPY,), (0,)), 9)
    assert lost.kinds == ["unknown"] and lost.ages(9).tolist() == [0]


@pytest.mark.parametrize(
    ("evolver", "words"),
    [
        (ga(), ["GA(pop_size=8, n_params=15, n_elites=1", "mutation=GaussianMutation("]),
        (DiagonalCEM(th.zeros(5), 4), ["DiagonalCEM(pop_size=4, n_params=5, n_parents=2"]),
        (MirroredES(th.zeros(5), 4), ["MirroredES(pop_size=4, n_params=5, sigma=0.02, learning_rate=0.01"]),
        (SeedGA(LAYOUT, 4, truncation=2, n_finalists=1), ["SeedGA(pop_size=4, n_params=15, truncation=2, sigma=0.002"]),
    ],
)
def test_evolvers_print_in_a_line(evolver: Any, words: list[str]) -> None:
    text = repr(evolver)
    assert all(word in text for word in words) and "\n" not in text and " at 0x" not in text and len(text) < 400
