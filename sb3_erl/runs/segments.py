"""
Replay buffers in checkpoints: the content of large arrays is in segments, to which each checkpoint adds only what is new.

An array is cut into chunks of 4 to 64 KiB. A chunk of zeros, which is what the unfilled rest of a buffer consists of, is not
written. Of the others a hash is kept, and a chunk whose hash is in the checkpoint before is not written again: the new folder
gets a hard link to the segment that holds it. So each folder is whole by itself, and a segment is gone when no folder needs it
any more. Contents are compared, not positions, so that this holds for rings that have wrapped round, for priorities and for
buffers of any class.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
import pickle
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np

HEADER = b"sb3_erl segments 1\n"
FOLDER = "segments"
"""In the folder of a checkpoint."""
CHUNKS = (1 << 12, 1 << 16)
"""Bytes of an array that are written, hashed and compared at a time: a power of two in this range, by the array's size."""
CHUNKS_PER_ARRAY = 1 << 11
"""About so many of them at least, where the range allows it."""
BLOCK = 1 << 20
"""Bytes that are looked at, at a time, for one that is not zero."""
LEAST = 1 << 12
"""Bytes of the smallest array that is not pickled with its object."""
MOST_SEGMENTS = 64
"""When a buffer is in more segments, the smaller half of them is written anew as one."""
RECORD = np.dtype(
    [("array", "<u4"), ("start", "<u8"), ("segment", "<u4"), ("offset", "<u8"), ("length", "<u4"), ("hash", "V32")]
)
"""Where the content of an array from byte ``start`` on is found: ``length`` bytes; those up to the next chunk are zeros."""


class DamagedError(ValueError):
    """A file of a checkpoint is not what was written."""


Place = tuple[str, int, int]
"""Name of a segment, offset in it, and length."""


@dataclass
class _Index:
    """What a file with the index of a buffer says."""

    arrays: list[dict[str, Any]]
    segments: list[str]
    records: np.ndarray
    pickled: bytes = field(repr=False)

    def places(self) -> Iterator[tuple[bytes, Place]]:
        """:return: hash and place of each chunk"""
        for record in self.records:
            name = self.segments[record["segment"]]
            yield record["hash"].tobytes(), (name, int(record["offset"]), int(record["length"]))


# ---------------------------------------------------------------- which segments are as they were written

_seen_whole: set[tuple[int, int, int, int]] = set()
"""Segments that this process has written, or read and found right, as the file system describes them."""


