"""Proof by replay: some results of workers are computed again elsewhere and compared bit for bit."""

from __future__ import annotations

import random
import warnings
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
import torch

from sb3_erl.core.seeding import scoped_generators
from sb3_erl.remote.messages import MONITOR_KEYS, RECORD, Answer
from sb3_erl.remote.worker import runner_of
from sb3_erl.rollouts.soundness import WorkerError

HERE = "this process"
"""Stands for a worker where results were computed again in the main process."""
CLOCKED = ("seconds",)
"""Fields of the scores of an episode that no two runs have in common."""


def result_of(answer: Answer, place: int) -> Any:
    """
    :param answer: of a worker
    :param place: of a job in it
    :return: everything that the worker says of this job, but how long it took
    """
    if isinstance(answer.bodies, list):
        return answer.bodies[place]
    packed, extras = answer.bodies
    row = np.frombuffer(packed, dtype=RECORD, count=1, offset=place * RECORD.itemsize).copy()
    for name in CLOCKED:
        row[name] = 0
    return row, extras.get(place)


def is_same(one: Any, other: Any) -> bool:
    """
    :param one: a result, or a part of it
    :param other: another one
    :return: whether all numbers in them are equal to the last bit (NaN equals NaN); Monitor's time is not looked at
    """
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray | np.generic):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        return is_same(one.tolist(), other.tolist()) if one.dtype.hasobject else one.tobytes() == other.tobytes()
    if isinstance(one, torch.Tensor):
        return is_same(one.detach().cpu().numpy(), other.detach().cpu().numpy())
    if isinstance(one, Mapping):
        keys = set(one) - {"t"} if set(one) == MONITOR_KEYS else set(one)
        return set(one) == set(other) and all(is_same(one[key], other[key]) for key in keys)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, float):
        return np.float64(one).tobytes() == np.float64(other).tobytes()
    if hasattr(one, "__dict__") and not isinstance(one, type):
        return is_same(vars(one), vars(other))
    return bool(one == other)


def warn_of_dismissal(name: str, number: int, n_lost: int) -> None:
    """
    :param name: of a worker
    :param number: of the job whose result was wrong
    :param n_lost: how many results it sent in this generation
    """
    warnings.warn(
        f"{name} sent a wrong result of job {number} of this generation: two others agreed on another one. It was dismissed, "
        f"and {n_lost} results that it sent in this generation are computed again",
        stacklevel=2,
    )


class Verification:
    """
    What is known of the results of a phase that were chosen to be computed a second time.

    Which ones cannot be foreseen by a worker, and no generator of the run is asked. Where two results differ, a third decides.

    :param share: of all jobs, in [0, 1]
    :param setup: makes in this process what runs jobs in a worker, see :func:`~sb3_erl.remote.worker.runner_of`
    """

    def __init__(self, share: float, setup: bytes):
        self.share, self._setup = share, setup
        self.n_runs = 0
        """How many jobs were run again, over the life of this object."""
        self._random = random.SystemRandom()
        self._runner: Any = None
        self.begin(b"", 0)

    def begin(self, phase: bytes, n_jobs: int) -> None:
        """
        :param phase: packed message
        :param n_jobs: number of its jobs
        """
        self._phase, self._is_loaded = phase, False
        self._chosen = {number for number in range(n_jobs) if self.share > 0 and self._random.random() < self.share}
        self.senders: dict[int, Hashable] = {}
        """Who sent the result of a job that counts."""
        self._results: dict[int, list[tuple[Hashable, Any]]] = {}
        self.waiting: deque[int] = deque()
        """Jobs that somebody has to run again who has not run them."""

    @property
    def is_over(self) -> bool:
        """Whether all chosen jobs whose results are there have been compared."""
        return not self._results

    def received(self, worker: Hashable, number: int, result: Callable[[], Any]) -> None:
        """
        :param worker: that ran a job
        :param number: of the job
        :param result: gives its result
        """
        self.senders[number] = worker
        if number in self._chosen:
            self._results[number] = [(worker, result())]
            self.waiting.append(number)

    def holds(self, number: int) -> bool:
        """:return: whether the job's result still has to be compared"""
        return number in self._results

    def may_run(self, worker: Hashable, number: int) -> bool:
        """:return: whether this worker has not run the job"""
        return all(worker != other for other, _ in self._results[number])

    def n_tried(self, number: int) -> int:
        """:return: how many have run the job"""
        return len(self._results[number])

    def again(self, worker: Hashable, number: int, result: Any) -> Hashable | None:
        """
        :param worker: that ran a job again
        :param number: of the job
        :param result: that it got
        :return: who is wrong, ``None`` if nobody is or it is not known yet
        :raises WorkerError: if all results differ, or this process is the one that differs
        """
        if number not in self._results:
            return None
        self.n_runs += 1
        results = self._results[number]
        agreeing = [other for other, known in results if is_same(known, result)]
        results.append((worker, result))
        if len(results) == 2 and not agreeing:
            self.waiting.append(number)
            return None
        wrong = [other for other, _ in results if other not in (worker, *agreeing)]
        if not agreeing or HERE in wrong:
            who = ", ".join(str(other) for other, _ in results)
            raise WorkerError(
                f"verify={self.share:g} needs an environment in which everything follows from reset(seed=...), on all "
                f"machines alike; job {number} of this phase was run by {who}, "
                + ("and all results differ" if not agreeing else "and only the result of this process differs")
                + ". Look for random numbers, clocks or state that outlives an episode, or processors that round "
                "differently; or set verify=0"
            )
        del self._results[number]
        return wrong[0] if wrong else None

    def forget(self, worker: Hashable) -> list[int]:
        """
        :param worker: whose results do not count
        :return: the jobs that have to be run again because of that
        """
        lost = [number for number, sender in self.senders.items() if sender == worker]
        for number in lost:
            del self.senders[number]
            self._results.pop(number, None)
        for number, results in self._results.items():  # it has run jobs of others again
            if any(other == worker for other, _ in results):
                self._results[number] = results[:1]
                self.waiting.append(number)
        self.waiting = deque(dict.fromkeys(number for number in self.waiting if number in self._results))
        return lost

    def run_here(self, number: int) -> Answer:
        """
        :param number: of a job
        :return: the answer of this process
        """
        n_threads = torch.get_num_threads()
        try:
            with scoped_generators(np.random.SeedSequence(0)):
                self._runner = self._runner or runner_of(self._setup)
                torch.set_num_threads(1)  # as in a worker
                if not self._is_loaded:
                    self._runner.load(self._phase)
                    self._is_loaded = True
                return Answer.unpacked(self._runner.run(number, number + 1))
        finally:
            torch.set_num_threads(n_threads)

    def close(self) -> None:
        """Close the environment of :meth:`run_here`."""
        if self._runner is not None:
            self._runner.env.close()
        self._runner = None
