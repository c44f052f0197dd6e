"""The cross-entropy method with a diagonal Gaussian."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sb3_erl.core.checks import check_choice, check_range
from sb3_erl.evolution.base import Distribution, best_first
from sb3_erl.evolution.operators.spare import SpareArrays

_CACHED = 1 << 17
"""How many numbers are worked on at a time: arrays that stay in the processor's cache are several times faster."""


def log_rank_weights(n_parents: int) -> np.ndarray:
    """
    :param n_parents: number of parents, at least 1
    :return: ``(n_parents,)``, best first, summing to 1: ``log((n + 1) / i)`` for rank ``i``

    >>> log_rank_weights(2).round(3).tolist()
    [0.73, 0.27]
    """
    weights = np.log((n_parents + 1) / np.arange(1, n_parents + 1))
    return weights / weights.sum()


class DiagonalCEM(Distribution):
    """
    The cross-entropy method: sample a Gaussian with diagonal covariance, refit it on the best part of the sample.

    Pourchot & Sigaud (ICLR 2019), https://arxiv.org/abs/1810.01222, section 2.3; authors' code: apourchot/CEM-RL,
    ``ES.py: sepCEM``. Differences: an elite takes its slot only once there is one; a NaN fitness ranks last.

    :param mean: ``(n_params,)``, where the search starts
    :param pop_size: number of candidates, at least 2
    :param n_parents: how many of them the Gaussian is refitted on, ``None`` for half of them
    :param variance_init: initial variance of every coordinate; the authors call this variance ``sigma_init``, and so do the
        algorithms :class:`~sb3_erl.CEM` and :class:`~sb3_erl.CEMRL`
    :param damping_init: variance that is added at the first refit
    :param damping_final: variance that is added in the long run
    :param damping_decay: share of the difference that a generation keeps
    :param covariance_rule: ``"code"`` divides the weighted squares by ``n_parents`` (authors' code), ``"paper"`` does not
    :param antithetic: draw mirrored pairs, rows k and k + pop_size / 2; ``None`` for yes if ``pop_size`` is even
    :param elitism: the last candidate is the best of the last generation
    :raises ValueError: if a number is out of range
    """

    shown = ("n_parents", "antithetic", "elitism", "covariance_rule")
    mean: Tensor
    variance: Tensor
    damping: Tensor
    elite: Tensor
    elite_score: Tensor

    def __init__(
        self,
        mean: Tensor,
        pop_size: int,
        n_parents: int | None = None,
        variance_init: float = 1e-3,
        damping_init: float = 1e-3,
        damping_final: float = 1e-5,
        damping_decay: float = 0.95,
        covariance_rule: Literal["code", "paper"] = "code",
        antithetic: bool | None = None,
        elitism: bool = False,
    ):
        check_range("pop_size", pop_size, 2, integer=True)
        n_parents = pop_size // 2 if n_parents is None else n_parents
        check_range("n_parents", n_parents, 1, pop_size, integer=True)
        check_range("variance_init", variance_init, 0, open_low=True)
        for name, value in (("damping_init", damping_init), ("damping_final", damping_final)):
            check_range(name, value, 0)
        check_range("damping_decay", damping_decay, 0, 1)
        check_choice("covariance_rule", covariance_rule, ("code", "paper"))
        if antithetic and pop_size % 2:
            raise ValueError(f"antithetic must be False or None with an odd pop_size; got pop_size={pop_size}")
        mean = mean.detach().to(torch.float64)
        super().__init__(mean, pop_size)
        self.antithetic = pop_size % 2 == 0 if antithetic is None else antithetic
        self.elitism, self.covariance_rule = elitism, covariance_rule
        self.damping_final, self.damping_decay = damping_final, damping_decay
        self.weights = log_rank_weights(n_parents)
        self._spare = SpareArrays()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("variance", torch.full_like(mean, variance_init))
        self.register_buffer("damping", torch.tensor(damping_init, dtype=torch.float64))
        self.register_buffer("elite", mean.clone())
        self.register_buffer("elite_score", torch.tensor(-torch.inf, dtype=torch.float64))

    @property
    def n_parents(self) -> int:
        """How many candidates the Gaussian is refitted on."""
        return len(self.weights)

    def draw(self, n: int, rng: np.random.Generator) -> Tensor:
        """
        :param n: number of rows
        :param rng: generator
        :return: ``(n, n_params)`` draws of the Gaussian, mirrored at its mean if ``antithetic`` and ``n`` is even
        """
        mirrored = self.antithetic and n % 2 == 0
        n_drawn, n_params = n // 2 if mirrored else n, self.mean.numel()
        step = max(1, _CACHED // n_params)
        scratch = np.empty((min(n_drawn, step), n_params))
        rest = (scratch[: n_drawn - start] for start in range(0, n_drawn, step))
        # draws that follow each other are the numbers of one large draw
        return self._rows((rng.standard_normal(out=block) for block in rest), n_drawn, mirrored)

    def sample(self, noise: np.ndarray, mirrored: bool = False) -> Tensor:
        """
        :param noise: ``(n, n_params)`` standard normal numbers
        :param mirrored: append as many rows that have the noise with the opposite sign
        :return: ``(n, n_params)`` draws of the Gaussian, or ``(2 * n, n_params)``
        """
        step = max(1, _CACHED // self.mean.numel())
        return self._rows((noise[start : start + step] for start in range(0, len(noise), step)), len(noise), mirrored)

    def _rows(self, blocks: Iterable[np.ndarray], n: int, mirrored: bool) -> Tensor:
        """:param blocks: together ``(n, n_params)`` standard normal numbers, from first to last; only read"""
        mean, std = (part.cpu().numpy() for part in (self.mean, self.variance.sqrt()))
        rows = self._spare.empty((2 * n if mirrored else n, len(mean)), np.float64)
        start, scratch = 0, np.empty((min(n, max(1, _CACHED // len(mean))), len(mean)))
        for block in blocks:
            stop = start + len(block)
            away = np.multiply(block, std, out=scratch[: len(block)])
            np.add(mean, away, out=rows[start:stop])
            if mirrored:
                np.subtract(mean, away, out=rows[n + start : n + stop])
            start = stop
        return torch.from_numpy(rows).to(self.mean.device)

    def propose(self, rng: np.random.Generator) -> Tensor:
        """See :meth:`Distribution.propose`; with ``elitism`` the last row is the elite once there is one."""
        candidates = self.draw(self.pop_size, rng)
        if self.protected:
            candidates[-1] = self.elite
        return candidates

    def refit(self, candidates: Tensor, fitness: np.ndarray, rng: np.random.Generator | None) -> None:
        """See :meth:`Distribution.refit`; no random numbers are drawn."""
        order = best_first(fitness)
        selected = torch.as_tensor(order[: self.n_parents], device=candidates.device)
        weights = torch.as_tensor(self.weights, device=candidates.device)[:, None]
        self.damping.mul_(self.damping_decay).add_((1 - self.damping_decay) * self.damping_final)
        for columns in self._columns(candidates.device):
            parents = candidates[:, columns].index_select(0, selected).to(torch.float64)
            squares = (parents - self.mean[columns]).square_().mul_(weights).sum(dim=0)  # around the mean before this refit
            if self.covariance_rule == "code":
                squares = squares / self.n_parents
            self.mean[columns] = parents.mul_(weights).sum(dim=0)
            self.variance[columns] = squares + self.damping
        self.elite_score.fill_(float(fitness[order[0]]))

    def keep_best(self, candidate: Tensor) -> None:
        """See :meth:`Evolver.keep_best`; the elite, which is saved."""
        self.elite.copy_(candidate)

    def best(self) -> Tensor | None:
        """See :meth:`Evolver.best`; the elite, which is saved."""
        return None if torch.isneginf(self.elite_score) else self.elite.clone()

    def center(self) -> Tensor:
        """See :meth:`Evolver.center`."""
        return self.mean.clone()

    @property
    def protected(self) -> list[int]:
        """See :attr:`Evolver.protected`; the elite's row, if there is one."""
        return [self.pop_size - 1] if self.elitism and bool(torch.isfinite(self.elite_score)) else []

    def metrics(self) -> dict[str, float]:
        """See :meth:`Evolver.metrics`; the mean standard deviation of the coordinates."""
        return {"sigma": float(self.variance.sqrt().mean())}

    def _columns(self, device: torch.device) -> Iterator[slice]:
        """Blocks of columns in multiples of 64, so that sums equal those of one block to the last bit; the last is longer."""
        n_params = self.mean.numel()
        width = max(1, _CACHED // self.n_parents // 64) * 64 if device.type == "cpu" else n_params
        starts = range(0, max(1, n_params // width) * width, width)
        return (slice(start, start + width if start + width < starts.stop else n_params) for start in starts)
