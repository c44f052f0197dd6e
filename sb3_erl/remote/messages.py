"""What travels between the main process and workers, and how it is packed."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cloudpickle  # type: ignore[import-untyped]
import numpy as np

from sb3_erl.buffers.rollout_steps import TRUNCATED, Steps
from sb3_erl.core.seeding import Address
from sb3_erl.rollouts.jobs import Digest, Episode, EpisodeSummary, Job, PopulationActor, ToEnvironment

RECORD = np.dtype(
    [("total", "<f8"), ("signs", "<f4"), ("length", "<u4"), ("monitored", "<f8"), ("seconds", "<f4"), ("flags", "u1")]
)
"""An episode of which only scores are wanted: 29 bytes. ``monitored`` and ``seconds`` are what SB3's Monitor says."""
TERMINATED, CUT, TIME_LIMIT, MONITORED = 1, 2, 4, 8
MONITOR_KEYS = {"r", "l", "t"}


@dataclass(frozen=True)
class Phase:
    """
    Everything that workers need beside their environments; sent once per phase.

    :param jobs: all of them, messages then name jobs by their number
    :param actor: acts for the candidates
    :param address: root of the random numbers
    :param digest: see :class:`~sb3_erl.rollouts.jobs.Recorder`
    :param to_environment: from what the actor gives to what the environment takes
    :param step_infos: whether transitions come back with their infos
    """

    jobs: Sequence[Job]
    actor: PopulationActor
    address: Address
    digest: Digest | None
    to_environment: ToEnvironment
    step_infos: bool = True

    def packed(self) -> bytes:
        """:return: the phase as bytes, functions that no module has by value"""
        return cloudpickle.dumps(self, protocol=pickle.HIGHEST_PROTOCOL)


class Answer(NamedTuple):
    """
    What a worker says about consecutive jobs.

    :param phase: number of the phase
    :param first: number of the first job
    :param bodies: what :func:`pack_scores` (one for all jobs) or :func:`pack_transitions` (one per job) made of them
    :param n_done: how many jobs ran to their end
    :param seconds: wall time they took
    :param error: traceback of the job after them, ``None`` if all is well
    """

    phase: int
    first: int
    bodies: Any
    n_done: int
    seconds: float
    error: str | None

    def packed(self) -> bytes:
        """:return: the answer as bytes"""
        return pickle.dumps(tuple(self), protocol=pickle.HIGHEST_PROTOCOL)

    @classmethod
    def unpacked(cls, data: bytes) -> Answer:
        """:return: what :meth:`packed` was called on"""
        return cls(*pickle.loads(data))


@dataclass
class Outcome:
    """
    A job that ran, as the main process sees it.

    :param episode: what came out
    :param stored: for the recorder's ``store``
    :param last_info: info of the last step where steps are not sent
    """

    episode: Episode
    stored: Any = None
    last_info: dict[str, Any] = field(default_factory=dict)

    def step(self, t: int) -> tuple[float, bool, dict[str, Any], np.ndarray | None]:
        """
        :param t: number of the step
        :return: reward, done, info and next observation. Where only scores are sent the last step has the total reward, the
            others 0 and an empty info, and there are no observations
        """
        episode = self.episode
        if isinstance(episode, EpisodeSummary):
            if t + 1 < episode.n_steps:
                return 0.0, False, {}, None
            return episode.total_reward, not episode.cut, self.last_info, None
        transition = self.stored[t]
        done = t + 1 == episode.n_steps and not episode.cut
        return transition.reward, done, transition.info, transition.next_observation

    def stored_until(self, n_steps: int) -> Any:
        """:return: what ``store`` gets of a job that was stopped after some steps; the rest is abandoned"""
        if isinstance(self.episode, EpisodeSummary):
            return None
        return self.stored.until(n_steps)


# -------------------------------------------------------------------- scores only


class Score(NamedTuple):
    """An episode and its last info, on the way to :func:`pack_scores`."""

    episode: Episode
    info: dict[str, Any]
    digest: Any


