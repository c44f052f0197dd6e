"""What hybrids share whose individuals are whole actors of the learner's shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.policies import BasePolicy

from sb3_erl.core.checks import check_range
from sb3_erl.core.parameters import ParameterLayout, copy_buffers, read_parameters, write_parameters
from sb3_erl.engine.genetic import GeneticHybrid
from sb3_erl.evolution.fitness.returns import episode_return
from sb3_erl.evolution.ga import GA
from sb3_erl.rollouts.acting import ModuleActor, NetworkPool, candidates_stack, numpy_population
from sb3_erl.rollouts.jobs import EpisodeBatch, PopulationActor


class WholeActorHybrid(GeneticHybrid):
    """
    A genetic algorithm over actors of the shape of ``self.actor``, evaluated by the return of whole episodes.

    Subclasses set ``actor`` before they call :meth:`_setup_population` in ``_setup_parts``. Buffers of an actor (running
    statistics, TD7's embedding) are no part of the genome: individuals have those of ``actor``.
    """

    actor: Any
    tournament_size: int
    mutation_prob: float
    crossover_prob: float

    # ---------------------------------------------------------------- set-up

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_range("tournament_size", self.tournament_size, 2, integer=True)
        for name in ("mutation_prob", "crossover_prob"):
            check_range(name, getattr(self, name), 0, 1)

    def _evolver_arguments(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("tournament_size", "mutation_prob", "crossover_prob")}
        return {**own, **super()._evolver_arguments()}

    def _setup_population(self) -> None:
        fresh = th.stack([read_parameters(self._new_actor()) for _ in range(self.pop_size)])
        self.evolver = self._make_evolver(fresh).to(self.device)
        self._pool = NetworkPool(self._new_actor)

    def _make_evolver(self, candidates: th.Tensor) -> GA:
        return GA(candidates, ParameterLayout.of(self.actor), **self._evolver_arguments())

    def _new_actor(self) -> Any:
        actor = self.policy.make_actor()  # type: ignore[operator]
        actor.set_training_mode(False)
        return actor

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "actor_target", "critic_target", "encoder"]

    # ---------------------------------------------------------------- the parts of a generation

    @property
    def _is_warm(self) -> bool:
        assert self.replay_buffer is not None
        return self.replay_buffer.size() > self.learning_starts

    def _population_actor(self, vectors: th.Tensor) -> PopulationActor:
        actor = self.actor
        plain = numpy_population(actor, candidates_stack(actor, vectors.cpu().numpy()))
        return ModuleActor(self._pool.filled(vectors, actor)) if plain is None else plain

    def _fitness(self, candidates: th.Tensor, episodes: EpisodeBatch) -> np.ndarray:
        return episode_return(episodes.of(range(self.pop_size)), self.pop_size)

    def _deploy(self, candidates: th.Tensor, fitness: np.ndarray | None) -> None:
        deployed = self.policy.deployed
        epoch = self.evolver.epoch
        if self.deploy == "learner" or epoch is None:
            self.policy.deploy(self._leader)  # type: ignore[operator]
        else:
            write_parameters(self.evolver.candidates[epoch.protected[0]], deployed)  # type: ignore[arg-type]
            copy_buffers(self.actor, deployed)  # type: ignore[arg-type]

    @property
    def _leader(self) -> Any:
        """The learner's actor that is deployed where a learner is."""
        return self.actor

    def individual(self, index: int) -> BasePolicy:
        """See :meth:`EvolutionaryOffPolicyAlgorithm.individual`."""
        agent = self._new_actor()
        write_parameters(self.evolver.candidates[range(self.pop_size)[index]], agent)
        copy_buffers(self.actor, agent)
        return agent
