"""What may be wrong with files of models and replay buffers, and parameters of files that cannot be trusted."""

from __future__ import annotations

import base64
import io
import json
import os
import pathlib
import pickle
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
import torch as th
from stable_baselines3.common.save_util import open_path

VARIABLES = ("pytorch_variables", "tensors")
"""Members of an SB3 zip that hold single tensors, which ``set_parameters`` does not take."""
MARK = b"sb3_erl crc32 "
"""Stands at the end of a replay buffer file before eight hexadecimal digits; pickle does not read so far."""
BLOCK = 1 << 20
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError, ValueError, KeyError)
"""What Python's ``zipfile`` and ``json`` raise on damaged files."""

File = str | pathlib.Path | io.BufferedIOBase


def load_parameters(path: File, device: th.device | str = "cpu") -> dict[str, dict[str, Any]]:
    """
    The parameters of a saved model and nothing else: no code of the file is run, whoever made it.

    ``ALGOS[...].load`` unpickles what SB3 pickles, and so runs whatever a file says; this reads the tensors only, with
    ``torch.load(weights_only=True)``. Construct the model yourself, with the settings that it was trained with, and give it
    the parameters: ``model.set_parameters(load_parameters("stranger.zip"))``. Then ``predict`` acts as the saved model did.

    :param path: zip file of any SB3 model (``.zip`` may be left out), or open file
    :param device: where the tensors go
    :return: state dicts by name, as ``get_parameters`` gives them
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if the file is damaged, no model of SB3's, or holds anything but tensors and plain values
    """
    path = beside_folder(path)
    with _opened(path, "zip") as file, _archive(file, path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".pth")]
        wanted = {name: name.removesuffix(".pth") for name in names if name.removesuffix(".pth") not in VARIABLES}
        found: dict[str, dict[str, Any]] = {}
        for member, name in wanted.items():
            try:
                found[name] = th.load(io.BytesIO(archive.read(member)), map_location=device, weights_only=True)
            except Exception as error:
                raise ValueError(
                    f"{_name(path)} must hold tensors and plain values in {member}; it could not be read without running "
                    f"code that is in it, which was not done: {_brief(error)}. Load it otherwise only if you trust who made it"
                ) from error
    return found


# -------------------------------------------------------------------- zip files of models


def beside_folder(path: File) -> File:
    """
    The Zoo puts a folder ``<name>`` with settings beside the model's file ``<name>.zip``.

    :param path: what ``load`` was given
    :return: the file, where ``path`` is a folder
    :raises ValueError: if there is no such file
    """
    if not isinstance(path, str | pathlib.Path) or not pathlib.Path(path).is_dir():
        return path
    file = pathlib.Path(f"{path}.zip")
    if not file.is_file():
        raise ValueError(
            f"{_name(path)} must be a zip file that save() wrote; it is a folder. Give the name of a file in it, or go on "
            "with a folder of checkpoints by resume_from"
        )
    return file


def check_model_file(path: File, algorithm: str) -> dict[str, Any]:
    """
    :param path: what ``load`` was given; an open file is left where it was
    :param algorithm: class that is to be loaded
    :return: the saved attributes by name, those that are pickled as they are
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if it is damaged, no model of SB3's, none of this package, or one of another class
    """
    with _opened(path, "zip") as file, _archive(file, path) as archive:
        try:
            data = json.loads(archive.read("data").decode())
        except (UnicodeDecodeError, ValueError) as error:
            raise ValueError(f"{_name(path)} must hold a model of SB3's, but its settings cannot be read: {error}") from error
    if not isinstance(data, dict) or "run_seed" not in data:
        raise ValueError(
            f"{_name(path)} must hold a model that sb3_erl saved; it is one of another package. Load it with the class that "
            "saved it, or take its networks with sb3_erl.load_parameters"
        )
    saved = data.get("algorithm", algorithm)  # not in files of the first versions
    if saved != algorithm:
        raise ValueError(f"{_name(path)} must hold a saved {algorithm}; it is a saved {saved}. Use {saved}.load")
    return data


