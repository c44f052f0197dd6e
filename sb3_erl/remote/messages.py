"""Messages between the main process and workers, and how they are packed."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cloudpickle  # type: ignore[import-untyped]
import numpy as np

from sb3_erl.buffers.rollout_steps import TRUNCATED, Steps
from sb3_erl.core.observations import Observation, take
from sb3_erl.core.seeding import Address
from sb3_erl.rollouts.actions import ToEnvironment
from sb3_erl.rollouts.jobs import Episode, EpisodeRecord, Job, PopulationActor, Summarizer

RECORD = np.dtype(
    [("total", "<f8"), ("signs", "<f4"), ("length", "<u4"), ("monitored", "<f8"), ("seconds", "<f4"), ("flags", "u1")]
)
"""The scores of an episode in 29 bytes. ``monitored`` and ``seconds`` are return and time as SB3's Monitor reports them."""
TERMINATED, CUT, TIME_LIMIT, MONITORED = 1, 2, 4, 8
MONITOR_KEYS = {"r", "l", "t"}


@dataclass(frozen=True)
class PhaseMessage:
    """
    Everything that workers need beside their environments; sent once per phase.

    :param jobs: all jobs of the phase; later messages name jobs by their number
    :param actor: acts for the candidates
    :param address: root of the random numbers
    :param summarizer: see :class:`~sb3_erl.rollouts.jobs.Recorder`, as for ``needs``
    :param needs: parts that episodes carry
    :param to_environment: maps what the actor returns to actions of the environment
    :param step_infos: whether steps come back with all their infos, not the last one only
    :param options: for the resets of the first jobs, empty dicts where a job has none
    """

    jobs: Sequence[Job]
    actor: PopulationActor
    address: Address
    summarizer: Summarizer | None
    needs: frozenset[str]
    to_environment: ToEnvironment
    step_infos: bool = True
    options: Sequence[dict[str, Any]] = ()

    def packed(self) -> bytes:
        """:return: the phase as bytes; functions that cannot be imported are pickled by value"""
        return cloudpickle.dumps(self, protocol=pickle.HIGHEST_PROTOCOL)


