"""What CEM-RL keeps of a generation for the next one: episodes that importance mixing uses again, and gradient steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sb3_erl.core.observations import take
from sb3_erl.evolution.cem import DiagonalCEM
from sb3_erl.rollouts.jobs import EpisodeBatch


@dataclass(frozen=True)
class DiagonalGaussian:
    """
    :param mean: ``(n_params,)``
    :param variance: ``(n_params,)``
    """

    mean: np.ndarray
    variance: np.ndarray

    def log_density(self, x: np.ndarray) -> float:
        """:return: log-density of ``(n_params,)`` summed over coordinates, without the constant"""
        return float(-0.5 * (np.square(x - self.mean) / self.variance + np.log(self.variance)).sum())

    def draw(self, noise: np.ndarray) -> np.ndarray:
        """:return: ``mean + noise * sqrt(variance)``"""
        return self.mean + noise * np.sqrt(self.variance)


class MixingDraws(Protocol):
    """Random numbers of importance mixing."""

    def uniform(self) -> float:
        """A number in [0, 1)."""

    def normal(self, n: int) -> np.ndarray:
        """``(n,)`` standard normal numbers."""


@dataclass(frozen=True)
class GeneratorMixingDraws:
    """:class:`MixingDraws` from a NumPy generator."""

    rng: np.random.Generator

    def uniform(self) -> float:
        return float(self.rng.random())

    def normal(self, n: int) -> np.ndarray:
        return self.rng.standard_normal(n)


def importance_mixing(
    old_samples: np.ndarray, old: DiagonalGaussian, new: DiagonalGaussian, n: int, draws: MixingDraws
) -> tuple[np.ndarray, list[int]]:
    """
    Compose a sample of ``new`` that keeps as many of the old samples as it may.

    Sun et al. (2009); authors' code: apourchot/CEM-RL, ``samplers.py: IMSampler``. Old samples are kept with probability
    ``min(1, p_new / p_old)`` and fill the result from the front; fresh draws are kept with probability
    ``max(0, 1 - p_old / p_new)`` and fill it from the back; what is missing in the end is drawn without a test.

    :param old_samples: ``(m, n_params)``
    :param old: their distribution
    :param new: the distribution that is wanted
    :param n: number of samples wanted
    :param draws: random numbers
    :return: ``(n, n_params)`` and the numbers of the old samples in its first rows
    """
    n_params = old_samples.shape[1]
    front: list[np.ndarray] = []
    back: list[np.ndarray] = []
    reused: list[int] = []
    for index, sample in enumerate(old_samples):
        if len(front) + len(back) == n:
            break
        if np.log(draws.uniform()) < new.log_density(sample) - old.log_density(sample):
            front.append(sample)
            reused.append(index)
        if len(front) + len(back) == n:
            break
        candidate = new.draw(draws.normal(n_params))
        if np.log(1 - draws.uniform()) >= old.log_density(candidate) - new.log_density(candidate):
            back.append(candidate)
    missing = n - len(front) - len(back)
    middle = [new.draw(draws.normal(n_params)) for _ in range(missing)]
    rows = [*front, *middle, *back[::-1]]
    return np.stack(rows) if rows else np.zeros((0, n_params)), reused


class Leftovers(nn.Module):
    """Buffers that a model with other settings does without: saved ones of another shape are not loaded."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        own = {prefix + name: value for name, value in self.named_buffers(recurse=False)}
        if any(name in state_dict and state_dict[name].shape != value.shape for name, value in own.items()):
            state_dict.update(own)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class LearnedRows(Leftovers):
    """
    Candidates that took their gradient steps in a generation that was not finished, for instance because the budget of
    ``learn`` ended inside it. The next generation begins with them, so that no gradient step is taken twice.

    :param n: number of learned candidates
    :param n_params: parameters of one individual
    """

    rows: Tensor
    n_waiting: Tensor

    def __init__(self, n: int, n_params: int):
        super().__init__()
        self.register_buffer("rows", torch.zeros(n, n_params))
        self.register_buffer("n_waiting", torch.zeros(()))

    @property
    def waiting(self) -> Tensor | None:
        """``(n, n_params)``, or ``None`` if the last generation that was learned for is finished."""
        return self.rows if self.n_waiting > 0 else None

    def keep(self, rows: Tensor) -> None:
        """:param rows: ``(n, n_params)``, just learned"""
        self.rows.copy_(rows)
        self.n_waiting.fill_(len(rows))

    def clear(self) -> None:
        """The generation is finished."""
        self.n_waiting.zero_()


