"""The end of a generation: who goes on with whose weights and which hyper-parameters."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_erl.core.parameters import ParameterLayout, read_parameters, write_parameters
from sb3_erl.populations.exploit import Exploit, check_parents
from sb3_erl.populations.explore import Explore
from sb3_erl.populations.member import MemberState, Recipe, Result, packed, replaced, unpacked
from sb3_erl.populations.space import Knob
from sb3_erl.rollouts.soundness import WorkerError


@dataclass(frozen=True)
class Rules:
    """
    How a population goes on.

    :param exploit: who takes over whose weights
    :param explore: what becomes of hyper-parameters that were taken over
    :param space: of the search
    :param copy_buffer: whether replay buffers are taken over, too
    :param copy_statistics: whether ``VecNormalize`` statistics are taken over, too
    """

    exploit: Exploit
    explore: Explore
    space: Mapping[str, Knob]
    copy_buffer: bool
    copy_statistics: bool


@dataclass(frozen=True)
class Selected:
    """
    The population after a generation.

    :param states: of the members
    :param parents: for each member the one with whose weights it goes on
    :param champion: number of the member with the highest score, ``None`` if none has a score
    """

    states: list[MemberState]
    parents: list[int]
    champion: int | None


def acting_network(model: Any) -> nn.Module:
    """:return: the network of a model that acts: the actor, the network of values, or the whole policy of one network"""
    for name in ("actor", "q_net", "quantile_net"):
        network = getattr(model.policy, name, None)
        if isinstance(network, nn.Module):
            return network
    return model.policy


def select(
    results: Sequence[Result], rules: Rules, recipe: Recipe, rng: np.random.Generator, env: VecEnv | None = None
) -> Selected:
    """
    :param results: of all members
    :param rules: of the population
    :param recipe: of all members
    :param rng: generator of the generation
    :param env: of the population, which hindsight replay buffers ask for rewards
    :return: the population with which the next generation begins
    :raises WorkerError: if no member came through, with the error of the first
    """
    report_losses(results)
    scores = np.array([result.score for result in results])
    states = [result.state for result in results]
    sound = [i for i, result in enumerate(results) if result.outcome == "trained"]
    if not sound and any(result.outcome == "failed" for result in results):
        first = next(result for result in results if result.outcome == "failed")
        raise WorkerError(
            f"no member came through this generation; the first of them failed so:\n{first.message}\nThe members are as "
            "they were before it: learn() can be called again, and checkpoints are whole"
        )
    scored = [i for i in sound if np.isfinite(scores[i])]
    parents = list(range(len(results)))
    new = dict(enumerate(states))
    if len(scored) >= 2:
        for place, parent, state in _exploited(scored, scores, states, rules, recipe, rng, env):
            parents[place], new[place] = parent, state
    for place, result in enumerate(results):
        if result.outcome == "diverged":
            parent = max(scored, key=lambda i: scores[i]) if scored else (sound[0] if sound else place)
            values = dict(rules.explore(states[parent].hyperparameters, rules.space, rng))
            if parent == place:  # nobody is left: it begins this generation again, elsewhere in the space
                values = {name: knob.sample(rng) for name, knob in rules.space.items()}
            parents[place] = parent
            new[place] = replaced(states[place], states[parent], values, buffer=True, statistics=True)  # its own may be why
    champion = max(scored, key=lambda i: scores[i]) if scored else None
    return Selected([new[place] for place in range(len(results))], parents, champion)


def report_losses(results: Sequence[Result]) -> None:
    """Warn of members that lost their generation, or their weights."""
    for result in results:
        if result.outcome == "diverged":
            values = dict(result.state.hyperparameters)
            warnings.warn(
                f"member {result.number} has diverged with {values}: it gets the weights of another member", stacklevel=6
            )
        elif result.outcome == "failed":
            warnings.warn(
                f"member {result.number} lost this generation and goes on as it was before: {result.reason}", stacklevel=6
            )


def _exploited(
    scored: Sequence[int],
    scores: np.ndarray,
    states: Sequence[MemberState],
    rules: Rules,
    recipe: Recipe,
    rng: np.random.Generator,
    env: VecEnv | None,
) -> list[tuple[int, int, MemberState]]:
    """:return: for each member that goes on with other weights its place, its parent's place, and its new state"""
    own = scores[list(scored)]
    breed: Any = getattr(rules.exploit, "breed", None)
    if breed is None:
        parents, children = check_parents(rules.exploit(own, rng), len(scored), rules.exploit), None
    else:
        models = [unpacked(states[i], recipe, env, with_buffer=False) for i in scored]
        vectors = th.stack([read_parameters(acting_network(model)).cpu().float() for model in models])
        layout = ParameterLayout.of(acting_network(models[0]))
        parents, children = breed(own, vectors, layout, rng)
        parents = check_parents(parents, len(scored), rules.exploit)
    changes = []
    for index, place in enumerate(scored):
        parent = scored[parents[index]]
        state = states[place]
        if parent != place:
            values = rules.explore(states[parent].hyperparameters, rules.space, rng)
            state = replaced(state, states[parent], values, rules.copy_buffer, rules.copy_statistics)
        if children is not None and not th.equal(children[index], vectors[parents[index]]):
            state = _with_weights(state, recipe, env, children[index])
        if state is not states[place]:
            changes.append((place, parent, state))
    return changes


def _with_weights(state: MemberState, recipe: Recipe, env: VecEnv | None, vector: th.Tensor) -> MemberState:
    """:return: the member with other weights of its acting network"""
    model = unpacked(state, recipe, env, with_buffer=False)
    network = acting_network(model)
    write_parameters(vector.to(next(network.parameters()).device), network)
    if isinstance(getattr(model, "weights", None), th.Tensor):  # of ARS
        model.weights = th.nn.utils.parameters_to_vector(model.policy.parameters()).detach()
    new = packed(model, state.hyperparameters, with_buffer=False)
    return MemberState(new.model, new.hyperparameters, state.buffer, state.statistics)
