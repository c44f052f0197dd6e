"""
Steps of your own in a generation: one of the package every third generation, and a class in each.

    python -m examples.extending.reseed [--steps 10000]
"""

import argparse
from typing import Any

import torch

from sb3_erl import ERL, Reseed, every


class NoisyChampion:
    """After the exchange a noisy copy of the champion takes a slot that is drawn at random."""

    after = "exchange"

    def __init__(self, std: float = 0.05):
        self.std = std

    def __call__(self, model: Any, generation: Any) -> None:
        """Random numbers come from ``model.rng("any name")``, so they are the same in a run that was killed and resumed."""
        population, rng = model.population, model.rng("noisy champion")
        free = [slot for slot in range(population.pop_size) if slot not in population.evolver.protected]
        champion = population.champion.vector
        noise = self.std * torch.as_tensor(rng.standard_normal(champion.shape), dtype=champion.dtype)
        population.evolver.inject((champion + noise.to(champion.device))[None], [int(rng.choice(free))])


def main(arguments: list[str] | None = None) -> int:
    """:return: number of generations"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=float, default=10_000)
    steps = [every(3, Reseed(std=0.1)), "examples.extending.reseed:NoisyChampion"]
    model = ERL("Pendulum-v1", pop_size=5, generation_steps=steps, seed=1).learn(parser.parse_args(arguments).steps)
    return model.n_generations


if __name__ == "__main__":
    main()
