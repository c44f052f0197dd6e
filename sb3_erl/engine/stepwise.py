"""Base of learners that collect step by step and train between their episodes."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule, TrainFreq, TrainFrequencyUnit

from sb3_erl.core.action_spaces import in_space
from sb3_erl.core.arguments import inherits_arguments
from sb3_erl.core.seeding import Stream
from sb3_erl.engine.off_policy_model import OffPolicyModel
from sb3_erl.learners.assessment import Assessment
from sb3_erl.policies.erl import fitting_policy
from sb3_erl.rollouts.episodes import Episodes
from sb3_erl.rollouts.jobs import Explorer

EVERY_STEP = TrainFreq(1, TrainFrequencyUnit.STEP)


class StepwiseAlgorithm(OffPolicyModel):
    """
    A learner that collects with SB3's rollout loop, and trains after its policy was assessed by its training episodes.

    Every episode begins with a reset whose seed derives from the run's seed and the episode's number, and so does its
    exploration; ``learn`` begins with new episodes. An episode is random as a whole or follows the policy as a whole: it
    follows the policy if more than ``learning_starts`` steps were stored when it began.

    A reward or an observation that is not finite is an error, before the step is stored: every step is learned from.

    Parameters that are not listed here are those of :class:`~sb3_erl.engine.off_policy_model.OffPolicyModel`.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"`` or a policy class; or, without ``env``, the environment or its id
    :param env: environment, vectorized or not, its id, or ``None`` for loading
    :param learning_rate: a float or a schedule of the remaining progress
    :param learning_starts: environment steps of the random warm-up, which lasts to the end of the running episode
    :param batch_size: transitions per update
    :param train_freq: only 1: when to train is decided by the assessment, or without checkpoints after each step
    :param gradient_steps: -1 for one update per environment step with the policy, else updates per training call
    :param replay_buffer_class: an SB3 replay buffer class, that of the published algorithm if ``None``
    :raises ValueError: if an argument is out of range or the environment's spaces are not supported
    """

    own_log_interval = 4
    assessment: Assessment
    actor: Any

    @inherits_arguments("tau", "optimize_memory_usage", "n_steps", learning_starts=25_000, batch_size=256, gradient_steps=-1)
    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 3e-4,
        **kwargs: Any,
    ):
        self.n_begun = 0
        """Episodes begun over the life of the model, each of them an address of random numbers."""
        self.n_stored = 0
        """Environment steps stored over the life of the model; ``reset_num_timesteps`` does not reset it."""
        super().__init__(policy, env, learning_rate, **kwargs)

    # ---------------------------------------------------------------- set-up

    def _convert_train_freq(self) -> None:
        super()._convert_train_freq()
        if self.train_freq != EVERY_STEP:  # type: ignore[comparison-overlap]
            raise ValueError(
                f"train_freq must be 1: {type(self).__name__} trains after an assessment of its policy, or with "
                f"use_checkpoints=False after each step; got {self.train_freq}. Set gradient_steps for more or fewer updates"
            )

    def _setup_model(self) -> None:
        self.policy_class = fitting_policy(self.policy_class, next(iter(self._aliases().values())))
        self._check_arguments()
        super()._setup_model()
        self._setup_parts()
        self._episodes = Episodes(self)

    @abstractmethod
    def _setup_parts(self) -> None:
        """Build learner and assessment; also runs in ``load``, before their tensors are loaded."""

    # ---------------------------------------------------------------- what a subclass decides

    @property
    @abstractmethod
    def _has_checkpoints(self) -> bool:
        """Whether policies are assessed and the best is kept; if not, updates follow each step."""

    @abstractmethod
    def _exploration(self) -> Explorer | None:
        """Exploration of episodes that follow the policy, ``None`` for none."""

    @abstractmethod
    def _keep_checkpoint(self) -> None:
        """The policy was accepted: copy it, before it is trained."""

    def _begin_online(self, callback: BaseCallback) -> bool:
        """Complete what the previous ``learn`` left undone between two assessments; returns whether training goes on."""
        return True

    def _after_training(self, callback: BaseCallback) -> bool:
        """After the updates that followed an assessment or a step; returns whether training goes on."""
        return True

    def _updates_for(self, n_steps: int) -> int:
        """
        :param n_steps: environment steps with the policy for which no updates were made
        :return: updates that are made for them
        """
        return n_steps if self.gradient_steps < 0 else self.gradient_steps

    # ---------------------------------------------------------------- the loops

    def _train_loop(self, total_timesteps: int, callback: BaseCallback, log_interval: int | None) -> None:
        if self.num_timesteps >= total_timesteps:  # killed after its last checkpoint
            return
        with self._episodes.environments():
            self._cut_episodes()
            goes_on = self._begin_online(callback)
            while goes_on and self.num_timesteps < total_timesteps:
                self._between_steps()
                if not self._collect_step(callback, log_interval):
                    break
                n_updates = self._updates_now()
                if n_updates is not None:
                    self.train(n_updates, self.batch_size)
                    goes_on = self._after_training(callback)

    def _collect_step(self, callback: BaseCallback, log_interval: int | None = None) -> bool:
        """One vector step by SB3's loop; returns whether training goes on."""
        assert self.env is not None and self.replay_buffer is not None
        arguments: Any = (self.replay_buffer, None, int(self.learning_starts), log_interval)
        goes_on = self.collect_rollouts(self.env, callback, EVERY_STEP, *arguments).continue_training
        if self.run.tables is not None:
            self.run.tables.look()
        return goes_on

    @property
    def _warm_up(self) -> tuple[int, float, str] | None:
        """See :attr:`OffPolicyModel._warm_up`; what is stored counts, also what a file's buffer held."""
        return None if getattr(self, "offline", False) else (self.n_stored, self.learning_starts, "steps")

    def _updates_now(self) -> int | None:
        """
        End the assessment if it has an outcome; an accepted policy becomes the checkpoint before it is trained.

        :return: updates that follow now, ``None`` before the end of the assessment
        """
        assessment = self.assessment
        if not self._has_checkpoints:
            n_steps, assessment.state["untrained_steps"] = assessment.untrained_steps, 0
            return self._updates_for(n_steps) if n_steps > 0 else None
        outcome = assessment.outcome
        if outcome is None:
            return None
        if outcome == "accept":
            self._keep_checkpoint()
        n_updates = assessment.close(outcome, self._learner_updates, self._updates_for(assessment.untrained_steps))
        self.logger.record("checkpoint/score", assessment.score)
        self.logger.record("checkpoint/episodes_per_assessment", assessment.n_episodes)
        self.logger.record("checkpoint/n_accepted", assessment.state["n_accepted"])
        self.logger.record("checkpoint/n_rejected", assessment.state["n_rejected"])
        return n_updates

    def _between_steps(self) -> None:
        """Save the run if no episode runs; if there was no such moment for long, cut the episodes first."""
        if not self._episodes.none_runs and self.run.is_overdue:
            self._cut_episodes()
        if self._episodes.none_runs:
            self.run.at_boundary()

    def _train_offline(self, total_timesteps: int, callback: BaseCallback, log_interval: int | None) -> None:
        """Updates on a filled replay buffer, counted as timesteps."""
        assert self.replay_buffer is not None
        if self.replay_buffer.size() == 0:
            raise ValueError(
                "replay_buffer must hold transitions for offline learning; it is empty. Fill it with load_replay_buffer(path) "
                "or sb3_erl.buffers.offline.fill_replay_buffer(model, dataset)"
            )
        callback.on_rollout_start()
        while self.num_timesteps < total_timesteps:
            self.run.at_boundary()
            self.train(1, self.batch_size)
            self._after_training(callback)
            self.num_timesteps += 1
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            callback.update_locals(locals())
            if not callback.on_step():
                return
            if log_interval is not None and self.num_timesteps % (1000 * log_interval) == 0:
                self.dump_logs()
        callback.on_rollout_end()

    # ---------------------------------------------------------------- episodes

    def _cut_episodes(self) -> None:
        """Begin new episodes everywhere; the transition that was stored last was the end of its episode."""
        assert self.replay_buffer is not None
        self._episodes.cut(self.replay_buffer)
        for index in range(self.n_envs):
            self.assessment.abandon(index)

    def _count_steps(self, n_steps: int) -> None:
        """So many environments took a step with the policy."""
        self.assessment.step(n_steps)

    def _count_return(self, total_reward: float) -> None:
        """An episode that counts for the assessment ended with this undiscounted return."""
        self.logger.record("rollout/learner_ep_rew_mean", total_reward)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        for index in self._episodes.begin_where_ended():
            self.assessment.begin(index)
        scaled = self._episodes.actions()
        return self.policy.unscale_action(scaled), scaled

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: Any,
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        self._episodes.check(new_obs, reward, dones, infos)
        self._episodes.provide_originals(new_obs)
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        self.n_stored += self.n_envs
        self._count_steps(int(self._episodes.uses_policy.sum()))
        for index, total_reward in self._episodes.step(reward, dones):
            if self.assessment.finish(index, total_reward):
                self._count_return(total_reward)

    # ---------------------------------------------------------------- learning and saving

    def _learning_sequence(self) -> np.random.SeedSequence:
        return self.run.address.sequence(Stream.LEARNING, self._n_updates)

    @property
    def _phase_key(self) -> tuple[int, ...]:
        """Episodes and updates take the place of generations."""
        return self.n_begun, self._n_updates

    @property
    def learner_agent(self) -> BasePolicy:
        """The live actor; has ``predict``, for ``evaluate_policy``."""
        return in_space(self.actor)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "actor", "assessment", "_episodes"]
