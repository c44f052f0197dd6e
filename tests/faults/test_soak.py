"""The long run of ``make soak``, made short."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import soak


def test_killed_workers_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "CHUNK", 600)
    figures = soak.soak("process", "Pendulum-v1", minutes=0.0, kill_every=0.5, folder=tmp_path)
    assert figures["different"] == [] and figures["kills"] > 0 and figures["steps"] == 4 * 600
