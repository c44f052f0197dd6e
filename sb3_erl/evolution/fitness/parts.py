"""The fitness functions that have a name: returns, energy, novelty."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sb3_erl.core.checks import check_range
from sb3_erl.envs.behavior import mean_behavior
from sb3_erl.evolution.fitness.base import Fitness, FitnessContext, WeightedSum
from sb3_erl.evolution.fitness.novelty import Distance, NoveltyArchive
from sb3_erl.evolution.fitness.returns import discounted_return, episode_return
from sb3_erl.rollouts.jobs import Episode, EpisodeBatch


class Return(Fitness):
    """Mean undiscounted return of a candidate's episodes, of raw rewards."""

    def __call__(self, episodes: EpisodeBatch, context: FitnessContext) -> np.ndarray:
        """See :meth:`Fitness.__call__`."""
        return episode_return(episodes, context.n_candidates)


class SignSum(Fitness):
    """Mean number of positive rewards minus number of negative ones."""

    def __call__(self, episodes: EpisodeBatch, context: FitnessContext) -> np.ndarray:
        """See :meth:`Fitness.__call__`."""
        return episodes.mean_per_candidate([episode.sign_sum for episode in episodes.episodes], context.n_candidates)


class _PerEpisode(Fitness):
    """Mean of one number per episode."""

    def value(self, episode: Episode, context: FitnessContext) -> float:
        raise NotImplementedError

    def __call__(self, episodes: EpisodeBatch, context: FitnessContext) -> np.ndarray:
        """See :meth:`Fitness.__call__`."""
        values = [math.nan if episode.failed else self.value(episode, context) for episode in episodes.episodes]
        return episodes.mean_per_candidate(values, context.n_candidates)


class DiscountedReturn(_PerEpisode):
    """
    Mean discounted return of a candidate's episodes.

    :param gamma: discount factor in [0, 1], ``None`` for the algorithm's
    """

    needs = frozenset({"rewards"})

    def __init__(self, gamma: float | None = None):
        if gamma is not None:
            check_range("gamma", gamma, 0, 1)
        self.gamma = gamma

    def value(self, episode: Episode, context: FitnessContext) -> float:
        """:return: ``sum_t gamma**t * rewards[t]``"""
        return discounted_return(episode.rewards, context.gamma if self.gamma is None else self.gamma)


class Energy(_PerEpisode):
    """Minus the mean sum of squared actions of an episode, over steps and components: less effort is fitter."""

    needs = frozenset({"actions"})

    def value(self, episode: Episode, context: FitnessContext) -> float:
        """:return: minus the sum of squared actions"""
        return -float(np.square(np.asarray(episode.actions, dtype=np.float64)).sum())


class Novelty(Fitness):
    """
    Mean distance of a candidate's behavior to the nearest ones in an archive and in the population.

    Lehman & Stanley (2011); Such et al. (2017), https://arxiv.org/abs/1712.06567, section 3.1. Neighbors are the archive as
    it was before this generation and the other candidates. After that, behaviors enter the archive, each with probability
    ``archive_prob``. A candidate's behavior is the mean over its episodes. The archive is the state.

    :param k: number of neighbors, at least 1
    :param distance: ``"euclidean"`` or ``"sqeuclidean"``
    :param archive_prob: probability with which a candidate's behavior enters the archive, in [0, 1]
    :param archive_max_size: entries to keep, the newest; ``None`` for all of them
    :raises ValueError: if a number is out of range or ``distance`` is unknown
    """

    needs = frozenset({"behavior"})

    def __init__(
        self,
        k: int = 10,
        distance: Distance = "euclidean",
        archive_prob: float = 1.0,
        archive_max_size: int | None = None,
    ):
        check_range("k", k, 1, integer=True)
        check_range("archive_prob", archive_prob, 0, 1)
        self.k, self.archive_prob = k, archive_prob
        self.archive = NoveltyArchive(distance, archive_max_size)

    def __call__(self, episodes: EpisodeBatch, context: FitnessContext) -> np.ndarray:
        """
        See :meth:`Fitness.__call__`.

        :raises ValueError: if an environment reports no behavior
        """
        found: list[list[np.ndarray]] = [[] for _ in range(context.n_candidates)]
        failed = {episode.job.candidate for episode in episodes.episodes if episode.failed}
        for episode in episodes.episodes:
            if episode.job.candidate not in failed:
                found[episode.job.candidate].append(behavior_of(episode))
        known = [candidate for candidate, own in enumerate(found) if own]
        behaviors = [mean_behavior(found[candidate]) for candidate in known]
        novelty = np.full(context.n_candidates, np.nan)
        novelty[known] = self.archive.novelty_among(behaviors, self.k)
        coins = context.rng.random(context.n_candidates)[known]
        self.archive.extend([behavior for behavior, coin in zip(behaviors, coins, strict=True) if coin < self.archive_prob])
        return novelty

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Fitness.state_dict`; the archive as text."""
        return {"archive": self.archive.as_text()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`Fitness.load_state_dict`; distance and largest size are those of the constructor."""
        if "archive" in state:
            saved = NoveltyArchive.of_text(state["archive"])
            self.archive.entries, self.archive.n_added = saved.entries, saved.n_added


def refuse_novelty(fitness: Fitness, model: Any) -> None:
    """
    :param fitness: of the model
    :param model: that evaluates individuals twice in a generation, while novelty compares each with what was seen once
    :raises ValueError: if the fitness is :class:`Novelty`, or a sum of which that is a part
    """
    if isinstance(fitness, Novelty):
        raise ValueError(
            f"fitness must be without 'novelty' in {type(model).__name__}, which evaluates the best of a generation a second "
            f"time; got {model.fitness_class!r}. GANS(...) is the genetic algorithm that follows novelty, NSRAES(...) mixes "
            "novelty and return"
        )
    for part in fitness.parts.values() if isinstance(fitness, WeightedSum) else ():
        refuse_novelty(part, model)


def behavior_of(episode: Episode) -> np.ndarray:
    """
    :param episode: that did not fail
    :return: the behavior that its environment reported, otherwise its last observation where that is a vector
    :raises ValueError: if there is neither
    """
    if episode.behavior is not None:
        return episode.behavior
    last = episode.last_observation if episode.record is None else episode.record.last  # before VecNormalize
    if isinstance(last, np.ndarray) and last.ndim == 1 and last.size:
        return last.astype(np.float64)
    raise ValueError(
        "env must report a behavior for fitness='novelty', in info['bc'] of the last step; got none, and the last observation "
        "is no vector. Let the environment write it, or wrap it: make_vec_env(..., wrapper_class=BehaviorWrapper)"
    )
