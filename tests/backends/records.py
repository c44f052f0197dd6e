"""A recorder and an actor with which evaluators run without an algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_erl.buffers.rollout_steps import Steps
from sb3_erl.core.observations import copied
from sb3_erl.core.seeding import Address
from sb3_erl.remote.evaluator import RemoteEvaluator
from sb3_erl.rollouts.actions import ToEnvironment
from sb3_erl.rollouts.jobs import Episode, EpisodeBatch, EpisodeRecord, Job, PopulationActor, Summarizer
from sb3_erl.rollouts.vectorized import VectorizedEvaluator

SHOWN = ("dones", "rewards", "actions", "new_obs")


class Record:
    """Keeps what an evaluator reports; can stop it after some vector steps; allows some steps to be counted unobserved."""

    def __init__(
        self,
        stop_after: int | None = None,
        budget: int | None = None,
        n_unobserved: int = 0,
        summarizer: Summarizer | None = None,
        needs: Sequence[str] = ("rewards",),
        reads_infos: bool = True,
    ):
        self.stop_after, self.budget, self.n_unobserved_steps_allowed = stop_after, budget, n_unobserved
        self.summarizer, self.needs, self.reads_infos = summarizer, frozenset(needs), reads_infos
        self.unobserved: list[int] = []
        self.episodes = self.shown = 0
        self.running: list[np.ndarray] = []
        self.variables: list[dict[str, Any]] = []
        self.stored: list[tuple[Job, Any]] = []
        self.discarded: list[Job] = []

    @property
    def n_timesteps(self) -> int:
        return int(sum(running.sum() for running in self.running)) + sum(self.unobserved)

    @property
    def has_budget(self) -> bool:
        return self.has_budget_after(0)

    def has_budget_after(self, n_steps: int) -> bool:
        return self.budget is None or self.n_timesteps + n_steps < self.budget

    def count_unobserved_steps(self, n_steps: int, n_envs: int = 1) -> None:
        self.unobserved.append(n_steps * n_envs)
        self.n_unobserved_steps_allowed -= n_steps * n_envs

    def after_step(self, variables: dict[str, Any], running: np.ndarray) -> bool:
        self.running.append(running.copy())
        self.variables.append({key: copied(variables[key]) for key in SHOWN if key in variables})
        self.episodes += sum("episode" in info for info, runs in zip(variables["infos"], running, strict=True) if runs)
        self.shown += sum("episode" in info for info in variables["infos"])
        return len(self.running) != self.stop_after

    def store(self, job: Job, summary: Any) -> None:
        self.stored.append((job, list(summary) if isinstance(summary, Steps) else summary))

    def discard(self, job: Job, steps: Steps) -> None:
        self.discarded.append(job)


def act(observations: np.ndarray, candidates: Sequence[int]) -> np.ndarray:
    """A different linear policy for each candidate."""
    scale = np.array(candidates, dtype=np.float32)[:, None] + 1
    return np.tanh(observations.reshape(len(observations), -1)[:, :2] * scale).astype(np.float32)


def evaluate(
    env: VecEnv,
    jobs: Sequence[Job],
    record: Record | None = None,
    actor: PopulationActor = act,
    remote: RemoteEvaluator | None = None,
) -> tuple[EpisodeBatch | None, Record]:
    """
    :param env: environments, not stepped with a remote evaluator
    :param jobs: what runs
    :param record: takes the reports
    :param actor: acts for all candidates
    :param remote: runs the jobs, ``None`` for the default back-end
    :return: the episodes and the record
    """
    record = Record() if record is None else record
    to_environment = ToEnvironment(env.action_space, squashed=True)
    if remote is not None:
        remote.bind(env, to_environment)
        return remote.evaluate(jobs, actor, Address(7, 1), record), record
    normalizer = env if isinstance(env, VecNormalize) else None
    evaluator = VectorizedEvaluator(env, normalizer, to_environment, env.action_space.shape or ())
    return evaluator.evaluate(jobs, actor, Address(7, 1), record), record


def assert_same_episodes(ours: EpisodeBatch | None, theirs: EpisodeBatch | None) -> None:
    """All fields are equal, to the last bit, and the parts that were recorded."""
    assert ours is not None and theirs is not None and len(ours.episodes) == len(theirs.episodes) > 0
    for one, other in zip(ours.episodes, theirs.episodes, strict=True):
        for part in fields(Episode):
            if part.name not in ("job", "record"):
                np.testing.assert_equal(getattr(one, part.name), getattr(other, part.name), part.name)
        assert one.job.candidate == other.job.candidate and (one.record is None) == (other.record is None)
        for part in fields(EpisodeRecord) if one.record is not None else ():
            np.testing.assert_equal(getattr(one.record, part.name), getattr(other.record, part.name), part.name)


def transitions(record: Record) -> list[Any]:
    """All transitions that were stored, in order."""
    return [step for _, steps in record.stored for step in steps]


def table(record: Record) -> list[tuple[Any, ...]]:
    """Everything that was stored, in order, as plain values."""
    return [
        (job.candidate, job.episode, *(np.asarray(part).tolist() for part in step[:5]), "TimeLimit.truncated" in step.info)
        for job, steps in record.stored
        for step in steps
    ]
