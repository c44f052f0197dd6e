"""The rollouts of a generation: which back-end runs them, what they count for, and where their steps go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_erl.buffers.append import append_steps, is_written_directly
from sb3_erl.buffers.rollout_steps import Steps
from sb3_erl.core.checks import check_range
from sb3_erl.core.stopwatch import Stopwatch
from sb3_erl.remote.choice import check_evaluator, remote_evaluator
from sb3_erl.rollouts.actions import ToEnvironment
from sb3_erl.rollouts.jobs import (
    EpisodeBatch,
    Evaluator,
    Job,
    NoSummary,
    PopulationActor,
    Summarizer,
)
from sb3_erl.rollouts.soundness import FailureCount
from sb3_erl.rollouts.vectorized import VectorizedEvaluator

if TYPE_CHECKING:
    from sb3_erl.remote.evaluator import RemoteEvaluator


class StepStore(Protocol):
    """Takes what the jobs of a phase leave behind, in the order of the jobs."""

    @property
    def summarizer(self) -> Summarizer | None:
        """What :meth:`store` is given of each job; ``None`` for its :class:`~sb3_erl.buffers.rollout_steps.Steps`."""

    @property
    def reads_infos(self) -> bool:
        """See :class:`~sb3_erl.rollouts.jobs.Recorder`."""

    def store(self, job: Job, summary: Any) -> None:
        """
        :param job: that was run
        :param summary: what :attr:`summarizer` made of it
        """


class ScoresOnly:
    """A :class:`StepStore` that keeps nothing: episodes are scored and forgotten."""

    summarizer: Summarizer | None = NoSummary()
    reads_infos = False

    def store(self, job: Job, summary: Any) -> None:
        """See :class:`StepStore`."""


class ReplayStore:
    """
    Puts every step into the replay buffer of a hybrid; a :class:`~sb3_erl.engine.rollout_phase.StepStore`.

    :param model: with ``replay_buffer``, ``pop_size`` and ``n_learner_steps``
    """

    summarizer: Summarizer | None = None

    def __init__(self, model: Any):
        self.model = model

    @property
    def reads_infos(self) -> bool:
        """See :class:`StepStore`: replay buffers whose arrays are written directly read the last one only."""
        return not is_written_directly(self.model.replay_buffer)

    def store(self, job: Job, summary: Steps) -> None:
        """See :class:`~sb3_erl.engine.rollout_phase.StepStore`."""
        if not self.model.is_of_population(job):
            self.model.n_learner_steps += len(summary)
        append_steps(self.model.replay_buffer, summary)


class CountingStore(ReplayStore):
    """Counts what it puts into the replay buffer; with ``reward_mode="episodic"`` rewards move to the end of the episode."""

    def store(self, job: Job, summary: Steps) -> None:
        """See :class:`~sb3_erl.engine.rollout_phase.StepStore`."""
        model, n = self.model, len(summary)
        model.n_stored += n
        model.n_env_steps += n
        if model.reward_mode == "episodic" and n > 0:
            rewards = np.zeros(n)
            rewards[-1] = float(sum(summary.rewards.tolist()))
            summary = summary.with_rewards(rewards)
        super().store(job, summary)


class Rollouts:
    """
    Runs the jobs of a model on its back-end, counts their steps and shows them to callbacks.

    This is the :class:`~sb3_erl.rollouts.jobs.Recorder` of every generational class.

    :param model: the algorithm, whose counters, callbacks and environment are used
    """

    def __init__(self, model: Any):
        self._model = model
        self.stopwatch = Stopwatch()
        self._evaluator: Evaluator | None = None
        self._failures = FailureCount(1)
        self._callback: BaseCallback | None = None
        self._store: StepStore = ScoresOnly()
        self.needs: frozenset[str] = frozenset()
        """What the episodes of the current phase must carry, see :class:`~sb3_erl.rollouts.jobs.Recorder`."""

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to a call of ``learn``: callback, store, and the environments' slots."""
        return {**vars(self), "_evaluator": self.workers, "_callback": None, "_store": ScoresOnly()}

    def begin(self) -> None:
        """Prepare for a call of ``learn``."""
        self._evaluator = self._make_evaluator()
        self.stopwatch = Stopwatch()
        self._failures = FailureCount(self._model.n_rollouts)

    def _make_evaluator(self) -> Evaluator:
        model = self._model
        assert model.env is not None, "You must set the environment before calling learn()"
        to_environment = ToEnvironment(model.action_space, model.policy.squash_output)
        remote = remote_evaluator(model.evaluator, self._evaluator)
        if remote is None:
            return VectorizedEvaluator(model.env, model.get_vec_normalize_env(), to_environment, model.action_space.shape)
        remote.bind(model.env, to_environment)
        return remote

    @property
    def workers(self) -> RemoteEvaluator | None:
        """The evaluator with workers; ``None`` without, or before ``learn``."""
        remote: Any = None if isinstance(self._evaluator, VectorizedEvaluator) else self._evaluator
        return remote

    def run(
        self,
        jobs: Sequence[Job],
        actor: PopulationActor,
        callback: BaseCallback,
        store: StepStore | None = None,
        needs: frozenset[str] = frozenset(),
        is_first: bool = True,
        is_last: bool = True,
    ) -> EpisodeBatch | None:
        """
        Run jobs with callbacks, counters and store attached.

        :param jobs: with numbers of candidates that no other call of this generation uses
        :param actor: acts for the candidates
        :param callback: called at every vector step
        :param store: takes the steps, or what is made of them; ``None`` to keep nothing
        :param needs: what the episodes must carry, see :data:`~sb3_erl.rollouts.jobs.EPISODE_PARTS`
        :param is_first: whether callbacks see the start of a rollout; all calls of a generation are one rollout to them
        :param is_last: whether callbacks see its end
        :return: the episodes, ``None`` if a callback or the budget stopped the phase
        """
        assert self._evaluator is not None
        if not self.has_budget:
            return None
        model = self._model
        model.policy.set_training_mode(False)
        if is_first:
            callback.on_rollout_start()
        self._callback, self._store, self.needs = callback, store or ScoresOnly(), needs
        try:
            with self.stopwatch.measure("evaluation"):
                episodes = self._evaluator.evaluate(jobs, actor, model.run.address, self)
        finally:
            self._callback, self._store = None, ScoresOnly()
        n_failed = 0 if episodes is None else self._failures.look_at(episodes.episodes)
        if n_failed > 0:
            model.logger.record("rollout/failed_episodes", n_failed)
        if episodes is not None and is_last:
            callback.on_rollout_end()
        return episodes

    # ---------------------------------------------------------------- what the evaluator reports

    def after_step(self, variables: dict[str, Any], running: np.ndarray) -> bool:
        """Count a vector step and ask the callbacks; see :class:`~sb3_erl.rollouts.jobs.Recorder`."""
        model, callback = self._model, self._callback
        assert callback is not None
        model.num_timesteps += int(running.sum())
        model._last_obs = variables.get("new_obs", model._last_obs)
        callback.update_locals(variables)
        if not callback.on_step():
            return False
        indices = np.flatnonzero(running)
        infos = [variables["infos"][i] for i in indices]
        model._update_info_buffer([info if _is_finite(info) else {} for info in infos], variables["dones"][indices])
        model._update_current_progress_remaining(model.num_timesteps, model._total_timesteps)
        model._episode_num += int(variables["dones"].sum())
        if model.run.tables is not None:
            model.run.tables.look()
        return True

    @property
    def has_budget(self) -> bool:
        """Whether the current ``learn`` may take further steps."""
        return self.has_budget_after(0)

    def has_budget_after(self, n_steps: int) -> bool:
        """See :class:`~sb3_erl.rollouts.jobs.Recorder`."""
        return self._model.num_timesteps + n_steps < self._model._total_timesteps

    @property
    def n_unobserved_steps_allowed(self) -> int:
        """See :class:`~sb3_erl.rollouts.jobs.Recorder`."""
        if self._callback is None or not _is_idle(self._callback):
            return 0
        return max(0, self._model._total_timesteps - self._model.num_timesteps - 1)

    def count_unobserved_steps(self, n_steps: int, n_envs: int = 1) -> None:
        """Count steps that no callback observes; see :class:`~sb3_erl.rollouts.jobs.Recorder`."""
        assert self._callback is not None
        self._model.num_timesteps += n_steps * n_envs
        self._callback.n_calls += n_steps

    @property
    def summarizer(self) -> Summarizer | None:
        """See :class:`StepStore`."""
        return self._store.summarizer

    @property
    def reads_infos(self) -> bool:
        """See :class:`StepStore`."""
        return self._store.reads_infos

    def store(self, job: Job, summary: Any) -> None:
        """See :class:`StepStore`."""
        self._store.store(job, summary)

    def discard(self, job: Job, steps: Steps) -> None:
        """Nothing of a job that failed is kept."""


