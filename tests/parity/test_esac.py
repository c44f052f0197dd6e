"""ESAC against numbers from the authors' code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sb3_erl.core.noise_table import NoiseTable
from sb3_erl.core.parameters import ParameterLayout
from sb3_erl.evolution.esac import MixedES, grown_sigma
from sb3_erl.evolution.fitness.shaping import centered_ranks
from sb3_erl.evolution.operators.crossover import RowCrossover, RowEvents
from sb3_erl.learners.allocation import annealed_probability
from tests.parity.cases import Case, dispatch

SYSTEM = "esac"


def kind_of(case: Case) -> str:
    """What a case fixes, told from its contents."""
    found = {
        "tuning": "c0_signal",
        "ranks": "c0_ranks",
        "update": "theta_before",
        "perturbation": "intended_second_evaluation",
        "probability": "probability",
    }
    return (
        "crossover" if "draws" in case.settings else next((kind for kind, array in found.items() if array in case.arrays), "")
    )


class GivenNoise(NoiseTable):
    """Recorded perturbations, however few, in the order in which they are asked for."""

    def __init__(self, noise: np.ndarray):
        super().__init__(noise.size)
        self._values, self._next = noise.reshape(-1).astype(np.float32), 0

    def check_length(self, length: int) -> None:
        assert self.size % length == 0

    def offsets(self, rng: Any, n: int, length: int) -> np.ndarray:
        first = self._next
        self._next += n * length
        assert self._next <= self.size
        return np.arange(first, self._next, length)


def evolver_of(theta: torch.Tensor, noise: np.ndarray, **settings: Any) -> MixedES:
    """An evolver that perturbs by recorded noise, ``(generations, pairs, n_params)``."""
    layout = ParameterLayout(("all",), (tuple(theta.shape),))
    return MixedES(theta, 2 * noise.shape[1], layout, table=GivenNoise(noise), **settings)


# ------------------------------------------------------------------ the mother


def check_ranks(case: Case) -> None:
    n_cases = sum(name.endswith("_returns") for name in case.arrays)
    for k in range(n_cases):
        ranks, expected = centered_ranks(case.array(f"c{k}_returns")), case.array(f"c{k}_ranks")
        np.testing.assert_allclose(ranks, expected, rtol=1e-6, atol=1e-7)  # ours are float32, theirs float64
    assert n_cases > 0


def check_update(case: Case) -> None:
    """Pairs around the mother, or around anything: the bases do not enter."""
    config, noise, n_pairs = case["config"], case.array("noise"), case["config"]["pairs"]
    for n_gradient_bases in (0, n_pairs // 2):
        theta = case.tensor("theta_before")[0]
        sigma, rate = config["sigma"], config["lr"]
        bases = {"n_winners": 0, "n_gradient_bases": n_gradient_bases, "hindsight_crossover": False, "amt": False}
        evolver = evolver_of(theta, noise, sigma=sigma, learning_rate=rate, **bases)
        evolver.use_gradient_base(torch.linspace(-1, 1, len(theta)))
        for g, returns in enumerate(case.array("returns")):
            case.close(evolver.mean, case.array("theta_before")[g])
            evolver.tell(evolver.ask(np.random.default_rng(0)), returns)
            update = evolver.last_update
            assert update is not None
            case.close(update.shaped, case.array("ranks")[g])
            case.close(update.gradient * (2 / sigma), case.array("gradient")[g])  # per candidate and not divided by sigma
            case.close(evolver.mean, case.array("theta_after")[g])
        assert g + 1 == config["iterations"]


def check_perturbation(case: Case) -> None:
    theta, noise = case.tensor("theta"), case.array("noise")
    settings: Any = {"sigma": case["config"]["sigma"], "n_winners": 0}
    own = evolver_of(theta, noise[None, None], n_gradient_bases=0, **settings)
    around = evolver_of(torch.zeros_like(theta), noise[None, None], n_gradient_bases=1, **settings)
    around.use_gradient_base(theta)
    for evolver in (own, around):
        plus, minus = evolver.ask(np.random.default_rng(0))
        case.close(plus, case.array("released_first_evaluation"))
        case.close(minus, case.array("intended_second_evaluation"))
        with pytest.raises(AssertionError):
            case.close(minus, case.array("released_second_evaluation"))  # a quirk: the base itself


def check_tuning(case: Case) -> None:
    for k, config in enumerate(case["config"]["cases"]):
        sigmas, signals = case.array(f"c{k}_sigma"), case.array(f"c{k}_signal")
        sigma = float(sigmas[0])
        for g, signal in enumerate(signals):
            before, sigma = sigma, grown_sigma(sigma, signal, config["pairs"], config["lr_es"], config["clip"])
            case.close(sigma, sigmas[g + 1])
            case.close(sigma - before, case.array(f"c{k}_step")[g])
        assert len(signals) == config["updates"]


# ------------------------------------------------------------------ crossover, phases


def check_crossover(case: Case) -> None:
    names = case["config"]["parameter_order"]
    layout = ParameterLayout(tuple(names), tuple(case.array(f"first.{name}").shape for name in names))
    operator, draws = RowCrossover(layout), iter(case["draws"])

    def draw(kind: str) -> Any:
        found, value = next(draws)
        assert found == kind
        return value

    rows, into_first, first_row = [], [], 0
    for shape, limit in zip(layout.shapes, operator._limits, strict=True):
        count = draw("bounded")
        assert 0 <= count < limit == shape[0] * (2 if len(shape) > 1 else 1)
        for _ in range(count):
            into_first.append(draw("random") < 0.5)
            rows.append(first_row + draw("bounded"))
        first_row += shape[0]
    assert next(draws, None) is None
    events = RowEvents(np.zeros(len(rows), dtype=int), np.array(rows, dtype=int), np.array(into_first, dtype=bool))
    first, second, child = (
        np.concatenate([case.array(f"{who}.{name}").reshape(-1) for name in names])[None]
        for who in ("first", "second", "child")
    )
    np.testing.assert_array_equal(operator.apply(first, second, events)[1], child)


def check_probability(case: Case) -> None:
    config = case["config"]
    schedule = config["start"], config["final"], config["decay"]
    case.close([annealed_probability(schedule, frame) for frame in case.array("frame")], case.array("probability"))


CHECKS = {
    "ranks": check_ranks,
    "update": check_update,
    "perturbation": check_perturbation,
    "tuning": check_tuning,
    "crossover": check_crossover,
    "probability": check_probability,
}


def test_case(case: Case) -> None:
    dispatch(case, kind_of(case), CHECKS)
