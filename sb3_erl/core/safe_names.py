"""
What a file that is not trusted may ask for: classes and texts of which models are made, for which nothing is imported, and so
much memory.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common import noise, utils
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from sb3_erl.core.registry import BUILT_IN, loaded_module

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
    Find a class of which models are made. Nothing is imported, but for files that are trusted
    (:func:`~sb3_erl.core.registry.libraries_imported`): a module that is not there yet has no classes.

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
        value: Any = loaded_module(found)
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
    return text in BUILT_IN or allowed_class(text) is not None


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
    :param value: of the attribute; its containers are looked through, and keys are texts as well
    :param is_argument: whether a constructor has an argument of this name, which might import what a text names
    :return: name of what is misplaced, ``None`` if nothing is
    """
    waiting = [(value, ROLES.get(name, ()))]
    while waiting:
        part, role = waiting.pop()
        if isinstance(part, dict):
            waiting += [(key, role) for key in part]  # a sum of fitness functions names them so
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
    if text in BUILT_IN:
        return any(isinstance(base, str) for base in role)
    cls = allowed_class(text)
    return cls is not None and _fits(cls, role)


# -------------------------------------------------------------------- memory

PER_OPERATION = 4 << 10
"""Bytes as which each operation of PyTorch counts, so that there is an end to networks without number."""
PER_ELEMENT = 8
"""Bytes as which each element of a tensor counts."""
ELEMENTWISE = frozenset(
    f"aten::{name}"
    for name in (
        *("_to_copy", "abs", "add", "clamp", "clone", "div", "empty_like", "exp", "full_like", "linalg_vector_norm", "log"),
        *("mean", "mul", "neg", "ones_like", "pow", "rand_like", "randn_like", "reciprocal", "sqrt", "sub", "sum"),
        *("tanh", "zeros_like"),
    )
)
"""Operations whose result is no larger than what their arguments are together when they are broadcast."""
JOINING = frozenset({"aten::cat", "aten::stack"})
FACTORIES = frozenset({"aten::empty", "aten::full", "aten::ones", "aten::rand", "aten::randn", "aten::zeros"})
META = th.device("meta")

Size = Callable[[Any, Any, dict[str, Any]], int | None]


class LimitedMemory(TorchDispatchMode):
    """
    Refuses to make tensors once their sizes are above a limit, before the memory is taken.

    Operations count for what they make: of those that models are built with this follows from the sizes of their arguments, of
    others from the same operation on tensors without contents (PyTorch's device "meta"). Where only the contents say it, it is
    counted afterwards. Views and changes in place make nothing.

    :param limit: bytes of all results together, also of those that are freed
    :param refuse: makes the error
    """

    def __init__(self, limit: int, refuse: Callable[[], Exception]):
        super().__init__()
        self.limit, self.left, self._refuse = limit, limit, refuse

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        size_of = _SIZES.get(func)
        if size_of is None:
            size_of = _SIZES[func] = _choice(func)
        size = size_of(func, args, kwargs)
        self._count(0 if size is None else size)
        result = func(*args, **kwargs)
        if size is None:
            self._count(_total(result))
        return result

    def _count(self, n_elements: int) -> None:
        self.left -= PER_OPERATION + PER_ELEMENT * n_elements
        if self.left < 0:
            raise self._refuse()


_SIZES: dict[Any, Size] = {}
"""How the number of elements follows that an operation makes, for those that were met."""


def _choice(func: Any) -> Size:
    schema = func._schema
    makes = any("Tensor" in str(each.type) and each.alias_info is None for each in schema.returns)
    if "resize" in schema.name or any(each.is_out for each in schema.arguments):
        return _as_without_contents
    if not makes:
        return _nothing
    for names, size in ((ELEMENTWISE, _broadcast), (JOINING, _joined), (FACTORIES, _listed)):
        if schema.name in names:
            return size
    return _repeated if schema.name == "aten::repeat" else _as_without_contents


def _nothing(func: Any, args: Any, kwargs: dict[str, Any]) -> int:
    return 0


def _listed(func: Any, args: Any, kwargs: dict[str, Any]) -> int:
    return math.prod(args[0])


def _broadcast(func: Any, args: Any, kwargs: dict[str, Any]) -> int:
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, th.Tensor)]
    return tensors[0].numel() if len(tensors) == 1 else math.prod(th.broadcast_shapes(*(each.shape for each in tensors)))


def _joined(func: Any, args: Any, kwargs: dict[str, Any]) -> int:
    return sum(tensor.numel() for tensor in args[0])


def _repeated(func: Any, args: Any, kwargs: dict[str, Any]) -> int:
    return args[0].numel() * math.prod(args[1])


def _as_without_contents(func: Any, args: Any, kwargs: dict[str, Any]) -> int | None:
    """:return: elements of what an operation will make; ``None`` if only the contents of its arguments say it"""
    given = {name: value for name, value in kwargs.items() if name not in ("generator", "pin_memory")}
    if any(each.name == "device" for each in func._schema.arguments):
        given["device"] = META
    try:
        with _disable_current_modes():
            return _total(func(*tree_map(_without_contents, args), **tree_map(_without_contents, given)))
    except (RuntimeError, TypeError, ValueError):  # RuntimeErrors of several kinds where there is no way to say it
        return None


def _without_contents(value: Any) -> Any:
    if not isinstance(value, th.Tensor):
        return value
    return th.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=META)


def _total(result: Any) -> int:
    return sum(each.numel() for each in tree_leaves(result) if isinstance(each, th.Tensor))
