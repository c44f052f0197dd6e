"""Atomic file writes."""

from __future__ import annotations

import os
import pathlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from sb3_erl.core.interrupts import uninterrupted


@contextmanager
def replacing(path: str | pathlib.Path, suffix: str) -> Iterator[pathlib.Path]:
    """
    Write a file under a temporary name, which is renamed to ``path`` when the block ends without an error.

    :param path: the file to write
    :param suffix: ending that is added to a path without one
    :return: the temporary file, in the same folder
    """
    path = pathlib.Path(path)
    path = path if path.suffix else path.with_suffix(suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = hidden_name(path)  # before there is a file, so that Ctrl-C cannot come between
    try:
        temporary.touch(0o600, exist_ok=False)
        yield temporary
        os.chmod(temporary, 0o666 & ~umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def hidden_name(path: pathlib.Path) -> pathlib.Path:
    """:return: an unused name in the folder of ``path``, hidden, with the same ending"""
    return path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")


def umask() -> int:
    """:return: permissions that new files of this process are not given"""
    with uninterrupted():
        mask = os.umask(0)
        os.umask(mask)
    return mask
