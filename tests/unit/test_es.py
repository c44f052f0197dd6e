"""Evolution strategies: the noise table, shaped returns, the distribution."""

from __future__ import annotations

import copy
import io
import math
import pickle
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch

from sb3_erl.core import noise_table
from sb3_erl.core.noise_table import NoiseTable
from sb3_erl.evolution import es_source
from sb3_erl.evolution.es import MirroredES
from sb3_erl.evolution.es_optimizers import ClassicAdam, DampedSGD, MomentumSGD
from sb3_erl.evolution.fitness.shaping import Ties, centered_ranks, population_rank, shape_fitness

TABLE = NoiseTable(20_000, 5)


def strategy(n_params: int = 7, **kwargs: Any) -> MirroredES:
    mean = torch.linspace(-1, 1, n_params)
    return MirroredES(mean, **{"pop_size": 8, "table": TABLE, **kwargs})


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ------------------------------------------------------------------ noise table


@pytest.mark.parametrize("block", [7, 64, 1000])
def test_table_in_blocks_is_that_of_one_draw(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(noise_table, "_BLOCK", block)
    expected = np.random.RandomState(99).randn(501).astype(np.float32)
    np.testing.assert_array_equal(noise_table._draw(501, 99), expected)


def test_table_is_drawn_late_once_and_cannot_be_written() -> None:
    first, second, other = NoiseTable(3000, 41), NoiseTable(3000, 41), NoiseTable(3000, 42)
    assert first._values is None
    assert first.values is second.values and first.values.dtype == np.float32
    assert not np.array_equal(first.values, other.values)
    with pytest.raises(ValueError, match="read-only"):
        first.window(0, 5)[:] = 0
    assert np.shares_memory(first.window(9, 5), second.values)


def test_table_needs_little_more_than_its_own_memory() -> None:
    tracemalloc.start()
    noise_table._draw(3_000_000, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6 + 3 * 8 * 2**20, "3 million numbers in float64 alone would be 24 MB on top of the 12 MB"


def test_table_is_saved_as_size_and_seed() -> None:
    table = NoiseTable(50_000, 43)
    table.values.sum()
    assert len(pickle.dumps(table)) < 200
    for twin in (pickle.loads(pickle.dumps(table)), copy.deepcopy(table)):
        assert twin == table and twin.values is table.values
    assert NoiseTable(50_000, 44) != table != NoiseTable(50_001, 43)


def test_offsets_reach_both_ends_of_the_table() -> None:
    table = NoiseTable(12, 0)
    assert set(table.offsets(rng(), 200, 10).tolist()) == {0, 1, 2}
    assert table.window(2, 10).shape == (10,)
    for offset in (3, -1):
        with pytest.raises(ValueError, match=rf"offset must be in \[0, 2\].*got {offset}"):
            table.window(offset, 10)


def test_short_tables() -> None:
    with pytest.raises(ValueError, match=r"noise_table_size must be at least 10 times the 101 .*got 1000"):
        NoiseTable(1000, 0).check_length(101)
    with pytest.warns(UserWarning, match="noise_table_size=1000 is less than 100 times the 100"):
        NoiseTable(1000, 0).check_length(100)
    NoiseTable(1000, 0).check_length(1)
    with pytest.raises(ValueError, match="noise_table_size"):
        strategy(2001)


# ------------------------------------------------------------------ shaping


def test_ranks_are_over_all_returns_together() -> None:
    returns = np.array([[1.0, 2.0], [30.0, 40.0], [500.0, 100.0]])
    expected = np.array([[0, 1], [2, 3], [5, 4]]) / 5 - 0.5
    ranks = centered_ranks(returns)
    np.testing.assert_allclose(ranks, expected, atol=1e-7)
    assert ranks.dtype == np.float32


def test_ties() -> None:
    pairs = np.array([[4.0, 4.0], [1.0, 4.0]])
    assert centered_ranks(pairs)[0, 0] == centered_ranks(pairs)[0, 1]
    np.testing.assert_allclose(centered_ranks(pairs).ravel(), np.array([2, 2, 0, 2]) / 3 - 0.5, atol=1e-7)
    np.testing.assert_allclose(centered_ranks(pairs, "stable").ravel(), np.array([1, 2, 0, 3]) / 3 - 0.5, atol=1e-7)
    with pytest.raises(ValueError, match="ties must be one of"):
        centered_ranks(pairs, "first")


@pytest.mark.parametrize("ties", ["average", "stable"])
def test_nan_ranks_last(ties: Any) -> None:
    ranks = centered_ranks(np.array([0.0, np.nan, -1e300, 5.0]), ties)
    np.testing.assert_allclose(ranks, np.array([2, 0, 1, 3]) / 3 - 0.5, atol=1e-7)
    assert centered_ranks(np.full(6, np.nan), "average").tolist() == [0.0] * 6
    assert shape_fitness(np.array([3.0, np.nan, -2.0]), "sign").tolist() == [3.0, -2.0, -2.0]


def test_fitness_is_neither_changed_nor_ranked_where_signs_are_asked_for() -> None:
    fitness = np.array([3.0, np.nan, 7.0])
    kept = fitness.copy()
    assert shape_fitness(fitness, "sign")[2] == 7 and shape_fitness(fitness, "centered_sign_rank")[2] == 0.5
    np.testing.assert_array_equal(fitness, kept)
    with pytest.raises(ValueError, match="fitness_shaping must be one of"):
        shape_fitness(fitness, "rank")


def test_population_rank() -> None:
    population = np.array([[1.0, 2.0], [np.nan, 4.0]])
    assert population_rank(np.array([2.0, 9.0]), population) == (0.5 + 1) / 2
    assert population_rank(np.array([np.nan]), population) == 0.0
    assert math.isnan(population_rank(np.array([]), population))


# ------------------------------------------------------------------ optimizers


def test_adam_adds_epsilon_before_bias_correction() -> None:
    gradient = torch.tensor([1e-7, -1.0])
    step = ClassicAdam(2).step(gradient, 0.1)
    assert step[1] == pytest.approx(0.1, rel=1e-5), "t begins at 1, or the first step would not be the learning rate"
    root = math.sqrt(0.001) * 1e-7
    assert step[0] == pytest.approx(-0.1 * root / (root + 1e-8), rel=1e-4)
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = gradient
    torch.optim.Adam([parameter], lr=0.1).step()
    assert abs(parameter[0].item() - step[0].item()) > 0.01


def test_velocities() -> None:
    gradient, sgd, damped = torch.tensor([2.0]), MomentumSGD(1), DampedSGD(1)
    plain = [sgd.step(gradient, 0.5).item() for _ in range(2)]
    mean = [damped.step(gradient, 0.5).item() for _ in range(2)]
    assert plain == pytest.approx([-1.0, -1.9]) and mean == pytest.approx([-0.1, -0.19])
    with pytest.raises(ValueError, match="momentum"):
        MomentumSGD(1, momentum=1.5)


# ------------------------------------------------------------------ the distribution


def test_candidates_are_mirrored_windows_in_pairs() -> None:
    es = strategy(sigma=0.3)
    candidates = es.ask(rng())
    assert candidates.shape == (8, 7) and candidates.dtype == torch.float32 and es.pop_size == 8
    for k, (offset, start) in enumerate(es.pairs):
        noise = np.float32(0.3) * TABLE.values[offset : offset + 7]
        np.testing.assert_array_equal(candidates[2 * k], es.mean.numpy() + noise)
        np.testing.assert_array_equal(candidates[2 * k + 1], es.mean.numpy() - noise)
        assert start == 0
    assert len(set(es.pairs)) == 4, "four different perturbations"


@pytest.mark.parametrize("sigma", [0.02, 0.5])
def test_direction_is_not_divided_by_sigma_and_l2_is_not_scaled(sigma: float) -> None:
    es = strategy(sigma=sigma, l2_coeff=0.1, optimizer="sgd", learning_rate=0.25)
    es.ask(rng())
    before = es.mean.clone().numpy()
    fitness = np.array([5.0, 1.0, 2.0, 8.0, 0.0, 3.0, 4.0, 4.5])
    es.tell(es.candidates, fitness)
    ranks = np.argsort(np.argsort(fitness)) / 7 - 0.5
    noise = np.stack([TABLE.window(offset, 7) for offset, _ in es.pairs])
    direction = (ranks[::2] - ranks[1::2]) @ noise / 8
    update = es.last_update
    assert update is not None
    np.testing.assert_allclose(update.direction, direction, atol=1e-6)
    np.testing.assert_allclose(update.gradient, 0.1 * before - direction, atol=1e-6)
    np.testing.assert_allclose(es.mean, before - 0.25 * (0.1 * before - direction), atol=1e-6)
    assert update.grad_norm == pytest.approx(np.linalg.norm(direction), rel=1e-5)
    step = 0.25 * (0.1 * before - direction)
    assert update.update_ratio == pytest.approx(np.linalg.norm(step) / np.linalg.norm(before), rel=1e-5)
    assert es.mean.dtype == torch.float32


@pytest.mark.parametrize("ties", ["average", "stable"])
def test_equal_fitness_moves_nothing(ties: Ties) -> None:
    es = strategy(optimizer="sgd", learning_rate=1.0, l2_coeff=0.5, ties=ties)
    before = es.mean.clone()
    es.tell(es.ask(rng()), np.full(8, 3.0))
    assert torch.equal(es.mean, before) and es.last_update.update_ratio == 0
    es.tell(es.ask(rng()), np.arange(8.0))
    assert not torch.equal(es.mean, before)
    from_zero = MirroredES(torch.zeros(7), pop_size=4, table=TABLE)
    from_zero.tell(from_zero.ask(rng()), np.arange(4.0))
    assert from_zero.last_update.update_ratio == math.inf and torch.isfinite(from_zero.mean).all()


def test_the_first_pairs_alone_count_by_their_own_number() -> None:
    whole, part = strategy(pop_size=4), strategy(pop_size=4)
    asked = whole.ask(rng())
    part.ask(rng())
    more = part.ask_more(rng(1), 3)
    assert more.shape == (6, 7) and len(part.pairs) == 5
    fitness = np.array([3.0, 1.0, 0.0, 2.0])
    whole.tell(asked, fitness)
    part.tell(asked, fitness)
    assert torch.equal(whole.mean, part.mean)
    part.ask(rng(2))
    assert len(part.pairs) == 2
    more = part.ask_more(rng(3), 1)
    part.tell(torch.cat([part.candidates, more]), np.array([0.0, 0.0, 0.0, 0.0, 1.0, -1.0]))
    ratio = part.last_update.direction / TABLE.window(part.pairs[2][0], 7)
    np.testing.assert_allclose(ratio, 1 / 6, rtol=1e-4)


def test_a_crashed_candidate_pushes_away() -> None:
    es = strategy(pop_size=2, l2_coeff=0.0, optimizer="sgd")
    es.tell(es.ask(rng()), np.array([np.nan, -1e9]))
    assert (es.last_update.direction * TABLE.window(es.pairs[0][0], 7) <= 0).all()
    assert es.last_update.shaped.tolist() == [-0.5, 0.5]


@pytest.mark.parametrize(("fraction", "n"), [(0.3, 3), (0.7, 7), (0.05, 1), (0.31, 4)])
def test_part_of_the_parameters(fraction: float, n: int) -> None:
    es = MirroredES(torch.zeros(10), pop_size=120, sigma=0.5, perturb_fraction=fraction, table=TABLE, l2_coeff=0.0)
    candidates = es.ask(rng()).numpy()
    changed = candidates[::2] != 0
    assert (changed.sum(axis=1) == n).all()
    begins = changed & ~np.roll(changed, 1, axis=1)
    assert (begins.sum(axis=1) == 1).all(), "one window of neighbors that wraps around"
    assert {int(row.argmax()) for row in begins} == set(range(10))
    np.testing.assert_array_equal(candidates[::2], -candidates[1::2])
    for row, (offset, start) in zip(candidates[::2], es.pairs, strict=True):
        noise = np.float32(0.5) * TABLE.window(offset, n)
        np.testing.assert_array_equal(row[(start + np.arange(n)) % 10], noise)
    fitness = np.zeros(120)
    fitness[:2] = 1, -1
    es.tell(es.candidates, fitness)
    np.testing.assert_allclose(es.last_update.direction, candidates[0] / 0.5 / 120, rtol=1e-5)


def test_candidates_stay_those_that_were_asked_for() -> None:
    es = strategy()
    asked = es.ask(rng())
    es.sigma = 9.0
    assert torch.equal(es.candidates, asked)
    kept = asked.clone()
    es.tell(asked, np.arange(8.0))
    assert torch.equal(es.candidates, kept) and torch.equal(asked, kept)
    asked.fill_(0)
    assert torch.equal(es.candidates, kept)
    assert es.ask(rng()).sub(es.mean).abs().max() > 5, "the new sigma holds from the next ask on"


def test_learning_rate_holds_from_the_next_step_on() -> None:
    es = strategy(learning_rate=0.01)
    es.ask(rng())
    es.learning_rate = 0.0
    before = es.mean.clone()
    es.tell(es.candidates, np.arange(8.0))
    assert torch.equal(es.mean, before) and es.last_update.update_ratio == 0


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "damped_sgd"])
def test_saved_state_continues_to_the_last_bit(optimizer: str) -> None:
    def run(es: MirroredES, generations: range) -> MirroredES:
        for g in generations:
            candidates = es.ask(rng(g))
            es.tell(candidates, -candidates.square().sum(dim=1).numpy())
        return es

    whole, half = (run(strategy(optimizer=optimizer), range(n)) for n in (6, 3))
    file = io.BytesIO()
    torch.save(half.state_dict(), file)
    file.seek(0)
    other = strategy(optimizer=optimizer)
    other.load_state_dict(torch.load(file))
    assert torch.equal(other.candidates, half.candidates)
    run(other, range(3, 6))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
        assert tensor.is_floating_point() and tensor.numel() > 0
    assert file.getbuffer().nbytes < 20_000, "neither the table nor candidates"


