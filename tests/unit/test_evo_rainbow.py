"""EvoRainbow's own rules: who joins the sample, who moves to whom and when, and what partial rollouts are worth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from sb3_erl import EvoRainbow, EvoRainbowExp
from sb3_erl.engine.generation import Generation
from sb3_erl.engine.replace import pulled_networks
from sb3_erl.engine.steps import every
from sb3_erl.learners.shared_heads import SharedSACLearner
from sb3_erl.rollouts.jobs import Episode, EpisodeBatch, EpisodeRecord, Job
from tests.envs import toy_vec_env

FAST: dict[str, Any] = {
    **{"pop_size": 4, "learning_starts": 10, "batch_size": 16, "buffer_size": 2000, "fitness_horizon": 5, "seed": 3},
    "policy_kwargs": {"net_arch": [8]},
}
FORMS = [(EvoRainbow, "td3"), (EvoRainbow, "sac"), (EvoRainbowExp, "td3"), (EvoRainbowExp, "sac")]


def fast(cls: Any = EvoRainbow, **overrides: Any) -> Any:
    arguments = {**FAST, **overrides}
    if cls is EvoRainbowExp:
        arguments.pop("fitness_horizon")
    return cls("MlpPolicy", toy_vec_env(), **arguments)


def own(model: Any, network: Any) -> torch.Tensor:
    return model.population.representation.read(network)


class AtEachStep:
    """A step after one verb that writes down what a function finds."""

    def __init__(self, after: str, look: Any):
        self.after, self.look, self.seen = after, look, list[Any]()

    def __call__(self, model: Any, generation: Generation) -> None:
        self.seen.append(self.look(model, generation))


@pytest.mark.parametrize("cls, learner", FORMS)
def test_the_learner_is_a_row_of_the_next_sample_and_is_told(cls: Any, learner: str) -> None:
    injected = AtEachStep("exchange", lambda model, _: (model._injected_slot, own(model, model.actor)))
    told = AtEachStep("tell", lambda model, generation: (generation.asked.clone(), model.evolver.candidates.clone()))
    fast(cls, learner=learner, generation_steps=[injected, told]).learn(300)
    pairs = [(*before, *after) for before, after in zip(injected.seen[:-1], told.seen[1:], strict=False)]
    assert len(pairs) > 4
    n_seen = 0
    for slot, vector, asked, candidates in pairs:
        if slot is not None:
            n_seen += 1
            assert torch.equal(asked[slot].float(), vector) and torch.equal(candidates[slot].float(), vector)
    assert n_seen > 3


def test_the_learner_takes_the_slot_of_the_least_fit() -> None:
    slots = AtEachStep("exchange", lambda model, generation: (model._injected_slot, generation.fitness))
    fast(generation_steps=[slots]).learn(300)
    evaluated = [(slot, fitness) for slot, fitness in slots.seen if fitness is not None]
    assert len(evaluated) > 3 and all(slot == int(np.argmin(fitness)) for slot, fitness in evaluated)


@pytest.mark.parametrize("cls, learner", FORMS)
def test_the_best_pulls_network_and_target_before_the_learner_acts(cls: Any, learner: str) -> None:
    def networks(model: Any, _: Any) -> dict[str, torch.Tensor]:
        found = {name: getattr(model.policy, name, None) for name in ("actor", "actor_target")}
        return {name: own(model, network) for name, network in found.items() if network is not None}

    def optimizers(model: Any, _: Any) -> list[torch.Tensor]:
        states = [state for optimizer in model.learner.optimizers.values() for state in optimizer.state.values()]
        return [value.clone() for state in states for value in state.values() if isinstance(value, torch.Tensor)]

    best = lambda _, generation: (generation.fitness, generation.asked.clone(), dict(generation.pulled))  # noqa: E731
    before, moments = AtEachStep("score", networks), AtEachStep("score", optimizers)
    slots, planned = (
        AtEachStep("score", lambda model, _: (model._injected_slot, model._n_injections)),
        AtEachStep("explore", best),
    )
    after, moments_after = AtEachStep("soft_update", networks), AtEachStep("soft_update", optimizers)
    steps = [before, moments, slots, planned, after, moments_after]
    model = fast(cls, learner=learner, ea_tau=0.25, generation_steps=steps)
    acted, act = list[torch.Tensor](), model.population.act

    def remember(vectors: torch.Tensor) -> Any:
        acted.append(vectors)
        return act(vectors)

    model.population.act = remember
    model.learn(400)
    explored, n_moved = [vectors[0] for vectors in acted if len(vectors) == 1], 0
    everything = zip(
        before.seen, moments.seen, slots.seen, planned.seen, after.seen, moments_after.seen, explored, strict=False
    )
    for old, state, (slot, n_injections), (fitness, asked, pulled), new, state_after, vector in everything:
        assert torch.equal(vector, new["actor"])  # acted already with what is written later
        assert all(torch.equal(a, b) for a, b in zip(state, state_after, strict=True))
        champion = None if fitness is None else int(np.argmax(fitness))
        if champion is None or n_injections == 0 or champion == slot:
            assert not pulled and all(torch.equal(old[name], new[name]) for name in old)
            continue
        n_moved += 1
        assert set(pulled) == set(old) == ({"actor", "actor_target"} if learner == "td3" else {"actor"})
        for name, vector in old.items():
            torch.testing.assert_close(new[name], 0.25 * asked[champion].float() + 0.75 * vector, rtol=0, atol=1e-7)
    assert n_moved > 2


def test_a_slot_that_no_longer_holds_the_learner_is_not_spared() -> None:
    model = fast(sync_period=10)
    model.set_logger(Logger(None, []))
    model._n_injections, model._injected_slot = 1, 2
    candidates = model.population.ask(np.random.default_rng(0))
    fitness = np.array([0.0, 1.0, 5.0, 2.0])
    generation = Generation(11, np.random.default_rng(0), None, candidates, EpisodeBatch((), 0), fitness)  # type: ignore[arg-type]
    assert pulled_networks(model, generation) == {}  # slot 2 holds the learner
    model._tell(generation)
    assert set(pulled_networks(model, generation)) == {"actor", "actor_target"}  # sampled again since
    model._n_injections = 0
    assert pulled_networks(model, generation) == {}


def test_no_soft_update_without_a_step_size() -> None:
    pulled = AtEachStep("explore", lambda _, generation: dict(generation.pulled))
    fast(ea_tau=0.0, generation_steps=[pulled]).learn(300)
    assert len(pulled.seen) > 4 and not any(pulled.seen)


@pytest.mark.parametrize("learner", ["td3", "sac"])
def test_partial_rollouts_are_valued_by_the_first_critic_at_the_individuals_own_action(learner: str) -> None:
    model = fast(learner=learner, gamma=0.9, surrogate_prob=1.0).learn(60)
    candidates, rewards = model.population.ask(np.random.default_rng(0)), np.arange(5.0)
    observation = model.observation_space.sample()

    def ended(candidate: int, terminated: bool) -> Episode:
        record = EpisodeRecord(rewards)
        return Episode.from_rewards(Job(candidate), rewards, terminated, not terminated, observation, record=record)

    episodes = EpisodeBatch(tuple(ended(i, terminated=i == 3) for i in range(4)), 20)
    generation = Generation(1, np.random.default_rng(0), None, candidates, episodes)  # type: ignore[arg-type]
    model.fitness_mode = "surrogate"
    model._score(generation)
    tensor, _ = model.policy.obs_to_tensor(observation)
    discounted = float(rewards @ 0.9 ** np.arange(5))
    for i in range(4):
        agent = model.population.representation.agent(candidates[i])
        with torch.no_grad():
            action = agent._predict(tensor, deterministic=True)
            first = model.learner.all_values(tensor, action)[0]
        expected = discounted + (0.0 if i == 3 else 0.9**5 * float(first))  # nothing after a true terminal
        assert generation.fitness is not None and generation.fitness[i] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("learner", ["td3", "sac"])
def test_the_whole_population_is_measured_alike_and_costs_its_steps(learner: str) -> None:
    def look(model: Any, generation: Generation) -> tuple[Any, ...]:
        population = [e for e in generation.evaluated.episodes if e.job.candidate < 4]
        return model.fitness_mode, [e.n_steps for e in population], generation.evaluated.n_timesteps, model.num_timesteps

    seen = AtEachStep("explore", look)
    model = fast(learner=learner, surrogate_prob=0.5, generation_steps=[seen]).learn(500)
    rows = [row for row in seen.seen if row[1]]
    whole = {n for mode, steps, *_ in rows if mode == "mc" for n in steps}
    partial = {n for mode, steps, *_ in rows if mode == "surrogate" for n in steps}
    assert partial == {5} and len(whole) >= 1 and min(whole) > 5  # min(H, length) each
    for (_, _, _, before), (_, steps, n_timesteps, after) in zip(seen.seen[:-1], seen.seen[1:], strict=True):
        assert after - before == n_timesteps and n_timesteps - sum(steps) > 0
    assert model.n_learner_steps + sum(sum(row[1]) for row in seen.seen) <= model.num_timesteps


@pytest.mark.parametrize("learner", ["td3", "sac"])
def test_heads_of_individuals_are_constants_of_the_updates(learner: str) -> None:
    asked = AtEachStep("ask", lambda _, generation: generation.asked.clone())
    after = AtEachStep("learn", lambda model, generation: (generation.asked.clone(), model._individuals.requires_grad))
    fast(learner=learner, generation_steps=[asked, after]).learn(300)
    assert len(after.seen) > 3
    for before, (candidates, requires_grad) in zip(asked.seen, after.seen, strict=False):
        assert torch.equal(before, candidates) and not requires_grad


def test_an_unfinished_generation_leaves_learner_and_distribution_alone() -> None:
    """A callback that stops the learner's episode, which follows the population's."""

    class StopInTheLearnersEpisode(BaseCallback):
        def _on_step(self) -> bool:
            return not (self.model.n_evaluations == 3 and self.model.phase > self.phase and self.steps_left() == 0)

        phase = 10**9
        n = 0

        def steps_left(self) -> int:
            self.n += 1
            return max(0, 22 - self.n)  # four partial rollouts of five steps come first

    model = fast(surrogate_prob=1.0)
    callback = StopInTheLearnersEpisode()
    states = list[Any]()

    def state() -> tuple[torch.Tensor, ...]:
        return own(model, model.actor), own(model, model.policy.actor_target), model.evolver.mean.clone()

    def keep(_: Any, generation: Generation) -> None:
        states.append(state())
        callback.phase = model.phase if model.n_evaluations == 3 else callback.phase

    model.extra_steps = [every(1, keep, after="log")]
    model.learn(2000, callback=callback)
    assert model.num_timesteps < 2000 and model.n_evaluations == 3 and callback.n == 22
    assert all(torch.equal(a, b) for a, b in zip(states[-1], state(), strict=True))
    model.extra_steps = []
    model.learn(100, reset_num_timesteps=False)
    assert model.n_evaluations > 3


def test_heads_move_the_embedding_of_sac_and_nothing_else_of_theirs() -> None:
    model = fast(learner="sac").learn(120)
    learner, batch = model.learner, model._sample(16)
    assert isinstance(learner, SharedSACLearner)
    heads = learner.heads(None)  # type: ignore[arg-type]
    assert heads.weight.shape == (1, 2 * model.action_space.shape[0], 8)
    population = type(heads)(*(part.expand(3, *part.shape[1:]).clone() for part in heads))
    start = own(model, model.actor)
    before = [p.detach().clone() for p in model.actor.encoder_parameters()]
    losses = learner.iterate(batch, population, [0, 3], [1])
    assert set(losses) >= {"pevfa_loss", "critic_loss", "actor_loss", "encoder_loss", "ent_coef_loss"}
    assert not torch.equal(own(model, model.actor), start)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.actor.encoder_parameters(), strict=True))
    assert torch.equal(population.weight[0], population.weight[2])


@pytest.mark.parametrize("deploy", ["learner", "champion", "mean"])
def test_who_acts(deploy: Any) -> None:
    model = fast(deploy=deploy).learn(300)
    expected = {"learner": own(model, model.actor), "mean": model.evolver.mean.float()}
    expected["champion"] = model.population.champion.vector.float()
    assert torch.equal(own(model, model.policy.deployed), expected[deploy])
    assert torch.equal(model.policy.deployed.trunk[0].weight, model.actor.trunk[0].weight)


def test_arguments_that_do_not_fit_are_refused_by_name() -> None:
    for arguments, message in (
        ({"surrogate": "h_step"}, "surrogate must be"),
        ({"surrogate": "h_step_pevfa", "architecture": "private"}, "surrogate must be"),
        ({"architecture": "both"}, "architecture must be"),
        ({"ea_tau": 1.5}, "ea_tau must be"),
        ({"damp": -1.0}, "damp must be"),
        ({"surrogate_prob": 2.0}, "surrogate_prob must be"),
        ({"learner": "td7"}, "learner must be"),
        ({"policy_kwargs": {"policy_embedding_dim": 7}, "learner": "sac"}, "policy_embedding_dim must be even"),
    ):
        with pytest.raises(ValueError, match=message):
            fast(**arguments)


def test_a_step_of_ones_own_can_follow_the_new_verbs() -> None:
    seen = list[str]()
    steps = [every(1, lambda *_, verb=verb: seen.append(verb), after=verb) for verb in ("explore", "soft_update")]
    fast(generation_steps=steps).learn(100)
    assert seen[:4] == ["explore", "soft_update"] * 2
