"""Rollout jobs and what comes back from them, the same for every back-end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces

from sb3_erl.buffers.rollout_steps import Steps
from sb3_erl.buffers.rollout_steps import Transition as Transition  # part of what back-ends share
from sb3_erl.core.seeding import Address


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

    def __reduce__(self) -> tuple[Any, ...]:  # thousands of jobs travel together; without the names of their fields
        return Job, (self.candidate, self.episode, self.horizon, self.explorer, self.address)


@dataclass(frozen=True)
class Episode:
    """
    What came out of a job.

    :param job: what was asked for
    :param rewards: ``(T,)`` raw rewards (before VecNormalize)
    :param last_observation: observation after the last step, as the policy sees it
    :param terminated: the environment ended the episode (not a time limit)
    :param cut: stopped at ``job.horizon`` although the environment would have gone on
    :param behavior: what the environment says of it, see :mod:`sb3_erl.envs.behavior`; ``None`` if it says nothing
    :param failure: why nothing can be made of it, empty if all is well; then its return is NaN and it has no length
    """

    job: Job
    rewards: np.ndarray
    last_observation: np.ndarray
    terminated: bool
    cut: bool
    behavior: np.ndarray | None = None
    failure: str = ""

    @property
    def failed(self) -> bool:
        """Whether nothing can be made of it."""
        return bool(self.failure)

    @property
    def n_steps(self) -> int:
        """Number of steps that were taken."""
        return len(self.rewards)

    @property
    def length(self) -> int:
        """Number of steps that count; they are stored."""
        return 0 if self.failed else self.n_steps

    @property
    def total_reward(self) -> float:
        """Undiscounted return, NaN if it failed."""
        return math.nan if self.failed else float(self.rewards.sum())

    @property
    def sign_sum(self) -> float:
        """Number of positive rewards minus number of negative ones, NaN if it failed."""
        return math.nan if self.failed else float(np.sign(self.rewards).sum())


class EpisodeSummary(Episode):
    """
    An episode that ran elsewhere, where its rewards and observations stayed; everything else is as in :class:`Episode`.

    :param n_steps: number of steps
    :param total_reward: undiscounted return
    :param sign_sum: see :attr:`Episode.sign_sum`
    """

    def __init__(
        self,
        job: Job,
        n_steps: int,
        total_reward: float,
        sign_sum: float,
        terminated: bool,
        cut: bool,
        behavior: np.ndarray | None = None,
        failure: str = "",
    ):
        nothing = np.empty(0)
        super().__init__(job, nothing, nothing, terminated, cut, behavior, failure)
        object.__setattr__(self, "_sums", (n_steps, total_reward, sign_sum))

    _sums: tuple[int, float, float]

    @property
    def n_steps(self) -> int:
        """See :attr:`Episode.n_steps`."""
        return self._sums[0]

    @property
    def total_reward(self) -> float:
        """See :attr:`Episode.total_reward`."""
        return math.nan if self.failed else self._sums[1]

    @property
    def sign_sum(self) -> float:
        """See :attr:`Episode.sign_sum`."""
        return math.nan if self.failed else self._sums[2]


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


class Digest(Protocol):
    """
    What :meth:`Recorder.store` wants of a job. It runs where the episode ran, possibly on another machine, so it can be
    pickled.
    """

    def wants(self, job: Job) -> bool:
        """Whether the steps of this job are needed; of others only the last one is kept."""

    def __call__(self, job: Job, steps: Steps) -> Any:
        """
        :param job: that ran
        :param steps: its steps, or the last of them; none if it did not begin
        :return: for :meth:`Recorder.store`
        """


class NothingToStore:
    """The :class:`Digest` of algorithms that need scores only."""

    def wants(self, job: Job) -> bool:
        """See :class:`Digest`."""
        return False

    def __call__(self, job: Job, steps: Steps) -> None:
        """See :class:`Digest`."""


EPISODE_PARTS = frozenset({"rewards", "actions", "observations", "infos", "behavior"})
"""What :attr:`Recorder.needs` may have."""


class Recorder(Protocol):
    """What an evaluator reports to: the algorithm that owns counters, callbacks and buffer."""

    @property
    def digest(self) -> Digest | None:
        """What :meth:`store` is given of each job, ``None`` for its :class:`Steps` themselves; constant within a phase."""

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

    @property
    def n_free_steps(self) -> int:
        """Environment steps that no callback watches, before one that has to go through :meth:`after_step`."""

    def skip_steps(self, n_steps: int, n_envs: int = 1) -> None:
        """
        Count several vector steps at once.

        :param n_steps: how many
        :param n_envs: how many environments did each of them; together at most :attr:`n_free_steps`
        """

    def store(self, job: Job, digested: Any) -> None:
        """Take what :attr:`digest` made of one job, in the order of the jobs."""

    def drop(self, job: Job, transitions: Sequence[Transition]) -> None:
        """Called instead of :meth:`store` for a job that failed, with its steps or the last of them."""


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


@dataclass(frozen=True)
class ToEnvironment:
    """
    What SB3's ``predict`` does with a network's output; an :data:`ActionMap` that can be sent to other processes.

    :param action_space: of the environment
    :param squashed: whether outputs are in [-1, 1], to be stretched; otherwise they are clipped to the bounds
    """

    action_space: spaces.Space
    squashed: bool

    @cached_property
    def _map(self) -> tuple[np.ndarray, np.ndarray]:
        """Half the span and the lower bound, ``(1, *action_shape)``."""
        space = self.action_space
        assert isinstance(space, spaces.Box)
        return (space.high - space.low)[None] * np.float32(0.5), space.low[None]

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        """
        :param actions: ``(n_envs, *action_shape)`` as the actors of the algorithm give them
        :return: actions that the environment takes
        """
        space = self.action_space
        if not isinstance(space, spaces.Box):
            return actions.astype(np.int64)
        if self.squashed:
            scaled, (half_span, low) = actions + 1.0, self._map
            if scaled.dtype != space.dtype:
                return low + scaled * half_span
            scaled *= half_span
            scaled += low
            return scaled
        return np.minimum(np.maximum(actions, space.low), space.high)  # np.clip is slow on small arrays
