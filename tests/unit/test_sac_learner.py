"""Parts of SAC's update for other actors, and SAC of this package as the learner of a hybrid."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import ConstantSchedule
from stable_baselines3.sac.policies import SACPolicy

from sb3_erl import ALGOS
from sb3_erl.core.parameters import read_parameters
from sb3_erl.learners.sac import SACLearner, SACSettings
from tests.contract.settings import make

SPACES = (spaces.Box(-1, 1, (3,), np.float32), spaces.Box(-1, 1, (2,), np.float32))


def learner_of(**settings: Any) -> SACLearner:
    torch.manual_seed(0)
    policy = SACPolicy(*SPACES, ConstantSchedule(1e-2), net_arch=[8])
    return SACLearner(policy, SACSettings(**{"ent_coef": 0.2, "gamma": 0.9, **settings}))


def batch_of_32() -> ReplayBufferSamples:
    draw = torch.Generator().manual_seed(0)
    observations, actions, following, rewards = (torch.randn(32, width, generator=draw) for width in (3, 2, 3, 1))
    return ReplayBufferSamples(observations, actions.tanh(), following, (rewards > 1).float(), rewards)


def test_critics_can_be_trained_alone_for_another_actor() -> None:
    learner, batch = learner_of(), batch_of_32()
    other: Any = learner.policy.make_actor()
    noise = torch.randn(32, 2)
    with torch.no_grad():
        mean, log_std, _ = other.get_action_dist_params(batch.next_observations)
        normal = torch.distributions.Normal(mean, log_std.exp())
        gaussian = mean + log_std.exp() * noise
        action = gaussian.tanh()
        log_prob = (normal.log_prob(gaussian) - (1 - action**2 + 1e-6).log()).sum(dim=1, keepdim=True)
        following = torch.stack(learner.policy.critic_target(batch.next_observations, action)).amin(dim=0)
        targets = batch.rewards + (1 - batch.dones) * 0.9 * (following - 0.2 * log_prob)
        values = torch.stack(learner.policy.critic(batch.observations, batch.actions))
        expected = 0.5 * (values - targets).square().mean(dim=(1, 2)).sum()
    actors = [read_parameters(actor) for actor in (learner.policy.actor, other)]
    before = read_parameters(learner.policy.critic)
    assert learner.critic_step(batch, noise, other).item() == pytest.approx(expected.item(), rel=1e-5)
    assert not torch.equal(read_parameters(learner.policy.critic), before)
    assert all(torch.equal(a, read_parameters(b)) for a, b in zip(actors, (learner.policy.actor, other), strict=True))


def test_another_actor_takes_steps_on_the_same_critics() -> None:
    learner, batch = learner_of(), batch_of_32()
    other: Any = copy.deepcopy(learner.policy.actor)
    other.optimizer = torch.optim.Adam(other.parameters(), 1e-2)
    before, critic = read_parameters(learner.policy.actor), read_parameters(learner.policy.critic)
    noise = torch.randn(32, 2)
    losses = [learner.actor_step(batch, noise, other).item() for _ in range(30)]
    assert losses[-1] < losses[0] - 0.01
    assert torch.equal(read_parameters(learner.policy.actor), before)
    assert torch.equal(read_parameters(learner.policy.critic), critic)
    assert all(p.requires_grad for p in learner.policy.critic.parameters())


def test_is_a_learner_of_a_hybrid_that_is_saved_and_loaded(tmp_path: Path) -> None:
    model = make("erl", learner=SACLearner, learner_kwargs={"ent_coef": "auto_0.5"}).learn(250)
    learner = model.learner
    assert model._n_updates > 0 and learner.log_ent_coef.item() != pytest.approx(np.log(0.5))
    model.save(tmp_path / "model")
    loaded = ALGOS["erl"].load(tmp_path / "model", device="cpu").learner
    assert loaded.log_ent_coef.item() == learner.log_ent_coef.item()
    state = loaded.ent_coef_optimizer.state_dict()["state"][0]
    assert torch.equal(state["exp_avg"], learner.ent_coef_optimizer.state_dict()["state"][0]["exp_avg"])
    loaded.update(lambda: batch_of_32()._replace(observations=torch.randn(32, 3)), 1)
    assert loaded.log_ent_coef.item() != learner.log_ent_coef.item()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ent_coef": "automatic"}, "ent_coef must be"),
        ({"ent_coef": -1.0}, "ent_coef must be"),
        ({"ent_coef": "auto_0"}, "ent_coef"),
    ],
)
def test_wrong_constants(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SACSettings(**settings)
    with pytest.raises(ValueError, match="use_sde"):
        SACLearner(SACPolicy(*SPACES, ConstantSchedule(1e-2), use_sde=True), SACSettings())
