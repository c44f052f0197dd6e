"""Shares of a run's time."""

import time

import pytest

from sb3_erl.core.stopwatch import Stopwatch


def test_shares_add_up_and_nested_parts_count_once() -> None:
    watch = Stopwatch()
    with watch.measure("learning"), watch.measure("evaluation"):
        time.sleep(0.05)
    time.sleep(0.05)
    shares = watch.shares(rest="evolution")
    assert set(shares) == {"learning", "evolution"}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert 0.2 < shares["learning"] < 0.8


def test_an_error_inside_is_counted_too() -> None:
    watch = Stopwatch()
    with pytest.raises(ZeroDivisionError), watch.measure("learning"):
        _ = 1 / 0
    assert watch.seconds["learning"] > 0
    with watch.measure("evaluation"):
        pass
    assert set(watch.seconds) == {"learning", "evaluation"}
