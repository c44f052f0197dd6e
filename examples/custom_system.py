"""
A whole new system in one class: the genetic algorithm of ERL without a learner.

    python -m examples.custom_system [--steps 20000]
"""

from __future__ import annotations

import argparse
from typing import Any

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_erl.engine.pure_evolution import EvolutionaryAlgorithm


class SimpleGA(EvolutionaryAlgorithm):
    """Tournament selection, row crossover and Gaussian mutation on whole actors, a fifth of which survive; fitness is the return."""

    def _evolver_arguments(self) -> dict[str, Any]:
        return {"elite_fraction": 0.2, **super()._evolver_arguments()}


def main(arguments: list[str] | None = None) -> float:
    """:return: mean return of the champion"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=float, default=20_000)
    steps = parser.parse_args(arguments).steps

    model = SimpleGA("Pendulum-v1", pop_size=10, seed=1, policy_kwargs={"net_arch": [32]})
    model.learn(steps)

    eval_env = make_vec_env("Pendulum-v1", seed=100)
    mean, std = evaluate_policy(model, eval_env, n_eval_episodes=5)
    print(f"champion after {model.n_generations} generations: {mean:.1f} +- {std:.1f}")
    return float(mean)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
