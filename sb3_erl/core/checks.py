"""Checks of arguments; every message names the argument, what was expected, what was given and what to do."""

from __future__ import annotations

import difflib
import inspect
import sys
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy

from sb3_erl.core.action_spaces import UnsupportedSpaceError, check_action_space

MULTI_INPUT = "MultiInputPolicy"
"""Alias of policies that read Dict observations."""


def resolve_policy_and_env(
    policy: Any, env: Any, default_policy: str, policy_aliases: Collection[str]
) -> tuple[str | type[BasePolicy], Any]:
    """
    SB3's form ``Algo(policy, env)`` and the short form ``Algo(env)`` or ``Algo("Ant-v4")``.

    :param policy: policy alias or class; or, with ``env=None``, an environment or a registered id
    :param env: environment, registered id, or ``None``
    :param default_policy: the policy of the short form
    :param policy_aliases: known aliases
    :return: policy and environment
    :raises ValueError: if a string is neither a policy alias nor, without ``env``, a registered id
    :raises TypeError: if ``policy`` is of another type
    """
    if env is not None and not isinstance(env, str) and not hasattr(env, "observation_space"):
        raise TypeError(f"env must be an environment, a VecEnv or the id of a registered one; got {env!r}")
    given = env if hasattr(env, "observation_space") else policy
    space = getattr(given, "observation_space", None)  # of OpenAI Gym, too, whose environments SB3 converts
    if isinstance(space, spaces.Space) and not isinstance(space, spaces.Tuple):
        check_observation_space("the policy", space)  # before SB3 makes arrays for observations that have no shape
    if isinstance(policy, type) and issubclass(policy, BasePolicy):
        return policy, env
    if isinstance(policy, str):
        if policy in policy_aliases:
            return policy, env
        if env is not None:
            raise ValueError(f"policy must be one of {sorted(policy_aliases)} or a policy class; got {policy!r}")
        if ":" in policy or policy in gym.registry:
            return default_policy, policy
        close = difflib.get_close_matches(policy, list(gym.registry), n=3, cutoff=0.5)
        raise ValueError(
            f"policy must be one of {sorted(policy_aliases)} or, without env, the id of a registered environment; "
            f"got {policy!r}. The closest ids are {close}"
        )
    if env is None and policy is not None and hasattr(policy, "observation_space"):
        return MULTI_INPUT if isinstance(policy.observation_space, spaces.Dict) else default_policy, policy
    raise TypeError(
        f"policy must be an alias out of {sorted(policy_aliases)}, a policy class, an environment or an environment id; "
        f"got {type(policy).__name__}"
    )


def check_observation_space(name: str, space: spaces.Space, takes_dicts: bool = True) -> None:
    """
    :param name: of the class that is constructed
    :param space: of the environment's observations
    :param takes_dicts: whether a Dict of arrays is fine
    :raises UnsupportedSpaceError: unless observations are arrays, or a Dict of arrays, that SB3's networks can read
    """
    if isinstance(space, spaces.Dict) and takes_dicts and space.spaces:
        for key, part in space.spaces.items():
            check_observation_space(f"{name}, for the key {key!r} of its Dict observations,", part, takes_dicts=False)
        return
    flat = "gymnasium.wrappers.FlattenObservation"
    expected, way_out = "", ""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        expected = "arrays, or one Dict of arrays, as observations" if takes_dicts else "array observations"
        way_out = f"Wrap it in {flat} or SB3's VecExtractDictObs"
    elif not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        expected = "observations of a Box, Discrete, MultiDiscrete or MultiBinary space"
        way_out = "A gymnasium.ObservationWrapper can turn them into an array of numbers"
    elif isinstance(space, spaces.Box) and (space.shape == () or 0 in space.shape):
        expected = "observations with at least one component and one axis"
        way_out = "gymnasium.wrappers.ReshapeObservation(env, (1,)) gives a number an axis"
    elif isinstance(space, spaces.Box) and space.dtype.kind not in "fiub":
        expected, way_out = "observations of real numbers", "A gymnasium.ObservationWrapper can turn them into float32"
    elif np.any(getattr(space, "start", 0)):
        expected, way_out = (
            "observations that count from 0",
            f"Wrap it in {flat}, or subtract the start in an ObservationWrapper",
        )
    elif isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim > 1:
        expected, way_out = "MultiDiscrete observations with one axis", f"Wrap it in {flat}"
    if expected:
        raise UnsupportedSpaceError(f"{name} needs an env with {expected}; got observation_space={space}. {way_out}")


