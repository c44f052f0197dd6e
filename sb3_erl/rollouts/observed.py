"""Statistics of the observations of some of a generation's episodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sb3_erl.buffers.rollout_steps import Steps
from sb3_erl.core.seeding import Address, Stream
from sb3_erl.policies.observation_statistics import ObservationStatistics, ObservationSums
from sb3_erl.rollouts.jobs import Job, Summarizer

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
