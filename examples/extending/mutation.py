"""
A mutation of your own with state: its noise becomes smaller in each generation, and a loaded model goes on where it was.

    python -m examples.extending.mutation
"""

from typing import Any

import numpy as np

from sb3_erl import ERL
from sb3_erl.core.parameters import ParameterLayout


class DecayingMutation:
    """Gaussian noise, multiplied by ``decay`` after each generation; parents are ``(n, n_params)`` and never written."""

    def __init__(self, layout: ParameterLayout, std: float = 0.1, decay: float = 0.95):
        self.std, self.decay = std, decay

    def __call__(self, parents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        mutants = parents + (self.std * rng.standard_normal(parents.shape)).astype(parents.dtype)
        self.std *= self.decay
        return mutants

    def state_dict(self) -> dict[str, Any]:  # saved with the model: numbers, strings, tensors, lists and dicts
        return {"std": self.std}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.std = state["std"]


def main(steps: float = 10_000) -> float:
    """:return: standard deviation of the noise in the end"""
    model = ERL("Pendulum-v1", pop_size=5, mutation=DecayingMutation, seed=1).learn(steps)
    return model.evolver.mutation.std


if __name__ == "__main__":
    main()
