"""What novelty search needs of a run: behaviors of episodes, and the archive of those seen before."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_erl.core.checks import check_range
from sb3_erl.envs.behavior import BEHAVIORS, Behavior, BehaviorFunction, FinalObservation, is_vector, mean_behavior
from sb3_erl.envs.behavior_wrapper import BehaviorWrapper
from sb3_erl.evolution.fitness.novelty import NoveltyArchive
from sb3_erl.evolution.fitness.returns import episode_return
from sb3_erl.evolution.novelty import AdaptiveWeight, FixedWeight, member_probabilities
from sb3_erl.rollouts.jobs import Episode, EpisodeBatch
from sb3_erl.rollouts.slot_envs import knows_method
from sb3_erl.rollouts.slot_reset import base_of

BehaviorChoice = str | type[Behavior] | BehaviorFunction
"""What may describe an episode: a key of :data:`~sb3_erl.envs.behavior.BEHAVIORS`, a class, or a function."""

FINAL_OBSERVATION = "final_observation"
"""A behavior that every environment has; in this process it is read without a wrapper."""


def check_novelty(novelty_k: Any, behavior: Any) -> None:
    """
    :param novelty_k: number of nearest neighbors, at least 1
    :param behavior: key of :data:`~sb3_erl.envs.behavior.BEHAVIORS`, a class or a function
    :raises ValueError: if one of them is out of range or unknown
    """
    check_range("novelty_k", novelty_k, 1, integer=True)
    if isinstance(behavior, str) and behavior not in BEHAVIORS:
        raise ValueError(f"behavior must be one of {list(BEHAVIORS)}, a class or a function; got {behavior!r}")


class Novelty:
    """
    Describes episodes by the behavior that the user chose, and keeps the archive of the behaviors seen so far.

    :param behavior: key of :data:`~sb3_erl.envs.behavior.BEHAVIORS`, a class, or a function of an
        :class:`~sb3_erl.envs.behavior.EpisodeTrace`
    :param behavior_kwargs: further arguments of a class
    :param observation_space: of the environment
    :param archive: behaviors seen so far
    """

    needs = frozenset({"behavior"})
    """What episodes must carry."""

    def __init__(
        self, behavior: Any, behavior_kwargs: dict[str, Any] | None, observation_space: spaces.Space, archive: NoveltyArchive
    ):
        self.behavior, self.behavior_kwargs, self.observation_space = behavior, behavior_kwargs, observation_space
        self.archive = archive

    @classmethod
    def of_model(cls, model: Any) -> Novelty:
        """
        :param model: with the arguments of novelty search as attributes; the archive that its file held is taken out of it
        :return: the part of this model
        """
        text, model.archive_state = model.archive_state, None
        archive = vars(model).pop("archive", None)  # files of the first versions hold it as a pickle
        if text is not None:
            archive = NoveltyArchive.of_text(text)
        elif archive is None:
            archive = NoveltyArchive(model.distance, model.archive_max_size)
        return cls(model.behavior, model.behavior_kwargs, model.observation_space, archive)

    def plain_state(self) -> dict[str, Any]:
        """:return: the archive as text, which a model's file can hold without a pickle"""
        return {"archive_state": self.archive.as_text()}

    def prepare(self, model: Any) -> None:
        """
        Let the environments report the behavior; to be called at the start of ``learn``.

        :param model: whose ``env`` is changed in place; the last observation travels with every episode and needs nothing
        :raises ValueError: see :func:`give_behavior`
        """
        if self.behavior != FINAL_OBSERVATION:
            give_behavior(model.env, self.behavior, self.behavior_kwargs)

    def behaviors(self, episodes: EpisodeBatch, n_candidates: int) -> list[np.ndarray]:
        """
        :param episodes: of candidates that are numbered from 0
        :param n_candidates: how many there are
        :return: one behavior per candidate, the mean over its episodes; NaN if there is none
        :raises ValueError: if an environment does not report a behavior
        """
        found: list[list[np.ndarray]] = [[] for _ in range(n_candidates)]
        for episode in episodes.episodes:
            if not episode.failed:
                found[episode.job.candidate].append(self._of_episode(episode))
        means = [mean_behavior(behaviors) if behaviors else None for behaviors in found]
        like = next((known for known in [*means, *self.archive.entries[:1]] if known is not None), np.zeros(1))
        missing = np.full_like(like, np.nan, dtype=np.float64)
        return [missing if mean is None else mean for mean in means]

    def _of_episode(self, episode: Episode) -> np.ndarray:
        if episode.behavior is not None and self.behavior != FINAL_OBSERVATION:
            return episode.behavior
        if self.behavior == FINAL_OBSERVATION or (self.behavior == "auto" and is_vector(self.observation_space)):
            return last_observation(episode)
        raise ValueError(
            f"behavior={self.behavior!r} needs environments that report it in info['bc'] of the last step of an episode; got "
            "none. Let the environment write it, or wrap it where it is made: "
            f"make_vec_env(..., wrapper_class=BehaviorWrapper). {FINAL_OBSERVATION!r} needs neither"
        )


