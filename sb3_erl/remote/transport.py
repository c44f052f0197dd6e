"""The interface of worker pools, through which one dispatcher works with processes and with Ray."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple


class Event(NamedTuple):
    """
    A report of a pool.

    :param worker: name of the worker
    :param kind: whether it is ready (or failed to start), it answered, or it died
    :param body: pickled spaces or traceback of a worker that starts, packed answer, empty
    """

    worker: Hashable
    kind: Literal["ready", "done", "died"]
    body: bytes = b""


@dataclass
class Traffic:
    """
    Counts of messages and bytes.

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
    """Starts and stops workers and carries messages; the part that differs between processes and Ray."""

    traffic: Traffic

    @abstractmethod
    def start(self) -> Hashable:
        """Start a worker, which will report that it is ready; returns its name."""

    def describe(self, worker: Hashable) -> str:
        """:return: a worker's name in words, with what the system calls it"""
        return f"worker {worker}"

    @abstractmethod
    def publish(self, number: int, phase: bytes, tables: Sequence[Any]) -> None:
        """
        Put a phase where all workers can read it, in place of the one before.

        :param number: of the phase
        :param phase: packed
        :param tables: tables of noise that its actor needs
        """

    @abstractmethod
    def submit(self, worker: Hashable, first: int, last: int) -> None:
        """Request the jobs ``first`` to ``last - 1`` of the published phase; answers come in the order of the requests."""

    @abstractmethod
    def wait(self, timeout: float) -> list[Event]:
        """
        :param timeout: seconds to wait for an event
        :return: all events since the last call
        """

    @abstractmethod
    def stop(self, worker: Hashable, at_once: bool = True) -> None:
        """End a worker; without ``at_once`` it may close its environment first."""

    @abstractmethod
    def close(self) -> None:
        """End all workers and free shared memory."""
