"""
The maze with its robots and pictures; the environments are in :mod:`sb3_erl.envs.hard_maze`.

Lehman & Stanley (2011), "Abandoning Objectives"; numbers and order of operations as in uber-research/deep-neuroevolution,
``gpu_implementation/gym_tensorflow/maze``. Lengths are maze units; x points right and y **down**, as in a picture, so a
positive angle turns clockwise. The state is float32 and each product float64, as in that program, because a contact with a
wall can hang on the last digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sb3_erl.core.checks import check_range

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


@dataclass(frozen=True)
class MazeMap:
    """
    Walls and places of a maze.

    :param walls: ``(x1, y1, x2, y2)`` of each wall; one of length 0 is a point (in the original it touches every robot)
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
    Independent robots, each in its own copy of a maze; nothing is random.

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

    The pixels of the published Image Hard Maze were never described. These are this package's own: 0 floor, 96 walls, 160
    goal, 255 robot, 32 a mark from its center toward its heading.

    :param maze: what to draw
    :param size: width and height in pixels
    """

    def __init__(self, maze: MazeMap, size: int = 84):
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
