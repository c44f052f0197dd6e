"""Constructors that name only what they add to those of their base class."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np

Constructor = TypeVar("Constructor", bound=Callable[..., None])

LAST = ("policy_kwargs", "stats_window_size", "tensorboard_log", "verbose", "seed", "device", "_init_setup_model")
"""Arguments that stand at the end of every signature, as in SB3."""
VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
"""Kinds of ``*args`` and ``**kwargs``."""


def constructor_parameters(cls: type) -> dict[str, inspect.Parameter]:
    """
    What the constructors of a class and of all its bases name, also those whose arguments a derived class hides.

    :param cls: any class
    :return: parameters by name, without ``self``, ``*args`` and ``**kwargs``, those of derived classes first; of two with one
        name that of the derived class

    >>> class Base:
    ...     def __init__(self, size: int = 1, name: str = "base"): ...
    >>> class Child(Base):
    ...     def __init__(self, size: int = 2, **kwargs): ...
    >>> {name: each.default for name, each in constructor_parameters(Child).items()}
    {'size': 2, 'name': 'base'}
    """
    found: dict[str, inspect.Parameter] = {}
    for owner in cls.__mro__:
        if "__init__" in vars(owner) and owner is not object:
            named = list(inspect.signature(vars(owner)["__init__"]).parameters.values())[1:]
            found |= {each.name: each for each in named if each.kind not in VARIABLE and each.name not in found}
    return found


def plain_number(value: Any) -> Any:
    """:return: a number of NumPy, as grids and studies have them, as one of Python; anything else as it is"""
    return value.item() if isinstance(value, np.generic) else value


def plain_numbers(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param arguments: by name
    :return: the same, see :func:`plain_number`

    >>> plain_numbers({"pop_size": np.int64(3), "name": "x"})
    {'pop_size': 3, 'name': 'x'}
    """
    return {name: plain_number(value) for name, value in arguments.items()}


def inherits_arguments(*hidden: str, **defaults: Any) -> Callable[[Constructor], Constructor]:
    """
    Let a constructor that ends with ``**kwargs`` have the arguments of its base class, too.

    ``help``, ``inspect.signature`` and error messages then show all of them, each under its name and with its default.

    :param hidden: arguments of the base class that this class has not, because it sets them itself
    :param defaults: other defaults for arguments of the base class
    :return: decorator of ``__init__``, which hands its ``**kwargs`` to ``super().__init__``

    >>> class Base:
    ...     def __init__(self, size: int = 1, name: str = "base"):
    ...         self.size, self.name = size, name
    >>> class Child(Base):
    ...     @inherits_arguments(name="child")
    ...     def __init__(self, size: int = 2, color: str = "red", **kwargs):
    ...         super().__init__(size, **kwargs)
    >>> list(inspect.signature(Child).parameters)
    ['size', 'color', 'name']
    >>> Child().name
    'child'
    """

    def decorate(constructor: Constructor) -> Constructor:
        return cast(Constructor, _Inheriting(constructor, hidden, defaults))

    return decorate


class _Inheriting:
    """Stands for ``__init__`` until its class is known, which then gets the finished constructor."""

    def __init__(self, constructor: Callable[..., None], hidden: tuple[str, ...], defaults: dict[str, Any]):
        self.constructor, self.hidden, self.defaults = constructor, hidden, defaults

    def __set_name__(self, owner: type, name: str) -> None:
        constructor, defaults = self.constructor, self.defaults
        own = inspect.signature(constructor)
        parameters = {key: p for key, p in own.parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
        inherited = {
            key: p for key, p in accepted_parameters(owner.__mro__[1:]).items() if key not in (*parameters, *self.hidden)
        }
        unknown = sorted(set(defaults) - set(inherited))
        if unknown:
            raise TypeError(f"{owner.__name__} gives defaults for {unknown}, which its base class does not have")
        for key, parameter in inherited.items():
            parameters[key] = parameter.replace(default=defaults.get(key, parameter.default))
        last = {key: parameters.pop(key) for key in LAST if key in parameters}
        signature = own.replace(parameters=[*parameters.values(), *last.values()])

        @functools.wraps(constructor)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            if type(self) is owner:
                for key in kwargs:
                    if key not in signature.parameters:
                        close = difflib.get_close_matches(key, signature.parameters, n=1)
                        hint = f"; did you mean {close[0]!r}?" if close else ""
                        raise TypeError(f"{owner.__name__} got an unexpected keyword argument {key!r}{hint}")
            constructor(self, *map(plain_number, args), **{**defaults, **plain_numbers(kwargs)})

        __init__.__signature__ = signature  # type: ignore[attr-defined]
        setattr(owner, name, __init__)


def accepted_parameters(classes: Sequence[type]) -> dict[str, inspect.Parameter]:
    """
    :param classes: a class and its bases in their order, such as ``cls.__mro__``
    :return: what the first takes; a constructor that hands on ``*args, **kwargs`` takes what the next one does, too
    """
    found: dict[str, inspect.Parameter] = {}
    for base in classes:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters
        found |= {key: p for key, p in parameters.items() if p.kind not in VARIABLE and key not in found}
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            break
    return found
