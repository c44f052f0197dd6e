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

_TRANSPARENT = (VecMonitor, VecCheckNan, VecVideoRecorder)


class SlotResetter:
    """
    Resets one slot with a seed and passes the observation through every wrapper, as ``VecEnv.reset`` would.

    :param env: any SB3 VecEnv; a wrapper of the user's own that changes observations must offer
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

    def __call__(self, index: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """
        :param index: which environment
        :param seed: seed of the episode
        :return: first observation as the policy sees it, and as the replay buffer stores it
        """
        observation: Any = self.env.env_method("reset", seed=seed, indices=[index])[0][0]
        original = None
        for wrapper in reversed(self._wrappers):
            if isinstance(wrapper, VecNormalize):
                original = observation
                wrapper.returns[index] = 0.0
            observation = self._through(wrapper, index, observation)
        return observation, observation if original is None else original

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
            stacked = wrapper.stacked_obs
            frames = stacked.stacked_obs[index]
            frames[...] = 0
            size = observation.shape[stacked.stack_dimension]
            last = [slice(None)] * frames.ndim
            last[stacked.stack_dimension] = slice(-size, None)
            frames[tuple(last)] = observation
            return frames.copy()
        if isinstance(wrapper, VecMonitor):
            wrapper.episode_returns[index] = 0
            wrapper.episode_lengths[index] = 0
        return observation
