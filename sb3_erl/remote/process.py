"""
Workers that are processes of this machine.

``concurrent.futures`` is not used because its pool is broken for good once a single worker dies.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import multiprocessing
import os
import pickle
import time
from collections.abc import Hashable, Iterator, Sequence
from multiprocessing import connection, shared_memory
from typing import Any

import numpy as np

from sb3_erl.core.interrupts import uninterrupted
from sb3_erl.core.noise_table import NoiseTable
from sb3_erl.remote.evaluator import RemoteEvaluator
from sb3_erl.remote.transport import Event, Pool, Traffic
from sb3_erl.remote.worker import serve

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class ProcessEvaluator(RemoteEvaluator):
    """
    Runs whole episodes in worker processes of this machine; ``evaluator="process"`` is the same with defaults.

    The weights of a generation and the table of noise lie in shared memory, once for all workers; messages are job numbers
    and results. The result is that of ``evaluator="vec"`` with one environment, for any number of workers.

    :param n_workers: number of processes, ``None`` for one per CPU that this process may use; may be changed at any time
    :param make_env: function that makes one environment, ``None`` to rebuild the environments of the model
    :param episode_timeout: seconds after which an episode has failed, ``None`` for no limit
    :param start_timeout: seconds within which the first worker has to be ready
    :param step_infos: whether callbacks of algorithms with a replay buffer get the infos of all steps, not the last one only
    :param verify: share of the results, in [0, 1], that another worker computes again, see :class:`RemoteEvaluator`
    :param start_method: ``"forkserver"`` or ``"spawn"``, ``None`` for the first of them that the system has
    :raises ValueError: if a number is out of range or the start method unknown
    """

    def __init__(
        self,
        n_workers: int | None = None,
        make_env: Any = None,
        episode_timeout: float | None = None,
        start_timeout: float = 120.0,
        step_infos: bool = True,
        start_method: str | None = None,
        verify: float = 0.0,
    ):
        super().__init__(n_workers, make_env, episode_timeout, start_timeout, step_infos, verify)
        known = [method for method in ("forkserver", "spawn") if method in multiprocessing.get_all_start_methods()]
        if start_method not in (None, *known):
            raise ValueError(f"start_method must be None or one of {known} on this system; got {start_method!r}")
        self.start_method = start_method

    def _default_n_workers(self) -> int:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def _make_pool(self, setup: bytes) -> Pool:
        methods = multiprocessing.get_all_start_methods()
        return ProcessPool(setup, self.start_method or ("forkserver" if "forkserver" in methods else "spawn"))


class ProcessPool(Pool):
    """
    See :class:`~sb3_erl.remote.transport.Pool`.

    :param setup: see :class:`~sb3_erl.remote.worker.Runner`
    :param start_method: of :mod:`multiprocessing`
    """

    def __init__(self, setup: bytes, start_method: str):
        self.traffic = Traffic()
        self._setup = setup
        self._context: Any = multiprocessing.get_context(start_method)
        if start_method == "forkserver":  # workers are forked from a process that has imported everything
            self._context.set_forkserver_preload(["sb3_erl.remote.worker"])
        self._names = itertools.count()
        self._workers: dict[Hashable, tuple[Any, connection.Connection]] = {}
        self._informed: dict[Hashable, int] = {}
        self._greeted: set[Hashable] = set()
        self._dead: list[Hashable] = []
        self._memory: shared_memory.SharedMemory | None = None
        self._published: tuple[int, str, int, list[tuple[int, int, str]]] = (-1, "", 0, [])
        """The phase: its number, name of its memory, size, and the tables of noise."""
        self._tables: dict[tuple[int, int], shared_memory.SharedMemory] = {}

    def process_of(self, worker: Hashable) -> Any:
        """The :class:`multiprocessing.Process` of a worker."""
        return self._workers[worker][0]

    def describe(self, worker: Hashable) -> str:
        """See :meth:`Pool.describe`."""
        found = self._workers.get(worker)
        return f"worker {worker}" + ("" if found is None else f" (process {found[0].pid})")

    def start(self) -> Hashable:
        """See :meth:`Pool.start`."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=serve, args=(theirs, self._setup), daemon=True)
        name = next(self._names)
        try:
            with uninterrupted(), _one_thread():  # half a request would break the fork server
                process.start()
                self._workers[name] = process, ours
        except BaseException:
            if name in self._workers:  # the dispatcher does not have its name yet
                self.stop(name)
            ours.close()
            raise
        finally:
            theirs.close()
        return name

    def publish(self, number: int, phase: bytes, tables: Sequence[NoiseTable]) -> None:
        """See :meth:`Pool.publish`."""
        with uninterrupted():  # memory that is not noted yet would never be removed
            self._remove(self._memory)
            self._memory = None
            self._memory = _shared_memory(max(1, len(phase)), "the networks of a generation")
            shared = [(table.size, table.seed, self._share(table)) for table in tables]
        assert self._memory.buf is not None
        self._memory.buf[: len(phase)] = phase
        self.traffic.bytes_out += len(phase)
        self._published = number, self._memory.name, len(phase), shared

    def _share(self, table: NoiseTable) -> str:
        key = table.size, table.seed
        if key not in self._tables:
            memory = self._tables[key] = _shared_memory(4 * table.size, f"the table of noise (noise_table_size={table.size})")
            np.ndarray((table.size,), dtype=np.float32, buffer=memory.buf)[:] = table.values
        return self._tables[key].name

    def submit(self, worker: Hashable, first: int, last: int) -> None:
        """See :meth:`Pool.submit`."""
        is_new = self._informed.get(worker) != self._published[0]
        request = pickle.dumps((first, last, self._published if is_new else None))
        self._informed[worker] = self._published[0]
        self.traffic.messages_out += 1
        self.traffic.bytes_out += len(request)
        try:
            self._workers[worker][1].send_bytes(request)
        except OSError:
            self._dead.append(worker)

    def wait(self, timeout: float) -> list[Event]:
        """See :meth:`Pool.wait`."""
        events = [Event(worker, "died") for worker in self._dead if worker in self._workers]
        self._dead = []
        by_channel = {channel: worker for worker, (_, channel) in self._workers.items()}
        for channel in connection.wait(list(by_channel), 0.0 if events else timeout):
            worker = by_channel[channel]  # type: ignore[index]
            try:
                body = channel.recv_bytes()  # type: ignore[union-attr]
            except (EOFError, OSError):
                events.append(Event(worker, "died"))
                continue
            if worker in self._greeted:
                self.traffic.messages_in += 1
                self.traffic.bytes_in += len(body)
            events.append(Event(worker, "done" if worker in self._greeted else "ready", body))
            self._greeted.add(worker)
        return events

    def stop(self, worker: Hashable, at_once: bool = True) -> None:
        """See :meth:`Pool.stop`."""
        process, channel = self._workers.pop(worker)
        self._greeted.discard(worker)
        channel.close()  # a worker that waits for a request ends by itself
        if not at_once:
            process.join(1.0)
        process.kill()
        process.join()

    def close(self) -> None:
        """See :meth:`Pool.close`."""
        with uninterrupted():
            self._close()

    def _close(self) -> None:
        """Does the work of :meth:`close`; its local variables are freed before Ctrl-C is handled."""
        for _, channel in self._workers.values():
            channel.close()
        end = time.monotonic() + 1.0
        for process, _ in self._workers.values():
            process.join(max(0.0, end - time.monotonic()))
        for worker in list(self._workers):
            self.stop(worker)
        for memory in (self._memory, *self._tables.values()):
            self._remove(memory)
        self._memory, self._tables = None, {}

    @staticmethod
    def _remove(memory: shared_memory.SharedMemory | None) -> None:
        if memory is not None:
            memory.close()
            with contextlib.suppress(FileNotFoundError):
                memory.unlink()


def _shared_memory(size: int, what: str) -> shared_memory.SharedMemory:
    """
    Make shared memory whose pages are there; the first write to one that is missing would kill this process without a word.

    :param size: bytes
    :param what: it is for, for the error
    :return: the memory
    :raises OSError: if there is not so much
    """
    memory: shared_memory.SharedMemory | None = None
    try:
        memory = shared_memory.SharedMemory(create=True, size=size)
        if hasattr(os, "posix_fallocate") and hasattr(memory, "_fd"):
            os.posix_fallocate(memory._fd, 0, size)
    except OSError as error:
        if memory is not None and error.errno not in (errno.ENOSPC, errno.ENOMEM):  # a file system that cannot say
            return memory
        ProcessPool._remove(memory)
        if error.errno not in (errno.ENOSPC, errno.ENOMEM):
            raise
        raise OSError(
            error.errno,
            f"/dev/shm must have room for {size / 2**20:.1f} MiB of shared memory for {what}; it is full. Make it larger "
            "(docker run --shm-size=4g), take a smaller noise_table_size or pop_size, or use evaluator='vec'",
        ) from error
    return memory


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Context in which started processes inherit environment variables for one thread each."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
