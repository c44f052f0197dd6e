"""
The Hard Maze: a robot, a goal that looks near and a dead end in between.

Lehman & Stanley (2011), "Abandoning Objectives"; numbers and order of operations as in uber-research/deep-neuroevolution,
``gpu_implementation/gym_tensorflow/maze``. Lengths are maze units; x points right and y **down**, as in a picture, so a
positive angle turns clockwise. The state is float32 and each product float64, as in that program, because a contact with a
wall can hang on the last digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_erl.core.checks import check_choice, check_range

Obs = Literal["sensors", "image"]
RewardRule = Literal["final_distance", "min_distance", "sparse"]

HORIZON = 400
REACH = 10.0
"""A robot closer to the goal than this has reached it."""

WALLS = (
    (41.0, 5.0, 3.0, 8.0),
    (3.0, 8.0, 4.0, 49.0),
    (4.0, 49.0, 7.0, 202.0),
    (7.0, 202.0, 195.0, 198.0),
    (195.0, 198.0, 186.0, 8.0),
    (186.0, 8.0, 39.0, 5.0),
    (4.0, 49.0, 57.0, 53.0),
    (56.0, 54.0, 56.0, 157.0),
    (57.0, 106.0, 158.0, 162.0),
    (77.0, 201.0, 108.0, 164.0),
    (6.0, 80.0, 33.0, 121.0),
    (192.0, 146.0, 87.0, 91.0),
    (56.0, 55.0, 133.0, 30.0),
)

_DEGREE = 3.1415926 / 180  # the digits of the original
_TOP, _CHANGE = np.float32(3), 0.2  # top speed and turning rate, and how much of either a step can change
_RANGE = 100.0
_RANGE_FINDERS = (-90.0, -45.0, 0.0, 45.0, 90.0, -180.0)
_FLOOR, _WALL, _GOAL, _ROBOT, _MARK = 0, 96, 160, 255, 32
_LINE, _GOAL_RADIUS = 1.25, 6.0
_N_FRAMES, _FRAME_SIZE, _RENDER_SIZE = 4, 84, 420


@dataclass(frozen=True)
class MazeMap:
    """
    Walls and places of a maze.

    :param walls: ``(x1, y1, x2, y2)`` of each wall
    :param start: ``(x, y)`` of the robot
    :param heading: degrees, clockwise from the x axis
    :param goal: ``(x, y)``
    :param robot_radius: the robot's center keeps at least this distance from all walls
    :param view: ``(x, y, width)`` of the square that pictures show
    :raises ValueError: if a shape is wrong or the robot would start inside a wall
    """

    walls: Sequence[Sequence[float]] = WALLS
    start: tuple[float, float] = (36.0, 184.0)
    heading: float = 0.0
    goal: tuple[float, float] = (31.0, 20.0)
    robot_radius: float = 8.0
    view: tuple[float, float, float] = (100.5, 102.5, 210.0)

    def __post_init__(self) -> None:
        if self.segments.ndim != 2 or self.segments.shape[1] != 4:
            raise ValueError(f"walls must have shape (n, 4), (x1, y1, x2, y2) each; got {self.segments.shape}")
        check_range("robot_radius", self.robot_radius, 0, open_low=True)
        distance = float(wall_distances(np.array(self.start), self.segments).min(initial=np.inf))
        if not distance >= self.robot_radius:
            raise ValueError(
                f"start must be at least robot_radius={self.robot_radius:g} away from each wall, or the robot can never move; "
                f"got {self.start}, {distance:g} away"
            )

    y_points_down: ClassVar[bool] = True

    @property
    def segments(self) -> np.ndarray:
        """``(n_walls, 4)``"""
        return np.array(self.walls, dtype=np.float64)

    @property
    def lines(self) -> list[np.ndarray]:
        """The walls as ``(2, 2)`` polylines, for :func:`sb3_erl.envs.draw_positions`."""
        return list(self.segments.reshape(-1, 2, 2))


def wall_distances(points: np.ndarray, walls: np.ndarray) -> np.ndarray:
    """
    :param points: ``(..., 2)``
    :param walls: ``(n_walls, 4)``
    :return: ``(..., n_walls)`` distance of each point to each segment
    """
    ends, along = walls[:, :2], walls[:, 2:] - walls[:, :2]
    to_point = points[..., None, :] - ends
    squares = (along**2).sum(axis=1)
    share = (to_point * along).sum(axis=-1) / np.where(squares > 0, squares, 1.0)
    nearest = to_point - np.clip(share, 0, 1)[..., None] * along
    return np.sqrt((nearest**2).sum(axis=-1))


class MazeRobots:
    """
    Robots that do not see each other, each in its own copy of a maze; nothing is random.

    :param maze: walls and places
    :param n: number of robots
    """

    def __init__(self, maze: MazeMap, n: int = 1):
        self.maze, self._walls = maze, maze.segments
        self.places = np.zeros((n, 2), np.float32)
        """``(x, y)`` of each center."""
        self.heading, self.speed, self.turning = np.zeros((3, n), np.float32)
        self.collisions = np.zeros(n, np.int64)
        self.reset()

    def reset(self, rows: Any = slice(None)) -> None:
        """
        Put robots back to the start.

        :param rows: index of the robots, by default all of them
        """
        self.places[rows] = self.maze.start
        self.heading[rows] = self.maze.heading
        self.speed[rows] = self.turning[rows] = 0
        self.collisions[rows] = 0

    @property
    def positions(self) -> np.ndarray:
        """``(n, 2)`` in float64, a copy."""
        return self.places.astype(np.float64)

    @property
    def goal_distances(self) -> np.ndarray:
        """``(n,)`` distance of the robots' centers to the goal."""
        away = self.positions - self.maze.goal
        return np.hypot(away[:, 0], away[:, 1])

    def step(self, actions: np.ndarray) -> None:
        """
        Turn, accelerate, move; a move that would touch a wall is not made, but speed and heading are kept.

        :param actions: ``(n, 2)``: wanted turning rate and speed, clipped to [-0.5, 0.5], which stands for [-3, 3] degrees
            and units per step
        """
        wanted = np.clip(np.asarray(actions, np.float32) + np.float32(0.5), 0, 1)
        targets = (wanted.astype(np.float64) - 0.5) * 6
        self.turning = _approach(self.turning, targets[:, 0])
        self.speed = _approach(self.speed, targets[:, 1])
        angle = self.heading.astype(np.float64) * _DEGREE  # the heading before it turns
        step = (np.stack([np.cos(angle), np.sin(angle)], axis=1) * self.speed[:, None]).astype(np.float32)
        heading = self.heading + self.turning
        heading = np.where(heading > 360, heading - np.float32(360), heading)
        self.heading = np.where(heading < 0, heading + np.float32(360), heading)
        places = self.places + step
        nearest = wall_distances(places.astype(np.float64), self._walls).min(axis=1, initial=np.inf)
        blocked = nearest < self.maze.robot_radius
        self.places = np.where(blocked[:, None], self.places, places)
        self.collisions += blocked

    def sense(self) -> np.ndarray:
        """
        :return: ``(n, 11)`` float32: 1; the distance to the nearest wall at -90, -45, 0, 45, 90 and -180 degrees from the
            heading, divided by 100 and at most 1; and whether the goal lies ahead, right, behind or left
        """
        positions, heading = self.positions, self.heading.astype(np.float64)
        angles = (heading[:, None] + np.array(_RANGE_FINDERS)) * _DEGREE
        rays = _RANGE * np.stack([np.cos(angles), np.sin(angles)], axis=-1)[:, :, None]  # (n, 6, 1, 2)
        along = self._walls[:, 2:] - self._walls[:, :2]
        to_wall = (self._walls[:, :2] - positions[:, None])[:, None]  # (n, 1, n_walls, 2)
        cross = _cross(rays, along)
        parallel = cross == 0
        cross = np.where(parallel, 1.0, cross)
        on_ray, on_wall = _cross(to_wall, along) / cross, _cross(to_wall, rays) / cross
        hit = ~parallel & (on_ray > 0) & (on_ray < 1) & (on_wall > 0) & (on_wall < 1)
        sensed = np.zeros((len(heading), 11), np.float32)
        sensed[:, 0] = 1
        sensed[:, 1:7] = np.where(hit, on_ray, 1.0).min(axis=2, initial=1.0)
        dx, dy = (np.array(self.maze.goal) - positions).T
        bearing = np.degrees(np.arctan2(dy, dx)) - heading
        with np.errstate(invalid="ignore"):
            slices = np.nan_to_num((bearing + 45) % 360 // 90).astype(np.int64) % 4
        sensed[np.arange(len(heading)), 7 + slices] = 1
        return sensed


def _approach(values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    change = np.clip(targets - values, -_CHANGE, _CHANGE).astype(np.float32)
    return np.clip(values + change, -_TOP, _TOP)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


class MazePicture:
    """
    Bird's-eye pictures of a maze with its robot.

    The pixels of the published Image Hard Maze were never described. This picture is our own: 0 floor, 96 walls, 160 goal,
    255 robot, 32 a mark from its center towards its heading.

    :param maze: what to draw
    :param size: width and height in pixels
    """

    def __init__(self, maze: MazeMap, size: int = _FRAME_SIZE):
        self.maze = maze
        x, y, width = maze.view
        steps = (np.arange(size) - (size - 1) / 2) * (width / size)
        self._x, self._y = x + steps, y + steps
        points = np.stack(np.meshgrid(self._x, self._y), axis=-1)  # (row, column, 2)
        self.background = np.full((size, size), _FLOOR, np.uint8)
        """``(size, size)`` without the robot."""
        self.background[wall_distances(points, maze.segments).min(axis=-1, initial=np.inf) <= _LINE] = _WALL
        self.background[self._within(*maze.goal, _GOAL_RADIUS)] = _GOAL

    def _within(self, x: float, y: float, radius: float) -> np.ndarray:
        return np.square(self._x - x) + np.square(self._y - y)[:, None] <= radius**2

    def draw_robot(self, robots: MazeRobots, row: int) -> np.ndarray:
        """
        :param robots: with their places
        :param row: which of them
        :return: ``(size, size)`` uint8
        """
        x, y = robots.places[row].tolist()
        return self.draw(x, y, float(robots.heading[row]))

    def draw(self, x: float, y: float, heading: float) -> np.ndarray:
        """
        :param x: of the robot
        :param y: of the robot
        :param heading: degrees
        :return: ``(size, size)`` uint8
        """
        picture, radius, angle = self.background.copy(), self.maze.robot_radius, np.radians(heading)
        rows, columns = np.nonzero(self._within(x, y, radius))
        mark = np.array([[x, y, x + radius * np.cos(angle), y + radius * np.sin(angle)]])
        marked = wall_distances(np.stack([self._x[columns], self._y[rows]], axis=1), mark)[:, 0] <= _LINE
        picture[rows, columns] = np.where(marked, _MARK, _ROBOT)
        return picture


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
        self._picture = MazePicture(self.maze) if obs_type == "image" else None
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
        if self._picture is None:  # everybody starts alike
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
        columns = (self.distance, self.min_distance, near, ever_near, self.robots.collisions)
        names = ("distance", "min_distance", "is_success", "reached_any", "collisions")
        numbers = zip(*(column[rows].tolist() for column in columns), strict=True)
        positions = self.robots.positions[rows]  # a copy
        return [{"bc": bc, **dict(zip(names, row, strict=True))} for bc, row in zip(positions, numbers, strict=True)]


class HardMaze(gym.Env):
    """
    The Hard Maze as a Gymnasium environment: ``HardMaze-v0`` (sensors) and ``HardMazeImage-v0`` (pictures).

    The reward is 0 until the last step, which pays minus the distance to the goal; reaching the goal does not end the
    episode. As only the end pays, the horizon belongs to the task: the last step is ``terminated``, so value functions do
    not bootstrap there. Change it by ``max_steps``; Gymnasium's ``max_episode_steps`` would cut an episode before it pays.
    ``info`` holds, on every step, ``bc`` (the position, ``(2,)``), ``distance``, ``min_distance``, ``is_success`` (closer
    than 10 now), ``reached_any`` and ``collisions``.

    Actions: ``(turning rate, speed)`` in [-0.5, 0.5]. Sensors: see :meth:`MazeRobots.sense`. Pictures: ``(84, 84, 4)``
    uint8, the newest of four last and missing ones black; they are our own, see :class:`MazePicture`.

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