def test_loading_another_shape_is_refused() -> None:
    saved = strategy().state_dict()
    with pytest.raises(ValueError, match=r"pop_size.* 8 candidates of 7 parameters, this model 10 of 7"):
        strategy(pop_size=10).load_state_dict(saved)
    with pytest.raises(ValueError, match=r"8 candidates of 7 parameters, this model 8 of 9"):
        strategy(9).load_state_dict(saved)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"pop_size": 0}, "pop_size must be"),
        ({"pop_size": 7}, "pop_size must be even.*got 7"),
        ({"sigma": 0.0}, "sigma"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"l2_coeff": -0.1}, "l2_coeff"),
        ({"perturb_fraction": 0.0}, "perturb_fraction"),
        ({"perturb_fraction": 1.1}, "perturb_fraction"),
        ({"optimizer": "adamw"}, "optimizer must be one of.*adam.*damped_sgd.*sgd"),
        ({"fitness_shaping": "raw"}, "fitness_shaping"),
        ({"ties": "random"}, "ties"),
    ],
)
def test_wrong_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        strategy(**kwargs)


def test_wrong_order_and_sizes() -> None:
    es = strategy()
    with pytest.raises(ValueError, match="ask"):
        es.tell(torch.zeros(8, 7), np.zeros(8))
    with pytest.raises(ValueError, match="ask"):
        es.ask_more(rng(), 1)
    asked = es.ask(rng())
    for n in (7, 0, 10):
        with pytest.raises(ValueError, match="fitness must hold two values per pair for 1 to 4 pairs"):
            es.tell(torch.zeros(n, 7), np.zeros(n))
    with pytest.raises(ValueError, match="fitness must have shape"):
        es.tell(asked, np.zeros((4, 2)))
    es.tell(asked, np.zeros(8))
    with pytest.raises(ValueError, match="ask"):
        es.tell(asked, np.zeros(8))


