"""
Behavior descriptors: arrays that describe an episode, which novelty compares.

They are measured inside the environment, because SB3's vectorized environments reset a finished episode at once: simulator
state that is read afterwards belongs to the next episode. See :class:`~sb3_erl.envs.behavior_wrapper.BehaviorWrapper`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from sb3_erl.core.checks import check_choice, check_range
from sb3_erl.core.observations import copied, copy_info
from sb3_erl.envs.behavior_values import KEY, read_behavior


@dataclass
class EpisodeTrace:
    """
    An episode as a user's function of it receives it.

    :param env: the environment, still in its last state
    :param observations: T + 1 observations, the first one from ``reset``; each a dict of arrays for a Dict space
    :param actions: T actions
    :param rewards: T rewards
    :param infos: T + 1 infos, the first one from ``reset``
    """

    env: gym.Env
    observations: list[Any] = field(default_factory=list)
    actions: list[Any] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    infos: list[dict[str, Any]] = field(default_factory=list)


BehaviorFunction = Callable[[EpisodeTrace], np.ndarray]


class Behavior:
    """Base of all behavior descriptors; one object follows one environment."""

    def begin(self, env: gym.Env, observation: Any, info: dict[str, Any]) -> None:
        """An episode begins."""

    def step(self, env: gym.Env, observation: Any, action: Any, reward: float, info: dict[str, Any]) -> None:
        """A step was made."""

    def end(self, env: gym.Env, info: dict[str, Any]) -> np.ndarray:
        """
        :param env: the environment in its last state
        :param info: of the last step
        :return: ``(dim,)``, or ``(T, ...)`` for a sequence
        :raises ValueError: if the environment does not give what is needed
        """
        raise NotImplementedError


class FromInfo(Behavior):
    """
    What the environment itself writes into its last ``info``, for example the final position in ``HardMaze-v0``.

    :param key: of the entry
    """

    def __init__(self, key: str = KEY):
        self.key = key

    def end(self, env: gym.Env, info: dict[str, Any]) -> np.ndarray:
        """See :class:`Behavior`."""
        return read_behavior(info, self.key)


class FinalPosition(Behavior):
    """
    Where a robot is after the last step.

    Conti et al. (2018), https://arxiv.org/abs/1712.06560, section 4.2; authors' code: uber-research/deep-neuroevolution,
    ``es_distributed/policies.py``, which takes the center of mass.

    :param point: ``"com"``, the center of mass of all bodies of a MuJoCo model, or ``"torso"``: ``info["x_position"]`` and
        ``info["y_position"]`` (0 if missing, in planar tasks), or else the root body of the MuJoCo model
    :raises ValueError: if ``point`` is unknown
    """

    def __init__(self, point: Literal["com", "torso"] = "com"):
        check_choice("point", point, ("com", "torso"))
        self.point = point

    def end(self, env: gym.Env, info: dict[str, Any]) -> np.ndarray:
        """:return: ``(2,)``, x and y in meters"""
        return self.position(env, info)

    def position(self, env: gym.Env, info: dict[str, Any]) -> np.ndarray:
        """
        :param env: the environment
        :param info: of the last step or reset
        :return: ``(2,)``, x and y in meters
        :raises ValueError: if the environment has no position
        """
        inner: Any = env.unwrapped
        if self.point == "torso" and "x_position" in info:
            return np.array([info["x_position"], info.get("y_position", 0.0)], dtype=np.float64)
        if _is_mujoco(env):
            if self.point == "torso":
                return np.array(inner.data.xpos[1, :2])  # body 0 is the world
            mass = inner.model.body_mass
            return (mass @ inner.data.xipos)[:2] / mass.sum()
        needed = "a MuJoCo environment" if self.point == "com" else 'a MuJoCo environment or info["x_position"]'
        raise ValueError(
            f"behavior with point={self.point!r} needs {needed}; got {inner}. Give a function of the episode as behavior"
        )


class PositionTrajectory(FinalPosition):
    """
    The trajectory of a robot: all x, then all y, one per step.

    The authors' option ``traj``, see :class:`FinalPosition`. A shorter episode stays where it ended.

    :param point: see :class:`FinalPosition`
    :param max_steps: T, ``None`` for the environment's own limit
    :raises ValueError: if a number is out of range
    """

    def __init__(self, point: Literal["com", "torso"] = "com", max_steps: int | None = None):
        super().__init__(point)
        if max_steps is not None:
            check_range("max_steps", max_steps, 1, integer=True)
        self.max_steps = max_steps
        self._track: list[np.ndarray] = []

    def begin(self, env: gym.Env, observation: Any, info: dict[str, Any]) -> None:
        """See :class:`Behavior`."""
        self._track = []

    def step(self, env: gym.Env, observation: Any, action: Any, reward: float, info: dict[str, Any]) -> None:
        """See :class:`Behavior`."""
        self._track.append(self.position(env, info))

    def end(self, env: gym.Env, info: dict[str, Any]) -> np.ndarray:
        """:return: ``(2 T,)``"""
        length = self.max_steps or (env.spec.max_episode_steps if env.spec is not None else None)
        if length is None or len(self._track) > length:
            raise ValueError(
                f"max_steps must be the length of the longest episode; got {length}, with an episode of {len(self._track)} "
                'steps. Give behavior_kwargs={"max_steps": ...}'
            )
        track = self._track or [self.position(env, info)]
        return np.array(track + track[-1:] * (length - len(track))).T.ravel()


class Memory(Behavior):
    """The 128 bytes of an Atari machine after every step, as in the authors' code of NS-ES."""

    def __init__(self) -> None:
        self._bytes: list[np.ndarray] = []

    def begin(self, env: gym.Env, observation: Any, info: dict[str, Any]) -> None:
        """See :class:`Behavior`."""
        self._bytes = []

    def step(self, env: gym.Env, observation: Any, action: Any, reward: float, info: dict[str, Any]) -> None:
        """See :class:`Behavior`."""
        self._bytes.append(_memory_of(env, "memory"))

    def end(self, env: gym.Env, info: dict[str, Any]) -> np.ndarray:
        """:return: ``(T, 128)`` uint8"""
        return np.array(self._bytes)


