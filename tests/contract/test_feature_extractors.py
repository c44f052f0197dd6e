"""``features_extractor_class`` in every class with networks of its own, and arguments of policies that nobody knows."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest
import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_erl import ALGOS
from tests.contract.helpers import differences, snapshot
from tests.contract.settings import LEARNERS, NAMES, make, variants
from tests.envs import ImageEnv, toy_maker


class Doubled(BaseFeaturesExtractor):
    """Learns features, which are twice as many as observations."""

    def __init__(self, observation_space: gym.spaces.Box, factor: int = 2):
        n_inputs = gym.spaces.flatdim(observation_space)
        super().__init__(observation_space, factor * n_inputs)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(n_inputs, self.features_dim), nn.Tanh())

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.layers(observations)


EXTRACTOR: dict[str, Any] = {"features_extractor_class": Doubled, "features_extractor_kwargs": {"factor": 3}}
ON_TD7 = [(name, {"learner": "td7"}) for name, choices in LEARNERS.items() if "td7" in choices]
"""Hybrids on TD7; CERL's learners are one for all here."""
ON_TD7 += [("cerl", {"learner": "td7"}), ("td7", {}), ("pop_td7", {})]


def sets_of_networks(model: Any) -> list[Any]:
    """Policies of TD7 in a model."""
    return list(getattr(model.policy, "individuals", None) or getattr(model.policy, "members", None) or [model.policy])


@pytest.mark.parametrize(("name", "arguments"), [*variants(), ("cerl", {"learner": "td7"})], ids=str)
def test_every_learner_takes_a_features_extractor_of_ones_own(name, arguments, tmp_path):
    model = make(name, policy_kwargs={"net_arch": [8], **EXTRACTOR}, **arguments)
    assert isinstance(model.policy.deployed.features_extractor, Doubled)
    model.learn(60)
    model.save(tmp_path / "model")
    loaded = ALGOS[name].load(tmp_path / "model")
    observations = model.env.reset().repeat(4, axis=0)
    ours, theirs = (each.predict(observations, deterministic=True)[0] for each in (model, loaded))
    assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_every_class_takes_images(name):
    assert "CnnPolicy" in ALGOS[name].policy_aliases


@pytest.mark.parametrize(("name", "arguments"), ON_TD7, ids=str)
def test_td7_trains_the_extractor_with_its_encoder_and_acts_with_a_fixed_copy(name, arguments):
    kwargs = {"net_arch": [8], "zs_dim": 8, **EXTRACTOR}
    model = make(name, policy_kwargs=kwargs, **arguments)
    first = [each.encoder.extractor.layers[1].weight.clone() for each in sets_of_networks(model)]
    for each in sets_of_networks(model):
        assert not list(each.actor.features_extractor.parameters()), "no genome and no other optimizer has it"
    model.learn(150)
    pairs = zip(sets_of_networks(model), first, strict=True)
    assert any(not torch.equal(each.encoder.extractor.layers[1].weight, start) for each, start in pairs)
    for networks in sets_of_networks(model):
        live = dict(networks.encoder.extractor.named_parameters())
        networks.fix_encoder()
        for parameter, fixed in networks.actor.features_extractor.named_buffers():
            assert torch.equal(fixed, live[parameter])


@pytest.mark.parametrize("name", ["td7", "erl"])
def test_actor_and_critic_of_td7_do_not_move_until_the_hard_update(name):
    """What actor and critics read are the fixed encoder's features, which only a hard update changes."""
    learner = {"learner": "td7", "learner_kwargs": {"target_update_interval": 1000}} if name == "erl" else {}
    own = {"target_update_interval": 1000} if name == "td7" else {}
    model = make(name, policy_kwargs={"net_arch": [8], "zs_dim": 8, **EXTRACTOR}, **learner, **own)
    before = {key: value.clone() for key, value in model.policy.actor.features_extractor.state_dict().items()}
    model.learn(100)
    assert model._n_updates > 20
    after = model.policy.actor.features_extractor.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    model.learner.hard_update()
    after = model.policy.actor.features_extractor.state_dict()
    assert not any(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize(("name", "arguments"), ON_TD7, ids=str)
def test_hybrids_on_td7_learn_from_images_and_go_on_from_files(name, arguments, tmp_path):
    kwargs = {"net_arch": [8], "zs_dim": 8, "features_extractor_kwargs": {"features_dim": 4}}

    def model() -> Any:
        return make(name, DummyVecEnv([toy_maker(ImageEnv)]), policy="CnnPolicy", policy_kwargs=kwargs, **arguments)

    trained = model().learn(60)
    assert trained._n_updates > 0
    trained.save(tmp_path / "model")
    loaded = ALGOS[name].load(tmp_path / "model", env=DummyVecEnv([toy_maker(ImageEnv)]))
    assert differences(snapshot_of_networks(loaded), snapshot_of_networks(trained)) == []


def snapshot_of_networks(model: Any) -> dict[str, Any]:
    return {key: value for key, value in snapshot(model).items() if not key.startswith("replay_buffer")}


@pytest.mark.parametrize("name", ["erl", "cem_rl"])
def test_individuals_read_features_of_the_encoder_that_is_in_force(name):
    kwargs = {"net_arch": [8], "zs_dim": 8, **EXTRACTOR}
    model = make(name, policy_kwargs=kwargs, learner="td7", learner_kwargs={"target_update_interval": 20})
    start = [each.clone() for each in model.policy.actor.features_extractor.state_dict().values()]
    model.learn(200)
    in_force = list(model.policy.actor.features_extractor.state_dict().values())
    assert not any(torch.equal(ours, theirs) for ours, theirs in zip(in_force, start, strict=True))
    for actor in (model.policy.deployed, model.individual(0)):
        theirs = actor.features_extractor.state_dict().values()
        assert all(torch.equal(*pair) for pair in zip(in_force, theirs, strict=True))


# -------------------------------------------------------------------- arguments that nobody knows


@pytest.mark.parametrize(("name", "arguments"), [*variants(), ("cerl", {"learner": "td7"})], ids=str)
@pytest.mark.parametrize("policy", ["MlpPolicy", "CnnPolicy"])
def test_an_unknown_argument_of_any_policy_is_named_with_the_known_ones(name, arguments, policy):
    env = DummyVecEnv([toy_maker(ImageEnv)]) if policy == "CnnPolicy" else None
    with pytest.raises(
        TypeError, match=r"policy_kwargs must be arguments of \w+, which are \[.*'net_arch'.*; got \['net_arc'\]"
    ):
        make(name, env, policy=policy, policy_kwargs={"net_arc": [8]}, **arguments)
