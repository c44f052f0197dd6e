"""
Replay buffer files: written whole or not at all, as far as they are filled, with a checksum that is checked by loading.

SB3's are pickles. Those whose name ends in ``.npz`` hold arrays and JSON only: no code in one is run by loading it.
"""

from __future__ import annotations

import io
import os
import pathlib
import pickle
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
from gymnasium import spaces

from sb3_erl.buffers.plain_files import read_plain, write_plain
from sb3_erl.core.atomic_files import replacing
from sb3_erl.core.observations import arrays_of, shape_of
from sb3_erl.runs.loading import File, brief, named, opened
from sb3_erl.runs.moved_modules import old_modules_found
from sb3_erl.runs.segments import LEAST, DamagedError, filled_bytes, is_index, is_large_array, read_buffer

MARK = b"sb3_erl crc32 "
"""Stands before the eight hexadecimal digits of a checksum at the end of a file, which unpickling does not read."""
BLOCK = 1 << 20
"""Bytes that are read at once."""


class _Pickler(pickle.Pickler):
    """Leaves out the zeros at the end of large arrays; what it writes is read by ``pickle`` and NumPy alone, and so by SB3."""

    def reducer_override(self, value: Any) -> Any:
        if not is_large_array(value):
            return NotImplemented
        filled = value[: filled_rows(value)]
        if value.nbytes - filled.nbytes < LEAST:
            return NotImplemented
        return np.zeros, (value.shape, value.dtype), None, None, iter([(slice(0, len(filled)), filled)])