class FinalMemory(Behavior):
    """The 128 bytes of an Atari machine after the last step, as in the authors' code of the genetic algorithm."""

    def end(self, env: gym.Env, info: dict[str, Any]) -> np.ndarray:
        """:return: ``(128,)`` uint8"""
        return _memory_of(env, "final_memory")


class FinalObservation(Behavior):
    """The observation after the last step, as the environment gives it; arrays of a Dict space in the order of keys."""

    def __init__(self) -> None:
        self._last: Any = None

    def begin(self, env: gym.Env, observation: Any, info: dict[str, Any]) -> None:
        """See :class:`Behavior`."""
        self._last = observation

    def step(self, env: gym.Env, observation: Any, action: Any, reward: float, info: dict[str, Any]) -> None:
        """See :class:`Behavior`."""
        self._last = observation

    def end(self, env: gym.Env, info: dict[str, Any]) -> np.ndarray:
        """:return: ``(n,)``, whatever the shape of an observation"""
        return self.of(self._last)

    @staticmethod
    def of(observation: Any) -> np.ndarray:
        """
        :param observation: one observation
        :return: ``(n,)`` float64
        """
        parts = [observation[key] for key in sorted(observation)] if isinstance(observation, dict) else [observation]
        return np.concatenate([np.array(part, dtype=np.float64).ravel() for part in parts])


class FromEpisode(Behavior):
    """
    A function of the whole episode.

    :param function: takes an :class:`EpisodeTrace`, returns ``(dim,)`` or ``(T, ...)``
    """

    def __init__(self, function: BehaviorFunction):
        self.function = function
        self._trace: EpisodeTrace | None = None

    def begin(self, env: gym.Env, observation: Any, info: dict[str, Any]) -> None:
        """See :class:`Behavior`."""
        self._trace = EpisodeTrace(env, [copied(observation)], infos=[copy_info(info)])

    def step(self, env: gym.Env, observation: Any, action: Any, reward: float, info: dict[str, Any]) -> None:
        """See :class:`Behavior`."""
        trace = self._trace
        assert trace is not None
        trace.observations.append(copied(observation))
        trace.actions.append(np.copy(action))
        trace.rewards.append(float(reward))
        trace.infos.append(copy_info(info))

    def end(self, env: gym.Env, info: dict[str, Any]) -> np.ndarray:
        """See :class:`Behavior`."""
        assert self._trace is not None
        return np.asarray(self.function(self._trace))


