"""The episodes of an evolution strategy's candidates, and of its means beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_erl.engine.generation import Generation
from sb3_erl.evolution.es import MirroredES
from sb3_erl.policies.observation_statistics import ObservationStatistics
from sb3_erl.remote.recipes import RebuiltActor, actor_factory
from sb3_erl.rollouts.exploration import UnboundedExploration
from sb3_erl.rollouts.jobs import EpisodeBatch, Explorer, Job, PopulationActor
from sb3_erl.rollouts.observed import ObservationStore


class PairEvaluation:
    """
    Evaluates the candidates of a generation, in rollouts in which the means have the first numbers.

    :param model: an :class:`~sb3_erl.algorithms.openai_es.OpenAIES`, whose settings and rollouts are used
    :param n_centers: number of means; the candidates have the numbers after them
    """

    def __init__(self, model: Any, n_centers: int):
        self.model, self.n_centers = model, n_centers
        self.centers = EpisodeBatch((), 0)
        """Episodes of the means in the last generation."""
        self._observed: ObservationStore | None = None

    def run(self, generation: Generation, evolver: Any, means: Sequence[Job] = (), is_first: bool = True) -> bool:
        """
        Evaluate the candidates, and further pairs until there are ``min_timesteps`` steps.

        :param generation: gets the episodes, and the candidates that count
        :param evolver: proposed the candidates
        :param means: jobs of the means beside those of the candidates
        :param is_first: whether a rollout begins for callbacks
        :return: ``False`` if a callback or the budget stopped it
        """
        model, candidates, callback = self.model, generation.asked, generation.callback
        is_last, needs = model.min_timesteps == 0, model.fitness.needs | model.episode_needs
        self._observed, run = self._observation_store(), model.rollouts.run
        jobs, actor = [*self._jobs(0, len(candidates)), *means], self._actor(candidates, evolver)
        found = run(jobs, actor, callback, self._observed, needs, is_first, is_last)
        if found is None:
            return False
        self.centers, episodes = found.of(range(self.n_centers)), found.renumbered(self.n_centers)
        while episodes.n_timesteps < model.min_timesteps:
            candidates = th.cat([candidates, evolver.ask_more(generation.rng, model.n_pairs)])
            jobs, actor = self._jobs(len(candidates) - 2 * model.n_pairs, len(candidates)), self._actor(candidates, evolver)
            more = run(jobs, actor, callback, self._observed, needs, is_first=False, is_last=False)
            if more is None:
                return False
            more = more.renumbered(self.n_centers)
            episodes = EpisodeBatch(episodes.episodes + more.episodes, episodes.n_timesteps + more.n_timesteps)
        if not is_last:
            callback.on_rollout_end()
        n = self._n_enough(episodes, len(candidates))
        generation.candidates, generation.episodes = candidates[:n], episodes.of(range(n))
        return True

    def count_observations(self, statistics: ObservationStatistics | None, n_candidates: int) -> None:
        """
        :param statistics: take up what was observed in the last generation; ``None`` where none are kept
        :param n_candidates: how many of the candidates count
        """
        if self._observed is not None and statistics is not None:
            self._observed.merge_into(statistics, n_candidates)

    def _observation_store(self) -> ObservationStore | None:
        model = self.model
        if model._statistics is None:
            return None
        return ObservationStore(model.run.address, self.n_centers, model.pop_size, model.n_eval_episodes, model.obs_stat_prob)

    def _actor(self, candidates: th.Tensor, evolver: Any) -> PopulationActor:
        """Acts for the means and the candidates; workers are sent what candidates are made of, where that is less."""
        center, model = evolver.center(), self.model
        mean = candidates[0] if center is None else center.to(candidates.dtype)

        def all_together() -> PopulationActor:
            return model.population.act(th.cat([mean.expand(self.n_centers, -1), candidates]))

        if not isinstance(evolver, MirroredES) or len(candidates) != evolver.pop_size:
            return all_together()
        return RebuiltActor(replace(evolver.source, first=self.n_centers), actor_factory(model._network), all_together)

    def _jobs(self, first: int, last: int) -> list[Job]:
        model, jobs = self.model, []
        for i in range(first, last):
            number = self.n_centers + i
            twin = number - i % 2 if model.common_random_numbers else None
            jobs += [Job(number, k, model.cutoff, self._explorer(), twin) for k in range(model.n_eval_episodes)]
        return jobs

    def _explorer(self) -> Explorer | None:
        """One per job: jobs that run at the same time must not share random numbers."""
        std = self.model.action_noise_std
        return UnboundedExploration(std) if std > 0 and isinstance(self.model.action_space, spaces.Box) else None

    def _n_enough(self, episodes: EpisodeBatch, n_candidates: int) -> int:
        """How many candidates, in whole pairs and at least ``n_pairs`` of these, have ``min_timesteps`` steps together."""
        steps = np.zeros(n_candidates, dtype=np.int64)
        for episode in episodes.episodes:
            steps[episode.job.candidate] += episode.length
        enough = int(np.searchsorted(steps.cumsum(), self.model.min_timesteps)) + 1
        return min(max(2 * self.model.n_pairs, enough + enough % 2), n_candidates)
