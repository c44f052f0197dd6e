"""Replay buffers of members: pickles without the zeros of what was never filled, and further files in a zip file."""

from __future__ import annotations

import io
import pathlib
import pickle
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from sb3_erl.runs.loading import File, opened

LEAST = 1 << 16
"""Bytes of an array from which on it is worth the while."""
BLOCK = 1 << 20
"""Bytes that are looked at together."""


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        is_plain = type(value) is np.ndarray and value.dtype.kind in "biufc" and value.nbytes >= LEAST
        if not is_plain or not value.flags.c_contiguous:
            return NotImplemented
        n_rows = n_filled(value)
        if n_rows == len(value):
            return NotImplemented
        return padded, (value.shape, value.dtype.str, value[:n_rows])


def padded(shape: tuple[int, ...], dtype: str, filled: np.ndarray) -> np.ndarray:
    """
    :param shape: of the array
    :param dtype: of the array
    :param filled: its first rows
    :return: the array; its other rows are zeros
    """
    array = np.zeros(shape, dtype)
    array[: len(filled)] = filled
    return array


def n_filled(array: np.ndarray) -> int:
    """
    :param array: C-contiguous, of numbers, not empty
    :return: number of its rows up to the last that has a bit which is not zero

    >>> n_filled(np.array([[0.0, 1.0], [0.0, 0.0]]))
    1
    """
    flat = array.reshape(-1).view(np.uint8)
    for stop in range(len(flat), 0, -BLOCK):
        block = flat[max(0, stop - BLOCK) : stop]
        if block.any():
            last = max(0, stop - BLOCK) + int(np.flatnonzero(block)[-1])
            return last // (array.nbytes // len(array)) + 1
    return 0


def dumps(value: Any) -> bytes:
    """:return: a pickle that ``pickle.loads`` and SB3 read as any other"""
    file = io.BytesIO()
    _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue()


# -------------------------------------------------------------------- in the zip file of a population

FOLDER = "members"
"""Folder in the zip file; SB3's own ``load`` does not look into it."""


def append_buffers(file: io.BufferedIOBase | pathlib.Path, buffers: Sequence[bytes | None]) -> None:
    """
    :param file: zip file that SB3 wrote, open for reading and writing, or its name
    :param buffers: pickled replay buffer of each member, ``None`` where there is none
    """
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for number, buffer in enumerate(buffers):
            if buffer is not None:
                archive.writestr(f"{FOLDER}/{number}/replay_buffer.pkl", buffer)


def read_buffers(path: File, pop_size: int) -> list[bytes | None]:
    """
    :param path: file name (``.zip`` may be left out) or open file, which is left where it was
    :param pop_size: number of members
    :return: pickled replay buffer of each member, ``None`` where none was saved
    """
    found: list[bytes | None] = [None] * pop_size
    stream: Any
    with opened(path, "zip") as stream, zipfile.ZipFile(stream) as archive:
        names = set(archive.namelist())
        for number in range(pop_size):
            name = f"{FOLDER}/{number}/replay_buffer.pkl"
            if name in names:
                found[number] = archive.read(name)
    return found
