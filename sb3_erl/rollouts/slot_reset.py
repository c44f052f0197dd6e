"""Resetting one environment of a VecEnv in the middle of the others' episodes."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    VecVideoRecorder,
)
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations

_TRANSPARENT = (VecMonitor, VecCheckNan, VecVideoRecorder)


class SlotResetter:
    """
    Resets one slot with a seed and passes the observation through every wrapper, as ``VecEnv.reset`` would.

    :param env: any VecEnv whose ``env_method("reset", seed=..., indices=[i])`` resets environment i and returns
        ``[(observation, info)]``, as SB3's do; a wrapper of the user's own that changes observations must offer
        ``reset_slot(index, observation) -> observation``
    :raises ValueError: if a wrapper changes observations and cannot reset one slot
    """

    def __init__(self, env: VecEnv):
        self.env = env
        self._wrappers: list[VecEnvWrapper] = []
        while isinstance(env, VecEnvWrapper):
            self._wrappers.append(env)
            env = env.venv
        for wrapper in self._wrappers:
            known = isinstance(wrapper, (VecNormalize, VecFrameStack, VecTransposeImage, VecExtractDictObs, *_TRANSPARENT))
            same = wrapper.observation_space == wrapper.venv.observation_space
            if not known and not hasattr(wrapper, "reset_slot") and not same:
                raise ValueError(
                    f"env has the wrapper {type(wrapper).__name__}, which changes observations but cannot reset one of its "
                    "environments; give it a method reset_slot(index, observation) that returns the first observation"
                )

    def __call__(self, index: int, seed: int) -> tuple[Any, Any]:
        """
        :param index: number of the environment
        :param seed: seed of the episode
        :return: first observation as the policy sees it, and as the replay buffer stores it
        :raises ValueError: if the VecEnv cannot reset one of its environments
        """
        observation = self._reset(index, seed)
        original = None
        for wrapper in reversed(self._wrappers):
            if isinstance(wrapper, VecNormalize):
                original = observation
                wrapper.returns[index] = 0.0
            observation = self._through(wrapper, index, observation)
        return observation, observation if original is None else original

    def _reset(self, index: int, seed: int) -> Any:
        try:
            ((observation, _),) = self.env.env_method("reset", seed=seed, indices=[index])
        except NotImplementedError as error:
            raise ValueError(
                "env must be able to reset one of its environments: env_method('reset', seed=..., indices=[i]) must return "
                f"[(observation, info)]; {type(self.env.unwrapped).__name__} raised {error!r}. Implement it in the VecEnv"
            ) from error
        return observation

    @staticmethod
    def _through(wrapper: VecEnvWrapper, index: int, observation: Any) -> Any:
        if hasattr(wrapper, "reset_slot"):
            return wrapper.reset_slot(index, observation)
        if isinstance(wrapper, VecNormalize):
            return wrapper.normalize_obs(observation)
        if isinstance(wrapper, VecTransposeImage):
            return observation if wrapper.skip else wrapper.transpose_observations(observation)
        if isinstance(wrapper, VecExtractDictObs):
            return observation[wrapper.key]
        if isinstance(wrapper, VecFrameStack):
            if isinstance(observation, dict):
                parts = wrapper.stacked_obs.sub_stacked_observations
                return {key: _first_stack(parts[key], index, array) for key, array in observation.items()}
            return _first_stack(wrapper.stacked_obs, index, observation)
        if isinstance(wrapper, VecMonitor):
            wrapper.episode_returns[index] = 0
            wrapper.episode_lengths[index] = 0
        return observation


def _first_stack(stacked: StackedObservations, index: int, observation: np.ndarray) -> np.ndarray:
    """Write zeros and the first observation into the frames of one environment; returns a copy of them."""
    frames = stacked.stacked_obs[index]
    frames[...] = 0
    axis = stacked.repeat_axis  # of one environment's frames; stack_dimension counts the environments' axis too
    last = [slice(None)] * frames.ndim
    last[axis] = slice(-observation.shape[axis], None)
    frames[tuple(last)] = observation
    return frames.copy()
