"""Steps of a member as its population gets to know them, and episodes by which it is scored."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

KEPT = ("episode", "is_success", "TimeLimit.truncated")
"""What is kept of the infos, at the end of an episode."""


@dataclass
class Steps:
    """
    What members report of their steps, one entry per vector step; it travels from workers, so it is small.

    :param counts: by how much ``num_timesteps`` grew
    :param rewards: ``(n_envs,)`` each, as the member saw them; ``None`` where an algorithm does not tell
    :param dones: ``(n_envs,)`` each, or ``None``
    :param infos: by (step, environment), of steps that end an episode
    :param n_training: how many of the steps were training; the others are episodes of an evaluation
    """

    counts: list[int] = field(default_factory=list)
    rewards: list[np.ndarray | None] = field(default_factory=list)
    dones: list[np.ndarray | None] = field(default_factory=list)
    infos: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)
    n_training: int = 0

    def __len__(self) -> int:
        return len(self.counts)

    def add(self, count: int, rewards: Any = None, dones: Any = None, infos: Any = ()) -> None:
        """
        :param count: by how much ``num_timesteps`` grew
        :param rewards: ``(n_envs,)``
        :param dones: ``(n_envs,)``
        :param infos: one per environment
        """
        self.rewards.append(None if rewards is None else np.array(rewards, dtype=np.float32))
        self.dones.append(None if dones is None else np.array(dones, dtype=bool))
        for index, info in enumerate(infos):
            kept = {key: info[key] for key in KEPT if key in info}
            if kept:
                self.infos[len(self.counts), index] = kept
        self.counts.append(int(count))

    def variables(self, step: int, n_envs: int) -> dict[str, Any]:
        """
        :param step: number of a step
        :param n_envs: of the environments
        :return: what callbacks find in their ``locals``; of other things that SB3 has there, nothing is kept
        """
        rewards, dones = self.rewards[step], self.dones[step]
        return {
            "rewards": np.zeros(n_envs, dtype=np.float32) if rewards is None else rewards,
            "dones": np.zeros(n_envs, dtype=bool) if dones is None else dones,
            "infos": [self.infos.get((step, index), {}) for index in range(n_envs)],
            "is_evaluation": step >= self.n_training,
        }


class StepRecorder(BaseCallback):
    """
    Notes the steps of a member while it trains.

    :param steps: gets them
    """

    def __init__(self, steps: Steps):
        super().__init__()
        self._steps = steps

    def _on_training_start(self) -> None:
        self._seen = self.model.num_timesteps

    def _on_step(self) -> bool:
        count, self._seen = self.model.num_timesteps - self._seen, self.model.num_timesteps
        found = self.locals
        infos, dones = found.get("infos"), found.get("dones")
        is_plain = isinstance(infos, list | tuple) and isinstance(dones, np.ndarray) and len(infos) == len(dones)
        if is_plain:
            self._steps.add(count, found.get("rewards"), dones, infos)
        else:
            self._steps.add(count)
        self._steps.n_training += 1
        return True


def play_episodes(model: Any, env: VecEnv, n_episodes: int, seed: int, steps: Steps | None = None) -> list[float]:
    """
    Episodes of a member without exploration noise and without learning.

    Episodes are dealt to the environments in advance, so that short ones are not counted more often; an environment that has
    played its share goes on unseen, and its steps are not counted.

    :param model: with ``predict``
    :param env: begins new episodes; statistics of a ``VecNormalize`` are used and not changed
    :param n_episodes: how many
    :param seed: of the environments
    :param steps: gets the steps; ``None`` for nobody
    :return: undiscounted returns in the rewards of the environment itself
    """
    from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported

    normalizer = unwrap_vec_normalize(env)
    was_training = False if normalizer is None else normalizer.training
    if normalizer is not None:
        normalizer.training = False
    needs_masks = "action_masks" in inspect.signature(model.predict).parameters and is_masking_supported(env)
    n_envs = env.num_envs
    targets = np.array([(n_episodes + index) // n_envs for index in range(n_envs)])
    counts, totals, returns = np.zeros(n_envs, dtype=int), np.zeros(n_envs), []
    try:
        env.seed(seed)
        observations: Any = env.reset()
        states, starts = None, np.ones(n_envs, dtype=bool)
        while (counts < targets).any():
            masks = {"action_masks": get_action_masks(env)} if needs_masks else {}
            actions, states = model.predict(observations, state=states, episode_start=starts, deterministic=True, **masks)
            observations, rewards, dones, infos = env.step(actions)
            plays = counts < targets
            raw = rewards if normalizer is None else normalizer.get_original_reward()
            totals, starts = totals + raw, dones
            if steps is not None:
                shown = [info if plays[index] else {} for index, info in enumerate(infos)]
                steps.add(int(plays.sum()), np.where(plays, rewards, 0.0), dones & plays, shown)
            for index in np.flatnonzero(dones):
                if plays[index]:
                    returns.append(float(totals[index]))
                    counts[index] += 1
                totals[index] = 0.0
    finally:
        if normalizer is not None:
            normalizer.training = was_training
    return returns
