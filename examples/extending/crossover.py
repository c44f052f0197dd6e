"""
A crossover of your own, which needs no line in the package: it is named by ``"package.module:Name"``.

    python -m examples.extending.crossover
"""

import numpy as np

from sb3_erl import ERL
from sb3_erl.core.parameters import ParameterLayout


class UniformCrossover:
    """Each parameter of a child comes from one of its two parents; ``layout`` names the tensors of an individual."""

    def __init__(self, layout: ParameterLayout, swap_prob: float = 0.5):
        self.swap_prob = swap_prob

    def __call__(self, first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Two stacks of parents, ``(n, n_params)`` each and never written, become two stacks of children."""
        swapped = rng.random(first.shape) < self.swap_prob
        return np.where(swapped, second, first), np.where(swapped, first, second)


def main(steps: float = 10_000) -> float | None:
    """:return: fitness of the last champion"""
    name = "examples.extending.crossover:UniformCrossover"  # the class itself will do, too
    model = ERL("Pendulum-v1", pop_size=5, crossover=name, crossover_prob=1.0, seed=1)
    return model.learn(steps).champion_fitness


if __name__ == "__main__":
    main()
