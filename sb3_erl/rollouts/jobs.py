"""Rollout jobs, the episodes that result, and the interfaces between algorithms and evaluators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from sb3_erl.buffers.rollout_steps import Steps
from sb3_erl.core.observations import Observation, copied, take
from sb3_erl.core.seeding import Address


class Explorer(Protocol):
    """Changes the deterministic action of an exploring candidate into the action that is taken."""

    def begin(self, sequence: np.random.SeedSequence) -> None:
        """Start an episode whose random numbers derive from ``sequence``."""

    def __call__(self, observation: Any, action: np.ndarray) -> np.ndarray:
        """
        :param observation: one observation as the policy sees it
        :param action: ``(action_dim,)``, the deterministic action: in [-1, 1], or ``(1,)`` with the index of a discrete action
        :return: ``(action_dim,)``, an action of the same kind
        """


class PopulationActor(Protocol):
    """Acts for all candidates of a generation."""

    def __call__(self, observations: Any, candidates: Sequence[int]) -> np.ndarray:
        """
        Row i does not depend on the other rows, to the last bit.

        :param observations: ``(k, *obs_shape)``, a dict of such arrays for a Dict space
        :param candidates: ``(k,)``, the candidate that acts on each row
        :return: ``(k, action_dim)`` in [-1, 1], or ``(k, 1)`` with indices of discrete actions
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
        """The address of this episode's random numbers within a stream of the phase."""
        return self.candidate if self.address is None else self.address, self.episode

    def __reduce__(self) -> tuple[Any, ...]:  # thousands of jobs are sent together, so without field names
        return Job, (self.candidate, self.episode, self.horizon, self.explorer, self.address)


@dataclass(frozen=True)
class EpisodeRecord:
    """
    What was recorded of an episode of T steps, beside its sums; ``None`` for each part that was not asked for.

    :param rewards: ``(T,)`` float64, raw rewards (before VecNormalize), rounded to float32
    :param actions: ``(T, *action_shape)`` as the replay buffer stores them: in [-1, 1], or indices of discrete actions
    :param observations: ``(T + 1, *obs_shape)`` before VecNormalize, the last one after the last step; a dict of such arrays
        for a Dict space. Empty if the episode failed before its first step
    :param infos: ``T`` infos
    :param last: the last of the observations, if "behavior" is needed; ``None`` if the episode failed before its first step
    """

    rewards: np.ndarray | None = None
    actions: np.ndarray | None = None
    observations: Observation | None = None
    infos: Sequence[dict[str, Any]] | None = None
    last: Observation | None = None

    @classmethod
    def of(cls, steps: Steps, rewards: np.ndarray, needs: frozenset[str]) -> EpisodeRecord | None:
        """
        :param steps: all steps of the episode, or only the last one if ``needs`` has at most rewards
        :param rewards: ``(T,)`` of all steps
        :param needs: parts to record, of :data:`EPISODE_PARTS`
        :return: the record, ``None`` if no part is asked for
        """
        found = {"rewards": rewards, "actions": steps.actions, "observations": steps.observations, "infos": steps.infos}
        chosen: dict[str, Any] = {name: part for name, part in found.items() if name in needs}
        if "behavior" in needs and len(rewards) > 0:
            chosen["last"] = copied(take(steps.observations, -1))
        return cls(**chosen) if chosen else None


@dataclass(frozen=True)
class Episode:
    """
    The result of a job, the same from every back-end.

    The properties :attr:`rewards`, :attr:`actions`, :attr:`observations` and :attr:`infos` read ``record``.

    :param job: the job
    :param n_steps: number of steps that were taken
    :param total_reward: undiscounted return, NaN if the episode failed
    :param sign_sum: number of positive rewards minus number of negative ones, NaN if the episode failed
    :param terminated: whether the environment ended the episode (not a time limit)
    :param cut: whether it was stopped at ``job.horizon`` although the environment would have gone on
    :param last_observation: observation after the last step, as the policy sees it; ``None`` unless the steps are stored or
        "observations" or "behavior" is needed, see :attr:`Recorder.needs`
    :param behavior: what the environment reports, see :mod:`sb3_erl.envs.behavior`; ``None`` if it reports nothing
    :param failure: why the episode failed, empty if it did not
    :param record: the parts that were needed, ``None`` if none was
    """

    job: Job
    n_steps: int
    total_reward: float
    sign_sum: float
    terminated: bool
    cut: bool
    last_observation: Any = field(default=None, repr=False)
    behavior: np.ndarray | None = None
    failure: str = ""
    record: EpisodeRecord | None = field(default=None, repr=False)

    @classmethod
    def from_rewards(
        cls,
        job: Job,
        rewards: np.ndarray,
        terminated: bool,
        cut: bool,
        last_observation: Observation | None = None,
        behavior: np.ndarray | None = None,
        failure: str = "",
        record: EpisodeRecord | None = None,
    ) -> Episode:
        """
        :param rewards: ``(T,)`` raw rewards, of which the sums are made; the other arguments are the fields
        :return: the episode
        """
        total, signs = (math.nan, math.nan) if failure else (float(rewards.sum()), float(np.sign(rewards).sum()))
        return cls(job, len(rewards), total, signs, terminated, cut, last_observation, behavior, failure, record)

    @property
    def failed(self) -> bool:
        """Whether the episode has no fitness, because something in it was not finite or took too long."""
        return bool(self.failure)

    @property
    def length(self) -> int:
        """Number of steps that count and are stored; none if the episode failed."""
        return 0 if self.failed else self.n_steps

    @property
    def rewards(self) -> np.ndarray:
        """See :class:`EpisodeRecord`."""
        return self._recorded("rewards")

    @property
    def actions(self) -> np.ndarray:
        """See :class:`EpisodeRecord`."""
        return self._recorded("actions")

    @property
    def observations(self) -> Any:
        """See :class:`EpisodeRecord`."""
        return self._recorded("observations")

    @property
    def infos(self) -> Sequence[dict[str, Any]]:
        """See :class:`EpisodeRecord`."""
        return self._recorded("infos")

    def _recorded(self, part: str) -> Any:
        """:raises ValueError: if this part was not recorded"""
        found = getattr(self.record, part, None)
        if found is None:
            raise ValueError(
                f"a fitness that reads episode.{part} must declare that it needs {part!r} (@needs({part!r}), or the attribute "
                f"needs = frozenset({{{part!r}}})); got an episode without it, because only what is needed is recorded"
            )
        return found


