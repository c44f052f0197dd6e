"""Environments inside copies of models: SB3's wrappers cannot be pickled by themselves, or lose what they wrap."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import gymnasium as gym
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper, VecMonitor

from sb3_erl.rollouts.slot_envs import Replaced
from sb3_erl.rollouts.slot_reset import base_of, wrappers_of

MADE_ANEW = ("venv", "class_attributes")
"""Attributes of wrappers that are not copied: what is wrapped, which comes by itself, and what follows from the class."""


class EnvironmentState:
    """
    A vectorized environment and its wrappers in a form that ``pickle`` and ``copy.deepcopy`` take.

    A wrapper of SB3 asks what it wraps for every attribute that it does not have, and so for what ``pickle`` looks up in an
    empty object; ``VecNormalize`` leaves out the environment below it.

    :param env: with any number of wrappers
    :raises TypeError: if the environments live in other processes
    """

    def __init__(self, env: VecEnv):
        self.wrappers: list[tuple[type[VecEnvWrapper], dict[str, Any]]] = []
        """Class and attributes of each, the outermost first."""
        for wrapper in wrappers_of(env):
            attributes = {name: value for name, value in vars(wrapper).items() if name not in MADE_ANEW}
            attributes |= {"results_writer": None} if isinstance(wrapper, VecMonitor) else {}
            self.wrappers.append((type(wrapper), attributes))
        env = base_of(env)
        if isinstance(env, SubprocVecEnv):
            raise TypeError(
                "env must not live in other processes (SubprocVecEnv) when a model is pickled or deep-copied: they cannot be "
                "copied. Use a DummyVecEnv, or model.save(path) and load(path, env=...)"
            )
        self.innermost = as_they_were(env)

    def restored(self) -> VecEnv:
        """:return: the environment"""
        env = self.innermost
        for wrapper_class, attributes in reversed(self.wrappers):
            wrapper = wrapper_class.__new__(wrapper_class)
            vars(wrapper).update(attributes, venv=env, class_attributes=dict(inspect.getmembers(wrapper_class)))
            env = wrapper
        return env


def without_files(env: Any) -> Any:
    """
    :param env: an environment in its wrappers
    :return: the same; where a ``Monitor`` writes a file, which only one program may, a shallow copy that writes none
    """
    if not isinstance(env, gym.Wrapper):
        return env
    inner, writes = without_files(env.env), isinstance(env, Monitor) and env.results_writer is not None
    if inner is env.env and not writes:
        return env
    found: Any = copy.copy(env)
    found.env = inner
    if writes:
        found.results_writer = None
    return found


def as_they_were(base: VecEnv) -> VecEnv:
    """
    :param base: environments without wrappers, perhaps while episodes run in them
    :return: the same; if a :class:`~sb3_erl.rollouts.slot_envs.SlotEnvs` is attached, a shallow copy that
        it is not attached to
    """

    def detached(thing: Any) -> Any:
        if not any(isinstance(value, Replaced) for value in vars(thing).values()):
            return thing
        found = copy.copy(thing)
        for name in [name for name, value in vars(found).items() if isinstance(value, Replaced)]:
            del vars(found)[name]
        return found

    if not isinstance(base, DummyVecEnv):
        return detached(base)
    envs = [without_files(detached(one)) for one in base.envs]
    if all(one is other for one, other in zip(envs, base.envs, strict=True)):
        return detached(base)
    found = copy.copy(base)
    found.envs = envs
    return found
