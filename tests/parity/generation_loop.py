"""Replays whole generations of ERL-Re2 on scripted episodes, and its blind warm-up."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from sb3_erl import ERLRe2
from sb3_erl.core.parameters import ParameterLayout, read_parameters
from sb3_erl.engine.generation import Generation, exchange
from sb3_erl.evolution.ga import GA
from sb3_erl.evolution.operators.selection import Epoch
from tests.parity.cases import Case


class ScriptedEpisodes(gym.Env[np.ndarray, np.ndarray]):
    """
    Each seeded reset starts the next episode of a script; unseeded (automatic) resets do not count.

    :param script: (length, reward per step) of each episode
    """

    observation_space = spaces.Box(-1, 1, (3,), dtype=np.float32)
    action_space = spaces.Box(-1, 1, (2,), dtype=np.float32)

    def __init__(self, script: list[tuple[int, float]]):
        self.script = list(script)
        self.n_started = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        if seed is not None:
            self.length, self.reward = self.script[self.n_started]
            self.n_started += 1
        self.t = 0
        return np.zeros(3, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return np.full(3, self.t / 1000, np.float32), self.reward, self.t >= self.length, False, {}


class RecordedRe2(ERLRe2):
    """ERL-Re2 with recorded decisions of evolution and fitness mode; gradient updates are only counted."""

    recorded: dict[str, Any]
    n_gradient_iterations = 0

    def train(self, gradient_steps: int, batch_size: int | None = None) -> None:
        self.n_gradient_iterations += gradient_steps

    def _fitness_draw(self) -> float:
        return self.recorded["mode_draw"]

    def _score(self, generation: Generation) -> None:
        learner: Any = self.learner
        learner.bootstrap = lambda *_: 0.0
        super()._score(generation)
        self.seen = generation.fitness

    def _exchange(self, generation: Generation) -> None:
        before, representation = self.evolver.candidates.clone(), self.population.representation
        learner = read_parameters(self.policy.actor.head) + self.phase  # a different vector each time, so that it shows
        representation.from_learner = lambda: learner  # type: ignore[method-assign]
        exchange(self, generation)
        del representation.from_learner
        changed = (self.evolver.candidates != before).any(dim=1).nonzero()[:, 0].tolist()
        self.injected = changed


def replay_generations(case: Case) -> None:
    generations = case["generations"]
    rollouts = [r for g in generations for r in g["counted_rollouts"]]
    env = ScriptedEpisodes([(r["episode_length_available"], r["reward_per_step"]) for r in rollouts])
    model = RecordedRe2(
        "MlpPolicy",
        env,
        learning_starts=case["init_steps"],
        pop_size=case["population_size"],
        fitness_horizon=case["horizon"],
        mc_fitness_prob=case["mc_fitness_probability"],
        sync_period=case["injection_period"],
        gamma=case["gamma"],
        evolve_during_warmup=True,
        policy_kwargs={"net_arch": [4]},
    )
    for expected in generations:
        model.recorded, model.injected, model.n_gradient_iterations, model.seen = expected, [], 0, None

        def evolve(*_: Any, slot: int = expected["new_elite_slot"]) -> None:
            evolver: Any = model.evolver
            evolver.epoch = Epoch([[]], [[]], [], [slot], [], [])

        model.evolver.tell = evolve  # type: ignore[method-assign, assignment]
        before = model.num_timesteps
        model.learn(expected["frames_this_generation"], reset_num_timesteps=False)
        assert model.n_generations == expected["generation"]
        assert model.num_timesteps == expected["total_frames_after"]
        assert model.num_timesteps - before == sum(r["frames"] for r in expected["counted_rollouts"])
        assert model.n_learner_steps == expected["rl_frames_after"]
        assert model.n_gradient_iterations == expected.get("gradient_iterations", 0)
        if "population_evaluations_done" in expected:
            assert model.n_evaluations == expected["population_evaluations_done"]
        if "mode_draw" in expected:
            check_fitness_of_generation(case, expected, model.seen)
        injected = expected.get("injected_into_slot")
        assert model.injected == ([] if injected is None else [injected]), expected["generation"]
    assert env.n_started == len(rollouts)


def check_fitness_of_generation(case: Case, expected: dict[str, Any], seen: np.ndarray | None) -> None:
    """Exact, but for rollouts cut at the horizon: the official (untrained, near zero) bootstrap values are not recorded."""
    assert seen is not None
    for ours, theirs, rollout in zip(seen, expected["fitness"], expected["counted_rollouts"], strict=False):
        if rollout["surrogate"] and rollout["frames"] == case["horizon"]:  # theirs has one at a terminal there, too
            discounted = rollout["reward_per_step"] * (case["gamma"] ** np.arange(case["horizon"])).sum()
            case.close(ours, discounted)
            assert abs(ours - theirs) < 0.25 * case["gamma"] ** case["horizon"]
        else:
            case.close(ours, theirs)


def saturations(case: Case, generations: list[int]) -> list[float]:
    """
    :param generations: rising
    :return: shares of saturated head actions on random features after blind evolution, medians over a few runs
    """
    n_rows, n_features = case.settings.get("action_dim", 6), case.settings.get("feature_dim", 300)
    layout, prob = ParameterLayout(("weight", "bias"), ((n_rows, n_features), (n_rows,))), case["special_probability"]
    mutation = {"fraction": case["mutation_fraction"], "super_prob": prob, "reset_prob": prob}
    pop_size, shares = case["population_size"], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        start = torch.as_tensor(rng.uniform(-1, 1, (pop_size, layout.n_params)) / np.sqrt(n_features), dtype=torch.float32)
        ga = GA(start, layout, 0.2, crossover="head_rows", mutation="head_rows", mutation_kwargs=mutation)
        features = torch.tanh(torch.as_tensor(rng.standard_normal((200, n_features)), dtype=torch.float32))
        shares.append([])
        for generation in range(max(generations) + 1):
            if generation in generations:
                heads = {name: torch.as_tensor(part) for name, part in layout.split(ga.candidates).items()}
                actions = torch.tanh(torch.einsum("nad,bd->nba", heads["weight"], features) + heads["bias"][:, None])
                shares[-1].append(float((actions.abs() > 0.99).float().mean()))
            ga.tell(ga.ask(rng), np.zeros(pop_size), rng)
    return np.median(shares, axis=0).tolist()
