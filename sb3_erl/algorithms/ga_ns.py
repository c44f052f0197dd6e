"""GA-NS: Deep GA that selects what is new."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_erl.algorithms.deep_ga import DeepGA
from sb3_erl.common.arguments import known_to
from sb3_erl.common.checks import check_range
from sb3_erl.common.novelty_mixin import NoveltyMixin
from sb3_erl.common.parameters import write_parameters
from sb3_erl.common.seeding import Stream
from sb3_erl.evaluation.choice import EvaluatorChoice
from sb3_erl.evolution.novelty import NoveltySelection, select_by_novelty
from sb3_erl.evolution.seed_genome import ELITE
from sb3_erl.fitness.behaviour import Behavior as BehaviorClass
from sb3_erl.fitness.behaviour import BehaviorFunction
from sb3_erl.fitness.novelty import Distance


class GANS(NoveltyMixin, DeepGA):
    """
    A genetic algorithm whose fitness is novelty (GA-NS): returns play no part in evolution.

    Such et al. (2017), https://arxiv.org/abs/1712.06567, section 3.1 and the Image Hard Maze; the authors' code of this
    variant is not public. Novelty is the mean distance of an individual's behaviour to the nearest ones in the archive and
    in the population. The most novel individual is the elite, whose behaviour is compared anew in the next generation. The
    best return that any individual ever had decides what is deployed; :meth:`most_novel` gives the elite.

    Parameters that are not listed here are those of :class:`~sb3_erl.algorithms.deep_ga.DeepGA`.

    :param policy: ``"MlpPolicy"`` (256, 256 tanh), ``"LinearPolicy"``, ``"CnnPolicy"`` or a policy class; or, without
        ``env``, the environment or its id
    :param env: environment, vectorised or not, its id, or ``None`` for loading
    :param pop_size: children per generation
    :param truncation: how many of the most novel, the elite among them, become parents
    :param novelty_k: number of nearest neighbours
    :param archive_prob: probability with which an individual enters the archive
    :param behavior: what describes an episode: key of :data:`~sb3_erl.fitness.behaviour.BEHAVIORS`, a class, a function of
        an :class:`~sb3_erl.fitness.behaviour.EpisodeTrace`, or ``"final_observation"``
    :param behavior_kwargs: further arguments of a class
    :param distance: ``"euclidean"`` or ``"sqeuclidean"``
    :param archive_max_size: entries to keep, the newest; ``None`` for all
    :raises ValueError: if an argument is out of range or unknown, or the environment's spaces are not supported
    """

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 0.0,
        pop_size: int = 1000,
        truncation: int = 20,
        sigma: float | Schedule = 0.002,
        novelty_k: int = 25,
        archive_prob: float = 0.01,
        behavior: str | type[BehaviorClass] | BehaviorFunction = "auto",
        behavior_kwargs: dict[str, Any] | None = None,
        distance: Distance = "sqeuclidean",
        archive_max_size: int | None = None,
        init: Literal["fan_in", "unit_norm"] = "fan_in",
        init_output_std: float = 0.1,
        episode_cutoff: int | None = None,
        n_eval_episodes: int = 1,
        noise_table_size: int = 25_000_000,
        noise_seed: int = 123,
        evaluator: EvaluatorChoice = "vec",
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        self.novelty_k, self.archive_prob, self.archive_max_size = novelty_k, archive_prob, archive_max_size
        self.behavior, self.behavior_kwargs, self.distance = behavior, behavior_kwargs, distance
        self.best_return = -np.inf
        """The best mean return of an individual so far, which is that of the deployed one."""
        self.elite_behavior: np.ndarray | None = None
        n_finalists = 1  # the elite is known by its behaviour and needs no further episodes
        super().__init__(**known_to(super().__init__, locals()))

    def _setup_model(self) -> None:
        check_range("archive_prob", self.archive_prob, 0, 1)
        check_range("truncation", self.truncation, 1, integer=True)
        self._check_novelty()
        super()._setup_model()

    @property
    def _n_jobs(self) -> int:
        return self.pop_size * self.n_eval_episodes

    def _generation(self, callback: BaseCallback) -> bool:
        """Ask -> evaluate -> measure novelty -> select -> archive -> deploy -> log."""
        if not self._collect_reference(callback):
            return False
        rng = self._rng(Stream.EVOLUTION)
        self.evolver.sigma = self._sigma_now
        candidates = self.evolver.ask(rng)
        episodes = self._episodes(candidates, 0, self.n_eval_episodes, callback)
        if episodes is None:
            return False
        behaviors = self._behaviors(episodes, range(len(candidates)))
        selection = self._select([*behaviors, *([] if self.elite_behavior is None else [self.elite_behavior])])
        chosen = [selection.elite, *selection.parents.tolist()]
        numbers = [ELITE if index == len(candidates) else index for index in chosen]
        if selection.elite < len(candidates):
            self.elite_behavior = behaviors[selection.elite]
        returns = self._fitness(candidates, episodes)
        self._deploy_best(candidates, returns)
        self.evolver.choose(numbers, selection.novelty[: len(candidates)], float(selection.novelty[selection.elite]))
        self._log_novelty(returns, selection)
        return True

    def _select(self, behaviors: list[np.ndarray]) -> NoveltySelection:
        coins = self._rng(Stream.FITNESS).random(len(behaviors))
        rule: dict[str, Any] = {"k": self.novelty_k, "n_parents": self.truncation, "archive_prob": self.archive_prob}
        return select_by_novelty(self.archive, behaviors, coins, **rule)

    def _deploy_best(self, candidates: th.Tensor, returns: np.ndarray) -> None:
        best = int(np.nanargmax(np.where(np.isnan(returns), -np.inf, returns)))
        if returns[best] > self.best_return:
            self.best_return = float(returns[best])
            write_parameters(candidates[best], self.policy.deployed)

    def most_novel(self) -> BasePolicy:
        """
        :return: a policy of its own with the parameters of the most novel individual of the last generation; has ``predict``
        :raises ValueError: before the first generation
        """
        elite = self.evolver.elite
        if elite is None:
            raise ValueError("learn() must have finished a generation before there is a most novel individual; got none")
        agent = self.policy.make_actor()
        write_parameters(self.evolver.rebuild(elite), agent)
        agent.set_training_mode(False)
        return agent

    def _log_novelty(self, returns: np.ndarray, selection: NoveltySelection) -> None:
        self.logger.record("time/generations", self.n_generations + 1, exclude="tensorboard")
        self._log_population(returns)
        self.logger.record("rollout/best_return", self.best_return)
        self.logger.record("novelty/pop_mean", float(np.nanmean(selection.novelty)))
        self.logger.record("novelty/elite", float(selection.novelty[selection.elite]))
        self.logger.record("novelty/archive_size", len(self.archive))
        self.logger.record("train/sigma", self.evolver.sigma)
