"""
The Hard Maze: a robot, a goal that looks near and a dead end in between.

Lehman & Stanley (2011), "Abandoning Objectives", see :mod:`sb3_erl.envs.maze`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_erl.core.checks import check_choice, check_range
from sb3_erl.envs.maze import MazeMap, MazePicture, MazeRobots

Obs = Literal["sensors", "image"]
RewardRule = Literal["final_distance", "min_distance", "sparse"]

HORIZON = 400
REACH = 10.0
"""A robot closer to the goal than this has reached it."""
_N_FRAMES, _FRAME_SIZE, _RENDER_SIZE = 4, 84, 420


class _Episodes:
    """Robots with their episodes: time, rewards, observations."""

    def __init__(self, n: int, maze: MazeMap | None, obs_type: Obs, reward: RewardRule):
        check_choice("obs_type", obs_type, ("sensors", "image"))
        check_choice("reward", reward, ("final_distance", "min_distance", "sparse"))
        self.maze, self.obs_type, self.reward = maze or MazeMap(), obs_type, reward
        self.robots = MazeRobots(self.maze, n)
        self.time = np.zeros(n, np.int64)
        self.distance, self.min_distance = self.robots.goal_distances, self.robots.goal_distances
        self._start = self.robots.sense()[0].copy()
        self._picture = MazePicture(self.maze, _FRAME_SIZE) if obs_type == "image" else None
        self._stack = np.zeros((n, _FRAME_SIZE, _FRAME_SIZE, _N_FRAMES), np.uint8)
        self.action_space = spaces.Box(-0.5, 0.5, (2,), np.float32)
        self.observation_space = (
            spaces.Box(0.0, 1.0, (11,), np.float32)
            if obs_type == "sensors"
            else spaces.Box(0, 255, self._stack.shape[1:], np.uint8)
        )

    def reset(self, rows: Sequence[int]) -> np.ndarray:
        self.robots.reset(rows)
        self.time[rows] = 0
        self.distance[rows] = self.min_distance[rows] = self.robots.goal_distances[rows]
        self._stack[rows] = 0
        if self._picture is None:  # all start at the same place
            return np.repeat(self._start[None], len(rows), axis=0)
        return self._observe(rows)[rows]

    def step(self, actions: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """:return: observations, rewards and which episodes ended"""
        self.robots.step(actions)
        self.time += 1
        self.distance = distances = self.robots.goal_distances
        self.min_distance = np.fmin(self.min_distance, distances)
        ended = self.time >= horizon
        paid = {"final_distance": -distances, "min_distance": -self.min_distance, "sparse": (distances < REACH) * 1.0}
        return self._observe(range(len(ended))), np.where(ended, paid[self.reward], 0.0), ended

    def _observe(self, rows: Sequence[int]) -> np.ndarray:
        if self._picture is None:
            return self.robots.sense()
        self._stack[rows, ..., :-1] = self._stack[rows, ..., 1:]
        for i in rows:
            self._stack[i, ..., -1] = self._picture.draw_robot(self.robots, i)
        return self._stack.copy()

    def infos(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        rows = list(rows)
        near, ever_near = self.distance < REACH, self.min_distance < REACH
        columns = (self.distance, self.min_distance, near, near, ever_near, self.robots.collisions)
        names = ("distance", "min_distance", "is_success", "reached", "reached_any", "collisions")
        numbers = zip(*(column[rows].tolist() for column in columns), strict=True)
        positions = self.robots.positions[rows]  # a copy
        return [{"bc": bc, **dict(zip(names, row, strict=True))} for bc, row in zip(positions, numbers, strict=True)]


class HardMaze(gym.Env):
    """
    The Hard Maze as an environment: ``HardMaze-v0`` (sensors) and ``HardMazeImage-v0``, also ``ImageHardMaze-v0`` (images).

    The reward is 0 until the last step, which pays minus the distance to the goal; reaching the goal does not end the
    episode. As only the end pays, the horizon belongs to the task: the last step is ``terminated``, so value functions do
    not bootstrap there. Change it by ``max_steps``; Gymnasium's ``max_episode_steps`` would cut an episode before it pays.
    ``info`` holds, on every step, ``bc`` (the position, ``(2,)``), ``distance``, ``min_distance``, ``is_success`` and
    ``reached`` (both: closer than 10 now), ``reached_any`` (in this episode) and ``collisions``.

    Actions: ``(turning rate, speed)`` in [-0.5, 0.5]. Sensors: see :meth:`~sb3_erl.envs.maze.MazeRobots.sense`. Pictures:
    ``(84, 84, 4)`` uint8, the newest of four last and missing ones black; see :class:`~sb3_erl.envs.maze.MazePicture`.

    :param obs_type: ``"sensors"`` or ``"image"``
    :param reward: ``"final_distance"``, ``"min_distance"`` (minus the smallest distance of the episode) or ``"sparse"`` (1 if
        the goal is reached at the end)
    :param max_steps: length of an episode
    :param maze: another maze
    :param render_mode: ``"rgb_array"`` or ``None``
    :raises ValueError: if an argument is out of range
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012

    def __init__(
        self,
        obs_type: Obs = "sensors",
        reward: RewardRule = "final_distance",
        max_steps: int = HORIZON,
        maze: MazeMap | None = None,
        render_mode: str | None = None,
    ):
        check_choice("render_mode", render_mode, ("rgb_array", None))
        check_range("max_steps", max_steps, 1, integer=True)
        self._episodes = _Episodes(1, maze, obs_type, reward)
        self.max_steps, self.render_mode = max_steps, render_mode
        self._rendering: MazePicture | None = None
        self.observation_space, self.action_space = self._episodes.observation_space, self._episodes.action_space

    @property
    def maze(self) -> MazeMap:
        """Walls and places."""
        return self._episodes.maze

    @property
    def robots(self) -> MazeRobots:
        """The one robot's state."""
        return self._episodes.robots

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._episodes.reset([0])[0], self._episodes.infos([0])[0]

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observations, rewards, ended = self._episodes.step(np.asarray(action)[None], self.max_steps)
        return observations[0], float(rewards[0]), bool(ended[0]), False, self._episodes.infos([0])[0]

    def render(self) -> Any:
        """:return: ``(420, 420, 3)`` uint8, or ``None`` without ``render_mode``"""
        if self.render_mode is None:
            return None
        if self._rendering is None:
            self._rendering = MazePicture(self.maze, _RENDER_SIZE)
        gray = self._rendering.draw_robot(self.robots, 0)
        return np.repeat(gray[..., None], 3, axis=2)


