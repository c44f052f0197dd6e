"""What a model that can be planned in offers, and how the environment is found in what a user has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
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
    """
    :return: the environment and what stands inside it, from the outermost to the innermost: what its wrappers stand around, an
        environment that it holds in an attribute, and dm_control's environment and task
    """
    layers: list[Any] = [env]
    while (inner := _inside(layers[-1])) is not None and all(inner is not layer for layer in layers):
        layers.append(inner)
    if _is_dm_control(layers[-1]):
        layers.append(layers[-1].task)
    return layers


def _is_dm_control(env: Any) -> bool:
    return not isinstance(env, gym.Env) and hasattr(env, "physics") and hasattr(env, "task")


def _inside(env: Any) -> Any:
    if isinstance(env, gym.Wrapper):
        return env.env
    values = vars(env).values() if isinstance(env, gym.Env) else ()
    return next((value for value in values if isinstance(value, gym.Env) or _is_dm_control(value)), None)


def episode_length(env: gym.Env) -> int | None:
    """:return: most steps of an episode, by a time limit of Gymnasium's or of dm_control's; ``None`` if there is none"""
    return _least(env, lambda limit, done: limit)


def steps_left(env: gym.Env) -> int | None:
    """:return: steps that are left of the episode by a time limit; ``None`` if there is no limit"""
    return _least(env, lambda limit, done: None if done is None else limit - done)


def _least(env: gym.Env, steps: Callable[[int, int | None], int | None]) -> int | None:
    """:return: the smallest of what the time limits say, in steps of ``env``"""
    found, repeat = [], 1
    for layer in layers_of(env):
        own = vars(layer)
        for limit, counter in (("_max_episode_steps", "_elapsed_steps"), ("_step_limit", "_step_count")):
            if own.get(limit) is not None and np.isfinite(own[limit]):
                n_steps = steps(int(own[limit]), own.get(counter))
                found += [] if n_steps is None else [-(-n_steps // repeat)]
        repeat *= int(own.get("action_repeat", 1))  # what stands further inside counts its own steps
    return min(found, default=None)


def physics_of(layers: list[Any]) -> tuple[Any, Any, int] | None:
    """
    :param layers: of an environment, see :func:`layers_of`
    :return: MuJoCo's model and data and the number of simulation steps per environment step; ``None`` if it is no MuJoCo
    """
    repeat = 1
    for layer in layers:
        if all(name in vars(layer) for name in ("model", "data", "frame_skip")):
            return layer.model, layer.data, repeat * int(layer.frame_skip)
        if _is_dm_control(layer):
            return layer.physics.model.ptr, layer.physics.data.ptr, repeat * int(layer._n_sub_steps)
        repeat *= int(vars(layer).get("action_repeat", 1))
    return None
