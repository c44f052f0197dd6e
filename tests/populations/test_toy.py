"""Figure 2 of the paper: the population reaches the optimum, and does not without exploit or without explore."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sb3_erl import PBT, Uniform
from tests.populations.toy import Surrogate, TrueValue

BEGIN = [{"h0": 1.0, "h1": 0.0}, {"h0": 0.0, "h1": 1.0}]
"""What figure 2 begins with; theta is (0.9, 0.9)."""


def best_value(**kwargs: Any) -> float:
    """The true value that a population of two reaches."""
    model = PBT(
        "MlpPolicy",
        TrueValue(),
        algorithm=Surrogate,
        pop_size=2,
        ready_steps=10,
        search_space={"h0": Uniform(0.0, 1.0), "h1": Uniform(0.0, 1.0)},
        n_eval_episodes=1,
        n_report_episodes=1,
        device="cpu",
        **{"seed": 0, "initial_hyperparameters": BEGIN, **kwargs},
    ).learn(500)
    theta = model.predict(np.zeros(1, np.float32))[0].astype(float)
    assert model.champion_return == pytest.approx(1.2 - np.square(theta).sum(), abs=1e-5)
    return float(model.champion_return)


@pytest.mark.parametrize("exploit", ["truncation", "ga"])
@pytest.mark.parametrize("explore", ["perturb", "resample"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_population_reaches_the_optimum(exploit: str, explore: str, seed: int) -> None:
    kwargs = {"exploit_kwargs": {"elite_fraction": 0.5}} if exploit == "ga" else {}
    assert best_value(exploit=exploit, explore=explore, seed=seed, **kwargs) > 1.15


def test_binary_tournament_reaches_the_optimum_once_members_differ() -> None:
    """At the beginning of the figure both members have the same value, and a tournament needs a winner."""
    begin = [{"h0": 1.0, "h1": 0.1}, {"h0": 0.0, "h1": 1.0}]
    assert best_value(exploit="tournament", explore="resample", initial_hyperparameters=begin) > 1.15


@pytest.mark.parametrize("without", [{"exploit": "none"}, {"explore": "none"}, {"exploit": "none", "explore": "none"}])
def test_it_does_not_without_exploit_or_without_explore(without: dict[str, str]) -> None:
    """One of the parts stays at 0.9, so the value at 1.2 - 0.81."""
    assert best_value(**without) < 0.4
