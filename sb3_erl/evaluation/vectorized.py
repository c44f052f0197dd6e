"""The default back-end: jobs on the slots of the user's own VecEnv."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_erl.common.seeding import Address, Stream
from sb3_erl.evaluation.base import (
    ActionMap,
    Episode,
    EpisodeBatch,
    Job,
    PopulationActor,
    Recorder,
    Transition,
)
from sb3_erl.evaluation.slots import SlotResetter
from sb3_erl.evaluation.soundness import NormalizerGuard, check_shape, what_is_wrong
from sb3_erl.fitness.behaviour import KEY, read_behavior


@dataclass
class _Running:
    """A job in a slot, or waiting to be stored."""

    number: int
    job: Job
    keeps_steps: bool = True
    transitions: list[Transition] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    episode: Episode | None = None


class VectorizedEvaluator:
    """
    One job per environment slot; a freed slot takes the next job; one batched forward serves all running jobs.

    Transitions are stored in job order. Fitness reads raw rewards although VecNormalize scales what the learner sees.
    Slots without a job are stepped with the zero action (a VecEnv steps all its environments) but neither counted,
    stored nor shown to callbacks as finished.

    A job that meets a reward or an observation that is not finite ends there and has failed: its fitness is NaN and nothing of
    it is stored. A VecNormalize that learns forgets that step.

    :param env: any SB3 VecEnv
    :param vec_normalize: the VecNormalize wrapper in ``env``, if there is one
    :param unscale_action: from [-1, 1] to the environment's box
    :param action_shape: shape of one action
    """

    def __init__(
        self, env: VecEnv, vec_normalize: VecNormalize | None, unscale_action: ActionMap, action_shape: tuple[int, ...]
    ):
        self.env = env
        self.vec_normalize = vec_normalize
        self.unscale_action = unscale_action
        self.action_shape = action_shape
        self.reset_slot = SlotResetter(env)
        self._guard = NormalizerGuard(vec_normalize)
        self._obs_shape = env.observation_space.shape or ()
        self._knows_behavior = env.has_attr("current_behavior")

    def evaluate(
        self, jobs: Sequence[Job], actor: PopulationActor, address: Address, recorder: Recorder
    ) -> EpisodeBatch | None:
        """See :class:`~sb3_erl.evaluation.base.Evaluator`."""
        n_envs = self.env.num_envs
        digest = recorder.digest
        queue = [_Running(number, job, digest is None or digest.wants(job)) for number, job in enumerate(jobs)]
        waiting = iter(queue)
        slots: list[_Running | None] = [None] * n_envs
        space = self.env.observation_space
        obs = np.zeros((n_envs, *space.shape), dtype=space.dtype)  # type: ignore[misc]
        original = obs.copy()
        actions = np.zeros((n_envs, int(np.prod(self.action_shape))), dtype=np.float32)
        n_stored = 0
        try:
            for index in range(n_envs):
                self._start(index, waiting, slots, obs, original, address)
            while any(slots):
                self._act(slots, actor, obs, actions)
                if not self._step(slots, actions, obs, original, recorder):
                    return None
                if not recorder.has_budget and any(running.episode is None for running in queue):
                    return None
                for index, running in enumerate(slots):
                    if running is not None and running.episode is not None:
                        self._start(index, waiting, slots, obs, original, address)
                n_stored = self._store(queue, n_stored, recorder)
        finally:  # an interrupted phase loses nothing that was stepped
            if n_stored < len(queue):
                self._store(queue, n_stored, recorder, unfinished=True)
        episodes = tuple(running.episode for running in queue if running.episode is not None)
        return EpisodeBatch(episodes, sum(episode.length for episode in episodes))

    def _start(self, index: int, waiting: Any, slots: list, obs: np.ndarray, original: np.ndarray, address: Address) -> None:
        for running in waiting:
            job = running.job
            seen, stored = self.reset_slot(index, address.seed(Stream.ENVIRONMENT, *job.key))
            check_shape("observations", seen, self._obs_shape)
            obs[index], original[index] = seen, stored
            wrong = what_is_wrong(original[index])
            if not wrong:
                slots[index] = running
                if job.explorer is not None:
                    job.explorer.begin(address.sequence(Stream.EXPLORATION, *job.key))
                return
            running.episode = Episode(job, np.empty(0), obs[index].copy(), False, True, failure=f"{wrong} after reset")
        slots[index] = None

    @staticmethod
    def _act(slots: list[_Running | None], actor: PopulationActor, obs: np.ndarray, actions: np.ndarray) -> None:
        busy = [index for index, running in enumerate(slots) if running is not None]
        rows = obs if len(busy) == len(slots) else obs[busy]
        actions[busy] = actor(rows, [slots[index].job.candidate for index in busy])  # type: ignore[union-attr]
        for index in busy:
            explorer = slots[index].job.explorer  # type: ignore[union-attr]
            if explorer is not None:
                actions[index] = explorer(obs[index], actions[index])

    def _step(
        self, slots: list[_Running | None], scaled: np.ndarray, obs: np.ndarray, original: np.ndarray, recorder: Recorder
    ) -> bool:
        """One vector step; returns whether to go on."""
        buffer_actions = scaled.reshape(len(slots), *self.action_shape)
        actions = self.unscale_action(buffer_actions)
        self._guard.keep()
        new_obs, rewards, all_dones, infos = self._sound(*self.env.step(actions))
        running = np.array([slot is not None for slot in slots])
        dones = all_dones & running
        go_on = recorder.after_step({**locals(), "env": self.env}, running)
        normalizer = self.vec_normalize
        new_original = new_obs if normalizer is None else normalizer.get_original_obs()
        raw_rewards = rewards if normalizer is None else normalizer.get_original_reward()
        rewards_32 = np.asarray(raw_rewards, dtype=np.float32).tolist()  # DummyVecEnv rounds so, SubprocVecEnv does not
        for index, slot in enumerate(slots):
            if slot is None:
                continue
            slot.rewards.append(rewards_32[index])
            done = bool(dones[index])
            info = infos[index]
            last, last_original = new_obs[index], new_original[index]  # type: ignore[index]
            terminal = info.get("terminal_observation") if done else None
            if terminal is not None:
                check_shape("observations", terminal, self._obs_shape)
            wrong = what_is_wrong(last_original if terminal is None else np.asarray(terminal), slot.rewards[-1])
            cut = not done and (bool(wrong) or (slot.job.horizon is not None and len(slot.rewards) >= slot.job.horizon))
            if not (done or cut or slot.keeps_steps):
                continue
            if terminal is not None:
                last = last_original = terminal
                if normalizer is not None:
                    last_original = normalizer.unnormalize_obs(last)
            truncated = done and bool(info.get("TimeLimit.truncated", False))
            if cut:  # the rollout is abandoned here: to the buffer this is a time limit
                info = {**info, "TimeLimit.truncated": True}
            slot.transitions.append(
                Transition(
                    original[index].copy(),
                    np.array(last_original, dtype=original.dtype),
                    buffer_actions[index].copy(),
                    slot.rewards[-1],
                    done or cut,
                    info,
                )
            )
            if wrong:
                failure = f"{wrong} in step {len(slot.rewards)}"
                slot.episode = Episode(slot.job, np.array(slot.rewards), np.array(last), False, cut, failure=failure)
            elif done or cut:
                behavior = self._behavior(index, info)
                slot.episode = Episode(slot.job, np.array(slot.rewards), np.array(last), done and not truncated, cut, behavior)
        obs[...] = new_obs
        original[...] = new_original
        return go_on

    def _sound(
        self, new_obs: Any, rewards: np.ndarray, dones: np.ndarray, infos: Any
    ) -> tuple[Any, np.ndarray, np.ndarray, Any]:
        """A step as the environment gave it, with arrays that fit and without traces in what VecNormalize learns."""
        check_shape("observations", new_obs, (len(dones), *self._obs_shape))
        check_shape("rewards", rewards, (len(dones),))
        if self._guard.restore():
            normalizer = self.vec_normalize
            assert normalizer is not None
            new_obs = normalizer.normalize_obs(normalizer.get_original_obs())
            rewards = normalizer.normalize_reward(normalizer.get_original_reward())
        return new_obs, rewards, dones, infos

    def _behavior(self, index: int, info: dict[str, Any]) -> np.ndarray | None:
        if KEY in info:
            return read_behavior(info)
        if self._knows_behavior:  # cut here: the environment does not know that this was the last step
            return self.env.env_method("current_behavior", indices=[index])[0]
        return None

    @staticmethod
    def _store(queue: list[_Running], n_stored: int, recorder: Recorder, unfinished: bool = False) -> int:
        """Store jobs in order as far as they are finished; returns how many are stored."""
        while n_stored < len(queue) and (unfinished or queue[n_stored].episode is not None):
            running = queue[n_stored]
            if running.episode is None and running.transitions:  # n-step returns must not run into the next job
                last = running.transitions[-1]
                running.transitions[-1] = last._replace(done=True, info={**last.info, "TimeLimit.truncated": True})
            digest = recorder.digest
            if running.episode is not None and running.episode.failed:
                recorder.drop(running.job, running.transitions)
            elif running.transitions:  # none of a job that was stopped before its first step
                digested = running.transitions if digest is None else digest(running.job, running.transitions)
                recorder.store(running.job, digested)
            running.transitions = []
            n_stored += 1
        return n_stored
