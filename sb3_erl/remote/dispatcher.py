"""Distribution of jobs to workers, and recovery when a worker is lost."""

from __future__ import annotations

import pickle
import time
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sb3_erl.remote.losses import MAX_DEATHS, Losses
from sb3_erl.remote.messages import Answer
from sb3_erl.remote.transport import Event, Pool
from sb3_erl.remote.verification import HERE, Verification, result_of, warn_of_dismissal
from sb3_erl.rollouts.soundness import WorkerError

MESSAGE_SECONDS = 0.2
"""Seconds that the jobs of one message should take at least, so that messages cost little in comparison."""


@dataclass
class _Chunk:
    phase: int
    first: int
    last: int
    is_again: bool = False  # the result of the job is known and is computed a second time


@dataclass
class _Member:
    born: float
    is_ready: bool = False
    chunks: deque[_Chunk] = field(default_factory=deque)
    since: float = 0.0
    """Time at which the first of the chunks was begun."""


class Dispatcher:
    """
    Gives consecutive jobs to workers, in portions small enough that all workers end together.

    A worker that dies is replaced and its jobs run again; the result is the same, because everything random in a job derives
    from its address. A worker that does not answer for ``episode_timeout`` seconds is ended; its jobs are then run one by one,
    and a job that alone takes so long has failed.

    :param pool: carries the messages
    :param n_workers: number of workers, at least 1; may be changed at any time
    :param episode_timeout: seconds, ``None`` for no limit
    :param start_timeout: seconds within which the first worker has to be ready
    :param verification: runs a share of the jobs again; then no result is given out before all are there and compared
    """

    def __init__(
        self,
        pool: Pool,
        n_workers: int,
        episode_timeout: float | None,
        start_timeout: float,
        verification: Verification | None = None,
    ):
        self.verification = Verification(0.0, b"") if verification is None else verification
        self.dismissed: list[str] = []
        """Workers that were ended because they sent wrong results."""
        self.pool, self.n_workers = pool, n_workers
        self.episode_timeout, self.start_timeout = episode_timeout, start_timeout
        self.greeting: bytes | None = None
        """The first message of the first worker that was ready."""
        self.seconds_per_job: float | None = None
        self.n_deaths = 0
        """Number of workers lost over the life of the dispatcher."""
        self._members: dict[Hashable, _Member] = {}
        self._phase = -1
        self._deaths_before_ready = 0
        self._cancel_jobs()

    def _cancel_jobs(self, n_following: int = 0) -> None:
        self._next, self._n_jobs = 0, n_following
        self._again: deque[int] = deque()
        self._answers: dict[int, tuple[Any, int] | str | None] = {}
        self._losses, self._n_given = Losses(), 0
        self.verification.begin(b"", 0)

    @property
    def workers(self) -> list[Hashable]:
        """Names of the present workers."""
        return list(self._members)

    @property
    def _n_waiting(self) -> int:
        return self._n_jobs - self._next + len(self._again)

    # ---------------------------------------------------------------- interface of the evaluator

    def greet(self) -> bytes:
        """Wait for the first worker; returns its first message."""
        while self.greeting is None:
            self.pump(block=True)
        return self.greeting

    def settle(self, cancels: bool = True) -> None:
        """Wait until ``n_workers`` workers are ready, and idle because the rest of the phase is canceled."""
        if cancels:
            self._cancel_jobs()
        members = self._members
        while len(members) != self.n_workers or any((cancels and m.chunks) or not m.is_ready for m in members.values()):
            self.pump(block=True)

    def begin(self, phase: bytes, n_jobs: int, tables: Sequence[Any]) -> None:
        """
        Begin a phase; the rest of the one before is canceled.

        :param phase: packed message
        :param n_jobs: number of its jobs
        :param tables: tables of noise that its actor needs
        """
        self._phase += 1
        self._cancel_jobs(n_jobs)
        self.verification.begin(phase, n_jobs)
        self.pool.publish(self._phase, phase, tables)

    def answer(self, number: int) -> tuple[Any, int] | None:
        """
        Wait for a job.

        :param number: of the job
        :return: the bodies of an :class:`~sb3_erl.remote.messages.Answer` and the job's place in it; ``None`` if it failed
        :raises WorkerError: if it raised an exception, or three workers died while they ran it
        """
        answer = self.outcome(number)
        if isinstance(answer, str):
            raise WorkerError(answer)
        return answer

    def outcome(self, number: int) -> tuple[Any, int] | str | None:
        """
        Wait for a job, where one that ended in an error is not the end of the run.

        :param number: of the job
        :return: as :meth:`answer` does; what it would say in its error
        """
        while number not in self._answers or self._holds_back:
            self.pump(block=True)
        self._n_given += 1
        return self._answers.pop(number)

    @property
    def _holds_back(self) -> bool:
        """Whether results may still turn out to be wrong; an error ends the run anyway."""
        if self.verification.share == 0 or any(isinstance(answer, str) for answer in self._answers.values()):
            return False
        return len(self._answers) + self._n_given < self._n_jobs or not self.verification.is_over

    def pump(self, block: bool = False) -> None:
        """
        Give jobs to idle workers and take answers.

        :param block: wait until a worker reports something
        """
        self._adjust()
        self._feed()
        for event in self.pool.wait(self._patience() if block else 0.0):
            member = self._members.get(event.worker)
            if member is None:  # ended before
                continue
            if event.kind == "ready":
                self._ready(member, event)
            elif event.kind == "done":
                self._done(event.worker, member, Answer.unpacked(event.body))
            else:
                self._died(event.worker, member)
        self._check_time()
        self._feed()

    def end_workers(self) -> None:
        """End all workers; new ones are started when they are needed."""
        for worker in self.workers:
            self._end(worker)
        self._cancel_jobs()

    # ---------------------------------------------------------------- starting and ending workers

    def _adjust(self) -> None:
        while len(self._members) < self.n_workers:
            self._members[self.pool.start()] = _Member(time.monotonic())
        surplus = len(self._members) - self.n_workers
        if surplus > 0:  # busy workers are ended when their jobs are done
            idle = [worker for worker, member in self._members.items() if not member.chunks]
            for worker in idle[-surplus:]:
                self._end(worker)

    def _end(self, worker: Hashable) -> None:
        self.pool.stop(worker, at_once=bool(self._members.pop(worker).chunks))

    def _ready(self, member: _Member, event: Event) -> None:
        message = pickle.loads(event.body)
        if isinstance(message, str):
            raise WorkerError(f"a worker could not make its environment:\n{message}")
        member.is_ready, self._deaths_before_ready = True, 0
        self.greeting = self.greeting or event.body

    def _died(self, worker: Hashable, member: _Member) -> None:
        self.n_deaths += 1
        self._end(worker)
        if not member.is_ready:
            self._deaths_before_ready += 1
            most = MAX_DEATHS if self.greeting is None else max(MAX_DEATHS, 2 * self.n_workers)
            if self._deaths_before_ready >= most:
                raise WorkerError(
                    f"{most} workers ended before they were ready; look at what they wrote to the terminal. A script "
                    "that starts workers needs `if __name__ == '__main__':` around what it does"
                )
        for place, chunk in enumerate(member.chunks):
            self._lost(chunk, is_suspect=place == 0)

    def _lost(self, chunk: _Chunk, is_suspect: bool) -> None:
        """Somebody else has to do what this chunk asked for."""
        if chunk.phase == self._phase and chunk.is_again:
            self.verification.waiting.append(chunk.first)
        elif chunk.phase == self._phase:
            self._rerun(range(chunk.first, chunk.last), is_suspect)

    def _rerun(self, jobs: Sequence[int], is_suspect: bool) -> None:
        """Run lost jobs again, one by one; a job that kills its workers becomes an error."""
        for number in jobs:
            if is_suspect:
                self._losses.count(number)
            error = self._losses.error(number) if len(jobs) == 1 else None
            if error is None:
                self._again.append(number)
            else:
                self._answers[number] = error

    # ---------------------------------------------------------------- giving out jobs and taking answers

    def _feed(self) -> None:
        """Send at most two messages to a worker: the one that it works on and, unless few jobs are left, the next one."""
        self._feed_again()
        for depth in (0, 1):
            for worker, member in self._members.items():
                if self._n_waiting == 0 or (depth == 1 and self._n_waiting <= 2 * len(self._members)):
                    return
                if member.is_ready and len(member.chunks) == depth:
                    chunk = self._take()
                    member.since = time.monotonic() if depth == 0 else member.since
                    member.chunks.append(chunk)
                    self.pool.submit(worker, chunk.first, chunk.last)

    def _feed_again(self) -> None:
        """Let results be computed again by idle workers that have not computed them, or here where there is no other."""
        verification = self.verification
        for number in [verification.waiting.popleft() for _ in range(len(verification.waiting))]:
            if not verification.holds(number):
                continue
            if verification.n_tried(number) >= self.n_workers:
                self._compare(HERE, number, verification.run_here(number))
                continue
            idle = [worker for worker, member in self._members.items() if member.is_ready and not member.chunks]
            worker = next((worker for worker in idle if verification.may_run(worker, number)), None)
            if worker is None:
                verification.waiting.append(number)
                continue
            self._members[worker].since = time.monotonic()
            self._members[worker].chunks.append(_Chunk(self._phase, number, number + 1, is_again=True))
            self.pool.submit(worker, number, number + 1)

    def _compare(self, worker: Hashable, number: int, answer: Answer) -> None:
        wrong = self.verification.again(worker, number, result_of(answer, 0) if answer.n_done else answer.error)
        if wrong is None:
            return
        name, lost = self.pool.describe(wrong), self.verification.forget(wrong)
        self.dismissed.append(name)
        for other in lost:
            self._answers.pop(other, None)
        if wrong in self._members:
            chunks = self._members[wrong].chunks
            self._end(wrong)
            for chunk in chunks:
                self._lost(chunk, is_suspect=False)
        self._again.extend(lost)
        warn_of_dismissal(name, number, len(lost))

    def _take(self) -> _Chunk:
        if self._again:
            number = self._again.popleft()
            return _Chunk(self._phase, number, number + 1)
        size = 1
        if self.seconds_per_job is not None:
            wanted = int(MESSAGE_SECONDS / max(self.seconds_per_job, 1e-6)) + 1
            size = max(1, min(wanted, (self._n_jobs - self._next) // (2 * max(1, len(self._members)))))
        first, self._next = self._next, self._next + size
        return _Chunk(self._phase, first, self._next)

    def _done(self, worker: Hashable, member: _Member, answer: Answer) -> None:
        chunk = member.chunks.popleft()
        member.since, self._deaths_before_ready = time.monotonic(), 0
        if chunk.phase != self._phase:
            return
        if answer.n_done == 0 and answer.error is None:  # the phase was over when the worker read it
            self._lost(chunk, is_suspect=False)
            return
        if chunk.is_again:
            self._compare(worker, chunk.first, answer)
            return
        self._losses.n_done += answer.n_done
        for place in range(answer.n_done):
            self._answers[answer.first + place] = answer.bodies, place
            if self.verification.share > 0:
                self.verification.received(worker, answer.first + place, partial(result_of, answer, place))
        if answer.error is not None:
            failed = answer.first + answer.n_done
            self._answers[failed] = f"job {failed} of this phase raised an exception in a worker:\n{answer.error}"
            self._again.extend(range(failed + 1, chunk.last))
        elif answer.n_done:
            mean = answer.seconds / answer.n_done
            self.seconds_per_job = mean if self.seconds_per_job is None else 0.7 * self.seconds_per_job + 0.3 * mean

    # ---------------------------------------------------------------- time

    def _patience(self) -> float:
        """Seconds until times have to be checked even if no worker reports anything."""
        now, patience = time.monotonic(), 1.0
        if self.episode_timeout is not None:
            for member in self._members.values():
                if member.chunks:
                    patience = min(patience, max(0.0, member.since + self.episode_timeout - now))
        return patience

    def _check_time(self) -> None:
        now = time.monotonic()
        for worker, member in list(self._members.items()):
            if member.chunks and self.episode_timeout is not None and now - member.since > self.episode_timeout:
                self._cut_off(worker, member)
        none_is_ready = bool(self._members) and not any(member.is_ready for member in self._members.values())
        if none_is_ready and all(now - member.born > self.start_timeout for member in self._members.values()):
            raise WorkerError(
                f"no worker was ready within start_timeout={self.start_timeout:g} seconds; raise it, or look whether the "
                f"{self.n_workers} workers ask for more than there is (n_workers, num_cpus)"
            )

    def _cut_off(self, worker: Hashable, member: _Member) -> None:
        self._end(worker)
        for place, chunk in enumerate(member.chunks):
            if chunk.phase != self._phase:
                continue
            if place == 0 and chunk.last - chunk.first == 1 and not chunk.is_again:
                self._answers[chunk.first] = None
            else:
                self._lost(chunk, is_suspect=False)
