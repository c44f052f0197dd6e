"""Arrays as text, which JSON can hold, so that no pickle is needed."""

from __future__ import annotations

import base64
import io
import re

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
    length = int.from_bytes(data[8:10], "little")
    header = HEADER.fullmatch(data[10 : 10 + min(length, MAX_HEADER)])
    if data[:8] != b"\x93NUMPY\x01\x00" or header is None:
        raise ValueError(f"an array must be in NumPy's format of version 1; it begins with {data[:20]!r}")
    dtype, fortran, shape = header.groups()
    array = np.frombuffer(data[10 + length :], dtype=dtype.decode()).copy()
    return array.reshape(
        [int(size) for size in shape.replace(b" ", b"").split(b",") if size], order="F" if fortran == b"True" else "C"
    )
