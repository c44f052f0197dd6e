"""Arrays as text, which JSON can hold, so that no pickle is needed; and parts as text for people."""

from __future__ import annotations

import base64
import inspect
import io
import re
from typing import IO, Any

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
    :raises ValueError: if the text is none that it gives
    """
    return array_of_npy(base64.b64decode(text))


HEADER = re.compile(rb"\{'descr': '([<>|][biufSU]\d{1,4})', 'fortran_order': (False|True), 'shape': \(([\d, ]*)\), \} *\n")
MAX_HEADER = 1000


def array_of_npy(data: bytes) -> np.ndarray:
    """
    Read NumPy's ``.npy`` format. ``np.load`` has Python's compiler read the header, and takes the memory that it asks for.

    :param data: contents of a file of version 1 with numbers or strings
    :return: the array
    :raises ValueError: if it is damaged, or of another kind or size than its header says
    """
    file = io.BytesIO(data)
    dtype, fortran, shape = npy_header(file)
    array = np.frombuffer(file.read(), dtype=dtype).copy()
    return array.reshape(shape, order="F" if fortran else "C")


def npy_header(file: IO[bytes]) -> tuple[np.dtype, bool, tuple[int, ...]]:
    """
    :param file: open where NumPy's ``.npy`` format begins; afterwards it is where the numbers begin
    :return: dtype, whether the order is that of Fortran, and shape
    :raises ValueError: if it is damaged, or an array of something else than numbers and strings
    """
    start = file.read(10)
    length = int.from_bytes(start[8:10], "little")
    header = HEADER.fullmatch(file.read(min(length, MAX_HEADER)))
    if start[:8] != b"\x93NUMPY\x01\x00" or header is None or length > MAX_HEADER:
        raise ValueError(f"an array must be in NumPy's format of version 1; it begins with {start!r}")
    dtype, fortran, shape = header.groups()
    sizes = tuple(int(size) for size in shape.replace(b" ", b"").split(b",") if size)
    return np.dtype(dtype.decode()), fortran == b"True", sizes


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
