"""Seconds of evolution: one ``ask`` and ``tell`` of each evolver, for 17 observations and 6 actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.speed.measuring import Measurement, Options, Part, measurement, timed
from sb3_erl.core.parameters import ParameterLayout
from sb3_erl.evolution.cem import DiagonalCEM
from sb3_erl.evolution.es import MirroredES
from sb3_erl.evolution.ga import GA
from sb3_erl.evolution.seed_ga import SeedGA

HEAD = ParameterLayout(("weight", "bias"), ((6, 300), (6,)))
"""A linear policy of ERL-Re2."""
ACTOR = ParameterLayout(
    ("0.weight", "0.bias", "0.scale", "0.shift", "1.weight", "1.bias", "1.scale", "1.shift", "2.weight", "2.bias"),
    ((128, 17), (128,), (128,), (128,), (128, 128), (128,), (128,), (128,), (6, 128), (6,)),
)
"""An actor of ERL."""


def evolvers(pop_size: int) -> dict[str, Callable[[], Any]]:
    """:return: what makes each evolver"""
    rng = np.random.default_rng(0)

    def population(layout: ParameterLayout) -> torch.Tensor:
        return torch.as_tensor(0.1 * rng.standard_normal((pop_size, layout.n_params)), dtype=torch.float32)

    def genetic(layout: ParameterLayout, kind: str) -> Callable[[], GA]:
        crossover, mutation = ("head_rows", "head_rows") if kind == "heads" else ("rows", "gaussian")
        return lambda: GA(population(layout), layout, elite_fraction=0.2, crossover=crossover, mutation=mutation)

    return {
        "GA, ERL-Re2's heads": genetic(HEAD, "heads"),
        "GA, ERL's actors": genetic(ACTOR, "actors"),
        "CEM, ERL's actors": lambda: DiagonalCEM(population(ACTOR)[0], pop_size),
        "Deep GA, ERL's actors": lambda: SeedGA(ACTOR, pop_size, truncation=pop_size // 5, n_finalists=pop_size // 5),
        "ES, ERL's actors": lambda: MirroredES(population(ACTOR)[0], pop_size, 0.02),
    }


def generation(evolver: Any) -> Callable[[], None]:
    """:return: one generation of an evolver: candidates are asked for, and told a random fitness"""
    rng = np.random.default_rng(1)

    def work() -> None:
        candidates = evolver.ask(rng)
        evolver.tell(candidates, rng.standard_normal(len(candidates)), rng)

    return work


def least_of_cem(pop_size: int) -> Callable[[], None]:
    """
    :param pop_size: number of candidates, even
    :return: what no generation of CEM can do without: draw the noise of mirrored pairs, a few rows at a time, write float64
        candidates once, and read them once; into and out of memory that the process has already
    """
    rng, candidates = np.random.default_rng(1), np.zeros((pop_size, ACTOR.n_params))
    few = np.empty((6, ACTOR.n_params))

    def work() -> None:
        for start in range(0, pop_size // 2, len(few)):
            rng.standard_normal(out=few[: pop_size // 2 - start])
        candidates.fill(1.0)
        candidates.sum()

    return work


@measurement
def operators(options: Options) -> Measurement:
    """Generations per second for populations of 10 and of 1000; all operators work on the CPU."""
    parts: dict[str, Part] = {}
    for pop_size in (10, 1000):
        for name, make in evolvers(pop_size).items():
            parts[f"{name}, population {pop_size}"] = timed(generation(make()))
    target = {name: "20 (50 ms)" for name in parts if name.endswith(" 1000")}
    cem, least = "CEM, ERL's actors, population 1000", "least for CEM, population 1000"
    parts[least] = timed(least_of_cem(1000))
    target[f"{cem} / {least}"] = "0.71 (1.4 times the least)"

    def more(rates: dict[str, np.ndarray]) -> dict[str, Any]:
        return {"milliseconds": {name: 1e3 / float(np.median(values)) for name, values in rates.items()}}

    return Measurement("generations", parts, [(cem, least)], more=more, target=target)
