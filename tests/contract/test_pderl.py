"""What only PDERL promises: memories that follow their individuals, operators that read the learner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib import TQC
from stable_baselines3.common.vec_env import VecNormalize

from sb3_erl import ERL, PDERL
from sb3_erl.evolution.operators.distilled_epoch import DistilledEpoch
from tests.contract.helpers import transitions
from tests.contract.settings import make
from tests.contract.test_resume import generation_ends
from tests.envs import toy_vec_env


def episodes_in_buffer(model: Any) -> np.ndarray:
    return transitions(model)["observations"][:, 0]


def test_everybody_remembers_their_own_episodes() -> None:
    model = make("pderl", learning_starts=10_000, elite_fraction=0.34, mutation_prob=0.0, sync_period=1000)
    seen: dict[int, list[np.ndarray]] = {i: [] for i in range(4)}
    original = model.rollouts.store

    def store(job: Any, steps: Any) -> None:
        seen[job.candidate].extend(step.observation for step in steps)
        before = model.evolver.memories.sizes.copy()
        original(job, steps)
        assert (model.evolver.memories.sizes != before).tolist() == [i == job.candidate for i in range(4)]

    model.rollouts.store = store
    model.learn(30)  # inside the first generation
    for i, observations in seen.items():
        newest, _ = model.evolver.memories.latest(i, 1000)
        np.testing.assert_array_equal(newest, np.array(observations, dtype=np.float32).reshape(newest.shape))
    np.testing.assert_array_equal(np.concatenate([seen[i] for i in range(4)]), episodes_in_buffer(model))


def test_the_injected_learner_brings_its_memory() -> None:
    settings = {"sync_period": 1, "mutation_prob": 0.0}
    model = make("pderl", **settings).learn(generation_ends("pderl", settings)[0])
    slot, memories = model._injected_slot, model.evolver.memories
    assert slot is not None and slot not in model.evolver.epoch.protected
    for array in memories.arrays:
        np.testing.assert_array_equal(array[slot], array[model.pop_size])
    actor = torch.cat([p.detach().reshape(-1) for p in model.learner_agent.parameters()])
    assert torch.equal(model.evolver.candidates[slot], actor)


def test_memories_are_in_the_file(tmp_path: Path) -> None:
    model = make("pderl").learn(120)
    model.save(tmp_path / "model")
    loaded = PDERL.load(tmp_path / "model")
    assert model.evolver.memories.sizes.sum() > 50
    for mine, theirs in zip(model.evolver.memories.arrays, loaded.evolver.memories.arrays, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_operators_see_what_the_networks_see() -> None:
    env = VecNormalize(toy_vec_env(), norm_obs=True)
    model = make("pderl", env).learn(200)
    memories = model.evolver.memories
    raw = memories.latest(0, 5)[0]
    states = model.evolver.learned.prepare(raw)
    np.testing.assert_allclose(states, env.normalize_obs(raw), rtol=1e-6)
    assert not np.allclose(states, raw)


@pytest.mark.parametrize(("crossover", "planned"), [("distillation", True), ("rows", False)])
@pytest.mark.parametrize("mutation", ["proximal", "gaussian"])
def test_the_papers_ablations(crossover: str, planned: bool, mutation: str) -> None:
    model = make("pderl", crossover=crossover, mutation=mutation, crossover_prob=0.5).learn(200)
    assert isinstance(model.evolver.epoch, DistilledEpoch) == planned
    assert model.evolver.is_proximal == (mutation == "proximal")


@pytest.mark.parametrize("learner", ["ddpg", "td3", "td7", "sac", TQC])
def test_the_critic_judges_actions(learner: Any) -> None:
    policy_kwargs = {"net_arch": [8], "zs_dim": 8} if learner == "td7" else {"net_arch": [8]}
    model = make("pderl", learner=learner, policy_kwargs=policy_kwargs).learn(100)
    states = model.evolver.learned.prepare(model.evolver.memories.latest(0, 6)[0])
    rule, actor = model.learner, model.learner.greedy_actor()
    with torch.no_grad():
        actions = actor(states)
        first, smallest = rule.value(states, actions, pessimistic=False), rule.value(states, actions)
        assert first.shape == smallest.shape == (6,) and (smallest <= first).all()
        assert not torch.equal(first, rule.value(states, -actions, pessimistic=False))
        expected, _ = model.learner_agent.predict(states.numpy(), deterministic=True)
    np.testing.assert_allclose(model.policy.unscale_action(actions.numpy()), expected, rtol=1e-5, atol=1e-6)


def test_the_filter_is_what_was_asked_for() -> None:
    smaller, first = (make("pderl", learner="td3", q_filter=name).learn(120) for name in ("min", "q1"))
    states = smaller.evolver.learned.prepare(smaller.evolver.memories.latest(0, 20)[0])
    actions = torch.zeros(20, *smaller.action_space.shape)
    with torch.no_grad():
        both = smaller.learner.all_values(states, actions)[..., 0]
        assert torch.equal(smaller.evolver.learned.value(states, actions), both.amin(dim=0))
        both = first.learner.all_values(states, actions)[..., 0]
        assert torch.equal(first.evolver.learned.value(states, actions), both[0]) and not torch.equal(both[0], both[1])


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("genetic_memory_size", 1),
        ("distill_epochs", 0),
        ("distill_batch_size", 0),
        ("distill_lr", 0.0),
        ("distill_action_reg", -1.0),
        ("mutation_magnitude", -0.1),
        ("mutation_batch_size", 0),
        ("sensitivity_floor", 0.0),
        ("parent_matching", "novelty"),
        ("q_filter", "mean"),
        ("crossover", "uniform"),
        ("mutation", "safe"),
    ],
)
def test_wrong_arguments_are_named(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=argument):
        make("pderl", **{argument: value})


def test_distance_has_the_authors_short_name_too() -> None:
    ours, theirs = (make("pderl", parent_matching=name).learn(200) for name in ("distance", "dist"))
    assert theirs.evolver.parent_matching == "distance" and ours.n_generations > 1
    assert torch.equal(ours.evolver.candidates, theirs.evolver.candidates)


def test_is_erl_with_other_operators() -> None:
    assert issubclass(PDERL, ERL)
    assert make("pderl").learner_agent.mu[0].out_features == make("erl").learner_agent.mu[0].out_features
