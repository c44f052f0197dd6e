"""Episodes that are used again: what importance mixing keeps of the last generation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sb3_erl.evaluation.base import EpisodeBatch
from sb3_erl.evolution.cem import CEM
from sb3_erl.evolution.importance_mixing import DiagonalGaussian, GeneratorMixingDraws, importance_mixing


class ReusedEpisodes(nn.Module):
    """
    The last generation's sample with fitness, length and place in the replay buffer of each individual.

    :param n: number of individuals that may be reused
    :param n_params: parameters of one individual
    """

    samples: Tensor
    mean: Tensor
    variance: Tensor
    fitness: Tensor
    lengths: Tensor
    starts: Tensor
    """Number of the first transition of each individual, counted over the life of the model."""

    def __init__(self, n: int, n_params: int):
        super().__init__()
        double = torch.float64
        self.register_buffer("samples", torch.zeros(n, n_params, dtype=double))
        for name in ("mean", "variance"):
            self.register_buffer(name, torch.zeros(n_params, dtype=double))
        for name in ("fitness", "lengths", "starts"):
            self.register_buffer(name, torch.zeros(n, dtype=double))
        self._chosen: list[int] = []

    def mix(self, evolver: CEM, rng: np.random.Generator) -> tuple[Tensor, int]:
        """
        :param evolver: its distribution is the one that is wanted
        :param rng: generator
        :return: ``(n, n_params)``, and how many of its first rows are reused
        """
        n = len(self.samples)
        if not bool((self.variance > 0).all()):  # nothing was evaluated yet
            self._chosen = []
            return evolver.sample(evolver.noise(n, rng)), 0
        old, new = (DiagonalGaussian(to(d.mean), to(d.variance)) for d in (self, evolver))
        rows, self._chosen = importance_mixing(to(self.samples), old, new, n, GeneratorMixingDraws(rng))
        return torch.as_tensor(rows, device=self.samples.device), len(self._chosen)

    def account(
        self, buffer: Any, fitness: np.ndarray, episodes: EpisodeBatch, n_kept: int, first: int, offset: int
    ) -> tuple[np.ndarray, int]:
        """
        Complete the fitness, and store the transitions of reused individuals again.

        :param buffer: replay buffer with one column
        :param fitness: ``(n,)``, NaN in the reused rows
        :param episodes: what was evaluated, in the order in which it was stored
        :param n_kept: number of reused rows
        :param first: transitions stored before this generation
        :param offset: candidate number of row 0
        :return: fitness, and the number of transitions that were stored again
        """
        chosen = self._chosen[:n_kept]
        fitness = fitness.copy()
        fitness[:n_kept] = to(self.fitness)[chosen]
        lengths, starts = np.zeros(len(fitness)), np.zeros(len(fitness))
        position = first
        for episode in episodes.episodes:
            row = episode.job.candidate - offset
            if 0 <= row < len(fitness):
                starts[row] = position if lengths[row] == 0 else starts[row]
                lengths[row] += episode.length
            position += episode.length
        n_again = 0
        for row, source in enumerate(chosen):
            start, length = int(self.starts[source]), int(self.lengths[source])
            starts[row], lengths[row] = position + n_again, length
            n_again += self._store_again(buffer, start, length, position + n_again)
        for name, values in (("fitness", fitness), ("lengths", lengths), ("starts", starts)):
            getattr(self, name).copy_(torch.as_tensor(values))
        return fitness, n_again

    def remember(self, evolver: CEM, samples: Tensor) -> None:
        """Take over the sample that was just evaluated; to be called after :meth:`account`."""
        self.samples.copy_(samples)
        self.mean.copy_(evolver.mean)
        self.variance.copy_(evolver.variance)

    @staticmethod
    def _store_again(buffer: Any, start: int, length: int, now: int) -> int:
        """Transitions that the ring has overwritten since are left out."""
        size = buffer.buffer_size
        numbers = [n for n in range(start, start + length) if now - n < size]
        rows = [n % size for n in numbers]
        copies = [
            (buffer.observations[r].copy(), buffer.next_observations[r].copy(), buffer.actions[r].copy(), buffer.rewards[r],
             buffer.dones[r], [{"TimeLimit.truncated": bool(buffer.timeouts[r, 0])}])
            for r in rows
        ]  # fmt: skip
        for copy in copies:
            buffer.add(*copy)
        return len(copies)


def to(tensor: Tensor) -> np.ndarray:
    """A float64 array on the CPU."""
    return tensor.detach().cpu().numpy().astype(np.float64)
