"""Files that are written whole or not at all, and are still there after a power failure."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from sb3_erl.core.interrupts import uninterrupted

NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EBADF)
"""What file systems answer that cannot sync a folder, or not one of this user's."""


@contextmanager
def replacing(path: str | pathlib.Path, suffix: str) -> Iterator[pathlib.Path]:
    """
    Write a file under a temporary name, which is renamed to ``path`` when the block ends without an error.

    The content is on disk before the name is, and the name before the block is left, so that a power failure at any
    moment leaves the previous file or the new one.

    :param path: the file to write
    :param suffix: ending that is added to a path without one; a folder of that name is left, as by SB3, with ``_2`` after it
    :return: the temporary file, in the same folder
    """
    path = pathlib.Path(path)
    path = pathlib.Path(os.path.realpath(path if path.suffix else path.with_suffix(suffix)))  # through links, as SB3 writes
    if path.is_dir():
        warnings.warn(f"{str(path)!r} is a folder; the file is written as {path.name + '_2'!r} beside it", stacklevel=3)
        path = path.with_name(path.name + "_2")
    make_folder(path.parent)
    temporary = hidden_name(path)  # before there is a file, so that Ctrl-C cannot come between
    try:
        temporary.touch(0o600, exist_ok=False)
        yield temporary
        chmod(temporary, 0o666 & ~umask())
        to_disk(temporary)
        os.replace(temporary, path)
        to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def chmod(path: pathlib.Path, mode: int) -> None:
    """Give a file or folder its permissions, where its file system has any that this user may give."""
    with contextlib.suppress(PermissionError, NotImplementedError):
        os.chmod(path, mode)


def make_folder(path: pathlib.Path) -> None:
    """
    Make a folder and those above it that are missing, each with its name on disk.

    :param path: the folder, which may exist
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        to_disk(folder.parent)


def to_disk(path: pathlib.Path) -> None:
    """
    Wait until a file's content, or the names in a folder, would survive a power failure.

    :param path: file or folder; of a folder on a file system that cannot sync folders nothing is asked
    :raises OSError: if the content of a file could not be written
    """
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":  # Windows cannot open folders
        return
    try:
        handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if not is_folder or error.errno not in NO_SYNC:
            raise


def hidden_name(path: pathlib.Path) -> pathlib.Path:
    """:return: an unused name in the folder of ``path``, hidden, with the same ending"""
    return path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")


def umask() -> int:
    """:return: permissions that new files of this process are not given"""
    with uninterrupted():
        mask = os.umask(0)
        os.umask(mask)
    return mask