def pack_scores(scores: Sequence[Score]) -> Any:
    """
    :param scores: of consecutive jobs
    :return: 29 bytes for each of them, and what does not fit into a record: behaviors, digests, unusual infos
    """
    records = np.zeros(len(scores), dtype=RECORD)
    extras: dict[int, tuple[Any, ...]] = {}
    for number, (episode, info, digest) in enumerate(scores):
        flags = TERMINATED * episode.terminated + CUT * episode.cut + TIME_LIMIT * bool(info.get(TRUNCATED, False))
        other = {key: info[key] for key in ("is_success", "episode") if key in info}
        monitored, seconds = 0.0, 0.0
        if set(other.get("episode", ())) == MONITOR_KEYS and other["episode"]["l"] == episode.n_steps:
            own = other.pop("episode")
            monitored, seconds, flags = own["r"], own["t"], flags + MONITORED
        records[number] = (episode.total_reward, episode.sign_sum, episode.n_steps, monitored, seconds, flags)
        if other or digest is not None or episode.behavior is not None or episode.failed:
            extras[number] = (episode.behavior, digest, other, episode.failure)
    return records.tobytes(), extras


def unpack_score(bodies: Any, place: int, job: Job) -> Outcome:
    """
    :param bodies: what :func:`pack_scores` made
    :param place: of the job in it
    :param job: that ran
    :return: the outcome
    """
    packed, extras = bodies
    record = np.frombuffer(packed, dtype=RECORD, count=1, offset=place * RECORD.itemsize)
    total, signs, length, monitored, seconds, flags = record[0].tolist()
    behavior, digest, info, failure = extras.get(place, (None, None, {}, ""))
    info = {**info, TRUNCATED: bool(flags & TIME_LIMIT)}
    if flags & MONITORED:
        info["episode"] = {"r": monitored, "l": length, "t": seconds}
    ends = bool(flags & TERMINATED), bool(flags & CUT)
    return Outcome(EpisodeSummary(job, length, total, signs, *ends, behavior, failure), digest, info)


# -------------------------------------------------------------------- transitions


def pack_transitions(episode: Episode, steps: Steps, step_infos: bool) -> Any:
    """
    :param episode: that ran
    :param steps: all its T steps
    :param step_infos: whether infos before the last one are wanted
    :return: stacked arrays: T + 1 observations, T actions, T rewards; the rest of the episode beside them
    """
    rest = episode.terminated, episode.cut, episode.behavior, episode.failure
    if not steps:  # it failed before its first step
        return None, None, episode.rewards, None, None, (episode.last_observation, *rest)
    observations = steps.observations
    infos: list[dict[str, Any]] = [_brief(info) if step_infos else {} for info in steps.infos[:-1]]
    seen = episode.last_observation
    is_same = seen.dtype == observations.dtype and np.array_equal(seen, observations[-1], equal_nan=seen.dtype.kind == "f")
    return (
        observations,
        steps.actions,
        steps.rewards.astype(np.float32),  # rounded to float32 before
        infos if any(infos) else None,
        steps.infos[-1],
        (None if is_same else seen, *rest),
    )


def unpack_transitions(body: Any, job: Job) -> Outcome:
    """
    :param body: what :func:`pack_transitions` made
    :param job: that it was made of
    :return: the outcome
    """
    observations, actions, short_rewards, brief, last_info, (seen, *ends) = body
    if observations is None:
        return Outcome(Episode(job, short_rewards, seen, *ends), Steps.none())
    rewards = short_rewards.astype(np.float64)
    infos = [{TRUNCATED: False, **(info or {})} for info in brief or [None] * (len(rewards) - 1)]
    last = observations[-1] if seen is None else seen
    steps = Steps(observations, actions, rewards, [*infos, last_info], done=True)
    return Outcome(Episode(job, rewards, last, *ends), steps)


def _brief(info: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in info.items() if key != TRUNCATED or value is not False}
