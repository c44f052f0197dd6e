"""
A whole new system in one class: the genetic algorithm of ERL without a learner.

    python -m examples.custom_system --steps 20000
"""

from __future__ import annotations

import argparse

import torch

from sb3_erl.common.evolutionary_algorithm import EvolutionaryAlgorithm
from sb3_erl.common.parameters import ParameterLayout
from sb3_erl.evolution.base import Evolver
from sb3_erl.evolution.ga import GA


class SimpleGA(EvolutionaryAlgorithm):
    """Tournament selection, row crossover and Gaussian mutation on whole actors; fitness is the return."""

    def _make_evolver(self, candidates: torch.Tensor, layout: ParameterLayout) -> Evolver:
        return GA(candidates, layout, elite_fraction=0.2)


def main() -> None:
    """Train on Pendulum and print the champion's return."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=float, default=20_000)
    steps = parser.parse_args().steps
    model = SimpleGA("Pendulum-v1", pop_size=10, seed=1, verbose=1, policy_kwargs={"net_arch": [32]})
    model.learn(steps)
    model.save("simple_ga")
    champion = SimpleGA.load("simple_ga")
    print(f"{champion.n_generations} generations, one action: {champion.predict(model.observation_space.sample())[0]}")


if __name__ == "__main__":
    main()
