"""Policies and actors are saved and loaded alone; predict acts with ``policy.deployed``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from tests.contract.helpers import differences, tensors
from tests.contract.settings import GENERATIONAL, NAMES, make, pop_size, variants

OBSERVATIONS = np.random.default_rng(1).uniform(-1, 1, (6, 3)).astype(np.float32)


@pytest.mark.parametrize(("name", "extra"), variants())
def test_policy_and_actor_files(name: str, extra: dict[str, Any], tmp_path: Path) -> None:
    policy = make(name, **extra).learn(60).policy
    generator = th.Generator().manual_seed(0)
    random = {key: th.rand(value.shape, generator=generator) - 0.5 for key, value in policy.state_dict().items()}
    policy.load_state_dict(random)
    policy.save(tmp_path / "policy.pkl")
    loaded = type(policy).load(tmp_path / "policy.pkl", device="cpu")
    for key, value in loaded.state_dict().items():
        assert th.equal(value, random[key]), key
    assert np.array_equal(
        loaded.predict(OBSERVATIONS, deterministic=True)[0], policy.predict(OBSERVATIONS, deterministic=True)[0]
    )
    for part in ("actor", "deployed"):
        network = getattr(policy, part, None)
        if network is None:
            continue
        network.save(tmp_path / part)
        alone = type(network).load(tmp_path / part, device="cpu")
        expected = network.predict(OBSERVATIONS, deterministic=True)[0]
        assert np.array_equal(alone.predict(OBSERVATIONS, deterministic=True)[0], expected)


@pytest.mark.parametrize("name", NAMES)
def test_predict_acts_with_deployed(name: str) -> None:
    model = make(name).learn(60)
    actions = model.predict(OBSERVATIONS, deterministic=True)[0]
    assert np.array_equal(actions, model.policy.predict(OBSERVATIONS, deterministic=True)[0])
    assert np.array_equal(actions, model.policy.deployed.predict(OBSERVATIONS, deterministic=True)[0])
    with th.no_grad():
        for parameter in model.policy.deployed.parameters():
            parameter.zero_()
    assert np.array_equal(model.predict(OBSERVATIONS, deterministic=True)[0], np.zeros_like(actions))


@pytest.mark.parametrize("name", GENERATIONAL)
def test_agents_at_hand_are_policies_of_their_own(name: str) -> None:
    model = make(name).learn(60)
    before = tensors(model)
    agents = [model.individual(i) for i in range(pop_size(name))]
    actions = [agent.predict(OBSERVATIONS, deterministic=True)[0] for agent in agents]
    assert all(a.shape == (6, *model.action_space.shape) for a in actions)
    vectors = [th.cat([parameter.flatten() for parameter in agent.parameters()]) for agent in agents]
    assert not all(th.equal(vectors[0], vector) for vector in vectors[1:]), "individuals differ"
    with th.no_grad():
        for agent in agents:
            for parameter in agent.parameters():
                parameter.add_(1.0)
    assert differences(before, tensors(model)) == []
    with pytest.raises(IndexError):
        model.individual(pop_size(name))
