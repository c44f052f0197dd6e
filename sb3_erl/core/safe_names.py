"""Which classes and texts a file that is not trusted may name: what models are made of, and nothing is imported for it."""

from __future__ import annotations

import dataclasses
import re
import sys
from typing import Any

import torch as th
from stable_baselines3.common import noise, utils
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_erl.core.registry import PARTS

LIBRARIES = ("torch.nn", "torch.optim", "stable_baselines3", "sb3_contrib")
"""Packages of others of which classes are found; only those that a model is made of, see :func:`allowed_class`."""
PART_FOLDERS = ("policies", "learners", "evolution", "buffers", "engine.replace", "engine.steps")
"""Where the classes of this package are of which a model is made. Not in ``remote``, ``runs``, ``envs``."""
MODEL_CLASSES = (th.nn.Module, th.optim.Optimizer, ReplayBuffer, BaseAlgorithm)
PLAIN_OBJECTS = (
    utils.ConstantSchedule,
    utils.FloatSchedule,
    utils.LinearSchedule,
    noise.NormalActionNoise,
    noise.OrnsteinUhlenbeckActionNoise,
    noise.VectorizedActionNoise,
)
"""Classes of others whose objects are written by their attributes; of this package those of dataclasses are."""
CODE_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\S*", re.ASCII)
"""Strings by which a part, or an environment of a module, is found. Importing that module would run its code."""
NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
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
    return any(module.startswith(f"{root}.") for root in LIBRARIES) and issubclass(cls, MODEL_CLASSES)


def is_allowed_text(text: str) -> bool:
    """:return: whether a string names no code, or some that is among the parts of this package or the allowed classes"""
    if CODE_NAME.fullmatch(text) is None:
        return True
    if any(text == part for parts in PARTS.values() for part in parts.values() if isinstance(part, str)):
        return True
    return allowed_class(text) is not None


def is_plain_class(cls: type) -> bool:
    return cls in PLAIN_OBJECTS or (
        dataclasses.is_dataclass(cls) and str(cls.__module__).startswith("sb3_erl.") and _is_model_class(cls)
    )


def allowed_class_or_plain(name: str) -> type | None:
    """:return: as :func:`allowed_class`, or one of the plain classes of others"""
    return next((cls for cls in PLAIN_OBJECTS if name_of(cls) == name), None) or allowed_class(name)
