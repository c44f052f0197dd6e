"""Ctrl-C at moments when it would leave something behind."""

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
    Ctrl-C takes effect after the block, not inside it; for what is short and must be done whole or not at all.

    A second Ctrl-C takes effect at once: something may take longer than it should. Blocks may be nested; then the outer one
    counts. Changes nothing in threads other than the main one, which Ctrl-C does not reach, and where no Python function
    handles it.
    """
    handler = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or not callable(handler) or isinstance(handler, _Patience):
        yield
        return
    patience = _Patience(handler)
    signal.signal(signal.SIGINT, patience)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if patience.is_asked:
            handler(signal.SIGINT, None)


@contextmanager
def torch_modes_kept() -> Iterator[None]:
    """
    Gradients and autocast are switched on or off after the block as they were before it.

    Ctrl-C can come when ``torch.no_grad()`` is about to switch gradients on again, which then stay off for the whole program.
    """
    with_gradients = torch.is_grad_enabled()
    coarse = {device: torch.is_autocast_enabled(device) for device in ("cpu", "cuda")}
    try:
        yield
    finally:
        torch.set_grad_enabled(with_gradients)
        for device, is_enabled in coarse.items():
            torch.set_autocast_enabled(device, is_enabled)


class _Patience:
    """Handles the first Ctrl-C by remembering it, the next one as before."""

    def __init__(self, handler: Callable[[int, types.FrameType | None], Any]):
        self.handler = handler
        self.is_asked = False

    def __call__(self, number: int, frame: types.FrameType | None) -> None:
        if self.is_asked:
            self.is_asked = False
            self.handler(number, frame)
        else:
            self.is_asked = True
