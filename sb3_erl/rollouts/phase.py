"""The jobs of one phase on the slots of a VecEnv: what runs where, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_erl.buffers.rollout_steps import TRUNCATED, StepRecorder, Steps, kept
from sb3_erl.core.interrupts import uninterrupted
from sb3_erl.core.seeding import Address, Stream
from sb3_erl.envs.behavior import KEY, read_behavior
from sb3_erl.rollouts.acting import single_row_actor
from sb3_erl.rollouts.jobs import Digest, Episode, EpisodeBatch, Job, PopulationActor, Recorder
from sb3_erl.rollouts.soundness import check_shape, is_sound, what_is_wrong

if TYPE_CHECKING:
    from sb3_erl.rollouts.vectorized import VectorizedEvaluator


@dataclass
class Running:
    """
    A job in a slot, or waiting for one, or waiting to be stored.

    :param job: what is to be done
    :param keeps_steps: whether somebody wants all steps, not the last one only
    """

    job: Job
    keeps_steps: bool = True
    rewards: list[float] = field(default_factory=list)
    recorder: StepRecorder | None = None
    episode: Episode | None = None

    @property
    def is_cut(self) -> bool:
        """Whether the job wants no further steps."""
        return self.job.horizon is not None and len(self.rewards) >= self.job.horizon

    @property
    def raw_rewards(self) -> np.ndarray:
        """``(T,)``, rounded as DummyVecEnv rounds them; SubprocVecEnv does not."""
        return np.array(self.rewards, dtype=np.float32).astype(np.float64)

    def steps(self) -> Steps:
        """The steps that were kept; if there are more to come, the rollout is abandoned here."""
        if self.recorder is None:
            return Steps.none()
        steps = self.recorder.steps(self.raw_rewards, self.episode is not None)
        return steps.until(len(steps))


class Phase:
    """
    Runs jobs. The evaluator says on which environments, the recorder hears of steps and episodes.

    Vector steps that nobody watches and in which no job ends are counted together when one ends.

    :param evaluator: whose environments are stepped
    :param jobs: see :meth:`~sb3_erl.rollouts.jobs.Evaluator.evaluate`, as the other arguments
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
        digest = recorder.digest
        self.queue = [Running(job, digest is None or digest.wants(job)) for job in jobs]
        self.waiting = iter(self.queue)
        self.n_stored = 0
        n_envs, space = self.env.num_envs, self.env.observation_space
        self.obs_shape = space.shape or ()
        self.slots: list[Running | None] = [None] * n_envs
        self.busy: list[tuple[int, Running]] = []
        """Slots with a job, and the job; see :meth:`_assign` for what follows from it."""
        self.obs = np.zeros((n_envs, *space.shape), dtype=space.dtype)  # type: ignore[misc]
        """``(n_envs, *obs_shape)`` as policies see them."""
        self.original = self.obs if evaluator.vec_normalize is None else self.obs.copy()
        """The same as replay buffers store them."""
        self.actions = np.zeros((n_envs, int(np.prod(evaluator.action_shape))), dtype=np.float32)
        self.buffer_actions = self.actions.reshape(n_envs, *evaluator.action_shape)
        self.rewards = np.zeros(n_envs, dtype=np.float32)
        self.dones = np.zeros(n_envs, dtype=bool)
        self.infos: list[dict[str, Any]] = [{} for _ in range(n_envs)]
        self.n_free = recorder.n_free_steps
        self.n_unreported = 0

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
                self._report_skipped()
                if self.n_stored < len(self.queue):
                    self._store(unfinished=True)
        episodes = tuple(running.episode for running in self.queue if running.episode is not None)
        return EpisodeBatch(episodes, sum(episode.length for episode in episodes))

    # ---------------------------------------------------------------- slots

    def _start(self, index: int) -> None:
        """Give a free slot its next job, if there is one left."""
        running = next(self.waiting, None)
        while running is not None and not self._reset(index, running):
            running = next(self.waiting, None)
        self.slots[index] = running

    def _assign(self) -> None:
        """Note who acts where, which changes only when a job ends."""
        self.busy = [(index, slot) for index, slot in enumerate(self.slots) if slot is not None]
        indices = [index for index, _ in self.busy]
        self.rows: slice | list[int] = slice(None) if len(indices) == len(self.slots) else indices
        """Of observations and actions: those of running jobs."""
        self.candidates = tuple(slot.job.candidate for _, slot in self.busy)
        self.explorers = [(index, slot.job.explorer) for index, slot in self.busy if slot.job.explorer is not None]
        self.act_alone = single_row_actor(self.actor, self.candidates[0]) if len(self.busy) == 1 else None
        self.inner_steps = [] if self.inner is None else [(index, self.inner[index].step) for index in indices]

    def _reset(self, index: int, running: Running) -> bool:
        """Begin a job in a slot; returns whether it did not fail at once."""
        job = running.job
        seen, stored = self.evaluator.reset_slot(index, self.address.seed(Stream.ENVIRONMENT, *job.key))
        check_shape("observations", seen, self.obs_shape)
        self.obs[index], self.original[index] = seen, stored
        wrong = what_is_wrong(self.original[index])
        if wrong:
            seen = self.obs[index].copy()
            running.episode = Episode(job, np.empty(0), seen, False, True, failure=f"{wrong} after reset")
            return False
        if running.keeps_steps:
            running.recorder = StepRecorder(self.original[index], self.evaluator.action_shape)
        if job.explorer is not None:
            job.explorer.begin(self.address.sequence(Stream.EXPLORATION, *job.key))
        return True

    def _act(self) -> None:
        """Write the actions of all running jobs."""
        obs, actions = self.obs, self.actions
        if self.act_alone is not None:
            index = self.busy[0][0]
            actions[index] = self.act_alone(obs[index])
        else:
            actions[self.rows] = self.actor(obs[self.rows], self.candidates)
        for index, explorer in self.explorers:
            actions[index] = explorer(obs[index], actions[index])

    # ---------------------------------------------------------------- steps

    def _step(self) -> bool:
        """One vector step; returns whether to go on."""
        n_running = len(self.busy)
        actions = self.unscale_action(self.buffer_actions)
        ended = self._step_all(actions) if self.inner is None else self._step_inner(actions)
        if not ended and self.n_free >= n_running:
            self.n_free -= n_running
            self.n_unreported += 1
            return True
        self._report_skipped()
        if self.inner is not None:  # what a VecEnv does by itself
            for index in ended:
                self._renew(index)
        running = np.zeros(len(self.slots), dtype=bool)
        running[self.rows] = True
        go_on = self.recorder.after_step(self._variables(actions), running)
        self.n_free = self.recorder.n_free_steps
        if not go_on or not (self.recorder.has_budget or all(running.episode is not None for running in self.queue)):
            return False
        if self.inner is None:
            for index in ended:
                self._start(index)
        if ended:
            self._assign()
            self.dones[:] = False
            self._store()
        for index in ended:
            if self.inner is not None and self.slots[index] is None:  # it rests; what it said was said once
                self.rewards[index], self.infos[index] = 0.0, {}
        return True

    def _variables(self, actions: np.ndarray) -> dict[str, Any]:
        """What callbacks find in their ``locals``."""
        own = {"buffer_actions": self.buffer_actions, "new_obs": self.obs, "rewards": self.rewards, "dones": self.dones}
        copies = {name: array.copy() for name, array in own.items()}
        return {**copies, "env": self.env, "actions": actions, "infos": list(self.infos)}

    def _report_skipped(self) -> None:
        if self.n_unreported > 0:
            with uninterrupted():  # they are counted once
                self.recorder.skip_steps(self.n_unreported, len(self.busy))
                self.n_unreported = 0

    def _step_inner(self, actions: np.ndarray) -> list[int]:
        """Step the environments of running jobs, of which a DummyVecEnv would make copies; returns whose jobs ended."""
        is_watched, ended, obs_shape = self.n_free < len(self.busy), [], self.obs_shape
        answers = [step(actions[index]) for index, step in self.inner_steps]  # if one of them raises, no step was taken
        for (index, slot), answer in zip(self.busy, answers, strict=True):
            observation, reward, terminated, truncated, info = answer
            observation = np.asarray(observation)
            if observation.shape != obs_shape or not isinstance(reward, float):
                check_shape("observations", observation, obs_shape)
                check_shape("rewards", reward, ())
            reward, recorder = float(reward), slot.recorder
            slot.rewards.append(reward)
            fails = not is_sound(observation, reward)
            is_last = terminated or truncated or fails or slot.is_cut
            if is_watched or is_last or recorder is not None:
                info = kept(info)
                info[TRUNCATED] = truncated and not terminated
            self.rewards[index], self.infos[index] = reward, info
            if is_last:
                ended.append(index)
                self.dones[index] = terminated or truncated
                if self.dones[index]:
                    info["terminal_observation"] = np.array(observation)
                self._end(index, observation, observation, info)
            elif recorder is not None:
                recorder.add(self.buffer_actions[index], observation, info)
            self.obs[index] = observation
        return ended

    def _renew(self, index: int) -> None:
        """Give a slot of an environment of ours its next job; without one, reset it, so that it can go on at any time."""
        self._start(index)
        if self.slots[index] is None and self.dones[index]:
            assert self.inner is not None
            self.obs[index], _ = self.inner[index].reset()

    def _step_all(self, actions: np.ndarray) -> list[int]:
        """Step a VecEnv; returns whose jobs ended."""
        normalizer = self.evaluator.vec_normalize
        self.evaluator.guard.keep()
        new_obs, rewards, dones, infos = self.env.step(actions)
        check_shape("observations", new_obs, self.obs.shape)
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
            last, last_original = new_obs[index], new_original[index]  # type: ignore[index]
            terminal = infos[index].get("terminal_observation") if dones[index] else None
            if terminal is not None:
                check_shape("observations", terminal, self.obs_shape)
            fails = not is_sound(np.asarray(last_original if terminal is None else terminal), slot.rewards[-1])
            if dones[index] or slot.is_cut or fails:
                if terminal is not None:
                    last = last_original = terminal
                    if normalizer is not None:
                        last_original = normalizer.unnormalize_obs(last)
                ended.append(index)
                self.dones[index] = dones[index]
                self._end(index, last, last_original, infos[index])
            elif slot.recorder is not None:
                slot.recorder.add(self.buffer_actions[index], new_original[index], infos[index])
        self.obs[...] = new_obs
        self.original[...] = new_original
        return ended

    def _end(self, index: int, last: np.ndarray, last_original: np.ndarray, info: dict[str, Any]) -> None:
        """Take down the last step of a job, which the environment ended or the job's horizon."""
        slot, done = self.slots[index], bool(self.dones[index])
        assert slot is not None
        terminated = done and not info.get(TRUNCATED, False)
        if not done:  # abandoned: to the buffer this is a time limit
            info = {**info, TRUNCATED: True}
        if slot.recorder is None:
            before = self.original[index], self.evaluator.action_shape
            slot.recorder = StepRecorder(*before, first=len(slot.rewards) - 1, capacity=1)
        slot.recorder.add(self.buffer_actions[index], last_original, info)
        wrong = what_is_wrong(np.asarray(last_original), slot.rewards[-1])
        if wrong:
            failure, behavior, terminated = f"{wrong} in step {len(slot.rewards)}", None, False
        else:
            failure, behavior = "", self._behavior(index, info)
        slot.episode = Episode(slot.job, slot.raw_rewards, np.array(last), terminated, not done, behavior, failure)

    def _behavior(self, index: int, info: dict[str, Any]) -> np.ndarray | None:
        if KEY in info:
            return read_behavior(info)
        if self.evaluator.knows_behavior:  # cut here: the environment does not know that this was the last step
            return self.env.env_method("current_behavior", indices=[index])[0]
        return None

    # ---------------------------------------------------------------- results

    def _store(self, unfinished: bool = False) -> None:
        """Store jobs in order as far as they are finished."""
        digest = self.recorder.digest
        while self.n_stored < len(self.queue) and (unfinished or self.queue[self.n_stored].episode is not None):
            with uninterrupted():  # a rollout is stored whole, and once
                self._store_next(digest)

    def _store_next(self, digest: Digest | None) -> None:
        running = self.queue[self.n_stored]
        steps = running.steps()
        if running.episode is not None and running.episode.failed:
            self.recorder.drop(running.job, steps)
        elif steps:  # none of a job that was stopped before its first step
            self.recorder.store(running.job, steps if digest is None else digest(running.job, steps))
        running.recorder = None
        self.n_stored += 1
