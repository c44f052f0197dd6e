"""Where the time of a run goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up the wall time of the named parts of a run; nested parts count for the outer one only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._since = time.perf_counter()
        self._is_running = False

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """
        :param part: what the time inside is counted for
        """
        if self._is_running:
            yield
            return
        start, self._is_running = time.perf_counter(), True
        try:
            yield
        finally:
            self._is_running = False
            self.seconds[part] += time.perf_counter() - start

    def shares(self, rest: str) -> dict[str, float]:
        """
        :param rest: name for the time that no part took
        :return: share of each part in the time since the watch was made, in [0, 1]
        """
        total = max(time.perf_counter() - self._since, 1e-9)
        shares = {part: seconds / total for part, seconds in self.seconds.items()}
        return {**shares, rest: max(1.0 - sum(shares.values()), 0.0)}