class ReusedEpisodes(Leftovers):
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
    """Number of the first transition of each individual, counted over all that were ever stored."""

    def __init__(self, n: int, n_params: int):
        super().__init__()
        double = torch.float64
        self.register_buffer("samples", torch.zeros(n, n_params, dtype=double))
        for name in ("mean", "variance"):
            self.register_buffer(name, torch.zeros(n_params, dtype=double))
        for name in ("fitness", "lengths", "starts"):
            self.register_buffer(name, torch.zeros(n, dtype=double))
        self._chosen: list[int] = []

    def mix(self, evolver: DiagonalCEM, rng: np.random.Generator, most: int) -> tuple[Tensor, int]:
        """
        :param evolver: its distribution is the one that is wanted
        :param rng: generator
        :param most: rows that are reused, at most
        :return: ``(n, n_params)``, and how many of its first rows are reused
        """
        n = len(self.samples)
        if not bool((self.variance > 0).all()):  # nothing was evaluated yet
            self._chosen = []
            return evolver.draw(n, rng), 0
        old, new = (DiagonalGaussian(to(d.mean), to(d.variance)) for d in (self, evolver))
        rows, self._chosen = importance_mixing(to(self.samples), old, new, n, GeneratorMixingDraws(rng))
        mixed = torch.as_tensor(rows, device=self.samples.device)
        if len(self._chosen) > most:
            self._chosen, mixed = self._chosen[:most], torch.cat([mixed[:most], evolver.draw(n - most, rng)])
        return mixed, len(self._chosen)

    def account(
        self, buffer: Any, fitness: np.ndarray, episodes: EpisodeBatch, n_kept: int, first: int, offset: int
    ) -> tuple[np.ndarray, int]:
        """
        Complete the fitness, and store the transitions of reused individuals again.

        :param buffer: replay buffer with one column; what it has lost since is not stored again
        :param fitness: ``(n,)``, NaN in the reused rows
        :param episodes: what was evaluated, in the order in which it was stored
        :param n_kept: number of reused rows
        :param first: transitions stored before this generation, over the life of the model
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
            starts[row] = position + n_again
            lengths[row] = self._store_again(buffer, start, length, position + n_again)
            n_again += int(lengths[row])
        for name, values in (("fitness", fitness), ("lengths", lengths), ("starts", starts)):
            getattr(self, name).copy_(torch.as_tensor(values))
        return fitness, n_again

    def remember(self, evolver: DiagonalCEM, samples: Tensor) -> None:
        """Take over the sample that was just evaluated; to be called after :meth:`account`."""
        self.samples.copy_(samples)
        self.mean.copy_(evolver.mean)
        self.variance.copy_(evolver.variance)

    @staticmethod
    def _store_again(buffer: Any, start: int, length: int, now: int) -> int:
        """
        :param start: number of the first transition
        :param length: how many there were
        :param now: number of the transition that is stored next
        :return: how many of them are stored again
        """
        spoiled = int(buffer.full and buffer.optimize_memory_usage)  # the oldest observation is the newest next one
        numbers = np.arange(max(start, now - buffer.size() + spoiled), start + length)
        rows = (buffer.pos - now + numbers) % buffer.buffer_size
        if buffer.optimize_memory_usage:  # the next observation is the next row's
            following = take(buffer.observations, (rows + 1) % buffer.buffer_size)
        else:
            following = take(buffer.next_observations, rows)
        seen, others = take(buffer.observations, rows), (buffer.actions[rows], buffer.rewards[rows], buffer.dones[rows])
        for number, (*step, truncated) in enumerate(zip(*others, buffer.timeouts[rows, 0], strict=True)):
            infos = [{"TimeLimit.truncated": bool(truncated)}]
            buffer.add(take(seen, number), take(following, number), *step, infos)
        return len(rows)


def to(tensor: Tensor) -> np.ndarray:
    """A float64 array on the CPU."""
    return tensor.detach().cpu().numpy().astype(np.float64)
