"""PDERL against numbers from the authors' code."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from sb3_erl.buffers.genetic_memory import GeneticMemories
from sb3_erl.core.parameters import ParameterLayout, read_parameters
from sb3_erl.evolution.ga import count_elites
from sb3_erl.evolution.operators.distillation import DistillationCrossover
from sb3_erl.evolution.operators.distilled_epoch import plan_distilled_epoch
from sb3_erl.evolution.operators.matching import behavior_distance, pairs_by_distance, pairs_by_fitness
from sb3_erl.evolution.operators.proximal import ProximalMutation, sensitivity
from sb3_erl.evolution.operators.selection import rank_best_first, tournament_winners
from sb3_erl.policies.erl import ERLPolicy
from tests.parity.cases import Case, dispatch
from tests.parity.test_erl import actor_names, check_ddpg_update, check_epoch, critic_names, recorded

SYSTEM = "pderl"


def kind_of(case: Case) -> str:
    """What a case fixes, told from the function that was run."""
    for kind in CHECKS:
        if kind in case["ran"]:
            return kind
    return str(case["ran"])


def policy_of(case: Case, prefix: str | None = None) -> ERLPolicy:
    """Networks of the case's sizes; with a prefix, an actor with these tensors."""
    arrays = case.arrays
    actor = next(name.removesuffix("w_l1.weight") for name in arrays if name.endswith(".w_l1.weight"))
    hidden, obs_dim = arrays[f"{actor}w_l1.weight"].shape
    act_dim = len(arrays[f"{actor}w_out.bias"])
    critic = [f"critic.{layer}.bias" for layer in ("w_state_l1", "w_l2")]
    policy = ERLPolicy(
        spaces.Box(-np.inf, np.inf, (obs_dim,), np.float32),
        spaces.Box(-1, 1, (act_dim,), np.float32),
        lambda _: 1e-3,
        net_arch={"pi": [hidden] * 2, "qf": [len(arrays[name]) for name in critic if name in arrays] or [2, 2]},
    )
    if prefix is not None:
        load(actor_names(policy.actor), case, prefix)
    if "critic.w_out.weight" in arrays:
        load(critic_names(policy.critic), case, "critic")  # type: ignore[arg-type]
    return policy


@torch.no_grad()
def load(places: dict[str, Tensor], case: Case, prefix: str) -> None:
    values = case.under(f"{prefix}.")
    assert set(values) == set(places)
    for name, place in places.items():
        place.copy_(values[name])


def compare(case: Case, policy: ERLPolicy, vector: Tensor, prefix: str) -> None:
    """A flat actor against the tensors of the reference."""
    torch.nn.utils.vector_to_parameters(vector, policy.actor.parameters())
    names, expected = actor_names(policy.actor), case.under(f"{prefix}.")
    assert set(names) == set(expected)
    for name, value in expected.items():
        case.close(names[name], value)


def check_forward(case: Case) -> None:
    policy = policy_of(case, "actor")
    with torch.no_grad():
        case.close(policy.actor(case.tensor("obs").float()), case.array("action"))
        case.close(policy.critic(case.tensor("obs").float(), case.tensor("action").float())[0], case.array("q"))


# ------------------------------------------------------------------ mutation


def check_mutation(case: Case) -> None:
    policy = policy_of(case, "before")
    layout = ParameterLayout.of(policy.actor)
    operator = ProximalMutation(layout, magnitude=case["config"]["mut_mag"])
    parent = read_parameters(policy.actor)[None]
    states = case.tensor("states").float()[None]
    measured = sensitivity(policy.actor, layout, parent, states).numpy()
    flags = np.concatenate([np.full(np.prod(s, dtype=int), len(s) >= 2) for s in layout.shapes])
    np.testing.assert_array_equal(operator.mutable, flags)
    raw = case.array("sensitivity_raw")
    # small ones, and whether they are zero, are what large terms of a sum in float32 leave over, in which processors differ
    rounding = max(1e-6 * np.abs(raw).max(), 2e-7 * states.shape[1])
    is_rounding = np.isclose(measured[0, flags], raw, rtol=0, atol=rounding)
    measured[0, flags] = np.where(is_rounding, raw, measured[0, flags])
    case.close(measured[0, flags], raw)
    case.close(operator.scaling(measured)[0, flags], case.array("scaling"))
    case.close(parent[0].numpy()[flags], case.array("params_before"))
    noise = np.full(parent.shape, np.nan)
    noise[0, flags] = case["config"]["mut_mag"] * case.array("z")
    mutant = operator.apply(parent.numpy(), measured, noise)
    case.close(mutant[0, flags], case.array("params_after"))
    compare(case, policy, torch.as_tensor(mutant[0]), "after")


# ------------------------------------------------------------------ crossover


def crossover_of(case: Case) -> tuple[ERLPolicy, DistillationCrossover, list[Tensor], Any]:
    policy = policy_of(case)
    parents = []
    for prefix in ("p1", "p2"):
        load(actor_names(policy.actor), case, prefix)
        parents.append(read_parameters(policy.actor)[None])
    c = case["config"]
    operator = DistillationCrossover(policy.make_actor(), ParameterLayout.of(policy.actor), learning_rate=c["lr"])
    value = lambda states, actions: policy.critic(states, actions)[0, :, 0]  # noqa: E731
    return policy, operator, parents, value


