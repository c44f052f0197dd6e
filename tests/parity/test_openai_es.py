"""OpenAI-ES, Deep GA and the CEM planner against numbers from the authors' code."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import torch

from sb3_erl.core.noise_table import NoiseTable
from sb3_erl.core.parameters import ParameterLayout
from sb3_erl.evolution.es import ESUpdate, MirroredES
from sb3_erl.evolution.fitness.shaping import centered_ranks, population_rank, shape_fitness
from sb3_erl.evolution.seed_ga import ELITE, best_first, finalists, parents_after
from sb3_erl.evolution.seed_genome import Genome, GenomeDecoder, Initialization
from sb3_erl.planning.cem_planner import CEMPlanner, spread
from sb3_erl.policies.observation_statistics import ObservationStatistics, ObservationSums
from tests.parity.cases import Case, dispatch

SYSTEM = "openai_es"


def kind_of(case: Case) -> str:
    """What a case fixes, told from its contents."""
    found = {
        "planner": "elite_index",
        "statistics": "rollout_lengths",
        "modes": "tied_returns",
        "generation": "gen1_candidates",
        "chain": "seed_indices",
        "closed loop": "target",
        "update": "noise_idx",
    }
    return next((kind for kind, array in found.items() if array in case.arrays), str(case.settings.get("kind")))


def tolerance(case: Case, name: str) -> tuple[float, float]:
    """Relative and absolute tolerance of an array (``"abs 3e-7"``, ``"rel 2 percent"``), or of the case where it has none."""
    words = case.settings.get("tolerance")
    words = words.get(name, "") if isinstance(words, dict) else ""
    numbers = {kind: float(number) for kind, number in re.findall(r"\b(abs|rel) ([0-9.]+(?:e-?[0-9]+)?)", words)}
    if not numbers:
        return case["rtol"], case["atol"]
    percent = 0.01 if "percent" in words else 1.0
    return numbers.get("rel", 0.0) * percent, numbers.get("abs", 0.0)


def compare(case: Case, name: str, actual: Any, expected: Any, slack: Any = 0.0) -> None:
    rtol, atol = tolerance(case, name)
    actual, expected = np.asarray(actual), np.asarray(expected)
    beyond = actual - np.clip(actual - expected, -slack, slack)
    np.testing.assert_allclose(beyond, expected, rtol=rtol, atol=atol, err_msg=name)


def adam_slack(gradient: np.ndarray, learning_rate: float, rounding: float = 1e-7) -> np.ndarray:
    """By how much Adam's first step may differ where a gradient is so near zero that its last digits decide about it."""

    def step(g: np.ndarray) -> np.ndarray:
        return learning_rate * g / (np.abs(g) + 1e-8 / np.sqrt(1 - 0.999))

    gradient = gradient.astype(np.float64)
    return step(gradient + rounding) - step(gradient - rounding)


class GivenTable(NoiseTable):
    """A noise table with recorded numbers, however few."""

    def __init__(self, values: np.ndarray):
        super().__init__(len(values))
        self._values = values

    def check_length(self, length: int) -> None:
        assert length <= self.size


class GivenOffsets:
    """Hands out recorded offsets, one row per generation."""

    def __init__(self, offsets: np.ndarray):
        self.offsets = list(offsets)

    def integers(self, high: int, size: int) -> np.ndarray:
        row = self.offsets.pop(0)
        assert len(row) == size and row.max() < high
        return row


# ------------------------------------------------------------------ the distribution


def optimizer_of(case: Case) -> str:
    """Only Adam has a first moment; the velocity after one step tells how much of the gradient enters it."""
    if "m" in case.arrays:
        return "adam"
    entering = np.abs(case.array("v")[0]).sum() / np.abs(case.array("globalg")[0]).sum()
    return "damped_sgd" if entering < 0.5 else "sgd"


