"""Observation statistics: what goes in, when it counts, what comes out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sb3_erl.policies.observation_statistics import ObservationStatistics, ObservationSums


def fed(*episodes: np.ndarray) -> ObservationStatistics:
    statistics = ObservationStatistics(episodes[0].shape[1:])
    statistics.merge({k: ObservationSums.of(episode) for k, episode in enumerate(episodes)})
    return statistics


def test_nothing_seen_changes_nothing_but_outliers() -> None:
    statistics = ObservationStatistics((3,))
    out = statistics(torch.tensor([[0.5, -7.0, 9.0]]))
    assert out.tolist() == [[0.5, -5.0, 5.0]] and out.dtype == torch.float32


def test_mean_and_std_with_a_light_prior() -> None:
    rows = np.random.default_rng(0).normal([1.0, -20.0], [2.0, 4.0], (40, 2))
    statistics = fed(rows[:15], rows[15:])
    count = 40 + 1e-2
    mean = rows.sum(axis=0) / count
    std = np.sqrt((np.square(rows).sum(axis=0) + 1e-2) / count - mean**2)
    np.testing.assert_allclose(statistics.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(statistics.std, std, rtol=1e-6)
    assert statistics.mean.dtype == statistics.std.dtype == torch.float32
    x = rows[0].astype(np.float32)
    np.testing.assert_allclose(statistics(torch.from_numpy(x)), np.clip((x - mean) / std, -5, 5), rtol=1e-5)


def test_constant_observations_do_not_explode() -> None:
    statistics = fed(np.full((1000, 2), 3.0))
    np.testing.assert_allclose(statistics.std, 0.1, rtol=1e-6)
    assert statistics(torch.tensor([3.2, 3.0]))[0] == pytest.approx(2.0, abs=0.01)


def test_narrow_spread_far_from_zero() -> None:
    """Float32 sums would lose it."""
    rows = np.random.default_rng(0).normal(1000.0, 0.5, (20_000, 1))
    exact, count = rows.astype(np.longdouble), 20_000 + np.longdouble(0.01)
    std = np.sqrt((np.square(exact).sum() + np.longdouble(0.01)) / count - np.square(exact.sum() / count))
    assert fed(rows).std.item() == pytest.approx(float(std), rel=1e-4)


def test_order_of_arrival_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    sums = {k: ObservationSums.of(rng.standard_normal((5, 3)) * 10.0 ** rng.integers(-6, 6)) for k in range(40)}
    results = []
    for order in (range(40), rng.permutation(40)):
        statistics = ObservationStatistics((3,))
        statistics.merge({int(k): sums[int(k)] for k in order})
        results.append(torch.cat([statistics.total, statistics.squares, statistics.mean, statistics.std]))
    assert torch.equal(*results)


def test_observing_alone_changes_nothing() -> None:
    statistics = ObservationStatistics((2,))
    ObservationSums.of(np.full((9, 2), 4.0))
    statistics(torch.full((9, 2), 4.0))
    assert statistics.mean.tolist() == [0, 0] and statistics.count.item() == 0.01


def test_broken_rows_are_left_out() -> None:
    rows = np.arange(12.0).reshape(4, 3)
    broken = np.concatenate([rows, [[np.nan, 0, 0], [0, np.inf, 0]]])
    assert ObservationSums.of(broken).count == 4
    assert torch.equal(fed(broken).mean, fed(rows).mean)


def test_images() -> None:
    sums = ObservationSums.of(np.full((2, 1, 4, 4), 200, dtype=np.uint8))
    assert sums.squares.shape == (1, 4, 4) and sums.squares.max() == 2 * 200**2, "no overflow of bytes"


def test_saved_with_the_policy_but_not_trained() -> None:
    statistics = fed(np.random.default_rng(0).normal(5, 3, (50, 2)))
    assert not list(statistics.parameters())
    loaded = ObservationStatistics((2,))
    loaded.load_state_dict(statistics.state_dict())
    x = torch.tensor([[4.0, 8.0]])
    assert torch.equal(loaded(x), statistics(x)) and not torch.equal(loaded(x), x)
    for model in (loaded, statistics):
        model.merge({0: ObservationSums.of(np.ones((7, 2)))})
    assert torch.equal(loaded.mean, statistics.mean) and torch.equal(loaded.std, statistics.std)
    assert all(tensor.is_floating_point() for tensor in statistics.state_dict().values())


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"observations must have the shape .*\(2,\); got \(3,\)"):
        ObservationStatistics((2,)).merge({0: ObservationSums.of(np.ones((4, 3)))})
    for name in ("clip", "min_std", "prior_count"):
        with pytest.raises(ValueError, match=name):
            ObservationStatistics((2,), **{name: 0.0})
