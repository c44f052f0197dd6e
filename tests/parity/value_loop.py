"""Replays VEB-RL's whole loop on scripted episodes: who acts, and when networks are scored, copied and injected."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from sb3_erl import VEBRL
from sb3_erl.core.parameters import write_parameters
from sb3_erl.engine.generation import Generation
from sb3_erl.evolution.operators.selection import Epoch
from sb3_erl.evolution.value_targets import td_fitness
from sb3_erl.rollouts.jobs import EpisodeBatch, Job
from tests.parity.cases import Case

Event = list[Any]


class ScriptedEpisodes(gym.Env[np.ndarray, np.int64]):
    """
    Each seeded reset starts the next episode of a script; unseeded (automatic) resets do not count.

    :param lengths: of the episodes
    :param n_inputs: size of an observation; with one action and no hidden layer a Q-network has one more parameter
    """

    action_space = spaces.Discrete(1)

    def __init__(self, lengths: list[int], n_inputs: int):
        self.lengths = list(lengths)
        self.observation_space = spaces.Box(-1, 1, (n_inputs,), np.float32)
        self.n_started = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        if seed is not None:
            self.length = self.lengths[self.n_started]
            self.n_started += 1
        self.t = 0
        return np.zeros(self.observation_space.shape or (), np.float32), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return np.zeros(self.observation_space.shape or (), np.float32), 1.0, self.t >= self.length, False, {}


class Recording(VEBRL):
    """Writes down what happens; gradient updates are only counted, fitness and who survives come from the case."""

    case: Case
    events: list[Event]
    n_scored = 0

    def train(self, gradient_steps: int, batch_size: int | None = None) -> None:
        if gradient_steps:
            self.events.append(["train", gradient_steps])

    def _ask(self, generation: Generation) -> None:
        super()._ask(generation)
        if self.evolver_class == "cem":
            self.events.append(["ask"])

    def _score(self, generation: Generation) -> None:
        super()._score(generation)
        if generation.fitness is not None:
            self.events.append(["fitness", self.n_scored])

    def _tell(self, generation: Generation) -> None:
        super()._tell(generation)
        if generation.fitness is not None:
            self.n_scored += 1

    def _exchange(self, generation: Generation) -> None:
        told = self.case.arrays.get("told")
        row = None if told is None or self.n_scored >= len(told) else torch.as_tensor(told[self.n_scored])
        if row is not None and generation.fitness is not None:  # the learner is what the next generation finds in its slot
            slot = next((args[0] for kind, *args in self.upcoming if kind == "inject"), 0)
            write_parameters(row[slot], self.policy.q_net)
        super()._exchange(generation)

    @property
    def upcoming(self) -> list[Event]:
        """What the case says will happen next."""
        return expected_events(self.case)[len(self.events) :]


def expected_events(case: Case) -> list[Event]:
    """What happens in a case; no gradient steps are nothing."""
    return [event for event in case["events"] if event != ["train", 0]]


def recording(case: Case, monkeypatch: pytest.MonkeyPatch) -> Recording:
    c, events = case["config"], case["events"]
    is_cem = "noise" in case.arrays
    lengths = [args[1] for kind, *args in events if kind == "rollout"]
    n_params = case.array("mu_init").size if is_cem else 12
    model = Recording(
        "MlpPolicy",
        ScriptedEpisodes(lengths, n_params - 1),
        evolver="cem" if is_cem else "ga",
        pop_size=c["pop_size"],
        n_acting_elites=c["acting_elites"],
        population_target_interval=c["target_copy_every_generations"],
        sync_period=c["sync_period"],
        learning_starts=c["init_random_steps"],
        fitness_batch_size=c["fitness_batch"],
        sigma_init=c.get("sigma_init", 1e-3),
        evolver_kwargs=cem_settings(c) if is_cem else {},
        exploration_decay_steps=c["epsilon_decay_steps"],
        policy_kwargs={"net_arch": []},
    )
    model.case, model.events = case, []
    acting = model.targets

    def scripted(_: Any, candidates: torch.Tensor) -> np.ndarray:
        measured = td_fitness(model, candidates)
        assert measured is not None and measured.shape == (c["pop_size"],)
        return case.array("fitness")[model.n_scored].astype(np.float64)

    monkeypatch.setattr("sb3_erl.algorithms.veb_rl.td_fitness", scripted)
    record_targets(model, monkeypatch)
    record_rollouts(model)
    (follow_cem if is_cem else follow_ga)(model, case)
    assert acting is model.targets
    return model


def cem_settings(c: dict[str, Any]) -> dict[str, Any]:
    return {
        "n_parents": c["parents"],
        "antithetic": c["antithetic"],
        "damping_init": c["damp"],
        "damping_final": c["damp_limit"],
    }


def record_targets(model: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_from, put = model.targets.copy_from, model.targets.put

    def copied(vectors: torch.Tensor) -> None:
        model.events.append(["copy_online_to_target_of", list(range(len(vectors)))])
        copy_from(vectors)
        assert torch.equal(model.targets.vectors, vectors.float())

    def injected(vector: torch.Tensor, slot: int) -> None:
        model.events.append(["inject", slot])
        put(vector, slot)

    monkeypatch.setattr(model.targets, "copy_from", copied)
    monkeypatch.setattr(model.targets, "put", injected)


def record_rollouts(model: Recording) -> None:
    run = model.rollouts.run

    def recorded(jobs: list[Job], *args: Any, **kwargs: Any) -> EpisodeBatch | None:
        slots, how_learner = model.targets.acting, "epsilon_greedy" if model._is_warm else "random"
        episodes = run(jobs, *args, **kwargs)
        for episode in () if episodes is None else episodes.episodes:
            explorer: Any = episode.job.explorer
            assert explorer is None or (explorer.epsilon == 1.0) >= (how_learner == "random")
            who = [slots[episode.job.candidate], "greedy"] if explorer is None else ["learner", how_learner]
            model.events.append(["rollout", who[0], episode.n_steps, who[1]])
        return episodes

    model.rollouts.run = recorded  # type: ignore[method-assign, assignment]


def follow_ga(model: Recording, case: Case) -> None:
    """Selection is that of the case."""
    evolver: Any = model.evolver

    def tell(*_: Any) -> None:
        elites = case.array("elites")[model.n_scored].tolist()
        model.events.append(["evolve", model.n_scored])
        evolver.epoch = Epoch([[]], [[]], [], elites, [], [])

    evolver.tell = tell


def follow_cem(model: Recording, case: Case) -> None:
    """Draws are those of the case, and mean and variances must be, too."""
    evolver: Any = model.evolver
    evolver.mean.copy_(case.tensor("mu_init"))
    tell, noise = evolver.tell, case.array("noise")
    np.testing.assert_allclose(evolver.weights, case.array("weights"), rtol=1e-6)

    def propose(rng: np.random.Generator) -> torch.Tensor:
        if not model._is_warm:
            return evolver.draw(evolver.pop_size, rng)
        asked = evolver.sample(noise[model.n_scored], mirrored=len(noise[model.n_scored]) < evolver.pop_size)
        case.close(asked, case.array("asked")[model.n_scored])
        return asked

    def told(candidates: torch.Tensor, *args: Any) -> None:
        model.events.append(["tell", model.n_scored])
        case.close(candidates, case.array("told")[model.n_scored])
        tell(candidates, *args)
        for name, expected in (("mean", "mu"), ("variance", "cov"), ("damping", "damp")):
            case.close(getattr(evolver, name), case.array(expected)[model.n_scored])

    evolver.propose, evolver.tell = propose, told


def replay_loop(case: Case) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        model, c = recording(case, monkeypatch), case["config"]
        total = sum(args[1] for kind, *args in case["events"] if kind == "rollout")
        assert total >= c["max_steps"]
        model.learn(total)
    for number, (ours, theirs) in enumerate(zip(model.events, expected_events(case), strict=True)):
        assert ours == theirs, f"event {number}"
    assert sum(args[0] for kind, *args in model.events if kind == "train") == c["learner_updates"]
    explorer: Any = model._explorer()
    assert explorer.epsilon == pytest.approx(c["final_learner_epsilon"], abs=1e-9)
