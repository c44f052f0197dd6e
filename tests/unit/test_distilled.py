"""PDERL's evolver on small networks: who is copied with which memory, what children learn, who is mutated how."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from sb3_erl.buffers.genetic_memory import GeneticMemories
from sb3_erl.core.parameters import ParameterLayout, read_parameters, write_parameters
from sb3_erl.evolution.distilled_ga import DistilledGA
from sb3_erl.evolution.operators.distillation import DistillationCrossover, GreedyDistillation
from sb3_erl.evolution.operators.distilled_epoch import DistilledEpoch
from sb3_erl.evolution.operators.matching import behavior_distance

OBS, ACTIONS, POP, CAPACITY = 3, 2, 5, 20


def actor() -> nn.Sequential:
    return nn.Sequential(nn.Linear(OBS, 8), nn.Tanh(), nn.Linear(8, ACTIONS), nn.Tanh())


def prefers(vector: Tensor) -> Any:
    """A critic that values actions by how near they are to those of this individual."""
    preferred = actor()
    write_parameters(vector, preferred)
    return lambda states, actions: -(preferred(states) - actions).square().sum(dim=-1)


def population(seed: int = 0, seen: int = CAPACITY, **kwargs: Any) -> DistilledGA:
    """Five random individuals who have seen random states each and remember their own actions in them."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = actor()
    candidates = torch.stack([read_parameters(actor()) for _ in range(POP)])
    memories = GeneticMemories(POP + 1, CAPACITY, (OBS,), np.float64, ACTIONS)
    for i in range(POP):
        states = rng.standard_normal((seen, OBS)).astype(np.float32)
        memories.append(i, states, act(network, candidates[i], states))
    settings = {"value": prefers(candidates[0]), "prepare": torch.as_tensor, "mutation_prob": 0.0, **kwargs}
    return DistilledGA(candidates, ParameterLayout.of(network), network, memories, **settings)


def act(network: nn.Module, vector: Tensor, states: np.ndarray) -> np.ndarray:
    write_parameters(vector, network)
    with torch.no_grad():
        return network(torch.as_tensor(states)).numpy()


def epoch(**changes: Any) -> DistilledEpoch:
    nothing: dict[str, Any] = {field.name: [] for field in fields(DistilledEpoch)}
    return DistilledEpoch(**{**nothing, **changes})


def vary(ga: DistilledGA, **changes: Any) -> np.ndarray:
    return ga.vary(ga.candidates.numpy(), epoch(**changes), np.random.default_rng(1))


def rows(array: np.ndarray) -> set[tuple[float, ...]]:
    return {tuple(row) for row in array.tolist()}


# ------------------------------------------------------------------ memories


