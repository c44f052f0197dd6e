"""Where jobs run when they do not run in the main process: one environment, one job after the other."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection, parent_process, resource_tracker, shared_memory
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_erl.buffers.rollout_steps import Steps
from sb3_erl.core.noise_table import NoiseTable
from sb3_erl.remote.messages import Answer, Phase, Score, pack_scores, pack_transitions
from sb3_erl.rollouts.jobs import Digest, Job, Transition
from sb3_erl.rollouts.soundness import mismatches_explained
from sb3_erl.rollouts.vectorized import VectorizedEvaluator


@dataclass(frozen=True)
class _WithLastInfo:
    """What a phase wants of a job, and the info of its last step."""

    wanted: Digest

    def wants(self, job: Job) -> bool:
        return self.wanted.wants(job)

    def __call__(self, job: Job, steps: Steps) -> tuple[dict[str, Any], Any]:
        return steps.infos[-1], self.wanted(job, steps)


@dataclass
class _Collector:
    """The recorder of a worker: keeps what one job leaves."""

    digest: Digest | None
    stored: Any = None
    has_budget: bool = True
    n_free_steps: int = sys.maxsize

    def after_step(self, variables: dict[str, Any], running: np.ndarray) -> bool:
        return True

    def skip_steps(self, n_steps: int, n_envs: int = 1) -> None: ...

    def store(self, job: Job, digested: Any) -> None:
        self.stored = digested

    def drop(self, job: Job, transitions: Sequence[Transition]) -> None:
        info = transitions[-1].info if transitions else {}
        self.stored = transitions if self.digest is None else (info, None)


class Runner:
    """
    Runs jobs on one environment with the evaluator of the default back-end, so that the answer is the same.

    :param setup: a pickled function that makes a VecEnv of one environment
    """

    def __init__(self, setup: bytes):
        torch.set_num_threads(1)
        self.env: VecEnv = pickle.loads(setup)()
        if self.env.num_envs != 1:
            raise ValueError(f"make_env must make one environment, or a VecEnv of one; got one of {self.env.num_envs}")
        with mismatches_explained():
            self.env.reset()
        self._number = -1
        self._phase: Phase | None = None
        self._broken: str | None = None

    @property
    def greeting(self) -> bytes:
        """Pickled spaces of the environment, to be compared with those of the model."""
        return pickle.dumps((self.env.observation_space, self.env.action_space))

    def load(self, number: int, phase: Any | None) -> None:
        """
        :param number: of the phase
        :param phase: what :meth:`Phase.packed` made, ``None`` if it is over already: then no job runs
        """
        self._number, self._phase, self._broken = number, None, None
        try:
            self._phase = None if phase is None else pickle.loads(phase)
        except Exception:  # something that this process cannot import, for example
            self._broken = traceback.format_exc()

    def run(self, first: int, last: int) -> bytes:
        """
        :param first: number of the first job
        :param last: number after the last job
        :return: a packed :class:`Answer`
        """
        phase, start = self._phase, time.perf_counter()
        if phase is None:
            return Answer(self._number, first, [], 0, 0.0, self._broken).packed()
        shape = phase.to_environment.action_space.shape or ()
        evaluator = VectorizedEvaluator(self.env, unwrap_vec_normalize(self.env), phase.to_environment, shape)
        bodies: list[Any] = []
        error: str | None = None
        for number in range(first, last):
            try:
                bodies.append(self._run(evaluator, phase, phase.jobs[number]))
            except Exception:
                error = traceback.format_exc()
                break
        n_done, body = len(bodies), bodies if phase.digest is None else pack_scores(bodies)
        return Answer(self._number, first, body, n_done, time.perf_counter() - start, error).packed()

    def _run(self, evaluator: VectorizedEvaluator, phase: Phase, job: Job) -> Any:
        collector = _Collector(None if phase.digest is None else _WithLastInfo(phase.digest))
        with mismatches_explained():
            batch = evaluator.evaluate([job], phase.actor, phase.address, collector)
        assert batch is not None
        if phase.digest is None:
            return pack_transitions(batch.episodes[0], collector.stored, phase.step_infos)
        return Score(batch.episodes[0], *collector.stored)


# -------------------------------------------------------------------- a worker process of the pool


def attached(name: str) -> shared_memory.SharedMemory:
    """
    Shared memory that another process made and will remove.

    :param name: of the memory
    """
    register = resource_tracker.register
    resource_tracker.register = lambda *_: None  # fixed by track=False in Python 3.13
    try:
        return shared_memory.SharedMemory(name)
    finally:
        resource_tracker.register = register


def serve(channel: connection.Connection, setup: bytes) -> None:
    """
    Answer requests until the channel closes or the main process is gone.

    :param channel: to the main process. Each request is a pickled (first, last, news); the news, where there are any, are a
        phase's number, the name of the memory it lies in and its size, and the tables of noise: (size, seed, name of memory)
    :param setup: see :class:`Runner`
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's affair
    threading.Thread(target=_follow_parent, daemon=True).start()
    try:
        runner = Runner(setup)
        greeting = runner.greeting
    except Exception:
        greeting = pickle.dumps(traceback.format_exc())
    try:
        channel.send_bytes(greeting)
    except OSError:  # nobody wants to know
        return
    tables: dict[tuple[int, int], Any] = {}
    while True:
        try:
            request = channel.recv_bytes()
        except (EOFError, OSError):
            runner.env.close()
            return
        first, last, news = pickle.loads(request)
        if news is not None:
            number, name, size, shared = news
            _adopt_tables(shared, tables)
            try:
                memory = attached(name)
                assert memory.buf is not None
                runner.load(number, bytes(memory.buf[:size]))
                memory.close()
            except FileNotFoundError:  # the main process has moved on to another phase
                runner.load(number, None)
        try:
            channel.send_bytes(runner.run(first, last))
        except OSError:  # nobody wants to know
            return


def _adopt_tables(shared: Sequence[tuple[int, int, str]], held: dict[tuple[int, int], Any]) -> None:
    for size, seed, name in shared:
        if (size, seed) not in held:
            memory = attached(name)
            values = np.ndarray((size,), dtype=np.float32, buffer=memory.buf)
            values.setflags(write=False)
            NoiseTable.adopt(size, seed, values)
            held[size, seed] = memory, values


def _follow_parent() -> None:
    """A worker whose main process was killed must not live on, whatever its environment is doing."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
