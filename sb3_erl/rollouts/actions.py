"""From what actors return to what environments take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from gymnasium import spaces

from sb3_erl.core.action_spaces import inside, is_plain

ActionMap = Callable[[np.ndarray], np.ndarray]
"""Maps what actors return to actions of the environment."""


@dataclass(frozen=True)
class ToEnvironment:
    """
    Scales or clips a network's output as SB3's ``predict`` does; an :data:`ActionMap` that can be pickled.

    Unlike SB3's, the actions are always of the space's dtype and within its bounds, whole numbers where it has these, and
    count from the ``start`` of a ``Discrete`` or ``MultiDiscrete`` space.

    :param action_space: of the environment
    :param squashed: whether outputs are in [-1, 1] and are scaled to the bounds; otherwise they are clipped to the bounds
    """

    action_space: spaces.Space
    squashed: bool

    @cached_property
    def _map(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
        """Half the span and the lower bound, ``(1, *action_shape)``, a one, and whether the result needs nothing else."""
        space = self.action_space
        assert isinstance(space, spaces.Box)
        half_span, one = (space.high - space.low)[None] * np.float32(0.5), np.ones((), dtype=np.float32)
        return half_span, space.low[None], one, is_plain(space)

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        """
        :param actions: ``(n_envs, *action_shape)`` as the actors of the algorithm return them
        :return: actions in the space of the environment
        """
        space = self.action_space
        if not isinstance(space, spaces.Box):
            return inside(actions.astype(np.int64), space)
        half_span, low, one, is_done = self._map
        if not self.squashed:
            clipped = np.minimum(np.maximum(actions, space.low), space.high)  # np.clip is slow on small arrays
            return clipped if is_done else inside(clipped, space)
        scaled = actions + one  # an array: NumPy takes longer to convert a number of Python than to add it
        if scaled.dtype != space.dtype:
            scaled = low + scaled * half_span
        else:
            scaled *= half_span
            scaled += low
        return scaled if is_done else inside(scaled, space)