def test_memories_are_saved_with_their_evolver() -> None:
    ga, other = population(0), population(1)
    other.load_state_dict(ga.state_dict())
    for mine, theirs in zip(ga.memories.arrays, other.memories.arrays, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    other.memories.clear(0)
    assert ga.memories.sizes[0] == CAPACITY  # a copy
    assert other.state_dict()["memories.stored_sizes"][0] == 0  # what is loaded stays what is used


def test_memories_change_hands_all_at_once() -> None:
    memories = population().memories
    before = memories.observations.copy()
    memories.take(np.array([1, 0, 2, 0]))
    np.testing.assert_array_equal(memories.observations, before[[1, 0, 2, 0, 4, 5]])


def test_a_child_inherits_the_newest_half_of_either_parent() -> None:
    memories = GeneticMemories(3, 8, (1,), np.int64, 1)
    for i, n in ((0, 11), (1, 3)):
        for value in range(n):
            memories.append(i, np.array([[100 * i + value]]), np.array([[value]]))
    memories.inherit(0, 1, 2, np.random.default_rng(0))
    seen, done = memories.latest(2, 8)
    assert sorted(seen[:, 0]) == [7, 8, 9, 10, 100, 101, 102]
    np.testing.assert_array_equal(seen[:, 0] % 100, done[:, 0])  # actions stay with their states
    assert memories.sizes.tolist() == [8, 3, 7]


def test_draws_are_different_and_among_the_newest() -> None:
    memories = GeneticMemories(1, 6, (1,), np.int64, 1)
    memories.append(0, np.arange(10)[:, None], np.zeros((10, 1)))
    rng = np.random.default_rng(0)
    assert rows(memories.draw(0, 6, rng)[0]) == {(float(v),) for v in range(4, 10)}
    assert rows(memories.draw(0, 3, rng, newest=3)[0]) == {(7.0,), (8.0,), (9.0,)}


# ------------------------------------------------------------------ copies and children


def test_copies_take_weights_and_memory() -> None:
    ga = population()
    new = vary(ga, copies=[(0, 2)])
    np.testing.assert_array_equal(new, ga.candidates.numpy()[[0, 1, 0, 3, 4]])
    np.testing.assert_array_equal(ga.memories.observations[2], ga.memories.observations[0])


@pytest.mark.parametrize("preferred", [0, 1])
def test_a_child_does_what_the_critic_prefers(preferred: int) -> None:
    ga = population(crossover_kwargs={"epochs": 600, "batch_size": 16, "learning_rate": 1e-2, "action_reg": 0.0})
    ga.learned.value = prefers(ga.candidates[preferred])
    new = vary(ga, children=[(0, 1, 3)])
    states, network = ga.memories.latest(3, CAPACITY)[0], actor()
    child = act(network, torch.as_tensor(new[3]), states)
    distances = [behavior_distance(child, act(network, ga.candidates[i], states)) for i in (0, 1)]
    apart = behavior_distance(*(act(network, ga.candidates[i], states) for i in (0, 1)))
    assert distances[preferred] < 0.05 * apart < distances[1 - preferred]
    np.testing.assert_array_equal(new[:3], ga.candidates.numpy()[:3])


@pytest.mark.parametrize("preferred", [0, 1])
def test_a_child_of_q_networks_takes_the_greedy_actions_that_the_critic_prefers(preferred: int) -> None:
    """Whatever the scale of the parents' values; the critic is asked about numbers of actions."""
    network = nn.Sequential(nn.Linear(OBS, 8, bias=False), nn.Tanh(), nn.Linear(8, 4, bias=False))
    layout = ParameterLayout.of(network)
    torch.manual_seed(3)
    parents = torch.randn(2, layout.n_params) * torch.tensor([[3.0], [0.3]])
    states = torch.randn(1, 40, OBS)

    def greedy(vector: Tensor) -> np.ndarray:
        return act(network, vector, states[0].numpy()).argmax(axis=1)

    wanted, other = greedy(parents[preferred]), greedy(parents[1 - preferred])
    assert (wanted != other).mean() > 0.3

    def value(flat: Tensor, actions: Tensor) -> Tensor:
        assert actions.shape == (40, 1)
        return (actions[:, 0] == torch.as_tensor(wanted)).float()

    operator = GreedyDistillation(network, layout, learning_rate=0.03)
    targets, takes_first = operator.targets(parents[:1], parents[1:], states, value)
    assert targets[0, :, 0].tolist() == wanted.tolist()
    assert takes_first[0].tolist() == ((wanted != other).tolist() if preferred == 0 else [False] * 40), "ties go to the second"
    children, errors = operator(parents[:1], parents[1:], lambda: states, [400], value)
    assert errors[0].item() == pytest.approx((greedy(parents[1]) != wanted).mean())
    assert (greedy(children[0]) != wanted).mean() < 0.1
    parts = {name: part.detach() for name, part in layout.split(parents).items()}  # type: ignore[union-attr]
    losses, _ = operator.loss(parts, states.expand(2, -1, -1), targets.expand(2, -1, -1))
    for row in range(2):
        values = torch.as_tensor(act(network, parents[row], states[0].numpy()))
        expected = -values.log_softmax(dim=1)[range(40), wanted].sum()
        assert losses[row].item() == pytest.approx(expected.item(), rel=1e-4)


def test_children_that_are_distilled_together_are_those_distilled_alone() -> None:
    torch.manual_seed(0)
    network = actor()
    operator = DistillationCrossover(network, ParameterLayout.of(network), batch_size=5)
    firsts, seconds = (torch.stack([read_parameters(actor()) for _ in range(3)]) for _ in range(2))
    states, n_steps, value = torch.randn(9, 3, 5, OBS), [9, 4, 7], prefers(firsts[0])
    given = iter(states)
    together, errors = operator(firsts, seconds, lambda: next(given), n_steps, value)
    assert len(errors) == 9
    for i, n in enumerate(n_steps):
        own = iter(states[:, [i]])
        alone, _ = operator(firsts[[i]], seconds[[i]], lambda own=own: next(own), [n], value)  # type: ignore[misc]
        torch.testing.assert_close(together[i], alone[0], rtol=1e-4, atol=1e-6)
        assert not torch.equal(alone[0], seconds[i])


def test_crossed_parents_are_replaced_by_their_child_one_after_the_other() -> None:
    ga = population()
    new = vary(ga, crossings=[(0, 1), (1, 0)])
    assert not np.array_equal(new[0], ga.candidates.numpy()[0]) and not np.array_equal(new[1], ga.candidates.numpy()[1])
    np.testing.assert_array_equal(new[2:], ga.candidates.numpy()[2:])


def test_parents_who_have_seen_nothing_leave_the_second_one_as_it_is() -> None:
    ga = population(seen=0)
    np.testing.assert_array_equal(vary(ga, children=[(0, 1, 3)])[3], ga.candidates.numpy()[1])


def test_small_memories_are_distilled_beside_full_ones() -> None:
    ga = population()
    ga.memories.clear(1)
    ga.memories.append(1, np.zeros((3, OBS)), np.zeros((3, ACTIONS)))
    ga.memories.clear(2)
    new = vary(ga, children=[(1, 1, 2), (0, 1, 3)])
    assert not np.array_equal(new[2], new[3])
    assert ga.memories.sizes[[2, 3]].tolist() == [6, 13]


# ------------------------------------------------------------------ mutation


def test_a_proximal_mutant_moves_little_where_actions_are_sensitive() -> None:
    ga = population(mutation_kwargs={"magnitude": 0.5})
    new = vary(ga, mutants=[1, 2])
    moved = new - ga.candidates.numpy()
    mutable = ga.mutation.mutable
    assert (moved[[0, 3]] == 0).all() and (moved[[1, 2]][:, ~mutable] == 0).all() and (moved[[1, 2]][:, mutable] != 0).all()
    strengths = ga.mutation.scaling(gradients(ga, 1))
    assert np.abs(moved[1, mutable] * strengths[mutable]).max() < 5 * 0.5  # noise of at most five standard deviations
    assert np.abs(moved[1, mutable] * strengths[mutable]).std() > 0.1


def gradients(ga: DistilledGA, index: int) -> np.ndarray:
    """Root of the summed squares of each action's gradient, one after the other."""
    network = ga.learned.actor
    parts = {k: v[0].clone().requires_grad_() for k, v in ga._split(ga.candidates.numpy()[[index]]).items()}
    actions = functional_call(network, parts, (torch.as_tensor(ga.memories.observations[index]),)).sum(dim=0)
    total = torch.zeros(ga.candidates.shape[1])
    for action in actions:
        grads = torch.autograd.grad(action, list(parts.values()), retain_graph=True)
        total += torch.cat([g.reshape(-1) for g in grads]).square()
    return total.sqrt().numpy()


def test_who_has_seen_nothing_is_not_mutated() -> None:
    ga = population()
    ga.memories.clear(1)
    new = vary(ga, mutants=[0, 1])
    np.testing.assert_array_equal(new[1], ga.candidates.numpy()[1])
    assert not np.array_equal(new[0], ga.candidates.numpy()[0])


@pytest.mark.parametrize("batch_size", [256, 64])
@pytest.mark.parametrize(("normalize", "ratio"), [(False, 1.0), (True, 256 / CAPACITY)])
def test_few_states_can_count_as_many(normalize: bool, ratio: float, batch_size: int) -> None:
    """As many as in the authors' code, to which magnitudes are tuned, whatever number is asked for."""
    moves = []
    for flag in (False, normalize):
        ga = population(mutation_kwargs={"normalize_batch": flag, "floor": 1e-9, "batch_size": batch_size})
        moves.append((vary(ga, mutants=[1]) - ga.candidates.numpy())[1, ga.mutation.mutable])
    np.testing.assert_allclose(moves[0], ratio * moves[1], rtol=1e-2, atol=1e-4)


# ------------------------------------------------------------------ a whole epoch


@pytest.mark.parametrize("crossover", ["distillation", "rows"])
@pytest.mark.parametrize("mutation", ["proximal", "gaussian"])
def test_every_pair_of_operators_keeps_the_elite(crossover: str, mutation: str) -> None:
    ga = population(crossover=crossover, mutation=mutation, mutation_prob=1.0, crossover_prob=0.5)
    before = ga.candidates.clone()
    ga.tell(before, np.array([0.0, 3.0, np.nan, 1.0, 2.0]), np.random.default_rng(0))
    assert ga.epoch is not None
    kept = ga.epoch.protected[0]
    assert torch.equal(ga.candidates[kept], before[1]) and not torch.equal(ga.candidates, before)
    np.testing.assert_array_equal(ga.memories.actions[kept], act(actor(), before[1], ga.memories.observations[kept]))


@pytest.mark.parametrize("distance_from", ["policy", "memory"])
def test_distance_is_measured_on_what_either_has_seen(distance_from: str) -> None:
    ga = population(parent_matching="distance", distance_from=distance_from)
    if distance_from == "memory":
        ga.memories.actions[2] += 1.0  # as if another policy had acted
    measured = ga._distances(ga.candidates.numpy(), [0, 2], np.random.default_rng(0))
    network, expected = actor(), 0.0
    for one, other in ((0, 2), (2, 0)):
        states = ga.memories.observations[other]
        theirs = ga.memories.actions[other] if distance_from == "memory" else act(network, ga.candidates[other], states)
        expected += behavior_distance(act(network, ga.candidates[one], states), theirs)
    assert measured[0, 2] == measured[2, 0] == pytest.approx(expected, rel=1e-4)


def test_most_different_parents_are_distilled_first() -> None:
    ga = population(parent_matching="distance")
    with torch.no_grad():
        ga.candidates[3] = 20 * ga.candidates[3]  # saturated actions
    plan = ga._plan(ga.candidates.numpy(), np.array([4.0, 3.0, 2.0, 1.0, 0.0]), [1, 3], 0, np.random.default_rng(0))
    assert plan.children and all(3 in pair[:2] for pair in plan.children)
