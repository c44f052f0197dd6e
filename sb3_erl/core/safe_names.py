"""Which classes and texts a file that is not trusted may name: what models are made of, and nothing is imported for it."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections import deque
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common import noise, utils
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_erl.core.registry import PARTS

LIBRARIES = ("torch.nn.modules", "torch.optim", "stable_baselines3", "sb3_contrib")
"""Packages of others of which classes are found; only those that a model is made of, see :func:`allowed_class`."""
PART_FOLDERS = ("policies", "learners", "evolution", "buffers", "engine.replace", "engine.steps")
"""Where the classes of this package are of which a model is made. Not in ``remote``, ``runs``, ``envs``."""
MODEL_CLASSES = (th.nn.Module, th.optim.Optimizer, ReplayBuffer, BaseAlgorithm)
OBJECT_FOLDERS = ("engine.replace", "engine.steps")
"""Where the dataclasses of this package are whose objects are written by their fields: steps of a generation."""
_SCHEDULES = (utils.ConstantSchedule, utils.FloatSchedule, utils.LinearSchedule)
_NUMBER = (int, float, np.number)
_NUMBERS = (*_NUMBER, np.ndarray, type(None))
_NOISES = (noise.NormalActionNoise, noise.OrnsteinUhlenbeckActionNoise)
PLAIN_OBJECTS: dict[type, dict[str, tuple[type, ...]]] = {
    utils.ConstantSchedule: {"val": _NUMBER},
    utils.FloatSchedule: {"value_schedule": _SCHEDULES},
    utils.LinearSchedule: {"start": _NUMBER, "end": _NUMBER, "end_fraction": _NUMBER},
    noise.NormalActionNoise: {"_mu": _NUMBERS, "_sigma": _NUMBERS, "_dtype": (type,)},
    noise.OrnsteinUhlenbeckActionNoise: {
        **{"_theta": _NUMBER, "_mu": _NUMBERS, "_sigma": _NUMBERS, "_dt": _NUMBER, "_dtype": (type,)},
        **{"initial_noise": _NUMBERS, "noise_prev": _NUMBERS},
    },
    noise.VectorizedActionNoise: {"n_envs": (int,), "_base_noise": _NOISES, "_noises": (list,)},
}
"""Classes of others whose objects are written by their attributes: all of them, and the types that each may have."""
CODE_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\S*", re.ASCII)
"""Strings by which a part, or an environment of a module, is found. Importing that module would run its code."""
NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_NETWORK_PARTS = (th.nn.Module, th.optim.Optimizer)
ROLES: dict[str, tuple[type | str, ...]] = {
    "policy_class": (BasePolicy,),
    **dict.fromkeys(("policy_kwargs", "population_policy_kwargs", "learner_kwargs"), _NETWORK_PARTS),
    "replay_buffer_class": (ReplayBuffer,),
    "learner_class": ("learners", OffPolicyAlgorithm),
    **dict.fromkeys(("evolver_class", "evolver_kwargs"), ("evolution",)),
    **dict.fromkeys(("crossover", "mutation"), ("evolution.operators",)),
    "fitness_class": ("evolution.fitness",),
    **dict.fromkeys(("exchange_class", "exchange_kwargs"), ("engine.replace",)),
    "generation_steps": ("engine.steps", "engine.replace"),
}
"""Attributes of a model that may hold classes, or texts that stand for them: their base, or their folder in this package."""
KEY_ROLES: dict[str, tuple[type | str, ...]] = {
    "features_extractor_class": (BaseFeaturesExtractor,),
    "optimizer_class": (th.optim.Optimizer,),
}
"""Keys of arguments, inside such an attribute, that are narrower than it."""
OLD_MODULES: dict[str, tuple[str, ...]] = {}
"""Modules of earlier versions, and where their classes are now; :mod:`sb3_erl.runs.safe_files` fills it in."""


def name_of(cls: Any) -> str:
    """:return: module and qualified name of a class, as :func:`allowed_class` reads them"""
    return f"{cls.__module__}:{cls.__qualname__}"


def allowed_class(name: str) -> type | None:
    """
    Find a class of which models are made. Nothing is imported: a module that is not there yet has no classes.

    :param name: ``"module:Class"``, modules of earlier versions of this package included
    :return: a network, optimizer, replay buffer, or algorithm of PyTorch, SB3 or SB3-Contrib, or a part of this package;
        ``None`` for anything else

    >>> allowed_class("torch.nn.modules.activation:ReLU").__name__, allowed_class("os:system"), allowed_class("builtins:eval")
    ('ReLU', None, None)
    """
    module, _, qualified = name.partition(":")
    if not all(NAME.fullmatch(part) for part in (*module.split("."), *qualified.split("."))):
        return None
    short = module.removeprefix("sb3_erl.")
    own = short != module
    modules = [f"sb3_erl.{new}" for new in OLD_MODULES[short]] if own and short in OLD_MODULES else [module]
    for found in modules:
        if not any(found == root or found.startswith(f"{root}.") for root in (*LIBRARIES, "sb3_erl")):
            continue
        value: Any = sys.modules.get(found)
        for part in qualified.split("."):
            value = None if value is None else vars(value).get(part) if hasattr(value, "__dict__") else None
        if isinstance(value, type) and _is_model_class(value):
            return value
    return None


def _is_model_class(cls: type) -> bool:
    module = str(cls.__module__)
    if module.startswith("sb3_erl."):
        short = module.removeprefix("sb3_erl.")
        is_part = any(short == folder or short.startswith(f"{folder}.") for folder in PART_FOLDERS)
        return is_part or (issubclass(cls, BaseAlgorithm) and short.startswith("algorithms."))
    if module.startswith("torch.optim."):
        return issubclass(cls, th.optim.Optimizer)
    return any(module.startswith(f"{root}.") for root in LIBRARIES) and issubclass(cls, MODEL_CLASSES)


def is_allowed_text(text: str) -> bool:
    """:return: whether a string names no code, or some that is among the parts of this package or the allowed classes"""
    if CODE_NAME.fullmatch(text) is None:
        return True
    if any(text == part for parts in PARTS.values() for part in parts.values() if isinstance(part, str)):
        return True
    return allowed_class(text) is not None


def is_plain_class(cls: type) -> bool:
    """:return: whether objects of a class are written by their attributes"""
    short = str(cls.__module__).removeprefix("sb3_erl.")
    return cls in PLAIN_OBJECTS or (dataclasses.is_dataclass(cls) and short in OBJECT_FOLDERS)


def allowed_class_or_plain(name: str) -> type | None:
    """:return: as :func:`allowed_class`, or one of the plain classes of others"""
    return next((cls for cls in PLAIN_OBJECTS if name_of(cls) == name), None) or allowed_class(name)


def unfit_fields(cls: type, values: dict[str, Any]) -> list[str]:
    """
    Which attributes an object of a plain class cannot have; whatever is not among its own could hide a method.

    :param cls: see :func:`is_plain_class`
    :param values: by name
    :return: names that are missing, unknown or of another type
    """
    known = PLAIN_OBJECTS.get(cls)
    if known is None:  # a step of a generation has numbers, texts, and other steps
        simple = (*_NUMBER, str, type(None))
        fits = {
            field.name: is_plain_class(type(value)) or (isinstance(value, simple) and has_type(value, field.type))
            for field in dataclasses.fields(cls)
            for value in [values.get(field.name, ())]
        }
    else:
        fits = {name: name in values and isinstance(values[name], kind) for name, kind in known.items()}
    numeric = all(issubclass(value, np.generic) for value in values.values() if isinstance(value, type))
    noises = all(isinstance(part, _NOISES) for value in values.values() if isinstance(value, list) for part in value)
    wrong = sorted({*(name for name, fit in fits.items() if not fit), *(values.keys() - fits.keys())})
    return wrong if wrong or (numeric and noises) else sorted(values)


def has_type(value: Any, annotation: Any) -> bool:
    """:return: whether a value has the type of an argument or a field, as far as that is one of numbers and texts"""
    kinds: list[Any] = []
    for part in getattr(annotation, "__name__", str(annotation)).split("|"):
        text = part.strip()
        if text.startswith("Literal[") or text == "str":
            kinds.append(str)
        elif text in ("int", "float"):
            if isinstance(value, np.ndarray) and value.ndim == 0:
                return True
            kinds += [int, float, np.number, np.bool_]
        elif text == "bool":
            kinds += [bool, np.bool_]
        elif text == "None":
            kinds.append(type(None))
        else:
            return True
    return isinstance(value, tuple(kinds))


def misplaced(name: str, value: Any, is_argument: bool) -> str | None:
    """
    Find a class, or a text that stands for one, in an attribute of a model where none of its kind belongs.

    :param name: of the attribute
    :param value: of the attribute; its containers are looked through
    :param is_argument: whether a constructor has an argument of this name, which might import what a text names
    :return: name of what is misplaced, ``None`` if nothing is
    """
    waiting = [(value, ROLES.get(name, ()))]
    while waiting:
        part, role = waiting.pop()
        if isinstance(part, dict):
            waiting += [(inner, KEY_ROLES.get(key, role) if role else role) for key, inner in part.items()]
        elif isinstance(part, list | tuple | deque):
            waiting += [(inner, role) for inner in part]
        elif isinstance(part, type) and not issubclass(part, np.generic) and not _fits(part, role):
            return name_of(part)
        elif isinstance(part, str) and ":" in part and (role or is_argument) and not _is_fitting_text(part, role):
            return part
    return None


def _fits(cls: type, role: tuple[type | str, ...]) -> bool:
    own = str(cls.__module__).startswith("sb3_erl.")
    if own and _is_in(cls.__module__, role):
        return True
    if issubclass(cls, BaseAlgorithm) and own:
        return False
    if issubclass(cls, BasePolicy | BaseFeaturesExtractor) and role is _NETWORK_PARTS:
        return False
    return any(issubclass(cls, base) for base in role if isinstance(base, type))


def _is_in(module: str, role: tuple[type | str, ...]) -> bool:
    folders = [f"{base}." for base in role if isinstance(base, str)]
    return any(f"{module.removeprefix('sb3_erl.')}.".startswith(folder) for folder in folders)


def _is_fitting_text(text: str, role: tuple[type | str, ...]) -> bool:
    if any(text == part for parts in PARTS.values() for part in parts.values() if isinstance(part, str)):
        return any(isinstance(base, str) for base in role)
    cls = allowed_class(text)
    return cls is not None and _fits(cls, role)
