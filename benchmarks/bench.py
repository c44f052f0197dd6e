"""
Speed of gradient updates and of population stepping, beside SB3's TD3, interleaved in one process.

    python -m benchmarks.bench [--rounds 5] [--threads 1] [--out results/bench.json]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import TD3
from stable_baselines3.common.logger import configure
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_erl import ERL, ERLRe2

ENV = "HalfCheetah-v5"


def fill(model: OffPolicyAlgorithm, n: int = 2000) -> OffPolicyAlgorithm:
    """Random transitions in the buffer, so that updates can be timed without an environment."""
    buffer, rng = model.replay_buffer, np.random.default_rng(0)
    assert buffer is not None and model.observation_space.shape is not None
    for _ in range(n):
        obs = rng.standard_normal((2, 1, *model.observation_space.shape))
        action = rng.uniform(-1, 1, (1, *model.action_space.shape))  # type: ignore[misc]
        buffer.add(obs[0], obs[1], action, rng.standard_normal(1), np.zeros(1), [{}])
    model.set_logger(configure(None, []))
    return model


def updates(model: OffPolicyAlgorithm, n: int = 50) -> Callable[[], float]:
    """:return: measures updates per second"""

    def measure() -> float:
        start = time.perf_counter()
        model.train(gradient_steps=n, batch_size=model.batch_size)
        return n / (time.perf_counter() - start)

    return measure


def raw_steps(n: int = 2000) -> Callable[[], float]:
    """:return: measures steps per second of the environment alone"""
    env = gym.make(ENV)
    env.reset(seed=0)
    action = env.action_space.sample()

    def measure() -> float:
        start = time.perf_counter()
        for _ in range(n):
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        return n / (time.perf_counter() - start)

    return measure


def population_steps(n: int = 2000) -> Callable[[], float]:
    """:return: measures steps per second of ERL's population rollouts, transitions stored, no updates"""
    model = ERL(ENV, seed=0, gradient_steps=0, pop_size=2)

    def measure() -> float:
        start = time.perf_counter()
        model.learn(n)
        return n / (time.perf_counter() - start)

    return measure


def main() -> None:
    """Measure in rounds and report medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds; medians are reported")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--out", type=Path, default=Path("results/bench.json"), help="JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    measures = {
        "SB3 TD3.train, batch 256": updates(fill(TD3("MlpPolicy", ENV, seed=0))),
        "ERL-Re2, batch 128": updates(fill(ERLRe2(ENV, seed=0, learning_starts=0))),
        "ERL-Re2, evolution off, batch 128": updates(fill(ERLRe2(ENV, seed=0, evolution=False))),
        "ERL, DDPG learner, batch 128": updates(fill(ERL(ENV, seed=0))),
        "environment alone, steps": raw_steps(),
        "ERL population, steps": population_steps(),
    }
    rates: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(arguments.rounds):
        for name, measure in measures.items():
            rates[name].append(measure())
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    reference = medians["SB3 TD3.train, batch 256"], medians["environment alone, steps"]
    for name, value in medians.items():
        ratio = value / (reference[1] if name.endswith("steps") else reference[0])
        print(f"{name:36s} {value:10.1f} /s   {ratio:6.2f} of the reference")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"env": ENV, "threads": arguments.threads, "per_second": rates}, indent=1))


if __name__ == "__main__":
    main()