@contextmanager
def misfits_explained(path: File, algorithm: str) -> Iterator[None]:
    """Around SB3's ``load``: what it raises where a file does not fit becomes a ValueError that says so."""
    try:
        yield
    except (AttributeError, AssertionError, KeyError, IndexError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        if isinstance(error, ValueError):
            raise
        cause = error.__context__ if isinstance(error, KeyError) and error.__context__ is not None else error
        raise ValueError(
            f"{_name(path)} does not fit a {algorithm} of this version: {_brief(cause)}. It may come from another version of "
            "sb3_erl, SB3 or PyTorch (system_info.txt in the file says which), or have been loaded with arguments that change "
            "its networks; load it where it was saved, or make a new model"
        ) from error


@contextmanager
def _archive(file: IO[bytes], path: File) -> Iterator[zipfile.ZipFile]:
    """A zip file whose checksums are right and which SB3 made."""
    try:
        archive = zipfile.ZipFile(file)
        damaged = archive.testzip()
    except BROKEN as error:
        raise ValueError(f"{_name(path)} must be a zip file that save() wrote; it is damaged or none: {error}") from error
    if damaged is not None:
        raise ValueError(f"{_name(path)} is damaged: the checksum of {damaged} is wrong. Use an earlier save or copy it again")
    with archive:
        missing = [name for name in ("data", "policy.pth") if name not in archive.namelist()]
        if missing:
            raise ValueError(f"{_name(path)} must hold a model that SB3's save() wrote; it has no {' and no '.join(missing)}")
        yield archive


@contextmanager
def _opened(path: File, suffix: str) -> Iterator[Any]:
    if not isinstance(path, str | pathlib.Path):
        position = path.tell()
        try:
            yield path
        finally:
            path.seek(position)
        return
    with open_path(path, "r", verbose=0, suffix=suffix) as file:
        yield file


def _name(path: File) -> str:
    return f"path={str(path)!r}" if isinstance(path, str | pathlib.Path) else f"path={path!r}"


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


# -------------------------------------------------------------------- replay buffers


def seal(path: pathlib.Path) -> None:
    """Write a checksum behind a pickle."""
    with open(path, "r+b") as file:
        checksum = _checksum(file, os.path.getsize(path))
        file.seek(0, os.SEEK_END)
        file.write(MARK + b"%08x" % checksum)


def check_seal(path: File) -> None:
    """:raises ValueError: if a file has a checksum and it is not that of the rest; others may come from SB3 itself"""
    with _opened(path, "pkl") as file:
        start, size = file.tell(), file.seek(0, os.SEEK_END)
        length = len(MARK) + 8
        if size - start < length:
            return
        file.seek(size - length)
        mark = file.read(length)
        file.seek(start)
        if mark.startswith(MARK) and _checksum(file, size - start - length) != int(mark[len(MARK) :], 16):
            raise ValueError(f"{_name(path)} is damaged: its checksum is wrong. Use an earlier save or copy it again")


def _checksum(file: IO[bytes], size: int) -> int:
    checksum = 0
    while size > 0:
        block = file.read(min(size, BLOCK))
        checksum, size = zlib.crc32(block, checksum), size - len(block)
        if not block:
            break
    return checksum


def check_buffer(path: File, found: Any, model: Any, n_envs: int | None) -> None:
    """
    :param path: of the file
    :param found: what was in it
    :param model: that is to learn from it
    :param n_envs: columns of the buffer that the model had, ``None`` if it had none
    :raises ValueError: if it is none, or one for other environments
    """
    for name in ("observation_space", "action_space"):
        ours, theirs = getattr(model, name), getattr(found, name, None)
        if ours.shape != getattr(theirs, "shape", None):
            raise ValueError(
                f"{_name(path)} must hold a replay buffer with the {name} of the model, {ours}; got {theirs}. Load the buffer "
                "of a model with the same environment"
            )
    if n_envs not in (None, found.n_envs):
        raise ValueError(
            f"{_name(path)} must hold a replay buffer of {n_envs} environments as the model has it; got one of "
            f"{found.n_envs}. Use as many environments as when it was saved"
        )
    rows = found.buffer_size
    for name in ("observations", "actions", "rewards", "dones"):
        array = getattr(found, name, None)
        if not isinstance(array, np.ndarray) or len(array) != rows:
            raise ValueError(f"{_name(path)} is damaged: its {name} are not {rows} rows. Use an earlier save")


@contextmanager
def pickle_explained(path: File) -> Iterator[None]:
    """Around reading a pickle: a damaged one may raise anything."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and "path=" in str(error):
            raise
        raise ValueError(
            f"{_name(path)} must be a replay buffer that save_replay_buffer() wrote; it is damaged, of another version or "
            f"something else: {_brief(error)}. Use an earlier save"
        ) from error


# -------------------------------------------------------------------- arrays as plain values


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