def _description(path: pathlib.Path) -> tuple[int, int, int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


# ---------------------------------------------------------------- writing


class _Pickler(pickle.Pickler):
    """Leaves large arrays out and keeps them in a list."""

    def __init__(self, file: IO[bytes]):
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.arrays: list[np.ndarray] = []

    def reducer_override(self, value: Any) -> Any:
        if not is_large_array(value):
            return NotImplemented
        self.arrays.append(value)
        return array_of_segments, (len(self.arrays) - 1,)


def is_large_array(value: Any) -> bool:
    """:return: whether it is worth it to pickle a value apart from its object: a plain array of numbers, not of a few"""
    is_of_numbers = type(value) is np.ndarray and value.dtype.kind in "biufc" and value.nbytes >= LEAST
    return is_of_numbers and value.flags.c_contiguous and value.flags.writeable


def array_of_segments(number: int) -> Any:
    """Stands in the pickle of a buffer for an array that is in segments; only :func:`read_buffer` knows where they are."""
    raise DamagedError(
        f"array {number} of this replay buffer is in the segments beside its file. Load it with load_replay_buffer(path) or "
        "resume_from(folder)"
    )


def write_buffer(buffer: Any, path: pathlib.Path, previous: pathlib.Path | None = None) -> None:
    """
    Write a replay buffer into the folder of a new checkpoint, and link the segments of the one before that it can use.

    :param buffer: any object that can be pickled
    :param path: of the index; segments go to a folder beside it
    :param previous: index of the checkpoint before, ``None`` if there is none
    """
    stream = io.BytesIO()
    pickler = _Pickler(stream)
    pickler.dump(buffer)
    records = _hashed(pickler.arrays)
    folder = path.parent / FOLDER
    folder.mkdir()
    places = _linked(records, previous, folder)
    _write_rest(pickler.arrays, records, places, folder)
    names = sorted({place[0] for place in places.values()})
    numbers = {name: number for number, name in enumerate(names)}
    for record in records:
        name, record["offset"], _ = places[record["hash"].tobytes()]
        record["segment"] = numbers[name]
    arrays = [{"dtype": array.dtype.str, "shape": array.shape} for array in pickler.arrays]
    head = {"arrays": arrays, "segments": names, "n_records": len(records)}
    content = json.dumps(head).encode() + b"\n" + records.tobytes() + stream.getvalue()
    path.write_bytes(HEADER + hashlib.sha256(content).hexdigest().encode() + b"\n" + content)


def _bytes_of(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


def filled_bytes(array: np.ndarray) -> int:
    """
    :param array: C-contiguous, of numbers, not empty
    :return: number of its bytes up to the last one that is not zero
    """
    flat = _bytes_of(array)
    for start in range((len(flat) - 1) // BLOCK * BLOCK, -1, -BLOCK):
        block = flat[start : start + BLOCK]
        if block.any():
            return start + int(np.flatnonzero(block)[-1]) + 1
    return 0


def _chunk_size(array: np.ndarray) -> int:
    return min(max(1 << (array.nbytes // CHUNKS_PER_ARRAY).bit_length() >> 1, CHUNKS[0]), CHUNKS[1])


def _chunk(array: np.ndarray, start: int) -> bytes:
    """Bytes of an array from ``start`` on to the next chunk, without the zeros at the end."""
    part = _bytes_of(array)[start : start + _chunk_size(array)]
    return part.tobytes().rstrip(b"\0") if part.any() else b""


def _hashed(arrays: list[np.ndarray]) -> np.ndarray:
    """:return: a record per chunk that is not zero, without its place"""
    found = []
    for number, array in enumerate(arrays):
        for start in range(0, filled_bytes(array), _chunk_size(array)):
            chunk = _chunk(array, start)
            if chunk:
                found.append((number, start, 0, 0, len(chunk), hashlib.sha256(chunk).digest()))
    return np.array(found, dtype=RECORD)


def _linked(records: np.ndarray, previous: pathlib.Path | None, folder: pathlib.Path) -> dict[bytes, Place]:
    """
    Link the segments of the checkpoint before that are worth it.

    Not worth it are segments of which less than half is needed now, and the smaller half of very many: their chunks are
    written anew, so that a run has neither much more on disk than its buffers hold nor thousands of files.

    :param records: chunks of the buffer
    :param previous: index of the checkpoint before
    :param folder: gets the links
    :return: places of the chunks that need not be written, by hash
    """
    try:
        index = None if previous is None else _read_index(previous)
    except (OSError, DamagedError):
        index = None
    if previous is None or index is None:
        return {}
    known, needed = dict(index.places()), {record["hash"].tobytes() for record in records}
    places = {key: place for key, place in known.items() if key in needed}
    used: Counter[str] = Counter()
    for name, _, length in places.values():
        used[name] += length
    sizes = {}
    for name in used:
        source = previous.parent / FOLDER / name
        if source.exists() and _description(source) in _seen_whole and 2 * used[name] >= source.stat().st_size:
            sizes[name] = source.stat().st_size
    if len(sizes) > MOST_SEGMENTS:
        largest = sorted(sizes, key=lambda name: (sizes[name], name), reverse=True)
        sizes = {name: sizes[name] for name in largest[: MOST_SEGMENTS // 2]}
    for name in sizes:
        _link(previous.parent / FOLDER / name, folder / name)
    return {key: place for key, place in places.items() if place[0] in sizes}


def _link(source: pathlib.Path, target: pathlib.Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links, or with too many of this file
        shutil.copyfile(source, target)
        _seen_whole.add(_description(target))


def _write_rest(arrays: list[np.ndarray], records: np.ndarray, places: dict[bytes, Place], folder: pathlib.Path) -> None:
    """
    Write the chunks that have no place yet, and enter their places.

    Arrays of which nothing could be linked, such as priorities, are likely to change again as a whole, and have a segment
    of their own, so that it can be deleted when they do.
    """
    is_linked = {int(record["array"]) for record in records if record["hash"].tobytes() in places}
    groups: dict[bool, list[np.void]] = defaultdict(list)
    for record in records:
        if record["hash"].tobytes() not in places:
            groups[int(record["array"]) in is_linked].append(record)
    for group in groups.values():
        new: dict[bytes, tuple[int, int]] = {}
        with open(folder / "new", "wb") as file:
            for record in group:
                key = record["hash"].tobytes()
                if key not in new:
                    new[key] = file.tell(), int(record["length"])
                    file.write(_chunk(arrays[record["array"]], int(record["start"])))
        name = hashlib.sha256(b"".join(new)).hexdigest()[:32]
        os.replace(folder / "new", folder / name)
        _seen_whole.add(_description(folder / name))
        places.update({key: (name, offset, length) for key, (offset, length) in new.items()})


# ---------------------------------------------------------------- reading


def is_index(path: pathlib.Path) -> bool:
    """:return: whether a file is the index of a buffer in segments, and not a pickle"""
    with open(path, "rb") as file:
        return file.read(len(HEADER)) == HEADER


class _Unpickler(pickle.Unpickler):
    """Puts the arrays of segments where they were."""

    def __init__(self, pickled: bytes, arrays: list[np.ndarray]):
        super().__init__(io.BytesIO(pickled))
        self._arrays = arrays

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == (__name__, array_of_segments.__name__):
            return self._arrays.__getitem__
        return super().find_class(module, name)


def read_buffer(path: pathlib.Path) -> Any:
    """
    :param path: of an index, see :func:`write_buffer`
    :return: the buffer; what was never filled takes no memory where the operating system hands out zeros only on demand
    :raises DamagedError: if the index or a segment is not what was written; it names the file
    """
    index = _read_index(path)
    arrays = [np.zeros(each["shape"], each["dtype"]) for each in index.arrays]
    flat = [_bytes_of(array) for array in arrays]
    for number, name in enumerate(index.segments):
        records = index.records[index.records["segment"] == number]
        segment = path.parent / FOLDER / name
        try:
            described = _description(segment)
            with open(segment, "rb") as file:
                for record in np.sort(records, order="offset"):
                    file.seek(int(record["offset"]))
                    chunk = file.read(int(record["length"]))
                    if hashlib.sha256(chunk).digest() != record["hash"].tobytes():
                        raise DamagedError(
                            f"path={str(segment)!r} is damaged: the hash of a part is wrong. Use an earlier save"
                        )
                    start = int(record["start"])
                    flat[record["array"]][start : start + len(chunk)] = np.frombuffer(chunk, np.uint8)
        except OSError as error:
            raise DamagedError(f"path={str(segment)!r} cannot be read: {error}. Use an earlier save") from error
        _seen_whole.add(described)
    return _Unpickler(index.pickled, arrays).load()


def _read_index(path: pathlib.Path) -> _Index:
    data = path.read_bytes()
    try:
        own, content = data[len(HEADER) :].split(b"\n", 1)
        if not data.startswith(HEADER) or hashlib.sha256(content).hexdigest().encode() != own:
            raise ValueError("its hash is wrong")
        line, rest = content.split(b"\n", 1)
        head = json.loads(line)
        n_bytes = head["n_records"] * RECORD.itemsize
        return _Index(head["arrays"], head["segments"], np.frombuffer(rest[:n_bytes], RECORD), rest[n_bytes:])
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"path={str(path)!r} is damaged: {error}. Use an earlier save") from error
