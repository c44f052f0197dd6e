"""SB3's own rollout loop with episodes that have an address: each begins with a seed of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.preprocessing import get_action_dim

from sb3_erl.core.seeding import Stream
from sb3_erl.engine.learner_host import LearnerHostMixin
from sb3_erl.engine.old_mixins import SafeBufferMixin
from sb3_erl.rollouts.exploration import UniformExploration
from sb3_erl.rollouts.jobs import Explorer
from sb3_erl.rollouts.slot_reset import SlotResetter
from sb3_erl.rollouts.soundness import NormalizerGuard, check_finite, check_shape


class StepwiseOffPolicyAlgorithm(SafeBufferMixin, LearnerHostMixin, OffPolicyAlgorithm):
    """
    A single learner that collects step by step, as SB3's off-policy classes do.

    Every episode begins with a reset whose seed derives from the run's seed and the episode's number, and so does its
    exploration; ``learn`` begins with new episodes. An episode is random as a whole or follows the policy as a whole: it
    follows the policy if more than ``learning_starts`` steps were stored when it began.

    A reward or an observation that is not finite is an error, before the step is stored: every step is learned from.
    """

    def _init_stepwise(self) -> None:
        """Attributes that survive save and load; call it in ``__init__`` before ``_setup_model``."""
        self._init_addresses()
        self.n_begun = 0
        """Episodes begun over the life of the model, each of them an address of random numbers."""
        self.n_stored = 0
        """Environment steps stored over the life of the model; ``reset_num_timesteps`` does not reset it."""
        self._resetter: SlotResetter | None = None
        self._guard: NormalizerGuard | None = None

    # ---------------------------------------------------------------- what a subclass hears

    def _episode_begins(self, index: int) -> None:
        """An episode that follows the policy begins in this environment."""

    def _episode_is_cut(self, index: int) -> None:
        """The episode in this environment, if one runs, is cut off from outside."""

    def _steps_taken(self, n_steps: int) -> None:
        """So many environments took a step with the policy."""

    def _episode_ends(self, index: int, total_reward: float) -> None:
        """An episode ended in this environment, with this undiscounted raw return."""

    def _exploration(self) -> Explorer | None:
        """Exploration of episodes that follow the policy, ``None`` for none."""
        raise NotImplementedError

    # ---------------------------------------------------------------- episodes

    def _begin_rollouts(self) -> None:
        """To be called in ``learn`` after ``_setup_learn``."""
        assert self.env is not None
        self._resetter, self._guard = SlotResetter(self.env), NormalizerGuard(self._vec_normalize_env)
        self._cut_episodes()

    def _forget_episodes(self) -> None:
        self._ended = list(range(self.n_envs))
        self._explorers: list[Explorer | None] = [None] * self.n_envs
        self._uses_policy = np.zeros(self.n_envs, dtype=bool)
        self._returns = np.zeros(self.n_envs)

    def _cut_episodes(self) -> None:
        """Begin new episodes everywhere; the transition that was stored last was the end of its episode."""
        buffer = self.replay_buffer
        assert buffer is not None
        if buffer.size() > 0 and buffer.handle_timeout_termination:
            last = buffer.pos - 1
            running = buffer.dones[last] == 0
            buffer.dones[last, running] = buffer.timeouts[last, running] = 1
        for index in range(self.n_envs):
            self._episode_is_cut(index)
        self._forget_episodes()

    def _between_steps(self) -> None:
        """A moment to save the run, if no episode runs; or if none was found for long, episodes are cut."""
        has_end = len(self._ended) == self.n_envs
        if not has_end and any(checkpointer.is_overdue for checkpointer in self._checkpointers):
            self._cut_episodes()
            has_end = True
        if has_end:
            self._at_boundary()

    def _begin_episode(self, index: int) -> None:
        """Reset an environment with a seed of its own; from here on it is random or it uses the policy."""
        assert self._resetter is not None
        self.n_begun += 1
        observation, original = self._resetter(index, self.address.seed(Stream.ENVIRONMENT, self.n_begun))
        check_shape("observations", observation, self.observation_space.shape or ())
        check_finite(np.asarray(original))
        self._last_obs = np.array(self._last_obs)
        self._last_obs[index] = observation
        if self._vec_normalize_env is not None:
            self._last_original_obs = np.array(self._last_original_obs)
            self._last_original_obs[index] = original
        self._uses_policy[index] = self.n_stored > self.learning_starts
        self._returns[index] = 0.0
        explorer = self._exploration() if self._uses_policy[index] else UniformExploration()
        self._explorers[index] = explorer
        if explorer is not None:
            explorer.begin(self.address.sequence(Stream.EXPLORATION, self.n_begun))
        if self._uses_policy[index]:
            self._episode_begins(index)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        for index in self._ended:
            self._begin_episode(index)
        self._ended = []
        observations = np.asarray(self._last_obs)
        scaled = np.zeros((n_envs, get_action_dim(self.action_space)), dtype=np.float32)
        if self._uses_policy.any():
            with th.no_grad():
                scaled = self.actor(self.policy.obs_to_tensor(observations)[0]).cpu().numpy()
        for index, explorer in enumerate(self._explorers):
            if explorer is not None:
                scaled[index] = explorer(observations[index], scaled[index])
        scaled = scaled.reshape(n_envs, *self.action_space.shape)  # type: ignore[misc]
        assert self._guard is not None
        self._guard.keep()
        return self.policy.unscale_action(scaled), scaled

    def _check_step(self, new_obs: Any, reward: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]) -> None:
        """:raises ValueError: if the step that was just taken is not finite or has another shape"""
        assert self._guard is not None
        shape, normalizer = self.observation_space.shape or (), self._vec_normalize_env
        check_shape("observations", new_obs, (self.n_envs, *shape))
        check_shape("rewards", reward, (self.n_envs,))
        self._guard.restore()
        observations: Any = new_obs if normalizer is None else normalizer.get_original_obs()
        rewards = reward if normalizer is None else normalizer.get_original_reward()
        for index in range(self.n_envs):
            last = infos[index].get("terminal_observation", observations[index]) if dones[index] else observations[index]
            check_shape("observations", last, shape)
            check_finite(np.asarray(last), float(rewards[index]))

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: Any,
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        self._check_step(new_obs, reward, dones, infos)
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        normalizer = self._vec_normalize_env
        raw = reward if normalizer is None else normalizer.get_original_reward()
        self._returns += np.asarray(raw, dtype=np.float32)  # DummyVecEnv rounds so, SubprocVecEnv does not
        self.n_stored += self.n_envs
        self._steps_taken(int(self._uses_policy.sum()))
        self._ended = [int(index) for index in np.flatnonzero(dones)]
        for index in self._ended:
            self._episode_ends(index, float(self._returns[index]))

    def _learning_sequence(self) -> np.random.SeedSequence:
        return self.address.sequence(Stream.LEARNING, self._n_updates)

    def _excluded_save_params(self) -> list[str]:
        own = ["_resetter", "_guard", "_explorers", "_ended", "_uses_policy", "_returns"]
        return [*super()._excluded_save_params(), *own]
