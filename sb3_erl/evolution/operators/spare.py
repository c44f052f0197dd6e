"""Large arrays whose memory is used again once nobody holds them."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


class SpareArrays:
    """
    Hands out uninitialized arrays of one shape, and hands one out again as soon as nothing refers to it anymore.

    New memory is given to a process page by page as it is first written, which costs as much as copying a population into it;
    a population of a thousand is two or three such arrays in every generation. Views and tensors of an array count as
    references to it, so what somebody keeps is never overwritten. Copies and pickles of this object hold no arrays.
    """

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []
        self._n_references = 0
        """References to an array that only the list holds."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype | type) -> np.ndarray:
        """
        :param shape: of the array
        :param dtype: of the array
        :return: a C-contiguous array with any contents
        """
        self._arrays = [array for array in self._arrays if array.shape == shape and array.dtype == dtype]
        for number in range(len(self._arrays)):
            if sys.getrefcount(self._arrays[number]) == self._n_references:
                return self._arrays[number]
        self._arrays.append(np.empty(shape, dtype))
        self._n_references = sys.getrefcount(self._arrays[-1])
        return self._arrays[-1]

    def __reduce__(self) -> tuple[Any, ...]:
        return SpareArrays, ()
