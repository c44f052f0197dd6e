"""The genetic algorithm of PDERL: distilled children, proximal mutants, and memories that are passed on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sb3_erl.buffers.genetic_memory import GeneticMemories
from sb3_erl.core.checks import check_choice
from sb3_erl.core.observations import combine
from sb3_erl.core.parameters import ParameterLayout
from sb3_erl.core.registry import resolve
from sb3_erl.evolution.fitness.shaping import nan_is_worst
from sb3_erl.evolution.ga import GA
from sb3_erl.evolution.operators.distillation import DistillationCrossover, Value, act_together
from sb3_erl.evolution.operators.distilled_epoch import DistilledEpoch, plan_distilled_epoch
from sb3_erl.evolution.operators.matching import behavior_distance, pairs_by_distance, pairs_by_fitness
from sb3_erl.evolution.operators.proximal import ProximalMutation, sensitivity
from sb3_erl.evolution.operators.selection import Epoch, GeneratorDraws, plan_epoch, rank_best_first

DISTANCE_STATES, DISTANCE_NEWEST = 256, 1000
"""States on which two individuals are compared, and from how many newest ones they are drawn."""


@dataclass
class Learned:
    """
    What the operators read beside genomes and memories. A plain object, so it is not saved with the evolver.

    :param actor: a network of the individuals' shape whose outputs are deterministic actions
    :param layout: tensors of one individual, by their names in ``actor``
    :param value: the critic that filters the parents' actions
    :param prepare: turns stored observations into what the networks are given
    """

    actor: nn.Module
    layout: ParameterLayout
    value: Value
    prepare: Callable[[np.ndarray], Any]

    def states(self, observations: np.ndarray) -> Any:
        """:return: tensors for the networks, float32 also of observations that are stored in float64"""
        return combine(lambda seen: seen.float() if seen.dtype == torch.float64 else seen, self.prepare(observations))


class DistilledGA(GA):
    """
    A GA whose operators read what the individuals have seen and the values that the learner's critic gives to actions.

    Bodnar, Day, Lio (AAAI 2020), https://arxiv.org/abs/1906.09807, algorithm 1; authors' code: crisbodnar/pderl,
    ``core/mod_neuro_evo.py``. Both operators can be replaced by those of :class:`~sb3_erl.evolution.ga.GA`, which gives
    the paper's ablations. Differences: see
    :func:`~sb3_erl.evolution.operators.distilled_epoch.plan_distilled_epoch`; individuals
    that have seen nothing are not mutated proximally.

    :param candidates: see :class:`~sb3_erl.evolution.ga.GA`
    :param layout: tensors of one individual, by their names in ``actor``
    :param actor: a network of the individuals' shape whose output are deterministic actions; its buffers count, its
        parameters are not read
    :param memories: of at least ``pop_size`` individuals, filled by the algorithm
    :param value: the critic that filters the parents' actions
    :param prepare: turns stored observations into what the networks are given
    :param crossover: ``"distillation"``, a subclass of
        :class:`~sb3_erl.evolution.operators.distillation.DistillationCrossover`, which is constructed as
        ``cls(actor, layout, **kwargs)``, or one for :class:`~sb3_erl.evolution.ga.GA`
    :param mutation: ``"proximal"``, a subclass of :class:`~sb3_erl.evolution.operators.proximal.ProximalMutation`, or one for
        :class:`~sb3_erl.evolution.ga.GA`
    :param crossover_kwargs: further arguments of the crossover operator
    :param parent_matching: pairs of parents by ``"fitness"`` (its sum) or by ``"distance"`` (most different behavior)
    :param distance_from: for ``"distance"``, compare with what the other's ``"policy"`` does in its states (paper) or with
        the actions in its ``"memory"`` (authors' code)
    :param kwargs: further arguments of :class:`~sb3_erl.evolution.ga.GA`; an odd number of winners is always completed by a
        random one
    :raises ValueError: see :class:`~sb3_erl.evolution.ga.GA`
    """

    has_memories = True
    memories: GeneticMemories

    def __init__(
        self,
        candidates: Tensor,
        layout: ParameterLayout,
        actor: nn.Module,
        memories: GeneticMemories,
        value: Value,
        prepare: Callable[[np.ndarray], Any],
        crossover: Any = "distillation",
        crossover_kwargs: dict[str, Any] | None = None,
        mutation: Any = "proximal",
        parent_matching: Literal["fitness", "distance"] = "fitness",
        distance_from: Literal["policy", "memory"] = "policy",
        **kwargs: Any,
    ):
        check_choice("parent_matching", parent_matching, ("fitness", "distance"))
        check_choice("distance_from", distance_from, ("policy", "memory"))
        crossover = resolve("crossover", crossover)
        if isinstance(crossover, type) and issubclass(crossover, DistillationCrossover):
            crossover, crossover_kwargs = crossover(actor, layout, **(crossover_kwargs or {})), None
        operators = {"crossover": crossover, "crossover_kwargs": crossover_kwargs, "mutation": mutation}
        super().__init__(candidates, layout, **operators, **kwargs)
        self.distills = isinstance(self.crossover, DistillationCrossover)
        self.is_proximal = isinstance(self.mutation, ProximalMutation)
        self.learned = Learned(actor, layout, value, prepare)
        self.memories = memories
        self.parent_matching, self.distance_from = parent_matching, distance_from

    # ---------------------------------------------------------------- decisions

    def _plan(
        self, individuals: np.ndarray, fitness: np.ndarray, winners: list[int], n_migrants: int, rng: np.random.Generator
    ) -> Epoch | DistilledEpoch:
        chances: Any = {name: getattr(self, name) for name in ("n_elites", "crossover_prob", "mutation_prob")}
        ranking, offspring, draws = rank_best_first(fitness), sorted(set(winners)), GeneratorDraws(rng)
        if not self.distills:
            return plan_epoch(ranking, offspring, draws, n_migrants=n_migrants, cross_each=True, **chances)

        def most_different(parents: Sequence[int], fitness: np.ndarray) -> list[tuple[int, int]]:
            return pairs_by_distance(parents, fitness, self._distances(individuals, parents, rng))

        matching = pairs_by_fitness if self.parent_matching == "fitness" else most_different
        return plan_distilled_epoch(ranking, nan_is_worst(fitness), offspring, draws, matching=matching, **chances)

    def _distances(self, individuals: np.ndarray, parents: Sequence[int], rng: np.random.Generator) -> np.ndarray:
        """``(pop_size, pop_size)``: distances of the parents' behavior, both ways added, on what either has seen."""
        one_way = np.zeros((self.pop_size, self.pop_size))
        parts = self._split(individuals[list(parents)])
        for other in parents:
            n = min(DISTANCE_STATES, DISTANCE_NEWEST, int(self.memories.sizes[other]))
            if n == 0:
                continue
            observations, stored = self.memories.draw(other, n, rng, newest=DISTANCE_NEWEST)
            states = self.learned.states(observations)
            with torch.no_grad():
                common = combine(lambda tensor: tensor.expand(len(parents), *tensor.shape), states)
                actions = act_together(self.learned.actor, parts, common).cpu().numpy()
            theirs = stored if self.distance_from == "memory" else actions[list(parents).index(other)]
            for own, parent in zip(actions, parents, strict=True):
                one_way[parent, other] = behavior_distance(own, theirs)
        return one_way + one_way.T

    # ---------------------------------------------------------------- variation

    def vary(self, individuals: np.ndarray, epoch: Any, rng: np.random.Generator) -> np.ndarray:
        """See :meth:`GA.vary`; memories follow their individuals."""
        owners = np.arange(self.pop_size)
        if isinstance(epoch, Epoch):
            for source, slot in chain.from_iterable(epoch.copies):
                owners[slot] = source
            self.memories.take(owners)
            return super().vary(individuals, epoch, rng)
        assert isinstance(epoch, DistilledEpoch)
        for elite, slot in epoch.copies:
            owners[slot] = owners[elite]
        self.memories.take(owners)
        new = individuals[owners]
        self._distill(new, epoch.children, rng)
        for slot, mate in epoch.crossings:
            self._distill(new, [(slot, mate, slot)], rng)
        self._mutate(new, epoch.mutants, rng)
        return new

    def _distill(self, new: np.ndarray, children: list[tuple[int, int, int]], rng: np.random.Generator) -> None:
        """Children of (first parent, second parent) in their slots, with memories of their own."""
        crossover: DistillationCrossover = self.crossover
        together: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for child in children:
            self.memories.inherit(*child, rng)
            together[min(crossover.batch_size, int(self.memories.sizes[child[-1]]))].append(child)
        for batch_size, group in together.items():
            firsts, seconds, slots = (list(column) for column in zip(*group, strict=True))
            n_steps = [crossover.epochs * (int(self.memories.sizes[slot]) // max(batch_size, 1)) for slot in slots]

            def draw(slots: list[int] = slots, batch_size: int = batch_size) -> Any:
                return self._states(slots, batch_size, rng)

            first, second = (torch.from_numpy(new[rows]).to(self.candidates.device) for rows in (firsts, seconds))
            new[slots] = crossover(first, second, draw, n_steps, self.learned.value)[0].cpu().numpy()

    def _mutate(self, new: np.ndarray, mutants: list[int], rng: np.random.Generator) -> None:
        if not self.is_proximal:
            super()._mutate(new, mutants, rng)
            return
        mutation: ProximalMutation = self.mutation
        together: dict[int, list[int]] = defaultdict(list)
        for slot in mutants:
            together[min(mutation.batch_size, int(self.memories.sizes[slot]))].append(slot)
        for n_states, slots in together.items():
            if n_states > 0:
                states = self._states(slots, n_states, rng)
                candidates = torch.from_numpy(new[slots]).to(self.candidates.device)
                measured = sensitivity(self.learned.actor, self.learned.layout, candidates, states).cpu().numpy()
                new[slots] = mutation(new[slots], measured * mutation.batch_factor(n_states), rng)

    def _states(self, slots: list[int], n: int, rng: np.random.Generator) -> Any:
        """``(len(slots), n, *obs_shape)``, or a dict of such tensors: different states that each individual has seen."""
        observations = np.stack([self.memories.draw(slot, n, rng)[0] for slot in slots])
        states = self.learned.states(observations.reshape(-1, *observations.shape[2:]))
        return combine(lambda tensor: tensor.unflatten(0, (len(slots), n)), states)

    def _split(self, individuals: np.ndarray) -> dict[str, Tensor]:
        return self.learned.layout.split(torch.from_numpy(individuals).to(self.candidates.device))  # type: ignore[return-value]
