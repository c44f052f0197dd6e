"""The rollouts of an evolution strategy: means, candidates, further pairs, and sums of what they observed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy

from sb3_erl.buffers.rollout_steps import Steps
from sb3_erl.core.seeding import Address, Stream
from sb3_erl.engine.generation import Generation
from sb3_erl.evolution.es import MirroredES
from sb3_erl.evolution.es_source import UnbuiltCandidates
from sb3_erl.evolution.rebuilt import built
from sb3_erl.policies.observation_statistics import ObservationStatistics, ObservationSums
from sb3_erl.remote.recipes import RebuiltActor, actor_factory
from sb3_erl.rollouts.acting import JointActor, ModuleActor, numpy_population, tensors_of
from sb3_erl.rollouts.exploration import UnboundedExploration
from sb3_erl.rollouts.jobs import EpisodeBatch, Explorer, Job, PopulationActor, Summarizer

STORED_EPISODES = 100
"""Episodes per generation whose observations are counted, as with the authors' 10000 episodes and their probability 0.01."""


@dataclass(frozen=True)
class ObservedEpisodes:
    """
    Sums the observations of some of the population's episodes; a :class:`~sb3_erl.rollouts.jobs.Summarizer`.

    :param address: root of the draws that choose them
    :param first: number of the first candidate; those before it are means
    :param probability: share of the episodes that is chosen
    """

    address: Address
    first: int
    probability: float

    def needs_steps(self, job: Job) -> bool:
        """See :class:`~sb3_erl.rollouts.jobs.Summarizer`."""
        if job.candidate < self.first:
            return False
        return self.address.rng(Stream.FITNESS, job.candidate, job.episode).random() < self.probability

    def __call__(self, job: Job, steps: Steps) -> ObservationSums | None:
        """:return: what the episode adds to the statistics, ``None`` for an episode of the mean or one that is not chosen"""
        if len(steps) == 0 or not self.needs_steps(job):
            return None
        return ObservationSums.of(steps.observations[:-1].reshape(len(steps), -1))


class ObservationStore:
    """
    Sums observations until the generation is complete; a :class:`~sb3_erl.engine.rollout_phase.StepStore`.

    :param address: root of the draws that choose episodes
    :param first: number of the first candidate
    :param n_candidates: candidates of a generation, at least
    :param n_eval_episodes: episodes of each of them
    :param probability: share of the episodes that is chosen, ``None`` for :data:`STORED_EPISODES` of them
    """

    reads_infos = False

    def __init__(self, address: Address, first: int, n_candidates: int, n_eval_episodes: int, probability: float | None):
        if probability is None:
            probability = min(1.0, STORED_EPISODES / (n_candidates * n_eval_episodes))
        self.summarizer: Summarizer | None = ObservedEpisodes(address, first, probability)
        self.first, self.n_eval_episodes = first, n_eval_episodes
        self.sums: dict[int, ObservationSums] = {}

    def store(self, job: Job, summary: Any) -> None:
        """See :class:`~sb3_erl.engine.rollout_phase.StepStore`."""
        if isinstance(summary, ObservationSums):
            self.sums[(job.candidate - self.first) * self.n_eval_episodes + job.episode] = summary

    def merge_into(self, statistics: ObservationStatistics, n_candidates: int) -> None:
        """
        :param statistics: take up the observations
        :param n_candidates: how many of the candidates count
        """
        last = n_candidates * self.n_eval_episodes
        statistics.merge({number: sums for number, sums in self.sums.items() if number < last})


