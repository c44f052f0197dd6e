"""A job and what is recorded of it while it waits for an environment slot, runs in one, and waits to be stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sb3_erl.buffers.rollout_steps import TRUNCATED, StepRecorder, Steps
from sb3_erl.core.observations import Observation, copied
from sb3_erl.rollouts.jobs import EPISODE_PARTS, Episode, EpisodeRecord, Job, Recorder

STEP_PARTS = frozenset({"actions", "observations", "infos"})
"""Parts of an episode that are read from its steps."""


@dataclass
class SlotJob:
    """
    A job in a slot, or waiting for one, or waiting to be stored.

    :param job: the job
    :param needs: parts that the episode carries
    :param keeps_steps: whether all its steps are recorded, not the last one only
    :param keeps_infos: whether the infos of all its steps are recorded, not that of the last one only
    :param keeps_last: whether the episode has the last observation
    """

    job: Job
    needs: frozenset[str]
    keeps_steps: bool
    keeps_infos: bool
    keeps_last: bool
    rewards: list[float] = field(default_factory=list)
    recorder: StepRecorder | None = None
    episode: Episode | None = None

    @classmethod
    def of(cls, job: Job, recorder: Recorder) -> SlotJob:
        """
        :param job: a job that was not begun
        :param recorder: says what is to be recorded of it
        :return: the job, ready for a slot
        """
        summarizer, needs = recorder.summarizer, recorder.needs
        keeps_steps = summarizer is None or summarizer.needs_steps(job) or not needs.isdisjoint(STEP_PARTS)
        keeps_last = summarizer is None or not needs.isdisjoint(("observations", "behavior"))
        keeps_infos = keeps_steps and (summarizer is not None or recorder.reads_infos or "infos" in needs)
        return cls(job, needs, keeps_steps, keeps_infos, keeps_last)

    @property
    def is_at_horizon(self) -> bool:
        """Whether the job ends after the last step that was taken."""
        return self.job.horizon is not None and len(self.rewards) >= self.job.horizon

    @property
    def raw_rewards(self) -> np.ndarray:
        """``(T,)``, rounded as DummyVecEnv rounds them; SubprocVecEnv does not."""
        with np.errstate(over="ignore"):  # in an episode that failed
            return np.array(self.rewards, dtype=np.float32).astype(np.float64)

    def steps(self) -> Steps:
        """The steps that were recorded; if the episode has not ended, the rollout is abandoned here."""
        if self.recorder is None:
            return Steps.none()
        steps = self.recorder.steps(self.raw_rewards, self.episode is not None)
        return steps.until(len(steps))

    def begin(self, first: Observation, action_shape: tuple[int, ...]) -> None:
        """
        Begin to record.

        :param first: first observation, as replay buffers store it
        :param action_shape: shape of one action
        """
        if self.keeps_steps:
            self.recorder = StepRecorder(first, action_shape)

    def record_last(
        self, before: Observation, action: np.ndarray, last_original: Observation, info: dict[str, Any], done: bool
    ) -> None:
        """
        Record the last step.

        :param before: observation before it, as replay buffers store it
        :param action: the action that was taken
        :param last_original: observation after it, as replay buffers store it
        :param info: of this step
        :param done: whether the environment ended the episode, not the job's horizon
        """
        if self.recorder is None:
            self.recorder = StepRecorder(before, np.shape(action), first=len(self.rewards) - 1, capacity=1)
        if not done:  # abandoned, which a buffer takes as a time limit
            info = {**info, TRUNCATED: True}
        self.recorder.add(action, last_original, info)

    def end(
        self, last: Observation, terminated: bool, cut: bool, behavior: np.ndarray | None = None, failure: str = ""
    ) -> None:
        """
        Make the episode; the arguments are those of :class:`~sb3_erl.rollouts.jobs.Episode`.

        :param last: observation after the last step, or the first one, as the policy sees it
        """
        rewards = self.raw_rewards
        steps = Steps.none() if self.recorder is None else self.recorder.steps(rewards, done=True)
        record = EpisodeRecord.of(steps, rewards, self.needs)
        kept = copied(last) if self.keeps_last else None
        self.episode = Episode.from_rewards(self.job, rewards, terminated, cut, kept, behavior, failure, record)


def check_needs(needs: frozenset[str]) -> None:
    """:raises ValueError: if episodes do not have one of these parts"""
    unknown = sorted(set(needs) - EPISODE_PARTS)
    if unknown:
        raise ValueError(f"needs must be some of {sorted(EPISODE_PARTS)}; got {unknown}")
