"""Checks of environments: finite numbers, shapes of arrays, processes that live."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_erl.core.observations import Observation, Shape, arrays_of
from sb3_erl.rollouts.jobs import Episode
from sb3_erl.rollouts.slot_reset import base_of

READERS = (
    *(f"stable_baselines3.common.{name}" for name in ("vec_env.dummy", "vec_env.subproc", "monitor")),
    "sb3_erl.rollouts.slot_envs",
)
"""Modules that read what an environment returns."""
SECONDS_TO_ANSWER = 5.0
"""How long environments in other processes may take to finish a step that was interrupted."""


class WorkerError(RuntimeError):
    """An environment, policy or function of the user's failed in another process; the message says how."""


class FailedEpisodesError(RuntimeError):
    """So many episodes failed in a row that nothing can be learned from this environment."""


# -------------------------------------------------------------------- numbers


LARGEST = float(np.finfo(np.float32).max)
"""Beyond it numbers are infinite for networks and replay buffers, of which the float64 of an environment knows nothing."""


def _fits(array: np.ndarray) -> np.ndarray:
    """Which numbers are finite in float32."""
    return np.abs(array) <= LARGEST if array.dtype.itemsize > 4 else np.isfinite(array)


def what_is_wrong(observation: Observation, reward: float = 0.0) -> str:
    """
    :param observation: one or several
    :param reward: of the step that led to it
    :return: what is not finite in float32 among them, empty if all is finite

    >>> what_is_wrong(np.array([0.0, np.inf]))
    'observation [ 0. inf]'
    >>> what_is_wrong(np.zeros(2), reward=1e39)
    'reward 1e+39'
    """
    if not abs(float(reward)) <= LARGEST:
        return f"reward {reward}"
    for array in arrays_of(observation):
        if array.dtype.kind == "f" and not _fits(array).all():
            return f"observation {np.array2string(array.ravel(), threshold=8)}"
    return ""


def is_sound(observation: Observation, reward: float) -> bool:
    """
    Whether a step is finite, for arrays of usual size in a fraction of the time of :func:`what_is_wrong`.

    :param observation: one observation
    :param reward: of the step that led to it
    """
    if isinstance(observation, np.ndarray) and observation.ndim == 1 and observation.dtype.kind == "f":
        if float(observation.dot(observation)) <= LARGEST**2:
            return abs(float(reward)) <= LARGEST
    return not what_is_wrong(observation, reward)  # other arrays, and squares that overflow


def check_finite(observation: Observation, reward: float = 0.0) -> None:
    """:raises ValueError: if something is not finite, for algorithms that learn from every step"""
    wrong = what_is_wrong(observation, reward)
    if wrong:
        raise ValueError(
            f"env must give finite observations and rewards; got {wrong}. The step was not stored. Repair the environment "
            "(SB3's VecCheckNan says in which call it happens), or end its episode there with a finite reward"
        )


def check_shape(name: str, value: Any, shape: Shape) -> None:
    """
    :param name: what the value is, for the message
    :param value: what the environment returned
    :param shape: the expected shape, one per key for a Dict space
    :raises ValueError: if the shape or the keys differ
    """
    found: Any = np.shape(value) if not isinstance(value, dict) else {key: np.shape(part) for key, part in value.items()}
    if isinstance(shape, dict) and isinstance(found, dict):
        found = {key: found[key] for key in shape if key in found}  # VecEnvs leave out other keys
    if found != shape:
        raise ValueError(
            f"env must give {name} of shape {shape}; got shape {found}. Make the environment's observation_space and what it "
            "returns agree (SB3's check_env compares them)"
        )