def check_policy(model: Any, policy: Any) -> None:
    """
    :param model: has its spaces
    :param policy: alias or class
    :raises UnsupportedSpaceError: if it is the alias of networks that read other observations
    """
    is_dict, space = isinstance(model.observation_space, spaces.Dict), model.observation_space
    if not isinstance(policy, str) or policy == "AutoPolicy" or is_dict == (policy == MULTI_INPUT):
        return
    right = f"{MULTI_INPUT!r} for Dict observations" if is_dict else "'MlpPolicy' or 'CnnPolicy' for observations in one array"
    way_out = "Or wrap the env in gymnasium.wrappers.FlattenObservation" if is_dict else f"{MULTI_INPUT!r} needs a Dict space"
    raise UnsupportedSpaceError(f"policy must be {right}; got {policy!r} with observation_space={space}. {way_out}")


def check_env(model: Any) -> None:
    """:raises ValueError: if a model was made without an environment, so that it has no spaces"""
    if getattr(model, "observation_space", None) is None:
        raise ValueError(
            f"env must be an environment or the id of a registered one to create a {type(model).__name__}; got None"
        )


def check_common(model: Any) -> None:
    """
    Check arguments that all classes have, with SB3's that would fail much later or with a message that does not name them.

    :raises ValueError: naming the argument that is out of range
    :raises TypeError: naming the argument that is of another type
    """
    check_env(model)
    if model.seed is not None:
        check_range("seed", model.seed, 0, 2**32 - 1, integer=True)
    check_range("stats_window_size", model._stats_window_size, 1, integer=True)
    if model.learning_rate is not None and not callable(model.learning_rate):
        check_range("learning_rate", model.learning_rate, 0)
    check_schedule("sigma", getattr(model, "sigma", 0.0))
    check_policy_kwargs(model.policy_class, model.policy_kwargs)
    if getattr(model, "action_noise", None) is not None and not isinstance(model.action_noise, ActionNoise):
        raise TypeError(f"action_noise must be an ActionNoise of SB3's, such as NormalActionNoise; got {model.action_noise!r}")
    buffer_class = getattr(model, "replay_buffer_class", None)
    if buffer_class is not None and not (isinstance(buffer_class, type) and issubclass(buffer_class, ReplayBuffer)):
        raise TypeError(f"replay_buffer_class must be None or a subclass of SB3's ReplayBuffer; got {buffer_class!r}")
    if not isinstance(getattr(model, "replay_buffer_kwargs", None) or {}, dict):
        raise TypeError(f"replay_buffer_kwargs must be None or a dict; got {model.replay_buffer_kwargs!r}")


NOT_ARGUMENTS = ("self", "args", "kwargs", "observation_space", "action_space", "lr_schedule")
"""Parameters of policies that ``policy_kwargs`` does not set."""