def test_finds_the_top_of_a_quadratic() -> None:
    es = MirroredES(torch.zeros(10), pop_size=20, sigma=0.05, learning_rate=0.05, l2_coeff=0.0, table=TABLE)
    target = torch.linspace(-1, 1, 10)
    generator = rng()
    for _ in range(150):
        candidates = es.ask(generator)
        es.tell(candidates, -(candidates - target).square().sum(dim=1).numpy(), generator)
    assert (es.mean - target).square().sum() < 0.02 * target.square().sum()


# ------------------------------------------------------------------ candidates that others make


@pytest.mark.parametrize("is_read", [False, True], ids=["never made here", "made when they are read"])
@pytest.mark.parametrize("perturb_fraction", [1.0, 0.4])
def test_proposed_candidates_are_those_asked_for(perturb_fraction: float, is_read: bool) -> None:
    asking, proposing = (strategy(perturb_fraction=perturb_fraction) for _ in range(2))
    ours, theirs = rng(), rng()
    for _ in range(3):
        first, proposed = asking.ask(ours), proposing.propose(theirs)
        if is_read:
            assert torch.equal(first, proposed.built())
        asked = torch.cat([first, asking.ask_more(ours, 2)])
        assert proposing.propose_more(theirs, 2) is proposed and len(proposed) == 12
        assert all(torch.equal(row, proposed[number]) for number, row in enumerate(asked))
        if is_read:
            assert torch.equal(proposed.built(), asked)
        fitness = rng(1).standard_normal(10)
        asking.tell(asked[:10], fitness)
        proposing.tell(proposed.first(10), fitness)
        assert ours.bit_generator.state == theirs.bit_generator.state
        assert torch.equal(asking.mean, proposing.mean)
        assert torch.equal(asking.best(), proposing.best())  # type: ignore[arg-type]


