"""Evolution strategies with mirrored perturbations out of a shared noise table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from sb3_erl.core.checks import check_choice, check_range
from sb3_erl.core.noise_table import NoiseTable
from sb3_erl.evolution.base import Evolver, PopulationSizeError, best_index, check_told, to_numpy
from sb3_erl.evolution.es_optimizers import ES_OPTIMIZERS, ESUpdate
from sb3_erl.evolution.es_source import MirroredSource, UnbuiltCandidates, Windows, mirrored_rows, weighted_sum
from sb3_erl.evolution.fitness.shaping import SHAPING_MODES, ShapingMode, Ties, shape_fitness
from sb3_erl.evolution.operators.origins import Origins
from sb3_erl.evolution.rebuilt import AskedCandidates, refuse_injection


class MirroredES(Evolver):
    """
    A Gaussian of fixed width: perturb its mean in mirrored pairs, move it by the rank-weighted sum of perturbations.

    Salimans et al. (2017), https://arxiv.org/abs/1703.03864, algorithm 1 and section 2.1; authors' code:
    openai/evolution-strategies-starter, ``es_distributed/es.py: run_master``. The sum is divided by the number of
    candidates, not by sigma, as in the authors' code; so ``l2_coeff`` means what it means there. Differences: equal returns
    share their rank; the sum is formed perturbation by perturbation (the authors copy 500 at a time).

    Candidates 2k and 2k + 1 are the mean plus and minus perturbation k. What is kept of them is where their windows begin in
    the noise table, so they must be told as they were asked for. ``learning_rate`` and ``sigma`` may be set before each
    generation.

    :param mean: ``(n_params,)``, where the search starts
    :param pop_size: number of candidates, even, at least 2
    :param sigma: standard deviation of perturbations, in units of parameters
    :param learning_rate: step size of the optimizer
    :param l2_coeff: the pull toward zero: this times the mean is added to the gradient
    :param optimizer: key of ``ES_OPTIMIZERS``
    :param optimizer_kwargs: further arguments of the optimizer
    :param fitness_shaping: see :func:`~sb3_erl.evolution.fitness.shaping.shape_fitness`, which also says what fitness is told
    :param ties: see :func:`~sb3_erl.evolution.fitness.shaping.centered_ranks`
    :param perturb_fraction: share of the parameters that a pair perturbs, in (0, 1]: one window of neighbors that wraps
        around at the end. Nothing is rescaled, so the signal per parameter falls with it
    :param table: where perturbations come from, ``None`` for ``NoiseTable()``
    :raises ValueError: if a number is out of range, a key unknown or the table too short
    """

    starts_from, takes_vectors = "mean", False
    _rests_on_ties = True  # where fitness says nothing, weight decay would shrink the mean to nothing
    shown = ("sigma", "learning_rate", "l2_coeff", "fitness_shaping")
    mean: Tensor
    asked_center: Tensor
    offsets: Tensor
    starts: Tensor
    asked_sigma: Tensor

    def __init__(
        self,
        mean: Tensor,
        pop_size: int,
        sigma: float = 0.02,
        learning_rate: float = 0.01,
        l2_coeff: float = 0.005,
        optimizer: str = "adam",
        optimizer_kwargs: dict[str, Any] | None = None,
        fitness_shaping: ShapingMode = "centered_rank",
        ties: Ties = "average",
        perturb_fraction: float = 1.0,
        table: NoiseTable | None = None,
    ):
        super().__init__()  # candidates are rebuilt when they are needed, not stored
        check_range("pop_size", pop_size, 2, integer=True)
        if pop_size % 2:
            raise ValueError(f"pop_size must be even, because candidates come in mirrored pairs; got {pop_size}")
        check_range("l2_coeff", l2_coeff, 0)
        check_range("perturb_fraction", perturb_fraction, 0, 1, open_low=True)
        check_choice("optimizer", optimizer, ES_OPTIMIZERS)
        check_choice("fitness_shaping", fitness_shaping, SHAPING_MODES)
        check_choice("ties", ties, ("average", "stable"))
        self.sigma, self.learning_rate, self.l2_coeff = sigma, learning_rate, l2_coeff
        self.fitness_shaping, self.ties = fitness_shaping, ties
        mean = mean.detach().to(torch.float32)
        n_params = mean.numel()
        self.n_perturbed = n_params if perturb_fraction == 1 else math.ceil(perturb_fraction * n_params - 1e-9)
        self.table = NoiseTable() if table is None else table
        self.table.check_length(self.n_perturbed)
        self.optimizer = ES_OPTIMIZERS[optimizer](n_params, **(optimizer_kwargs or {}))
        self.register_buffer("mean", mean.clone())
        self.register_buffer("asked_center", mean.clone())
        self.register_buffer("asked_sigma", torch.zeros((), dtype=torch.float64))
        self.register_buffer("offsets", torch.zeros(pop_size // 2, dtype=torch.float64))  # whole numbers; SB3 wants floats
        self.register_buffer("starts", torch.zeros(pop_size // 2, dtype=torch.float64))
        self._more: list[tuple[int, int]] = []
        self._asked: AskedCandidates | UnbuiltCandidates | None = None
        """``None`` before :meth:`ask` and after :meth:`tell`."""
        self.last_update: ESUpdate | None = None
        """What the last :meth:`tell` did, ``None`` before the first."""

    @property
    def sigma(self) -> float:
        """Standard deviation of perturbations."""
        return self._sigma

    @sigma.setter
    def sigma(self, value: float) -> None:
        check_range("sigma", value, 0, open_low=True)
        self._sigma = float(value)

    @property
    def learning_rate(self) -> float:
        """Step size of the optimizer."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        check_range("learning_rate", value, 0)
        self._learning_rate = float(value)

    @property
    def n_pairs(self) -> int:
        """Mirrored pairs per generation."""
        return len(self.offsets)

    @property
    def pop_size(self) -> int:
        """Number of candidates, twice the number of pairs."""
        return 2 * self.n_pairs

    @property
    def n_params(self) -> int:
        """See :attr:`Evolver.n_params`."""
        return self.mean.numel()

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """For each pair asked for: where its window begins in the table, and at which parameter it is put."""
        first = zip(self.offsets.tolist(), self.starts.tolist(), strict=True)
        return [*((int(offset), int(start)) for offset, start in first), *self._more]

    @property
    def candidates(self) -> Tensor:  # type: ignore[override]
        """``(pop_size, n_params)`` as last asked for, rebuilt from their windows."""
        return self._build(self.pairs[: self.n_pairs])

    def ask(self, rng: np.random.Generator) -> Tensor:
        """See :meth:`Evolver.ask`; rows are mean + first perturbation, mean - first perturbation, mean + second, ..."""
        self._begin(rng)
        pairs = self.pairs
        candidates = self._build(pairs)
        self._asked = AskedCandidates(candidates, seed=pairs[0][0])
        return candidates

    @property
    def has_unbuilt_candidates(self) -> bool:
        """Whether :meth:`propose` can take the place of :meth:`ask`: not in a subclass with its own ``ask`` or ``tell``."""
        return (type(self).ask, type(self).tell) == (MirroredES.ask, MirroredES.tell)

    def propose(self, rng: np.random.Generator) -> UnbuiltCandidates:
        """
        :meth:`ask` where workers make the candidates, so that this process may never need them: the same draws and candidates.

        :param rng: generator
        :return: stands for them; :meth:`tell` takes it in their place
        """
        self._begin(rng)
        self._asked = UnbuiltCandidates(replace(self.source, first=0), self.mean.device)
        return self._asked

    def _begin(self, rng: np.random.Generator) -> None:
        pairs = self._draw(rng, self.n_pairs)
        self._choose_centers(rng)
        self.asked_sigma.fill_(self.sigma)
        self.offsets.copy_(torch.tensor([offset for offset, _ in pairs], dtype=torch.float64))
        self.starts.copy_(torch.tensor([start for _, start in pairs], dtype=torch.float64))
        self._more = []

    def ask_more(self, rng: np.random.Generator, n_pairs: int) -> Tensor:
        """
        Further pairs of the same generation, for batches that must reach a number of time steps.

        :param rng: generator
        :param n_pairs: how many
        :return: ``(2 * n_pairs, n_params)``; they come after the earlier ones in :meth:`tell`
        :raises ValueError: before :meth:`ask`
        """
        asked, more = self._known(), self._draw(rng, n_pairs)
        if isinstance(asked, UnbuiltCandidates):
            self._extend(asked, more)
            return asked.built()[-2 * n_pairs :]
        candidates = self._build(more, self.n_pairs + len(self._more))
        self._more += more
        asked.add(candidates)
        return candidates

    def propose_more(self, rng: np.random.Generator, n_pairs: int) -> UnbuiltCandidates:
        """
        :meth:`ask_more` for candidates that may never be needed in this process.

        :param rng: generator
        :param n_pairs: how many
        :return: what :meth:`propose` returned, which now stands for all of them
        :raises ValueError: before :meth:`propose`
        """
        asked = self._known()
        if not isinstance(asked, UnbuiltCandidates):
            raise ValueError("propose() must be called before propose_more(); got candidates from ask(), see ask_more()")
        self._extend(asked, self._draw(rng, n_pairs))
        return asked

    def _extend(self, asked: UnbuiltCandidates, more: list[tuple[int, int]]) -> None:
        self._more += more
        asked.extend(replace(self.source, first=0))

    def tell(self, candidates: Any, fitness: np.ndarray, rng: np.random.Generator | None = None) -> None:
        """
        Move the mean; it stays where all fitness values are equal, also against the pull of ``l2_coeff``.

        :param candidates: ``(n, n_params)`` as asked for or proposed, or the first of them in whole pairs; compared, see
            :class:`~sb3_erl.evolution.rebuilt.AskedCandidates`
        :param fitness: ``(n,)``, higher is better, NaN is worst
        :param rng: not used
        :raises ValueError: before :meth:`ask`, if sizes do not fit, or if candidates were changed since they were asked for
        """
        check_told(candidates, fitness)
        self._check_number(fitness)
        self._known().check(candidates)
        self.keep_best(candidates[best_index(fitness)])
        shaped = shape_fitness(fitness, self.fitness_shaping, self.ties)
        self._move(np.zeros_like(shaped) if (fitness == fitness[0]).all() else shaped)

    def update(self, shaped: np.ndarray) -> None:
        """
        Move the mean by fitness that has been shaped already (novelty search mixes two ranks, for example).

        :param shaped: ``(n,)`` weights of the candidates asked for, or of the first of them in whole pairs
        :raises ValueError: before :meth:`ask`, or if there is no whole number of pairs
        """
        self._check_number(shaped)
        pair, side = divmod(best_index(shaped), 2)
        self.keep_best(self._build(self.pairs[pair : pair + 1], pair)[side])
        self._move(shaped)

    def center(self) -> Tensor:
        """See :meth:`Evolver.center`."""
        return self.mean.clone()

    def inject(self, vectors: Tensor, slots: Sequence[int]) -> NoReturn:
        """
        Not available.

        :raises ValueError: always
        """
        refuse_injection(self, "candidates are mirrored pairs", slots)

    def origins(self) -> Origins:
        """See :meth:`Evolver.origins`; all are drawn."""
        return Origins.all_of("sample", 2 * (self.n_pairs + len(self._more)))

    def metrics(self) -> dict[str, float]:
        """See :meth:`Evolver.metrics`; the width, the step size, the last step, and the length of the mean."""
        update, norm = self.last_update, float(self.mean.norm())
        last = {} if update is None else {"grad_norm": update.grad_norm, "update_ratio": update.update_ratio}
        return {"sigma": self.sigma, "learning_rate": self.learning_rate, **last, "theta_norm": norm}

    def _check_number(self, values: np.ndarray) -> None:
        self._known()
        n_pairs = self.n_pairs + len(self._more)
        if values.ndim != 1 or len(values) % 2 or not 2 <= len(values) <= 2 * n_pairs:
            raise ValueError(
                f"fitness must hold two values per pair for 1 to {n_pairs} pairs from ask(); got shape {values.shape}"
            )

    @torch.no_grad()
    def _move(self, shaped: np.ndarray) -> None:
        if not shaped.any() and self._rests_on_ties:
            zero = np.zeros(self.mean.numel(), dtype=np.float32)
            self._asked, self.last_update = None, ESUpdate(shaped, zero, zero, 0.0, 0.0)
            return
        pairs = self.pairs
        direction = weighted_sum(shaped[::2] - shaped[1::2], pairs, self._windows) / np.float32(len(shaped))
        gradient = self.l2_coeff * self.mean - torch.from_numpy(direction).to(self.mean.device)
        step = self.optimizer.step(gradient, self.learning_rate)
        before = float(torch.linalg.vector_norm(self.mean))
        length = float(torch.linalg.vector_norm(step))
        self.mean.add_(step)
        self._asked = None
        grad_norm = float(np.linalg.norm(direction))
        ratio = length / before if before > 0 else math.inf
        self.last_update = ESUpdate(shaped, direction, to_numpy(gradient), grad_norm, ratio)

    def _known(self) -> AskedCandidates | UnbuiltCandidates:
        """:raises ValueError: before :meth:`ask`"""
        if self._asked is None:
            raise ValueError("ask() must be called before every tell() of a generation; got no candidates to tell about")
        return self._asked

    def _draw(self, rng: np.random.Generator, n_pairs: int) -> list[tuple[int, int]]:
        offsets = self.table.offsets(rng, n_pairs, self.n_perturbed).tolist()
        n_params = self.mean.numel()
        partial = self.n_perturbed < n_params
        starts = rng.integers(n_params, size=n_pairs).tolist() if partial else [0] * n_pairs
        return list(zip(offsets, starts, strict=True))

    @property
    def _windows(self) -> Windows:
        return Windows(self.table, self.n_perturbed, self.mean.numel())

    @property
    def source(self) -> MirroredSource:
        """Makes the mean, which has number 0, and the candidates that were asked for, which have the numbers after it."""
        pairs = np.array(self.pairs, dtype=np.int64)
        return MirroredSource(to_numpy(self.mean), to_numpy(self.asked_center), float(self.asked_sigma), pairs, self._windows)

    def _choose_centers(self, rng: np.random.Generator) -> None:
        """Decide what the pairs of this generation perturb; drawn from the generator after their perturbations."""
        self.asked_center.copy_(self.mean)

    def _centers(self, first: int, n: int) -> np.ndarray:
        """:return: ``(n, n_params)``, what pairs perturb from number ``first`` on; read-only"""
        center = to_numpy(self.asked_center)
        return np.broadcast_to(center, (n, center.size))

    def _build(self, pairs: list[tuple[int, int]], first: int = 0) -> Tensor:
        """:return: ``(2 * len(pairs), n_params)``, the candidates of pairs with the numbers from ``first`` on"""
        centers, sigma = self._centers(first, len(pairs)), float(self.asked_sigma)
        return torch.from_numpy(mirrored_rows(centers, sigma, pairs, self._windows)).to(self.mean.device)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "center"] = destination.pop(prefix + "asked_center")  # its name in all saved files

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = [state_dict.get(prefix + name) for name in ("offsets", "mean")]
        n_pairs, n_params = (
            len(new if old is None else old) for old, new in zip(saved, (self.offsets, self.mean), strict=True)
        )
        if (n_pairs, n_params) != (self.n_pairs, self.mean.numel()):
            raise PopulationSizeError(
                f"pop_size (twice n_pairs) and network sizes must be those of the saved model: it holds {2 * n_pairs} "
                f"candidates of {n_params} parameters, this model {self.pop_size} of {self.mean.numel()}; "
                "load without changing them, or start a new model"
            )
        if prefix + "center" in state_dict:
            state_dict[prefix + "asked_center"] = state_dict.pop(prefix + "center")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._more, self._asked = [], None
