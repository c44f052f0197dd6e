"""The genetic algorithm of the ERL family."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from sb3_erl.core.checks import check_choice, check_range
from sb3_erl.core.parameters import ParameterLayout
from sb3_erl.core.registry import resolve
from sb3_erl.evolution.base import Evolver, check_told
from sb3_erl.evolution.operators.choice import OperatorStates, make_operator
from sb3_erl.evolution.operators.distilled_epoch import DistilledEpoch
from sb3_erl.evolution.operators.origins import Origins, origins_of_epoch
from sb3_erl.evolution.operators.selection import Epoch, GeneratorDraws, plan_epoch, rank_best_first, tournament_winners
from sb3_erl.evolution.operators.spare import SpareArrays


def count_elites(elite_fraction: float, pop_size: int) -> int:
    """
    ``max(1, int(elite_fraction * pop_size))`` without the rounding error of the product (0.3 * 10 is 3).

    >>> count_elites(0.3, 10), count_elites(0.2, 5), count_elites(0.1, 5)
    (3, 1, 1)
    """
    return max(1, int(elite_fraction * pop_size + 1e-9))


class GA(Evolver):
    """
    Tournament selection, protected elite copies, crossover of elite and winner copies, mutation of all unprotected slots.

    Khadka & Tumer (2018), https://arxiv.org/abs/1805.07917, algorithm 1, as in the authors' code (2018 revision), see
    :func:`~sb3_erl.evolution.operators.selection.plan_epoch`. Difference: distinct winners are taken in ascending order (the
    authors' order is that of a Python set).

    :param candidates: ``(pop_size, n_params)``, the initial population
    :param layout: tensors of one individual
    :param elite_fraction: share of the population that survives unchanged, at least one individual
    :param tournament_size: contestants per tournament, at least 2
    :param mutation_prob: probability of mutating an unprotected individual
    :param crossover_prob: probability of crossing two winners in place
    :param crossover: a registered key, ``"package.module:Name"``, a class or an operator, see
        :func:`~sb3_erl.evolution.operators.choice.make_operator`
    :param crossover_kwargs: further arguments of the crossover operator
    :param mutation: a registered key, ``"package.module:Name"``, a class or an operator, see
        :func:`~sb3_erl.evolution.operators.choice.make_operator`
    :param mutation_kwargs: further arguments of the mutation operator
    :param odd_winners: an odd number of winners is completed by a ``"random"`` one (paper's code) or by that of the
        ``"last"`` tournament (the authors' later code)
    :param min_elites: smallest number of elites, whatever their share
    :raises ValueError: if a number is out of range or a key is unknown
    """

    has_memories: ClassVar[bool] = False
    """Whether operators can read what individuals have seen."""
    shown = ("n_elites", "tournament_size", "crossover_prob", "mutation_prob", "crossover", "mutation")

    def __init__(
        self,
        candidates: Tensor,
        layout: ParameterLayout,
        elite_fraction: float = 0.1,
        tournament_size: int = 3,
        mutation_prob: float = 0.9,
        crossover_prob: float = 0.0,
        crossover: Any = "rows",
        crossover_kwargs: dict[str, Any] | None = None,
        mutation: Any = "gaussian",
        mutation_kwargs: dict[str, Any] | None = None,
        odd_winners: Literal["random", "last"] = "random",
        min_elites: int = 1,
    ):
        super().__init__(candidates)
        check_range("tournament_size", tournament_size, 2, integer=True)
        check_range("min_elites", min_elites, 0, integer=True)
        shares = {"elite_fraction": elite_fraction, "mutation_prob": mutation_prob, "crossover_prob": crossover_prob}
        for name, share in shares.items():
            check_range(name, share, 0, 1)
        check_choice("odd_winners", odd_winners, ("random", "last"))
        self.n_elites = max(min_elites, count_elites(elite_fraction, self.pop_size))
        if self.n_elites >= self.pop_size:
            argument = f"min_elites={min_elites}" if self.n_elites == min_elites else f"elite_fraction={elite_fraction}"
            raise ValueError(
                f"{argument} keeps {self.n_elites} of pop_size={self.pop_size} individuals, which leaves "
                f"none to vary; lower {argument.partition('=')[0]} or raise pop_size"
            )
        self.tournament_size, self.odd_winners = tournament_size, odd_winners
        self.mutation_prob, self.crossover_prob = mutation_prob, crossover_prob
        self.crossover = self._make_operator("crossover", crossover, layout, crossover_kwargs)
        self.mutation = self._make_operator("mutation", mutation, layout, mutation_kwargs)
        self._operator_states = OperatorStates({"crossover": self.crossover, "mutation": self.mutation})
        self._spare = SpareArrays()
        self.epoch: Epoch | DistilledEpoch | None = None
        """The last epoch's decisions, ``None`` before the first :meth:`tell`."""

    def _make_operator(self, kind: str, choice: Any, layout: ParameterLayout, kwargs: dict[str, Any] | None) -> Any:
        part = resolve(kind, choice)
        if getattr(part, "needs_memories", False) and not self.has_memories:
            raise ValueError(
                f"{kind} must be one that works on parameters alone with {type(self).__name__}; got {choice!r}, which reads "
                "what the individuals have seen. Use PDERL, or another operator"
            )
        return make_operator(kind, part, layout, kwargs)

    @property
    def protected(self) -> list[int]:
        """See :attr:`Evolver.protected`; the copies of the elites of the last :meth:`tell`, empty after loading."""
        return [] if self.epoch is None else list(self.epoch.protected)

    def ask(self, rng: np.random.Generator) -> Tensor:
        """See :meth:`Evolver.ask`; the whole population is evaluated."""
        if self.candidates.device.type != "cpu":
            return self.candidates.clone()
        own = self.candidates.detach().numpy()
        copy = self._spare.empty(own.shape, own.dtype)
        copy[:] = own
        return torch.from_numpy(copy)

    def tell(self, candidates: Tensor, fitness: np.ndarray, rng: np.random.Generator, migrants: Tensor | None = None) -> None:
        """
        Replace the population by its successors.

        :param candidates: ``(pop_size, n_params)`` as they were evaluated; not written
        :param fitness: ``(pop_size,)``, higher is better
        :param rng: generator
        :param migrants: ``(n, n_params)``: individuals from outside that take unselected slots
        """
        check_told(candidates, fitness, self.pop_size)
        n_migrants = 0 if migrants is None else len(migrants)
        n_tournaments = max(self.pop_size - self.n_elites - n_migrants, 1)
        draws = GeneratorDraws(rng)
        ranking = rank_best_first(fitness)
        winners = tournament_winners(ranking, n_tournaments, self.tournament_size, draws)
        individuals = candidates if migrants is None else torch.cat([candidates, migrants.to(candidates)])
        old = individuals.detach().to("cpu", torch.float32).numpy()  # read only
        self.epoch = self._plan(old, fitness, winners, n_migrants, rng)
        self.candidates = torch.from_numpy(self.vary(old, self.epoch, rng)).to(self.candidates)
        self.keep_best(candidates[int(ranking[0])].to(self.candidates))

    def origins(self) -> Origins | None:
        """See :meth:`Evolver.origins`; ``None`` before the first :meth:`tell` and after loading."""
        return None if self.epoch is None else origins_of_epoch(self.epoch, self.pop_size).with_outsiders(self.outsiders)

    def _plan(
        self, individuals: np.ndarray, fitness: np.ndarray, winners: list[int], n_migrants: int, rng: np.random.Generator
    ) -> Any:
        """Decide which individuals are copied, crossed and mutated."""
        return plan_epoch(
            rank_best_first(fitness),
            sorted(set(winners)),
            GeneratorDraws(rng),
            n_elites=self.n_elites,
            n_migrants=n_migrants,
            crossover_prob=self.crossover_prob,
            mutation_prob=self.mutation_prob,
            repeat="random" if self.odd_winners == "random" else winners[-1],
        )

    def vary(self, individuals: np.ndarray, epoch: Any, rng: np.random.Generator) -> np.ndarray:
        """
        Carry out the decisions of an epoch.

        :param individuals: ``(pop_size + n_migrants, n_params)``
        :param epoch: which individuals are copied, crossed and mutated
        :param rng: generator for the operators
        :return: ``(pop_size, n_params)``, the next population
        """
        owners = np.arange(self.pop_size)
        for source, slot in epoch.copies[0]:
            owners[slot] = source
        new = self._spare.empty((self.pop_size, individuals.shape[1]), individuals.dtype)
        individuals.take(owners, axis=0, out=new, mode="clip")  # the mode in which nothing is buffered
        self._cross(new, epoch.crossings[0], rng)
        for copies, pairs in zip(epoch.copies[1:], epoch.crossings[1:], strict=True):
            for source, slot in copies:
                new[slot] = individuals[source]
            self._cross(new, pairs, rng)
        self._mutate(new, epoch.mutants, rng)
        return new

    def _cross(self, new: np.ndarray, pairs: list[tuple[int, int]], rng: np.random.Generator) -> None:
        if not pairs:
            return
        first, second = np.array(pairs).T
        in_place = getattr(self.crossover, "cross_rows", None)
        if in_place is None:
            parents = new[first], new[second]
            children = self.crossover(*parents, rng)
            if not isinstance(children, tuple | list) or len(children) != 2:
                raise TypeError(f"crossover={_name(self.crossover)} must return two stacks of children; got {type(children)}")
            new[first], new[second] = (
                _checked("crossover", self.crossover, *pair) for pair in zip(children, parents, strict=True)
            )
        else:
            in_place(new, first, second, rng)

    def _mutate(self, new: np.ndarray, mutants: list[int], rng: np.random.Generator) -> None:
        if not mutants:
            return
        in_place = getattr(self.mutation, "mutate_rows", None)
        if in_place is None:
            parents = new[mutants]
            new[mutants] = _checked("mutation", self.mutation, self.mutation(parents, rng), parents)
        else:
            in_place(new, mutants, rng)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        states = self._operator_states.state()
        if states:
            destination[prefix + "operator_states"] = states

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        self._operator_states.load(state_dict.pop(prefix + "operator_states", {}))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _name(operator: Any) -> str:
    return getattr(operator, "__name__", type(operator).__name__)


def _checked(kind: str, operator: Any, children: Any, parents: np.ndarray) -> np.ndarray:
    """:raises TypeError: if what an operator has returned is no stack of as many individuals as it was given"""
    if isinstance(children, np.ndarray | Tensor) and tuple(children.shape) == parents.shape:
        return np.asarray(children)
    got = f"shape {tuple(children.shape)}" if hasattr(children, "shape") else repr(children)[:80]
    raise TypeError(
        f"{kind}={_name(operator)} must return an array of the shape of its parents, {parents.shape}, one row per individual; "
        f"got {got}"
    )
