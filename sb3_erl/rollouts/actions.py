"""From what actors return to what environments take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from gymnasium import spaces

ActionMap = Callable[[np.ndarray], np.ndarray]
"""Maps what actors return to actions of the environment."""


@dataclass(frozen=True)
class ToEnvironment:
    """
    Scales or clips a network's output as SB3's ``predict`` does; an :data:`ActionMap` that can be pickled.

    :param action_space: of the environment
    :param squashed: whether outputs are in [-1, 1] and are scaled to the bounds; otherwise they are clipped to the bounds
    """

    action_space: spaces.Space
    squashed: bool

    @cached_property
    def _map(self) -> tuple[np.ndarray, np.ndarray]:
        """Half the span and the lower bound, ``(1, *action_shape)``."""
        space = self.action_space
        assert isinstance(space, spaces.Box)
        return (space.high - space.low)[None] * np.float32(0.5), space.low[None]

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        """
        :param actions: ``(n_envs, *action_shape)`` as the actors of the algorithm return them
        :return: actions in the space of the environment
        """
        space = self.action_space
        if not isinstance(space, spaces.Box):
            return actions.astype(np.int64)
        if self.squashed:
            scaled, (half_span, low) = actions + 1.0, self._map
            if scaled.dtype != space.dtype:
                return low + scaled * half_span
            scaled *= half_span
            scaled += low
            return scaled
        return np.minimum(np.maximum(actions, space.low), space.high)  # np.clip is slow on small arrays
