"""The base of the back-ends with workers: settings, and counting results in the order of the jobs."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_erl.buffers.rollout_steps import Steps
from sb3_erl.core.checks import check_range
from sb3_erl.core.interrupts import uninterrupted
from sb3_erl.core.observations import take
from sb3_erl.core.seeding import Address
from sb3_erl.remote.dispatcher import Dispatcher
from sb3_erl.remote.env_recipe import MakeEnv, environment_maker
from sb3_erl.remote.messages import Outcome, PhaseMessage, unpack_score, unpack_steps
from sb3_erl.remote.transport import Pool, Traffic
from sb3_erl.remote.verification import Verification
from sb3_erl.rollouts.actions import ToEnvironment
from sb3_erl.rollouts.jobs import Episode, EpisodeBatch, EpisodeRecord, Job, PopulationActor, Recorder
from sb3_erl.rollouts.slot_reset import base_of, normalizer_on_top, take_options
from sb3_erl.rollouts.slots import check_needs


class RemoteEvaluator(ABC):
    """
    Runs the jobs on workers and counts the results in the order of the jobs.

    Counters, callbacks and replay buffer get what the default back-end with one environment would give them, so the number of
    workers, their speed and lost workers change nothing. There are two differences. Callbacks are called for the steps of an
    episode when it is over. And the steps of algorithms that need scores only are not sent: there, in a callback's ``locals``,
    ``rewards`` is 0 until the last step of an episode, which has the total reward and the only ``infos`` that are not empty
    (Monitor's ``episode``, ``is_success``, ``TimeLimit.truncated``), and there is no ``new_obs``. Where steps are sent,
    ``new_obs`` after an episode is its last observation and not the first one of the next.

    Workers live until :meth:`close`, the end of the program or of this object. The settings are saved with a model.

    :param n_workers: number of workers, ``None`` for one per available CPU; may be changed at any time
    :param make_env: function that makes one environment, ``None`` to rebuild the environments of the model
    :param episode_timeout: seconds after which an episode has failed, ``None`` for no limit
    :param start_timeout: seconds within which the first worker has to be ready
    :param step_infos: whether callbacks of algorithms with a replay buffer get the infos of all steps, not the last one only;
        they do also if the fitness needs "infos" or the replay buffer reads them, as one of a class of your own may
    :param verify: share of the results, in [0, 1], that another worker computes again, or this process if there is none;
        chosen at random, without a draw from the generators of the run, and compared bit for bit but for Monitor's time.
        Where two differ a third decides: the worker that is wrong is named in a warning and dismissed, and all its results of
        the generation are computed again, so the run is that of honest workers as far as forged results were chosen. It costs
        that share more episodes, and callbacks are called when the last result of a generation is there. Where not all
        follows from ``reset(seed=...)``, a :class:`~sb3_erl.rollouts.soundness.WorkerError` says so
    :raises ValueError: if a number is out of range
    """

    _is_evaluating = False
    """Whether episodes are being played; not saved with the settings."""

    def __init__(
        self,
        n_workers: int | None = None,
        make_env: MakeEnv | None = None,
        episode_timeout: float | None = None,
        start_timeout: float = 120.0,
        step_infos: bool = True,
        verify: float = 0.0,
    ):
        check_range("verify", verify, 0, 1)
        if episode_timeout is not None:
            check_range("episode_timeout", episode_timeout, 0, open_low=True)
        check_range("start_timeout", start_timeout, 0, open_low=True)
        if make_env is not None and not callable(make_env):
            raise TypeError(f"make_env must be a function that makes one environment; got {make_env!r}")
        self.make_env, self.episode_timeout = make_env, episode_timeout
        self.start_timeout, self.step_infos, self.verify = start_timeout, step_infos, verify
        self._dispatcher: Dispatcher | None = None
        self._setup = b""
        self._close: weakref.finalize | None = None
        self._n_workers: int | None = None
        if n_workers is not None:
            self.n_workers = n_workers

    @abstractmethod
    def _default_n_workers(self) -> int:
        """Number of workers if the user gives none."""

    @abstractmethod
    def _make_pool(self, setup: bytes) -> Pool:
        """A pool without workers."""

    # ---------------------------------------------------------------- workers

    @property
    def n_workers(self) -> int | None:
        """Number of workers, ``None`` for one per available CPU."""
        return self._n_workers

    @n_workers.setter
    def n_workers(self, value: int) -> None:
        check_range("n_workers", value, 1, integer=True)
        self._n_workers = int(value)
        if self._dispatcher is not None:
            self._dispatcher.n_workers = self._n_workers

    def add_workers(self, n_workers: int = 1) -> None:
        """
        Start more workers, at any time, also from a callback.

        :param n_workers: number of additional workers
        """
        self.n_workers = (self._n_workers or self._default_n_workers()) + n_workers

    def remove_workers(self, n_workers: int = 1) -> None:
        """
        End some workers, at any time; those that run jobs finish them first.

        :param n_workers: number of workers to end
        :raises ValueError: if none would be left
        """
        self.add_workers(-n_workers)

    def settle(self) -> None:
        """
        Wait until all ``n_workers`` workers are ready and idle, in a callback of a step until they are ready; does nothing
        before the first ``learn``.
        """
        if self._dispatcher is not None:
            with self._ending_workers_on_error():
                self._dispatcher.settle(cancels=not self._is_evaluating)

    @property
    def n_deaths(self) -> int:
        """Number of workers that were lost and replaced since the first start."""
        return 0 if self._dispatcher is None else self._dispatcher.n_deaths

    @property
    def n_verified(self) -> int:
        """Number of results that were computed again since the first start, third results included."""
        return 0 if self._dispatcher is None else self._dispatcher.verification.n_runs

    @property
    def dismissed(self) -> list[str]:
        """Workers that sent wrong results and were ended, since the first start."""
        return [] if self._dispatcher is None else list(self._dispatcher.dismissed)

    @property
    def traffic(self) -> Traffic:
        """Messages and bytes since the workers were started."""
        return Traffic() if self._dispatcher is None else copy.copy(self._dispatcher.pool.traffic)

    def close(self) -> None:
        """
        End all workers; they start again when they are needed.

        :raises RuntimeError: in a callback of a step, whose episodes they are playing
        """
        if self._is_evaluating:
            raise RuntimeError(
                "close() must not be called while workers play the episodes that a step belongs to; call it in "
                "_on_rollout_end or after learn(), or let the callback return False"
            )
        with uninterrupted():
            if self._close is not None:
                self._close()
            if self._dispatcher is not None:
                self._dispatcher.verification.close()
            self._dispatcher, self._close, self._setup = None, None, b""

    def __enter__(self) -> RemoteEvaluator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def bind(self, env: VecEnv, to_environment: ToEnvironment) -> None:
        """
        Connect to a model; workers with the same environments are kept, also if they served another model.

        :param env: the model's environments, which are not stepped
        :param to_environment: maps what actors return to actions of the environment
        :raises ValueError: if workers cannot make such environments, or make others
        """
        setup = cloudpickle.dumps(environment_maker(env, self.make_env), protocol=pickle.HIGHEST_PROTOCOL)
        self._env, self._normalizer, self._to_environment = env, unwrap_vec_normalize(env), to_environment
        if self._dispatcher is not None and setup == self._setup:
            return
        self.close()
        gc.collect()  # workers of models that are gone end with them, and models are cycles of references
        pool = self._make_pool(setup)
        self._close = weakref.finalize(self, pool.close)
        n_workers = self._n_workers or self._default_n_workers()
        limits = self.episode_timeout, self.start_timeout
        self._dispatcher = Dispatcher(pool, n_workers, *limits, Verification(self.verify, setup))
        self._setup = setup
        with self._ending_workers_on_error():
            theirs = pickle.loads(self._dispatcher.greet())
        if theirs != (env.observation_space, env.action_space):
            self.close()
            raise ValueError(
                "make_env must make environments with the spaces of the model's env, "
                f"{env.observation_space} and {env.action_space}; got {theirs[0]} and {theirs[1]}"
            )

    @contextlib.contextmanager
    def _ending_workers_on_error(self) -> Any:
        """An interrupt may leave half a message in a channel; new workers begin with an empty one."""
        try:
            yield
        except BaseException:
            if self._dispatcher is not None:
                self._dispatcher.end_workers()
            raise

    # ---------------------------------------------------------------- jobs

    @contextlib.contextmanager
    def _evaluating(self) -> Any:
        self._is_evaluating = True
        try:
            yield
        finally:
            self._is_evaluating = False

    def evaluate(
        self, jobs: Sequence[Job], actor: PopulationActor, address: Address, recorder: Recorder
    ) -> EpisodeBatch | None:
        """See :class:`~sb3_erl.rollouts.jobs.Evaluator`."""
        if self._dispatcher is None:  # closed since the last call
            self.bind(self._env, self._to_environment)
        dispatcher = self._dispatcher
        assert dispatcher is not None
        check_needs(recorder.needs)
        phase = self._message(jobs, actor, address, recorder)
        episodes: list[Episode] = []
        with self._ending_workers_on_error(), self._evaluating():
            dispatcher.episode_timeout, dispatcher.verification.share = self.episode_timeout, self.verify
            dispatcher.begin(phase.packed(), len(jobs), getattr(actor, "noise_tables", ()))
            for number, job in enumerate(jobs):
                dispatcher.pump()
                outcome = self._outcome(dispatcher.answer(number), job, phase)
                if not self._replay(outcome, recorder, is_last=number + 1 == len(jobs)):
                    return None
                episodes.append(outcome.episode)
        return EpisodeBatch(tuple(episodes), sum(episode.length for episode in episodes))

    def _message(self, jobs: Sequence[Job], actor: PopulationActor, address: Address, recorder: Recorder) -> PhaseMessage:
        needs = frozenset(recorder.needs)
        step_infos = self.step_infos or recorder.reads_infos or "infos" in needs
        options = [take_options(base_of(self._env), index) for index in range(min(self._env.num_envs, len(jobs)))]
        arguments = (recorder.summarizer, needs, self._to_environment, step_infos, options if any(options) else ())
        return PhaseMessage(jobs, actor, address, *arguments)

    def _outcome(self, answer: tuple[Any, int] | None, job: Job, phase: PhaseMessage) -> Outcome:
        if answer is not None:
            bodies, place = answer
            if phase.summarizer is None:
                return unpack_steps(bodies[place], job, phase.needs)
            return unpack_score(bodies, place, job)
        late, steps = f"it did not end within episode_timeout={self.episode_timeout:g} seconds", Steps.none()
        record = EpisodeRecord.of(steps, steps.rewards, phase.needs)
        return Outcome(Episode.from_rewards(job, steps.rewards, False, False, failure=late, record=record))

    def _replay(self, outcome: Outcome, recorder: Recorder, is_last: bool) -> bool:
        """Report the steps of an episode to the recorder as if it ran now; returns whether to go on."""
        episode, n_steps = outcome.episode, outcome.episode.n_steps
        t = max(0, min(n_steps - 1, recorder.n_unobserved_steps_allowed))
        recorder.count_unobserved_steps(t)
        try:
            while t < n_steps:
                go_on = recorder.after_step(self._variables(outcome, t), np.ones(1, dtype=bool))
                t += 1
                if not go_on or not (recorder.has_budget or (is_last and t == n_steps)):
                    return False
        finally:
            with uninterrupted():  # a rollout is stored whole
                if t == n_steps and episode.failed:
                    recorder.discard(episode.job, Steps.none() if outcome.steps is None else outcome.steps)
                else:
                    recorder.store(episode.job, outcome.stored_until(t))
        return True

    def _variables(self, outcome: Outcome, t: int) -> dict[str, Any]:
        """What callbacks find in their ``locals``."""
        reward, done, info, observation = outcome.step(t)
        rewards, normalizer = np.array([reward], dtype=np.float32), self._normalizer
        found: dict[str, Any] = {"env": self._env, "dones": np.array([done]), "infos": [info]}
        if observation is not None:
            assert outcome.steps is not None
            buffer_actions = outcome.steps.actions[t][None]
            new_obs: Any = take(observation, None)
            found |= {"buffer_actions": buffer_actions, "actions": self._to_environment(buffer_actions)}
            on_top = normalizer_on_top(self._env)
            found["new_obs"] = new_obs if on_top is None else on_top.normalize_obs(new_obs)
            rewards = normalizer.normalize_reward(rewards) if isinstance(normalizer, VecNormalize) else rewards
        return {**found, "rewards": rewards}

    # ---------------------------------------------------------------- saving

    def __getstate__(self) -> dict[str, Any]:
        names = [name for name in vars(self) if not name.startswith("_")]
        return {**{name: getattr(self, name) for name in names}, "_n_workers": self._n_workers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__dict__.setdefault("verify", 0.0)  # models saved before there was one
        self._dispatcher, self._setup, self._close = None, b"", None

    def __repr__(self) -> str:
        shown = {"n_workers": self._n_workers, **{k: v for k, v in vars(self).items() if not k.startswith("_")}}
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in shown.items())})"
