"""Running statistics move in updates and nowhere else; dropout does not act."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_erl import ALGOS
from tests.contract.helpers import Witness
from tests.contract.settings import GENERATIONAL, IMAGES, make


class NormExtractor(BaseFeaturesExtractor):
    """Batch normalization and dropout on a flat observation."""

    def __init__(self, observation_space: gym.spaces.Box):
        super().__init__(observation_space, features_dim=3)
        self.layers = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3), nn.Dropout(0.5))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layers(observations)


def statistics(module: nn.Module) -> list[th.Tensor]:
    return [layer.running_mean.clone() for layer in module.modules() if isinstance(layer, nn.BatchNorm1d)]  # type: ignore[union-attr]


def norm_model(name: str, **overrides: Any) -> Any:
    return make(name, policy_kwargs={"net_arch": [8], "features_extractor_class": NormExtractor}, **overrides)


@pytest.mark.parametrize("name", IMAGES)
def test_rollouts_and_predictions_leave_statistics_alone(name: str) -> None:
    model = norm_model(name, gradient_steps=0)
    before = statistics(model.policy)
    model.learn(100)
    assert model._n_updates == 0 and len(before) >= 3
    assert all(th.equal(a, b) for a, b in zip(before, statistics(model.policy), strict=True))
    assert all(not layer.training for layer in model.policy.deployed.modules())


@pytest.mark.parametrize("name", IMAGES)
def test_updates_move_them(name: str) -> None:
    model = norm_model(name)
    before = statistics(model.policy.actor)
    critic = getattr(model.policy, "critic", model.policy.actor)
    critics = statistics(critic)
    model.learn(100)
    assert not any(th.equal(a, b) for a, b in zip(before, statistics(model.policy.actor), strict=True))
    assert not any(th.equal(a, b) for a, b in zip(critics, statistics(critic), strict=True))
    observation = np.ones((2, 3), dtype=np.float32)
    first = model.predict(observation, deterministic=True)[0]
    assert all(np.array_equal(first, model.predict(observation, deterministic=True)[0]) for _ in range(5))


@pytest.mark.parametrize("name", [name for name in IMAGES if name in GENERATIONAL])
def test_deployed_has_the_learners_statistics(name: str) -> None:
    kwargs = {"deploy": "learner"} if "learner" in ALGOS[name].deploy_choices else {}
    witness = Witness()
    norm_model(name, **kwargs).learn(100, witness)
    model = norm_model(name, **kwargs)
    model.learn(witness.generation_ends[-1])
    pairs = zip(statistics(model.policy.actor), statistics(model.policy.deployed), strict=True)
    assert all(th.equal(a, b) and a.any() for a, b in pairs)
