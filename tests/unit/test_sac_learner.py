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


def test_a_critic_update_for_the_own_actor_is_that_of_an_update() -> None:
    """All but the actor's step: entropy coefficient, critics, and their targets every second time."""
    batch = batch_of_32()
    whole, parts = (learner_of(ent_coef="auto_0.3", target_update_interval=2) for _ in range(2))
    whole._step_actor = lambda *arguments: torch.zeros(1)  # type: ignore[method-assign]
    for n_updates in (1, 2):
        before = read_parameters(parts.policy.critic_target)
        torch.manual_seed(5)
        loss = whole.update(lambda: batch, 1)["critic_loss"]
        torch.manual_seed(5)
        assert parts.critic_update(batch, parts.policy.actor).item() == loss
        assert torch.equal(parts.log_ent_coef, whole.log_ent_coef) and parts.log_ent_coef.item() != np.log(0.3)
        for name, tensor in whole.policy.state_dict().items():
            assert torch.equal(parts.policy.state_dict()[name], tensor), name
        assert torch.equal(before, read_parameters(parts.policy.critic_target)) == (n_updates == 1)
    assert parts.n_updates == 2


def test_individuals_take_the_steps_of_an_actor_on_the_critics_of_their_snapshot() -> None:
    """Two individuals together on stacked parameters against each of them alone, by the learner's own actor step."""
    learner, batch = learner_of(ent_coef="auto_0.4"), batch_of_32()
    actors: list[Any] = [learner.policy.make_actor() for _ in range(2)]
    drawn, expected = [], []
    snapshots = []
    for actor in actors:
        learner.critic_update(batch, actor)
        snapshots.append(learner.critic_snapshot())
        actor.optimizer = torch.optim.SGD(actor.parameters(), 1.0)
        before = [p.detach().clone() for p in actor.parameters()]
        noise = torch.randn(32, 2)
        loss = learner.actor_step(batch, noise, actor)
        drawn.append(noise)
        expected.append((loss.item(), [a - b.detach() for a, b in zip(before, actor.parameters(), strict=True)]))
        with torch.no_grad():
            for place, value in zip(actor.parameters(), before, strict=True):
                place.copy_(value)
    learner.critic_update(batch, actors[0])  # what comes later is not theirs
    stacked = {name: torch.stack([s[name] for s in snapshots]) for name in snapshots[0]}
    parts = {name: torch.stack([dict(a.named_parameters())[name].detach() for a in actors]) for name in names_of(actors[0])}
    parts = {name: tensor.requires_grad_() for name, tensor in parts.items()}
    numbers = iter(drawn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", lambda mean: next(numbers))
        for row in range(2):
            own = {name: tensor[row] for name, tensor in parts.items()}
            loss = learner.individual_loss(own, {name: tensor[row] for name, tensor in stacked.items()}, batch.observations)
            grads = torch.autograd.grad(loss, list(own.values()))
            assert loss.item() == pytest.approx(expected[row][0], rel=1e-5)
            for grad, step in zip(grads, expected[row][1], strict=True):
                torch.testing.assert_close(grad, step, rtol=1e-4, atol=1e-6)
    observations = batch.observations.expand(2, -1, -1)
    together = torch.vmap(learner.individual_loss, randomness="different")(parts, stacked, observations)
    assert together.shape == (2,) and torch.isfinite(together).all()


def names_of(network: torch.nn.Module) -> list[str]:
    return [name for name, _ in network.named_parameters()]


def test_individuals_of_cem_rl_share_its_critics() -> None:
    """They act with tanh of their mean, and their standard deviations are a part of them that gradient steps change."""
    model = make("cem_rl", learner="sac", learner_kwargs={"ent_coef": "auto_0.5"}).learn(300)
    assert model._n_updates == model.learner.n_updates > 0
    assert model.learner.log_ent_coef.item() != pytest.approx(np.log(0.5))
    individual: Any = model.individual(0)
    observations = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    with torch.no_grad():
        mean = individual.get_action_dist_params(torch.as_tensor(observations))[0]
    low, high = model.action_space.low, model.action_space.high
    expected = low + 0.5 * (mean.tanh().numpy() + 1) * (high - low)
    np.testing.assert_allclose(individual.predict(observations, deterministic=True)[0], expected, rtol=1e-4, atol=1e-5)
    spread = [tensor for name, tensor in zip(names_of(individual), individual.parameters(), strict=True) if "log_std" in name]
    steps = model.gradient_steps_of_actors
    improved, _ = steps(
        model.learner, model.evolver.candidates[:2], lambda: model._sample(16),
        lambda n: list(model._sample(16 * n).observations.split(16)), 1, 2,
    )  # fmt: skip
    moved = (improved - model.evolver.candidates[:2]).abs()
    layout = steps.layout.split(moved)
    assert spread and all(layout[name].sum() > 0 for name in layout if "log_std" in name)  # type: ignore[union-attr]


def test_is_a_learner_of_a_hybrid_that_is_saved_and_loaded(tmp_path: Path) -> None:
    model = make("erl", learner="sac", learner_kwargs={"ent_coef": "auto_0.5"}).learn(250)
    learner = model.learner
    assert type(learner) is SACLearner
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
