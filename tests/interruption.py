"""SIGINT in a chosen line."""

from __future__ import annotations

import gc
import signal
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def ctrl_c_raises() -> Iterator[None]:
    """As in a terminal; background jobs of a shell ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def call_with_sigint(function: Callable[[], Any], number: int, is_counted: Callable[[str], bool]) -> tuple[str, int]:
    """
    :param function: to be called
    :param number: of the line that gets SIGINT, among those that count, in the order in which they run; from 1
    :param is_counted: whether the lines of a file count, by its name
    :return: the line, empty if the function ended before it; and how many lines were counted
    :raises AssertionError: if the function goes on as if nothing had happened
    """
    count, hit = 0, ""

    def trace(frame: types.FrameType, event: str, _: Any) -> Any:
        nonlocal count, hit
        if not is_counted(frame.f_code.co_filename):
            return None
        if event == "line":
            count += 1
            if count == number:
                hit = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                signal.raise_signal(signal.SIGINT)
        return trace

    before = sys.gettrace()
    gc.disable()  # Python ignores Ctrl-C in what it calls for garbage, here that of other tests
    with ctrl_c_raises():
        sys.settrace(trace)
        try:
            function()
        except KeyboardInterrupt:
            assert hit
        else:
            assert not hit, f"SIGINT in {hit} was lost"
        finally:
            sys.settrace(before)
            gc.enable()
    return hit, count