class Answer(NamedTuple):
    """
    The results of consecutive jobs.

    :param first: number of the first job
    :param bodies: what :func:`pack_scores` (one for all jobs) or :func:`pack_steps` (one per job) made of them
    :param n_done: number of jobs that ran to their end
    :param seconds: wall time they took
    :param error: traceback of the job after them, ``None`` if none raised an exception
    """

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

    :param episode: its episode
    :param summary: for the recorder's ``store`` where the steps stay with the worker
    :param last_info: info of the last step where the steps stay with the worker
    :param steps: all steps, for the recorder's ``store``; ``None`` where they stay with the worker
    """

    episode: Episode
    summary: Any = None
    last_info: dict[str, Any] = field(default_factory=dict)
    steps: Steps | None = None

    def step(self, t: int) -> tuple[float, bool, dict[str, Any], Observation | None]:
        """
        :param t: number of the step
        :return: reward, done, info and next observation. Where only scores are sent the last step has the total reward, the
            others 0 and an empty info, and there are no observations
        """
        episode = self.episode
        if self.steps is None:
            if t + 1 < episode.n_steps:
                return 0.0, False, {}, None
            return episode.total_reward, not episode.cut, self.last_info, None
        transition = self.steps[t]
        done = t + 1 == episode.n_steps and not episode.cut
        return transition.reward, done, transition.info, transition.next_observation

    def stored_until(self, n_steps: int) -> Any:
        """
        :param n_steps: number of steps that were replayed
        :return: what ``store`` gets then; a job that was stopped before its end has no summary
        """
        if self.steps is None:
            return self.summary if n_steps == self.episode.n_steps else None
        return self.steps if n_steps == self.episode.n_steps else self.steps.until(n_steps)


# -------------------------------------------------------------------- scores only


class Score(NamedTuple):
    """An episode, its last info and its summary, as arguments of :func:`pack_scores`."""

    episode: Episode
    info: dict[str, Any]
    summary: Any


def pack_scores(scores: Sequence[Score]) -> Any:
    """
    :param scores: of consecutive jobs
    :return: 29 bytes for each of them, and apart from these what does not fit into them: behaviors, summaries, unusual infos,
        and the parts of episodes that are needed
    """
    table = np.zeros(len(scores), dtype=RECORD)
    extras: dict[int, tuple[Any, ...]] = {}
    for number, (episode, info, summary) in enumerate(scores):
        flags = TERMINATED * episode.terminated + CUT * episode.cut + TIME_LIMIT * bool(info.get(TRUNCATED, False))
        other = {key: info[key] for key in ("is_success", "episode") if key in info}
        monitored, seconds = 0.0, 0.0
        if set(other.get("episode", ())) == MONITOR_KEYS and other["episode"]["l"] == episode.n_steps:
            own = other.pop("episode")
            monitored, seconds, flags = own["r"], own["t"], flags + MONITORED
        table[number] = (episode.total_reward, episode.sign_sum, episode.n_steps, monitored, seconds, flags)
        parts = (episode.last_observation, episode.behavior, summary, _pack_record(episode.record))
        if other or episode.failed or any(part is not None for part in parts):
            extras[number] = (*parts, other, episode.failure)
    return table.tobytes(), extras


def unpack_score(bodies: Any, place: int, job: Job) -> Outcome:
    """
    :param bodies: what :func:`pack_scores` made
    :param place: of the job in it
    :param job: the job
    :return: the outcome
    """
    packed, extras = bodies
    row = np.frombuffer(packed, dtype=RECORD, count=1, offset=place * RECORD.itemsize)
    total, signs, length, monitored, seconds, flags = row[0].tolist()
    last, behavior, summary, record, info, failure = extras.get(place, (None, None, None, None, {}, ""))
    info = {**info, TRUNCATED: bool(flags & TIME_LIMIT)}
    if flags & MONITORED:
        info["episode"] = {"r": monitored, "l": length, "t": seconds}
    ends = bool(flags & TERMINATED), bool(flags & CUT)
    episode = Episode(job, length, total, signs, *ends, last, behavior, failure, _unpack_record(record))
    return Outcome(episode, summary, info)


def _pack_record(record: EpisodeRecord | None) -> tuple[Any, ...] | None:
    if record is None:
        return None
    rewards = None if record.rewards is None else record.rewards.astype(np.float32)  # rounded to float32 before
    return rewards, record.actions, record.observations, record.infos, record.last


def _unpack_record(packed: tuple[Any, ...] | None) -> EpisodeRecord | None:
    if packed is None:
        return None
    rewards, *others = packed
    return EpisodeRecord(None if rewards is None else rewards.astype(np.float64), *others)


# -------------------------------------------------------------------- all steps


def pack_steps(episode: Episode, steps: Steps, step_infos: bool) -> Any:
    """
    :param episode: that ran
    :param steps: all its T steps
    :param step_infos: whether infos before the last one are sent
    :return: stacked arrays: T + 1 observations, T actions, T rewards; the other fields of the episode beside them
    """
    others = episode.terminated, episode.cut, episode.behavior, episode.failure
    if not steps:  # it failed before its first step
        return None, None, None, None, None, (episode.last_observation, *others)
    infos: list[dict[str, Any]] = [_brief(info) if step_infos else {} for info in steps.infos[:-1]]
    seen, last = episode.last_observation, take(steps.observations, -1)
    return (
        steps.observations,
        steps.actions,
        steps.rewards.astype(np.float32),  # rounded to float32 before
        infos if any(infos) else None,
        steps.infos[-1],
        (None if _is_same(seen, last) else seen, *others),
    )


def unpack_steps(body: Any, job: Job, needs: frozenset[str]) -> Outcome:
    """
    :param body: what :func:`pack_steps` made
    :param job: the job
    :param needs: parts that the episode carries
    :return: the outcome
    """
    observations, actions, short_rewards, brief, last_info, (seen, *others) = body
    if observations is None:
        steps, last = Steps.none(), seen
    else:
        rewards = short_rewards.astype(np.float64)
        infos = [{TRUNCATED: False, **(info or {})} for info in brief or [None] * (len(rewards) - 1)]
        last = take(observations, -1) if seen is None else seen
        steps = Steps(observations, actions, rewards, [*infos, last_info], done=True)
    record = EpisodeRecord.of(steps, steps.rewards, needs)
    terminated, cut, behavior, failure = others
    return Outcome(Episode.from_rewards(job, steps.rewards, terminated, cut, last, behavior, failure, record), steps=steps)


def _is_same(seen: Any, stored: Any) -> bool:
    """Whether the policy's and the buffer's view of an observation are equal, so that one of them is enough."""
    if isinstance(seen, dict):
        return all(_is_same(part, stored[key]) for key, part in seen.items())
    return seen.dtype == stored.dtype and np.array_equal(seen, stored, equal_nan=seen.dtype.kind == "f")


def _brief(info: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in info.items() if key != TRUNCATED or value is not False}
