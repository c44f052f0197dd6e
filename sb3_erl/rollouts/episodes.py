"""The episodes that run in the environments of a step-wise learner: seeded resets, exploration, checks, returns."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.her import HerReplayBuffer

from sb3_erl.core.observations import combine, copied, put, several, shape_of, take
from sb3_erl.core.seeding import Stream
from sb3_erl.rollouts.exploration import UniformExploration
from sb3_erl.rollouts.jobs import Explorer
from sb3_erl.rollouts.slot_envs import SlotEnvs
from sb3_erl.rollouts.soundness import check_finite, check_shape


class Episodes:
    """
    One episode in each environment, with an address each: its reset and its exploration derive from its number.

    :param model: :class:`~sb3_erl.engine.stepwise.StepwiseAlgorithm` whose environments they are; it counts begun episodes as
        ``n_begun`` and stored steps as ``n_stored``
    """

    def __init__(self, model: Any):
        self._model = model
        self._envs: SlotEnvs | None = None
        self._n_claimed = 0
        """Episodes that have begun in the environments and not in :attr:`n_begun`."""
        self._are_ready = False
        """Whether the next episode has begun in each environment."""
        self._is_resuming = self._is_by_method = False
        self.forget()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_envs": None}  # made by each call of learn

    def forget(self) -> None:
        """No episode runs any more."""
        n_envs = self._model.n_envs
        self._ended = list(range(n_envs))
        self._explorers: list[Explorer | None] = [None] * n_envs
        self._returns = np.zeros(n_envs)
        self.uses_policy = np.zeros(n_envs, dtype=bool)
        """Environments whose episode follows the policy; the others' actions are random."""

    @contextmanager
    def environments(self) -> Iterator[None]:
        """Context of a call of ``learn`` in which the environments that the model has now are stepped."""
        env = self._model.env
        assert env is not None
        self._envs, self._are_ready, self._is_resuming = SlotEnvs(env), False, self._model.run.is_resumed
        with self._envs.attached(self._claim):
            yield

    def _claim(self, index: int) -> int | None:
        """The seed of the next episode; ``None`` if the steps that are taken now are the last ones of the budget."""
        model = self._model
        if model.num_timesteps + model.n_envs >= model._total_timesteps:
            self._are_ready = False
            return None
        self._n_claimed += 1
        return model.run.address.seed(Stream.ENVIRONMENT, model.n_begun + self._n_claimed)

    def _begin_all(self) -> None:
        """Begin the next episodes in all environments at once."""
        model, envs, normalizer = self._model, self._envs, self._model.get_vec_normalize_env()
        assert envs is not None
        self._n_claimed = 0
        seeds = [model.run.address.seed(Stream.ENVIRONMENT, model.n_begun + 1 + index) for index in range(model.n_envs)]
        was_seen = self._is_resuming and normalizer is not None and normalizer.training  # before the run was saved
        if was_seen:
            normalizer.training = False
        try:
            model._last_obs, original = envs.begin_all(seeds)
        finally:
            if was_seen:
                normalizer.training = True
        envs.check_originals(model._last_obs)
        if normalizer is not None:
            model._last_original_obs = original
        self._n_claimed, self._are_ready, self._is_resuming = model.n_envs, True, False

    def cut(self, buffer: ReplayBuffer) -> None:
        """
        End all episodes, which are stored as truncated.

        :param buffer: has their last transitions
        """
        if isinstance(buffer, HerReplayBuffer):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The last trajectory in the replay buffer will be truncated")
                buffer.truncate_last_trajectory()
        elif buffer.size() > 0 and buffer.handle_timeout_termination:
            last = buffer.pos - 1
            running = buffer.dones[last] == 0
            buffer.dones[last, running] = buffer.timeouts[last, running] = 1
        if not (self._are_ready and self.none_runs):
            self._begin_all()
        self.forget()

    @property
    def none_runs(self) -> bool:
        """Whether the next step begins an episode in every environment."""
        return len(self._ended) == self._model.n_envs

    def begin_where_ended(self) -> Iterator[int]:
        """:return: environments in which an episode that follows the policy has begun, each right after its beginning"""
        assert self._envs is not None
        self._is_by_method = self._envs.by_method and not self._are_ready
        for index in self._ended:
            self._begin(index)
            if self.uses_policy[index]:
                yield index
        self._ended, self._n_claimed = [], 0
        self._are_ready = not self._envs.by_method

    def _begin(self, index: int) -> None:
        model, normalizer = self._model, self._model.get_vec_normalize_env()
        model.n_begun += 1
        if self._is_by_method:
            self._begin_by_method(index)
        seen: Any = model._last_obs if normalizer is None else model._last_original_obs
        check_finite(combine(np.asarray, take(seen, index)))
        self.uses_policy[index] = model.n_stored > model.learning_starts
        self._returns[index] = 0.0
        explorer = model._exploration() if self.uses_policy[index] else UniformExploration()
        self._explorers[index] = explorer
        if explorer is not None:
            explorer.begin(model.run.address.sequence(Stream.EXPLORATION, model.n_begun))

    def _begin_by_method(self, index: int) -> None:
        """Begin the episode in an environment that has gone on with another one."""
        model, envs = self._model, self._envs
        assert envs is not None
        first = envs.begin(index, model.run.address.seed(Stream.ENVIRONMENT, model.n_begun))
        assert first is not None
        check_shape("observations", first[0], shape_of(model.observation_space))
        model._last_obs = copied(model._last_obs)
        put(model._last_obs, index, first[0])
        if model.get_vec_normalize_env() is not None:
            model._last_original_obs = copied(model._last_original_obs)
            put(model._last_original_obs, index, first[1])

    def actions(self) -> np.ndarray:
        """:return: ``(n_envs, *action_shape)`` in [-1, 1], the next ones of all episodes"""
        model, envs = self._model, self._envs
        assert envs is not None
        if not envs.has_singles:  # whose next observations may be written over these
            model._last_obs = copied(model._last_obs)
        observations = combine(np.asarray, model._last_obs)
        scaled = np.zeros((model.n_envs, get_action_dim(model.action_space)), dtype=np.float32)
        if self.uses_policy.any():
            with th.no_grad():
                scaled = model.actor(model.policy.obs_to_tensor(observations)[0]).cpu().numpy()
        for index, explorer in enumerate(self._explorers):
            if explorer is not None:
                scaled[index] = explorer(take(observations, index), scaled[index])
        envs.guard.keep()
        at = model.num_timesteps
        envs.is_own = lambda: model.num_timesteps == at  # SB3's loop counts a step before its callbacks
        return scaled.reshape(model.n_envs, *model.action_space.shape)

    def check(self, new_obs: Any, reward: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]) -> None:
        """:raises ValueError: if the step that was just taken is not finite or has another shape"""
        model = self._model
        envs = self._envs
        assert envs is not None
        shape, normalizer = shape_of(model.observation_space), model.get_vec_normalize_env()
        check_shape("observations", new_obs, several(shape, model.n_envs))
        check_shape("rewards", reward, (model.n_envs,))
        envs.guard.restore()
        observations: Any = envs.originals(new_obs)
        rewards = reward if normalizer is None else normalizer.get_original_reward()
        for index in range(model.n_envs):
            last = take(observations, index)
            last = infos[index].get("terminal_observation", last) if dones[index] else last
            check_shape("observations", last, shape)
            check_finite(combine(np.asarray, last), float(rewards[index]))

    def provide_originals(self, new_obs: Any) -> None:
        """
        Let SB3's loop find what the replay buffer stores where it looks for it: in VecNormalize.

        :param new_obs: ``(n_envs, *obs_shape)`` as the policy sees them
        """
        normalizer = self._model.get_vec_normalize_env()
        assert self._envs is not None
        if normalizer is not None and self._envs.normalizer is None:
            normalizer.old_obs = new_obs

    def step(self, reward: np.ndarray, dones: np.ndarray) -> list[tuple[int, float]]:
        """
        Add the rewards of a step.

        :param reward: ``(n_envs,)``
        :param dones: ``(n_envs,)``
        :return: (environment, undiscounted raw return) of each episode that ended with it
        """
        normalizer = self._model.get_vec_normalize_env()
        raw = reward if normalizer is None else normalizer.get_original_reward()
        self._returns += np.asarray(raw, dtype=np.float32)  # DummyVecEnv rounds so, SubprocVecEnv does not
        self._ended = [int(index) for index in np.flatnonzero(dones)]
        return [(index, float(self._returns[index])) for index in self._ended]
