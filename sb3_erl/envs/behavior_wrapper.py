"""The wrapper that writes the behavior of each episode into its last ``info``."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from sb3_erl.envs.behavior import Behavior, BehaviorFunction, make_behavior
from sb3_erl.envs.behavior_values import KEY, checked_behavior


class BehaviorWrapper(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """
    Writes the behavior of each episode into ``info["bc"]`` of its last step.

    :param env: environment, time limit included
    :param behavior: key of :data:`BEHAVIORS`, a :class:`Behavior` class, or a function of an :class:`EpisodeTrace`
    :param behavior_kwargs: further arguments of the class
    :raises ValueError: if ``behavior`` is unknown; at the end of an episode, if the environment does not give it
    """

    def __init__(
        self,
        env: gym.Env,
        behavior: str | type[Behavior] | BehaviorFunction = "auto",
        behavior_kwargs: dict[str, Any] | None = None,
    ):
        gym.utils.RecordConstructorArgs.__init__(self, behavior=behavior, behavior_kwargs=behavior_kwargs)
        super().__init__(env)
        self._descriptor = make_behavior(behavior, **(behavior_kwargs or {}))
        self._info: dict[str, Any] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See Gymnasium."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._info = info
        self._descriptor.begin(self.env, observation, info)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """See Gymnasium."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._info = info
        self._descriptor.step(self.env, observation, action, float(reward), info)
        if terminated or truncated:
            info = {**info, KEY: self.current_behavior()}
        return observation, reward, terminated, truncated, info

    def current_behavior(self) -> np.ndarray:
        """
        The behavior so far, for an episode that is cut off from outside: call it before the next ``reset``, in a VecEnv by
        ``env_method("current_behavior")``.

        :return: ``(dim,)``, or ``(T, ...)`` for a sequence
        :raises ValueError: before the first ``reset``, or if the environment does not give it
        """
        if self._info is None:
            raise ValueError("env must have begun an episode to have a behavior; got none. Call reset() first")
        return checked_behavior(self._descriptor.end(self.env, self._info))
