"""What evolution strategies and genetic algorithms share when they look for the new instead of, or beside, the good."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_erl.core.checks import check_range
from sb3_erl.engine.generation import GenerationalMixin
from sb3_erl.envs.behavior import BEHAVIORS, is_vector, mean_behavior
from sb3_erl.envs.behavior_wrapper import BehaviorWrapper
from sb3_erl.evolution.fitness.novelty import Distance, NoveltyArchive
from sb3_erl.rollouts.jobs import Episode, EpisodeBatch
from sb3_erl.runs.loading import array_to_text, text_to_array

FINAL_OBSERVATION = "final_observation"
"""A behavior that every environment has; in this process it is seen without a wrapper."""


class NoveltyMixin(GenerationalMixin):
    """
    Gives every environment a behavior and keeps the archive.

    Stands before a generational algorithm in the method resolution order.

    :param behavior: what describes an episode: key of :data:`~sb3_erl.envs.behavior.BEHAVIORS`, a class, or a function of
        an :class:`~sb3_erl.envs.behavior.EpisodeTrace`
    :param behavior_kwargs: further arguments of a class
    :param novelty_k: number of nearest neighbors
    :param distance: between behaviors, ``"euclidean"`` or ``"sqeuclidean"``
    :param archive_max_size: behaviors to keep, the newest; ``None`` for all
    """

    behavior: Any
    behavior_kwargs: dict[str, Any] | None
    novelty_k: int
    distance: Distance
    archive_max_size: int | None
    archive: NoveltyArchive
    """The behaviors seen so far; saved with the model."""
    archive_state: str | None = None
    """The archive as text, while a model is saved or loaded."""

    def _check_novelty(self) -> None:
        """:raises ValueError: if an argument is out of range or unknown"""
        check_range("novelty_k", self.novelty_k, 1, integer=True)
        if isinstance(self.behavior, str) and self.behavior not in BEHAVIORS:
            raise ValueError(f"behavior must be one of {list(BEHAVIORS)}, a class or a function; got {self.behavior!r}")
        if self.archive_state is not None:
            self.archive = NoveltyArchive.load(io.BytesIO(text_to_array(self.archive_state).tobytes()))
            self.archive_state = None
        elif not hasattr(self, "archive"):  # which files of the first versions hold as a pickle
            self.archive = NoveltyArchive(self.distance, self.archive_max_size)

    def _write_state(self) -> None:
        super()._write_state()
        file = io.BytesIO()
        self.archive.save(file)
        self.archive_state = array_to_text(np.frombuffer(file.getvalue(), dtype=np.uint8))

    def _forget_state(self) -> None:
        super()._forget_state()
        self.archive_state = None

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "archive"]

    def _make_evaluator(self) -> Any:
        assert self.env is not None
        if self.behavior != FINAL_OBSERVATION or self.evaluator != "vec":
            give_behavior(self.env, self.behavior, self.behavior_kwargs)
        return super()._make_evaluator()

    @property
    def needs(self) -> frozenset[str]:
        """Behaviors too; see :class:`~sb3_erl.rollouts.jobs.Recorder`."""
        return super().needs | {"behavior"}

    def _behaviors(self, episodes: EpisodeBatch, candidates: range) -> list[np.ndarray]:
        """
        :param episodes: among them some of each candidate
        :param candidates: their numbers
        :return: one behavior per candidate, the mean over its episodes; NaN if there is none
        :raises ValueError: if an environment does not say how an episode was
        """
        found: dict[int, list[np.ndarray]] = {candidate: [] for candidate in candidates}
        for episode in episodes.episodes:
            if episode.job.candidate in found and not episode.failed:
                found[episode.job.candidate].append(self._behavior_of(episode))
        means = {candidate: mean_behavior(behaviors) for candidate, behaviors in found.items() if behaviors}
        like = next(iter([*means.values(), *self.archive.entries[:1]]), np.zeros(1))
        nothing = np.full_like(like, np.nan, dtype=np.float64)
        return [means.get(candidate, nothing) for candidate in candidates]

    def _behavior_of(self, episode: Episode) -> np.ndarray:
        last = np.asarray(episode.last_observation, dtype=np.float64).ravel()
        if self.behavior == FINAL_OBSERVATION:
            return last
        if episode.behavior is not None:
            return episode.behavior
        if self.behavior == "auto" and is_vector(self.observation_space):
            return last
        raise ValueError(
            f"behavior={self.behavior!r} needs environments that say how an episode was, in info['bc'] of its last step; "
            f"got none from {self.env}. Let the environment write it, or wrap it where it is made: "
            f"make_vec_env(..., wrapper_class=BehaviorWrapper). {FINAL_OBSERVATION!r} needs neither with evaluator='vec'"
        )


def give_behavior(env: VecEnv, behavior: Any, behavior_kwargs: dict[str, Any] | None) -> None:
    """
    Put each environment of a ``DummyVecEnv`` into a :class:`~sb3_erl.envs.behavior_wrapper.BehaviorWrapper`.

    :param env: changed in place; environments in other processes must have the wrapper already
    :param behavior: see :func:`~sb3_erl.envs.behavior.make_behavior`
    :param behavior_kwargs: further arguments of a class
    :raises ValueError: if the environments are out of reach and a behavior is asked for that they do not report
    """
    inner = env.unwrapped
    if isinstance(inner, DummyVecEnv):
        for index, single in enumerate(inner.envs):
            asked = {"behavior": behavior, "behavior_kwargs": behavior_kwargs}
            if not (isinstance(single, BehaviorWrapper) and single._saved_kwargs == asked):
                inner.envs[index] = BehaviorWrapper(single, **asked)
    elif behavior not in ("auto", "info") and not env.has_attr("current_behavior"):
        raise ValueError(
            f"behavior={behavior!r} must be measured inside the environments, which are in other processes here "
            f"({type(inner).__name__}); wrap them there: make_vec_env(..., wrapper_class=BehaviorWrapper, "
            f"wrapper_kwargs={{'behavior': ...}}), and give behavior='info'"
        )
