"""The jobs of one phase on the slots of a VecEnv: what runs where, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sb3_erl.common.seeding import Address, Stream
from sb3_erl.evaluation.acting import alone_or_none
from sb3_erl.evaluation.alone import ActAlone
from sb3_erl.evaluation.base import Episode, EpisodeBatch, Job, PopulationActor, Recorder
from sb3_erl.evaluation.steps import TRUNCATED, StepRecorder, Steps, kept
from sb3_erl.fitness.behaviour import KEY, read_behavior

if TYPE_CHECKING:
    from sb3_erl.evaluation.vectorized import VectorizedEvaluator


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
    act_alone: ActAlone | Literal[False] | None = None
    """``None`` before anybody asked, ``False`` if there is no such way."""
    episode: Episode | None = None

    def alone(self, actor: PopulationActor) -> ActAlone | None:
        """A faster way of acting for one candidate, where there is one."""
        if self.act_alone is None:
            self.act_alone = alone_or_none(actor, self.job.candidate) or False
        return self.act_alone or None

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
    :param jobs: see :meth:`~sb3_erl.evaluation.base.Evaluator.evaluate`, as the other arguments
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
        self.step_inner = [env.step for env in self.inner or ()]
        digest = recorder.digest
        self.queue = [Running(job, digest is None or digest.wants(job)) for job in jobs]
        self.waiting = iter(self.queue)
        self.n_stored = 0
        n_envs, space = self.env.num_envs, self.env.observation_space
        self.slots: list[Running | None] = [None] * n_envs
        self.busy: list[int] = []
        self.obs = np.zeros((n_envs, *space.shape), dtype=space.dtype)  # type: ignore[misc]
        """``(n_envs, *obs_shape)`` as policies see them."""
        self.original = self.obs if evaluator.vec_normalize is None else self.obs.copy()
        """The same as replay buffers store them."""
        self.actions = np.zeros((n_envs, int(np.prod(evaluator.action_shape))), dtype=np.float32)
        self.rewards = np.zeros(n_envs, dtype=np.float32)
        self.infos: list[dict[str, Any]] = [{} for _ in range(n_envs)]
        self.n_free = recorder.n_free_steps
        self.n_unreported = 0

    def run(self) -> EpisodeBatch | None:
        """:return: the episodes, ``None`` if the recorder stopped the phase"""
        try:
            for index in range(self.env.num_envs):
                self._start(index)
            while self.busy:
                self._act()
                if not self._step():
                    return None
        finally:  # an interrupted phase loses nothing that was stepped
            self._report_skipped()
            if self.n_stored < len(self.queue):
                self._store(unfinished=True)
        episodes = tuple(running.episode for running in self.queue if running.episode is not None)
        return EpisodeBatch(episodes, sum(episode.length for episode in episodes))

    # ---------------------------------------------------------------- slots

    def _start(self, index: int) -> None:
        """Give a free slot its next job, if there is one left."""
        running = next(self.waiting, None)
        self.slots[index] = running
        self.busy = [i for i, slot in enumerate(self.slots) if slot is not None]
        if running is None:
            return
        job = running.job
        seed = self.address.seed(Stream.ENVIRONMENT, *job.key)
        self.obs[index], self.original[index] = self.evaluator.reset_slot(index, seed)
        if running.keeps_steps:
            running.recorder = StepRecorder(self.original[index], self.evaluator.action_shape)
        if job.explorer is not None:
            job.explorer.begin(self.address.sequence(Stream.EXPLORATION, *job.key))

    def _act(self) -> None:
        """Write the actions of all running jobs."""
        busy, slots, obs, actions = self.busy, self.slots, self.obs, self.actions
        if len(busy) == 1 and (alone := slots[busy[0]].alone(self.actor)) is not None:  # type: ignore[union-attr]
            actions[busy[0]] = alone(obs[busy[0]])
        else:
            rows = obs if len(busy) == len(slots) else obs[busy]
            actions[busy] = self.actor(rows, [slots[index].job.candidate for index in busy])  # type: ignore[union-attr]
        for index in busy:
            explorer = slots[index].job.explorer  # type: ignore[union-attr]
            if explorer is not None:
                actions[index] = explorer(obs[index], actions[index])

    # ---------------------------------------------------------------- steps

    def _step(self) -> bool:
        """One vector step; returns whether to go on."""
        stepped = self.busy
        buffer_actions = self.actions.reshape(len(self.slots), *self.evaluator.action_shape)
        actions = self.evaluator.unscale_action(buffer_actions)
        dones = np.zeros(len(self.slots), dtype=bool)
        if self.inner is not None:
            ended = self._step_inner(actions, buffer_actions, dones)
        else:
            ended = self._step_all(actions, buffer_actions, dones)
        if not ended and self.n_free >= len(stepped):
            self.n_free -= len(stepped)
            self.n_unreported += 1
            return True
        self._report_skipped()
        if self.inner is not None:  # what a VecEnv does by itself: the slot begins anew
            for index in ended:
                self._renew(index, bool(dones[index]))
        variables = {
            "env": self.env,
            "actions": actions,
            "buffer_actions": buffer_actions.copy(),
            "new_obs": self.obs.copy(),
            "rewards": self.rewards.copy(),
            "dones": dones,
            "infos": list(self.infos),
        }
        running = np.zeros(len(self.slots), dtype=bool)
        running[stepped] = True
        go_on = self.recorder.after_step(variables, running)
        self.n_free = self.recorder.n_free_steps
        if not go_on or not (self.recorder.has_budget or all(running.episode is not None for running in self.queue)):
            return False
        if self.inner is None:
            for index in ended:
                self._start(index)
        if ended:
            self._store()
        return True

    def _report_skipped(self) -> None:
        if self.n_unreported > 0:
            self.recorder.skip_steps(self.n_unreported, len(self.busy))
            self.n_unreported = 0

    def _step_inner(self, actions: np.ndarray, buffer_actions: np.ndarray, dones: np.ndarray) -> list[int]:
        """Step the environments of running jobs, of which a DummyVecEnv would make copies; returns whose jobs ended."""
        busy, is_watched = self.busy, self.n_free < len(self.busy)
        answers = [self.step_inner[index](actions[index]) for index in busy]  # if one of them raises, no step was taken
        ended = []
        for index, (observation, reward, terminated, truncated, info) in zip(busy, answers, strict=True):
            slot = self.slots[index]
            assert slot is not None
            slot.rewards.append(float(reward))
            self.rewards[index] = reward
            done = terminated or truncated
            cut = not done and slot.is_cut
            if is_watched or done or cut or slot.recorder is not None:
                info = kept(info)
                info[TRUNCATED] = truncated and not terminated
            self.infos[index] = info
            if not (done or cut):
                if slot.recorder is not None:
                    slot.recorder.add(buffer_actions[index], observation, info)
                self.obs[index] = observation
                continue
            if done:
                info["terminal_observation"] = np.array(observation)
            dones[index] = done
            ended.append(index)
            self._end(index, buffer_actions[index], observation, observation, info, bool(done))
            self.obs[index] = observation
        return ended

    def _renew(self, index: int, is_done: bool) -> None:
        self._start(index)
        if is_done and self.slots[index] is None:  # as a VecEnv leaves it
            assert self.inner is not None
            self.obs[index], _ = self.inner[index].reset()

    def _step_all(self, actions: np.ndarray, buffer_actions: np.ndarray, dones: np.ndarray) -> list[int]:
        """Step a VecEnv; returns whose jobs ended."""
        new_obs, rewards, all_dones, infos = self.env.step(actions)
        normalizer = self.evaluator.vec_normalize
        new_original = new_obs if normalizer is None else normalizer.get_original_obs()
        raw_rewards = np.asarray(rewards if normalizer is None else normalizer.get_original_reward()).tolist()
        self.rewards, self.infos = rewards, infos
        ended = []
        for index in self.busy:
            slot = self.slots[index]
            assert slot is not None
            slot.rewards.append(raw_rewards[index])
            done = bool(all_dones[index])
            if not (done or slot.is_cut):
                if slot.recorder is not None:
                    slot.recorder.add(buffer_actions[index], new_original[index], infos[index])  # type: ignore[index]
                continue
            last, last_original = new_obs[index], new_original[index]  # type: ignore[index]
            if done and infos[index].get("terminal_observation") is not None:
                last = last_original = infos[index]["terminal_observation"]
                if normalizer is not None:
                    last_original = normalizer.unnormalize_obs(last)
            dones[index] = done
            ended.append(index)
            self._end(index, buffer_actions[index], last, last_original, infos[index], done)
        self.obs[...] = new_obs
        self.original[...] = new_original
        return ended

    def _end(
        self, index: int, action: np.ndarray, last: np.ndarray, last_original: np.ndarray, info: dict[str, Any], done: bool
    ) -> None:
        """Take down the last step of a job, which the environment ended or the job's horizon."""
        slot = self.slots[index]
        assert slot is not None
        truncated = done and bool(info.get(TRUNCATED, False))
        shown = info if done else {**info, TRUNCATED: True}  # abandoned: to the buffer this is a time limit
        if slot.recorder is None:
            slot.recorder = StepRecorder(self.original[index], self.evaluator.action_shape, capacity=1)
        slot.recorder.add(action, last_original, shown)
        behavior = self._behavior(index, shown)
        slot.episode = Episode(slot.job, slot.raw_rewards, np.array(last), done and not truncated, not done, behavior)

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
            running = self.queue[self.n_stored]
            steps = running.steps()
            self.recorder.store(running.job, steps if digest is None else digest(running.job, steps))
            running.recorder = None
            self.n_stored += 1
