"""Values as JSON and tensors, from which they are made again without running anything that a file brings along."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit

from sb3_erl.core.safe_names import (
    allowed_class,
    allowed_class_or_plain,
    is_allowed_text,
    is_plain_class,
    name_of,
    unfit_fields,
)

MAX_DEPTH = 64
"""Values inside values that are written and read."""
LONG_TEXT = 2048
"""Characters above which a string stands among the tensors, so that the JSON stays small."""
SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Dict, spaces.Tuple)
DTYPES = frozenset(
    getattr(th, name)
    for name in ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")
) | {th.uint16, th.uint32, th.uint64}


DERIVED: dict[str, tuple[type, Callable[[Any], type]]] = {}
"""
Classes that are made while a program runs, by kind: their first base, and the function that makes one of their second base.
Filled in where these functions are, see :mod:`sb3_erl.runs.safe_files`.
"""


class NotPlain(TypeError):
    """A value that cannot be written without a pickle; the message names it."""


# -------------------------------------------------------------------- to JSON


class Writer:
    """Turns values into what JSON can hold; collects the tensors among them."""

    def __init__(self) -> None:
        self.tensors: dict[str, th.Tensor] = {}

    def write(self, value: Any, where: str, depth: int = 0) -> Any:
        """
        :param value: any value
        :param where: what it is, for messages
        :param depth: values that it is in
        :return: ``None``, a bool, a number, a string or a list of such as it is; anything else as a dict with its kind as key
        :raises NotPlain: if there is a value in it that only a pickle can hold
        """
        if depth > MAX_DEPTH:
            raise NotPlain(f"{where}: values nested more than {MAX_DEPTH} deep")
        kind = type(value)
        if value is None or kind in (bool, int):
            return value
        if kind is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if kind is str:
            return self._text(value, where)
        if kind is list:
            return self._all(value, where, depth)
        if kind in (tuple, dict, OrderedDict, deque, bytes):
            return self._container(kind, value, where, depth)
        if isinstance(value, th.Tensor):
            return {"tensor": self._add(value, where)}
        if isinstance(value, np.ndarray | np.generic):
            return {"array" if isinstance(value, np.ndarray) else "scalar": self._array(value, where)}
        return self._object(kind, value, where, depth)

    def _object(self, kind: type, value: Any, where: str, depth: int) -> dict[str, Any]:
        if kind in SPACES:
            return {"space": self._space(value, where, depth)}
        if kind is TrainFreq:
            return {"train_freq": [value.frequency, value.unit.value]}
        if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
            if (name := np.dtype(value).name) in _DTYPE_NAMES:
                return {"numpy": ["dtype" if isinstance(value, np.dtype) else "type", name]}
        if isinstance(value, type):
            made = next((key for key, (base, _) in DERIVED.items() if value.__bases__[0] is base), None)
            if made is not None and allowed_class(name_of(value)) is None:
                return {made: self.write(value.__bases__[1], where, depth + 1)["class"]}
            if allowed_class(name_of(value)) is not value:
                raise NotPlain(f"{where}: the class {name_of(value)}")
            return {"class": name_of(value)}
        if is_plain_class(kind) and allowed_class_or_plain(name_of(kind)) is kind:
            fields = {name: self.write(part, f"{where}.{name}", depth + 1) for name, part in vars(value).items()}
            if wrong := unfit_fields(kind, vars(value)):
                raise NotPlain(f"{where}: an object of {name_of(kind)} with other attributes than its class has, {wrong}")
            return {"object": [name_of(kind), fields]}
        what = f"the function {name_of(value)}" if hasattr(value, "__qualname__") else f"an object of {name_of(kind)}"
        raise NotPlain(f"{where}: {what}")

    def _text(self, value: str, where: str) -> Any:
        if not is_allowed_text(value):
            raise NotPlain(f"{where}: {value[:80]!r}, which names code outside of this package")
        if len(value) <= LONG_TEXT:
            return value
        return {"text": self._add(th.frombuffer(bytearray(value.encode()), dtype=th.uint8), where)}

    def _all(self, values: Any, where: str, depth: int) -> list[Any]:
        return [self.write(part, f"{where}[{number}]", depth + 1) for number, part in enumerate(values)]

    def _container(self, kind: type, value: Any, where: str, depth: int) -> dict[str, Any]:
        if kind is bytes:
            return {"bytes": self._add(th.frombuffer(bytearray(value), dtype=th.uint8), where) if value else None}
        if kind is tuple:
            return {"tuple": self._all(value, where, depth)}
        if kind is deque:
            return {"deque": [value.maxlen, self._all(value, where, depth)]}
        pairs = [[self._key(key, where), self.write(part, f"{where}[{key!r}]", depth + 1)] for key, part in value.items()]
        if kind is dict and all(isinstance(key, str) for key, _ in pairs):
            return {"dict": dict(pairs)}
        return {"ordered" if kind is OrderedDict else "pairs": pairs}

    def _key(self, key: Any, where: str) -> Any:
        if type(key) not in (str, int, bool, type(None)):
            raise NotPlain(f"{where}: a dict with the key {key!r}")
        return key

    def _array(self, value: Any, where: str) -> str:
        try:
            return self._add(th.from_numpy(np.array(value, order="C", copy=True)), where)
        except TypeError as error:
            raise NotPlain(f"{where}: an array of {value.dtype}") from error

    def _add(self, tensor: th.Tensor, where: str) -> str:
        if tensor.dtype not in DTYPES or tensor.layout != th.strided or tensor.is_quantized:
            raise NotPlain(f"{where}: a tensor of {tensor.dtype} and {tensor.layout}")
        name = str(len(self.tensors))
        self.tensors[name] = tensor.detach().to("cpu", copy=True, memory_format=th.contiguous_format)
        return name

    def _space(self, space: Any, where: str, depth: int) -> dict[str, Any]:
        kind = type(space)
        found: dict[str, Any] = {"kind": kind.__name__}
        if kind in (spaces.Dict, spaces.Tuple):
            parts = space.spaces.items() if kind is spaces.Dict else enumerate(space.spaces)
            found["spaces"] = [[name, self.write(part, f"{where}[{name!r}]", depth + 1)] for name, part in parts]
            if not all(isinstance(name, str | int) for name, _ in found["spaces"]):
                raise NotPlain(f"{where}: a space with keys that are no strings")
        else:
            names = {spaces.Box: ("low", "high"), spaces.MultiDiscrete: ("nvec", "start"), spaces.Discrete: ("n", "start")}
            values = {name: np.asarray(getattr(space, name)) for name in names.get(kind, ())}
            values = values or {"n": space.n}
            found |= {name: self.write(value, f"{where}.{name}", depth + 1) for name, value in values.items()}
            found["dtype"] = np.dtype(space.dtype).name
        if space._np_random is not None:
            state = space._np_random.bit_generator.state
            found["generator"] = self.write(state, f"{where}._np_random", depth + 1)
        return found


# -------------------------------------------------------------------- from JSON


class Reader:
    """
    Makes the values again that :class:`Writer` wrote.

    :param tensors: by name; each is used once
    """

    def __init__(self, tensors: dict[str, th.Tensor]):
        self.tensors = tensors
        self.kinds: dict[str, Callable[[Any, int], Any]] = {
            "float": lambda value, _: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[value],
            "text": lambda value, _: self._checked(bytes(self._bytes(value)).decode()),
            "bytes": lambda value, _: b"" if value is None else self._bytes(value),
            "tuple": lambda value, depth: tuple(self._all(value, depth)),
            "deque": self._deque,
            "dict": self._dict,
            "pairs": lambda value, depth: dict(self._pairs(value, depth)),
            "ordered": lambda value, depth: OrderedDict(self._pairs(value, depth)),
            "tensor": lambda value, _: self._take(value),
            "array": lambda value, _: self._take(value).numpy().copy(),
            "scalar": lambda value, _: _only(self._take(value).numpy()),
            "space": self._space,
            "train_freq": lambda value, _: TrainFreq(_integer(value[0]), TrainFrequencyUnit(value[1])),
            "class": lambda value, _: _known(allowed_class(value), value),
            "numpy": lambda value, _: _numpy_type(*value),
            "object": self._object,
            **{kind: partial(_derived, kind) for kind in DERIVED},
        }

    def read(self, value: Any, depth: int = 0) -> Any:
        """
        :param value: what :meth:`Writer.write` gave
        :param depth: values that it is in
        :return: the value
        :raises ValueError: if the value was not written so, or names what is not allowed; for values of a wrong type also
            TypeError, KeyError and others
        """
        if depth > MAX_DEPTH:
            raise ValueError(f"values are nested more than {MAX_DEPTH} deep")
        if isinstance(value, str):
            return self._checked(value)
        if isinstance(value, list):
            return self._all(value, depth)
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        return self.kinds[kind](content, depth)

    def _checked(self, text: str) -> str:
        if not is_allowed_text(text):
            raise ValueError(f"{text[:80]!r} names code outside of this package")
        return text

    def _all(self, values: Any, depth: int) -> list[Any]:
        return [self.read(part, depth + 1) for part in _list(values)]

    def _dict(self, value: Any, depth: int) -> dict[str, Any]:
        return {key: self.read(part, depth + 1) for key, part in value.items()}

    def _pairs(self, value: Any, depth: int) -> list[tuple[Any, Any]]:
        pairs = [(key, self.read(part, depth + 1)) for key, part in _list(value)]
        if any(not isinstance(key, str | int | None) for key, _ in pairs):
            raise ValueError("keys of dicts must be strings or whole numbers")
        return pairs

    def _deque(self, value: Any, depth: int) -> deque[Any]:
        length, parts = value
        return deque(self._all(parts, depth), maxlen=None if length is None else _integer(length))

    def _take(self, name: Any) -> th.Tensor:
        return self.tensors.pop(name)

    def _bytes(self, name: Any) -> bytes:
        return self._take(name).numpy().astype(np.uint8, casting="no").tobytes()

    def _object(self, value: Any, depth: int) -> Any:
        name, fields = value
        cls = _known(allowed_class_or_plain(name), name)
        if not is_plain_class(cls):
            raise ValueError(f"{name!r} is no class whose objects are read")
        found = {field: self.read(part, depth + 1) for field, part in fields.items()}
        if wrong := unfit_fields(cls, found):
            raise ValueError(f"an object of {name_of(cls)} has other attributes, or ones of other types: {str(wrong)[:200]}")
        made: Any = object.__new__(cls)
        vars(made).update(found)
        return made

    def _space(self, value: dict[str, Any], depth: int) -> Any:
        kind = {cls.__name__: cls for cls in SPACES}[value["kind"]]
        if kind in (spaces.Dict, spaces.Tuple):
            parts = [(name, self.read(part, depth + 1)) for name, part in _list(value["spaces"])]
            space: Any = spaces.Dict(OrderedDict(parts)) if kind is spaces.Dict else spaces.Tuple([part for _, part in parts])
        else:
            names: tuple[str, ...] = ("low", "high", "n", "nvec", "start")
            known = {name: self.read(value[name], depth + 1) for name in names if name in value}
            space = _SPACES[kind](known, np.dtype(_DTYPE_NAMES[value["dtype"]]))
        if "generator" in value:
            state = self.read(value["generator"], depth + 1)
            generator = np.random.PCG64(0)
            generator.state = state
            space._np_random = np.random.Generator(generator)
        return space


_DTYPE_NAMES = {name: name for name in ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")}
_DTYPE_NAMES |= {name: name for name in ("float16", "float32", "float64")}
_SPACES: dict[Any, Callable[[dict[str, Any], Any], Any]] = {
    spaces.Box: lambda known, dtype: spaces.Box(_array(known["low"]), _array(known["high"]), dtype=dtype),
    spaces.Discrete: lambda known, dtype: spaces.Discrete(_index(known["n"], dtype), start=_index(known["start"], dtype)),
    spaces.MultiDiscrete: lambda known, dtype: spaces.MultiDiscrete(
        _array(known["nvec"]), dtype=dtype, start=_array(known["start"])
    ),
    spaces.MultiBinary: lambda known, dtype: spaces.MultiBinary(known["n"]),
}
"""How each space is made of its arrays."""


def _known(cls: type | None, name: Any) -> type:
    if cls is None:
        raise ValueError(
            f"{str(name)[:80]!r} is no class of which models are made, or its module has not been imported by your program"
        )
    return cls


def _derived(kind: str, name: Any, _depth: int) -> type:
    base = _known(allowed_class(name), name)
    if not issubclass(base, BasePolicy):
        raise ValueError(f"{name_of(base)} is no policy")
    return DERIVED[kind][1](base)


def _numpy_type(what: str, name: str) -> Any:
    dtype = np.dtype(_DTYPE_NAMES[name])
    return dtype if what == "dtype" else dtype.type


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"a list was expected where {type(value).__name__} stands")
    return value


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"a whole number was expected where {type(value).__name__} stands")
    return value


def _array(value: Any) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        raise ValueError(f"an array was expected where {type(value).__name__} stands")
    return value


def _index(value: Any, dtype: Any) -> Any:
    return dtype.type(_only(_array(value)))


def _only(array: np.ndarray) -> Any:
    if array.ndim:
        raise ValueError(f"a number was expected where an array of shape {array.shape} stands")
    return array[()]
