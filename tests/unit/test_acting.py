from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import nn

from sb3_erl.core.parameters import read_parameters
from sb3_erl.policies.cerl import CERLNetworks
from sb3_erl.policies.erl import ERLPolicy
from sb3_erl.policies.erl_re2 import ERLRe2Policy
from sb3_erl.policies.td7 import SALEPolicy
from sb3_erl.rollouts.acting import (
    ModuleActor,
    NetworkPool,
    NumpyActor,
    candidates_stack,
    numpy_population,
    tensors_of,
)
from sb3_erl.rollouts.actions import ToEnvironment
from sb3_erl.rollouts.jobs import PopulationActor
from tests.contract.settings import make

OBSERVATIONS = spaces.Box(-10, 10, (5,), dtype=np.float64)
ACTIONS = spaces.Box(-2, 2, (3,), dtype=np.float32)


@pytest.mark.parametrize("policy_class", [ERLPolicy, CERLNetworks, ERLRe2Policy, SALEPolicy, TD3Policy, SACPolicy])
@pytest.mark.parametrize("activation_fn", [nn.Tanh, nn.ReLU, nn.ELU, nn.LeakyReLU, nn.SiLU, nn.Sigmoid])
def test_numpy_actor_agrees_with_torch(policy_class: type, activation_fn: type[nn.Module]) -> None:
    torch.manual_seed(0)
    policy = policy_class(OBSERVATIONS, ACTIONS, lambda _: 1e-3, net_arch=[16, 16], activation_fn=activation_fn)
    networks = [policy.make_actor() for _ in range(4)]
    vectors = torch.stack([read_parameters(network) for network in networks])
    fast = numpy_population(policy.actor, candidates_stack(policy.actor, vectors.numpy()))
    assert fast is not None
    slow = ModuleActor(NetworkPool(policy.make_actor).filled(vectors, policy.actor))
    observations = np.random.default_rng(0).normal(size=(6, 5))
    candidates = [3, 0, 0, 1, 2, 3]
    np.testing.assert_allclose(fast(observations, candidates), slow(observations, candidates), atol=2e-6)


@pytest.mark.parametrize("kind", ["numpy", "modules"])
@pytest.mark.parametrize("policy_class", [ERLPolicy, SALEPolicy])
def test_a_row_does_not_depend_on_the_others(policy_class: type, kind: str) -> None:
    torch.manual_seed(1)
    policy = policy_class(OBSERVATIONS, ACTIONS, lambda _: 1e-3)
    vectors = torch.stack([read_parameters(policy.make_actor()) for _ in range(7)])
    actor: PopulationActor | None = ModuleActor(NetworkPool(policy.make_actor).filled(vectors, policy.actor))
    if kind == "numpy":
        actor = numpy_population(policy.actor, candidates_stack(policy.actor, vectors.numpy()))
    assert actor is not None
    observations = np.random.default_rng(0).normal(size=(7, 5))
    together = actor(observations, range(7))
    for row in range(7):
        assert np.array_equal(actor(observations[row : row + 1], [row])[0], together[row])
    order = [4, 2, 6]
    assert np.array_equal(actor(observations[order], order), together[order])


@pytest.mark.parametrize("activation_fn", [nn.Tanh, nn.ReLU, nn.ELU])
@pytest.mark.parametrize("policy_class", [ERLPolicy, CERLNetworks, ERLRe2Policy, SALEPolicy, TD3Policy, SACPolicy])
def test_acting_alone_is_the_same_to_the_last_bit(policy_class: type, activation_fn: type[nn.Module]) -> None:
    torch.manual_seed(2)
    policy = policy_class(OBSERVATIONS, ACTIONS, lambda _: 1e-3, net_arch=[40, 30], activation_fn=activation_fn)
    vectors = torch.stack([read_parameters(policy.make_actor()) for _ in range(3)])
    actor: Any = numpy_population(policy.actor, candidates_stack(policy.actor, vectors.numpy()))
    observations = np.random.default_rng(0).normal(size=(20, 3, 5))
    alone, seen = [actor.alone(candidate) for candidate in range(3)], observations.copy()
    for rows in observations:
        together = actor(rows, range(3))
        for candidate in range(3):
            assert np.array_equal(alone[candidate](rows[candidate]), together[candidate])
    assert np.array_equal(observations, seen)


@pytest.mark.parametrize("name", ["openai_es", "deep_ga"])
def test_acting_alone_with_what_a_class_adds(name: str) -> None:
    """Standardized observations, discrete actions, actors that are made when they are needed; and in a worker."""
    model = make(name, policy_kwargs={"net_arch": [16]})
    shown: list[Any] = []
    evaluate = model._evaluate

    def show(jobs: Any, actor: Any, *rest: Any, **kwargs: Any) -> Any:
        shown.append((jobs, actor))
        return evaluate(jobs, actor, *rest, **kwargs)

    model._evaluate = show
    model.learn(300)
    observation = np.random.default_rng(0).normal(size=3)
    jobs, here = shown[-1]
    for actor in (here, pickle.loads(pickle.dumps(here))):
        for candidate in {jobs[0].candidate, jobs[-1].candidate}:
            assert np.array_equal(actor.alone(candidate)(observation), actor(observation[None], [candidate])[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_actions_are_stretched_to_the_last_bit_as_by_sb3(dtype: type) -> None:
    space = spaces.Box(np.array([-2.0, 0.1, -1.0]).astype(dtype), np.array([3.0, 0.7, 1.0]).astype(dtype), dtype=dtype)
    policy = TD3Policy(OBSERVATIONS, space, lambda _: 1e-3, net_arch=[4])
    actions = np.tanh(np.random.default_rng(0).normal(size=(500, 3))).astype(np.float32)
    for rows in (actions, actions[:1]):
        found, expected = ToEnvironment(space, squashed=True)(rows), policy.unscale_action(rows)
        assert found.dtype == expected.dtype and np.array_equal(found, expected)


def test_unknown_layers_fall_back_to_modules() -> None:
    policy = ERLPolicy(OBSERVATIONS, ACTIONS, lambda _: 1e-3, activation_fn=nn.Softplus)
    assert numpy_population(policy.actor, tensors_of) is None
    with pytest.raises(ValueError, match="modules must be linear layers"):
        NumpyActor([nn.Softplus()], [])

    class OwnExtractor(FlattenExtractor):
        pass

    images = spaces.Box(0, 255, (36, 36, 1), dtype=np.uint8)
    assert numpy_population(ERLPolicy(images, ACTIONS, lambda _: 1e-3, net_arch=[8]).actor, tensors_of) is None
