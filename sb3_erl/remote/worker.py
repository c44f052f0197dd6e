"""A worker: runs jobs one after the other on one environment, in another process than the algorithm."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection, parent_process, resource_tracker, shared_memory
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_erl.buffers.rollout_steps import Steps
from sb3_erl.core.noise_table import NoiseTable
from sb3_erl.remote.messages import Answer, PhaseMessage, Score, pack_scores, pack_steps
from sb3_erl.rollouts.jobs import Job, Summarizer
from sb3_erl.rollouts.soundness import mismatches_explained
from sb3_erl.rollouts.vectorized import VectorizedEvaluator


@dataclass(frozen=True)
class _WithLastInfo:
    """Adds the info of the last step to the summary of a job."""

    inner: Summarizer

    def needs_steps(self, job: Job) -> bool:
        return self.inner.needs_steps(job)

    def __call__(self, job: Job, steps: Steps) -> tuple[dict[str, Any], Any]:
        return steps.infos[-1], self.inner(job, steps)


@dataclass
class _Collector:
    """The recorder of a worker: keeps the summary or the steps of one job, without callbacks or a budget."""

    summarizer: Summarizer | None
    needs: frozenset[str]
    reads_infos: bool
    stored: Any = field(default=None, init=False)
    has_budget: bool = field(default=True, init=False)
    n_unobserved_steps_allowed: int = field(default=sys.maxsize, init=False)

    def has_budget_after(self, n_steps: int) -> bool:
        return True

    def after_step(self, variables: dict[str, Any], running: np.ndarray) -> bool:
        return True

    def count_unobserved_steps(self, n_steps: int, n_envs: int = 1) -> None: ...

    def store(self, job: Job, summary: Any) -> None:
        self.stored = summary

    def discard(self, job: Job, steps: Steps) -> None:
        info = steps.infos[-1] if steps else {}
        self.stored = steps if self.summarizer is None else (info, None)


class Runner:
    """
    Runs jobs on one environment with the evaluator of the default back-end, so that results are the same.

    :param setup: a pickled function that makes a VecEnv of one environment
    """

    def __init__(self, setup: bytes):
        torch.set_num_threads(1)
        self.env: VecEnv = pickle.loads(setup)()
        if self.env.num_envs != 1:
            raise ValueError(f"make_env must make one environment, or a VecEnv of one; got one of {self.env.num_envs}")
        self._phase: PhaseMessage | None = None
        self._broken: str | None = None

    @property
    def greeting(self) -> bytes:
        """Pickled spaces of the environment, to be compared with those of the model."""
        return pickle.dumps((self.env.observation_space, self.env.action_space))

    def load(self, phase: Any | None) -> None:
        """
        :param phase: what :meth:`PhaseMessage.packed` made, ``None`` if the phase is over already; then no job runs
        """
        self._phase, self._broken = None, None
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
            return Answer(first, [], 0, 0.0, self._broken).packed()
        shape = phase.to_environment.action_space.shape or ()
        evaluator = VectorizedEvaluator(self.env, unwrap_vec_normalize(self.env), phase.to_environment, shape)
        bodies: list[Any] = []
        error: str | None = None
        for number in range(first, last):
            try:
                self.env.unwrapped._options = [{} if number >= len(phase.options) else phase.options[number]]
                bodies.append(self._run(evaluator, phase, phase.jobs[number]))
            except Exception:
                error = traceback.format_exc()
                break
        n_done, body = len(bodies), bodies if phase.summarizer is None else pack_scores(bodies)
        answer = Answer(first, body, n_done, time.perf_counter() - start, error)
        try:
            return answer.packed()
        except Exception:  # an info that cannot be pickled, for example
            return Answer(first, [], 0, 0.0, traceback.format_exc()).packed()

    def _run(self, evaluator: VectorizedEvaluator, phase: PhaseMessage, job: Job) -> Any:
        summarizer = phase.summarizer
        collector = _Collector(None if summarizer is None else _WithLastInfo(summarizer), phase.needs, phase.step_infos)
        with mismatches_explained():
            batch = evaluator.evaluate([job], phase.actor, phase.address, collector)
        assert batch is not None
        if summarizer is None:
            return pack_steps(batch.episodes[0], collector.stored, phase.step_infos)
        return Score(batch.episodes[0], *collector.stored)


def runner_of(setup: bytes) -> Any:
    """
    :param setup: a pickled function that makes a VecEnv of one environment, or a pickled object whose ``runner()`` makes
        something else with the methods of :class:`Runner`
    :return: runs the jobs of a worker
    """
    make = getattr(pickle.loads(setup), "runner", None)
    return Runner(setup) if make is None else make()


# -------------------------------------------------------------------- a worker process of the pool


def attached(name: str) -> shared_memory.SharedMemory:
    """
    Open shared memory that another process made and will remove.

    :param name: of the memory
    :return: the memory
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

    :param channel: to the main process. Each request is a pickled (first, last, phase); the phase is ``None`` where the worker
        has it already, otherwise its number, the name of the shared memory with its message, the size of the message, and for
        each table of noise (size, seed, name of its memory)
    :param setup: see :func:`runner_of`
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    threading.Thread(target=_follow_parent, daemon=True).start()
    try:
        runner = runner_of(setup)
        greeting = runner.greeting
    except Exception:
        with suppress(OSError):
            channel.send_bytes(pickle.dumps(traceback.format_exc()))
        return
    try:
        channel.send_bytes(greeting)
    except OSError:  # the main process has closed the channel
        return
    tables: dict[tuple[int, int], Any] = {}
    while True:
        try:
            request = channel.recv_bytes()
        except (EOFError, OSError):
            runner.env.close()
            return
        first, last, phase = pickle.loads(request)
        if phase is not None:
            _, name, size, shared = phase
            _adopt_tables(shared, tables)
            try:
                memory = attached(name)
                assert memory.buf is not None
                runner.load(bytes(memory.buf[:size]))
                memory.close()
            except FileNotFoundError:  # the main process has begun another phase
                runner.load(None)
        try:
            channel.send_bytes(runner.run(first, last))
        except OSError:  # the main process has closed the channel
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
    """End this process when the main process is killed, also inside a step of the environment."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
