"""
A power failure at any moment of a save leaves the save before or the new one.

Nothing is taken for granted that was not synced: see ``tests/faults/power.py``. The moments are all those at which a process
opens, renames, links, makes or removes a file or folder, or has synced one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sb3_erl import ALGOS, GenerationCheckpoint, newest_checkpoint
from sb3_erl.core import atomic_files
from sb3_erl.runs import checkpoints
from tests.contract.helpers import differences, snapshot
from tests.contract.resumed import environment
from tests.contract.settings import make
from tests.faults.power import Disk, make_again

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="folders cannot be synced"),
    pytest.mark.filterwarnings("ignore:total_timesteps was"),
]
TOTAL = 170


class Saver(GenerationCheckpoint):
    """Says to the record which checkpoints are complete, and what they must hold."""

    def __init__(self, disk: Disk, expected: dict[int, Any], *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.disk, self.expected = disk, expected

    def save(self) -> None:
        self.expected[self.model.num_timesteps] = snapshot(self.model)
        super().save()
        self.disk.phase = self.model.num_timesteps


def learn_recorded(name: str, root: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple[Disk, dict[int, Any]]:
    """Two starts of a run, the second of which goes on where the first one was stopped."""
    disk, expected = Disk(root), {}
    disk.phase = 0
    with disk.recording(monkeypatch):
        callback = Saver(disk, expected, 40, root / "runs" / "first", **settings)
        make(name, environment(name)).learn(100, callback)
        model = ALGOS[name].resume_from(root / "runs" / "first", environment(name), "cpu")
        model.learn(TOTAL, Saver(disk, expected, 40, root / "runs" / "first", **settings))
    return disk, expected


def violations(disk: Disk, expected: dict[int, Any], name: str, tmp_path: Path) -> list[str]:
    """States of the disk in which a checkpoint that was there is lost, or another one is found than was saved."""
    found, seen = [], {}
    for number, ((saved_at, state), model) in enumerate(disk.states.items()):
        if state not in seen:
            folder = make_again(state, tmp_path / f"state_{number}") / "runs" / "first"
            newest = newest_checkpoint(folder)
            step = 0 if newest is None else int(newest.name.split("_")[1])
            if newest is not None:
                resumed = ALGOS[name].resume_from(folder, environment(name), "cpu")
                if resumed.num_timesteps != step or differences(expected[step], snapshot(resumed)):
                    found.append(f"state {number}, {model}: another model at {step}")
            seen[state] = step
        if seen[state] < saved_at:
            found.append(f"state {number}, {model}: {seen[state]} instead of {saved_at}")
    return found


@pytest.mark.parametrize("settings", [{}, {"keep": 1}], ids=["thinned", "one"])
@pytest.mark.parametrize("name", ["cem", "erl", "td7"])
def test_checkpoints(name: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    disk, expected = learn_recorded(name, tmp_path / "run", monkeypatch, **settings)
    assert len(expected) >= 4 and len({state for _, state in disk.states}) > 20
    assert violations(disk, expected, name, tmp_path) == []


def forget(_: Path) -> None:
    """In place of a sync."""


def only_files(path: Path) -> None:
    """In place of one that also syncs folders."""
    if path.is_file():
        to_disk(path)


to_disk = atomic_files.to_disk


@pytest.mark.parametrize("lax", [forget, only_files])
def test_without_syncing_checkpoints_would_be_lost(
    lax: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the record would tell."""
    for module in (atomic_files, checkpoints):
        monkeypatch.setattr(module, "to_disk", lax)
    (tmp_path / "run").mkdir()
    disk, expected = learn_recorded("cem", tmp_path / "run", monkeypatch)
    assert violations(disk, expected, "cem", tmp_path)


@pytest.mark.parametrize("kind", ["model", "buffer"])
@pytest.mark.parametrize("lax", [None, forget, only_files])
def test_files_of_save(kind: str, lax: Callable[[Path], None] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``save`` and ``save_replay_buffer``, into a folder that is not there yet and over an earlier file."""

    def n_loaded(folder: Path) -> int:
        path = folder / "new" / "deep" / ("file.zip" if kind == "model" else "file.pkl")
        if not path.exists():
            return 0
        if kind == "model":
            return int(ALGOS["erl"].load(path).num_timesteps)
        empty.load_replay_buffer(path)
        return int(empty.replay_buffer.size())

    if lax is not None:
        monkeypatch.setattr(atomic_files, "to_disk", lax)
    root = tmp_path / "root"
    root.mkdir()
    model, empty, disk = make("erl", buffer_size=1000), make("erl", buffer_size=1000), Disk(root)
    disk.phase = 0
    sizes = []
    with disk.recording(monkeypatch):
        for total in (40, 90):
            model.learn(total, reset_num_timesteps=False)
            path = root / "new" / "deep" / "file"
            model.save(path) if kind == "model" else model.save_replay_buffer(path)
            disk.phase = model.num_timesteps
            sizes.append(model.num_timesteps)
    lost = []
    for number, (saved_at, state) in enumerate(disk.states):
        try:
            n = n_loaded(make_again(state, tmp_path / str(number)))
            lost += [number] if n < saved_at or n not in (0, *sizes) else []
        except ValueError:
            lost.append(number)
    assert (lost == []) == (lax is None)