@dataclass(frozen=True)
class EpisodeBatch:
    """
    All episodes of a phase in job order.

    :param episodes: one per job
    :param n_timesteps: environment steps that were counted
    """

    episodes: tuple[Episode, ...]
    n_timesteps: int

    def __repr__(self) -> str:
        return f"EpisodeBatch({len(self.episodes)} episodes, n_timesteps={self.n_timesteps})"

    def of(self, candidates: range) -> EpisodeBatch:
        """The episodes of some candidates only."""
        chosen = tuple(episode for episode in self.episodes if episode.job.candidate in candidates)
        return EpisodeBatch(chosen, sum(episode.length for episode in chosen))

    def renumbered(self, first: int) -> EpisodeBatch:
        """The episodes of the candidates from ``first`` on, which are numbered from 0 then."""
        episodes = tuple(_renumbered(episode, first) for episode in self.episodes if episode.job.candidate >= first)
        return EpisodeBatch(episodes, sum(episode.length for episode in episodes))

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


def _renumbered(episode: Episode, first: int) -> Episode:
    """``dataclasses.replace`` twice, in a fifth of the time; there may be ten thousand episodes in a generation."""
    job, moved = episode.job, object.__new__(type(episode))
    vars(moved).update(vars(episode), job=Job(job.candidate - first, job.episode, job.horizon, job.explorer, job.address))
    return moved


class Summarizer(Protocol):
    """Makes of a job's steps what :meth:`Recorder.store` gets; runs where the episode ran, so it must be picklable."""

    def needs_steps(self, job: Job) -> bool:
        """Whether all steps of this job are needed; of the others it gets at least the last one."""

    def __call__(self, job: Job, steps: Steps) -> Any:
        """
        :param job: a job that ran
        :param steps: its steps, or the last of them; none if it did not begin
        :return: the summary for :meth:`Recorder.store`
        """


class NoSummary:
    """The :class:`Summarizer` of algorithms that need scores only."""

    def needs_steps(self, job: Job) -> bool:
        """See :class:`Summarizer`."""
        return False

    def __call__(self, job: Job, steps: Steps) -> None:
        """See :class:`Summarizer`."""


EPISODE_PARTS = frozenset({"rewards", "actions", "observations", "infos", "behavior"})
"""What :attr:`Recorder.needs` may have."""


class Recorder(Protocol):
    """
    What an evaluator reports to: the algorithm with its counters, callbacks and buffer.

    :attr:`summarizer` and :attr:`needs` are constant within a phase.
    """

    @property
    def summarizer(self) -> Summarizer | None:
        """Makes of each job what :meth:`store` gets; ``None`` for the :class:`Steps` themselves."""

    @property
    def needs(self) -> frozenset[str]:
        """
        What episodes carry beside their sums, some of :data:`EPISODE_PARTS`. "behavior" stands for the last observation, of
        which one can be made; what an environment reports is always carried.
        """

    @property
    def reads_infos(self) -> bool:
        """Whether :meth:`store` reads the infos of all :class:`Steps`; if not, those before the last one may be empty."""

    def after_step(self, variables: dict[str, Any], running: np.ndarray) -> bool:
        """
        Called once per vector step, before anything of it is stored.

        :param variables: the evaluator's local variables for callbacks (``new_obs rewards dones infos actions``)
        :param running: ``(n_envs,)``, whether each slot did a step of a job
        :return: whether to continue
        """

    @property
    def has_budget(self) -> bool:
        """Whether further steps may be taken."""

    def has_budget_after(self, n_steps: int) -> bool:
        """Whether further steps may be taken after ``n_steps`` environment steps that are not counted yet."""

    @property
    def n_unobserved_steps_allowed(self) -> int:
        """Number of environment steps that may be counted without :meth:`after_step`, because no callback observes them."""

    def count_unobserved_steps(self, n_steps: int, n_envs: int = 1) -> None:
        """
        Count several vector steps at once.

        :param n_steps: number of vector steps
        :param n_envs: environments that did each of them; the product is at most :attr:`n_unobserved_steps_allowed`
        """

    def store(self, job: Job, summary: Any) -> None:
        """
        Take the result of one job; called in the order of the jobs.

        :param job: a job that ran, possibly not to its end
        :param summary: what :attr:`summarizer` made of it, or its :class:`Steps`
        """

    def discard(self, job: Job, steps: Steps) -> None:
        """
        Called instead of :meth:`store` for a job that failed.

        :param job: the job
        :param steps: its steps, or the last of them, or none
        """


class Evaluator(Protocol):
    """Steps environments for a list of jobs."""

    def evaluate(
        self, jobs: Sequence[Job], actor: PopulationActor, address: Address, recorder: Recorder
    ) -> EpisodeBatch | None:
        """
        :param jobs: in the order in which their transitions are stored
        :param actor: acts for the candidates
        :param address: root of all random numbers of this phase
        :param recorder: counts steps, calls callbacks and stores
        :return: the episodes, ``None`` if the recorder stopped the phase
        """