class VecHardMaze(VecEnv):
    """
    Many Hard Mazes stepped together in NumPy: the same numbers as :class:`HardMaze`, many times faster.

    >>> env = VecHardMaze(3)
    >>> env.reset().shape
    (3, 11)

    :param num_envs: number of robots
    :param obs_type: ``"sensors"`` or ``"image"``
    :param reward: as for :class:`HardMaze`
    :param max_steps: length of an episode
    :param maze: another maze
    :raises ValueError: if an argument is out of range
    """

    def __init__(
        self,
        num_envs: int,
        obs_type: Obs = "sensors",
        reward: RewardRule = "final_distance",
        max_steps: int = HORIZON,
        maze: MazeMap | None = None,
    ):
        check_range("num_envs", num_envs, 1, integer=True)
        check_range("max_steps", max_steps, 1, integer=True)
        self._episodes = _Episodes(num_envs, maze, obs_type, reward)
        self.maze, self.max_steps, self.render_mode, self.spec = self._episodes.maze, max_steps, None, None
        self._actions = np.zeros((num_envs, 2), np.float32)
        super().__init__(num_envs, self._episodes.observation_space, self._episodes.action_space)

    def reset(self) -> np.ndarray:
        """See SB3's ``VecEnv``; seeds change nothing, because nothing is random."""
        observations = self._episodes.reset(range(self.num_envs))
        self.reset_infos = self._episodes.infos(range(self.num_envs))
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """See SB3's ``VecEnv``."""
        self._actions = np.array(actions, np.float32)

    def step_wait(self) -> Any:
        """See SB3's ``VecEnv``; ``info["bc"]`` of the last step is where the episode ended, not the new start."""
        observations, rewards, ended = self._episodes.step(self._actions, self.max_steps)
        infos = self._episodes.infos(range(self.num_envs))
        done = np.flatnonzero(ended).tolist()
        if done:
            for i in done:
                infos[i] |= {"terminal_observation": observations[i].copy(), "TimeLimit.truncated": False}
            observations[done] = self._episodes.reset(done)
        return observations, rewards.astype(np.float32), ended, infos

    def close(self) -> None:
        """Nothing to close."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """See SB3's ``VecEnv``."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """See SB3's ``VecEnv``; all mazes share their attributes."""
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """
        See SB3's ``VecEnv``; ``reset`` is the only method of a single maze.

        :raises AttributeError: for any other method
        """
        if method_name != "reset":
            raise AttributeError(f"method_name must be 'reset' with VecHardMaze; got {method_name!r}. Use HardMaze instead")
        rows = list(self._get_indices(indices))
        observations = self._episodes.reset(rows)  # before the infos, which show the new start
        return list(zip(observations, self._episodes.infos(rows), strict=True))

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Any = None) -> list[bool]:
        """No single maze is wrapped."""
        return [False for _ in self._get_indices(indices)]
