"""The evolution strategy of ESAC: what its pairs perturb, who moves the mother, and how sigma grows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sb3_erl.core.noise_table import SeededNoise
from sb3_erl.core.parameters import ParameterLayout
from sb3_erl.evolution.base import PopulationSizeError
from sb3_erl.evolution.es import MirroredES
from sb3_erl.evolution.esac import MixedES, grown_sigma
from sb3_erl.evolution.fitness.shaping import centered_ranks

LAYOUT = ParameterLayout(("a", "b"), ((6, 4), (6,)))
N = LAYOUT.n_params
MOTHER, LEARNER = torch.zeros(N), torch.full((N,), 5.0)


def evolver(n_pairs: int = 10, **settings: Any) -> MixedES:
    made = MixedES(MOTHER, 2 * n_pairs, LAYOUT, **{"sigma": 0.1, "learning_rate": 0.05, **settings})
    made.use_gradient_base(LEARNER)
    return made


def generation(es: MirroredES, fitness: np.ndarray, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    candidates = es.ask(rng)
    es.tell(candidates, fitness, rng)
    return candidates


def bases(candidates: torch.Tensor) -> torch.Tensor:
    return (candidates[::2] + candidates[1::2]) / 2


def returns(seed: int = 0, n: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n)


def test_pairs_are_mirrored_around_their_bases() -> None:
    es = evolver()
    candidates = es.ask(np.random.default_rng(0))
    away = (candidates[::2] - candidates[1::2]) / 2
    noise = torch.stack([torch.as_tensor(SeededNoise().window(offset, N)) for offset, _ in es.pairs])
    torch.testing.assert_close(away, 0.1 * noise, rtol=1e-4, atol=1e-6)
    middles = bases(candidates)
    torch.testing.assert_close(middles[:6], MOTHER.expand(6, -1), rtol=0, atol=1e-6)
    torch.testing.assert_close(middles[6:], LEARNER.expand(4, -1), rtol=0, atol=1e-5)
    assert torch.equal(es.candidates, candidates)
    assert len({offset for offset, _ in es.pairs}) == 10 and abs(float(noise.mean())) < 0.2 and 0.9 < float(noise.std()) < 1.1


def test_children_have_rows_of_both_parents() -> None:
    es, fitness = evolver(), returns()
    told = generation(es, fitness)
    best = np.argsort(-fitness, kind="stable")[:4]
    assert torch.equal(es.winners, told[best.tolist()]), "as they were perturbed"
    mother, children = es.mean.clone(), bases(es.ask(np.random.default_rng(1)))[:4]
    rows = [slice(4 * k, 4 * k + 4) for k in range(6)] + [slice(24 + k, 25 + k) for k in range(6)]
    from_winner = from_mother = 0
    for child, winner in zip(children, es.winners, strict=True):
        for row in rows:
            of_winner, of_mother = (torch.allclose(child[row], parent[row], atol=1e-5) for parent in (winner, mother))
            assert of_winner or of_mother, "a row is one parent's or the other's"
            from_winner, from_mother = from_winner + (of_winner and not of_mother), from_mother + of_mother
    assert from_winner > 10 and from_mother > 10
    torch.testing.assert_close(es.mean, mother)


def test_places_of_winners_without_crossover_are_the_mothers() -> None:
    es = evolver(hindsight_crossover=False)
    generation(es, returns())
    torch.testing.assert_close(bases(es.ask(np.random.default_rng(1)))[:6], es.mean.expand(6, -1), rtol=0, atol=1e-6)


def test_ties_and_failures_among_winners() -> None:
    es = evolver(n_pairs=3, n_winners=2, n_gradient_bases=1)
    told = generation(es, np.array([np.nan, 1.0, 1.0, 1.0, np.nan, 0.0]))
    assert torch.equal(es.winners, told[[1, 2]]), "the lower index first, both may be of one pair, NaN is worst"


def test_learners_pairs_are_ranked_with_the_others() -> None:
    fitness = returns()
    worst, moved = fitness.copy(), []
    worst[12:] = -100.0 - np.arange(8)
    for values in (fitness, worst):
        es = evolver()
        generation(es, values)
        moved.append(es.mean.clone())
        assert es.last_update is not None
        np.testing.assert_array_equal(es.last_update.shaped, centered_ranks(values))
    assert not torch.equal(*moved)


def test_mother_is_that_of_openai_es() -> None:
    """Gate (c): no bases but the mother, no tuning; the same draws, bit for bit."""
    mine = evolver(n_winners=0, n_gradient_bases=0, hindsight_crossover=False, amt=False)
    adam: Any = {"optimizer": "corrected_adam", "optimizer_kwargs": {"epsilon": 1e-8 * 0.1 / 2}}
    plain = MirroredES(MOTHER, 20, sigma=0.1, learning_rate=0.05, l2_coeff=0.0, table=SeededNoise(), **adam)
    for seed in range(5):
        told = [generation(es, returns(seed), seed) for es in (mine, plain)]
        assert torch.equal(*told) and torch.equal(mine.mean, plain.mean)
    assert mine.mean.any()


def test_slots_of_winners_without_winners_yet_draw_like_openai_es() -> None:
    """Only crossover draws beside the perturbations, and after them."""
    mine, plain = evolver(n_gradient_bases=0), MirroredES(MOTHER, 20, sigma=0.1, table=SeededNoise())
    for seed in range(2):
        generation(mine, returns(seed), seed)
        generation(plain, returns(seed), seed)
        assert mine.pairs == plain.pairs


def test_sigma_of_perturbations_grows() -> None:
    es, fitness = evolver(amt_clip=0.05, amt_interval=2), 100 * returns()
    lengths = []
    for seed in range(5):
        told = generation(es, fitness, seed)
        noise = torch.stack([torch.as_tensor(SeededNoise().window(offset, N)) for offset, _ in es.pairs])
        lengths.append(float((told[::2] - told[1::2]).norm() / (2 * noise.norm())))
    np.testing.assert_allclose(lengths, [0.1, 0.1, 0.15, 0.15, 0.2], rtol=1e-4)
    assert es.sigma == pytest.approx(0.2)


@pytest.mark.parametrize("signal", ["returns", "ranks"])
def test_growth_follows_the_signal(signal: Any) -> None:
    es, fitness = evolver(amt_clip=1.0, amt_interval=1, amt_signal=signal), 3 * returns()
    generation(es, fitness)
    values = fitness if signal == "returns" else centered_ranks(fitness)
    gap = float(values.max() - values.mean())
    assert (gap > 1) == (signal == "returns")
    expected = 0.05 / (10 * 0.1) * (gap - 0.5 if gap > 1 else gap**2 / 2)
    assert es.sigma - 0.1 == pytest.approx(expected, rel=1e-5)


def test_sigma_never_shrinks_and_survives_failures() -> None:
    assert grown_sigma(0.1, np.zeros(4), 2, 0.1, 1.0) == 0.1
    assert grown_sigma(0.1, np.full(4, np.nan), 2, 0.1, 1.0) == 0.1
    assert grown_sigma(0.1, np.array([np.nan, 1.0, 3.0]), 2, 0.1, 10.0) == pytest.approx(0.1 + 0.5 * 0.5)


def test_gradients_are_divided_by_the_sigma_they_were_measured_with() -> None:
    es = evolver(amt_clip=0.1, amt_interval=1)
    generation(es, 100 * returns(0), 0)
    first = es.last_update
    generation(es, 100 * returns(0), 0)  # the same draws and ranks, but sigma has doubled
    second = es.last_update
    assert first is not None and second is not None and es.sigma == pytest.approx(0.3)
    np.testing.assert_allclose(first.direction, 2 * second.direction, rtol=1e-5)
    np.testing.assert_array_equal(first.shaped, second.shaped)


def test_state_is_saved() -> None:
    first, second = evolver(amt_interval=1), evolver(amt_interval=1)
    for seed in range(3):
        generation(first, returns(seed), seed)
    second.load_state_dict(first.state_dict())
    assert second.sigma == first.sigma > 0.1 and all(value.is_floating_point() for value in first.state_dict().values())
    for seed in range(3, 6):
        assert torch.equal(generation(first, returns(seed), seed), generation(second, returns(seed), seed))
    assert torch.equal(first.mean, second.mean) and first.sigma == second.sigma
    with pytest.raises(PopulationSizeError):
        evolver(9).load_state_dict(first.state_dict())


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="n_winners and n_gradient_bases must be at most 7 together"):
        evolver(7)
    es = evolver()
    candidates = es.ask(np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"fitness must have shape \(20,\)"):
        es.tell(candidates, np.zeros(18))
    with pytest.raises(ValueError, match="candidates must be those from ask"):
        es.tell(candidates + 1, np.zeros(20))
    with pytest.raises(ValueError, match="each pair has its own base"):
        es.ask_more(np.random.default_rng(0), 1)
    with pytest.raises(ValueError, match="evolver must be one whose pairs have one center"):
        _ = es.source


def test_metrics() -> None:
    es = evolver()
    assert "learner_pairs_mean" not in es.metrics()
    fitness = np.arange(20.0)
    fitness[8:12] = np.nan
    generation(es, fitness)
    means = es.metrics()
    assert (means["winner_pairs_mean"], means["learner_pairs_mean"]) == (3.5, 15.5) and "mother_pairs_mean" not in means


def test_mother_moves_as_with_adam_of_torch_also_after_a_generation_that_says_nothing() -> None:
    es = evolver(n_winners=0, n_gradient_bases=0, amt=False, sigma=0.005, learning_rate=0.005)
    mother = torch.nn.Parameter(MOTHER.clone())
    adam = torch.optim.Adam([mother], lr=0.005, eps=1e-8)
    for seed, fitness in enumerate([returns(0), np.ones(20), returns(1), np.ones(20), returns(2)]):
        candidates = es.ask(np.random.default_rng(seed))
        noise = (candidates[::2] - candidates[1::2]) / (2 * 0.005)
        ranks = torch.from_numpy(centered_ranks(fitness))
        mother.grad = -(ranks[::2] - ranks[1::2]) @ noise / (10 * 0.005)
        adam.step()
        es.tell(candidates, fitness)
        torch.testing.assert_close(es.mean, mother.detach(), rtol=0, atol=2e-6)


def test_weight_decay_does_not_shrink_the_mother_where_fitness_says_nothing() -> None:
    es = evolver(l2_coeff=0.1)
    generation(es, returns())
    mother = es.mean.clone()
    generation(es, np.ones(20))
    assert torch.equal(es.mean, mother) and mother.any()