def _is_finite(info: dict[str, Any]) -> bool:
    """Whether the episode that Monitor reports, if any, has a return that can enter a mean."""
    return bool(np.isfinite((info.get("episode") or {}).get("r", 0.0)))


def _is_idle(callback: BaseCallback) -> bool:
    """Whether a callback does nothing with a step: the one that SB3 makes of ``None``, or a list of such."""
    if type(callback) is CallbackList:
        return all(_is_idle(each) for each in callback.callbacks)
    if type(callback) is ConvertCallback:
        return callback.callback is None
    return not getattr(callback, "observes_steps", True)


def time_limit(env: VecEnv) -> int | None:
    """
    :param env: whose first environment is asked
    :return: steps after which its episodes end at the latest, ``None`` if it is not known
    """
    try:
        return getattr(env.get_attr("spec", [0])[0], "max_episode_steps", None)
    except Exception:  # a VecEnv of its own kind may answer in any way
        return None


def check_rollouts(model: Any) -> None:
    """:raises ValueError: if there are no episodes, environments that would never have one, or an unknown back-end"""
    check_range("n_eval_episodes", model.n_eval_episodes, 1, integer=True)
    check_evaluator(model.evaluator)
    if model.env is not None and model.evaluator == "vec" and model.n_envs > model.n_rollouts:
        raise ValueError(
            f"env must have at most as many environments as a generation has rollouts: n_envs={model.n_envs}, but "
            f"{model.n_rollouts} rollouts with pop_size={model.pop_size} and n_eval_episodes={model.n_eval_episodes}; "
            f"lower n_envs or raise {getattr(model, '_rollouts_grow_with', 'pop_size')}"
        )
