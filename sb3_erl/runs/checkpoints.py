"""Checkpoints on disk: folders that appear complete or not at all."""

from __future__ import annotations

import json
import math
import os
import pathlib
import pickle
import re
import shutil
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import filelock
from stable_baselines3.common.vec_env import VecNormalize

from sb3_erl.core.atomic_files import chmod, hidden_name, to_disk, umask
from sb3_erl.runs.segments import FOLDER as SEGMENTS

MANIFEST = "checkpoint.json"
MODEL = "model.zip"
BUFFER = "replay_buffer.pkl"
"""Name under which rl_zoo3 looks for the replay buffer of a model."""
NORMALIZER = "vecnormalize.pkl"
RUN = "run.pkl"
ENVIRONMENT = "env.pkl"
LOGS = "logs"
CHECKSUM = "checksum"
"""Key of the checksum of a manifest's other entries."""
PREFIX = "checkpoint_"
COMPLETE = re.compile(PREFIX + r"\d{12,}")
"""Names of checkpoints; any other folder, such as a copy of one under a name of the user's, is left alone."""
LEFTOVER = re.compile(rf"\.{PREFIX}\d{{12,}}\.[0-9a-f]+")
"""Names of folders that were being written or deleted."""
LOCK = ".lock"
LOCK_TIMEOUT = 10.0
"""Seconds to wait for a folder: the environments of a run that was killed may hold it for a moment."""


@dataclass(frozen=True)
class CheckpointFiles:
    """
    Files of one checkpoint, ours or of SB3's ``CheckpointCallback``.

    :param model: zip file of the model
    :param buffer: replay buffer, which need not exist
    :param normalizer: statistics of ``VecNormalize``, which need not exist
    :param manifest: manifest of one of our checkpoints, ``None`` for one of SB3's
    :param damaged: newer checkpoints of the same run that could not be read
    """

    model: pathlib.Path
    buffer: pathlib.Path
    normalizer: pathlib.Path
    manifest: dict[str, Any] | None = None
    damaged: tuple[pathlib.Path, ...] = ()

    @property
    def folder(self) -> pathlib.Path:
        """Where the files are."""
        return self.model.parent

    def statistics(self) -> VecNormalize | None:
        """:return: what ``VecNormalize`` had seen, without environments; ``None`` if there was none"""
        return pickle.loads(self.normalizer.read_bytes()) if self.normalizer.exists() else None


def newest_checkpoint(path: str | pathlib.Path, without: Collection[pathlib.Path] = ()) -> pathlib.Path | None:
    """
    :param path: folder of a :class:`~sb3_erl.runs.callbacks.GenerationCheckpoint`, or one checkpoint in it
    :param without: checkpoints that are passed over
    :return: the newest complete checkpoint, ``None`` if there is none, for example because the run has not begun

    >>> newest_checkpoint("no/such/folder") is None
    True
    """
    path = pathlib.Path(path)
    candidates = [path] if (path / MANIFEST).exists() else _folders(path)[::-1]
    return next((folder for folder in candidates if folder not in without and read_manifest(folder) is not None), None)


def checkpoint_at(path: pathlib.Path, n_timesteps: int) -> pathlib.Path:
    """:return: folder of the checkpoint of a step, with leading zeros, so that names sort by age"""
    return path / f"{PREFIX}{n_timesteps:012d}"


def _folders(path: pathlib.Path) -> list[pathlib.Path]:
    """:return: complete checkpoints and others, the oldest first"""
    return sorted(folder for folder in path.glob(f"{PREFIX}*") if COMPLETE.fullmatch(folder.name))