@contextmanager
def mismatches_explained() -> Iterator[None]:
    """Context for stepping environments: NumPy's errors inside SB3's VecEnvs become errors that name the cause."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if not _raised_by_vec_env(error):
            raise
        raise ValueError(
            "env must give observations of the shape and type that its observation_space says, and single numbers as rewards; "
            f"a VecEnv could not put together what came: {error}. SB3's check_env compares them"
        ) from error


def _raised_by_vec_env(error: BaseException) -> bool:
    names = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    own = [name for name in names if not name.startswith("numpy")]
    return own[-1].startswith(READERS)


class NormalizerGuard:
    """
    Keeps numbers that are not finite out of a VecNormalize that learns.

    :param normalizer: ``None`` for none
    """

    def __init__(self, normalizer: VecNormalize | None):
        self.normalizer = normalizer if normalizer is not None and normalizer.training else None
        self._kept: list[tuple[Any, dict[str, Any]]] = []

    def keep(self) -> None:
        """Keep a copy of the statistics; to be called before a step."""
        if self.normalizer is not None:
            self._kept = [(rms, dict(vars(rms))) for rms in _statistics(self.normalizer)]

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """
        Context of a step before which the statistics are kept and in which they ignore what is not finite.

        ``VecNormalize`` normalizes the last observations of episodes within the step; so those of other environments can be
        read.
        """
        self.keep()
        for rms, _ in self._kept:
            rms.update = partial(_update_if_finite, rms)
        try:
            yield
        finally:  # statistics are pickled and copied by callbacks and after errors
            for rms, _ in self._kept:
                del rms.update

    def restore(self) -> bool:
        """Undo a step that was not finite; returns whether there was one."""
        normalizer = self.normalizer
        if normalizer is None:
            return False
        if not what_is_wrong(normalizer.old_obs) and _fits(normalizer.old_reward).all():
            return False
        for rms, numbers in self._kept:
            vars(rms).update(numbers)
        normalizer.returns[~_fits(normalizer.returns)] = 0.0
        return True


def _update_if_finite(rms: RunningMeanStd, batch: np.ndarray) -> None:
    if _fits(np.asarray(batch)).all():
        RunningMeanStd.update(rms, batch)


def check_statistics(env: VecEnv) -> None:
    """:raises ValueError: if a VecNormalize around the environments has taken in something that is not finite"""
    normalizer = unwrap_vec_normalize(env)
    known = [] if normalizer is None else _statistics(normalizer)
    if not all(np.isfinite(rms.mean).all() and np.isfinite(rms.var).all() for rms in known):
        raise ValueError(
            "env has a VecNormalize whose statistics are not finite, because an observation or a reward was not; repair the "
            "environment and make a new VecNormalize, or load the statistics of an earlier one (VecNormalize.load)"
        )


def _statistics(normalizer: VecNormalize) -> list[Any]:
    """The running means and variances there are: one per key for a Dict space, none of observations without ``norm_obs``."""
    found = [vars(normalizer)[name] for name in ("obs_rms", "ret_rms") if name in vars(normalizer)]
    return [rms for one in found for rms in (one.values() if isinstance(one, dict) else [one])]


# -------------------------------------------------------------------- episodes that failed


class FailureCount:
    """
    Counts episodes that failed one after the other.

    :param limit: number of consecutive failures that ends the run: the episodes of a generation
    """

    def __init__(self, limit: int):
        self.limit, self.n_in_a_row = limit, 0

    def look_at(self, episodes: Sequence[Episode]) -> int:
        """
        :param episodes: of a phase; a warning says why the first one of them failed
        :return: number of them that failed
        :raises FailedEpisodesError: if ``limit`` of them failed one after the other
        """
        failed = [episode for episode in episodes if episode.failed]
        if failed:
            first = failed[0]
            warnings.warn(
                f"{len(failed)} of {len(episodes)} episodes failed, the first one of candidate {first.job.candidate}: "
                f"{first.failure}. Their fitness is the worst there is and nothing of them is stored",
                stacklevel=4,
            )
        for episode in episodes:
            self.n_in_a_row = self.n_in_a_row + 1 if episode.failed else 0
            if self.n_in_a_row >= self.limit:
                raise FailedEpisodesError(
                    f"env must give episodes that can be compared; {self.n_in_a_row} of them failed one after the other, as "
                    f"many as a generation has. The last one: {episode.failure}. Repair the environment, or raise "
                    "episode_timeout if it is slow; the model is as it was after its last generation"
                )
        return len(failed)


# -------------------------------------------------------------------- processes


@contextmanager
def environments_watched(env: VecEnv | None) -> Iterator[None]:
    """
    Context for stepping environments: a process that dies becomes an error, and after an interrupt they can be used again.

    :param env: environments, ``None`` for none
    :raises ValueError: if the environments were closed, or the statistics of a VecNormalize around them are not finite
    :raises WorkerError: if a process of a SubprocVecEnv died; the others are ended then
    """
    processes = None if env is None else base_of(env)
    if env is not None:
        check_statistics(env)
    if not isinstance(processes, SubprocVecEnv):
        with mismatches_explained():
            yield
        return
    if processes.closed:
        raise ValueError("env must be open; its processes have ended. Make it again and call set_env(), or load(..., env=...)")
    try:
        with mismatches_explained():
            yield
    except BaseException as error:
        codes = [process.exitcode for process in processes.processes if not _lives(process, error)]
        if not codes and _in_step(processes):
            raise
        _end(processes)
        if not codes or not isinstance(error, EOFError | OSError):
            raise
        raise WorkerError(
            f"an environment raised an exception or its process died (exit codes {codes}) in a SubprocVecEnv, which cannot go "
            "on; its traceback is what the process wrote to the terminal. A DummyVecEnv shows the exception itself, and "
            "evaluator='process' replaces workers that die"
        ) from error


def _lives(process: Any, error: BaseException) -> bool:
    if isinstance(error, EOFError | OSError):
        process.join(0.5)
    return process.is_alive()


def _in_step(env: SubprocVecEnv) -> bool:
    """Read every answer that an interrupted call left behind; returns whether all processes answer again."""
    try:
        for remote in env.remotes:
            remote.send(("get_spaces", None))
        for remote in env.remotes:
            while True:
                if not remote.poll(SECONDS_TO_ANSWER):
                    return False
                answer = remote.recv()
                if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], spaces.Space):
                    break
    except Exception:  # half a message, or the process has ended
        return False
    env.waiting = False
    return True


def _end(env: SubprocVecEnv) -> None:
    for process in env.processes:
        process.kill()
        process.join()
    for remote in env.remotes:
        with suppress(OSError):
            remote.close()
    env.waiting, env.closed = False, True