def check_distillation_steps(case: Case) -> None:
    policy, operator, parents, value = crossover_of(case)
    states = case.tensor("states").float()
    compare(case, policy, parents[1][0], "child0")
    for step in range(len(states)):
        _, takes_first = operator.targets(*parents, states[step][None], value)
        np.testing.assert_array_equal(takes_first[0], case.array("takes_p1")[step])
        given = iter(states)
        child, errors = operator(*parents, lambda given=given: next(given)[None], [step + 1], value)  # type: ignore[misc]
        compare(case, policy, child[0], f"child{step + 1}")
        case.close(errors[step][0], case.array("reported_mse")[step])
    parts = {name: part.detach() for name, part in operator.layout.split(parents[1]).items()}  # type: ignore[union-attr]
    targets, _ = operator.targets(*parents, states[0][None], value)
    case.close(operator.loss(parts, states[0][None], targets)[0][0], case.array("total_loss")[0])


def check_distillation(case: Case) -> None:
    policy, operator, parents, value = crossover_of(case)
    states = torch.cat([case.tensor("mem1"), case.tensor("mem2")]).float()[None]
    c = case["config"]
    assert len(states[0]) == c["child_memory"] == c["batch"] and c["iters_per_epoch"] * c["epochs"] == c["updates"]
    child, errors = operator(*parents, lambda: states, [c["updates"]], value)
    compare(case, policy, child[0], "child")
    case.close(torch.stack(errors)[:, 0], case.array("reported_mse"))


# ------------------------------------------------------------------ memories and mates


def check_memory(case: Case) -> None:
    for k, c in enumerate(case["config"]["cases"]):
        memories = GeneticMemories(2, c["capacity"], (1,), np.int64, 1)
        values = c["first_value"] + np.arange(c["added"])
        for value in values:
            memories.append(0, np.array([[value]]), np.zeros((1, 1)))
        np.testing.assert_array_equal(memories.latest(0, c["asked"])[0][:, 0], case.array(f"c{k}_latest"))
        small = GeneticMemories(1, 5, (1,), np.int64, 1)
        small.append(0, *memories.latest(0, c["asked"]))
        stored = small.observations[0, : small.sizes[0], 0]
        expected, position = case.array(f"c{k}_copied_into_5"), int(case.array(f"c{k}_copied_position"))
        np.testing.assert_array_equal(np.sort(stored), np.sort(expected))
        in_order = np.roll(expected, -position) if len(expected) == 5 else expected
        np.testing.assert_array_equal(small.latest(0, 5)[0][:, 0], in_order)


def check_matching(case: Case) -> None:
    fitness, genomes = case.array("fitness"), [int(i) for i in case.array("genomes")]
    pairs = pairs_by_fitness(genomes, fitness)
    assert pairs == list(zip(case.array("fit_first"), case.array("fit_second"), strict=True))
    case.close([fitness[a] + fitness[b] for a, b in pairs], case.array("fit_sum"))
    n = len({match[1] for name in case.arrays if (match := re.match(r"ind(\d+)\.", name))})
    distance = symmetric(case, n, policy_of(case))
    ordered = pairs_by_distance(range(n), fitness, distance)
    case.close([distance[pair] for pair in ordered], case.array("dist_value"))
    ours = [frozenset(pair) for pair in ordered]
    theirs = [frozenset((int(a), int(b))) for a, b in zip(case.array("dist_first"), case.array("dist_second"), strict=True)]
    assert ours == theirs


def symmetric(case: Case, n: int, policy: ERLPolicy) -> np.ndarray:
    """Distances in both directions, added."""
    one_way = np.zeros((n, n))
    for a in range(n):
        load(actor_names(policy.actor), case, f"ind{a}")
        for b in set(range(n)) - {a}:
            with torch.no_grad():
                own = policy.actor(case.tensor(f"ind{b}_states").float()).numpy()
            one_way[a, b] = behavior_distance(own, case.array(f"ind{b}_actions"))
    return one_way + one_way.T


# ------------------------------------------------------------------ epochs


def check_any_epoch(case: Case) -> None:
    if not case["config"]["distil"]:
        check_epoch(case)
        return
    c, fitness = case["config"], case.array("fitness")
    ranking = rank_best_first(fitness)
    n_elites, n_tournaments = count_elites(c["elite_fraction"], c["pop_size"]), len(case.array("tournament_draws"))
    draws = recorded(case["draws"], n_tournaments)
    winners = tournament_winners(ranking, n_tournaments, c["tournament_size"], draws)
    draws.own_mates = winners
    epoch = plan_distilled_epoch(
        ranking,
        fitness,
        list(set(winners)),  # the official order of distinct winners is that of a Python set
        draws,
        n_elites=n_elites,
        crossover_prob=c["crossover_prob"],
        mutation_prob=c["mutation_prob"],
        official_pairing=True,
    )
    events = [["copy", *copy] for copy in epoch.copies]
    events += [["copy", ["distil", first, second], slot] for first, second, slot in epoch.children]
    events += [["copy", ["distil", slot, mate], slot] for slot, mate in epoch.crossings]
    events += [["mutate", slot] for slot in epoch.mutants]
    # there a parent that is repeated may be its own mate, which ours draws only where it has others to choose from
    is_void = lambda event: event[0] == "copy" and event[1] == ["distil", event[2], event[2]]  # noqa: E731
    ours, theirs = ([event for event in each if not is_void(event)] for each in (events, case["events"]))
    assert ours == theirs
    assert draws.n_left == len(case["events"]) - len(events)
    assert epoch.protected[0] == case["returned_elite_slot"]


CHECKS = {
    "epoch": check_any_epoch,
    "Actor.forward": check_forward,
    "DDPG.update_parameters": check_ddpg_update,
    "SSNE.proximal_mutate": check_mutation,
    "GeneticAgent.update_parameters": check_distillation_steps,
    "SSNE.distilation_crossover": check_distillation,
    "ReplayMemory": check_memory,
    "SSNE.sort_groups": check_matching,
}


def test_case(case: Case) -> None:
    dispatch(case, kind_of(case), CHECKS)
