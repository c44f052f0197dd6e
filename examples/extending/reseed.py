"""
Steps of your own in a generation: one of the package every third generation, and a class in each.

    python -m examples.extending.reseed
"""

from typing import Any

import torch

from sb3_erl import ERL, Reseed, every


class NoisyChampion:
    """A noisy copy of the champion takes a slot that is drawn at random."""

    after = "exchange"

    def __call__(self, model: Any, generation: Any) -> None:
        """Numbers of ``model.rng("any name")`` are the same in a run that was killed and resumed."""
        population, rng = model.population, model.rng("noisy champion")
        free = [slot for slot in range(population.pop_size) if slot not in population.evolver.protected]
        champion = population.champion.vector
        noise = 0.05 * torch.as_tensor(rng.standard_normal(champion.shape), dtype=champion.dtype)
        population.evolver.inject((champion + noise.to(champion.device))[None], [int(rng.choice(free))])


def main(steps: float = 10_000) -> int:
    """:return: number of generations"""
    own = [every(3, Reseed(std=0.1)), "examples.extending.reseed:NoisyChampion"]
    model = ERL("Pendulum-v1", pop_size=4, train_freq=4, generation_steps=own, seed=1)
    return model.learn(steps).n_generations


if __name__ == "__main__":
    main()
