"""Replays whole generations of EvoRainbow with given rollouts and given results of training."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from torch import Tensor

from sb3_erl import EvoRainbow
from sb3_erl.algorithms import evo_rainbow
from sb3_erl.core.parameters import write_parameters
from sb3_erl.core.seeding import Stream
from sb3_erl.engine.generation import run_generation
from sb3_erl.rollouts.jobs import Episode, EpisodeBatch, Job
from tests.parity.cases import Case
from tests.parity.replay import RecordedNormals


def replayed_model(case: Case) -> Any:
    """A model whose individuals have as many parameters as those of the case: a linear head, or a linear actor."""
    config, n_params = case["config"], case.array("mu").shape[1]
    is_whole = "whole" in config["evolved"]
    env = gym.make("Pendulum-v1")
    if is_whole:
        env = gym.wrappers.TransformObservation(env, lambda obs: obs, spaces.Box(-1, 1, (n_params - 1,), np.float32))
    return EvoRainbow(
        "MlpPolicy",
        env,
        architecture="private" if is_whole else "shared",
        learning_starts=int((case.array("evolution_active") == 0).sum()),
        buffer_size=100,  # nothing is stored, and observations may be long
        pop_size=config["pop_size"],
        surrogate_prob=1 - config["theta"],
        ea_tau=config["EA_tau"],
        sync_period=config["sync_period"],
        sigma_init=config["sigma_init"],
        damp=config["damp"],
        damp_limit=config["damp_limit"],
        damp_tau=config["damp_tau"],
        tell_during_warmup=True,
        evolver_kwargs={"n_parents": config["parents"], "antithetic": config["antithetic"]},
        policy_kwargs={"net_arch": {"pi": [] if is_whole else [n_params - 1], "qf": [4]}},
    )


class Replay:
    """Runs the generations of a case in the model's own order, with its rollouts and updates replaced by given numbers."""

    def __init__(self, case: Case, monkeypatch: pytest.MonkeyPatch):
        self.case, self.model, self.number = case, replayed_model(case), 0
        model = self.model
        model.set_logger(Logger(None, []))
        model.evolver.mean.copy_(case.tensor("mu_init"))
        self.write("actor_before", "target_before")
        self.plain_rng = model.run.rng
        monkeypatch.setattr(model.run, "rng", self.rng)
        monkeypatch.setattr(model, "_fitness_draw", lambda: float(self.array("theta_draw")))
        monkeypatch.setattr(model.rollouts, "run", self.run)
        monkeypatch.setattr(model, "train", lambda *_: self.write("actor_after_training", "target_after_training"))
        monkeypatch.setattr(evo_rainbow, "surrogate_fitness", lambda *_: self.array("bootstrapped"))
        steps = [
            ("tell", self.check_distribution),
            ("soft_update", self.check_soft_update),
            ("exchange", self.check_injection),
        ]
        model.extra_steps = [Step(after, check) for after, check in steps]

    def array(self, name: str) -> np.ndarray:
        return self.case.array(name)[self.number]

    def rng(self, stream: Stream) -> Any:
        if stream is not Stream.EVOLUTION:
            return self.plain_rng(stream)
        self.normals = RecordedNormals(self.array("noise"))
        return self.normals

    def write(self, actor: str, target: str) -> None:
        for network, name in ((self.model.policy.actor, actor), (self.model.policy.actor_target, target)):
            write_parameters(torch.as_tensor(self.array(name)), self.model.population.representation.own_part(network))

    def read(self, network: Any) -> Tensor:
        return self.model.population.representation.read(network)

    def run(self, jobs: list[Job], *_: Any, **__: Any) -> EpisodeBatch:
        rewards = [0.0] if jobs[0].candidate == self.model.pop_size else self.array("returns")
        self.model.n_learner_steps += jobs[0].candidate == self.model.pop_size
        assert self.array("evolution_active") or len(jobs) == 1
        episodes = [Episode.from_rewards(job, np.array([r]), True, False) for job, r in zip(jobs, rewards, strict=True)]
        return EpisodeBatch(tuple(episodes), len(jobs))

    def check_distribution(self, generation: Any) -> None:
        case, evolver = self.case, self.model.evolver
        assert self.normals.is_used_up
        case.close(generation.asked, self.array("solutions"))
        if self.array("evolution_active"):
            case.close(generation.fitness, self.array("fitness"))
            assert int(np.argmax(generation.fitness)) == self.array("best_index")
        for ours, theirs in ((evolver.mean, "mu"), (evolver.variance, "cov"), (evolver.damping, "damp")):
            case.close(ours, self.array(theirs))
        case.close(evolver.weights, case.array("weights"))

    def check_soft_update(self, generation: Any) -> None:
        case, tau, best = self.case, self.case["config"]["EA_tau"], int(self.array("best_index"))
        injected_before = self.number > 0 and case.array("injected_slot")[self.number - 1] >= 0
        for name, network in (("actor", self.model.policy.actor), ("target", self.model.policy.actor_target)):
            before, after = self.array(f"{name}_before"), self.array(f"{name}_after_soft_update")
            if best == self.array("rl_slot_before") and not injected_before and self.array("evolution_active"):
                np.testing.assert_array_equal(after, before)  # the official slot is stale; ours holds no learner by now
                after = tau * self.array("solutions")[best] + (1 - tau) * before
            case.close(self.read(network), after)

    def check_injection(self, generation: Any) -> None:
        slot = self.model._injected_slot
        assert (-1 if slot is None else slot) == self.array("injected_slot")
        self.case.close(self.read(self.model.policy.actor), self.array("actor_after_training"))


class Step:
    """A step of a generation that checks what the verb before it has done."""

    def __init__(self, after: str, check: Any):
        self.after, self.check = after, check

    def __call__(self, model: Any, generation: Any) -> None:
        self.check(generation)


def check_generations(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    replay = Replay(case, monkeypatch)
    for number in range(case["config"]["generations"]):
        replay.number = number
        assert run_generation(replay.model, None)  # type: ignore[arg-type]
        replay.model.n_generations += 1
    assert replay.model.n_evaluations == case.array("evolution_active").sum()
