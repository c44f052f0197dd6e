"""An environment that breaks in some of its episodes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

RAISES = ("raise in step", "raise in reset")
NOT_FINITE = ("nan reward", "inf reward", "nan observation", "inf observation", "nan in reset", "nan at the end")
SHAPES = ("wide observation", "wide reset", "vector reward")
HANGS = ("hang in step", "hang in reset")
DEATHS = ("die in step", "die in reset", "die once")
KINDS = (*RAISES, *NOT_FINITE, *SHAPES, *HANGS, *DEATHS)


class FaultyEnv(gym.Env):
    """
    A contracting system of three numbers with episodes of 4 to 9 steps, of which some go wrong, chosen by their seeds.

    :param kind: what goes wrong, one of :data:`KINDS`, or ``"none"``
    :param one_in: an episode in so many goes wrong
    :param at: in this step, from 0
    :param flag: for ``"die once"``: file that says that it happened
    :param discrete: whether there are three actions to choose from in place of a box
    """

    def __init__(self, kind: str = "none", one_in: int = 5, at: int = 1, flag: str = "", discrete: bool = False):
        self.kind, self.one_in, self.at, self.flag = kind, one_in, at, flag
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space: spaces.Space = spaces.Discrete(3) if discrete else spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.is_bad = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """See Gymnasium; episodes without a seed are all right."""
        super().reset(seed=seed)
        self.is_bad = seed is not None and seed % self.one_in == 0
        self.state = self.np_random.uniform(-1, 1, 3)
        self.time, self.limit = 0, 4 + int(self.np_random.integers(6))
        if self.is_bad and self.kind in ("raise in reset", "hang in reset", "die in reset"):
            self._go_wrong()
        if self.is_bad and self.kind == "wide reset":
            return np.zeros(4, np.float32), {}
        if self.is_bad and self.kind == "nan in reset":
            return np.full(3, np.nan, np.float32), {}
        return self.state.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """See Gymnasium."""
        push = np.resize(np.asarray(action, dtype=np.float64), 3)
        self.state = 0.8 * self.state + 0.1 * push + 0.05 * self.np_random.standard_normal(3)
        self.time += 1
        reward: Any = float(1.0 - np.abs(self.state).sum())
        observation, over = self.state.astype(np.float32), self.time >= self.limit
        if self.is_bad and self.time - 1 == self.at:
            return self._wrong(observation, reward, over)
        if self.is_bad and over and self.kind == "nan at the end":
            return np.full(3, np.nan, np.float32), reward, True, False, {}
        return observation, reward, False, over, {}

    def _wrong(self, observation: np.ndarray, reward: Any, over: bool) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        self._go_wrong()
        if self.kind.endswith("observation"):
            value = {"nan": np.nan, "inf": np.inf}.get(self.kind.split()[0])
            observation = np.zeros(4, np.float32) if value is None else np.where([0, 1, 0], value, observation)
        if self.kind.endswith("reward"):
            reward = {"nan": np.nan, "inf": np.inf}.get(self.kind.split()[0], np.zeros(2))
        return observation.astype(np.float32), reward, False, over, {}

    def _go_wrong(self) -> None:
        if self.kind.startswith("raise"):
            raise RuntimeError("the knee is broken")
        if self.kind.startswith("hang"):
            time.sleep(1000)
        if self.kind.startswith("die") and not (self.flag and Path(self.flag).exists()):
            if self.flag:
                Path(self.flag).touch()
            os.kill(os.getpid(), signal.SIGKILL)


def monitored(**kwargs: Any) -> gym.Env:
    """One environment, as the Zoo makes it."""
    return Monitor(FaultyEnv(**kwargs))


def faulty_vec_env(n_envs: int = 1, subprocess: bool = False, **kwargs: Any) -> VecEnv:
    """Several of them, in this process or in one each."""
    makers: list[Callable[[], gym.Env]] = [partial(monitored, **kwargs) for _ in range(n_envs)]
    return SubprocVecEnv(makers) if subprocess else DummyVecEnv(makers)


class Mortal(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """
    Kills the process it runs in when a file appears; of several processes, the one that removes the file first.

    :param env: environment that is wrapped
    :param flag: path of that file
    """

    def __init__(self, env: gym.Env, flag: str):
        gym.utils.RecordConstructorArgs.__init__(self, flag=flag)
        gym.Wrapper.__init__(self, env)
        self.flag = flag

    def step(self, action: Any) -> Any:
        """As the environment does it, if the process lives."""
        if os.path.exists(self.flag):
            try:
                os.unlink(self.flag)
            except FileNotFoundError:  # it hit another one
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.env.step(action)
