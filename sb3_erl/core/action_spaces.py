"""Which action spaces a class takes, and actions of the dtype and within the bounds of their space, whatever rounding does."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from gymnasium import spaces


class UnsupportedSpaceError(ValueError, AssertionError):
    """An observation or action space that a class cannot work with (also an AssertionError, as SB3 raises it)."""


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


SEVERAL_CHOICES = (spaces.MultiDiscrete, spaces.MultiBinary)
"""Spaces of several discrete choices at a time."""


def check_action_space(
    name: str, space: spaces.Space, discrete: bool = False, continuous: bool = True, several: bool = False
) -> None:
    """
    :param name: of the class that is constructed
    :param space: of the environment's actions
    :param discrete: whether ``Discrete`` actions are fine
    :param continuous: whether a bounded Box is fine
    :param several: whether :data:`SEVERAL_CHOICES` are fine
    :raises UnsupportedSpaceError: unless actions are one of those
    """
    if isinstance(space, spaces.MultiBinary) and len(space.shape) > 1:
        raise UnsupportedSpaceError(
            f"{name} needs an env whose bits have one axis, which is what SB3 supports; got action_space={space}. Wrap it in "
            "gymnasium.wrappers.TransformAction(env, lambda bits: bits.reshape(env.action_space.shape), spaces.MultiBinary(n))"
        )
    if (discrete and isinstance(space, spaces.Discrete)) or (several and isinstance(space, SEVERAL_CHOICES)):
        return
    if isinstance(space, SEVERAL_CHOICES):
        kinds = " or ".join(["Box"] * continuous + ["Discrete"] * discrete)
        raise UnsupportedSpaceError(
            f"{name} needs an env with one kind of action at a time (gymnasium.spaces.{kinds}); got action_space={space}. Use "
            "a class of pure evolution, such as OpenAIES, DeepGA or CEM, which takes several discrete choices at a time; or a "
            "gymnasium.ActionWrapper with a Discrete space that numbers all combinations"
        )
    if not continuous:
        raise UnsupportedSpaceError(
            f"{name} needs an env with discrete actions (gymnasium.spaces.Discrete); got action_space={space}. "
            "Use a class for continuous actions, such as ERL, or let a gymnasium.ActionWrapper choose among a few actions"
        )
    if not isinstance(space, spaces.Box):
        kinds = "continuous actions (gymnasium.spaces.Box)" + " or discrete ones" * discrete
        others = ", or a class for discrete actions, such as OpenAIES, or ERL with learner='dqn'" * (not discrete)
        raise UnsupportedSpaceError(
            f"{name} needs an env with {kinds}; got action_space={space}. Use a continuous version of the task{others}; a "
            "gymnasium.ActionWrapper can make one array of several parts"
        )
    if 0 in space.shape:
        raise UnsupportedSpaceError(
            f"{name} needs an env whose actions have at least one component; got action_space={space}. "
            "A gymnasium.ActionWrapper can offer a Box of shape (1,) and drop the action"
        )
    _check_box(name, space)


def _check_box(name: str, space: spaces.Box) -> None:
    """:raises UnsupportedSpaceError: unless actions of a box have components, finite bounds and a dtype of numbers"""
    if space.dtype.kind not in "fiu":
        raise UnsupportedSpaceError(
            f"{name} needs an env whose actions are numbers; got action_space={space} of {space.dtype}. A "
            "gymnasium.ActionWrapper can offer a Box of float32, or a MultiBinary space"
        )
    if not np.isfinite([*space.low.ravel(), *space.high.ravel()]).all():
        raise UnsupportedSpaceError(
            f"{name} needs an env whose actions have finite bounds; got action_space={space} (Continuous action space "
            "must have a finite lower and upper bound). Wrap it in gymnasium.wrappers.RescaleAction or ClipAction"
        )
    with np.errstate(over="ignore"):
        span = space.high.astype(np.float32) - space.low.astype(np.float32)
        overflows = ((space.high - space.low) < 0).any() if space.dtype.kind == "i" else False
        if overflows or not (np.isfinite(span * 2).all() and np.isfinite((space.high - space.low) * 2).all()):
            raise UnsupportedSpaceError(
                f"{name} needs an env whose actions have bounds of which the difference is a number of its dtype; got "
                f"action_space={space}. Wrap it in gymnasium.wrappers.RescaleAction(env, -1, 1) or in an ActionWrapper with "
                "bounds that are in use"
            )


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
    return agent if isinstance(agent, InSpace) or is_plain(agent.action_space) else InSpace(agent)