def check_policy_kwargs(policy_class: type, kwargs: dict[str, Any]) -> None:
    """
    :param policy_class: of the policy; one that hands arguments on to policies inside it has the attribute
        ``checks_arguments`` and checks them itself
    :param kwargs: its arguments beside spaces and schedule
    :raises TypeError: if a policy does not have one of them
    """
    known: dict[str, inspect.Parameter] = {}
    for cls in policy_class.__mro__:
        if "__init__" not in vars(cls):
            continue
        parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
        known |= parameters
        if all(each.kind is not inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
            break
        if getattr(policy_class, "checks_arguments", False) or not cls.__module__.startswith("sb3_erl."):
            return  # it may take any
    unknown = sorted(set(kwargs) - set(known))
    if unknown:
        own = [name for name in known if name not in NOT_ARGUMENTS]
        raise TypeError(f"policy_kwargs must be arguments of {policy_class.__name__}, which are {own}; got {unknown}")


def check_learn(model: Any, total_timesteps: Any, callback: Any, log_interval: Any) -> None:
    """
    :raises ValueError: if a model that shall learn has no environment, or the number of steps is not positive
    :raises TypeError: if an argument is of another type
    """
    if model.env is None:
        raise ValueError("env must be set before learn(); got None: call set_env(), or load(..., env=...)")
    check_range("total_timesteps", total_timesteps, 0, 2**63, open_low=True)
    check_range("total_timesteps", total_timesteps, 1)
    if log_interval is not None:
        check_range("log_interval", log_interval, 1, integer=True)
    for each in callback if isinstance(callback, list) else [callback]:
        if each is not None and not callable(each) and not isinstance(each, BaseCallback):
            raise TypeError(f"callback must be None, a BaseCallback, a list of them or a function; got {each!r}")


@contextmanager
def env_ids_explained() -> Iterator[None]:
    """
    Turn the error of ``gym.make`` for an unknown id into one that names ``env``.

    :raises ValueError: if the id of an environment is unknown
    """
    try:
        yield
    except gym.error.Error as error:
        raise ValueError(f"env must be an environment or the id of a registered one: {error}") from error


@contextmanager
def constructor_explained(verbose: Any, policy_kwargs: Any) -> Iterator[None]:
    """
    Around SB3's own constructor, whose errors do not name the arguments that they come from.

    :param verbose: argument that SB3 uses before it is checked
    :param policy_kwargs: argument that some classes extend before it is checked
    :raises TypeError: if one of these is of another type
    :raises ValueError: if the id of the environment or the device is unknown
    """
    check_range("verbose", int(verbose) if isinstance(verbose, bool) else verbose, 0, 2, integer=True)
    if not isinstance(policy_kwargs or {}, dict):
        raise TypeError(f"policy_kwargs must be None or a dict of arguments of the policy; got {policy_kwargs!r}")
    try:
        with env_ids_explained():
            yield
    except RuntimeError as error:
        if "device" not in str(error):
            raise
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or another device of PyTorch: {error}") from error


@contextmanager
def spaces_checked(
    model: Any, verbose: Any, policy_kwargs: Any, is_loading: bool = False, policy: Any = None
) -> Iterator[None]:
    """
    Check a model's spaces around SB3's own constructor, whose messages name classes and policies that this package has not.

    :param model: has its spaces after the block, also if SB3 raised an error about them; none while it is loaded
    :param verbose: see :func:`constructor_explained`, as for errors other than of spaces
    :param policy_kwargs: the same
    :param is_loading: whether spaces are compared with those of a saved model instead; what it takes is not known yet
    :param policy: alias or class of the policy, ``None`` for an agent without networks, which takes arrays only
    :raises UnsupportedSpaceError: see :func:`check_action_space`, :func:`check_observation_space` and :func:`check_policy`
    """
    try:
        with constructor_explained(verbose, policy_kwargs):
            yield
    finally:
        if not is_loading and getattr(model, "action_space", None) is not None:
            defaults = {"takes_discrete_actions": False, "takes_continuous_actions": True, "takes_several_choices": False}
            taken = [getattr(model, name, default) for name, default in defaults.items()]
            check_action_space(type(model).__name__, model.action_space, *taken)
            check_observation_space(type(model).__name__, model.observation_space, takes_dicts=policy is not None)
            check_policy(model, policy)


def check_range(
    name: str, value: float, low: float, high: float = np.inf, *, integer: bool = False, open_low: bool = False
) -> None:
    """
    :param name: of the argument
    :param value: what was given
    :param low: smallest allowed value
    :param high: largest allowed value
    :param integer: whether it must be a whole number
    :param open_low: whether ``low`` itself is excluded
    :raises TypeError: if it is not a number, or not an integer where one is needed
    :raises ValueError: if it is out of range
    """
    kind = int | np.integer if integer else int | float | np.integer | np.floating
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"{name} must be {'an integer' if integer else 'a number'}; got {value!r} ({type(value).__name__})")
    if not (low < value if open_low else low <= value) or not value <= high:
        lower = f"{'greater than' if open_low else 'at least'} {low:g}"
        upper = "" if np.isinf(high) else f" and at most {high:g}"
        raise ValueError(f"{name} must be {lower}{upper}; got {value!r}")


def check_schedule(name: str, value: Any) -> None:
    """:raises ValueError: if ``value`` is neither a number nor a function; ranges are checked where values are used"""
    if isinstance(value, bool) or not (callable(value) or isinstance(value, int | float | np.integer | np.floating)):
        raise ValueError(
            f"{name} must be a number, or a schedule where the class takes one: a function of the progress that remains, such "
            f"as lambda remaining: 0.1 * remaining; got {value!r}"
        )


def check_choice(name: str, value: Any, known: Collection[Any]) -> None:
    """:raises ValueError: if ``value`` is not one of ``known``"""
    if value not in known:
        raise ValueError(f"{name} must be one of {sorted(known, key=str)}; got {value!r}")


def check_cutoff(value: Any) -> None:
    """
    :param value: of ``episode_cutoff``: ``None``, a number of steps, or (start, threshold, ratio) and perhaps a largest value
    :raises ValueError: if it is something else, or a number is out of range
    """
    if isinstance(value, list | tuple):
        if len(value) not in (3, 4):
            raise ValueError(
                "episode_cutoff must be None, a number of steps, or (start, threshold, ratio) with an optional largest "
                f"value; got {value!r}"
            )
        check_range("episode_cutoff", value[0], 1)
        check_range("episode_cutoff (threshold)", value[1], 0, 1)
        check_range("episode_cutoff (ratio)", value[2], 1)
    elif value is not None:
        check_range("episode_cutoff", value, 1, integer=True)


def warn_caller(message: str) -> None:
    """
    Warn at the line outside of this package from which it was called.

    :param message: of the ``UserWarning``
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("sb3_erl."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
