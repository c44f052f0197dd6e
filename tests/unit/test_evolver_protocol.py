"""Calls that evolvers refuse, before anything in them has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sb3_erl import PDERL
from sb3_erl.core.noise_table import NoiseTable
from sb3_erl.core.parameters import ParameterLayout
from sb3_erl.evolution.base import Evolver
from sb3_erl.evolution.cem import DiagonalCEM
from sb3_erl.evolution.es import MirroredES
from sb3_erl.evolution.ga import GA
from sb3_erl.evolution.seed_ga import SeedGA

LAYOUT = ParameterLayout(("0.weight", "0.bias"), ((3, 40), (3,)))
D, N = LAYOUT.n_params, 6
TABLE = NoiseTable(130_000, 3)
MAKERS: dict[str, Callable[[], Evolver]] = {
    "ga": lambda: GA(torch.arange(float(N * D)).reshape(N, D), LAYOUT),
    "cem": lambda: DiagonalCEM(torch.linspace(-1, 1, D), N),
    "seed_ga": lambda: SeedGA(LAYOUT, N, truncation=2, n_finalists=2, table=TABLE),
    "es": lambda: MirroredES(torch.linspace(-1, 1, D), N, table=TABLE),
}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def state(evolver: Evolver) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in evolver.state_dict().items()}


@pytest.mark.parametrize("key", ["ga", "cem", "seed_ga"])
@pytest.mark.parametrize("n", [N - 2, N + 1])
def test_another_number_of_candidates_is_refused(key: str, n: int) -> None:
    evolver = MAKERS[key]()
    candidates = evolver.ask(rng())
    before = state(evolver)
    with pytest.raises(ValueError, match=rf"fitness must have shape \({N},\).*got \({n},\) for {n} candidates"):
        evolver.tell(candidates[torch.arange(n) % N], np.arange(float(n)), rng(1))
    assert all(torch.equal(value, before[name]) for name, value in evolver.state_dict().items())


@pytest.mark.parametrize("key", ["es", "seed_ga"])
def test_edited_candidates_are_refused_by_evolvers_that_rebuild_them(key: str) -> None:
    evolver = MAKERS[key]()
    asked, fitness = evolver.ask(rng()), np.arange(float(N))
    before = state(evolver)
    for edited in (asked + 1e-3, asked.flip(0)):
        with pytest.raises(ValueError, match=r"candidates must be those from ask\(\).*rows \[0, 1, 2, 3, 4, 5\]"):
            evolver.tell(edited, fitness, rng(1))
    assert all(torch.equal(value, before[name]) for name, value in evolver.state_dict().items())
    evolver.tell(asked, fitness, rng(1))
    with pytest.raises(ValueError, match=r"ask\(\) must be called before every tell\(\)"):
        evolver.tell(asked, fitness, rng(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mutation_prob": 1.5}, "mutation_prob must be at least 0 and at most 1; got 1.5"),
        ({"crossover_prob": -0.1}, "crossover_prob must be at least 0 and at most 1; got -0.1"),
        ({"elite_fraction": -1}, "elite_fraction must be at least 0 and at most 1; got -1"),
        ({"min_elites": -3}, "min_elites must be at least 0; got -3"),
        ({"odd_winners": "first"}, r"odd_winners must be one of \['last', 'random'\]; got 'first'"),
    ],
)
def test_arguments_of_the_genetic_algorithm(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GA(torch.zeros(N, D), LAYOUT, **arguments)


@pytest.mark.parametrize("argument", ["parent_matching", "distance_from"])
def test_choices_of_the_distilled_genetic_algorithm(argument: str) -> None:
    with pytest.raises(ValueError, match=rf"{argument} must be one of .*; got 'actions'"):
        PDERL("MlpPolicy", "Pendulum-v1", evolver_kwargs={argument: "actions"})
