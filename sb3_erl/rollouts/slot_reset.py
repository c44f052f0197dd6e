"""Resetting one environment of a VecEnv in the middle of the others' episodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    VecVideoRecorder,
)
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations

UNCHANGING = (VecMonitor, VecCheckNan, VecVideoRecorder)
"""SB3's wrappers that give the observations that they get."""
KNOWN = (VecNormalize, VecFrameStack, VecTransposeImage, VecExtractDictObs, *UNCHANGING)
"""Wrappers whose treatment of a first observation is known."""
OBSERVING = ("reset", "step_wait", "step")
"""Methods in which a wrapper may change observations."""


def wrappers_of(env: VecEnv) -> list[VecEnvWrapper]:
    """
    :param env: environments
    :return: the wrappers around them, the outermost first
    """
    found: list[VecEnvWrapper] = []
    while isinstance(env, VecEnvWrapper):
        found.append(env)
        env = env.venv
    return found


def base_of(env: VecEnv) -> Any:
    """
    :param env: environments
    :return: the VecEnv below all wrappers; ``env.unwrapped`` is the simulator itself in some VecEnvs
    """
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    return env


def resets_slots(wrapper: VecEnvWrapper) -> bool:
    """
    :param wrapper: one around environments
    :return: whether it has a ``reset_slot`` of its own; SB3's wrappers hand on what those below them have
    """
    return "reset_slot" in vars(wrapper) or hasattr(type(wrapper), "reset_slot")


def is_unknown(wrapper: VecEnvWrapper) -> bool:
    """
    Whether a wrapper may do something to observations that nobody can say.

    :param wrapper: one around environments
    :return: whether it sees them in methods that are neither SB3's nor accompanied by ``reset_slot``
    """
    if resets_slots(wrapper):
        return False
    base = next((cls for cls in KNOWN if isinstance(wrapper, cls)), VecEnvWrapper)
    return any(name in vars(wrapper) or getattr(type(wrapper), name) is not getattr(base, name) for name in OBSERVING)


def changes_observations(wrapper: VecEnvWrapper) -> bool:
    """
    :param wrapper: one around environments
    :return: whether its observations are certainly not those that it gets
    """
    if isinstance(wrapper, UNCHANGING):
        return False
    if isinstance(wrapper, VecTransposeImage):
        return not wrapper.skip
    is_known = isinstance(wrapper, VecFrameStack | VecExtractDictObs)
    return is_known or resets_slots(wrapper) or wrapper.observation_space != wrapper.venv.observation_space


def normalizer_on_top(env: VecEnv) -> VecNormalize | None:
    """
    The wrapper whose ``get_original_obs`` is what policies would see if nothing were normalized.

    :param env: environments
    :return: ``None`` without one, if it leaves observations as they are, or if a wrapper above it changes them
    """
    for wrapper in wrappers_of(env):
        if isinstance(wrapper, VecNormalize):
            return wrapper if wrapper.norm_obs else None
        if changes_observations(wrapper):
            return None
    return None


def space_of_policies(env: VecEnv) -> spaces.Space:
    """
    :param env: environments
    :return: the space of observations as policies see them, of floats where a wrapper makes such of whole numbers, as
        VecNormalize does without saying so in its space
    """
    if not any(
        wrapper.norm_obs if isinstance(wrapper, VecNormalize) else not isinstance(wrapper, KNOWN)
        for wrapper in wrappers_of(env)
    ):
        return env.observation_space

    def of_floats(space: spaces.Space) -> spaces.Space:
        if isinstance(space, spaces.Dict):
            return spaces.Dict({key: of_floats(part) for key, part in space.spaces.items()})
        if isinstance(space, spaces.Box) and space.dtype is not None and space.dtype.kind != "f":
            return spaces.Box(-np.inf, np.inf, space.shape, np.float32)
        return space

    return of_floats(env.observation_space)


def text_of_order(names: list[str]) -> str:
    """
    :param names: of classes of wrappers around VecNormalize that change observations
    :return: what an error says of them
    """
    return (
        f"env must have VecNormalize outside of {' and '.join(names)}: a replay buffer keeps observations as they are before "
        "VecNormalize and normalizes them when they are drawn, but here they are changed after it. Change the order to "
        f"VecNormalize({names[-1]}(...)), or give VecNormalize norm_obs=False"
    )


def check_order(env: VecEnv) -> None:
    """
    :param env: environments of a class with a replay buffer
    :raises ValueError: if observations are changed after they were normalized, so that no original of them exists
    """
    above: list[str] = []
    for wrapper in wrappers_of(env):
        if isinstance(wrapper, VecNormalize) and wrapper.norm_obs and above:
            raise ValueError(text_of_order(above))
        if changes_observations(wrapper):
            above.append(type(wrapper).__name__)


