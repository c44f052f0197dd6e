"""``learn`` and the generation line, written once for all algorithms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_erl.common.checks import check_range
from sb3_erl.common.saving import AddressedMixin
from sb3_erl.common.timing import Stopwatch
from sb3_erl.evaluation.base import EpisodeBatch, Job, PopulationActor, Transition
from sb3_erl.evaluation.vectorized import VectorizedEvaluator

SelfGenerational = TypeVar("SelfGenerational", bound="GenerationalMixin")


class GenerationalMixin(AddressedMixin):
    """
    What both bases share: the loop over generations and evaluation phases with callbacks.

    Stands before an SB3 base class in the method resolution order.
    """

    pop_size: int
    n_eval_episodes: int
    n_generations: int
    """Finished generations over the life of the model; ``reset_num_timesteps`` does not reset it."""
    _callback: BaseCallback | None
    _evaluator: VectorizedEvaluator | None
    _stopwatch: Stopwatch

    def _init_generational(self) -> None:
        """Attributes that survive save and load; call it in ``__init__`` before ``_setup_model``."""
        self._init_addresses()
        self.n_generations = 0
        self._callback = None
        self._evaluator = None
        self._stopwatch = Stopwatch()

    @property
    def _n_jobs(self) -> int:
        """Rollouts in a generation."""
        return self.pop_size * self.n_eval_episodes

    def _check_rollouts(self) -> None:
        """:raises ValueError: if there are no episodes, or environments that would never have one"""
        check_range("n_eval_episodes", self.n_eval_episodes, 1, integer=True)
        if self.env is not None and self.n_envs > self._n_jobs:
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
        :raises ValueError: if ``total_timesteps`` is not positive or there is no environment
        """
        if self.env is None:
            raise ValueError("env must be set before learn(); got None: call set_env(), or load(..., env=...)")
        check_range("total_timesteps", total_timesteps, 0, open_low=True)
        name = type(self).__name__ if tb_log_name is None else tb_log_name
        total_timesteps, callback = self._setup_learn(int(total_timesteps), callback, reset_num_timesteps, name, progress_bar)
        callback.on_training_start(locals(), globals())
        self._evaluator = self._make_evaluator()
        self._stopwatch = Stopwatch()
        while self.num_timesteps < total_timesteps:
            self.phase += 1
            if not self._generation(callback):
                break
            self.n_generations += 1
            if log_interval is not None and self.n_generations % log_interval == 0:
                for part, share in self._stopwatch.shares(rest="evolution").items():
                    self.logger.record(f"time/{part}_share", share)
                self.dump_logs()
        callback.on_training_end()
        return self

    def _generation(self, callback: BaseCallback) -> bool:
        """
        One generation.

        :param callback: called at every vector step
        :return: whether training goes on; ``False`` if a callback or the budget stopped it inside this generation
        """
        raise NotImplementedError

    def _make_evaluator(self) -> VectorizedEvaluator:
        assert self.env is not None, "You must set the environment before calling learn()"
        shape = self.action_space.shape
        assert shape is not None
        return VectorizedEvaluator(self.env, self._vec_normalize_env, self._to_environment, shape)

    def _to_environment(self, actions: np.ndarray) -> np.ndarray:
        """
        What SB3's ``predict`` does with a network's output.

        :param actions: ``(n_envs, *action_shape)`` as the actors of this class give them
        :return: actions that the environment takes
        """
        if not isinstance(self.action_space, spaces.Box):
            return actions.astype(np.int64)
        if self.policy.squash_output:
            return self.policy.unscale_action(actions)
        return np.clip(actions, self.action_space.low, self.action_space.high)

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
        if episodes is not None and is_last:
            callback.on_rollout_end()
        return episodes

    # ---------------------------------------------------------------- what the evaluator reports

    def after_step(self, variables: dict[str, Any], running: np.ndarray) -> bool:
        """Count a vector step and ask the callbacks; see :class:`~sb3_erl.evaluation.base.Recorder`."""
        assert self._callback is not None
        self.num_timesteps += int(running.sum())
        self._last_obs = variables["new_obs"]
        self._callback.update_locals(variables)
        if not self._callback.on_step():
            return False
        busy = np.flatnonzero(running)
        self._update_info_buffer([variables["infos"][i] for i in busy], variables["dones"][busy])
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

    def store(self, job: Job, transitions: Sequence[Transition]) -> None:
        """Nothing to store without a replay buffer."""

    # ---------------------------------------------------------------- logging

    def _log_population(self, fitness: np.ndarray) -> None:
        finite = fitness[np.isfinite(fitness)]
        for name in ("max", "mean", "std"):
            value = getattr(finite, name)() if len(finite) else np.nan
            self.logger.record(f"population/fitness_{name}", float(value))