def filled_rows(array: np.ndarray) -> int:
    """
    :param array: C-contiguous, of numbers, not empty
    :return: number of its rows up to the last one that has a bit that is not zero
    """
    return -(-filled_bytes(array) // (array.nbytes // len(array)))


def save_buffer(buffer: Any, path: File) -> None:
    """
    Write what ``save_replay_buffer`` of SB3 writes, without the zeros that stand for what was never filled.

    :param buffer: replay buffer
    :param path: file name (``.pkl`` is added), whose previous file stays whole if saving fails; or open file. A file whose
        name ends in ``.npz`` holds no pickle
    :raises ValueError: if there is no replay buffer, or it is of a class that only a pickle can hold
    """
    if buffer is None:
        raise ValueError("replay_buffer must be there to be saved; got None. Construct or load the model with an env")
    if not isinstance(path, str | pathlib.Path):
        _Pickler(path, pickle.HIGHEST_PROTOCOL).dump(buffer)
        return
    if pathlib.Path(path).suffix == ".npz":
        with replacing(path, ".npz") as temporary, open(temporary, "wb") as file:
            write_plain(buffer, file, filled_rows)
        return
    with replacing(path, ".pkl") as temporary:
        with open(temporary, "wb") as file:
            _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(buffer)
        seal(temporary)


def load_buffer(
    model: Any,
    sb3_load: Callable[[Any, bool], None],
    path: File,
    truncate_last_traj: bool,
    n_priorities: int,
    trusted: bool = True,
) -> None:
    """
    :param model: keeps its own replay buffer if the file cannot be loaded
    :param sb3_load: ``load_replay_buffer`` of SB3's class
    :param path: file name (``.pkl`` may be left out) or open file; also that of a checkpoint, whose segments are beside it
    :param truncate_last_traj: for HER buffers only
    :param n_priorities: sets of priorities that a buffer with priorities must have
    :param trusted: whether a pickle may be read
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if the file is damaged, of a model with other environments, or has another number of priority sets; or
        a pickle that is not trusted
    """
    kept = model.replay_buffer
    if _is_plain(path):
        with pickle_explained(path), opened(path, "npz") as file:
            read_plain(file, kept)
        return
    if not trusted:
        raise ValueError(
            f"{named(path)} must be a replay buffer without pickles, which save_replay_buffer('<name>.npz') writes; it is "
            "none. Load it without trusted=False if you trust its author"
        )
    try:
        with pickle_explained(path), old_modules_found():
            check_seal(path)
            sb3_load(_handed_over(path), truncate_last_traj)
            check_buffer(path, model.replay_buffer, model, kept)
        found = len(getattr(model.replay_buffer, "trees", range(n_priorities)))  # a buffer without priorities fits as well
        if found != n_priorities:
            raise ValueError(
                f"{named(path)} must hold a replay buffer with {n_priorities} sets of priorities, one per learner that uses "
                f"them; got one with {found}. Load the buffer of a model with the same learners"
            )
    except BaseException:
        model.replay_buffer = kept
        raise


# -------------------------------------------------------------------- files without pickles


def _is_plain(path: File) -> bool:
    """Whether a file is one of arrays: by its name, or, where it is open already, by how it begins."""
    if isinstance(path, str | pathlib.Path):
        return pathlib.Path(path).suffix == ".npz"
    start = path.tell()
    found = path.read(4) == b"PK\x03\x04"
    path.seek(start)
    return found


# -------------------------------------------------------------------- pickles


_waiting: dict[int, Any] = {}
"""Buffers that were read and that SB3's own function is about to take."""


class _Read:
    """Stands in a pickle for a buffer that has been read already."""

    def __init__(self, number: int):
        self._number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _take, (self._number,)


def _take(number: int) -> Any:
    return _waiting.pop(number)


def _handed_over(path: File) -> File:
    """:return: ``path``, or what SB3's function takes in place of a file in whose folder the segments of a checkpoint are"""
    with opened(path, "pkl") as file:
        name = getattr(file, "name", None)
        if not isinstance(name, str | pathlib.Path) or not is_index(pathlib.Path(name)):
            return path
        buffer = read_buffer(pathlib.Path(name))
    _waiting[id(buffer)] = buffer
    return io.BytesIO(pickle.dumps(_Read(id(buffer))))


def seal(path: pathlib.Path) -> None:
    """Append a checksum to a pickle."""
    with open(path, "r+b") as file:
        checksum = _checksum(file, os.path.getsize(path))
        file.seek(0, os.SEEK_END)
        file.write(MARK + b"%08x" % checksum)


def check_seal(path: File) -> None:
    """:raises DamagedError: if a file has a checksum and it is not that of the rest; others may come from SB3 itself"""
    with opened(path, "pkl") as file:
        start, size = file.tell(), file.seek(0, os.SEEK_END)
        length = len(MARK) + 8
        if size - start < length:
            return
        file.seek(size - length)
        mark = file.read(length)
        file.seek(start)
        if mark.startswith(MARK) and _checksum(file, size - start - length) != int(mark[len(MARK) :], 16):
            raise DamagedError(f"{named(path)} is damaged: its checksum is wrong. Use an earlier save or copy it again")


def _checksum(file: IO[bytes], size: int) -> int:
    checksum = 0
    while size > 0:
        block = file.read(min(size, BLOCK))
        checksum, size = zlib.crc32(block, checksum), size - len(block)
        if not block:
            break
    return checksum


def check_buffer(path: File, found: Any, model: Any, kept: Any) -> None:
    """
    :param path: of the file
    :param found: what was in it
    :param model: that is to learn from it
    :param kept: the buffer that the model had, ``None`` if it had none
    :raises ValueError: if it is no replay buffer, or one for other environments
    """
    for name in ("observation_space", "action_space"):
        ours, theirs = getattr(model, name), getattr(found, name, None)
        if not isinstance(theirs, spaces.Space) or shape_of(ours) != shape_of(theirs):
            raise ValueError(
                f"{named(path)} must hold a replay buffer with the {name} of the model, {ours}; got {theirs}. Load the buffer "
                "of a model with the same environment"
            )
    if kept is not None and kept.n_envs != found.n_envs:
        raise ValueError(
            f"{named(path)} must hold a replay buffer of {kept.n_envs} environments as the model has it; got one of "
            f"{found.n_envs}. Use as many environments as when it was saved"
        )
    rows = found.buffer_size
    for name in ("observations", "actions", "rewards", "dones"):
        arrays = arrays_of(getattr(found, name, None))  # type: ignore[arg-type]
        if not all(isinstance(array, np.ndarray) and len(array) == rows for array in arrays):
            raise ValueError(f"{named(path)} is damaged: its {name} are not {rows} rows. Use an earlier save")


@contextmanager
def pickle_explained(path: File) -> Iterator[None]:
    """
    Turn errors of a damaged pickle, which may be of any type, into one with the file's name.

    :param path: of the file
    :raises ValueError: if the file is damaged or not a pickle of this version
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and "path=" in str(error):
            raise
        raise ValueError(
            f"{named(path)} must be a replay buffer that save_replay_buffer() wrote; it is damaged, of another version or "
            f"something else: {brief(error)}. Use an earlier save"
        ) from error
