"""What the back-ends with workers have in common: settings, and the order in which results count."""

from __future__ import annotations

import contextlib
import copy
import math
import pickle
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_erl.core.checks import check_range
from sb3_erl.core.interrupts import uninterrupted
from sb3_erl.core.seeding import Address
from sb3_erl.remote.dispatcher import Dispatcher
from sb3_erl.remote.env_recipe import MakeEnv, environment_maker
from sb3_erl.remote.messages import Outcome, Phase, unpack_score, unpack_transitions
from sb3_erl.remote.transport import Pool, Traffic
from sb3_erl.rollouts.jobs import (
    Digest,
    Episode,
    EpisodeBatch,
    EpisodeSummary,
    Job,
    PopulationActor,
    Recorder,
    ToEnvironment,
)


class RemoteEvaluator(ABC):
    """
    Runs each job on some worker and counts the results in the order of the jobs, whoever finishes first.

    Steps, callbacks, budget and replay buffer see what the default back-end with one environment would show them, so the
    number of workers, their speed and their deaths change nothing. Two things are different. Callbacks hear of an episode when
    it is over. And the steps of algorithms that need scores only are not sent: there, in a callback's ``locals``, ``rewards``
    is 0 until the last step of an episode, which has the total reward and the only ``infos`` with anything in them (what
    Monitor says, ``is_success``, ``TimeLimit.truncated``), and there is no ``new_obs``. Where transitions are sent,
    ``new_obs`` after an episode is its last observation and not the first one of the next.

    Workers live until :meth:`close`, the end of the program or of this object. What is saved with a model are the settings.

    :param n_workers: number of workers, ``None`` for what there is; may be changed at any time
    :param make_env: function that makes one environment, ``None`` to make what the model's env is made of
    :param episode_timeout: seconds after which an episode has failed, ``None`` to wait for ever
    :param start_timeout: seconds within which the first worker has to be ready
    :param step_infos: whether callbacks of algorithms with a replay buffer get the infos of all steps, not the last one only
    :raises ValueError: if a number is out of range
    """

    def __init__(
        self,
        n_workers: int | None = None,
        make_env: MakeEnv | None = None,
        episode_timeout: float | None = None,
        start_timeout: float = 120.0,
        step_infos: bool = True,
    ):
        if episode_timeout is not None:
            check_range("episode_timeout", episode_timeout, 0, open_low=True)
        check_range("start_timeout", start_timeout, 0, open_low=True)
        if make_env is not None and not callable(make_env):
            raise TypeError(f"make_env must be a function that makes one environment; got {make_env!r}")
        self.make_env, self.episode_timeout = make_env, episode_timeout
        self.start_timeout, self.step_infos = start_timeout, step_infos
        self._dispatcher: Dispatcher | None = None
        self._setup = b""
        self._close: weakref.finalize | None = None
        self._n_workers: int | None = None
        if n_workers is not None:
            self.n_workers = n_workers

    @abstractmethod
    def _default_n_workers(self) -> int:
        """Number of workers if the user does not say."""

    @abstractmethod
    def _make_pool(self, setup: bytes) -> Pool:
        """A pool without workers."""

    # ---------------------------------------------------------------- workers

    @property
    def n_workers(self) -> int | None:
        """Number of workers, ``None`` for what there is."""
        return self._n_workers

    @n_workers.setter
    def n_workers(self, value: int) -> None:
        check_range("n_workers", value, 1, integer=True)
        self._n_workers = int(value)
        if self._dispatcher is not None:
            self._dispatcher.n_workers = self._n_workers

    def add_workers(self, n_workers: int = 1) -> None:
        """
        Take more workers, at any time, also from a callback.

        :param n_workers: how many more
        """
        self.n_workers = (self._n_workers or self._default_n_workers()) + n_workers

    def remove_workers(self, n_workers: int = 1) -> None:
        """
        Do with fewer workers, at any time; those at work finish what they do.

        :param n_workers: how many fewer
        :raises ValueError: if none would be left
        """
        self.add_workers(-n_workers)

    def settle(self) -> None:
        """Wait until as many workers as wanted are ready and none of them is at work; after the first ``learn`` began."""
        if self._dispatcher is not None:
            with self._dropping_workers():
                self._dispatcher.settle()

    @property
    def n_deaths(self) -> int:
        """Workers that were lost and replaced, since the workers were started."""
        return 0 if self._dispatcher is None else self._dispatcher.n_deaths

    @property
    def traffic(self) -> Traffic:
        """What was sent, since the workers were started."""
        return Traffic() if self._dispatcher is None else copy.copy(self._dispatcher.pool.traffic)

    def close(self) -> None:
        """End all workers; they are started again when they are needed."""
        with uninterrupted():
            if self._close is not None:
                self._close()
            self._dispatcher, self._close, self._setup = None, None, b""

    def __enter__(self) -> RemoteEvaluator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def bind(self, env: VecEnv, to_environment: ToEnvironment) -> None:
        """
        Work for a model; workers that have the same environments go on, also if they worked for another model.

        :param env: the model's environments, which are not stepped
        :param to_environment: from what actors give to what the environment takes
        :raises ValueError: if workers cannot make such environments, or make others
        """
        setup = cloudpickle.dumps(environment_maker(env, self.make_env), protocol=pickle.HIGHEST_PROTOCOL)
        self._env, self._normalizer, self._to_environment = env, unwrap_vec_normalize(env), to_environment
        if self._dispatcher is not None and setup == self._setup:
            return
        self.close()
        pool = self._make_pool(setup)
        self._close = weakref.finalize(self, pool.close)
        n_workers = self._n_workers or self._default_n_workers()
        self._dispatcher = Dispatcher(pool, n_workers, self.episode_timeout, self.start_timeout)
        self._setup = setup
        with self._dropping_workers():
            theirs = pickle.loads(self._dispatcher.greet())
        if theirs != (env.observation_space, env.action_space):
            self.close()
            raise ValueError(
                "make_env must make environments with the spaces of the model's env, "
                f"{env.observation_space} and {env.action_space}; got {theirs[0]} and {theirs[1]}"
            )

    @contextlib.contextmanager
    def _dropping_workers(self) -> Any:
        """Whatever interrupts us may leave half a message behind; new workers begin with an empty channel."""
        try:
            yield
        except BaseException:
            if self._dispatcher is not None:
                self._dispatcher.drop_workers()
            raise

    # ---------------------------------------------------------------- jobs

    def evaluate(
        self, jobs: Sequence[Job], actor: PopulationActor, address: Address, recorder: Recorder
    ) -> EpisodeBatch | None:
        """See :class:`~sb3_erl.rollouts.jobs.Evaluator`."""
        dispatcher = self._dispatcher
        assert dispatcher is not None, "bind() comes first"
        digest = recorder.digest
        phase = Phase(jobs, actor, address, digest, self._to_environment, self.step_infos)
        episodes: list[Episode] = []
        with self._dropping_workers():
            dispatcher.episode_timeout = self.episode_timeout
            dispatcher.begin(phase.packed(), len(jobs), getattr(actor, "noise_tables", ()))
            for number, job in enumerate(jobs):
                dispatcher.pump()
                outcome = self._outcome(dispatcher.answer(number), job, digest)
                if not self._replay(outcome, recorder, is_last=number + 1 == len(jobs)):
                    return None
                episodes.append(outcome.episode)
        return EpisodeBatch(tuple(episodes), sum(episode.length for episode in episodes))

    def _outcome(self, answer: tuple[Any, int] | None, job: Job, digest: Digest | None) -> Outcome:
        if answer is not None:
            bodies, place = answer
            return unpack_transitions(bodies[place], job) if digest is None else unpack_score(bodies, place, job)
        late = f"it did not end within episode_timeout={self.episode_timeout:g} seconds"
        if digest is not None:
            return Outcome(EpisodeSummary(job, 0, math.nan, math.nan, False, False, failure=late))
        space = self._env.observation_space
        nowhere = np.zeros(space.shape or (), dtype=space.dtype)
        return Outcome(Episode(job, np.empty(0), nowhere, False, False, failure=late), [])

    def _replay(self, outcome: Outcome, recorder: Recorder, is_last: bool) -> bool:
        """Show an episode to the recorder as if it were run now; returns whether to go on."""
        episode, n_steps = outcome.episode, outcome.episode.n_steps
        t = max(0, min(n_steps - 1, recorder.n_free_steps))
        recorder.skip_steps(t)
        try:
            while t < n_steps:
                go_on = recorder.after_step(self._variables(outcome, t), np.ones(1, dtype=bool))
                t += 1
                if not go_on or not (recorder.has_budget or (is_last and t == n_steps)):
                    return False
        finally:
            with uninterrupted():  # a rollout is stored whole
                if t == n_steps and episode.failed:
                    recorder.drop(episode.job, [])
                else:
                    recorder.store(episode.job, outcome.stored if t == n_steps else outcome.stored_until(t))
        return True

    def _variables(self, outcome: Outcome, t: int) -> dict[str, Any]:
        """What callbacks find in their ``locals``."""
        reward, done, info, observation = outcome.step(t)
        rewards, normalizer = np.array([reward], dtype=np.float32), self._normalizer
        found: dict[str, Any] = {"env": self._env, "dones": np.array([done]), "infos": [info]}
        if observation is not None:
            buffer_actions = outcome.stored[t].action[None]
            new_obs = observation[None]
            found |= {"buffer_actions": buffer_actions, "actions": self._to_environment(buffer_actions)}
            found["new_obs"] = normalizer.normalize_obs(new_obs) if isinstance(normalizer, VecNormalize) else new_obs
            rewards = normalizer.normalize_reward(rewards) if isinstance(normalizer, VecNormalize) else rewards
        return {**found, "rewards": rewards}

    # ---------------------------------------------------------------- saving

    def __getstate__(self) -> dict[str, Any]:
        names = [name for name in vars(self) if not name.startswith("_")]
        return {**{name: getattr(self, name) for name in names}, "_n_workers": self._n_workers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._dispatcher, self._setup, self._close = None, b"", None

    def __repr__(self) -> str:
        shown = {"n_workers": self._n_workers, **{k: v for k, v in vars(self).items() if not k.startswith("_")}}
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in shown.items())})"
