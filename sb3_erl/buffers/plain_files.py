"""Replay buffers as files of arrays and JSON, in NumPy's ``.npz`` format: no code in one is run by loading it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer

from sb3_erl.buffers.lap import DictLAPReplayBuffer, LAPReplayBuffer, PriorityTree
from sb3_erl.core.array_text import npy_header

BLOCK = 1 << 20
"""Bytes that are read at once."""
PLAIN_BUFFERS: tuple[type[ReplayBuffer], ...] = (
    *(ReplayBuffer, DictReplayBuffer, NStepReplayBuffer),
    *(LAPReplayBuffer, DictLAPReplayBuffer),
)
"""Classes whose whole state is arrays and numbers. What a class of the user's keeps beside them is not known here."""
ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
SETTINGS = ("buffer_size", "n_envs", "optimize_memory_usage", "handle_timeout_termination", "n_steps", "gamma")
"""Of a buffer's constructor; a file fits a buffer that has the same."""
PLACES = frozenset({"pos", "full", "trees"})
"""What differs between two buffers of which one's file fits the other."""
MAX_SETTINGS = 1 << 20
"""Bytes of JSON."""
MAX_DRAWN = 1 << 20
"""Transitions of a batch whose priorities could still be written."""


def write_plain(buffer: Any, file: IO[bytes], filled_rows: Callable[[np.ndarray], int]) -> None:
    """
    :param buffer: replay buffer
    :param file: open for writing
    :param filled_rows: number of rows of an array up to the last one that is to be written
    :raises ValueError: if it is of a class that may keep more than is known here
    """
    settings = _settings_of(buffer)
    arrays = {name: array[: filled_rows(array)] for name, array in _arrays_of(buffer).items()}
    if isinstance(buffer, LAPReplayBuffer):
        arrays["drawn"] = buffer._drawn
    arrays["settings"] = np.frombuffer(json.dumps(settings).encode(), np.uint8)
    np.savez(file, allow_pickle=False, **arrays)


def _settings_of(buffer: Any) -> dict[str, Any]:
    """
    :param buffer: replay buffer
    :return: numbers and texts, of which all but :data:`PLACES` must be those of the buffer that a file is read into
    :raises ValueError: if it is of a class that may keep more
    """
    if type(buffer) not in PLAIN_BUFFERS:
        known = [cls.__name__ for cls in PLAIN_BUFFERS]
        raise ValueError(
            f"replay_buffer must be of one of the classes {known} to be written without a pickle; got a "
            f"{type(buffer).__name__}. Give save_replay_buffer a name that ends in .pkl"
        )
    settings = {"class": type(buffer).__name__, "pos": int(buffer.pos), "full": bool(buffer.full)}
    settings["spaces"] = [_described(buffer.observation_space), _described(buffer.action_space)]
    own = {name: getattr(buffer, name) for name in SETTINGS if hasattr(buffer, name)}
    settings |= {name: value.item() if isinstance(value, np.generic) else value for name, value in own.items()}
    if isinstance(buffer, LAPReplayBuffer):
        settings["trees"] = [[float(tree.max_priority), int(tree.size)] for tree in buffer.trees]
    return settings


def _described(space: spaces.Space) -> Any:
    """A space as far as a buffer depends on it; the dtypes are those of the arrays."""
    if isinstance(space, spaces.Dict):
        return {key: _described(part) for key, part in space.items()}
    return [type(space).__name__, list(space.shape or ()), int(space.n) if isinstance(space, spaces.Discrete) else None]


def _arrays_of(buffer: Any) -> dict[str, np.ndarray]:
    """The arrays of one row per step, and priorities, by the names that they have in a file."""
    found: dict[str, np.ndarray] = {}
    for name in ARRAYS:
        value = getattr(buffer, name, None)
        if isinstance(value, dict):
            found |= {f"{name}.{number}": value[key] for number, key in enumerate(sorted(value))}
        elif value is not None:
            found[name] = value
    return found | {f"priority.{number}": tree.priority for number, tree in enumerate(getattr(buffer, "trees", ()))}


