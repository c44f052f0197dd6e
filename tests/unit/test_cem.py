"""The cross-entropy method: how much is worked on at a time changes no number."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sb3_erl.evolution import cem
from sb3_erl.evolution.cem import DiagonalCEM

N_PARAMS = 300


def make(pop_size: int = 20) -> DiagonalCEM:
    return DiagonalCEM(torch.linspace(-1, 1, N_PARAMS), pop_size, variance_init=0.5)


def test_mirrored_rows_are_those_of_the_noise_with_the_opposite_sign() -> None:
    noise = np.random.default_rng(0).standard_normal((7, N_PARAMS))
    both = make().sample(noise, mirrored=True)
    assert torch.equal(both, make().sample(np.concatenate([noise, -noise])))
    half = np.random.default_rng(1).standard_normal((10, N_PARAMS))
    assert torch.equal(make().ask(np.random.default_rng(1)), make().sample(np.concatenate([half, -half])))


@pytest.mark.parametrize("cached", [1, 1000, 10**6], ids=["least", "several", "whole"])
def test_numbers_are_those_of_array_operations_on_everything(cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cem, "_CACHED", cached)
    evolver, rng = make(), np.random.default_rng(0)
    mean, variance = evolver.mean.clone(), evolver.variance.clone()
    half = torch.as_tensor(np.random.default_rng(0).standard_normal((10, N_PARAMS)))
    candidates = evolver.ask(rng)
    assert torch.equal(candidates, mean + torch.cat([half, -half]) * variance.sqrt())
    fitness = rng.permutation(20).astype(float)
    evolver.tell(candidates, fitness)
    parents, weights = candidates[np.argsort(-fitness)[:10]], torch.as_tensor(evolver.weights)[:, None]
    assert torch.equal(evolver.mean, (weights * parents).sum(dim=0))
    squares = (weights * (parents - mean).square()).sum(dim=0)
    assert torch.equal(evolver.variance, squares / 10 + evolver.damping)
    assert torch.equal(evolver.elite, parents[0]) and torch.equal(evolver.candidates, candidates)