class Auto(Behavior):
    """
    ``info["bc"]`` where there is one; otherwise center of mass (MuJoCo), memory (Atari) or a vector's last observation.

    :param memory: of Atari games: ``"memory"``, that after every step, or ``"final_memory"``
    :raises ValueError: if ``memory`` is unknown
    """

    def __init__(self, memory: Literal["memory", "final_memory"] = "memory") -> None:
        check_choice("memory", memory, ("memory", "final_memory"))
        self.memory = memory
        self._chosen: Behavior | None = None

    def begin(self, env: gym.Env, observation: Any, info: dict[str, Any]) -> None:
        """See :class:`Behavior`."""
        if self._chosen is None:
            self._chosen = self._fitting(env)
        self._chosen.begin(env, observation, info)

    def _fitting(self, env: gym.Env) -> Behavior:
        if _is_mujoco(env):
            return FinalPosition()
        if hasattr(env.unwrapped, "ale"):
            return BEHAVIORS[self.memory]()
        return FinalObservation() if is_vector(env.observation_space) else FromInfo()

    def step(self, env: gym.Env, observation: Any, action: Any, reward: float, info: dict[str, Any]) -> None:
        """See :class:`Behavior`."""
        assert self._chosen is not None
        self._chosen.step(env, observation, action, reward, info)

    def end(self, env: gym.Env, info: dict[str, Any]) -> np.ndarray:
        """See :class:`Behavior`."""
        assert self._chosen is not None
        return read_behavior(info) if KEY in info else self._chosen.end(env, info)


def is_vector(space: gym.Space) -> bool:
    """Whether observations are short enough to be compared as they are."""
    return isinstance(space, gym.spaces.Box) and len(space.shape) == 1


BEHAVIORS: dict[str, type[Behavior]] = {
    "auto": Auto,
    "info": FromInfo,
    "final_observation": FinalObservation,
    "final_position": FinalPosition,
    "trajectory": PositionTrajectory,
    "memory": Memory,
    "final_memory": FinalMemory,
}
"""Built-in behavior descriptors by name."""


def make_behavior(behavior: str | type[Behavior] | BehaviorFunction, **kwargs: Any) -> Behavior:
    """
    :param behavior: key of :data:`BEHAVIORS`, a class, or a function of an :class:`EpisodeTrace`
    :param kwargs: further arguments of the class
    :return: a descriptor for one environment
    :raises ValueError: if a string is unknown

    >>> make_behavior("final_position", point="torso").point
    'torso'
    """
    if isinstance(behavior, str):
        check_choice("behavior", behavior, BEHAVIORS)
        return BEHAVIORS[behavior](**kwargs)
    if isinstance(behavior, type):
        return behavior(**kwargs)
    return FromEpisode(behavior)


def mean_behavior(behaviors: Sequence[np.ndarray]) -> np.ndarray:
    """
    :param behaviors: of all episodes of one individual, each ``(dim,)``
    :return: ``(dim,)`` their mean; a single behavior, sequences included, as it is
    :raises ValueError: if there is none, or if there are several that have no mean: sequences, or unequal shapes

    >>> mean_behavior([np.array([0.0, 2.0]), np.array([4.0, 2.0])])
    array([2., 2.])
    """
    if len(behaviors) == 1:
        return np.array(behaviors[0])
    shapes = {np.shape(behavior) for behavior in behaviors}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise ValueError(
            f"behaviors must be vectors of one length to have a mean; got shapes {sorted(shapes)}. With sequences run one "
            "episode per individual (n_bc_episodes=1)"
        )
    return np.mean(np.array(behaviors, dtype=np.float64), axis=0)


def _is_mujoco(env: gym.Env) -> bool:
    inner = env.unwrapped
    return hasattr(getattr(inner, "data", None), "xipos") and hasattr(getattr(inner, "model", None), "body_mass")


def _memory_of(env: gym.Env, behavior: str) -> np.ndarray:
    inner: Any = env.unwrapped
    if not hasattr(inner, "ale"):
        raise ValueError(f'behavior="{behavior}" must have an Atari environment; got {inner}. Use another behavior')
    return np.array(inner.ale.getRAM(), dtype=np.uint8)
