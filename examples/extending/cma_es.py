"""CMA-ES of the library ``cmaes`` for ERL, CEM-RL, ERL-Re2, CEM and OpenAI-ES: ``python -m examples.extending.cma_es``."""

import numpy as np
import torch
from cmaes import SepCMA

from sb3_erl import CEM, Distribution

SAVED = ("_g", "_mean", "_sigma", "_C", "_pc", "_p_sigma")


class CMAES(Distribution):  # SepCMA: with as many parameters as networks have, the covariance has to be diagonal
    def __init__(self, mean: torch.Tensor, pop_size: int, sigma: float = 0.05):
        super().__init__(mean, pop_size)
        self.cma = SepCMA(mean.cpu().double().numpy().copy(), sigma, population_size=pop_size)

    def propose(self, rng: np.random.Generator) -> torch.Tensor:
        self.cma.reseed_rng(int(rng.integers(2**32)))  # all random numbers of a run come from its seed
        return torch.as_tensor(np.stack([self.cma.ask() for _ in range(self.pop_size)])).to(self.candidates)

    def refit(self, candidates: torch.Tensor, fitness: np.ndarray, rng: np.random.Generator | None) -> None:
        losses = np.where(np.isnan(fitness), np.inf, -fitness)  # the library minimizes
        self.cma.tell(list(zip(candidates.cpu().double().numpy(), losses.tolist(), strict=True)))

    def center(self) -> torch.Tensor:
        return torch.as_tensor(self.cma.mean.copy()).to(self.candidates)

    def get_extra_state(self) -> dict[str, torch.Tensor]:  # how PyTorch saves what is no tensor of a module
        return {name: torch.tensor(value) for name, value in self.cma.__getstate__().items() if name in SAVED}

    def set_extra_state(self, state: dict[str, torch.Tensor]) -> None:
        self.cma.__setstate__({"_D": None, **{name: np.array(value.cpu())[()] for name, value in state.items()}})


def main(steps: float = 10_000) -> float | None:
    return CEM("Pendulum-v1", evolver=CMAES, evolver_kwargs={"sigma": 0.1}, seed=1).learn(steps).champion_fitness


if __name__ == "__main__":
    main()
