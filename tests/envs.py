"""Toy environments: deterministic given the seed, cheap, and with episodes whose length is known."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

Ending = Literal["termination", "truncation"]
N_ACTIONS: int | None = None
"""How many discrete actions toy environments have where nobody says; ``None`` for a box. Set for classes that need them."""


class ToyEnv(gym.Env):
    """
    A contracting system that the action pushes; the reward is highest near the origin with small actions.

    :param length: steps per episode
    :param ending: how an episode ends
    :param vary: the seed adds 0 to ``vary`` steps to each episode
    :param action_shape: shape of the action box, bounds -2 and 2
    :param interrupt_at: raise ``KeyboardInterrupt`` at this step of the environment's life
    :param n_actions: so many discrete actions in place of the box, :data:`N_ACTIONS` by default
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 gymnasium's own annotation

    def __init__(
        self,
        length: int = 8,
        ending: Ending = "truncation",
        vary: int = 0,
        action_shape: tuple[int, ...] = (2,),
        interrupt_at: int | None = None,
        n_actions: int | None = None,
    ):
        n_actions = n_actions or N_ACTIONS
        self.length, self.ending, self.vary, self.interrupt_at = length, ending, vary, interrupt_at
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        box = spaces.Box(-2.0, 2.0, action_shape, np.float32)
        self.action_space: spaces.Space = box if n_actions is None else spaces.Discrete(n_actions)
        self.n_steps = 0
        self.n_resets = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.n_resets += 1
        self.state = self.np_random.uniform(-1, 1, 3)
        self.time, self.limit = 0, self.length + int(self.np_random.integers(self.vary + 1))
        return self.state.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        if self.n_steps == self.interrupt_at:
            raise KeyboardInterrupt
        push = np.resize(np.asarray(action, dtype=np.float64), 3)
        self.state = 0.8 * self.state + 0.1 * push + 0.05 * self.np_random.standard_normal(3)
        self.time += 1
        over = self.time >= self.limit
        reward = float(1.0 - np.abs(self.state).sum() - 0.01 * np.square(push).sum())
        ends, stops = over and self.ending == "termination", over and self.ending == "truncation"
        return self.state.astype(np.float32), reward, ends, stops, {}


class DiscreteEnv(ToyEnv):
    """:class:`ToyEnv` with three actions: a push to one side, none, and one to the other side."""

    def __init__(self, length: int = 8, **kwargs: Any):
        super().__init__(length, **kwargs)
        self.action_space = spaces.Discrete(3)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return super().step(np.array([float(action) - 1.0]))


class ImageEnv(ToyEnv):
    """:class:`ToyEnv` seen as a small picture with channels last."""

    def __init__(self, length: int = 8, size: int = 36, **kwargs: Any):
        super().__init__(length, **kwargs)
        self.observation_space = spaces.Box(0, 255, (size, size, 1), np.uint8)

    def _picture(self, state: np.ndarray) -> np.ndarray:
        row = np.resize(np.clip(128 + 60 * state, 0, 255), self.observation_space.shape or ())
        return row.astype(np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        state, info = super().reset(seed=seed)
        return self._picture(state), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        state, *rest = super().step(action)
        return self._picture(state), *rest


class DictEnv(ToyEnv):
    """
    :class:`ToyEnv` seen as a dict: its state, a number that says in which third of its range the first one is, and a picture.

    :param image: whether there is a picture
    :param choice: whether there is the number
    """

    def __init__(self, length: int = 8, image: bool = False, choice: bool = True, **kwargs: Any):
        super().__init__(length, **kwargs)
        parts: dict[str, spaces.Space] = {"vector": spaces.Box(-10, 10, (3,), np.float32)}
        parts |= {"choice": spaces.Discrete(3)} if choice else {}
        parts |= {"picture": spaces.Box(0, 255, (36, 36, 1), np.uint8)} if image else {}
        self.observation_space = spaces.Dict(parts)  # type: ignore[assignment]

    def _parts(self, state: np.ndarray) -> dict[str, Any]:
        picture = np.resize(np.clip(128 + 60 * state, 0, 255), (36, 36, 1)).astype(np.uint8)
        whole = {"vector": state, "choice": int(np.clip(1.5 + 1.5 * state[0], 0, 2)), "picture": picture}
        return {key: whole[key] for key in self.observation_space.spaces}  # type: ignore[attr-defined]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        state, info = super().reset(seed=seed)
        return self._parts(state), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        state, *rest = super().step(action)
        return self._parts(state), *rest


class OddSpaces(ToyEnv):
    """
    :class:`ToyEnv` that announces other spaces, to see them refused; it is never stepped.

    :param action_space: what it announces
    :param observation_space: what it announces
    """

    def __init__(self, action_space: spaces.Space | None = None, observation_space: spaces.Space | None = None):
        super().__init__()
        self.action_space = self.action_space if action_space is None else action_space
        self.observation_space = self.observation_space if observation_space is None else observation_space


def toy_maker(env_class: type[gym.Env] = ToyEnv, **kwargs: Any) -> Callable[[], gym.Env]:
    """A function that makes one monitored environment, with the same actions in another process."""
    if N_ACTIONS is not None and issubclass(env_class, ToyEnv):
        kwargs = {"n_actions": N_ACTIONS, **kwargs}
    return lambda: Monitor(env_class(**kwargs))


def toy_vec_env(n_envs: int = 1, subprocess: bool = False, env_class: type[gym.Env] = ToyEnv, **kwargs: Any) -> VecEnv:
    """
    :param n_envs: number of environments
    :param subprocess: one process each
    :param env_class: their class
    :param kwargs: arguments of the environment
    """
    makers = [toy_maker(env_class, **kwargs) for _ in range(n_envs)]
    if subprocess and "forkserver" in multiprocessing.get_all_start_methods():  # the first pays for the imports of all
        multiprocessing.get_context("forkserver").set_forkserver_preload(["stable_baselines3.common.monitor"])
    return SubprocVecEnv(makers) if subprocess else DummyVecEnv(makers)
