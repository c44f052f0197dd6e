"""The loop that steps environments for jobs, whatever kind of VecEnv these are in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_erl.buffers.rollout_steps import TRUNCATED
from sb3_erl.core.interrupts import uninterrupted
from sb3_erl.core.observations import Observation, copied, row_access, shape_of, zeros
from sb3_erl.core.seeding import Address, Stream
from sb3_erl.envs.behavior_values import KEY, behavior_or_none, read_behavior
from sb3_erl.rollouts.acting import single_row_actor
from sb3_erl.rollouts.jobs import EpisodeBatch, PopulationActor, Recorder, Summarizer
from sb3_erl.rollouts.slot_reset import space_of_policies
from sb3_erl.rollouts.slots import SlotJob
from sb3_erl.rollouts.soundness import check_shape, what_is_wrong

if TYPE_CHECKING:
    from sb3_erl.rollouts.jobs import Job
    from sb3_erl.rollouts.vectorized import VectorizedEvaluator


class Rollout(ABC):
    """
    The jobs of one call of ``evaluate``.

    Vector steps that no callback observes and in which no job ends are counted together when one ends.

    :param evaluator: the evaluator whose environments are stepped
    :param jobs: see :meth:`~sb3_erl.rollouts.jobs.Evaluator.evaluate`, as for the other arguments
    """

    def __init__(
        self,
        evaluator: VectorizedEvaluator,
        jobs: Sequence[Job],
        actor: PopulationActor,
        address: Address,
        recorder: Recorder,
    ):
        self.evaluator, self.actor, self.address, self.recorder = evaluator, actor, address, recorder
        self.env, self.envs = evaluator.env, evaluator.envs
        self.unscale_action = evaluator.unscale_action
        self.queue = [SlotJob.of(job, recorder) for job in jobs]
        self.waiting = deque(self.queue)
        """Jobs without a slot."""
        self.n_stored = 0
        n_envs, space = self.env.num_envs, self.env.observation_space
        self.obs_shape = shape_of(space)
        self.slots: list[SlotJob | None] = [None] * n_envs
        self.busy: list[tuple[int, SlotJob]] = []
        """Slots with a job, and the job; see :meth:`_assign` for what follows from it."""
        self.obs = zeros(space_of_policies(self.env), n_envs)
        """``(n_envs, *obs_shape)`` as policies see them."""
        self.take, self.put = row_access(self.obs)
        self.original = self.obs if self.envs.normalizer is None else zeros(space, n_envs)
        """The same as replay buffers store them."""
        self.actions = np.zeros((n_envs, int(np.prod(evaluator.action_shape))), dtype=np.float32)
        self.buffer_actions = self.actions.reshape(n_envs, *evaluator.action_shape)
        self.rewards = np.zeros(n_envs, dtype=np.float32)
        self.dones = np.zeros(n_envs, dtype=bool)
        self.infos: list[dict[str, Any]] = [{} for _ in range(n_envs)]
        self.n_allowed = recorder.n_unobserved_steps_allowed
        self.n_uncounted = 0
        """Vector steps that were taken and not reported yet."""

    def run(self) -> EpisodeBatch | None:
        """:return: the episodes, ``None`` if the recorder stopped the phase"""
        try:
            self._begin()
            self._assign()
            while self.busy or self._begin_again():
                self._act()
                if not self._step():
                    return None
        finally:  # an interrupted phase loses nothing that was stepped
            with uninterrupted():
                self._count_unobserved()
                if self.n_stored < len(self.queue):
                    self._store(unfinished=True)
        episodes = tuple(slot.episode for slot in self.queue if slot.episode is not None)
        return EpisodeBatch(episodes, sum(episode.length for episode in episodes))

    # ---------------------------------------------------------------- what kinds of VecEnvs differ in

    @abstractmethod
    def _begin(self) -> None:
        """Give every slot a job, as far as there are jobs."""

    def _begin_again(self) -> bool:
        """The same once all slots are free and jobs are left; returns whether one has begun."""
        return False

    @abstractmethod
    def _step_environments(self, actions: np.ndarray) -> list[int]:
        """Step all running jobs; returns the slots whose jobs ended."""

    @abstractmethod
    def _renew(self, ended: list[int]) -> None:
        """Begin the next episodes of slots before callbacks see the step."""

    @abstractmethod
    def _go_on(self, ended: list[int]) -> None:
        """Give slots their next jobs after callbacks have seen the step."""

    # ---------------------------------------------------------------- slots

    def _assign(self) -> None:
        """Note which candidate acts in which slot, which changes only when a job begins or ends."""
        self.busy = [(index, slot) for index, slot in enumerate(self.slots) if slot is not None]
        indices = [index for index, _ in self.busy]
        self.rows: slice | list[int] = slice(None) if len(indices) == len(self.slots) else indices
        """Of observations and actions: those of running jobs."""
        self.candidates = tuple(slot.job.candidate for _, slot in self.busy)
        self.explorers = [(index, slot.job.explorer) for index, slot in self.busy if slot.job.explorer is not None]
        self.act_single_row = single_row_actor(self.actor, self.candidates[0]) if len(self.busy) == 1 else None

    def _may_begin(self) -> bool:
        """Whether an episode that begins after the step that is taken now would be played."""
        return bool(self.waiting) and self.recorder.has_budget_after((self.n_uncounted + 1) * len(self.busy))

    def _seed(self, slot: SlotJob) -> int:
        return self.address.seed(Stream.ENVIRONMENT, *slot.job.key)

    def _begin_job(self, index: int, slot: SlotJob, seen: Any, stored: Any) -> bool:
        """Begin a job with the first observation of an episode; returns whether it did not fail at once."""
        job = slot.job
        check_shape("observations", seen, self.obs_shape)
        self.put(self.obs, index, seen)
        self.put(self.original, index, stored)
        first = self.take(self.original, index)
        wrong = what_is_wrong(first)
        if wrong:
            slot.end(self.take(self.obs, index), terminated=False, cut=True, failure=f"{wrong} after reset")
            return False
        slot.begin(first, self.evaluator.action_shape)
        if job.explorer is not None:
            job.explorer.begin(self.address.sequence(Stream.EXPLORATION, *job.key))
        self.slots[index] = slot
        return True

    def _restart(self, index: int) -> None:
        """Reset a slot for the next job, if there is one left and the environment can be reset alone."""
        self.slots[index] = None
        while self.waiting:
            first = self.envs.begin(index, self._seed(self.waiting[0]))
            if first is None or self._begin_job(index, self.waiting.popleft(), *first):
                return

    def _act(self) -> None:
        """Write the actions of all running jobs."""
        obs, actions = self.obs, self.actions
        if self.act_single_row is not None:
            index = self.busy[0][0]
            actions[index] = self.act_single_row(self.take(obs, index))
        else:
            actions[self.rows] = self.actor(self.take(obs, self.rows), self.candidates)
        for index, explorer in self.explorers:
            actions[index] = explorer(self.take(obs, index), actions[index])

    # ---------------------------------------------------------------- steps

    def _step(self) -> bool:
        """One vector step; returns whether to go on."""
        n_running = len(self.busy)
        actions = self.unscale_action(self.buffer_actions)
        ended = self._step_environments(actions)
        if not ended and self.n_allowed >= n_running:
            self.n_allowed -= n_running
            self.n_uncounted += 1
            return True
        running = np.zeros(len(self.slots), dtype=bool)
        running[self.rows] = True
        self._count_unobserved()
        self._renew(ended)
        go_on = self.recorder.after_step(self._variables(actions), running)
        self.n_allowed = self.recorder.n_unobserved_steps_allowed
        if not go_on or not (self.recorder.has_budget or all(slot.episode is not None for slot in self.queue)):
            return False
        self._go_on(ended)
        if ended:
            self._assign()
            self.dones[:] = False
            self._store()
        return True

    def _variables(self, actions: np.ndarray) -> dict[str, Any]:
        """What callbacks find in their ``locals``."""
        own = {"buffer_actions": self.buffer_actions, "new_obs": self.obs, "rewards": self.rewards, "dones": self.dones}
        copies = {name: copied(values) for name, values in own.items()}
        return {**copies, "env": self.env, "actions": actions, "infos": list(self.infos)}

    def _count_unobserved(self) -> None:
        if self.n_uncounted > 0:
            with uninterrupted():  # they are counted once
                self.recorder.count_unobserved_steps(self.n_uncounted, len(self.busy))
                self.n_uncounted = 0

    def _end(self, index: int, last: Observation, last_original: Observation, info: dict[str, Any]) -> None:
        """Record the last step of a job, which the environment ended or the job's horizon."""
        slot, done = self.slots[index], bool(self.dones[index])
        assert slot is not None
        terminated = done and not info.get(TRUNCATED, False)
        slot.record_last(self.take(self.original, index), self.buffer_actions[index], last_original, info, done)
        wrong = what_is_wrong(last_original, slot.rewards[-1])
        if wrong:
            slot.end(last, terminated=False, cut=not done, failure=f"{wrong} in step {len(slot.rewards)}")
        else:
            slot.end(last, terminated, not done, self._behavior(index, info, "behavior" in slot.needs))

    def _behavior(self, index: int, info: dict[str, Any], is_needed: bool) -> np.ndarray | None:
        """:raises ValueError: if a behavior is needed, and what the environment reports is none"""
        if KEY in info:
            return read_behavior(info) if is_needed else behavior_or_none(info[KEY])
        if self.evaluator.knows_behavior:  # cut here: the environment does not know that this was the last step
            return self.env.env_method("current_behavior", indices=[index])[0]
        return None

    # ---------------------------------------------------------------- results

    def _store(self, unfinished: bool = False) -> None:
        """Store jobs in order as far as they are finished."""
        summarizer = self.recorder.summarizer
        while self.n_stored < len(self.queue) and (unfinished or self.queue[self.n_stored].episode is not None):
            with uninterrupted():  # a rollout is stored whole, and once
                self._store_next(summarizer)

    def _store_next(self, summarizer: Summarizer | None) -> None:
        slot = self.queue[self.n_stored]
        steps = slot.steps()
        if slot.episode is not None and slot.episode.failed:
            self.recorder.discard(slot.job, steps)
        elif steps:  # none of a job that was stopped before its first step
            self.recorder.store(slot.job, steps if summarizer is None else summarizer(slot.job, steps))
        slot.recorder = None
        self.n_stored += 1
