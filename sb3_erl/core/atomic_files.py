"""Files that are whole or not there."""

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
    A temporary file beside ``path`` that takes its name once it is written completely.

    :param path: the file to write
    :param suffix: ending that is added to a path without one
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
    """:return: a name beside ``path`` with the same ending that nobody has yet"""
    return path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")


def umask() -> int:
    """The bits that new files of this process do not get."""
    with uninterrupted():
        mask = os.umask(0)
        os.umask(mask)
    return mask
