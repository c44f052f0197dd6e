"""ERL-Re2 whose PeVFA reads the shared features in place of observation and action."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import ConstantSchedule
from torch.nn import functional

from sb3_erl import ERLRe2
from sb3_erl.learners.erl_re2 import Heads, SharedSettings, SharedTD3Learner
from sb3_erl.policies.erl_re2 import ERLRe2Policy
from tests.envs import toy_vec_env

SPACES = (spaces.Box(-np.inf, np.inf, (4,), np.float32), spaces.Box(-1, 1, (2,), np.float32))
FAST: dict[str, Any] = {
    "pevfa_input": "features",
    "mc_fitness_prob": 1.0,
    "pop_size": 3,
    "learning_starts": 10,
    "batch_size": 16,
    "policy_kwargs": {"net_arch": [8, 6]},
    "device": "cpu",
    "seed": 3,
}


def feature_learner(**settings: Any) -> SharedTD3Learner:
    torch.manual_seed(1)
    policy = ERLRe2Policy(*SPACES, ConstantSchedule(1e-2), net_arch=[8, 6], pevfa_input="features")
    with torch.no_grad():
        for parameter in policy.pevfa_target.parameters():  # targets that differ show which network was asked
            parameter.mul_(1.1)
    return SharedTD3Learner(policy, SharedSettings(gamma=0.9, max_grad_norm=None, policy_delay=1, **settings))


def batch_of_16() -> ReplayBufferSamples:
    draw = torch.Generator().manual_seed(0)
    observations, actions, following, rewards = (torch.randn(16, width, generator=draw) for width in (4, 2, 4, 1))
    return ReplayBufferSamples(observations, actions.clamp(-1, 1), following, (rewards > 1).float(), rewards)


def population() -> Heads:
    draw = torch.Generator().manual_seed(2)
    return Heads(torch.randn(3, 2, 6, generator=draw), torch.randn(3, 2, generator=draw))


def test_update_is_that_of_the_textbook() -> None:
    """Targets V'(Z(s'), W); the PeVFA's loss leaves the encoder alone, -V(Z(s), W) trains it."""
    learner, batch, heads = feature_learner(rl_loss_weight=0.0), batch_of_16(), population()
    plain: Any = copy.deepcopy(learner.policy)
    learner.iterate(batch, torch.zeros(16, 2), heads, [1], [2], on_policy_step=True)

    def values(network: Any, features: torch.Tensor, head: int) -> torch.Tensor:
        rows = torch.cat([heads.weight[head], heads.bias[head][:, None]], dim=1)
        hidden = network.policy_encoder
        x = functional.leaky_relu(hidden[0](rows, None, None))
        x = hidden[2](functional.leaky_relu(hidden[1](x, None, None)), None, None)
        return network.towers(features, x.mean(dim=1, keepdim=True), None)

    features = plain.actor.encode(batch.observations)
    with torch.no_grad():
        following = values(plain.pevfa_target, plain.actor.encode(batch.next_observations), 1).amin(dim=0)
        targets = batch.rewards + 0.9 * (1 - batch.dones) * following
    loss = sum(functional.mse_loss(tower, targets) for tower in values(plain.pevfa, features.detach(), 1))
    adam_step(plain.pevfa, loss)
    adam_step(plain.actor.trunk, -values(plain.pevfa, features, 2)[0].mean())
    for ours, theirs in ((learner.policy.pevfa, plain.pevfa), (learner.policy.actor.trunk, plain.actor.trunk)):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def adam_step(network: torch.nn.Module, loss: Any) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def test_it_trains_and_is_saved(tmp_path: Any) -> None:
    env = toy_vec_env(1)
    model = ERLRe2("MlpPolicy", env, **FAST).learn(200)
    assert model._learner_updates > 0
    assert model.policy.pevfa.towers.hidden[0].weight.shape[1] == 6  # features, and neither observation nor action
    model.save(tmp_path / "model.zip")
    loaded = ERLRe2.load(tmp_path / "model.zip", env=env)
    assert loaded.pevfa_input == "features"
    for a, b in zip(model.policy.pevfa.parameters(), loaded.policy.pevfa.parameters(), strict=True):
        assert torch.equal(a, b)
    loaded.learn(100, reset_num_timesteps=False)


def test_td7_has_no_such_pevfa() -> None:
    with pytest.raises(ValueError, match=r"pevfa_input must be 'obs_action' with learner='td7'"):
        ERLRe2("MlpPolicy", toy_vec_env(1), learner="td7", pevfa_input="features", mc_fitness_prob=1.0)