def test_proposed_candidates_that_were_changed_are_refused() -> None:
    es = strategy()
    proposed = es.propose(rng())
    proposed.built()[2] += 1
    for told in (proposed, proposed.built().clone()):
        with pytest.raises(ValueError, match=r"candidates must be those from ask\(\).*rows \[2\]"):
            es.tell(told, np.arange(8.0))
    es.tell(es.propose(rng()).built().clone(), np.arange(8.0))
    es.ask(rng())
    with pytest.raises(ValueError, match=r"propose\(\) must be called before"):
        es.propose_more(rng(), 1)


@pytest.mark.parametrize(("tile", "group"), [(1, 1), (3, 2), (1 << 16, 64)])
def test_sums_are_those_of_one_perturbation_after_the_other(tile: int, group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(es_source, "_TILE", tile)
    monkeypatch.setattr(es_source, "_GROUP", group)
    windows, weights = es_source.Windows(TABLE, 5, 7), rng(2).standard_normal(6)
    weights[3], pairs = 0.0, [(10 * k, k) for k in range(6)]  # the last ones wrap around
    expected = np.zeros(7, dtype=np.float32)
    for weight, (offset, start) in zip(weights.astype(np.float32), pairs, strict=True):
        for place in range(5):
            expected[(start + place) % 7] += TABLE.values[offset + place] * weight
    assert np.array_equal(es_source.weighted_sum(weights, pairs, windows), expected)
