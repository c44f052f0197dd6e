"""What an evolver is: it proposes candidates and learns what they were worth."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class PopulationSizeError(ValueError, RuntimeError):
    """A saved population that does not fit (also a RuntimeError, because SB3's ``load`` swallows a mere ValueError)."""


class Evolver(nn.Module):
    """
    Base of all evolvers: ``ask`` for candidates, ``tell`` their fitness.

    Its state is made of float buffers, so it moves with the device and is saved like a network. Fitness is maximized
    everywhere and NaN is worst. Random numbers come from the generator that is handed in.
    """

    candidates: Tensor

    def __init__(self, candidates: Tensor):
        super().__init__()
        self.register_buffer("candidates", candidates.detach().clone())

    @property
    def pop_size(self) -> int:
        """Number of candidates."""
        return self.candidates.shape[0]

    def ask(self, rng: np.random.Generator) -> Tensor:
        """
        :param rng: generator
        :return: ``(pop_size, n_params)``, a copy that the evolver does not keep
        """
        raise NotImplementedError

    def tell(self, candidates: Tensor, fitness: np.ndarray, rng: np.random.Generator) -> None:
        """
        :param candidates: ``(pop_size, n_params)`` as they were evaluated; not written
        :param fitness: ``(pop_size,)``, higher is better
        :param rng: generator
        """
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.get(prefix + "candidates")
        if saved is not None and saved.shape != self.candidates.shape:
            raise PopulationSizeError(
                f"pop_size and network sizes must be those of the saved model: it holds {saved.shape[0]} candidates of "
                f"{saved.shape[1]} parameters, this model {self.candidates.shape[0]} of {self.candidates.shape[1]}; "
                "load without changing pop_size, or start a new model"
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def check_told(candidates: Tensor, fitness: np.ndarray) -> None:
    """:raises ValueError: if there is not one fitness value per candidate"""
    if fitness.shape != (len(candidates),):
        raise ValueError(
            f"fitness must have shape ({len(candidates)},), one value per candidate from ask(); got {fitness.shape}"
        )


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A CPU copy as NumPy array."""
    return tensor.detach().cpu().numpy().astype(np.float32, order="C", copy=tensor.device.type == "cpu")


def copy_of(tensor: Tensor) -> Tensor:
    """A copy of a large tensor; NumPy asks the system for large pages of memory, which takes a fifth of the time."""
    return torch.from_numpy(tensor.detach().numpy().copy()) if tensor.device.type == "cpu" else tensor.clone()
