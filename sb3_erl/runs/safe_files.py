"""The part of a model's zip file that holds no pickles: JSON beside tensors, written by ``save``, read by ``load_safe``."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

import safetensors
import safetensors.torch
import torch as th
from stable_baselines3.common.save_util import recursive_getattr

from sb3_erl.core.arguments import constructor_parameters
from sb3_erl.core.registry import UnknownPart
from sb3_erl.core.safe_names import NAME, OLD_MODULES, LimitedMemory, has_type, misplaced
from sb3_erl.core.safe_values import DERIVED, Reader
from sb3_erl.policies.erl import DeployedMixin, deploying
from sb3_erl.runs.moved_modules import MOVED

OLD_MODULES.update(MOVED)
DERIVED["deploying"] = (DeployedMixin, deploying)

SETTINGS, TENSORS = "safe.json", "safe.safetensors"
"""Members of the zip file."""
FORMAT = 1
"""Number that a file of another form will have."""
MAX_SETTINGS = 16 << 20
"""Bytes of JSON that are written and read; long texts and arrays stand among the tensors."""
MAX_MEMBERS = 10_000
SPARE, FACTOR = 256 << 20, 64
"""A model may be built of so many bytes and so many times the size of its tensors, see :func:`memory_limited`."""
RUN_TIME = frozenset(
    {"env", "policy", "device", "replay_buffer", "rollout_buffer", "run", "_vec_normalize_env", "_logger", "_custom_logger"}
)
"""Attributes that no file gives a model."""
OF_THE_MACHINE = {"tensorboard_log": None, "evaluator": "vec", "compile": False}
"""What a model has that was not trusted: no file chooses where something is written, starts processes, or opens ports."""
COUNTERS = frozenset(
    {"num_timesteps", "_total_timesteps", "_num_timesteps_at_start", "_n_updates", "_episode_num", "n_envs", "phase"}
    | {"n_generations", "run_seed", "start_time", "_stats_window_size", "_current_progress_remaining", "verbose", "seed"}
)
"""Attributes that are numbers, or ``None``, of every model."""


class ModelFileError(ValueError):
    """
    A file of a model is damaged, was made to do harm, or holds what cannot be read without running its code.

    :param text: message, in which letters that would move a terminal's cursor are replaced
    """

    def __init__(self, text: str):
        super().__init__(printable(text))


def printable(text: str) -> str:
    """:return: a text of a file without control characters, marks that turn the direction of writing, and the like"""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


@dataclass
class SafeContents:
    """
    What a file holds without pickles.

    :param algorithm: class of this package
    :param attributes: values by name
    :param parameters: state dicts by name
    :param variables: single tensors by name
    :param refused: why an attribute is not among them, by name
    :param size: bytes of tensors
    """

    algorithm: str
    attributes: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    size: int = 0


# -------------------------------------------------------------------- reading


@contextmanager
def one_error(name: str) -> Iterator[None]:
    """
    Turn whatever a damaged or hostile file leads to into one error.

    :param name: of the file, for the message
    :raises ModelFileError: in place of any other error
    """
    try:
        yield
    except ModelFileError:
        raise
    except UnknownPart as error:
        raise ModelFileError(f"{name} was saved with a part that this program does not know: {error}") from error
    except Exception as error:  # every kind of nonsense has another type
        text = " ".join(str(error).split())[:300]
        raise ModelFileError(
            f"{name} must be a zip file that save() wrote; it is damaged, does not fit this version, or was made to do harm: "
            f"{type(error).__name__}: {text}. Nothing in it was run. Use another copy"
        ) from error


def members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """
    :param archive: of a model
    :return: its members by name
    :raises ValueError: if there are too many or two of a name, or one is a folder or has a name that leads out of a folder
    """
    found = archive.infolist()
    if len(found) > MAX_MEMBERS:
        raise ValueError(f"it has {len(found)} members")
    by_name = {info.filename: info for info in found}
    if len(by_name) < len(found):
        raise ValueError("it has two members of the same name")
    for name in by_name:
        if name.startswith("/") or "\\" in name or ":" in name or any(part in ("", ".", "..") for part in name.split("/")):
            raise ValueError(f"it has a member with the name {name[:80]!r}")
    return by_name


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int | None = None) -> bytes:
    """
    :param archive: open for reading
    :param info: member that is stored as it is, so that it cannot be larger than the file
    :param limit: largest size, ``None`` for the file's
    :return: the contents, whose checksum is right
    :raises ValueError: if it is compressed, encrypted or too large
    """
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
        raise ValueError(f"{info.filename} is compressed, which save() does not do")
    if limit is not None and info.file_size > limit:
        raise ValueError(f"{info.filename} has {info.file_size} bytes of at most {limit}")
    contents = archive.read(info)
    if len(contents) != info.file_size:
        raise ValueError(f"{info.filename} ends too early")
    return contents


def read_settings(archive: zipfile.ZipFile) -> dict[str, Any] | None:
    """
    :param archive: of a model
    :return: the JSON of the part without pickles as it is, ``None`` if there is none
    :raises ValueError: if it is damaged; errors of other types, too
    """
    info = members(archive).get(SETTINGS)
    if info is None:
        return None
    settings = json.loads(
        read_member(archive, info, MAX_SETTINGS).decode(), object_pairs_hook=_unique, parse_constant=_no_constant
    )
    if not isinstance(settings, dict) or settings.get("format") != FORMAT:
        raise ValueError(f"{SETTINGS} has another format than {FORMAT}")
    return settings


def read_safe(file: IO[bytes]) -> SafeContents | None:
    """
    Read everything that stands in a file without pickles, and nothing else of it.

    :param file: open zip file
    :return: the contents; ``None`` if it has no such part
    :raises ValueError: if it is damaged or made to do harm; errors of other types, too, see :func:`one_error`
    """
    with zipfile.ZipFile(file) as archive:
        settings = read_settings(archive)
        if settings is None:
            return None
        data = read_member(archive, members(archive)[TENSORS])
    if hashlib.sha256(data).hexdigest() != settings["sha256"]:
        raise ValueError(f"{TENSORS} is not the one that {SETTINGS} was written for")
    refused = settings["refused"]
    if not all(isinstance(text, str) for text in (settings["algorithm"], *refused, *refused.values())):
        raise ValueError(f"{SETTINGS} has no names where names are expected")
    contents = SafeContents(settings["algorithm"], refused=refused, size=len(data))
    if settings["parameters"] is None:
        return contents
    reader = Reader(safetensors.torch.load(data))
    for name, value in settings["attributes"].items():
        if name in RUN_TIME or name.startswith("__") or NAME.fullmatch(name) is None:
            raise ValueError(f"{name[:80]!r} is no attribute that a file gives a model")
        contents.attributes[name] = reader.read(value)
    contents.parameters = {name: reader.read(value) for name, value in settings["parameters"].items()}
    contents.variables = {name: reader.read(value) for name, value in settings["variables"].items()}
    paths = [part for name in (*contents.parameters, *contents.variables) for part in name.split(".")]
    if any(part.startswith("__") or NAME.fullmatch(f"_{part}") is None for part in paths):
        raise ValueError(f"{SETTINGS} has parameters with names that no model's have")
    for kind in (contents.parameters, contents.variables):
        if (found := misplaced("", kind, False)) is not None:
            raise ValueError(f"there is {found} among the parameters")
    if not all(value is None or isinstance(value, th.Tensor) for value in contents.variables.values()):
        raise ValueError("there is something else than tensors among the variables")
    if reader.tensors:
        raise ValueError(f"{TENSORS} has tensors that {SETTINGS} does not name")
    return contents


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"{SETTINGS} has a key twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{SETTINGS} has the number {text}")


def system_info(file: IO[bytes]) -> dict[str, bytes]:
    """:return: members of a file of a model that are neither settings nor tensors, by name"""
    with zipfile.ZipFile(file) as archive:
        names = [name for name in ("_stable_baselines3_version", "system_info.txt") if name in archive.namelist()]
        return {name: archive.read(name) for name in names}


# -------------------------------------------------------------------- building


def as_sb3_file(contents: SafeContents, pickled: dict[str, Any], extra: dict[str, bytes]) -> io.BytesIO:
    """
    A file for SB3's ``load``, which is given the attributes themselves as ``custom_objects``.

    :param contents: of a file
    :param pickled: attributes as they stand in the file, which SB3 unpickles where they are pickled
    :param extra: further members by name
    :return: a zip file in memory, of which only ``pickled`` holds anything of the file that could run code
    """
    stream = io.BytesIO()
    data = {**pickled, **dict.fromkeys(contents.attributes)}
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("data", json.dumps(data))
        for name, value in {**contents.parameters, "pytorch_variables": contents.variables}.items():
            with archive.open(f"{name}.pth", "w", force_zip64=True) as member:
                th.save(value, member)
        for name, text in extra.items():
            archive.writestr(name, text)
    stream.seek(0)
    return stream


def with_variables(model: Any, contents: SafeContents) -> Any:
    """
    Give a loaded model its single tensors; SB3's ``load`` would set any attribute of any object that a file names.

    :param model: as SB3's ``load`` made it without them
    :param contents: of the file
    :return: the model
    :raises ValueError: if they are not those of the model, or an attribute is one that no file gives a model
    """
    kept_out = {*model._excluded_save_params()} & {*contents.attributes}
    names = set(model._get_torch_save_params()[1])
    if kept_out or names != contents.variables.keys():
        raise ValueError(f"it has {sorted(kept_out | (names ^ contents.variables.keys()))}, or lacks it")
    for name, value in contents.variables.items():
        own = recursive_getattr(model, name)
        if value is not None and (not isinstance(own, th.Tensor) or own.shape != value.shape or own.dtype != value.dtype):
            raise ValueError(f"{name} is a tensor of another kind than the model's")
        if value is not None:
            own.data = value.to(own.device)
    return model


def memory_limited(contents: SafeContents) -> LimitedMemory:
    """
    :param contents: of a file
    :return: a context in which networks and populations far larger than the tensors of the file are an error
    """
    limit = SPARE + FACTOR * contents.size
    text = f"the file describes networks that take more than {limit >> 20} MiB, which do not fit its tensors"
    return LimitedMemory(limit, lambda: ModelFileError(text))


# -------------------------------------------------------------------- what fits a class


def family(cls: type) -> str:
    """:return: name of the class of this package that a class is, or is derived from"""
    return next(base.__name__ for base in cls.__mro__ if base.__module__.startswith("sb3_erl."))


def arguments_of(cls: type) -> dict[str, Any]:
    """:return: annotations of the arguments of a class's constructors by name, those of the derived class first"""
    return {name: each.annotation for name, each in constructor_parameters(cls).items()}


def unfit_attributes(contents: SafeContents, cls: type) -> list[str]:
    """
    :param contents: of a file
    :param cls: class that is to be loaded
    :return: attributes that would hide something of the class, are of another type than its arguments, or have a class, or a
        text that stands for one, where none of its kind belongs
    """
    arguments, found = arguments_of(cls), []
    for name, value in contents.attributes.items():
        own = getattr(cls, name, None)
        if not isinstance(own, int | float | str | None):
            found.append(f"{name} of the class itself")
        elif name not in OF_THE_MACHINE and (part := misplaced(name, value, name in arguments)) is not None:
            found.append(f"{name} with {part[:80]!r}")
        elif not has_type(value, "float | None" if name in COUNTERS else arguments.get(name, "")):
            found.append(f"{name} of the type {type(value).__name__}")
    return found
