"""What of a folder survives a power failure: a record of what a process does to it, and of what it has synced."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

EVENTS = {"open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.truncate"}
Names = dict[str, int]
Tree = dict[str, bytes | None]
"""Content by path, ``None`` for folders."""

_recording: list[Disk] = []


def _hear(event: str, _: tuple[Any, ...]) -> None:
    if _recording and event in EVENTS:
        _recording[-1].note()


sys.addaudithook(_hear)


class Disk:
    """
    The possible states of a folder after a power failure, at each moment of what happens in a block.

    A file's content is on disk from its ``fsync`` on, as it was then; a name is from the ``fsync`` of its folder on. What was
    not synced may be there or not, so that three states are kept for each moment: nothing of it; all names and no content
    (files of length zero, as on file systems that allocate late); and all removals of names, but no new ones. A name that was
    given to another file is one of the two, never none.

    :param root: the folder
    """

    def __init__(self, root: Path):
        self.root = root
        self.phase: Any = None
        """What the test says about now; kept with each state."""
        self.states: dict[tuple[Any, frozenset[tuple[str, bytes | None]]], str] = {}
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, Names] = {}
        self._held: list[int] = []  # so that no number of a file is used again

    @contextmanager
    def recording(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
        """In the block, note what this process does."""
        fsync = os.fsync

        def synced(handle: int) -> None:
            fsync(handle)
            if _recording:
                self._sync(handle)
                self.note()

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", synced)
            _recording.append(self)
            try:
                yield self
            finally:
                self.note()
                _recording.clear()
                for handle in self._held:
                    os.close(handle)

    def _sync(self, handle: int) -> None:
        status = os.fstat(handle)
        self._held.append(os.dup(handle))
        if stat.S_ISDIR(status.st_mode):
            self._names[status.st_ino] = {entry.name: entry.inode() for entry in os.scandir(handle)}
        else:
            self._contents[status.st_ino] = os.pread(handle, status.st_size, 0)

    def note(self) -> None:
        """Enter what would be left now."""
        _recording.clear()
        for model in ("nothing", "names", "removals"):
            state = frozenset(self._left(model).items())
            self.states.setdefault((self.phase, state), model)
        _recording.append(self)

    def _left(self, model: str) -> Tree:
        tree: Tree = {}
        inodes = {self.root.stat().st_ino: self.root}
        for path in self.root.rglob("*"):
            inodes.setdefault(path.stat().st_ino, path)

        def walk(prefix: str, folder: int) -> None:
            now = {path.name: path.stat().st_ino for path in inodes[folder].iterdir()} if folder in inodes else {}
            synced = self._names.get(folder, {})
            names = {"nothing": synced, "names": now}.get(model)
            if names is None:
                names = {name: inode for name, inode in synced.items() if folder not in inodes or name in now}
            for name, inode in names.items():
                path = inodes.get(inode)
                if inode in self._names or (path is not None and path.is_dir()):
                    tree[prefix + name] = None
                    walk(f"{prefix}{name}/", inode)
                else:
                    tree[prefix + name] = self._contents.get(inode, b"")

        walk("", self.root.stat().st_ino)
        return tree


def make_again(tree: frozenset[tuple[str, bytes | None]], folder: Path) -> Path:
    """:return: ``folder``, with the files of a state"""
    folder.mkdir()
    for name, content in sorted(tree, key=lambda pair: pair[0]):
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)
    return folder
