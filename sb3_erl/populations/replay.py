"""Replay buffers of members, as further files in the zip file of a population."""

from __future__ import annotations

import io
import pathlib
import zipfile
from collections.abc import Sequence
from typing import Any

from sb3_erl.runs.loading import File, opened

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
