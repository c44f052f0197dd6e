"""Whether a job kills the workers that run it, or its workers were lost by chance."""

from __future__ import annotations

MAX_DEATHS = 3
"""Number of workers lost on one job, or one after the other before the first was ready, from which on it may be an error."""
CHANCE = 1e-3
"""A job on which workers were lost is to blame if, at the rate at which other jobs lose theirs, this or less explains it."""


class Losses:
    """The workers that were lost on the jobs of a phase."""

    def __init__(self) -> None:
        self.n_done = 0
        """How many jobs ran to their end."""
        self._of: dict[int, int] = {}

    def count(self, number: int) -> None:
        """
        :param number: of a job on which a worker was lost
        """
        self._of[number] = self._of.get(number, 0) + 1

    def error(self, number: int) -> str | None:
        """
        :param number: of a job
        :return: what is wrong with it; ``None`` if it may have been bad luck, as where machines come and go
        """
        own, n_lost = self._of.get(number, 0), sum(self._of.values())
        n_tried = self.n_done + n_lost
        rate = (n_lost - own) / n_tried if n_tried else 0.0
        if own < MAX_DEATHS or (rate < 0.5 and n_tried * rate**own > CHANCE):
            return None
        return (
            f"{own} workers died while they ran job {number} of this phase; the environment may crash the process (look at "
            "what it wrote to the terminal), or take more memory than there is: use fewer workers"
        )
