"""Extractors and policy classes as users of SB3 bring them: frozen, unused, tied, loaded, recurrent, or made for others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.dqn.policies import MlpPolicy as DQNMlpPolicy
from stable_baselines3.sac.policies import MlpPolicy as SACMlpPolicy
from stable_baselines3.td3.policies import MlpPolicy as TD3MlpPolicy
from torch import nn

from sb3_erl import ALGOS
from sb3_erl.compiled import programs
from sb3_erl.compiled.gradients import frozen
from sb3_erl.policies.cem_rl import CEMRLPolicy
from sb3_erl.policies.erl import ERLPolicy
from tests.contract.settings import make
from tests.envs import ImageEnv, toy_vec_env

GRADIENTS = ["erl", "pderl", "cerl", "cem_rl", "erl_re2", "evo_rainbow", "evo_rainbow_exp", "esac", "td7", "pop_td7"]
EVOLUTION = ["cem", "deep_ga", "openai_es", "ns_es"]


class Pretrained(BaseFeaturesExtractor):
    """A frozen backbone, a trained layer, and a head that is not used."""

    def __init__(self, space: Any):
        super().__init__(space, 6)
        self.backbone = nn.Linear(space.shape[0], 6).requires_grad_(False)
        nn.init.constant_(self.backbone.weight, 0.1)
        self.own, self.old_head = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.own(th.relu(self.backbone(observations)))


class Tied(BaseFeaturesExtractor):
    """Two layers with one weight."""

    def __init__(self, space: Any):
        super().__init__(space, 3)
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.second(th.relu(self.first(observations)))


class Recurrent(BaseFeaturesExtractor):
    """A layer that cannot be vectorized over networks."""

    def __init__(self, space: Any):
        super().__init__(space, 4)
        self.layer = nn.GRU(1, 4, batch_first=True)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layer(observations[..., None])[1][0]


class Loaded(BaseFeaturesExtractor):
    """Weights that are set in the constructor."""

    def __init__(self, space: Any):
        super().__init__(space, 4)
        self.layer = nn.Linear(int(np.prod(space.shape)), 4)
        nn.init.constant_(self.layer.weight, 0.1)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layer(observations.flatten(1))


class Dropping(BaseFeaturesExtractor):
    """Random in training mode."""

    def __init__(self, space: Any):
        super().__init__(space, 16)
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.5))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layers(observations)


def kwargs_of(name: str, extractor: Any) -> dict[str, Any]:
    small: dict[str, Any] = {"zs_dim": 4} if "td7" in name else {}
    net_arch: Any = [4] if name in EVOLUTION else [8, 8]
    return {"net_arch": net_arch, "features_extractor_class": extractor, **small}


@pytest.mark.parametrize(("name", "compiled"), [*((name, False) for name in GRADIENTS), ("erl", True), ("td7", True)])
def test_frozen_weights_stay_and_unused_ones_do_no_harm(name: str, compiled: bool, tmp_path: Path) -> None:
    more = {"compile": True} if compiled else {}
    model = make(name, seed=1, policy_kwargs=kwargs_of(name, Pretrained), learning_starts=60, **more)
    model.learn(300)
    assert model._n_updates > 0
    tensors = {key: value for key, value in model.policy.state_dict().items() if key.endswith("backbone.weight")}
    assert tensors and all((value == np.float32(0.1)).all() for value in tensors.values())
    moved = [key for key, value in model.policy.named_parameters() if "own.weight" in key and value.requires_grad]
    assert moved, "the other layer learns"
    model.save(tmp_path / "model")
    observation = np.ones(3, np.float32)
    again = ALGOS[name].load(tmp_path / "model", env=toy_vec_env())
    assert np.array_equal(model.predict(observation, deterministic=True)[0], again.predict(observation, deterministic=True)[0])


@pytest.mark.parametrize("name", EVOLUTION)
def test_frozen_weights_are_no_part_of_a_genome(name: str) -> None:
    model = make(name, seed=1, policy_kwargs=kwargs_of(name, Pretrained))
    model.learn(200)
    for agent in [model.policy.deployed, *([model.individual(1)] if hasattr(model, "individual") else [])]:
        tensors = [value for key, value in agent.state_dict().items() if key.endswith("backbone.weight")]
        assert tensors and all((value == np.float32(0.1)).all() for value in tensors)


def test_the_weights_that_learn_do_learn() -> None:
    model = make("erl", seed=1, policy_kwargs=kwargs_of("erl", Pretrained), learning_starts=60)
    before = {key: value.clone() for key, value in model.policy.critic.named_parameters()}
    model.learn(300)
    after = dict(model.policy.critic.named_parameters())
    changed = {key for key in before if not th.equal(before[key], after[key])}
    assert any("own" in key for key in changed) and not any("old_head" in key or "backbone" in key for key in changed)
    assert all(value.requires_grad for value in after.values())


@pytest.mark.parametrize("name", [*GRADIENTS, "cem"])
def test_tied_weights(name: str) -> None:
    model = make(name, seed=1, policy_kwargs=kwargs_of(name, Tied), **({} if name == "cem" else {"learning_starts": 60}))
    model.learn(200)
    assert model.num_timesteps >= 200


def test_layers_that_cannot_be_vectorized() -> None:
    model = make("cem_rl", seed=1, policy_kwargs=kwargs_of("cem_rl", Recurrent))
    model.learn(300)
    assert model._n_updates > 0 and model.gradient_steps_of_actors._is_sequential


def test_is_sequential_and_together_are_the_same() -> None:
    ends = []
    for sequentially in (False, True):
        model = make("cem_rl", seed=1, compile=False)
        model.gradient_steps_of_actors._is_sequential = sequentially
        model.learn(300)
        assert model.gradient_steps_of_actors._is_sequential == sequentially
        ends.append(model.evolver.mean.clone())
    th.testing.assert_close(*ends, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "policy", "env"), [("esac", "MlpPolicy", None), ("openai_es", "CnnPolicy", ImageEnv), ("cem", "MlpPolicy", None)]
)
def test_an_extractor_keeps_the_weights_that_it_came_with(name: str, policy: str, env: Any) -> None:
    kwargs = {"features_extractor_class": Loaded, **({"virtual_batch_norm": False} if policy == "CnnPolicy" else {})}
    model = make(name, None if env is None else env(), policy, seed=1, policy_kwargs=kwargs)
    found = [value for key, value in model.policy.state_dict().items() if key.endswith("features_extractor.layer.weight")]
    assert found and all((value == np.float32(0.1)).all() for value in found)


@pytest.mark.parametrize("name", GRADIENTS)
def test_what_acts_is_never_in_training_mode(name: str) -> None:
    model = make(name, seed=1, policy_kwargs=kwargs_of(name, Dropping))
    model.policy.train()
    observation = np.ones(3, np.float32)
    actions = {tuple(model.predict(observation, deterministic=True)[0].tolist()) for _ in range(6)}
    assert len(actions) == 1


@pytest.mark.parametrize(
    ("name", "policy", "more"),
    [
        ("erl", TD3MlpPolicy, {"learner": "td3"}),
        ("pderl", SACMlpPolicy, {}),
        ("cem_rl", TD3MlpPolicy, {}),
        ("erl_re2", TD3MlpPolicy, {}),
        ("esac", SACMlpPolicy, {}),
        ("evo_rainbow", TD3MlpPolicy, {}),
        ("evo_rainbow_exp", SACMlpPolicy, {}),
        ("veb_rl", DQNMlpPolicy, {}),
        ("td7", TD3MlpPolicy, {}),
        ("pop_td7", TD3MlpPolicy, {}),
        ("openai_es", SACMlpPolicy, {}),
        ("deep_ga", TD3MlpPolicy, {}),
        ("cem", TD3MlpPolicy, {}),
        ("cerl", TD3MlpPolicy, {}),
    ],
)
def test_a_policy_class_without_the_networks_is_refused_at_once(name: str, policy: Any, more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"policy must be .*(derived from|subclass of)"):
        make(name, policy=policy, **more)


class Mine(SACMlpPolicy):
    """A policy as users of SB3 derive it."""


@pytest.mark.parametrize(
    ("policy", "learner"), [(SACMlpPolicy, "sac"), (Mine, "sac"), (TD3MlpPolicy, "stable_baselines3:TD3")]
)
def test_a_policy_class_of_sb3_with_the_learner_that_it_is_for(policy: Any, learner: str, tmp_path: Path) -> None:
    model = make("erl", policy=policy, learner=learner, seed=1)
    model.learn(300)
    model.save(tmp_path / "model")
    again = ALGOS["erl"].load(tmp_path / "model", env=toy_vec_env())
    assert model._n_updates > 0 and isinstance(again.policy, policy)


@pytest.mark.parametrize(("name", "policy"), [("erl", CEMRLPolicy), ("cem_rl", ERLPolicy)])
def test_policies_of_one_family_are_exchangeable(name: str, policy: Any, tmp_path: Path) -> None:
    model = make(name, policy=policy, seed=1, **({"learner": "td3"} if name == "erl" else {}))
    model.learn(300)
    model.save(tmp_path / "model")
    assert model._n_updates > 0 and isinstance(ALGOS[name].load(tmp_path / "model", env=toy_vec_env()).policy, policy)


def test_what_was_frozen_before_an_update_is_frozen_after_it() -> None:
    layer = nn.Linear(2, 2)
    layer.weight.requires_grad_(False)
    with frozen(list(layer.parameters())):
        assert not layer.weight.requires_grad and not layer.bias.requires_grad
    assert not layer.weight.requires_grad and layer.bias.requires_grad


@pytest.mark.parametrize(
    ("name", "network", "more"),
    [
        ("erl", "actor", {}),
        ("erl", "critic", {"learner": "sac"}),
        ("erl_re2", "critic", {}),
        ("td7", "critic", {}),
        ("td7", "critic", {"compile": True}),
    ],
)
def test_weights_that_are_frozen_between_two_calls_stay(
    name: str, network: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "inductor", lambda graph, inputs: graph)  # traced, but not translated
    model = make(name, seed=1, **more)
    model.learn(300)
    weights = list(getattr(model.policy, network).parameters())[:2]
    for weight in weights:
        weight.requires_grad_(False)
    before, n_updates = [weight.clone() for weight in weights], model._n_updates
    others = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(300, reset_num_timesteps=False)
    assert model._n_updates > n_updates and all(th.equal(*pair) for pair in zip(before, weights, strict=True))
    assert not all(th.equal(*pair) for pair in zip(others, model.policy.parameters(), strict=True))


class Running(BaseFeaturesExtractor):
    """A running mean that is a new tensor each time."""

    mean: th.Tensor
    n: th.Tensor

    def __init__(self, space: Any):
        super().__init__(space, 3)
        self.register_buffer("mean", th.zeros(3))
        self.register_buffer("n", th.zeros(()))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * observations.mean(0).detach()
            self.n = self.n + 1
        return observations - self.mean


def test_buffers_that_a_module_puts_in_place_are_not_compiled_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "inductor", lambda graph, inputs: graph)  # traced, but not translated
    arguments: dict[str, Any] = {"learner": "sac", "seed": 1, "policy_kwargs": kwargs_of("erl", Running)}
    plain = make("erl", compile=False, **arguments)
    plain.learn(300)
    model = make("erl", compile=True, **arguments)
    with pytest.warns(UserWarning, match="not compiled.* puts new tensors in the place of its buffers"):
        model.learn(300)
    for (key, mine), theirs in zip(model.policy.state_dict().items(), plain.policy.state_dict().values(), strict=True):
        assert th.equal(mine, theirs), key
    assert model.policy.critic.features_extractor.n > 100
