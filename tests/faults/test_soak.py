"""The long run of ``make soak``, made short."""

from __future__ import annotations

from benchmarks.soak import soak


def test_killed_workers_change_nothing() -> None:
    (figures,) = soak(["process"], "Pendulum-v1", minutes=0.0, kill_every=0.5, pace=0.0, n_steps=600)
    assert figures["different"] == figures["processes left"] == []
    assert figures["kills"] > 0 and figures["steps"] == 4 * 600
