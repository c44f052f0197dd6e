"""Arrays as text, which JSON can hold, so that no pickle is needed; and parts as text for people."""

from __future__ import annotations

import base64
import inspect
import io
from typing import Any

import numpy as np


def array_to_text(array: np.ndarray) -> str:
    """:return: the array as text, which JSON can hold"""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return base64.b64encode(file.getvalue()).decode()


def text_to_array(text: str) -> np.ndarray:
    """
    >>> text_to_array(array_to_text(np.array([1.5, 2.0]))).tolist()
    [1.5, 2.0]

    :return: what :func:`array_to_text` was given
    """
    return np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False)


def in_short(value: Any) -> str:
    """
    :param value: an argument or a part
    :return: it in a few signs: of objects without a text of their own the class and its numbers and words

    >>> in_short(0.5), in_short(np.zeros((2, 3)))
    ('0.5', 'array(2, 3)')
    """
    if isinstance(value, np.ndarray):
        return f"array{value.shape}"
    if isinstance(value, type) or inspect.isroutine(value):
        return value.__name__
    own: Any = type(value).__repr__
    if own is not object.__repr__:
        text = repr(value)
        return text if len(text) <= 200 and "\n" not in text else type(value).__name__
    return class_and_numbers(value)


def class_and_numbers(value: Any) -> str:
    """
    :param value: an object
    :return: its class with those of its public attributes that are numbers or words
    """
    plain = {name: own for name, own in vars(value).items() if isinstance(own, bool | int | float | str) and name[0] != "_"}
    return f"{type(value).__name__}({', '.join(f'{name}={own!r}' for name, own in plain.items())})"
