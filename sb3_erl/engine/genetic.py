"""What ERL and its descendants share: a GA whose weakest individual is replaced by the learner."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch as th

from sb3_erl.core.checks import check_choice, check_range
from sb3_erl.engine.hybrid import EvolutionaryOffPolicyAlgorithm
from sb3_erl.engine.replace import ReplaceWeakest, fate
from sb3_erl.evolution.ga import GA
from sb3_erl.evolution.operators.selection import rank_best_first


class GeneticHybrid(EvolutionaryOffPolicyAlgorithm):
    """
    A genetic algorithm beside a learner, with injections of the learner into the population.

    Subclasses set ``n_eval_episodes``, ``elite_fraction``, ``tournament_size``, ``mutation_prob``, ``crossover_prob``,
    ``sync_period``, ``deploy`` and ``evolver_kwargs`` before ``_setup_model`` runs.
    """

    evolver: GA
    exchange: ReplaceWeakest
    elite_fraction: float
    sync_period: int
    deploy: Literal["champion", "learner", "checkpoint"] | None
    deploy_choices: ClassVar[tuple[str | None, ...]] = ("champion", "learner")
    champion_fitness: float | None = None
    """Fitness of the last evaluated champion, ``None`` before the first evaluation."""
    champion_return: float | None = None
    """Return of the last champion that was found by whole episodes, ``None`` before."""
    _injected_slot: int | None = None

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_range("sync_period", self.sync_period, 1, integer=True)
        check_range("elite_fraction", self.elite_fraction, 0, 1)
        check_choice("deploy", self.deploy, self.deploy_choices)

    @property
    def _n_jobs(self) -> int:
        """Rollouts in a generation: whole-episode evaluations of the population and the learner's exploration."""
        return super()._n_jobs + 1

    def _evolver_arguments(self) -> dict[str, Any]:
        """Arguments of the GA beside candidates and layout."""
        return {"elite_fraction": self.elite_fraction, **(self.evolver_kwargs or {})}

    evolver_kwargs: dict[str, Any] | None

    def _ga_tell(
        self, candidates: th.Tensor, fitness: np.ndarray, rng: np.random.Generator, migrants: th.Tensor | None = None
    ) -> None:
        """Evolve, and log what became of the individual that was injected last."""
        ranking = rank_best_first(fitness)
        self.evolver.tell(candidates, fitness, rng, migrants)
        epoch = self.evolver.epoch
        assert epoch is not None
        if self._injected_slot is not None:
            outcome = fate(self._injected_slot, epoch, ranking, self.evolver.n_elites)
            for name in ("elite", "selected", "discarded"):
                self.logger.record(f"population/injected_{name}", float(outcome == name))
        self._injected_slot = None
        self.champion_fitness = float(fitness[ranking[0]])
        if self._fitness_is_return:
            self.champion_return = self.champion_fitness
        if self.champion_return is not None:  # of the last generation that was measured in whole episodes
            self.logger.record("population/champion_return", self.champion_return)

    @property
    def _fitness_is_return(self) -> bool:
        """Whether this generation's fitness is the return of whole episodes."""
        return True

    def _inject(self, learner: th.Tensor, fitness: np.ndarray | None) -> None:
        """Replace the weakest individual by the learner if it is time."""
        protected = [] if self.evolver.epoch is None else self.evolver.epoch.protected
        scores = np.zeros(self.pop_size) if fitness is None else fitness
        slot = self.exchange.rl_to_ea(learner, self.evolver, scores, protected, self.n_generations + 1)
        self._injected_slot = self._injected_slot if slot is None else slot
