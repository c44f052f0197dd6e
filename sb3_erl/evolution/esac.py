"""The evolution strategy of ESAC: mirrored pairs around several bases, and a width that grows by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor

from sb3_erl.core.checks import check_choice, check_range
from sb3_erl.core.noise_table import SeededNoise
from sb3_erl.core.parameters import ParameterLayout
from sb3_erl.evolution.base import best_first, check_told, to_numpy
from sb3_erl.evolution.es import MirroredES
from sb3_erl.evolution.fitness.shaping import centered_ranks
from sb3_erl.evolution.operators.crossover import RowCrossover
from sb3_erl.evolution.operators.origins import OUTSIDE, Origins

Signal = Literal["returns", "ranks"]
"""What the growth of sigma is measured by."""


def grown_sigma(sigma: float, signal: np.ndarray, n_pairs: int, learning_rate: float, clip: float) -> float:
    """
    Automatic mutation tuning: sigma grows with the gap between the best and the mean of a population.

    Suri et al. (2020), https://arxiv.org/abs/2007.13690; authors' code: karush17/esac, ``main.py``. The step is
    ``learning_rate / (n_pairs * sigma)`` times the smooth L1 distance of both numbers, in [0, ``clip``].

    :param sigma: standard deviation of perturbations
    :param signal: ``(n,)`` one number per candidate; what is not finite is left out, and without any number nothing grows
    :param n_pairs: mirrored pairs of a generation
    :param learning_rate: step size of the mother
    :param clip: largest step, at least 0
    :return: the new sigma

    >>> grown_sigma(0.005, np.array([1.0, 0.0]), 10, 0.005, clip=1e-4)
    0.0051
    """
    finite = np.asarray(signal, dtype=np.float64)[np.isfinite(signal)]
    gap = float(finite.max() - finite.mean()) if len(finite) else 0.0
    distance = 0.5 * gap**2 if gap < 1 else gap - 0.5
    return sigma + min(max(learning_rate / (n_pairs * sigma) * distance, 0.0), clip)


class MixedES(MirroredES):
    """
    :class:`~sb3_erl.evolution.es.MirroredES` whose pairs perturb different bases, all of which move one mean, the mother.

    Suri et al. (2020), https://arxiv.org/abs/2007.13690; authors' code: karush17/esac, ``main.py`` and ``ES.py``. The first
    pairs perturb the winners of the last generation, crossed with the mother ("hindsight crossover"); the last ones a vector
    from outside, the learner; those between the mother. All are ranked together.

    Differences from the authors' code: winners are crossed (theirs are computed and never used); the second candidate of a
    pair is the base minus the perturbation (theirs is the base itself, because their copy of it is none); a new sigma is that
    of the perturbations, too (theirs reaches the divisor of the gradient only); the gradient is ``sigma / 2`` times theirs
    with the first sigma, and so is Adam's epsilon. Without winners, outside vectors and tuning, all numbers are those of
    ``MirroredES`` with the same optimizer, but for generations whose fitness values are all equal: the mother then goes on
    with Adam's momentum, as theirs does.

    :param mean: ``(n_params,)``, the mother in the beginning
    :param pop_size: number of candidates, twice the number of pairs
    :param layout: tensors of one individual, whose rows are crossed
    :param n_winners: pairs around winners; the mother takes their places in the first generation
    :param n_gradient_bases: pairs around the vector of :meth:`use_gradient_base`, before the first call around the mother
    :param hindsight_crossover: ``False`` for the mother in the places of winners
    :param amt: whether sigma grows, see :func:`grown_sigma`
    :param amt_clip: largest growth at once, at least 0
    :param amt_interval: generations between two times that it grows, at least 1
    :param amt_signal: measured by ``"returns"``, or by their centered ``"ranks"`` (authors' code), whose gap is a constant
    :param sigma: standard deviation of perturbations in the beginning
    :param learning_rate: step size of the mother
    :param l2_coeff: see :class:`~sb3_erl.evolution.es.MirroredES`, as for ``kwargs``, whose ``optimizer`` is
        ``"corrected_adam"`` here
    :raises ValueError: if there are more bases than pairs, or a number is out of range
    """

    winners: Tensor
    n_told: Tensor
    grown: Tensor

    def __init__(
        self,
        mean: Tensor,
        pop_size: int,
        layout: ParameterLayout,
        n_winners: int = 4,
        n_gradient_bases: int = 4,
        hindsight_crossover: bool = True,
        amt: bool = True,
        amt_clip: float = 1e-4,
        amt_interval: int = 20,
        amt_signal: Signal = "returns",
        sigma: float = 0.005,
        learning_rate: float = 0.005,
        l2_coeff: float = 0.0,
        **kwargs: Any,
    ):
        if kwargs.setdefault("optimizer", "corrected_adam") == "corrected_adam":
            kwargs["optimizer_kwargs"] = {"epsilon": 1e-8 * sigma / 2, **(kwargs.get("optimizer_kwargs") or {})}
        super().__init__(mean, pop_size, sigma, learning_rate, l2_coeff, **{"table": SeededNoise(), **kwargs})
        check_range("n_winners", n_winners, 0, integer=True)
        check_range("n_gradient_bases", n_gradient_bases, 0, integer=True)
        check_range("amt_clip", amt_clip, 0)
        check_range("amt_interval", amt_interval, 1, integer=True)
        check_choice("amt_signal", amt_signal, ("returns", "ranks"))
        if n_winners + n_gradient_bases > self.n_pairs:
            raise ValueError(
                f"n_winners and n_gradient_bases must be at most {self.n_pairs} together, the number of pairs; got "
                f"{n_winners} and {n_gradient_bases}. Raise pop_size, or lower one of them"
            )
        self.n_winners, self.n_gradient_bases, self.hindsight_crossover = n_winners, n_gradient_bases, hindsight_crossover
        self.amt, self.amt_clip, self.amt_interval, self.amt_signal = amt, amt_clip, amt_interval, amt_signal
        self.crossover = RowCrossover(layout)
        self._first_sigma, self._rests_on_ties = self.sigma, self.l2_coeff > 0
        self._gradient_base: Tensor | None = None
        self._last_fitness = np.full((self.n_pairs, 2), np.nan)
        self.register_buffer("asked_center", self.mean.repeat(self.n_pairs, 1))
        self.register_buffer("winners", self.mean.repeat(max(n_winners, 1), 1))
        self.register_buffer("n_told", torch.zeros((), dtype=torch.float64))
        self.register_buffer("grown", torch.tensor(self.sigma, dtype=torch.float64))

    @property
    def base_slots(self) -> dict[str, slice]:
        """Which pairs perturb the winners' children, the mother and the learner, by these names."""
        first_learner = self.n_pairs - self.n_gradient_bases
        return {
            "winner": slice(0, self.n_winners),
            "mother": slice(self.n_winners, first_learner),
            "learner": slice(first_learner, self.n_pairs),
        }

    def use_gradient_base(self, vector: Tensor) -> None:
        """
        Say what the last pairs of the generations to come perturb.

        :param vector: ``(n_params,)``, copied
        """
        self._gradient_base = vector.detach().clone()

    def tell(self, candidates: Tensor, fitness: np.ndarray, rng: np.random.Generator | None = None) -> None:
        """
        Move the mother, keep the winners as they were evaluated, and let sigma grow if it is time.

        :param candidates: ``(pop_size, n_params)`` as asked for
        :param fitness: ``(pop_size,)``, higher is better, NaN is worst
        :param rng: not used
        :raises ValueError: before :meth:`ask`, if sizes do not fit, or if candidates were changed since they were asked for
        """
        check_told(candidates, fitness, self.pop_size)
        super().tell(candidates, fitness, rng)
        self.winners.copy_(candidates[best_first(fitness)[: len(self.winners)].tolist()])
        self._last_fitness = fitness.reshape(-1, 2)
        self.n_told += 1
        if self.amt and int(self.n_told) % self.amt_interval == 0:
            signal = fitness if self.amt_signal == "returns" else centered_ranks(fitness, self.ties)
            self.sigma = grown_sigma(self.sigma, signal, self.n_pairs, self.learning_rate, self.amt_clip)
            self.grown.fill_(self.sigma)

    def origins(self) -> Origins:
        """See :meth:`Evolver.origins`; pairs around winners that were crossed with the mother, around her, and the learner."""
        kinds, parents, slots = ["sample"] * self.pop_size, [-1] * self.pop_size, self.base_slots
        for pair in range(self.n_pairs)[slots["winner"]] if self.hindsight_crossover and self.n_told > 0 else ():
            kinds[2 * pair : 2 * pair + 2] = ["crossover"] * 2
        for pair in range(self.n_pairs)[slots["learner"]] if self._gradient_base is not None else ():
            kinds[2 * pair : 2 * pair + 2], parents[2 * pair : 2 * pair + 2] = ["learner"] * 2, [OUTSIDE] * 2
        return Origins(tuple(kinds), tuple(parents))

    def metrics(self) -> dict[str, float]:
        """See :meth:`Evolver.metrics`; also the mean fitness of the pairs around each kind of base."""
        means = {}
        for name, pairs in self.base_slots.items():
            of_pairs = self._last_fitness[pairs]
            finite = of_pairs[np.isfinite(of_pairs)]
            if len(finite):
                means[f"{name}_pairs_mean"] = float(finite.mean())
        return {**super().metrics(), **means}

    def ask_more(self, rng: np.random.Generator, n_pairs: int) -> NoReturn:
        """
        Not available.

        :raises ValueError: always
        """
        raise ValueError(f"n_pairs must be that of the evolver, because each pair has its own base; got {n_pairs} more")

    @property
    def source(self) -> NoReturn:
        """
        Not available.

        :raises ValueError: always
        """
        raise ValueError(f"evolver must be one whose pairs have one center here, such as 'es'; got {type(self).__name__}")

    def _choose_centers(self, rng: np.random.Generator) -> None:
        super()._choose_centers(rng)
        slots = self.base_slots
        if self.hindsight_crossover and self.n_winners > 0 and self.n_told > 0:
            mothers = np.repeat(to_numpy(self.mean)[None], self.n_winners, axis=0)
            _, children = self.crossover(to_numpy(self.winners), mothers, rng)
            self.asked_center[slots["winner"]] = torch.from_numpy(children).to(self.mean.device)
        if self._gradient_base is not None:
            self.asked_center[slots["learner"]] = self._gradient_base.to(self.mean)

    def _centers(self, first: int, n: int) -> np.ndarray:
        return to_numpy(self.asked_center[first : first + n])

    def _move(self, shaped: np.ndarray) -> None:
        # all gradients are divided by the sigma they were measured with, as Adam's moments mix them
        super()._move(shaped * np.float32(self._first_sigma / float(self.asked_sigma)))
        assert self.last_update is not None
        self.last_update = replace(self.last_update, shaped=shaped)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.sigma = float(self.grown)
