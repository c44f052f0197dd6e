"""EvoRainbow and EvoRainbow-Exp against numbers from the authors' code (kinds as documented with the reference cases)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sb3_erl.evolution.cem import DiagonalCEM
from sb3_erl.evolution.fitness.surrogate import h_step_value, surrogate_fitness
from sb3_erl.rollouts.jobs import Episode, EpisodeBatch, EpisodeRecord, Job
from tests.parity.cases import Case, dispatch
from tests.parity.rainbow_loop import check_generations
from tests.parity.rainbow_training import check_train_exp, check_train_shared

SYSTEM = "evo_rainbow"


# ------------------------------------------------------------------ fitness from partial rollouts


def fitness_of(entry: dict[str, Any], rewards: np.ndarray, q: float, gamma: float, terminated: bool) -> float:
    """Our fitness of one rollout with a value function of a given output."""
    record = EpisodeRecord(rewards)
    episode = Episode.from_rewards(Job(0), rewards, terminated, not terminated, np.zeros(1), record=record)
    kinds = {"critic Q1": "h_step_critic", "population value function Q1": "h_step_pevfa", "none": "truncated_return"}

    def value(observation: Any, *_: Any, pessimistic: bool) -> float:
        assert not pessimistic  # the first head, not the smaller one
        return q

    learner = SimpleNamespace(value=value, bootstrap=value)
    agent = SimpleNamespace(
        obs_to_tensor=lambda obs: (torch.as_tensor(obs), True), _predict=lambda *_, **__: None, head=torch.nn.Linear(1, 1)
    )
    surrogate: Any = kinds[entry.get("value_function", "critic Q1")]
    return float(surrogate_fitness(surrogate, EpisodeBatch((episode,), len(rewards)), gamma, learner, [agent])[0])


def close_in_float32(case: Case, actual: float, expected: np.ndarray, *summands: float) -> None:
    """Where the authors' code added numbers in float32, rounding is relative to them, not to their sum."""
    atol = case["atol"] + np.finfo(np.float32).eps * sum(map(abs, summands))
    np.testing.assert_allclose(actual, expected, rtol=case["rtol"], atol=atol)


def check_h_step_fitness(case: Case, _: Any) -> None:
    for index, entry in enumerate(case["config"]["cases"]):
        rewards, q = case.array(f"c{index}_rewards"), float(case.array(f"c{index}_q"))
        horizon = max(1, entry["H"])  # the official 0 acts like 1, which is the least that ours takes
        n = min(len(rewards), horizon)
        assert n == case.array(f"c{index}_steps_used")
        # the official code bootstraps a terminal exactly at step H; ours does not, so that case is played as a cut
        ours = fitness_of(entry, rewards[:n], q, entry["gamma"], terminated=n < horizon)
        close_in_float32(case, ours, case.array(f"c{index}_fitness"), ours, q)
        case.close(rewards[:n].sum(), case.array(f"c{index}_partial_return"))
        if entry["episode_length"] == horizon and entry["value_function"] != "none":
            masked = fitness_of(entry, rewards[:n], q, entry["gamma"], terminated=True)
            assert masked == pytest.approx(ours - entry["gamma"] ** n * q)


def check_h_step_fitness_metaworld(case: Case, _: Any) -> None:
    """The released variant discounts each reward once more than ours; the value at the end has the same exponent."""
    gamma = case["config"]["gamma"]
    for index, entry in enumerate(case["config"]["cases"]):
        rewards, q = case.array(f"c{index}_rewards"), float(case.array(f"c{index}_q"))
        n = min(len(rewards), entry["H"])
        assert n == case.array(f"c{index}_steps_used")
        discounted = fitness_of(entry, rewards[:n], q, gamma, terminated=True)
        whole = fitness_of(entry, rewards[:n], q, gamma, terminated=n < entry["H"])
        ours = gamma * discounted + (whole - discounted)
        close_in_float32(case, ours, case.array(f"c{index}_fitness"), discounted, whole - discounted)


# ------------------------------------------------------------------ the blind warm-up


def check_blind_warmup(case: Case, _: Any) -> None:
    """Informative: how far the distribution wanders if it is told zeros, which ours is only if asked to."""
    config = case["config"]
    for index, entry in enumerate(config["cases"]):
        cem = DiagonalCEM(
            torch.zeros(config["dims"]), config["pop_size"], config["parents"], damping_init=entry["damp"], antithetic=False
        )
        rng = np.random.default_rng(0)
        for _generation in range(entry["blind_generations"]):
            cem.tell(cem.ask(rng), np.zeros(config["pop_size"]))
        spread, std, damping = case.array(f"c{index}_mean_std__sample_std__damp")[-1]
        assert float(cem.damping) == pytest.approx(damping)
        if config["parents"] > 1:  # with one, a coordinate's variance has no bound, and means over coordinates say little
            near = max(case["rtol"], 6 / np.sqrt(config["dims"]))  # both are samples of so many coordinates
            assert float(cem.variance.sqrt().mean()) == pytest.approx(std, rel=near)
            assert float(cem.mean.std(correction=0)) == pytest.approx(spread, rel=near)


CHECKS = {
    "generations": check_generations,
    "h_step_fitness": check_h_step_fitness,
    "h_step_fitness_metaworld": check_h_step_fitness_metaworld,
    "train_shared": check_train_shared,
    "train_exp": check_train_exp,
    "blind_warmup": check_blind_warmup,
}


def kind_of(case: Case) -> str:
    """The kind of a case; other sizes and seeds of one have its name with a suffix, or the same arrays."""
    arrays = case.arrays
    if "actor_after_soft_update" in arrays:
        return "generations"
    if "init/embedding.w_l1.weight" in arrays:
        return "train_shared"
    if "init/actor.state_embedding.w_l1.weight" in arrays:
        return "train_exp"
    if "c0_fitness" in arrays:
        return "h_step_fitness" if "value_function" in case["config"]["cases"][0] else "h_step_fitness_metaworld"
    return "blind_warmup" if "c0_mean_std__sample_std__damp" in arrays else case["case"]


def test_case(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatch(case, kind_of(case), {kind: lambda case, check=check: check(case, monkeypatch) for kind, check in CHECKS.items()})


def test_values_are_those_of_the_first_head() -> None:
    """The bootstrap of a partial rollout is not discounted or masked by accident: a value of 0 leaves the rewards alone."""
    rewards = np.array([1.0, 2.0])
    episode = Episode.from_rewards(Job(0), rewards, False, True, np.zeros(1), record=EpisodeRecord(rewards))
    batch = EpisodeBatch((episode,), 2)
    assert h_step_value(batch, 1, 0.5, lambda *_: 4.0)[0] == 1.0 + 0.5 * 2.0 + 0.25 * 4.0