def check_update(case: Case) -> None:
    returns, theta = case.array("returns"), case.array("theta")
    evolver = MirroredES(
        torch.as_tensor(theta[0]),
        pop_size=2 * returns.shape[1],
        sigma=float(case.array("sigma")),
        learning_rate=float(case.array("stepsize")),
        l2_coeff=float(case.array("l2coeff")),
        optimizer=optimizer_of(case),
        table=GivenTable(case.array("noise_table")),
    )
    rng: Any = GivenOffsets(case.array("noise_idx"))
    first = adam_slack(case.array("globalg")[0], evolver.learning_rate) if "m" in case.arrays else np.zeros(len(theta[0]))
    for g, pairs in enumerate(returns):
        slack = first * (g > 0)
        candidates = evolver.ask(rng)
        compare(case, "theta", candidates[0], case.array("theta_plus0")[g], slack)
        compare(case, "theta", candidates[1], case.array("theta_minus0")[g], slack)
        evolver.tell(candidates, pairs.reshape(-1))
        update = evolver.last_update
        assert isinstance(update, ESUpdate)
        compare(case, "proc", update.shaped.reshape(pairs.shape), case.array("proc")[g])
        compare(case, "g", update.direction, case.array("g")[g])
        compare(case, "g", update.gradient, case.array("globalg")[g])
        compare(case, "theta", evolver.mean, theta[g + 1], first)
        ratio, length = case.array("update_ratio")[g], np.linalg.norm(theta[g])
        compare(case, "update_ratio", update.update_ratio, ratio, np.linalg.norm(first) / max(length, 1e-9))
        compare(case, "update_ratio", update.grad_norm, np.linalg.norm(case.array("g")[g]))
        moments = {"m": "first_moment", "v": "second_moment"} if "m" in case.arrays else {"v": "velocity"}
        for name, moment in moments.items():
            compare(case, name, getattr(evolver.optimizer, moment), case.array(name)[g])
    assert not rng.offsets and evolver.mean.dtype == torch.float32


def check_closed_loop(case: Case) -> None:
    c, target = case["config"], case.array("target")
    evolver = MirroredES(
        case.tensor("theta")[0],
        pop_size=2 * c["n_pairs"],
        sigma=c["sigma"],
        learning_rate=c["stepsize"],
        l2_coeff=c["l2coeff"],
        table=GivenTable(case.array("noise_table")),
    )
    rng: Any = GivenOffsets(case.array("noise_idx"))

    def value(parameters: torch.Tensor) -> np.ndarray:
        return -np.square(parameters.numpy() - target).sum(axis=-1, dtype=np.float64).astype(np.float32)

    slack, is_clear = np.zeros(c["dim"]), True
    for g in range(c["generations"]):
        candidates = evolver.ask(rng)
        returns = value(candidates)
        is_clear = is_clear and np.diff(np.sort(returns)).min() > 4 * np.spacing(np.abs(returns).max())
        evolver.tell(candidates, returns)
        if g == 0 and evolver.last_update is not None:
            slack = adam_slack(evolver.last_update.gradient, c["stepsize"])
        if g < 5 and is_clear:  # returns that differ in their last digits may swap ranks
            actual, expected = evolver.mean.numpy(), case.array("theta")[g + 1]
            beyond = actual - np.clip(actual - expected, -slack, slack)
            np.testing.assert_allclose(beyond, expected, rtol=0, atol=case["atol"])
    rest = 0.0 if is_clear else 0.01 * abs(value(case.tensor("theta")[0]))  # near the optimum little is left to compare
    compare(case, "final_fitness", value(evolver.mean), case.array("final_fitness"), rest)


def check_modes(case: Case) -> None:
    returns, signs, tied = (case.array(name) for name in ("returns", "signreturns", "tied_returns"))
    case.close(shape_fitness(returns, "centered_rank"), case.array("centered_rank"))
    case.close(shape_fitness(signs, "sign"), case.array("sign"))
    case.close(shape_fitness(signs, "centered_sign_rank"), case.array("centered_sign_rank"))
    case.close(centered_ranks(tied, "stable"), case.array("tied_stable"))
    case.close(centered_ranks(tied, "average"), case.array("tied_average"))
    case.close(population_rank(case.array("eval_returns"), returns), case.array("eval_pop_rank"))


def check_statistics(case: Case) -> None:
    """Within the case's relative tolerance, and what rounding of the reference's float32 sums makes of it."""
    rollouts = np.split(case.array("obs"), np.cumsum(case.array("rollout_lengths"))[:-1])
    statistics = ObservationStatistics(rollouts[0].shape[1:])
    for k in range(len(rollouts) + 1):
        if k:
            statistics.merge({k - 1: ObservationSums.of(rollouts[k - 1])})
        mean, std = (case.array(name)[k].astype(np.float64) for name in ("mean", "std"))
        squares, eps = mean**2 + std**2, 4 * (k + 1) * np.finfo(np.float32).eps
        rounding = {"mean": eps * np.sqrt(squares), "std": eps * squares / std}
        for name, expected in (("mean", mean), ("std", std)):
            difference = np.abs(getattr(statistics, name).numpy() - expected)
            allowed = case["rtol"] * np.abs(expected) + rounding[name]
            assert (difference <= allowed).all(), f"{name} after {k} rollouts: off by {difference}"
    off = np.abs(statistics(torch.as_tensor(rollouts[-1])).numpy() - case.array("normalised_last_rollout"))
    assert (off <= case["atol"] + (rounding["mean"] + 5 * rounding["std"]) / std).all(), off.max(axis=0)


