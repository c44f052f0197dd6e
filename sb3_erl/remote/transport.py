"""What processes and Ray have to offer, so that one dispatcher can work with both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple


class Event(NamedTuple):
    """
    Something that a pool reports.

    :param worker: which worker
    :param kind: it is ready (or failed to be), it answered, it died
    :param body: what it said
    """

    worker: Hashable
    kind: Literal["ready", "done", "died"]
    body: bytes = b""


@dataclass
class Traffic:
    """
    What was sent.

    :param messages_out: requests to workers
    :param bytes_out: their size, with each phase counted once per machine
    :param messages_in: answers
    :param bytes_in: their size
    """

    messages_out: int = 0
    bytes_out: int = 0
    messages_in: int = 0
    bytes_in: int = 0


class Pool(ABC):
    """Starts and stops workers and carries messages; the part that is different for processes and for Ray."""

    traffic: Traffic

    @abstractmethod
    def start(self) -> Hashable:
        """Start a worker, which will report that it is ready; returns its name."""

    @abstractmethod
    def publish(self, number: int, phase: bytes, tables: Sequence[Any]) -> None:
        """
        Put a phase where all workers can get it; the one before is gone.

        :param number: of the phase
        :param phase: packed
        :param tables: the tables of noise that it needs
        """

    @abstractmethod
    def submit(self, worker: Hashable, first: int, last: int) -> None:
        """Ask for the jobs ``first`` to ``last - 1`` of the published phase; answers come in the order of the requests."""

    @abstractmethod
    def wait(self, timeout: float) -> list[Event]:
        """
        :param timeout: seconds to wait for something to happen
        :return: what happened
        """

    @abstractmethod
    def stop(self, worker: Hashable, at_once: bool = True) -> None:
        """End a worker; it may close its environment first unless it has to be ``at_once``."""

    @abstractmethod
    def close(self) -> None:
        """End all workers and free what they shared."""
