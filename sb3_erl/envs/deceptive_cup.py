"""The deceptive cup: a point is rewarded for moving right, where a cup that is open to the left is in its way."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_erl.core.checks import check_choice

BOXES = (
    (5.5, 0.0, 0.1, 1.5),
    (4.0, 1.5, 1.5, 0.1),
    (4.0, -1.5, 1.5, 0.1),
)
"""``(x, y, half width, half height)`` of the front wall and both side walls."""

HORIZON = 100
ESCAPED = 7.0
"""An agent that ends farther right than this is outside the cup, beyond its front wall."""

_SPEED, _RADIUS = 0.25, 0.1
_VIEW = (-2.0, -6.5, 13.0)  # left, bottom and width of the square that pictures show
_RENDER_SIZE = 420


class CupAgents:
    """
    Independent points, each beside its own cup; nothing is random.

    Own design; the cup is that of the Deceptive Humanoid of Conti et al. (2018), uber-research/deep-neuroevolution,
    ``extra/humanoid_maze.xml``, without its height. An agent that always moves right ends at x = 5.3 inside it.

    :param n: number of agents
    """

    def __init__(self, n: int = 1):
        boxes = np.array(BOXES)
        self._centers, self._reach = boxes[:, :2], boxes[:, 2:] + _RADIUS
        self.positions = np.zeros((n, 2))
        """``(n, 2)``, x to the right and y up, float64."""

    def reset(self) -> None:
        """Put all agents back to the origin."""
        self.positions = np.zeros_like(self.positions)

    def step(self, actions: np.ndarray) -> np.ndarray:
        """
        Move by a quarter of the action; a move that would end in a wall, or touch it, is not made.

        :param actions: ``(n, 2)``, clipped to [-1, 1]
        :return: ``(n,)`` whether each was blocked
        """
        moved = self.positions + np.clip(np.asarray(actions, np.float64), -1, 1) * _SPEED
        blocked = (np.abs(moved[:, None] - self._centers) <= self._reach).all(axis=2).any(axis=1)
        self.positions = np.where(blocked[:, None], self.positions, moved)
        return blocked


class DeceptiveCup(gym.Env):
    """
    The deceptive cup as a Gymnasium environment: ``DeceptiveCup-v0``, 100 steps by Gymnasium's ``TimeLimit``.

    Observations: ``(x / 10, y / 10, steps / 100)``. Actions: two numbers in [-1, 1], a quarter of which is the way
    in x and y. The reward is the way gained to the right, so the return is the final x: 5.3 at most inside the cup, up to 25
    around it. ``info`` holds, on every step, ``bc`` (the position, ``(2,)``), ``blocked`` and ``is_success`` (x > 7).

    :param render_mode: ``"rgb_array"`` or ``None``
    :raises ValueError: if ``render_mode`` is unknown
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012
    start, goal, y_points_down = (0.0, 0.0), None, False

    def __init__(self, render_mode: str | None = None):
        check_choice("render_mode", render_mode, ("rgb_array", None))
        self.render_mode = render_mode
        lowest = np.array([-np.inf, -np.inf, 0], np.float32)
        self.observation_space = spaces.Box(lowest, np.full(3, np.inf, np.float32), dtype=np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.agents, self._time = CupAgents(), 0

    @property
    def lines(self) -> list[np.ndarray]:
        """The walls as closed polylines ``(5, 2)``, for :func:`sb3_erl.envs.draw_positions`."""
        corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)])
        return [np.array(box[:2]) + corners * box[2:] for box in BOXES]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.agents.reset()
        self._time = 0
        return self._observation(), self._info(False)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        before = self.agents.positions[0, 0]
        blocked = bool(self.agents.step(np.asarray(action)[None])[0])
        self._time += 1
        return self._observation(), float(self.agents.positions[0, 0] - before), False, False, self._info(blocked)

    def _observation(self) -> np.ndarray:
        x, y = self.agents.positions[0]
        return np.array([x / 10, y / 10, self._time / HORIZON], np.float32)

    def _info(self, blocked: bool) -> dict[str, Any]:
        position = self.agents.positions[0].copy()
        return {"bc": position, "blocked": blocked, "is_success": bool(position[0] > ESCAPED)}

    def render(self) -> Any:
        """:return: ``(420, 420, 3)`` uint8, or ``None`` without ``render_mode``"""
        if self.render_mode is None:
            return None
        left, bottom, width = _VIEW
        steps = (np.arange(_RENDER_SIZE) + 0.5) * (width / _RENDER_SIZE)
        x, y = left + steps, (bottom + steps)[::-1, None]
        picture = np.full((_RENDER_SIZE, _RENDER_SIZE, 3), 255, np.uint8)
        for cx, cy, half_width, half_height in BOXES:
            picture[(np.abs(x - cx) <= half_width) & (np.abs(y - cy) <= half_height)] = 60
        px, py = self.agents.positions[0]
        picture[np.square(x - px) + np.square(y - py) <= _RADIUS**2] = (200, 30, 30)
        return picture
