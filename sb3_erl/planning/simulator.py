"""The environment itself as the model: each sequence is stepped through, and the state is restored."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import gymnasium as gym
import numpy as np

from sb3_erl.core.checks import check_range
from sb3_erl.planning.base import PlanningModel, episode_length, planned_env, single_env
from sb3_erl.planning.snapshot import Simulation, Snapshot


class SimulatorModel(PlanningModel):
    """
    The environment itself as a perfect model.

    A sequence of actions is tried with the environment's own ``step``, so its rewards are exact, whatever the wrappers do;
    then the state is restored. Outer wrappers that only watch (Monitor, videos) do not see it. MuJoCo's state is copied as a
    whole into a second ``MjData`` and back, which replays observations and rewards bit for bit; other environments are
    restored attribute by attribute, and the first rollout in each environment checks that a replay gives the same rewards.

    :param env: an environment, or a ``DummyVecEnv`` of one; ``None``: it is given later, by :meth:`sync`
    :param n_workers: processes that share the sequences among them, each with an environment of its own; 1 for none but this
        one. A script that uses them needs ``if __name__ == "__main__":``
    :param make_env: makes the environment in a worker, whichever one is planned in; ``None`` if they can be pickled
    :raises ValueError: if ``env`` is several environments, or in another process
    :raises TypeError: if the state of ``env`` cannot be copied, see :class:`~sb3_erl.planning.snapshot.Simulation`
    """

    is_simulator = True

    def __init__(self, env: Any = None, n_workers: int = 1, make_env: Callable[[], gym.Env] | None = None):
        check_range("n_workers", n_workers, 1, integer=True)
        if make_env is not None and not callable(make_env):
            raise TypeError(f"make_env must be None or a function that makes one environment; got {make_env!r}")
        self.n_workers, self.make_env = n_workers, make_env
        self._simulation: Simulation | None = None
        self._workers: Workers | None = None
        self._is_checked = False
        if env is not None:
            self._bind(env)

    def _bind(self, env: Any) -> None:
        inner = planned_env(single_env(env))
        if self._simulation is None or self._simulation.env is not inner:
            if self.make_env is None:
                self.close()  # the workers have a copy of the environment of before
            self._simulation, self._is_checked = Simulation(inner), False
            self.episode_length = episode_length(inner)
            self._simulation.save()  # raises an error if that cannot be done

    @property
    def simulation(self) -> Simulation:
        """The environment that is stepped through, and its layers."""
        if self._simulation is None:
            raise ValueError("env must be given to a SimulatorModel before it plans: SimulatorModel(env), or model.sync(env)")
        return self._simulation

    @property
    def env(self) -> gym.Env:
        """The environment that is stepped through, without outer wrappers that only watch."""
        return self.simulation.env

    def sync(self, env: Any = None) -> Snapshot:
        """
        :param env: environment in which actions will be executed from now on, that of the last call if ``None``
        :return: its state
        :raises ValueError: if there is no environment, or it is several, or in another process
        :raises TypeError: if its state cannot be copied
        """
        if env is not None:
            self._bind(env)
        return self.save()

    def save(self) -> Snapshot:
        """:return: the state of the environment: physics, counters of wrappers, random generators"""
        return self.simulation.save()

    def restore(self, state: Snapshot) -> None:
        """
        Put the environment back; the same steps then give the same observations, rewards and flags.

        :param state: what :meth:`save` returned
        """
        self.simulation.restore(state)

    def rollout(self, state: Snapshot, actions: np.ndarray) -> np.ndarray:
        """
        The environment is as before afterwards, also if ``step`` raises an error.

        :param state: where all sequences start
        :param actions: ``(n_candidates, n_steps, action_dim)`` in units of the environment
        :return: rewards ``(n_candidates, n_steps)``, 0 after the end of an episode, also by a time limit
        :raises RuntimeError: if a sequence gives other rewards when it is tried again from the restored state, or a worker
            failed
        """
        if self.n_workers > 1 and self._is_checked:
            return self._in_workers(state, actions)
        simulation = self.simulation
        before = simulation.save()
        try:
            with simulation.not_rendered():
                if not self._is_checked:
                    self._check(state, actions[:1])
                rewards = simulation.run(state, actions)
        finally:
            simulation.restore(before)
        self._is_checked = True
        return rewards

    def _check(self, state: Snapshot, actions: np.ndarray) -> None:
        first, second = (self.simulation.run(state, actions) for _ in range(2))
        if not np.array_equal(first, second, equal_nan=True):
            raise RuntimeError(
                f"env must give the same rewards from the same state; {self.env} gave {first[0].tolist()} and then "
                f"{second[0].tolist()} for the same actions. Something outside its attributes changes (a global generator, a "
                "library with a state of its own): plan with FunctionModel(f, r) or LearnedModel"
            )

    def _in_workers(self, state: Snapshot, actions: np.ndarray) -> np.ndarray:
        if self._workers is None:
            self._workers = Workers(self.n_workers, self.env if self.make_env is None else self.make_env)
        try:
            return self._workers.run(state, actions)
        except BaseException:  # also Ctrl-C: an answer that is still in a pipe would be taken for that of the next call
            self.close()
            raise

    def close(self) -> None:
        """Stop the workers; the next rollout starts new ones."""
        workers, self._workers = self._workers, None
        if workers is not None:
            workers.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_simulation": None, "_workers": None, "_is_checked": False}


class Workers:
    """
    Processes with an environment each, which step through their share of the sequences.

    :param n_workers: how many
    :param env: an environment that can be pickled, or a function that makes one
    :raises TypeError: if it cannot be pickled
    """

    def __init__(self, n_workers: int, env: Any):
        try:
            pickled = cloudpickle.dumps(env)
        except Exception as error:  # an environment of the user's may raise anything
            raise TypeError(
                f"make_env must be a function that makes the environment in a worker: this one cannot be pickled: {error}"
            ) from error
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for _ in range(n_workers):
            own, other = context.Pipe()
            process = context.Process(target=_serve, args=(other, pickled), daemon=True)
            process.start()
            other.close()
            self._pipes.append(own)
            self._processes.append(process)

    def run(self, state: Snapshot, actions: np.ndarray) -> np.ndarray:
        """
        :param state: where all sequences start
        :param actions: ``(n_candidates, n_steps, action_dim)``
        :return: rewards ``(n_candidates, n_steps)``; after an error of any kind, answers may be left: :meth:`close` them
        :raises RuntimeError: if a worker died or its environment raised an error
        """
        parts = np.array_split(actions, len(self._pipes))
        message = pickle.dumps(state)
        try:
            for pipe, part in zip(self._pipes, parts, strict=True):
                pipe.send_bytes(message)
                pipe.send(part)
            answers = [pipe.recv() for pipe in self._pipes]
        except (EOFError, OSError) as error:
            raise RuntimeError(
                "n_workers: a worker process of the planner died; its error is printed above. Use n_workers=1, or guard the "
                "script by 'if __name__ == \"__main__\":'"
            ) from error
        failures = [answer for answer in answers if isinstance(answer, str)]
        if failures:
            raise RuntimeError(f"n_workers: the environment of a worker raised an error: {failures[0]}")
        return np.concatenate(answers)

    def close(self) -> None:
        """Stop the processes."""
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.close()
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.terminate()


def _serve(pipe: Any, pickled: bytes) -> None:
    """A worker: get a state and sequences, send back rewards or the error."""
    made = cloudpickle.loads(pickled)
    env = planned_env(single_env(made if isinstance(made, gym.Env) else made()))
    simulation = Simulation(env)
    env.reset()
    with simulation.not_rendered(), contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            state, actions = pickle.loads(pipe.recv_bytes()), pipe.recv()
            try:
                pipe.send(simulation.run(state, actions))
            except Exception as error:
                pipe.send(f"{type(error).__name__}: {error}")