def read_plain(file: IO[bytes], buffer: Any) -> None:
    """
    :param file: open file that :func:`write_plain` wrote
    :param buffer: the model's; takes the content of the file once all of it has been read and fits
    :raises ValueError: if the file is damaged, or of another buffer than the model's; errors of other types, too
    """
    if type(buffer) not in PLAIN_BUFFERS:
        what = "None, load the model with its env" if buffer is None else f"a {type(buffer).__name__}"
        raise ValueError(f"the model's replay buffer must be one that such a file can hold; it is {what}")
    with zipfile.ZipFile(file) as archive:
        settings = json.loads(_read_array(archive, "settings", np.zeros(MAX_SETTINGS, np.uint8)).tobytes().decode())
        wanted = _settings_of(buffer)
        for name in wanted.keys() - PLACES:
            if settings[name] != wanted[name]:
                raise ValueError(f"{name} is {repr(settings[name])[:150]}, that of the model's {repr(wanted[name])[:150]}")
        arrays = {}
        for name, array in _arrays_of(buffer).items():
            arrays[name] = np.zeros(array.shape, array.dtype)
            _read_array(archive, name, arrays[name])
        if isinstance(buffer, LAPReplayBuffer):
            drawn = _read_array(archive, "drawn", np.zeros(MAX_DRAWN, np.int64)).copy()
    pos, full = settings["pos"], settings["full"]
    if type(pos) is not int or type(full) is not bool or not 0 <= pos < buffer.buffer_size:
        raise ValueError(f"pos={repr(pos)[:80]} and full={repr(full)[:80]} are no places in it")
    trees = []
    if isinstance(buffer, LAPReplayBuffer):
        n_filled = (buffer.buffer_size if full else pos) * buffer.n_envs
        trees = [
            _tree(arrays[f"priority.{number}"], n_filled, *values)
            for number, values in enumerate(_same_length(settings["trees"], buffer.trees))
        ]
        if drawn.size and not 0 <= drawn.min() <= drawn.max() < max(n_filled, 1):
            raise ValueError("the transitions that were drawn last are none of it")
        buffer.trees, buffer._drawn = trees, drawn
    for name in ARRAYS:
        value = getattr(buffer, name, None)
        if isinstance(value, dict):
            setattr(buffer, name, {key: arrays[f"{name}.{number}"] for number, key in enumerate(sorted(value))})
        elif value is not None:
            setattr(buffer, name, arrays[name])
    buffer.pos, buffer.full = pos, full


def _same_length(values: Any, trees: list[PriorityTree]) -> list[Any]:
    if len(values) != len(trees):
        raise ValueError(f"it has {len(values)} sets of priorities, the model's buffer {len(trees)}, one per learner")
    return list(values)


def _tree(priority: np.ndarray, n_filled: int, max_priority: Any, size: Any) -> PriorityTree:
    if type(max_priority) is not float or type(size) is not int or size != n_filled or not 0 <= max_priority < np.inf:
        raise ValueError(
            f"priorities of {repr(size)[:80]} transitions up to {repr(max_priority)[:80]} are not those of {n_filled}"
        )
    if not (np.isfinite(priority).all() and (priority >= 0).all()):
        raise ValueError("there are priorities that are no positive numbers")
    tree = PriorityTree(0)
    state = {"capacity": len(priority), "priority": priority, "max_priority": max_priority, "size": size}
    tree.__setstate__({**state, "_stale": [], "_old": []})
    return tree


def _read_array(archive: zipfile.ZipFile, name: str, target: np.ndarray) -> np.ndarray:
    """
    :param archive: open for reading
    :param name: of an array in it, of which nothing is read before it is known to fit
    :param target: zeros, which may be more rows than the file has
    :return: the rows of the target that were read
    :raises ValueError: if shape or dtype do not fit, or the file ends early
    """
    with archive.open(f"{name}.npy") as file:
        dtype, fortran, shape = npy_header(file)
        is_alike = len(shape) == target.ndim and shape[1:] == target.shape[1:] and shape[0] <= len(target)
        if dtype != target.dtype or fortran or not is_alike:
            raise ValueError(
                f"{name} is an array of {dtype} and shape {shape}, that of the model's is of {target.dtype} and {target.shape}"
            )
        rows = target[: shape[0]]
        flat, place = rows.reshape(-1).view(np.uint8), 0
        while place < len(flat):
            block = file.read(min(BLOCK, len(flat) - place))
            if not block:
                raise ValueError(f"{name} ends too early")
            flat[place : place + len(block)] = np.frombuffer(block, np.uint8)
            place += len(block)
        if file.read(1):  # at the end its checksum is compared
            raise ValueError(f"{name} has more numbers than its header says")
    return rows
