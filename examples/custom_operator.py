"""
A mutation of your own: a class that takes the layout of one individual, and maps a stack of parents to a stack of mutants.

    python -m examples.custom_operator [--steps 10000]
"""

import argparse

import numpy as np

from sb3_erl import ERL
from sb3_erl.core.parameters import ParameterLayout


class IsotropicMutation:
    """
    Add the same amount of Gaussian noise to every parameter.

    :param layout: names and shapes of the tensors of one individual
    :param std: standard deviation of the noise
    """

    def __init__(self, layout: ParameterLayout, std: float = 0.02):
        self.layout = layout
        self.std = std

    def __call__(self, parents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """
        :param parents: ``(n, n_params)``, never written
        :param rng: the only source of random numbers, so that runs can be repeated
        :return: ``(n, n_params)``
        """
        return parents + (self.std * rng.standard_normal(parents.shape)).astype(parents.dtype)


def main(arguments: list[str] | None = None) -> float | None:
    """:return: fitness of the last champion"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=float, default=10_000)
    steps = parser.parse_args(arguments).steps

    evolver_kwargs = {"mutation_kwargs": {"std": 0.05}}
    model = ERL("Pendulum-v1", pop_size=5, mutation=IsotropicMutation, evolver_kwargs=evolver_kwargs, seed=1)
    model.learn(steps)
    print(f"champion's return after {model.n_generations} generations: {model.champion_fitness}")
    return model.champion_fitness


if __name__ == "__main__":
    main()