def read_manifest(folder: pathlib.Path, reads_files: bool = True) -> dict[str, Any] | None:
    """
    :param folder: of a checkpoint
    :param reads_files: whether checksums of files are compared, or their sizes only
    :return: the manifest of the checkpoint, ``None`` if it is not complete
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        own = manifest.pop(CHECKSUM, None)  # the first versions wrote none
        is_whole = own in (None, _checksum(json.dumps(manifest).encode()))
        is_whole &= all((folder / name).stat().st_size == size for name, size in manifest["files"].items())
        checksums = manifest.get("checksums", {}) if reads_files else {}
        is_whole &= all(_checksum((folder / name).read_bytes()) == value for name, value in checksums.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if is_whole else None


def _checksum(data: bytes) -> str:
    return f"{zlib.crc32(data):08x}"


def claim(path: pathlib.Path) -> filelock.BaseFileLock:
    """
    Lock a folder for one run; the operating system unlocks it when the process ends, in whatever way.

    :param path: folder of checkpoints
    :return: the lock, to be released when the run ends
    :raises ValueError: if another process holds it
    """
    lock = filelock.FileLock(path / LOCK, is_singleton=True, thread_local=False)
    try:
        lock.acquire(timeout=LOCK_TIMEOUT)
    except filelock.Timeout as error:
        raise ValueError(
            f"save_path must be a folder that no other run is writing to; another process holds {str(path)!r}. Give each run "
            "a folder of its own, or end the other run before this one continues it"
        ) from error
    return lock


def remove_leftovers(path: pathlib.Path) -> None:
    """Delete folders of killed runs that were writing or deleting a checkpoint."""
    for folder in path.glob(f".{PREFIX}*"):
        if LEFTOVER.fullmatch(folder.name):
            shutil.rmtree(folder, ignore_errors=True)


def prune(path: pathlib.Path, keep: int, keep_best: bool = False, keep_every: int | None = None) -> None:
    """
    Delete checkpoints, oldest first. Each has in its folder all that it needs, so that no other one is harmed.

    :param path: folder of checkpoints
    :param keep: how many of the newest complete ones stay
    :param keep_best: whether of the older ones that with the highest score stays, of equal ones the newest
    :param keep_every: every so many-th one stays, ``None`` for none
    """
    folders = _folders(path)
    manifests = {folder: manifest for folder in folders if (manifest := read_manifest(folder, reads_files=False)) is not None}
    older, kept = list(manifests)[:-keep], set(list(manifests)[-keep:])
    if keep_best and older:
        scores = {folder: manifests[folder].get("score") for folder in older}
        kept.add(max(older, key=lambda folder: (-math.inf if scores[folder] is None else scores[folder], folder)))
    if keep_every is not None:
        kept |= {folder for folder, manifest in manifests.items() if manifest.get("number", 0) % keep_every == 0}
    for folder in folders:
        if folder not in kept:
            _delete(folder)


def remove_damaged(folders: Collection[pathlib.Path], newest: pathlib.Path) -> None:
    """
    Delete later checkpoints of a run that goes on from one before them.

    :param folders: that could not be read
    :param newest: a checkpoint that has been written since, maybe in the place of one of them
    """
    for folder in folders:
        if folder != newest and folder.exists():
            _delete(folder)


@contextmanager
def new_checkpoint(path: pathlib.Path, n_timesteps: int, about: dict[str, Any]) -> Iterator[pathlib.Path]:
    """
    Make a temporary folder, which is renamed to the checkpoint when the block has filled it and all of it is on disk.

    :param path: folder with the checkpoints of a run
    :param n_timesteps: part of the name
    :param about: entries of the manifest beside sizes and checksums of the files
    :return: the temporary folder
    """
    final = checkpoint_at(path, n_timesteps)
    temporary = hidden_name(final)
    try:
        temporary.mkdir(0o700)
        yield temporary
        files = {file.relative_to(temporary).as_posix(): file for file in temporary.rglob("*") if file.is_file()}
        sizes = {name: file.stat().st_size for name, file in files.items()}
        checksums = {name: _checksum(file.read_bytes()) for name, file in files.items() if not name.startswith(f"{SEGMENTS}/")}
        manifest = {**about, "num_timesteps": n_timesteps, "files": sizes, "checksums": checksums}
        manifest[CHECKSUM] = _checksum(json.dumps(manifest).encode())
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        for entry in (*temporary.rglob("*"), temporary):
            to_disk(entry)
        chmod(temporary, 0o777 & ~umask())
        if final.exists():  # incomplete: a complete one would be continued
            _delete(final)
        os.replace(temporary, final)
        to_disk(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _delete(folder: pathlib.Path) -> None:
    """Rename the folder first, in a single step, so that no checkpoint is ever half deleted; then delete its files."""
    hidden = hidden_name(folder)
    os.replace(folder, hidden)
    shutil.rmtree(hidden, ignore_errors=True)
