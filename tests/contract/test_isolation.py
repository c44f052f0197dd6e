"""Models share nothing with each other, with their arguments or between their own parts."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.noise import NormalActionNoise

from tests.contract.helpers import differences, modules, snapshot, tensors
from tests.contract.settings import ALL, CONTINUOUS, HYBRIDS, having, make, variants
from tests.envs import toy_vec_env

OBSERVATIONS = np.random.default_rng(2).uniform(-1, 1, (5, 3)).astype(np.float32)


def memory(*owners: Any) -> set[int]:
    """Where the tensors of modules lie."""
    found = [tensor for module in owners for tensor in (*module.parameters(), *module.buffers())]
    return {tensor.untyped_storage().data_ptr() for tensor in found if tensor.numel()}


@pytest.mark.parametrize("name", ALL)
def test_policy_kwargs_are_only_read(name: str) -> None:
    kwargs = {"net_arch": [4], "activation_fn": th.nn.ReLU}
    if name in HYBRIDS:
        kwargs["optimizer_kwargs"] = {"eps": 1e-6}
    unchanged = copy.deepcopy(kwargs)
    first = make(name, policy_kwargs=kwargs)
    second = make(name, policy_kwargs=kwargs)
    assert kwargs == unchanged and first.policy_kwargs == unchanged
    assert differences(tensors(first), tensors(second)) == []
    first.learn(60)
    assert kwargs == unchanged


@pytest.mark.parametrize(("name", "extra"), variants())
def test_two_models_in_one_process(name: str, extra: dict[str, Any]) -> None:
    first, second = make(name, **extra), make(name, **extra)
    assert not memory(*modules(first)) & memory(*modules(second))
    before = snapshot(second)
    first.learn(80)
    assert differences(before, snapshot(second)) == []


@pytest.mark.parametrize(("name", "extra"), variants())
def test_deployed_population_and_learner_are_apart(name: str, extra: dict[str, Any]) -> None:
    model = make(name, **extra).learn(80)
    learner = [part for part in (model.actor, model.critic) if part is not None] if name in HYBRIDS else []
    parts = [memory(part) for part in (model.policy.deployed, *learner, *modules(model)[1:])]
    assert sum(len(part) for part in parts) == len(set().union(*parts))


@pytest.mark.parametrize(("name", "extra"), variants())
def test_policies_can_be_copied_and_pickled(name: str, extra: dict[str, Any]) -> None:
    policy = make(name, **extra).learn(60).policy
    expected = policy.predict(OBSERVATIONS, deterministic=True)[0]
    for twin in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        assert type(twin) is type(policy) and not memory(twin) & memory(policy)
        assert np.array_equal(twin.predict(OBSERVATIONS, deterministic=True)[0], expected)
        assert list(twin.state_dict()) == list(policy.state_dict())


@pytest.mark.parametrize("name", having("action_noise", among=[name for name in HYBRIDS if name in CONTINUOUS]))
def test_action_noise_stays_the_users(name: str) -> None:
    noise = NormalActionNoise(np.zeros(2), np.full(2, 0.2))
    first = make(name, toy_vec_env(2), action_noise=noise).learn(60)
    second = make(name, toy_vec_env(2), action_noise=noise).learn(60)
    assert differences(snapshot(first), snapshot(second)) == []
