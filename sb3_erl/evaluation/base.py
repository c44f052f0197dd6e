"""Rollout jobs and what comes back from them, the same for every back-end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from sb3_erl.common.seeding import Address


class Explorer(Protocol):
    """Turns the deterministic action of an exploring candidate into the action that is taken."""

    def begin(self, sequence: np.random.SeedSequence) -> None:
        """Start an episode whose random numbers derive from ``sequence``."""

    def __call__(self, observation: np.ndarray, action: np.ndarray) -> np.ndarray:
        """
        :param observation: one observation as the policy sees it
        :param action: ``(action_dim,)`` in [-1, 1], the deterministic action
        :return: ``(action_dim,)`` in [-1, 1]
        """


class PopulationActor(Protocol):
    """Acts for all candidates of a generation."""

    def __call__(self, observations: np.ndarray, candidates: Sequence[int]) -> np.ndarray:
        """
        Row i does not depend on the other rows, to the last bit.

        :param observations: ``(k, *obs_shape)``
        :param candidates: ``(k,)``, who acts on which row
        :return: ``(k, action_dim)`` in [-1, 1]
        """


@dataclass(frozen=True)
class Job:
    """
    One episode of one candidate; ``(job, episode)`` is its address within the phase.

    :param candidate: index of the acting candidate
    :param episode: number of this episode among the candidate's episodes
    :param horizon: stop after this many steps, ``None`` for a whole episode
    :param explorer: exploration, ``None`` for the deterministic action
    :param address: use the random numbers of another candidate's episode, ``None`` for its own
    """

    candidate: int
    episode: int = 0
    horizon: int | None = None
    explorer: Explorer | None = None
    address: int | None = None

    @property
    def key(self) -> tuple[int, int]:
        """Where the random numbers of this episode are, within a stream of the phase."""
        return self.candidate if self.address is None else self.address, self.episode


@dataclass(frozen=True)
class Episode:
    """
    :param job: what was asked for
    :param rewards: ``(T,)`` raw rewards (before VecNormalize)
    :param last_observation: observation after the last step, as the policy sees it
    :param terminated: the environment ended the episode (not a time limit)
    :param cut: stopped at ``job.horizon`` although the environment would have gone on
    :param behavior: what the environment says of it, see :mod:`sb3_erl.fitness.behaviour`; ``None`` if it says nothing
    """

    job: Job
    rewards: np.ndarray
    last_observation: np.ndarray
    terminated: bool
    cut: bool
    behavior: np.ndarray | None = None

    @property
    def length(self) -> int:
        """Number of steps."""
        return len(self.rewards)

    @property
    def total_reward(self) -> float:
        """Undiscounted return."""
        return float(self.rewards.sum())


@dataclass(frozen=True)
class EpisodeBatch:
    """
    All episodes of a phase in job order.

    :param episodes: one per job
    :param n_timesteps: environment steps that were counted
    """

    episodes: tuple[Episode, ...]
    n_timesteps: int

    def of(self, candidates: range) -> EpisodeBatch:
        """The episodes of some candidates only."""
        chosen = tuple(episode for episode in self.episodes if episode.job.candidate in candidates)
        return EpisodeBatch(chosen, sum(episode.length for episode in chosen))

    def mean_per_candidate(self, values: Sequence[float], n_candidates: int) -> np.ndarray:
        """
        :param values: one value per episode
        :param n_candidates: length of the result
        :return: ``(n_candidates,)`` means over each candidate's episodes, NaN without any
        """
        sums, counts = np.zeros(n_candidates), np.zeros(n_candidates)
        for episode, value in zip(self.episodes, values, strict=True):
            sums[episode.job.candidate] += value
            counts[episode.job.candidate] += 1
        return np.divide(sums, counts, out=np.full(n_candidates, np.nan), where=counts > 0)


class Transition(NamedTuple):
    """One environment step as SB3's replay buffers take it (unnormalised, action in [-1, 1])."""

    observation: np.ndarray
    next_observation: np.ndarray
    action: np.ndarray
    reward: float
    done: bool
    info: dict[str, Any]


class Recorder(Protocol):
    """What an evaluator reports to: the algorithm that owns counters, callbacks and buffer."""

    def after_step(self, variables: dict[str, Any], running: np.ndarray) -> bool:
        """
        Called once per vector step, before anything of it is stored.

        :param variables: the evaluator's local variables for callbacks (``new_obs rewards dones infos actions``)
        :param running: ``(n_envs,)`` which slots did a job's step
        :return: whether to go on
        """

    @property
    def has_budget(self) -> bool:
        """Whether further steps may be taken."""

    def store(self, job: Job, transitions: Sequence[Transition]) -> None:
        """Take the transitions of one job, in order."""


class Evaluator(Protocol):
    """Steps environments for a list of jobs."""

    def evaluate(
        self, jobs: Sequence[Job], actor: PopulationActor, address: Address, recorder: Recorder
    ) -> EpisodeBatch | None:
        """
        :param jobs: in the order in which their transitions are stored
        :param actor: acts for the candidates
        :param address: root of all random numbers of this phase
        :param recorder: counts, calls callbacks and stores
        :return: the episodes, ``None`` if the recorder stopped the phase
        """


ActionMap = Callable[[np.ndarray], np.ndarray]
"""From [-1, 1] to the environment's box."""
