"""
MinAtar: five Atari games on small grids, with the ids that MinAtar gives them.

Young & Tian (2019), https://arxiv.org/abs/1903.03176; kenjyoung/MinAtar, ``minatar/gym.py``. The ids are registered with
those of :mod:`sb3_erl.envs`, so ``minatar`` is imported when an environment is made.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_erl.core.checks import check_choice, check_range
from sb3_erl.core.extras import missing_extra

GAMES = {
    "Asterix": "asterix",
    "Breakout": "breakout",
    "Freeway": "freeway",
    "Seaquest": "seaquest",
    "SpaceInvaders": "space_invaders",
}
"""What a game is called in ids, and in MinAtar."""
TIME_LIMIT = 5000
"""Steps after which an episode is truncated; Freeway ends by itself after 2501, the others may go on forever."""


class MinAtar(gym.Env[np.ndarray, np.int64]):
    """
    A game of MinAtar.

    Differences from ``minatar.gym.BaseEnv``: an episode depends on its seed alone, not on the last action of the one before;
    ``np_random`` is seeded, as Gymnasium expects; pictures need no seaborn. The time limit belongs to the registered ids.

    :param game: ``"asterix"``, ``"breakout"``, ``"freeway"``, ``"seaquest"`` or ``"space_invaders"``
    :param use_minimal_action_set: offer only actions that have a meaning in this game (``-v1``), not all six (``-v0``)
    :param sticky_action_prob: probability of repeating the last action instead, in [0, 1]
    :param difficulty_ramping: whether the games get harder with time
    :param render_mode: ``"rgb_array"`` or ``None``
    :raises ImportError: if MinAtar is not installed
    :raises ValueError: if there is no such game or mode, or the probability is out of range
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 gymnasium's own annotation

    def __init__(
        self,
        game: str,
        use_minimal_action_set: bool = True,
        sticky_action_prob: float = 0.1,
        difficulty_ramping: bool = True,
        render_mode: str | None = None,
    ):
        if game not in GAMES.values():
            raise ValueError(f"game must be one of {sorted(GAMES.values())}; got {game!r}")
        check_range("sticky_action_prob", sticky_action_prob, 0, 1)
        check_choice("render_mode", render_mode, (None, *self.metadata["render_modes"]))
        try:
            from minatar import Environment
        except ImportError as error:
            raise missing_extra("MinAtar's games need the package minatar", "minatar") from error
        self.game = Environment(game, sticky_action_prob=sticky_action_prob, difficulty_ramping=difficulty_ramping)
        self.actions = self.game.minimal_action_set() if use_minimal_action_set else list(range(self.game.num_actions()))
        self.action_space = spaces.Discrete(len(self.actions))
        self.observation_space = spaces.Box(0, 1, self.game.state_shape(), dtype=np.bool_)
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """:return: observation ``(10, 10, channels)`` of bool, and an empty dict"""
        super().reset(seed=seed)
        self.game.seed(int(self.np_random.integers(2**32)))
        self.game.last_action = 0
        self.game.reset()
        return self.game.state(), {}

    def step(self, action: np.int64 | int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        :param action: index into the actions that are offered
        :return: observation, reward, whether the game is over, ``False``, and an empty dict
        """
        reward, is_over = self.game.act(self.actions[int(action)])
        return self.game.state(), float(reward), bool(is_over), False, {}

    def render(self) -> np.ndarray | None:
        """:return: ``(160, 160, 3)`` of uint8, a shade for each channel; ``None`` without ``render_mode``"""
        if self.render_mode is None:
            return None
        state = self.game.state()
        shade = (state * np.arange(1, state.shape[2] + 1)).max(axis=2) / state.shape[2]
        color = np.stack([shade, shade**2, 0.5 * shade], axis=2)
        return (255 * color).astype(np.uint8).repeat(16, axis=0).repeat(16, axis=1)
