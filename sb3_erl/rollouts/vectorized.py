"""The default back-end: jobs on the slots of the user's own VecEnv."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_erl.buffers.rollout_steps import NO_INFO, TRUNCATED
from sb3_erl.core.observations import Observation, combine, copied, copy_info
from sb3_erl.core.seeding import Address
from sb3_erl.rollouts.actions import ActionMap
from sb3_erl.rollouts.jobs import EpisodeBatch, Job, PopulationActor, Recorder
from sb3_erl.rollouts.rollout import Rollout
from sb3_erl.rollouts.slot_envs import SlotEnvs, knows_method
from sb3_erl.rollouts.slots import SlotJob, check_needs
from sb3_erl.rollouts.soundness import check_shape, is_sound


class VectorizedEvaluator:
    """
    One job per environment slot; a freed slot takes the next job; one batched forward serves all running jobs.

    Steps are stored in job order. Fitness reads raw rewards although VecNormalize scales what the learner sees. Environments
    are reset for episodes that are played only, and slots without a job are neither stepped nor counted nor stored, nor shown
    to callbacks as finished, see :class:`~sb3_erl.rollouts.slot_envs.SlotEnvs`. Of a VecEnv without single environments all
    are reset at the beginning of a phase and stepped together.

    The environments of a bare ``DummyVecEnv``, or of a subclass with the same step methods, are stepped one by one, without
    the copies that its ``step`` makes.

    A job that meets a reward or an observation that is not finite ends there and has failed: its fitness is NaN and nothing of
    it is stored. A VecNormalize that learns forgets that step.

    :param env: any VecEnv
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
        self.envs = SlotEnvs(env)
        self.knows_behavior = knows_method(env, "current_behavior")

    def evaluate(
        self, jobs: Sequence[Job], actor: PopulationActor, address: Address, recorder: Recorder
    ) -> EpisodeBatch | None:
        """See :class:`~sb3_erl.rollouts.jobs.Evaluator`."""
        check_needs(recorder.needs)
        if isinstance(self.env, DummyVecEnv) and self.envs.has_singles:  # without wrappers
            return _BareRollout(self, jobs, actor, address, recorder).run()
        rollout = _WholeRollout(self, jobs, actor, address, recorder)
        with self.envs.attached(rollout.claim):
            return rollout.run()


class _BareRollout(Rollout):
    """Steps the environments of a DummyVecEnv without wrappers one by one."""

    def _begin(self) -> None:
        for index in range(self.env.num_envs):
            self._restart(index)

    def _assign(self) -> None:
        super()._assign()
        envs = self.env.envs  # type: ignore[attr-defined]
        self.inner_steps = [(index, envs[index].step) for index, _ in self.busy]

    def _step_environments(self, actions: np.ndarray) -> list[int]:
        is_observed, ended, obs_shape = self.n_allowed < len(self.busy), [], self.obs_shape
        obs, taken, rewards, infos, put = self.obs, self.buffer_actions, self.rewards, self.infos, self.put
        answers = [step(actions[index]) for index, step in self.inner_steps]  # if one of them raises, no step was taken
        for (index, slot), (observation, reward, terminated, truncated, info) in zip(self.busy, answers, strict=True):
            if type(observation) is not np.ndarray or observation.shape != obs_shape or not isinstance(reward, float):
                observation = self._checked(observation, reward)
            reward, recorder = float(reward), slot.recorder
            slot.rewards.append(reward)
            is_last = terminated or truncated or slot.is_at_horizon or not is_sound(observation, reward)
            if is_observed or is_last or slot.keeps_infos:
                info = copy_info(info)
                info[TRUNCATED] = truncated and not terminated
            rewards[index], infos[index] = reward, info
            if is_last:
                ended.append(index)
                self.dones[index] = terminated or truncated
                if self.dones[index]:
                    info["terminal_observation"] = copied(observation)
                self._end(index, observation, observation, info)
            elif recorder is not None:
                recorder.add(taken[index], observation, info if slot.keeps_infos else NO_INFO)
            put(obs, index, observation)
        return ended

    def _checked(self, observation: Any, reward: Any) -> Observation:
        """An observation of a single environment as arrays; shapes are checked, also that of the reward."""
        observation = combine(np.asarray, observation)
        check_shape("observations", observation, self.obs_shape)
        check_shape("rewards", reward, ())
        return observation

    def _renew(self, ended: list[int]) -> None:
        may_begin = self._may_begin()
        for index in ended:
            self.slots[index] = None
            if may_begin:
                self._restart(index)

    def _go_on(self, ended: list[int]) -> None:
        for index in ended:
            if self.slots[index] is None:  # callbacks see its last step once
                self.rewards[index], self.infos[index] = 0.0, {}