# ------------------------------------------------------------------ genomes


def layout_of(case: Case) -> tuple[ParameterLayout, list[float]]:
    layout = ParameterLayout(tuple(x["name"] for x in case["layout"]), tuple(tuple(x["shape"]) for x in case["layout"]))
    return layout, [x["std"] for x in case["layout"] if len(x["shape"]) > 1]


def check_chain(case: Case) -> None:
    layout, stds = layout_of(case)
    assert all(x["std"] == 0 for x in case["layout"] if len(x["shape"]) == 1) and len(set(stds[:-1])) <= 1
    std = {"hidden_std": stds[0], "output_std": stds[-1], "unit_axis": -1}
    table, offsets = GivenTable(case.array("noise_table")), case.array("seed_indices").tolist()
    scaled, normed = Initialization(layout, "fan_in", **std), Initialization(layout, "unit_norm", **std)
    case.close(scaled.scale, case.array("scale_by"))
    replayed, grown = GenomeDecoder(table, scaled), GenomeDecoder(table, scaled)
    genome = Genome((offsets[0],))
    for k, expected in enumerate(case.array("theta_chain")):
        if k:
            grown.keep([genome])
            genome = genome.child(offsets[k], float(case.array("mutation_powers")[k - 1]))
        case.close(replayed(genome), expected)
        np.testing.assert_array_equal(replayed(genome), grown(genome))
    decoder = GenomeDecoder(table, normed)
    case.close(decoder(Genome((offsets[0],))), case.array("cpu_init"))
    for name in case.arrays:
        if found := re.fullmatch(r"cpu_final_sigma_(\d+)p(\d+)", name):
            power = float(".".join(found.groups()))
            case.close(decoder(Genome(tuple(offsets), (power,) * (len(offsets) - 1))), case.array(name))


def check_generation(case: Case) -> None:
    c, fitness = case["config"], case.array("fitness")
    n, truncation = c["validation_candidates"], c["truncation_T"]
    top = case.array("valid_returns_top").mean(axis=1)
    previous = case.array("prev_elite_returns").mean()
    assert len(fitness) == c["population"] and ELITE == -1
    np.testing.assert_array_equal(best_first(fitness), case.array("order"))
    for prefix, scores in (("gen1", top), ("geng", np.append(previous, top[: n - 1]))):
        candidates = finalists(fitness, n, has_elite=prefix == "geng")
        elite = candidates[int(scores.argmax())]
        np.testing.assert_array_equal(candidates, case.array(f"{prefix}_candidates"))
        assert elite == case.array(f"{prefix}_elite")
        np.testing.assert_array_equal(parents_after(fitness, elite, truncation), case.array(f"{prefix}_parents"))


# ------------------------------------------------------------------ the planner


def check_planner(case: Case) -> None:
    c, dynamics, control = case["config"], case.array("A"), case.array("B")

    def rollout(state: np.ndarray, actions: np.ndarray) -> np.ndarray:
        rewards, x = np.empty(actions.shape[:2]), np.tile(state, (len(actions), 1))
        for t in range(actions.shape[1]):
            x = x @ dynamics.T + actions[:, t] @ control.T
            rewards[:, t] = -np.square(x).sum(axis=1) - 0.1 * np.square(actions[:, t]).sum(axis=1)
        return rewards

    planner = CEMPlanner(rollout, control.shape[1], c["H"], c["J"], c["K"], c["I"])
    plan = planner.plan_with(case.array("x0"), case.array("z"))
    case.close(plan.means, case.array("mean"))
    case.close(plan.stds, case.array("std"))
    case.close(plan.returns, case.array("returns"))
    for returns, ours, theirs in zip(case.array("returns"), plan.elites, case.array("elite_index"), strict=True):
        case.close(np.sort(returns[ours]), np.sort(returns[theirs]))  # actions that were clipped may be the same ones
    case.close(plan.action, case.array("action"))
    if "paper_sigma_last_iteration" in case.arrays:
        last = np.clip(plan.means[-2] + plan.stds[-2] * case.array("z")[-1], -1, 1)[plan.elites[-1]]
        case.close(spread(last, "mad", min_std=0.0), case.array("paper_sigma_last_iteration"))


CHECKS = {
    "update": check_update,
    "closed loop": check_closed_loop,
    "modes": check_modes,
    "statistics": check_statistics,
    "chain": check_chain,
    "generation": check_generation,
    "planner": check_planner,
}


def test_case(case: Case) -> None:
    assert math.isfinite(case["rtol"]) and math.isfinite(case["atol"])
    dispatch(case, kind_of(case), CHECKS)
