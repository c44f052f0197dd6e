"""Constructors with many arguments hand on to their base class what it knows, without naming each a second time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def known_to(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """
    Choose what a function has a parameter for.

    >>> def area(width, height): ...
    >>> known_to(area, {"width": 2, "height": 3, "color": "red"})
    {'width': 2, 'height': 3}

    :param function: for example ``super().__init__``
    :param arguments: values by name, for example ``locals()`` at the beginning of a constructor
    :return: those of the values that can be handed to ``function`` by name
    """
    return {name: arguments[name] for name in inspect.signature(function).parameters if name in arguments}