class MirroredRollouts:
    """
    The rollouts of one generation, in as many whole pairs of candidates as have ``min_timesteps`` steps together.

    Means and candidates act in one phase, in which the means have the numbers from 0 and the candidates those after them.
    Episodes that leave this class are numbered from 0 by mean, and by candidate.

    :param model: the algorithm with its settings ``n_pairs``, ``min_timesteps``, ``n_eval_episodes``, ``obs_stat_prob``,
        ``common_random_numbers``, ``action_noise_std`` and ``cutoff``
    :param evolver: proposes the candidates, and further pairs if ``min_timesteps`` is positive
    :param n_means: how many numbers are reserved for means
    :param network: whose buffers the candidates act with
    :param counts_observations: whether :attr:`observations` are summed
    """

    def __init__(self, model: Any, evolver: Any, n_means: int, network: BasePolicy, counts_observations: bool):
        self.model, self.evolver, self.n_means, self.network = model, evolver, n_means, network
        self.means = EpisodeBatch((), 0)
        """Episodes of the mean, after :meth:`run`."""
        self.observations: ObservationStore | None = None
        """Sums of observations of the candidates' episodes; ``None`` if there are no statistics of them."""
        if counts_observations:
            size = (n_means, model.pop_size, model.n_eval_episodes)
            self.observations = ObservationStore(model.run.address, *size, model.obs_stat_prob)

    def run(self, generation: Generation, n_mean_episodes: int = 0, is_first: bool = True) -> bool:
        """
        :param generation: with the candidates that were asked for; gets the episodes, and the candidates that count
        :param n_mean_episodes: episodes of the evolver's mean beside those of the candidates
        :param is_first: whether a rollout begins for callbacks
        :return: ``False`` if a callback or the budget stopped it
        """
        model, candidates, is_last = self.model, generation.proposed, self.model.min_timesteps == 0
        jobs = self._jobs(0, len(candidates)) + [Job(0, k, model.cutoff) for k in range(n_mean_episodes)]
        found = self._phase(generation, jobs, candidates, is_first, is_last)
        if found is None:
            return False
        self.means, episodes = found.of(range(self.n_means)), found.renumbered(self.n_means)
        while episodes.n_timesteps < model.min_timesteps:
            if isinstance(candidates, UnbuiltCandidates):
                candidates = self.evolver.propose_more(generation.rng, model.n_pairs)
            else:
                candidates = th.cat([candidates, self.evolver.ask_more(generation.rng, model.n_pairs)])
            jobs = self._jobs(len(candidates) - 2 * model.n_pairs, len(candidates))
            found = self._phase(generation, jobs, candidates, is_first=False, is_last=False)
            if found is None:
                return False
            more = found.renumbered(self.n_means)
            episodes = EpisodeBatch(episodes.episodes + more.episodes, episodes.n_timesteps + more.n_timesteps)
        if not is_last:
            generation.callback.on_rollout_end()
        n = self._n_enough(episodes, len(candidates))
        generation.candidates = candidates.first(n) if isinstance(candidates, UnbuiltCandidates) else candidates[:n]
        generation.episodes = episodes.of(range(n))
        if model.min_timesteps > 0:
            steps = [sum(episode.length for episode in batch.episodes) for batch in (episodes, generation.episodes)]
            model.logger.record("time/wasted_timesteps", steps[0] - steps[1])
        return True

    def _phase(
        self, generation: Generation, jobs: Sequence[Job], candidates: Any, is_first: bool, is_last: bool
    ) -> EpisodeBatch | None:
        needs = self.model.fitness.needs | self.model.episode_needs
        actor, store = self._actor(candidates), self.observations
        return self.model.rollouts.run(jobs, actor, generation.callback, store, needs, is_first, is_last)

    def _jobs(self, first: int, last: int) -> list[Job]:
        """Jobs of the candidates from ``first`` to ``last - 1``; with common random numbers a pair shares its start states."""
        model, jobs = self.model, []
        for i in range(first, last):
            number = self.n_means + i
            twin = number - i % 2 if model.common_random_numbers else None
            jobs += [Job(number, k, model.cutoff, self._explorer(), twin) for k in range(model.n_eval_episodes)]
        return jobs

    def _explorer(self) -> Explorer | None:
        """One per job: jobs that run at the same time must not share random numbers."""
        wanted = self.model.action_noise_std > 0 and isinstance(self.model.action_space, spaces.Box)
        return UnboundedExploration(self.model.action_noise_std) if wanted else None

    def _actor(self, candidates: Any) -> PopulationActor:
        """Acts for means and candidates; of mirrored candidates workers are sent what they are made of, which is less."""
        center = self.evolver.center()
        mean = candidates[0] if center is None else center.to(candidates.dtype)  # without a mean its numbers are not used

        def all_together() -> PopulationActor:
            return self.model.population.act(th.cat([mean.expand(self.n_means, -1), built(candidates)]))

        if not isinstance(self.evolver, MirroredES):
            return all_together()
        return RebuiltActor(replace(self.evolver.source, first=self.n_means), actor_factory(self.network), all_together)

    def _n_enough(self, episodes: EpisodeBatch, n_candidates: int) -> int:
        """How many candidates, in whole pairs and at least ``n_pairs`` of these, have ``min_timesteps`` steps together."""
        steps = np.zeros(n_candidates, dtype=np.int64)
        for episode in episodes.episodes:
            steps[episode.job.candidate] += episode.length
        enough = int(np.searchsorted(steps.cumsum(), self.model.min_timesteps)) + 1
        return min(max(2 * self.model.n_pairs, enough + enough % 2), n_candidates)


def evaluate_members(model: Any, generation: Generation, networks: Any, n_episodes: int) -> EpisodeBatch | None:
    """
    Let every member of a meta-population act as it is; the rollout goes on with the candidates.

    :param model: the algorithm, with ``cutoff`` and ``episode_needs``
    :param generation: at whose beginning they act
    :param networks: sequence of those of the members
    :param n_episodes: episodes of each
    :return: the episodes; ``None`` if a callback or the budget stopped it
    """
    parts = [numpy_population(network, tensors_of) or ModuleActor([network]) for network in networks]
    jobs = [Job(member, k, model.cutoff) for member in range(len(networks)) for k in range(n_episodes)]
    actor = JointActor(parts, [(member, 0) for member in range(len(networks))])
    return model.rollouts.run(jobs, actor, generation.callback, None, model.episode_needs, is_last=False)
