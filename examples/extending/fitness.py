"""
Fitness of your own: a function of the episodes, a function of the package by its name, and a weighted sum of both.

    python -m examples.extending.fitness
"""

import numpy as np

from sb3_erl import ERL, needs
from sb3_erl.evolution.fitness.base import EpisodeBatch, FitnessContext


@needs("actions")  # so workers send the actions; reading what was not declared is an error
def return_minus_energy(episodes: EpisodeBatch, context: FitnessContext) -> np.ndarray:
    """Mean over a candidate's episodes of the return minus a tenth of the squared actions."""
    values = [episode.total_reward - 0.1 * np.square(episode.actions).sum() for episode in episodes.episodes]
    return episodes.mean_per_candidate(values, context.n_candidates)


CHOICES = (
    return_minus_energy,
    "discounted_return",
    {"return": 1.0, "novelty": 10.0},
    {"examples.extending.fitness:return_minus_energy": 0.5, "discounted_return": 0.5},
)


def main(steps: float = 10_000) -> list[float | None]:
    """:return: fitness of the last champions"""
    models = [ERL("Pendulum-v1", pop_size=4, train_freq=8, fitness=own, seed=1) for own in CHOICES]
    return [model.learn(steps).champion_fitness for model in models]


if __name__ == "__main__":
    main()
