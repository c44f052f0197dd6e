"""The default back-end: jobs on the slots of the user's own VecEnv."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_erl.buffers.rollout_steps import TRUNCATED, copy_info
from sb3_erl.core.interrupts import uninterrupted
from sb3_erl.core.observations import Observation, combine, copied, row_access, shape_of, zeros
from sb3_erl.core.seeding import Address, Stream
from sb3_erl.envs.behavior import KEY, read_behavior
from sb3_erl.rollouts.acting import single_row_actor
from sb3_erl.rollouts.actions import ActionMap
from sb3_erl.rollouts.jobs import EpisodeBatch, Job, PopulationActor, Recorder, Summarizer
from sb3_erl.rollouts.slot_reset import SlotResetter
from sb3_erl.rollouts.slots import SlotJob, check_needs
from sb3_erl.rollouts.soundness import NormalizerGuard, check_shape, is_sound, what_is_wrong

STEPPING = ("step", "step_async", "step_wait", "_save_obs", "_obs_from_buf")
"""Methods that make up a step of a ``DummyVecEnv``."""


class VectorizedEvaluator:
    """
    One job per environment slot; a freed slot takes the next job; one batched forward serves all running jobs.

    Steps are stored in job order. Fitness reads raw rewards although VecNormalize scales what the learner sees.

    The environments of a bare ``DummyVecEnv``, or of a subclass with the same step methods, are stepped one by one, without
    the copies that its ``step`` makes; those of slots without a job are not stepped. Any other VecEnv steps all its
    environments; slots without a job are then neither counted nor stored, nor shown to callbacks as finished.

    A job that meets a reward or an observation that is not finite ends there and has failed: its fitness is NaN and nothing of
    it is stored. A VecNormalize that learns forgets that step.

    :param env: any VecEnv that can reset one of its environments, see :class:`~sb3_erl.rollouts.slot_reset.SlotResetter`
    :param vec_normalize: the VecNormalize wrapper in ``env``, if there is one
    :param unscale_action: maps what the actor returns to actions of the environment
    :param action_shape: shape of one action, ``()`` for discrete actions
    """

    def __init__(
        self, env: VecEnv, vec_normalize: VecNormalize | None, unscale_action: ActionMap, action_shape: tuple[int, ...]
    ):
        self.env = env
        self.vec_normalize = vec_normalize
        self.unscale_action = unscale_action
        self.action_shape = action_shape
        self.reset_slot = SlotResetter(env)
        self.guard = NormalizerGuard(vec_normalize)
        self.knows_behavior = env.has_attr("current_behavior")

    @property
    def inner_envs(self) -> list[gym.Env] | None:
        """The single environments, if stepping them one by one is all that ``env.step`` does."""
        env = self.env
        if not isinstance(env, DummyVecEnv):
            return None
        same = all(getattr(type(env), name) is getattr(DummyVecEnv, name) and name not in vars(env) for name in STEPPING)
        return env.envs if same else None

    def evaluate(
        self, jobs: Sequence[Job], actor: PopulationActor, address: Address, recorder: Recorder
    ) -> EpisodeBatch | None:
        """See :class:`~sb3_erl.rollouts.jobs.Evaluator`."""
        check_needs(recorder.needs)
        return _Rollout(self, jobs, actor, address, recorder).run()


class _Rollout:
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
        self.env, self.inner = evaluator.env, evaluator.inner_envs
        self.unscale_action = evaluator.unscale_action
        summarizer, needs = recorder.summarizer, recorder.needs
        self.queue = [SlotJob.of(job, summarizer, needs) for job in jobs]
        self.waiting = iter(self.queue)
        self.n_stored = 0
        n_envs, space = self.env.num_envs, self.env.observation_space
        self.obs_shape = shape_of(space)
        self.slots: list[SlotJob | None] = [None] * n_envs
        self.busy: list[tuple[int, SlotJob]] = []
        """Slots with a job, and the job; see :meth:`_assign` for what follows from it."""
        self.obs = zeros(space, n_envs)
        """``(n_envs, *obs_shape)`` as policies see them."""
        self.take, self.put = row_access(self.obs)
        self.original = self.obs if evaluator.vec_normalize is None else copied(self.obs)
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
            for index in range(self.env.num_envs):
                self._start(index)
            self._assign()
            while self.busy:
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

    # ---------------------------------------------------------------- slots

    def _start(self, index: int) -> None:
        """Give a free slot its next job, if there is one left."""
        slot = next(self.waiting, None)
        while slot is not None and not self._reset(index, slot):
            slot = next(self.waiting, None)
        self.slots[index] = slot

    def _assign(self) -> None:
        """Note which candidate acts in which slot, which changes only when a job ends."""
        self.busy = [(index, slot) for index, slot in enumerate(self.slots) if slot is not None]
        indices = [index for index, _ in self.busy]
        self.rows: slice | list[int] = slice(None) if len(indices) == len(self.slots) else indices
        """Of observations and actions: those of running jobs."""
        self.candidates = tuple(slot.job.candidate for _, slot in self.busy)
        self.explorers = [(index, slot.job.explorer) for index, slot in self.busy if slot.job.explorer is not None]
        self.act_single_row = single_row_actor(self.actor, self.candidates[0]) if len(self.busy) == 1 else None
        self.inner_steps = [] if self.inner is None else [(index, self.inner[index].step) for index in indices]

    def _reset(self, index: int, slot: SlotJob) -> bool:
        """Begin a job in a slot; returns whether it did not fail at once."""
        job = slot.job
        seen, stored = self.evaluator.reset_slot(index, self.address.seed(Stream.ENVIRONMENT, *job.key))
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
        return True

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
        ended = self._step_all(actions) if self.inner is None else self._step_inner(actions)
        if not ended and self.n_allowed >= n_running:
            self.n_allowed -= n_running
            self.n_uncounted += 1
            return True
        self._count_unobserved()
        if self.inner is not None:  # what a VecEnv does by itself
            for index in ended:
                self._renew(index)
        running = np.zeros(len(self.slots), dtype=bool)
        running[self.rows] = True
        go_on = self.recorder.after_step(self._variables(actions), running)
        self.n_allowed = self.recorder.n_unobserved_steps_allowed
        if not go_on or not (self.recorder.has_budget or all(slot.episode is not None for slot in self.queue)):
            return False
        if self.inner is None:
            for index in ended:
                self._start(index)
        if ended:
            self._assign()
            self.dones[:] = False
            self._store()
        for index in ended:
            if self.inner is not None and self.slots[index] is None:  # callbacks see its last step once
                self.rewards[index], self.infos[index] = 0.0, {}
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

    def _step_inner(self, actions: np.ndarray) -> list[int]:
        """Step single environments without the copies of a DummyVecEnv; returns the slots whose jobs ended."""
        is_observed, ended, obs_shape = self.n_allowed < len(self.busy), [], self.obs_shape
        answers = [step(actions[index]) for index, step in self.inner_steps]  # if one of them raises, no step was taken
        for (index, slot), answer in zip(self.busy, answers, strict=True):
            observation, reward, terminated, truncated, info = answer
            if type(observation) is not np.ndarray or observation.shape != obs_shape or not isinstance(reward, float):
                observation = self._checked(observation, reward)
            reward, recorder = float(reward), slot.recorder
            slot.rewards.append(reward)
            fails = not is_sound(observation, reward)
            is_last = terminated or truncated or fails or slot.is_at_horizon
            if is_observed or is_last or recorder is not None:
                info = copy_info(info)
                info[TRUNCATED] = truncated and not terminated
            self.rewards[index], self.infos[index] = reward, info
            if is_last:
                ended.append(index)
                self.dones[index] = terminated or truncated
                if self.dones[index]:
                    info["terminal_observation"] = copied(observation)
                self._end(index, observation, observation, info)
            elif recorder is not None:
                recorder.add(self.buffer_actions[index], observation, info)
            self.put(self.obs, index, observation)
        return ended

    def _checked(self, observation: Any, reward: Any) -> Observation:
        """An observation of a single environment as arrays; shapes are checked, also that of the reward."""
        observation = combine(np.asarray, observation)
        check_shape("observations", observation, self.obs_shape)
        check_shape("rewards", reward, ())
        return observation

    def _renew(self, index: int) -> None:
        """Give a slot with a single environment its next job; without one, reset it, so that it can be stepped later."""
        self._start(index)
        if self.slots[index] is None and self.dones[index]:
            assert self.inner is not None
            self.put(self.obs, index, self.inner[index].reset()[0])

    def _step_all(self, actions: np.ndarray) -> list[int]:
        """Step a VecEnv; returns the slots whose jobs ended."""
        normalizer = self.evaluator.vec_normalize
        self.evaluator.guard.keep()
        new_obs, rewards, dones, infos = self.env.step(actions)
        check_shape("observations", new_obs, combine(np.shape, self.obs))
        check_shape("rewards", rewards, self.rewards.shape)
        if self.evaluator.guard.restore():
            assert normalizer is not None
            new_obs = normalizer.normalize_obs(normalizer.get_original_obs())
            rewards = normalizer.normalize_reward(normalizer.get_original_reward())
        new_original: Any = new_obs if normalizer is None else normalizer.get_original_obs()
        raw_rewards = np.asarray(rewards if normalizer is None else normalizer.get_original_reward()).tolist()
        self.rewards, self.infos, ended = rewards, infos, []
        for index, slot in self.busy:
            slot.rewards.append(raw_rewards[index])
            last, last_original = self.take(new_obs, index), self.take(new_original, index)
            terminal = infos[index].get("terminal_observation") if dones[index] else None
            if terminal is not None:
                check_shape("observations", terminal, self.obs_shape)
                terminal = combine(np.asarray, terminal)
            fails = not is_sound(last_original if terminal is None else terminal, slot.rewards[-1])
            if dones[index] or slot.is_at_horizon or fails:
                if terminal is not None:
                    last = last_original = terminal
                    if normalizer is not None:
                        last_original = normalizer.unnormalize_obs(last)
                ended.append(index)
                self.dones[index] = dones[index]
                self._end(index, last, last_original, infos[index])
            elif slot.recorder is not None:
                slot.recorder.add(self.buffer_actions[index], self.take(new_original, index), infos[index])
        self.put(self.obs, slice(None), new_obs)
        if normalizer is not None:  # otherwise they are the same arrays
            self.put(self.original, slice(None), new_original)
        return ended

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
            slot.end(last, terminated, not done, self._behavior(index, info))

    def _behavior(self, index: int, info: dict[str, Any]) -> np.ndarray | None:
        if KEY in info:
            return read_behavior(info)
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