def last_observation(episode: Episode) -> np.ndarray:
    """
    :param episode: that did not fail, of a run that needs behaviors
    :return: ``(n,)`` float64, its last observation as replay buffers store it; arrays of a Dict space in
        the order of keys
    """
    found = episode.last_observation if episode.record is None else episode.record.last
    return FinalObservation.of(found)


@dataclass(frozen=True)
class Shown:
    """
    What the episodes of the members of a meta-population say; nothing of it is kept unless their generation is finished.

    :param returns: ``(n_members,)``, means over the episodes
    :param novelty: ``(n_members,)``, with the archive as it is here
    :param archive: with the behavior of the member that moved last, at first with those of all
    :param weight: the share of returns, after the return of the member that moved last
    """

    returns: np.ndarray
    novelty: np.ndarray
    archive: NoveltyArchive
    weight: FixedWeight | AdaptiveWeight

    @classmethod
    def of(
        cls,
        episodes: EpisodeBatch,
        n_members: int,
        k: int,
        moved: int | None,
        known: Novelty,
        weight: FixedWeight | AdaptiveWeight,
    ) -> Shown:
        """
        :param episodes: of the members, which are numbered from 0
        :param n_members: how many there are
        :param k: number of nearest neighbors
        :param moved: the member that moved last, ``None`` before the first
        :param known: behaviors and archive so far; not changed
        :param weight: the share of returns so far; not changed
        :return: what the episodes say
        """
        behaviors, returns = known.behaviors(episodes, n_members), episode_return(episodes, n_members)
        archive, weight = copy.copy(known.archive), copy.copy(weight)
        archive.entries = list(archive.entries)
        archive.extend([behaviors[member] for member in (range(n_members) if moved is None else [moved])])
        if moved is not None:
            weight.update(float(returns[moved]))
        return cls(returns, archive.novelty(behaviors, k), archive, weight)

    def log(self, logger: Any) -> None:
        """
        Log the returns of the members, and with which probability each of them is drawn by its novelty.

        :param logger: of the model
        """
        logger.record("rollout/center_ep_rew_mean", float(np.nanmean(self.returns)))
        logger.record("rollout/best_member_return", float(np.nanmax(self.returns)))
        for member, probability in enumerate(member_probabilities(self.novelty)):
            logger.record(f"novelty/member_{member}_prob", float(probability))


class GivenBehavior(BehaviorWrapper):
    """That which :func:`give_behavior` puts around an environment, and may take away again."""


def give_behavior(env: VecEnv, behavior: Any, behavior_kwargs: dict[str, Any] | None) -> None:
    """
    Put each environment of a ``DummyVecEnv`` into a :class:`~sb3_erl.envs.behavior_wrapper.BehaviorWrapper`.

    :param env: changed in place, the wrapper of an earlier call is replaced; environments in other processes must have theirs
    :param behavior: see :func:`~sb3_erl.envs.behavior.make_behavior`
    :param behavior_kwargs: further arguments of a class
    :raises ValueError: if the environments are out of reach and a behavior is asked for that they do not report
    """
    inner = base_of(env)
    if isinstance(inner, DummyVecEnv):
        asked = {"behavior": behavior, "behavior_kwargs": behavior_kwargs}
        for index, single in enumerate(inner.envs):
            if isinstance(single, BehaviorWrapper) and single._saved_kwargs == asked:
                continue
            own = single.env if isinstance(single, GivenBehavior) else single
            inner.envs[index] = GivenBehavior(own, **asked)
    elif behavior not in ("auto", "info") and not knows_method(env, "current_behavior"):
        raise ValueError(
            f"behavior={behavior!r} must be measured inside the environments, which are in other processes here "
            f"({type(inner).__name__}); wrap them there: make_vec_env(..., wrapper_class=BehaviorWrapper, "
            f"wrapper_kwargs={{'behavior': ...}}), and give behavior='info'"
        )
