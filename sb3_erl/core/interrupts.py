"""Blocks that Ctrl-C does not interrupt, and torch's global modes after an interruption."""

from __future__ import annotations

import signal
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def uninterrupted() -> Iterator[None]:
    """
    Delay Ctrl-C to the end of the block; for short blocks that must be done as a whole or not at all.

    A second Ctrl-C takes effect at once, because the block may take longer than it should. Blocks may be nested; then Ctrl-C
    takes effect at the end of the outer one. In threads other than the main one, which Ctrl-C does not reach, and where no
    Python function handles Ctrl-C, the block is run without any change.
    """
    handler = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or not callable(handler) or isinstance(handler, _DelayedInterrupt):
        yield
        return
    delayed = _DelayedInterrupt(handler)
    signal.signal(signal.SIGINT, delayed)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if delayed.is_pending:
            handler(signal.SIGINT, None)


@contextmanager
def torch_modes_kept() -> Iterator[None]:
    """
    Restore after the block whether torch computes gradients and uses autocast.

    If Ctrl-C comes just before ``torch.no_grad()`` switches gradients on again, they would stay off for the whole program.
    """
    with_gradients = torch.is_grad_enabled()
    autocast = {device: torch.is_autocast_enabled(device) for device in ("cpu", "cuda")}
    try:
        yield
    finally:
        torch.set_grad_enabled(with_gradients)
        for device, is_enabled in autocast.items():
            torch.set_autocast_enabled(device, is_enabled)


class _DelayedInterrupt:
    """Signal handler that only notes the first Ctrl-C and handles the next one as before."""

    def __init__(self, handler: Callable[[int, types.FrameType | None], Any]):
        self.handler = handler
        self.is_pending = False

    def __call__(self, number: int, frame: types.FrameType | None) -> None:
        if self.is_pending:
            self.is_pending = False
            self.handler(number, frame)
        else:
            self.is_pending = True
