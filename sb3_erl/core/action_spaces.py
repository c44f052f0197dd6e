"""Actions of the dtype and within the bounds of their space, whatever rounding does on the way."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from gymnasium import spaces


def is_plain(space: spaces.Space) -> bool:
    """
    :param space: of actions
    :return: whether actions of SB3's networks are in it as SB3's ``predict`` scales or clips them: numbers of float32 or
        float64 whose bounds rounding does not exceed, or numbers from 0 on
    """
    if isinstance(space, spaces.Discrete):
        return int(space.start) == 0
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        return space.dtype == np.int64 and not np.any(getattr(space, "start", 0))
    if not isinstance(space, spaces.Box):
        return True
    return space.dtype in (np.float32, np.float64) and not scaling_exceeds(space)


def scaling_exceeds(space: spaces.Box) -> bool:
    """
    :param space: of actions, with finite bounds
    :return: whether 1, scaled from [-1, 1] to the bounds in either of the two ways in use, is rounded to more than the upper
        bound, or -1 to less than the lower one
    """
    one, low, high = np.float32(1.0), space.low, space.high
    largest = [low + (0.5 * (one + 1.0) * (high - low)), low + (one + 1.0) * ((high - low) * np.float32(0.5))]
    return bool(any((value > high).any() for value in largest))


def inside(actions: np.ndarray, space: spaces.Space) -> np.ndarray:
    """
    :param actions: one or several, scaled to the bounds; for ``Discrete`` and ``MultiDiscrete`` numbers that count from 0
    :param space: of actions
    :return: actions that ``space.contains``: clipped, of its dtype, in a box of whole numbers the nearest ones; numbers of
        choices count from the ``start`` of the space
    """
    if isinstance(space, spaces.Discrete):
        return actions + space.start
    if isinstance(space, spaces.Box):
        clipped = np.clip(actions, space.low, space.high)
        return (clipped if space.dtype.kind == "f" else np.rint(clipped)).astype(space.dtype)
    return (actions + getattr(space, "start", 0)).astype(space.dtype)


class ActsInSpace:
    """Lets the ``predict`` of an SB3 policy give actions that the space contains; stands before the policy's class."""

    action_space: spaces.Space

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Any:
        """See SB3's ``BasePolicy.predict``, and :func:`inside`."""
        actions, state = super().predict(observation, state, episode_start, deterministic)  # type: ignore[misc]
        return actions if self._is_plain else inside(actions, self.action_space), state

    def unscale_action(self, scaled_action: np.ndarray) -> np.ndarray:
        """See SB3's ``BasePolicy.unscale_action``, and :func:`inside`."""
        actions = super().unscale_action(scaled_action)  # type: ignore[misc]
        return actions if self._is_plain else inside(actions, self.action_space)

    @cached_property
    def _is_plain(self) -> bool:
        return is_plain(self.action_space)


class InSpace:
    """
    An agent whose ``predict`` gives actions that the space contains; everything else is the agent's.

    :param agent: with ``predict`` and ``action_space``
    """

    def __init__(self, agent: Any):
        self.agent = agent

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "agent":
            raise AttributeError(name)
        return getattr(self.agent, name)

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Any:
        """See SB3's ``BasePolicy.predict``."""
        actions, state = self.agent.predict(observation, state, episode_start, deterministic)
        return inside(actions, self.agent.action_space), state


def in_space(agent: Any) -> Any:
    """
    :param agent: an acting network of SB3's kind
    :return: the agent itself if its actions are in the space anyhow, otherwise :class:`InSpace`
    """
    return agent if is_plain(agent.action_space) else InSpace(agent)
