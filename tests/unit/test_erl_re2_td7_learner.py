"""ERL-Re2 on TD7: the four properties of its design, and the checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import ConstantSchedule

from sb3_erl import ERLRe2
from sb3_erl.core.parameters import read_parameters
from sb3_erl.core.seeding import Address
from sb3_erl.learners.erl_re2 import Heads
from sb3_erl.learners.shared_heads import SharedTD7Learner, SharedTD7Settings
from sb3_erl.learners.td7 import TD7Learner, TD7Settings
from sb3_erl.policies.td7 import SharedSALEPolicy, TD7Policy
from tests.envs import toy_vec_env

SPACES = (spaces.Box(-np.inf, np.inf, (4,), np.float32), spaces.Box(-1, 1, (2,), np.float32))
SIZES: dict[str, Any] = {"net_arch": [12, 10, 9], "zs_dim": 6}
FAST: dict[str, Any] = {
    "learner": "td7",
    "pop_size": 3,
    "learning_starts": 10,
    "batch_size": 16,
    "policy_kwargs": {"net_arch": [8, 8], "zs_dim": 4},
    "device": "cpu",
    "seed": 3,
}


def batches(n: int) -> list[tuple[ReplayBufferSamples, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda width: torch.randn(16, width, generator=generator)  # noqa: E731
    made = []
    for _ in range(n):
        done = (draw(1) > 1.5).float()
        made.append((ReplayBufferSamples(draw(4), draw(2).clamp(-1, 1), draw(4), done, draw(1)), draw(2)))
    return made


def shared_learner(**settings: Any) -> SharedTD7Learner:
    torch.manual_seed(1)
    policy = SharedSALEPolicy(*SPACES, ConstantSchedule(1e-2), **SIZES)
    return SharedTD7Learner(policy, SharedTD7Settings(target_update_interval=3, **settings))


def population(policy: SharedSALEPolicy, n: int = 3) -> Heads:
    heads = [policy.make_actor().head for _ in range(n)]
    return Heads(torch.stack([h.weight.detach() for h in heads]), torch.stack([h.bias.detach() for h in heads]))


def test_without_evolution_it_is_td7() -> None:
    """Property (a): weights equal bit for bit after every update."""
    shared = shared_learner()
    torch.manual_seed(1)
    policy = TD7Policy(*SPACES, ConstantSchedule(1e-2), **SIZES)
    plain = TD7Learner(policy, TD7Settings(target_update_interval=3))
    start = {name: value.clone() for name, value in policy.state_dict().items()}
    for samples, noise in batches(8):
        shared.iterate(samples, noise, None, [], [])
        plain.iterate(samples, noise)
        theirs = shared.policy.state_dict()
        for name, value in policy.state_dict().items():
            assert torch.equal(value, theirs[name]), name
    moved = [name for name, value in policy.state_dict().items() if not torch.equal(value, start[name])]
    assert {name.split(".")[0] for name in moved} >= {"encoder", "actor", "critic", "actor_target", "value_range"}


def test_pevfa_clips_by_a_range_of_its_own() -> None:
    shared, alone = shared_learner(), shared_learner()
    heads = population(shared.policy)
    for samples, noise in batches(6):
        shared.iterate(samples, noise, heads, [0, 3], [])  # the population's values are learned, but move nothing else
        alone.iterate(samples, noise)
    mine, theirs = shared.policy, alone.policy
    for name in ("value_range", "seen_range"):
        assert torch.equal(getattr(mine, name), getattr(theirs, name))
        assert not torch.equal(getattr(mine, f"pevfa_{name}"), getattr(mine, name))
    low, high = mine.pevfa_value_range.tolist()
    assert low < 0 < high
    assert theirs.pevfa_value_range.tolist() == [0, 0]
    assert torch.equal(read_parameters(mine.critic), read_parameters(theirs.critic))


def test_population_moves_the_trunk_and_nothing_moves_its_heads() -> None:
    """Properties (b) and (c): heads are constants; embeddings get no gradient from values."""
    shared, alone = shared_learner(), shared_learner()
    heads = population(shared.policy)
    before = (heads.weight.clone(), heads.bias.clone())
    for samples, noise in batches(6):
        losses = shared.iterate(samples, noise, heads, [0, 3], [1, 3]).losses
        alone.iterate(samples, noise)
    assert "pevfa_loss" in losses
    assert torch.equal(heads.weight, before[0]) and torch.equal(heads.bias, before[1])
    ours, theirs = shared.policy.state_dict(), alone.policy.state_dict()
    same = {name for name in ours if torch.equal(ours[name], theirs[name])}
    assert {name for name in ours if name.startswith(("encoder.", "fixed_action_encoder.", "actor.encoder."))} <= same
    assert not {"actor.first.0.weight", "actor.head.weight", "pevfa.critic.zs_weight"} & same
    assert not torch.equal(ours["pevfa_value_range"], ours["value_range"]), "each critic has its own range"


def test_second_term_leaves_the_head_alone() -> None:
    shared = shared_learner(rl_loss_weight=0.0)
    heads = population(shared.policy)
    head, trunk = read_parameters(shared.policy.actor.head), [p.clone() for p in shared.policy.actor.encoder_parameters()]
    for samples, noise in batches(2):
        shared.iterate(samples, noise, heads, [0], [0, 1, 2, 3])
    assert torch.equal(head, read_parameters(shared.policy.actor.head))
    assert not any(torch.equal(a, b) for a, b in zip(trunk, shared.policy.actor.encoder_parameters(), strict=True))


def test_equal_heads_have_equal_fitness() -> None:
    """Property (d)."""
    model = ERLRe2(toy_vec_env(), mc_fitness_prob=1.0, **FAST).learn(60)
    model.evolver.candidates[:] = read_parameters(model.actor.head)  # type: ignore[union-attr, arg-type]
    seen: list[np.ndarray] = []
    seed, score = Address.seed, model._score

    def keep(generation: Any) -> None:
        score(generation)
        seen.append(generation.fitness)

    model._score = keep  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:  # the same start state for everybody
        patch.setattr(Address, "seed", lambda self, stream, *key: seed(self, stream, 0))
        model.learn(40, reset_num_timesteps=False)
    assert len(seen) >= 1 and np.ptp(seen[0]) == 0.0 and np.isfinite(seen[0]).all()


@pytest.mark.parametrize("evolution", [True, False])
def test_checkpoint_is_the_best_by_its_worst_return(evolution: bool) -> None:
    model = ERLRe2(toy_vec_env(), mc_fitness_prob=1.0, n_eval_episodes=2, evolution=evolution, **FAST)
    first = read_parameters(model.policy.deployed)
    scores, deployed, heads = [], [], [torch.zeros(0)]
    assess, deploy = model._assess, model._deploy

    def keep(head: torch.Tensor, episodes: Any) -> None:
        before = model.assessment.score
        assess(head, episodes)
        worst = min(episode.total_reward for episode in episodes.episodes)
        assert model.assessment.score == max(before, worst)
        heads.append(head.clone() if worst >= before else heads[-1])
        scores.append(model.assessment.score)

    def keep_deployed(generation: Any) -> None:
        before = read_parameters(model.policy.deployed)
        n_assessed = len(deployed)
        assert n_assessed == 0 or torch.equal(before, deployed[-1]), "written by nothing but this verb"
        deploy(generation)
        if len(scores) > n_assessed:
            assert torch.equal(read_parameters(model.policy.deployed.head), heads[-1])
        if scores:
            deployed.append(read_parameters(model.policy.deployed))

    model._assess = keep  # type: ignore[method-assign]
    model._deploy = keep_deployed  # type: ignore[method-assign]
    model.learn(300)
    assert len(scores) >= 3 and scores == sorted(scores) and len(set(scores)) < len(scores), "some were not better"
    assert not torch.equal(first, deployed[-1])
    assert torch.equal(deployed[-1], read_parameters(model.policy.deployed)), "later training does not touch it"
    assert not torch.equal(read_parameters(model.policy.deployed), read_parameters(model.actor))  # type: ignore[arg-type]
