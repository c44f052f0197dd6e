"""``learn`` and the generation line, written once for all algorithms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_erl.buffers.rollout_steps import Steps
from sb3_erl.core.checks import check_learn, check_range
from sb3_erl.core.stopwatch import Stopwatch
from sb3_erl.remote.choice import EvaluatorChoice, check_evaluator, remote_evaluator
from sb3_erl.rollouts.actions import ToEnvironment
from sb3_erl.rollouts.jobs import EpisodeBatch, Evaluator, Job, NoSummary, PopulationActor, Summarizer
from sb3_erl.rollouts.soundness import FailureCount, environments_watched
from sb3_erl.rollouts.vectorized import VectorizedEvaluator
from sb3_erl.runs.saving import AddressedMixin

if TYPE_CHECKING:
    from sb3_erl.remote.evaluator import RemoteEvaluator

SelfGenerational = TypeVar("SelfGenerational", bound="GenerationalMixin")


class GenerationalMixin(AddressedMixin):
    """
    What both bases share: the loop over generations and evaluation phases with callbacks.

    Stands before an SB3 base class in the method resolution order.
    """

    pop_size: int
    n_eval_episodes: int
    evaluator: EvaluatorChoice
    n_generations: int
    """Finished generations over the life of the model; ``reset_num_timesteps`` does not reset it."""
    _callback: BaseCallback | None
    _evaluator: Evaluator | None
    _stopwatch: Stopwatch
    _failures: FailureCount

    def _init_generational(self) -> None:
        """Attributes that survive save and load; call it in ``__init__`` before ``_setup_model``."""
        self._init_addresses()
        self.n_generations = 0
        self._callback = None
        self._evaluator = None
        self._stopwatch = Stopwatch()
        self._failures = FailureCount(1)

    @property
    def _n_jobs(self) -> int:
        """Rollouts in a generation."""
        return self.pop_size * self.n_eval_episodes

    def _check_rollouts(self) -> None:
        """:raises ValueError: if there are no episodes, or environments that would never have one, or nobody to run them"""
        check_range("n_eval_episodes", self.n_eval_episodes, 1, integer=True)
        check_evaluator(self.evaluator)
        if self.env is not None and self.evaluator == "vec" and self.n_envs > self._n_jobs:
            raise ValueError(
                f"env must have at most as many environments as a generation has rollouts: n_envs={self.n_envs}, but "
                f"{self._n_jobs} rollouts with pop_size={self.pop_size} and n_eval_episodes={self.n_eval_episodes}; "
                "lower n_envs or raise pop_size"
            )

    # ---------------------------------------------------------------- the loop

    def learn(
        self: SelfGenerational,
        total_timesteps: float,
        callback: MaybeCallback = None,
        log_interval: int | None = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfGenerational:
        """
        Train for a number of environment steps, counted over population and learner.

        Stops exactly at ``total_timesteps`` with one environment, also inside an episode; the unfinished generation is
        then dropped: its transitions stay in the replay buffer and its steps count, but nothing is learned from it.

        :param total_timesteps: environment steps; floats such as ``1e6`` are fine
        :param callback: called at every vector step
        :param log_interval: generations between two log tables, ``None`` for no automatic log
        :param tb_log_name: name of the TensorBoard run, the class name by default
        :param reset_num_timesteps: whether to count from 0 again
        :param progress_bar: show a progress bar (needs tqdm and rich)
        :return: the model
        :raises ValueError: if ``total_timesteps`` is not positive, or the environment is none, closed or gives wrong shapes
        :raises WorkerError: if an environment in another process failed, see ``docs/faults.md``
        :raises FailedEpisodesError: if as many episodes in a row failed as a generation has
        """
        check_learn(self, total_timesteps, callback, log_interval)
        name = type(self).__name__ if tb_log_name is None else tb_log_name
        with environments_watched(self.env), self._learning():
            total_timesteps, callback = self._begin_learn(total_timesteps, callback, reset_num_timesteps, name, progress_bar)
            callback.on_training_start(locals(), globals())
            self._evaluator = self._make_evaluator()
            self._stopwatch = Stopwatch()
            self._run_generations(total_timesteps, callback, log_interval)
            callback.on_training_end()
        return self

    def _run_generations(self, total_timesteps: int, callback: BaseCallback, log_interval: int | None) -> None:
        self._failures = FailureCount(self._n_jobs)
        while self.num_timesteps < total_timesteps:
            self._at_boundary()
            self.phase += 1
            if not self._generation(callback):
                return
            self.n_generations += 1
            if log_interval is not None and self.n_generations % log_interval == 0:
                for part, share in self._stopwatch.shares(rest="evolution").items():
                    self.logger.record(f"time/{part}_share", share)
                self.dump_logs()

    def _generation(self, callback: BaseCallback) -> bool:
        """
        One generation.

        :param callback: called at every vector step
        :return: whether training goes on; ``False`` if a callback or the budget stopped it inside this generation
        """
        raise NotImplementedError

    def _make_evaluator(self) -> Evaluator:
        assert self.env is not None, "You must set the environment before calling learn()"
        shape = self.action_space.shape
        assert shape is not None
        to_environment = ToEnvironment(self.action_space, self.policy.squash_output)
        remote = remote_evaluator(self.evaluator, self._evaluator)
        if remote is None:
            return VectorizedEvaluator(self.env, self._vec_normalize_env, to_environment, shape)
        remote.bind(self.env, to_environment)
        return remote

    @property
    def workers(self) -> RemoteEvaluator | None:
        """The evaluator with workers, to add some, remove some or ``close()`` it; ``None`` without, or before ``learn``."""
        remote: Any = None if isinstance(self._evaluator, VectorizedEvaluator) else self._evaluator
        return remote

    def _evaluate(
        self,
        jobs: Sequence[Job],
        actor: PopulationActor,
        callback: BaseCallback,
        is_first: bool = True,
        is_last: bool = True,
    ) -> EpisodeBatch | None:
        """
        Run jobs with callbacks, counters and buffer attached.

        :param jobs: with numbers of candidates that no other call of this generation uses
        :param actor: acts for the candidates
        :param callback: called at every vector step
        :param is_first: whether callbacks see the start of a rollout; all calls of a generation are one rollout to them
        :param is_last: whether callbacks see its end
        :return: the episodes, ``None`` if a callback or the budget stopped the phase
        """
        assert self._evaluator is not None
        if not self.has_budget:
            return None
        self.policy.set_training_mode(False)
        if is_first:
            callback.on_rollout_start()
        self._callback = callback
        try:
            with self._stopwatch.measure("evaluation"):
                episodes = self._evaluator.evaluate(jobs, actor, self.address, self)
        finally:
            self._callback = None
        n_failed = 0 if episodes is None else self._failures.look_at(episodes.episodes)
        if n_failed > 0:
            self.logger.record("rollout/failed_episodes", n_failed)
        if episodes is not None and is_last:
            callback.on_rollout_end()
        return episodes

    # ---------------------------------------------------------------- what the evaluator reports

    def after_step(self, variables: dict[str, Any], running: np.ndarray) -> bool:
        """Count a vector step and ask the callbacks; see :class:`~sb3_erl.rollouts.jobs.Recorder`."""
        assert self._callback is not None
        self.num_timesteps += int(running.sum())
        self._last_obs = variables.get("new_obs", self._last_obs)
        self._callback.update_locals(variables)
        if not self._callback.on_step():
            return False
        busy = np.flatnonzero(running)
        infos = [variables["infos"][i] for i in busy]
        self._update_info_buffer([info if _is_finite(info) else {} for info in infos], variables["dones"][busy])
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        self._after_episodes(int(variables["dones"].sum()))
        return True

    @property
    def has_budget(self) -> bool:
        """Whether the current ``learn`` may take further steps."""
        return self.num_timesteps < self._total_timesteps

    def _after_episodes(self, n_episodes: int) -> None:
        """Count finished episodes, as SB3's off-policy classes do."""
        self._episode_num += n_episodes

    @property
    def n_unobserved_steps_allowed(self) -> int:
        """See :class:`~sb3_erl.rollouts.jobs.Recorder`."""
        if self._callback is None or not _is_idle(self._callback):
            return 0
        return max(0, self._total_timesteps - self.num_timesteps - 1)

    def count_unobserved_steps(self, n_steps: int, n_envs: int = 1) -> None:
        """Count steps that no callback observes; see :class:`~sb3_erl.rollouts.jobs.Recorder`."""
        assert self._callback is not None
        self.num_timesteps += n_steps * n_envs
        self._callback.n_calls += n_steps

    @property
    def summarizer(self) -> Summarizer | None:
        """Makes of each job what :meth:`store` gets: nothing without a replay buffer."""
        return NoSummary()

    @property
    def needs(self) -> frozenset[str]:
        """Parts that episodes carry; see :class:`~sb3_erl.rollouts.jobs.Recorder`."""
        return frozenset()

    def store(self, job: Job, summary: Any) -> None:
        """Take what :attr:`summarizer` made of a job; nothing to store without a replay buffer."""

    def discard(self, job: Job, steps: Steps) -> None:
        """Nothing of a job that failed is kept."""

    # ---------------------------------------------------------------- logging

    def _log_population(self, fitness: np.ndarray) -> None:
        finite = fitness[np.isfinite(fitness)]
        for name in ("max", "mean", "std"):
            value = getattr(finite, name)() if len(finite) else np.nan
            self.logger.record(f"population/fitness_{name}", float(value))


def _is_finite(info: dict[str, Any]) -> bool:
    """Whether the episode that Monitor tells of, if any, has a return that can enter a mean."""
    return bool(np.isfinite(info.get("episode", {}).get("r", 0.0)))


def _is_idle(callback: BaseCallback) -> bool:
    """Whether a callback does nothing: the one that SB3 makes of ``None``, or an empty list."""
    if type(callback) is CallbackList:
        return not callback.callbacks
    return type(callback) is ConvertCallback and callback.callback is None
