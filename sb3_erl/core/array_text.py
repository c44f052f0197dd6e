"""Arrays as text, which JSON can hold, so that no pickle is needed."""

from __future__ import annotations

import base64
import io

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
