"""Workers that are actors of a Ray cluster."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import types
import weakref
from collections import deque
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from sb3_erl.core.checks import check_range
from sb3_erl.core.extras import missing_extra
from sb3_erl.core.noise_table import NoiseTable
from sb3_erl.remote.evaluator import RemoteEvaluator
from sb3_erl.remote.transport import Event, Pool, Traffic
from sb3_erl.remote.worker import runner_of


def import_ray() -> types.ModuleType:
    """
    :return: the module
    :raises ImportError: saying what to install
    """
    try:
        import ray
    except ImportError as error:
        raise missing_extra(
            "evaluator='ray' needs Ray, which is not installed", "ray", "or use evaluator='process'"
        ) from error
    return ray


class RayEvaluator(RemoteEvaluator):
    """
    Runs whole episodes in actors of a Ray cluster; ``evaluator="ray"`` is the same with defaults.

    The weights of a generation and the table of noise go into Ray's object store, from where they travel once to each
    machine; messages are job numbers and results. The result is that of ``evaluator="vec"`` with one environment, for
    any number of workers.

    If Ray is not running it is started locally, without its dashboard, and stopped with the last evaluator that needs it. A
    cluster that was running before is left running. Actors are used and not tasks, because making an environment can take
    longer than an episode; their state can be rebuilt in another actor if they are lost.

    :param n_workers: number of actors, ``None`` for one per ``num_cpus`` of the cluster; may be changed at any time
    :param make_env: function that makes one environment, ``None`` to rebuild the environments of the model
    :param episode_timeout: seconds after which an episode has failed, ``None`` for no limit
    :param start_timeout: seconds within which the first worker has to be ready
    :param step_infos: whether callbacks of algorithms with a replay buffer get the infos of all steps, not the last one only
    :param verify: share of the results, in [0, 1], that another worker computes again, see :class:`RemoteEvaluator`
    :param address: of a cluster to connect to, as ``ray.init`` takes it (``"local"`` starts one); ``None`` for the one
        that is initialized, or that runs on this machine, or a local one
    :param num_cpus: CPUs that Ray reserves for an actor, may be a fraction
    :param resources: further resources that Ray reserves for an actor, by name
    :param init_kwargs: further arguments of ``ray.init`` where Ray has to be started
    :raises ValueError: if a number is out of range
    """

    def __init__(
        self,
        n_workers: int | None = None,
        make_env: Any = None,
        episode_timeout: float | None = None,
        start_timeout: float = 120.0,
        step_infos: bool = True,
        address: str | None = None,
        num_cpus: float = 1.0,
        resources: dict[str, float] | None = None,
        init_kwargs: dict[str, Any] | None = None,
        verify: float = 0.0,
    ):
        super().__init__(n_workers, make_env, episode_timeout, start_timeout, step_infos, verify)
        check_range("num_cpus", num_cpus, 0)
        self.address, self.num_cpus, self.resources = address, num_cpus, resources
        self.init_kwargs = init_kwargs

    def _default_n_workers(self) -> int:
        ray = import_ray()
        n_cpus = ray.cluster_resources().get("CPU", 1.0) if ray.is_initialized() else os.cpu_count() or 1
        return max(1, int(n_cpus / (self.num_cpus or 1.0)))

    def _make_pool(self, setup: bytes) -> Pool:
        _connect(self.address, self.init_kwargs or {})
        return RayPool(setup, {"num_cpus": self.num_cpus, "resources": self.resources or {}})


_users: weakref.WeakSet[RayPool] = weakref.WeakSet()
_was_started_here = False


def _connect(address: str | None, kwargs: dict[str, Any]) -> None:
    global _was_started_here
    ray = import_ray()
    if ray.is_initialized():
        return
    own: dict[str, Any] = {"include_dashboard": False} if address is None else {"address": address}
    ray.init(**{"log_to_driver": False, **own, **kwargs})
    _was_started_here = True


def _release(pool: RayPool) -> None:
    """Stop Ray with the last pool if this module started it."""
    global _was_started_here
    _users.discard(pool)
    if _was_started_here and not _users:
        _was_started_here = False
        import_ray().shutdown()


class Actor:
    """
    A worker, as a Ray actor.

    :param setup: see :class:`~sb3_erl.remote.worker.Runner`
    """

    def __init__(self, setup: bytes):
        self._setup = setup
        self._tables: dict[tuple[int, int], np.ndarray] = {}

    def greet(self) -> bytes:
        """Make the environment; returns pickled spaces, or a pickled traceback."""
        import traceback

        try:
            self.runner = runner_of(self._setup)
        except Exception:
            return pickle.dumps(traceback.format_exc())
        return self.runner.greeting

    def run(self, first: int, last: int, published: Any) -> bytes:
        """
        :param first: number of the first job
        :param last: number after the last job
        :param published: ``None`` if the phase is known, otherwise its number, its reference in the object store, and for
            each table of noise (size, seed, reference)
        :return: packed :class:`~sb3_erl.remote.messages.Answer`
        """
        if published is not None:
            ray = import_ray()
            _, phase, tables = published
            for size, seed, reference in tables:
                if (size, seed) not in self._tables:
                    values = self._tables[size, seed] = ray.get(reference)  # read-only, shared by the actors of a machine
                    NoiseTable.adopt(size, seed, values)
            self.runner.load(memoryview(ray.get(phase)))
        return self.runner.run(first, last)


class RayPool(Pool):
    """
    See :class:`~sb3_erl.remote.transport.Pool`.

    :param setup: see :class:`~sb3_erl.remote.worker.Runner`
    :param options: of the actors
    """

    def __init__(self, setup: bytes, options: dict[str, Any]):
        ray = import_ray()
        self.traffic = Traffic()
        self._ray = ray
        self._setup = ray.put(setup)
        self._class = ray.remote(**options, max_restarts=0)(Actor)
        self._names = itertools.count()
        self._workers: dict[Hashable, Any] = {}
        self._waiting: dict[Hashable, deque[Any]] = {}
        """Unanswered requests of each worker, oldest first."""
        self._greeted: set[Hashable] = set()
        self._informed: dict[Hashable, int] = {}
        self._published: tuple[int, Any, list[tuple[int, int, Any]]] = (-1, None, [])
        """The phase: its number, its reference, and the tables of noise."""
        self._tables: dict[tuple[int, int], Any] = {}
        _users.add(self)

    def actor_of(self, worker: Hashable) -> Any:
        """Ray's handle of a worker."""
        return self._workers[worker]

    def describe(self, worker: Hashable) -> str:
        """See :meth:`Pool.describe`."""
        found = self._workers.get(worker)
        return f"worker {worker}" + ("" if found is None else f" (Ray actor {found._actor_id.hex()})")

    def start(self) -> Hashable:
        """See :meth:`Pool.start`."""
        name = next(self._names)
        self._workers[name] = actor = self._class.remote(self._setup)
        self._waiting[name] = deque([actor.greet.remote()])
        return name

    def publish(self, number: int, phase: bytes, tables: Sequence[NoiseTable]) -> None:
        """See :meth:`Pool.publish`."""
        for table in tables:
            if (table.size, table.seed) not in self._tables:
                self._tables[table.size, table.seed] = self._ray.put(table.values)
        shared = [(table.size, table.seed, self._tables[table.size, table.seed]) for table in tables]
        self._published = number, self._ray.put(np.frombuffer(phase, dtype=np.uint8)), shared
        self.traffic.bytes_out += len(phase)

    def submit(self, worker: Hashable, first: int, last: int) -> None:
        """See :meth:`Pool.submit`."""
        published = self._published if self._informed.get(worker) != self._published[0] else None
        self._informed[worker] = self._published[0]
        self.traffic.messages_out += 1
        self.traffic.bytes_out += len(pickle.dumps((first, last, None)))
        self._waiting[worker].append(self._workers[worker].run.remote(first, last, published))

    def wait(self, timeout: float) -> list[Event]:
        """See :meth:`Pool.wait`."""
        fronts = {queue[0]: worker for worker, queue in self._waiting.items() if queue}
        if not fronts:
            return []
        done, _ = self._ray.wait(list(fronts), num_returns=1, timeout=timeout)
        if done:  # and all others that are ready
            done, _ = self._ray.wait(list(fronts), num_returns=len(fronts), timeout=0)
        return [event for ref in done for event in self._event(fronts[ref], ref)]

    def _event(self, worker: Hashable, ref: Any) -> list[Event]:
        try:
            body = self._ray.get(ref)
        except self._ray.exceptions.RayError:  # the actor, its machine or an object that it needs was lost
            return [Event(worker, "died")]
        self._waiting[worker].popleft()
        if worker not in self._greeted:
            self._greeted.add(worker)
            return [Event(worker, "ready", body)]
        self.traffic.messages_in += 1
        self.traffic.bytes_in += len(body)
        return [Event(worker, "done", body)]

    def stop(self, worker: Hashable, at_once: bool = True) -> None:
        """See :meth:`Pool.stop`."""
        actor = self._workers.pop(worker)
        del self._waiting[worker]
        with contextlib.suppress(Exception):
            self._ray.kill(actor)

    def close(self) -> None:
        """See :meth:`Pool.close`."""
        if self._ray.is_initialized():
            for worker in list(self._workers):
                self.stop(worker)
            self._tables, self._published = {}, (-1, None, [])
            self._setup = None
            _release(self)
