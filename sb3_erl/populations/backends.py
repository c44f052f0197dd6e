"""Who runs the members' generations: this process, worker processes of this machine, or a Ray cluster."""

from __future__ import annotations

import pickle
import tempfile
import time
import traceback
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_erl.populations.member import Result, Task, run_task
from sb3_erl.populations.normalizers import statistics_kept
from sb3_erl.remote.dispatcher import Dispatcher
from sb3_erl.remote.env_recipe import EnvironmentMaker, environment_maker
from sb3_erl.remote.evaluator import RemoteEvaluator
from sb3_erl.remote.messages import Answer

LENGTH = 8
"""Bytes that say how long the index of a phase is."""


def run_here(tasks: Sequence[Task], env: VecEnv) -> Iterator[Result]:
    """
    :param tasks: of the members
    :param env: the population's own environments, whose ``VecNormalize`` has its statistics back after each task
    :return: results in the order of the tasks, each when it is asked for
    """
    for task in tasks:
        with statistics_kept(env):
            result = run_task(task, env)
        yield result


# -------------------------------------------------------------------- what travels to workers


@dataclass(frozen=True)
class _Phase:
    """
    Where the tasks of a generation are, so that a worker reads those that it runs and no others.

    :param places: for each task the first and last byte, or the file that it is in
    """

    places: list[tuple[int, int] | str]


def pack_tasks(tasks: Sequence[Task], folder: str | None) -> bytes:
    """
    :param tasks: of a generation
    :param folder: gets a file for each task where all workers can read it; ``None`` to put all of them into the message
    :return: message for all workers
    """
    packed = [cloudpickle.dumps(task, protocol=pickle.HIGHEST_PROTOCOL) for task in tasks]
    places: list[tuple[int, int] | str] = []
    for number, body in enumerate(packed):
        if folder is None:
            start = sum(len(part) for part in packed[:number])
            places.append((start, start + len(body)))
        else:
            path = Path(folder) / str(number)
            path.write_bytes(body)
            places.append(str(path))
    index = pickle.dumps(_Phase(places))
    return len(index).to_bytes(LENGTH, "big") + index + (b"".join(packed) if folder is None else b"")


class MemberRunner:
    """
    Runs tasks in a worker; in place of :class:`~sb3_erl.remote.worker.Runner`.

    :param maker: makes the environments
    :param n_envs: how many
    """

    def __init__(self, maker: EnvironmentMaker, n_envs: int):
        self.env = maker(n_envs)
        self._message: Any = None
        self._start = 0
        self._places: list[tuple[int, int] | str] = []

    @property
    def greeting(self) -> bytes:
        """See :class:`~sb3_erl.remote.worker.Runner`."""
        return pickle.dumps((self.env.observation_space, self.env.action_space))

    def load(self, phase: Any | None) -> None:
        """
        :param phase: what :func:`pack_tasks` made, ``None`` if it is over already
        """
        self._message, self._places = phase, []
        if phase is not None:
            length = int.from_bytes(bytes(phase[:LENGTH]), "big")
            self._start = LENGTH + length
            self._places = pickle.loads(bytes(phase[LENGTH : self._start])).places

    def run(self, first: int, last: int) -> bytes:
        """
        :param first: number of the first task
        :param last: number after the last one
        :return: a packed :class:`~sb3_erl.remote.messages.Answer` with the :class:`~sb3_erl.populations.member.Result`s
        """
        begin, results, error = time.perf_counter(), [], None
        if self._places:
            try:
                results = [run_task(self._task(number), self.env) for number in range(first, last)]
            except Exception:  # a class that this process cannot import, for example
                error = traceback.format_exc()
        return Answer(first, results, len(results), time.perf_counter() - begin, error).packed()

    def _task(self, number: int) -> Task:
        place = self._places[number]
        if isinstance(place, str):
            return pickle.loads(Path(place).read_bytes())
        return pickle.loads(self._message[self._start + place[0] : self._start + place[1]])


@dataclass(frozen=True)
class WorkerSetup:
    """
    Makes what a worker of a population is; unpickled there.

    :param maker: makes one environment
    :param n_envs: how many a member has
    """

    maker: EnvironmentMaker
    n_envs: int

    def runner(self) -> MemberRunner:
        """:return: runs the tasks"""
        return MemberRunner(self.maker, self.n_envs)


# -------------------------------------------------------------------- workers


class Workers:
    """
    Workers that run members' generations. One that dies is replaced and its task runs again from the same state; a task on
    which three workers died has failed, which costs the member this generation.

    :param evaluator: says how many workers there are and where
    :param env: the population's environments, which workers make again
    :param pop_size: number of members
    :raises ValueError: if workers cannot make such environments
    """

    def __init__(self, evaluator: RemoteEvaluator, env: VecEnv, pop_size: int):
        normalizer = unwrap_vec_normalize(env)
        was_training = normalizer is not None and normalizer.training
        if normalizer is not None:
            normalizer.training = False  # statistics travel with the members
        try:
            setup = WorkerSetup(environment_maker(env, evaluator.make_env), env.num_envs)
        finally:
            if normalizer is not None:
                normalizer.training = was_training
        if evaluator.episode_timeout is not None or evaluator.verify > 0:
            raise ValueError(
                "evaluator must have no episode_timeout and no verify where workers train whole models; got "
                f"episode_timeout={evaluator.episode_timeout}, verify={evaluator.verify:g}. Let a TimeLimit end episodes"
            )
        pool = evaluator._make_pool(cloudpickle.dumps(setup, protocol=pickle.HIGHEST_PROTOCOL))
        self._close = weakref.finalize(self, pool.close)
        n_workers = min(evaluator.n_workers or evaluator._default_n_workers(), pop_size)
        self.dispatcher = Dispatcher(pool, n_workers, None, evaluator.start_timeout)
        self.reads_files = type(evaluator).__name__ == "ProcessEvaluator" or hasattr(evaluator, "start_method")

    def run(self, tasks: Sequence[Task]) -> Iterator[Result]:
        """
        :param tasks: of the members
        :return: results in the order of the tasks
        :raises WorkerError: if workers cannot be started
        """
        with self._phase(tasks):
            for number, task in enumerate(tasks):
                answer = self.dispatcher.outcome(number)
                if isinstance(answer, str) or answer is None:
                    message = answer or "the worker did not answer"
                    yield Result(task.number, "failed", task.state, reason=message, message=message)
                else:
                    bodies, place = answer
                    yield bodies[place]

    @contextmanager
    def _phase(self, tasks: Sequence[Task]) -> Iterator[None]:
        """The tasks are where the workers find them; an error ends the workers, whose channels may hold half a message."""
        with tempfile.TemporaryDirectory(prefix="sb3_erl_") as folder:
            try:
                self.dispatcher.begin(pack_tasks(tasks, folder if self.reads_files else None), len(tasks), ())
                yield
            except BaseException:
                self.dispatcher.end_workers()
                raise

    @property
    def n_deaths(self) -> int:
        """Workers that were lost and replaced."""
        return self.dispatcher.n_deaths

    def close(self) -> None:
        """End all workers."""
        self._close()
