"""
Environments: test beds for novelty search, deceptive tasks whose obvious reward leads into a dead end, and small games.

Importing this module registers ``HardMaze-v0`` (sensors), ``HardMazeImage-v0`` (images, also as ``ImageHardMaze-v0``),
``DeceptiveCup-v0`` and MinAtar's games, such as ``MinAtar/Breakout-v1`` (:mod:`sb3_erl.envs.minatar`), with Gymnasium. Where
the import is not certain, for example in worker processes, write ``"sb3_erl.envs:HardMaze-v0"``.

>>> gym.make("HardMaze-v0").observation_space.shape
(11,)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_erl.core.extras import missing_extra
from sb3_erl.envs import deceptive_cup
from sb3_erl.envs.behavior_wrapper import BehaviorWrapper
from sb3_erl.envs.deceptive_cup import DeceptiveCup
from sb3_erl.envs.hard_maze import HardMaze, VecHardMaze
from sb3_erl.envs.maze import MazeMap
from sb3_erl.envs.minatar import GAMES, TIME_LIMIT
from sb3_erl.envs.mujoco import MujocoVecEnv

__all__ = [
    "BehaviorWrapper",
    "DeceptiveCup",
    "HardMaze",
    "MazeMap",
    "MujocoVecEnv",
    "VecHardMaze",
    "draw_positions",
    "register_envs",
]


PICTURES = ("HardMazeImage-v0", "ImageHardMaze-v0")
"""Ids of the maze in images, which are the same environment."""


def register_envs() -> None:
    """Register the environments of this module with Gymnasium, as the import of the module does."""
    entries: tuple[tuple[str, str, int | None, dict[str, Any]], ...] = (
        ("HardMaze-v0", "sb3_erl.envs.hard_maze:HardMaze", None, {"obs_type": "sensors"}),
        *((name, "sb3_erl.envs.hard_maze:HardMaze", None, {"obs_type": "image"}) for name in PICTURES),
        ("DeceptiveCup-v0", "sb3_erl.envs.deceptive_cup:DeceptiveCup", deceptive_cup.HORIZON, {}),
        *(
            (
                f"MinAtar/{name}-v{version}",
                "sb3_erl.envs.minatar:MinAtar",
                TIME_LIMIT,
                {"game": game, "use_minimal_action_set": version == 1},
            )
            for name, game in GAMES.items()
            for version in (0, 1)
        ),
    )
    for name, entry_point, horizon, kwargs in entries:
        if name not in gym.registry:
            gym.register(name, entry_point, max_episode_steps=horizon, kwargs=kwargs)


def draw_positions(
    domain: Any, trajectories: Sequence[np.ndarray] = (), ends: np.ndarray | None = None, path: str | Path | None = None
) -> Any:
    """
    Draw the trajectories and ends of episodes, early ones dark and late ones bright.

    :param domain: one of this module's environments (wrappers do not matter), or a :class:`MazeMap`
    :param trajectories: each ``(T, 2)``; may be empty
    :param ends: ``(n, 2)`` end positions, for example an archive's entries; ``None`` for the ends of the trajectories
    :param path: where to save the picture, ``None`` for nowhere
    :return: the :class:`matplotlib.figure.Figure`
    :raises ValueError: if ``domain`` has no walls to draw, or positions are not ``(n, 2)``
    :raises ImportError: if matplotlib is not installed
    """
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("draw_positions needs matplotlib", "plots") from error
    place: Any = domain.unwrapped if isinstance(domain, gym.Env) else domain
    place = getattr(place, "maze", place)
    if not hasattr(place, "lines"):
        raise ValueError(f"domain must be a HardMaze, a DeceptiveCup or a MazeMap; got {type(place).__name__}")
    tracks = [_positions("trajectories", track) for track in trajectories]
    last = np.array([track[-1] for track in tracks if len(track)]).reshape(-1, 2) if ends is None else _positions("ends", ends)
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.add_subplot(aspect="equal")
    for line in place.lines:
        axes.plot(*line.T, color="black", linewidth=2)
    for share, track in zip(np.linspace(0, 1, len(tracks)), tracks, strict=True):
        axes.plot(*track.T, color=colormaps["viridis"](share), linewidth=0.8, alpha=0.7)
    axes.scatter(last[:, 0], last[:, 1], c=np.linspace(0, 1, len(last)), cmap="viridis", s=12, zorder=3, label="end")
    axes.scatter(place.start[0], place.start[1], marker="o", color="tab:blue", zorder=4, label="start")
    if place.goal is not None:
        axes.scatter(place.goal[0], place.goal[1], marker="*", color="tab:red", s=120, zorder=4, label="goal")
    if place.y_points_down:
        axes.invert_yaxis()
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    if path is not None:
        figure.savefig(path)
    return figure


def _positions(name: str, values: Any) -> np.ndarray:
    positions = np.asarray(values, dtype=np.float64)
    if positions.ndim != 2 or positions.shape[1] != 2:
        raise ValueError(f"{name} must hold positions of shape (n, 2); got {positions.shape}")
    return positions


register_envs()
