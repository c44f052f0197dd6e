"""What a model that can be planned in offers, and how the environment is found in what a user has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import HumanRendering, RecordEpisodeStatistics, RecordVideo
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

WATCHING = (Monitor, RecordEpisodeStatistics, RecordVideo, HumanRendering)
"""Wrappers that only watch; what is planned is no episode, so the outer ones of them do not see it."""


class PlanningModel(ABC):
    """A model of an environment: the base of those in this folder, and of your own."""

    is_simulator: ClassVar[bool] = False
    """Whether planning starts from the state of an environment, see :meth:`sync`, and not from an observation."""
    episode_length: int | None = None
    """Most steps of an episode, ``None`` if the model does not know."""

    @abstractmethod
    def rollout(self, state: Any, actions: np.ndarray) -> np.ndarray:
        """
        :param state: where all sequences start: an observation, or what :meth:`sync` returned
        :param actions: ``(n_candidates, n_steps, action_dim)`` in units of the environment
        :return: rewards ``(n_candidates, n_steps)``, 0 after the end of an episode
        """

    def sync(self, env: Any = None) -> Any:
        """
        :param env: a simulator takes the state of this environment, that of its own if ``None``
        :return: the state, for :meth:`rollout`
        :raises TypeError: if this is no simulator
        """
        raise TypeError(f"{type(self).__name__} plans from observations: give plan() the observation instead of sync(env)")

    def close(self) -> None:  # noqa: B027 most models have nothing to stop
        """Stop workers and threads, if there are any."""


def single_env(env: Any) -> gym.Env:
    """
    :param env: an environment, or a ``DummyVecEnv`` of one, with any wrappers
    :return: the Gymnasium environment in it
    :raises ValueError: if there are several, or the one is in another process
    :raises TypeError: if it is something else
    """
    if isinstance(env, VecEnv):
        inner = env.unwrapped
        if env.num_envs != 1:
            raise ValueError(
                f"env must be a single environment, since each one needs a plan and a simulator of its own; got "
                f"n_envs={env.num_envs}. Make one agent per environment"
            )
        if not isinstance(inner, DummyVecEnv):
            raise ValueError(
                "env must be in this process for a planner to read its state: an environment or a DummyVecEnv; "
                f"got {type(inner).__name__}. A simulator has worker processes of its own (n_workers)"
            )
        env = inner.envs[0]
    if not isinstance(env, gym.Env):
        raise TypeError(f"env must be a Gymnasium environment or a VecEnv of one; got {env!r}")
    return env


def planned_env(env: gym.Env) -> gym.Env:
    """:return: the environment without the outer wrappers that only watch, see :data:`WATCHING`"""
    while isinstance(env, WATCHING):
        env = env.env
    return env


def layers_of(env: gym.Env) -> list[Any]:
    """:return: the environment and what its wrappers stand around, from the outermost to the innermost"""
    layers: list[Any] = [env]
    while isinstance(layers[-1], gym.Wrapper):
        layers.append(layers[-1].env)
    inner: Any = getattr(layers[-1], "_env", None)  # dm_control in the wrapper of shimmy
    if hasattr(inner, "physics") and hasattr(inner, "task"):
        layers += [inner, inner.task]
    return layers


def episode_length(env: gym.Env) -> int | None:
    """:return: most steps of an episode, by a time limit of Gymnasium's or of dm_control's; ``None`` if there is none"""
    limits = [getattr(layer, name, None) for layer in layers_of(env) for name in ("_max_episode_steps", "_step_limit")]
    known = [int(limit) for limit in limits if limit is not None and np.isfinite(limit)]
    return min(known, default=None)


def steps_left(env: gym.Env) -> int | None:
    """:return: steps that are left of the episode by a time limit; ``None`` if there is no limit"""
    counters = (("_max_episode_steps", "_elapsed_steps"), ("_step_limit", "_step_count"))
    left = []
    for layer in layers_of(env):
        for limit, counter in counters:
            most, done = vars(layer).get(limit), vars(layer).get(counter)
            if most is not None and done is not None and np.isfinite(most):
                left.append(int(most) - int(done))
    return min(left, default=None)


def physics_of(env: gym.Env) -> tuple[Any, Any, int] | None:
    """:return: MuJoCo's model and data and the number of simulation steps per environment step; ``None`` if it is no MuJoCo"""
    inner: Any = env.unwrapped
    if all(hasattr(inner, name) for name in ("model", "data", "frame_skip")):
        return inner.model, inner.data, int(inner.frame_skip)
    dm_control: Any = getattr(inner, "_env", None)
    if hasattr(dm_control, "physics"):
        physics = dm_control.physics
        return physics.model.ptr, physics.data.ptr, int(dm_control._n_sub_steps)
    return None
