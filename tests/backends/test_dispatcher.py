"""The dispatcher with a pool in this process, where each message is answered as the test says."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import pytest

from sb3_erl.remote.dispatcher import Dispatcher
from sb3_erl.remote.messages import Answer
from sb3_erl.remote.transport import Event, Pool, Traffic


class StubPool(Pool):
    """Workers that answer at once; a job that raises ends its message, as in a worker."""

    def __init__(self, raises: Callable[[int], bool]):
        self.traffic, self.raises = Traffic(), raises
        self.events: deque[Event] = deque()
        self.messages: list[tuple[int, int]] = []
        self.names = itertools.count()
        self.n_idle = 0

    def start(self) -> Hashable:
        name = next(self.names)
        self.events.append(Event(name, "ready", b"N."))
        return name

    def publish(self, number: int, phase: bytes, tables: Sequence[Any]) -> None: ...

    def submit(self, worker: Hashable, first: int, last: int) -> None:
        self.messages.append((first, last))
        n_done = next((place for place, number in enumerate(range(first, last)) if self.raises(number)), last - first)
        error = f"no {first + n_done}" if n_done < last - first else None
        bodies = [number * 10 for number in range(first, first + n_done)]
        self.events.append(Event(worker, "done", Answer(first, bodies, n_done, 1e-3 * n_done, error).packed()))

    def wait(self, timeout: float) -> list[Event]:
        events, self.events = list(self.events), deque()
        self.n_idle = 0 if events else self.n_idle + 1
        assert self.n_idle < 10, "the dispatcher waits for what nobody was asked for"
        return events

    def stop(self, worker: Hashable, at_once: bool = True) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize("bad", [{0}, {2}, {3}, {0, 1, 5}, set(range(8))])
def test_jobs_after_one_that_raises_are_answered(bad: set[int]) -> None:
    """A population of whole models goes on with the other members."""
    pool = StubPool(bad.__contains__)
    dispatcher = Dispatcher(pool, 1, None, 10.0)
    dispatcher.seconds_per_job = 1e-3  # so short that several are sent together
    dispatcher.begin(b"", 8, ())
    for number in range(8):
        outcome = dispatcher.outcome(number)
        if number in bad:
            assert isinstance(outcome, str) and f"job {number} of this phase raised" in outcome and f"no {number}" in outcome
        else:
            assert outcome is not None and not isinstance(outcome, str) and outcome[0][outcome[1]] == number * 10
    assert pool.messages[0] == (0, 4)
