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


@pytest.mark.parametrize("n", [10, 7], ids=["mirrored", "odd"])
def test_drawing_in_blocks_is_one_large_draw(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cem, "_CACHED", 2 * N_PARAMS)
    rng, plain = np.random.default_rng(1), np.random.default_rng(1)
    drawn = make().draw(n, rng)
    half = plain.standard_normal((5, N_PARAMS) if n == 10 else (7, N_PARAMS))
    noise = torch.as_tensor(np.concatenate([half, -half]) if n == 10 else half)
    assert torch.equal(drawn, make().mean + noise * make().variance.sqrt())
    assert rng.bit_generator.state == plain.bit_generator.state


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