class _WholeRollout(Rollout):
    """Steps a VecEnv as a whole, through its wrappers."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.claimed: dict[int, SlotJob] = {}
        """Jobs whose episode has begun in a slot with the end of the one before, by slot."""

    def claim(self, index: int) -> int | None:
        """
        Take the next job for a slot whose episode has ended.

        :param index: number of the slot
        :return: seed of the job's episode; ``None`` if no job is left, or no budget for it
        """
        if not self._may_begin():
            return None
        self.claimed[index] = self.waiting.popleft()
        return self._seed(self.claimed[index])

    def _begin(self) -> None:
        n_envs = self.env.num_envs
        jobs = [self.waiting.popleft() for _ in range(min(n_envs, len(self.waiting)))]
        if not jobs:
            return
        seeds: list[int | None] = [self._seed(slot) for slot in jobs]
        seen, stored = self.envs.begin_all(seeds + [None] * (n_envs - len(jobs)))
        if self.recorder.summarizer is None:
            self.envs.check_originals(seen)
        failed = []
        for index, slot in enumerate(jobs):
            if not self._begin_job(index, slot, self.take(seen, index), self.take(stored, index)):
                failed.append(index)
        for index in failed:
            self.envs.sleep(index)
            self._restart(index)

    def _begin_again(self) -> bool:
        while self.waiting and not self.busy:
            self._begin()
            self._assign()
        return bool(self.busy)

    def _step_environments(self, actions: np.ndarray) -> list[int]:
        evaluator, envs = self.evaluator, self.envs
        normalizer, on_top = evaluator.vec_normalize, envs.normalizer
        with envs.guard.stepping(), envs.stepping():
            new_obs, rewards, dones, infos = self.env.step(actions)
        check_shape("observations", new_obs, combine(np.shape, self.obs))
        check_shape("rewards", rewards, self.rewards.shape)
        if envs.guard.restore():
            if on_top is not None:
                new_obs = on_top.normalize_obs(on_top.get_original_obs())
            if normalizer is not None:
                rewards = normalizer.normalize_reward(normalizer.get_original_reward())
        new_original: Any = envs.originals(new_obs)
        raw_rewards = np.asarray(rewards if normalizer is None else normalizer.get_original_reward()).tolist()
        self.infos = list(infos) if envs.has_singles else [copy_info(info) for info in infos]
        self.rewards, ended = np.array(rewards), []
        self.rewards[[index for index, slot in enumerate(self.slots) if slot is None]] = 0.0  # a sleeper's is another one's
        for index, slot in self.busy:
            slot.rewards.append(raw_rewards[index])
            info = self.infos[index]
            last, last_original = self.take(new_obs, index), self.take(new_original, index)
            terminal = info.get("terminal_observation") if dones[index] else None
            if terminal is not None:
                check_shape("observations", terminal, self.obs_shape)
                terminal = combine(np.asarray, terminal)
            fails = not is_sound(last_original if terminal is None else terminal, slot.rewards[-1])
            if dones[index] or slot.is_at_horizon or fails:
                if terminal is not None:
                    last = last_original = terminal if on_top is None else copied(terminal)
                    if on_top is not None:
                        last_original = on_top.unnormalize_obs(last)
                ended.append(index)
                self.dones[index] = dones[index]
                self._end(index, last, last_original, info)
            elif slot.recorder is not None:
                slot.recorder.add(
                    self.buffer_actions[index], self.take(new_original, index), info if slot.keeps_infos else NO_INFO
                )
        self.put(self.obs, slice(None), new_obs)
        if on_top is not None:  # otherwise they are the same arrays
            self.put(self.original, slice(None), new_original)
        if not envs.has_singles and not envs.by_method:  # the VecEnv goes on with a new episode
            for index in np.flatnonzero(dones).tolist():
                if index not in self.claimed:
                    self.claim(index)
        return ended + [index for index in self.claimed if self.slots[index] is None]

    def _renew(self, ended: list[int]) -> None:
        pass  # they began with the step

    def _go_on(self, ended: list[int]) -> None:
        claimed, self.claimed = self.claimed, {}
        restarting = []
        for index in ended:
            self.slots[index] = None
            slot, obs, original = claimed.get(index), self.obs, self.original
            if slot is None:
                if self.dones[index] and not self.envs.by_method:
                    continue
                self.envs.sleep(index)
            elif self._begin_job(index, slot, copied(self.take(obs, index)), copied(self.take(original, index))):
                continue
            restarting.append(index)
        for index in restarting:
            self._restart(index)
