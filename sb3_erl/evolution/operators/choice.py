"""Operators made from what a user names, and their state in saved files."""

from __future__ import annotations

import warnings
import zlib
from typing import Any

import numpy as np
from torch import Tensor, nn

from sb3_erl.core.parameters import ParameterLayout
from sb3_erl.core.registry import own_copy, resolve


def make_operator(kind: str, choice: Any, layout: ParameterLayout, kwargs: dict[str, Any] | None = None) -> Any:
    """
    :param kind: ``"crossover"`` or ``"mutation"``, which is also the name of the argument for messages
    :param choice: a registered key, ``"package.module:Name"``, a class that is constructed as ``cls(layout, **kwargs)``, or an
        operator: a function, or an object, which is copied if it has a state
    :param layout: tensors of one individual
    :param kwargs: further arguments of the class
    :return: the operator
    :raises ValueError: if there is no such key, module or name, or if an operator is given with arguments
    :raises TypeError: if an operator cannot be called
    """
    part = resolve(kind, choice, kind)
    if isinstance(part, type):
        return part(layout, **(kwargs or {}))
    if not callable(part):
        raise TypeError(f"{kind} must be a key, 'package.module:Name', a class or something to call; got {part!r}")
    if kwargs:
        raise ValueError(
            f"{kind}_kwargs must be empty where {kind} is an operator that is constructed already; got {kwargs}. Give a class"
        )
    return own_copy(part)


class OperatorStates:
    """
    The state of operators that have one, for the evolver's state dict.

    An operator has a state if it defines ``state_dict()`` and ``load_state_dict(state)``; the state holds numbers, strings,
    tensors, lists and dicts of them. Operators that are an ``nn.Module`` are saved by PyTorch and not handled here. For all
    others a warning says at the first save that attributes have changed, since these changes will not be saved.

    :param operators: by the names under which their states are saved
    """

    def __init__(self, operators: dict[str, Any]):
        self._operators = {name: part for name, part in operators.items() if not isinstance(part, nn.Module)}
        self._before = {name: _fingerprint(getattr(part, "__dict__", {})) for name, part in self._stateless().items()}

    def _stateless(self) -> dict[str, Any]:
        return {name: part for name, part in self._operators.items() if not hasattr(part, "state_dict")}

    def state(self) -> dict[str, Any]:
        """
        :return: states by name, empty if no operator has one
        :raises TypeError: if a state holds something that cannot be saved safely
        """
        for name, part in self._stateless().items():
            if name in self._before and self._before[name] != _fingerprint(getattr(part, "__dict__", {})):
                del self._before[name]  # warned of once
                warnings.warn(
                    f"{name}={type(part).__name__} has changed its attributes, which are not saved: a loaded model goes on "
                    "with those of the constructor. Give it state_dict() and load_state_dict(state), or derive it from "
                    "torch.nn.Module and register buffers",
                    stacklevel=2,
                )
        states = {name: part.state_dict() for name, part in self._operators.items() if hasattr(part, "state_dict")}
        for name, state in states.items():
            _check_plain(state, f"{name}={type(self._operators[name]).__name__}")
        return states

    def load(self, states: dict[str, Any]) -> None:
        """
        :param states: what :meth:`state` returned; operators without an entry keep the state that they have
        :raises ValueError: if there is a state for an operator that takes none
        """
        for name, state in states.items():
            part: Any = self._operators.get(name)
            if not hasattr(part, "load_state_dict"):
                raise ValueError(
                    f"{name} must be the operator that the model was saved with, which has a state; got "
                    f"{type(part).__name__}, which has no load_state_dict(state). Load without changing {name}"
                )
            part.load_state_dict(state)


def _fingerprint(value: Any) -> Any:
    """A value that differs if numbers, strings or arrays (also in lists and dicts) differ; other objects count by class."""
    if isinstance(value, dict):
        return {str(key): _fingerprint(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_fingerprint(item) for item in value]
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return value.shape, str(value.dtype), zlib.crc32(np.ascontiguousarray(value).tobytes())
    return repr(value) if isinstance(value, bool | int | float | str | np.generic | type(None)) else type(value).__name__


def _check_plain(value: Any, owner: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check_plain(key, owner)
            _check_plain(item, owner)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_plain(item, owner)
    elif not isinstance(value, Tensor) and type(value) not in (bool, int, float, str, type(None)):
        raise TypeError(
            f"state_dict() of {owner} must hold numbers, strings, tensors, lists and dicts of them; got "
            f"{type(value).__name__}. Use float(x) for NumPy's numbers and torch.as_tensor(x) for its arrays"
        )