def take_options(base: VecEnv, index: int) -> dict[str, Any]:
    """
    What the user asked of the next reset of an environment by ``set_options``; it is forgotten, as is a seed.

    :param base: environments without wrappers
    :param index: number of the environment
    :return: the options, empty if there are none
    """
    if index >= len(getattr(base, "_options", ())):  # not made by SB3's constructor, or a wrapper has more environments
        return {}
    options, base._options[index], base._seeds[index] = base._options[index], {}, None
    return options


def reset_arguments(base: VecEnv, index: int, seed: int) -> dict[str, Any]:
    """
    :param base: environments without wrappers
    :param index: number of the environment
    :param seed: of its next episode
    :return: arguments of its ``reset``, with the options that :func:`take_options` gives if there are any
    """
    options = take_options(base, index)
    return {"seed": seed, "options": options} if options else {"seed": seed}


class SlotResetter:
    """
    Resets one slot with a seed and passes the observation through every wrapper, as ``VecEnv.reset`` would.

    :param env: any VecEnv whose ``env_method("reset", seed=..., indices=[i])`` resets environment i and returns
        ``[(observation, info)]``, as SB3's do; a wrapper of the user's own that changes observations must offer
        ``reset_slot(index, observation) -> observation``
    :param reset: resets environment i with a seed and returns its observation, in place of that ``env_method``
    """

    def __init__(self, env: VecEnv, reset: Callable[[int, int], Any] | None = None):
        self.env, self._reset = env, reset or self._reset_by_method
        self._wrappers = wrappers_of(env)
        self._original_below = normalizer_on_top(env)
        self.is_possible = not any(is_unknown(wrapper) for wrapper in self._wrappers)
        """Whether it is known what each wrapper does with a first observation."""

    def __call__(self, index: int, seed: int) -> tuple[Any, Any]:
        """
        :param index: number of the environment
        :param seed: seed of the episode
        :return: first observation as the policy sees it, and as the replay buffer stores it
        :raises ValueError: if the VecEnv or one of its wrappers cannot reset one environment
        """
        if not self.is_possible:
            names = ", ".join(type(wrapper).__name__ for wrapper in self._wrappers if is_unknown(wrapper))
            raise ValueError(
                f"env must be able to reset one of its environments; got the wrapper {names}, which may change observations. "
                "Give it a method reset_slot(index, observation) that returns the first observation"
            )
        observation = self._reset(index, seed)
        original = None
        for wrapper in reversed(self._wrappers):
            if wrapper is self._original_below:
                original = observation
            observation = self._through(wrapper, index, observation)
        return observation, observation if original is None else original

    def _reset_by_method(self, index: int, seed: int) -> Any:
        base = base_of(self.env)
        arguments = reset_arguments(base, index, seed)
        try:
            ((observation, _),) = self.env.env_method("reset", **arguments, indices=[index])
        except (EOFError, OSError):  # of a process that died
            raise
        except Exception as error:  # a simulator that cannot may raise anything, or return nothing
            if "options" in arguments:
                base._options[index] = arguments["options"]
            raise ValueError(
                "env must be able to reset one of its environments: env_method('reset', seed=..., indices=[i]) must return "
                f"[(observation, info)]; {type(base).__name__} raised {error!r}. Implement it in the VecEnv"
            ) from error
        return observation

    @staticmethod
    def _through(wrapper: VecEnvWrapper, index: int, observation: Any) -> Any:
        if resets_slots(wrapper):
            return wrapper.reset_slot(index, observation)
        if isinstance(wrapper, VecNormalize):
            wrapper.returns[index] = 0.0
            return wrapper.normalize_obs(observation)
        if isinstance(wrapper, VecTransposeImage):
            return observation if wrapper.skip else wrapper.transpose_observations(observation)
        if isinstance(wrapper, VecExtractDictObs):
            return observation[wrapper.key]
        if isinstance(wrapper, VecFrameStack):
            if isinstance(observation, dict):
                parts = wrapper.stacked_obs.sub_stacked_observations
                return {key: _first_stack(parts[key], index, array) for key, array in observation.items()}
            return _first_stack(wrapper.stacked_obs, index, observation)
        if isinstance(wrapper, VecMonitor):
            wrapper.episode_returns[index] = 0
            wrapper.episode_lengths[index] = 0
        return observation


def _first_stack(stacked: StackedObservations, index: int, observation: np.ndarray) -> np.ndarray:
    """Write zeros and the first observation into the frames of one environment; returns a copy of them."""
    frames = stacked.stacked_obs[index]
    frames[...] = 0
    axis = stacked.repeat_axis  # of one environment's frames; stack_dimension counts the environments' axis too
    last = [slice(None)] * frames.ndim
    last[axis] = slice(-observation.shape[axis], None)
    frames[tuple(last)] = observation
    return frames.copy()
