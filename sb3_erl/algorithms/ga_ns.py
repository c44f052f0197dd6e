"""GA-NS: Deep GA whose fitness is novelty."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_erl.algorithms.deep_ga import DeepGA
from sb3_erl.core.action_spaces import in_space
from sb3_erl.core.arguments import inherits_arguments
from sb3_erl.core.array_text import array_to_text, text_to_array
from sb3_erl.core.checks import check_range
from sb3_erl.core.seeding import Stream
from sb3_erl.engine.generation import Generation, Verb, log_fitness
from sb3_erl.evolution.base import best_index
from sb3_erl.evolution.fitness.behaviors import BehaviorChoice, Novelty, check_novelty
from sb3_erl.evolution.fitness.novelty import Distance, NoveltyArchive
from sb3_erl.evolution.novelty import select_by_novelty
from sb3_erl.evolution.seed_ga import ELITE


class GANS(DeepGA):
    """
    A genetic algorithm whose fitness is novelty (GA-NS): returns play no part in evolution.

    For tasks whose reward leads into a dead end, with any actions: ``GANS("HardMaze-v0", pop_size=50).learn(2_000_000)``.

    Such et al. (2017), https://arxiv.org/abs/1712.06567, section 3.1 and the Image Hard Maze; the authors' code of this
    variant is not public. Novelty is the mean distance of an individual's behavior to the nearest ones in the archive and
    in the population. The most novel individual is the elite, whose behavior is compared anew in the next generation. The
    best return that any individual ever had decides what is deployed; :meth:`most_novel` gives the elite.

    Parameters that are not listed here are those of :class:`~sb3_erl.algorithms.deep_ga.DeepGA`.

    :param truncation: how many of the most novel, the elite among them, become parents
    :param novelty_k: number of nearest neighbors
    :param behavior: what describes an episode, see :class:`~sb3_erl.evolution.fitness.behaviors.Novelty`; of an Atari game
        ``"auto"`` takes the memory after the last step (``"final_memory"``), as the authors' genetic algorithm does, where it
        is measured in this process
    :param behavior_kwargs: further arguments of a class of behaviors
    :param distance: between behaviors, ``"euclidean"`` or ``"sqeuclidean"``
    :param archive_max_size: behaviors to keep, the newest; ``None`` for all
    :param archive_prob: probability with which an individual enters the archive
    :raises ValueError: if an argument is out of range or unknown, or ``env`` does not fit
    """

    generation_order: ClassVar[tuple[Verb, ...]] = ("collect_reference", "ask", "evaluate", "score", "tell", "deploy", "log")
    episode_needs = Novelty.needs

    @inherits_arguments("fitness", "n_finalists", "n_finalist_episodes")
    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 0.0,
        novelty_k: int = 25,
        archive_prob: float = 0.01,
        behavior: BehaviorChoice = "auto",
        behavior_kwargs: dict[str, Any] | None = None,
        distance: Distance = "sqeuclidean",
        archive_max_size: int | None = None,
        **kwargs: Any,
    ):
        self.novelty_k, self.archive_prob, self.archive_max_size = novelty_k, archive_prob, archive_max_size
        self.behavior, self.behavior_kwargs, self.distance = behavior, behavior_kwargs, distance
        self.best_return = -np.inf
        """The best mean return of an individual so far, which is that of the deployed one."""
        self.elite_behavior: np.ndarray | None = None
        self.archive_state: str | None = None
        self.elite_state: str | None = None
        finalists: dict[str, Any] = {"n_finalists": 1}  # the elite is known by its behavior and needs no further episodes
        super().__init__(policy, env, learning_rate, **finalists, **kwargs)

    # ---------------------------------------------------------------- set-up

    def _check_arguments(self) -> None:
        check_range("archive_prob", self.archive_prob, 0, 1)
        check_novelty(self.novelty_k, self.behavior)
        super()._check_arguments()
        check_range("truncation", self._truncation, 1, integer=True)

    def _setup_model(self) -> None:
        super()._setup_model()
        self.novelty = Novelty.of_model(self)
        if self.elite_state is not None:
            self.elite_behavior, self.elite_state = text_to_array(self.elite_state), None
        known = [*self.archive.entries[:1], *([] if self.elite_behavior is None else [self.elite_behavior])]
        if self.behavior == "auto" and all(behavior.ndim == 1 for behavior in known):  # older files have that of all steps
            self.novelty.behavior_kwargs = {"memory": "final_memory", **(self.behavior_kwargs or {})}

    @property
    def archive(self) -> NoveltyArchive:
        """The behaviors seen so far; saved with the model."""
        return self.novelty.archive

    @property
    def n_rollouts(self) -> int:
        """See :attr:`EvolutionaryAlgorithm.n_rollouts`."""
        return self.pop_size * self.n_eval_episodes

    def _train_loop(self, *arguments: Any) -> None:
        self.novelty.prepare(self)
        super()._train_loop(*arguments)

    # ---------------------------------------------------------------- the generation

    def _evaluate(self, generation: Generation) -> bool:
        generation.episodes = self._episodes(generation, generation.asked, 0, self.n_eval_episodes)
        return generation.episodes is not None

    def _tell(self, generation: Generation) -> None:
        """Select elite and parents by novelty, and add to the archive."""
        n = len(generation.asked)
        behaviors = self.novelty.behaviors(generation.evaluated, n)
        everyone = [*behaviors, *([] if self.elite_behavior is None else [self.elite_behavior])]
        coins = self.run.rng(Stream.FITNESS).random(len(everyone))
        rule: dict[str, Any] = {"k": self.novelty_k, "n_parents": self._truncation, "archive_prob": self.archive_prob}
        selection = self._selection = select_by_novelty(self.archive, everyone, coins, **rule)
        numbers = [ELITE if index == n else index for index in [selection.elite, *selection.parents.tolist()]]
        if selection.elite < n:
            self.elite_behavior = behaviors[selection.elite]
        self._genomes.choose(numbers, selection.novelty[:n], float(selection.novelty[selection.elite]))

    def _deploy(self, generation: Generation) -> None:
        """The best of this generation, if its return is better than all before."""
        assert generation.fitness is not None
        best = best_index(generation.fitness)
        if generation.fitness[best] > self.best_return:
            self.best_return = float(generation.fitness[best])
            self.population.representation.write(generation.asked[best], self.policy.deployed)

    def most_novel(self) -> BasePolicy:
        """
        :return: a policy of its own with the parameters of the most novel individual of the last generation; has ``predict``
        :raises ValueError: before the first generation
        """
        elite = self._genomes.elite
        if elite is None:
            raise ValueError("learn() must have finished a generation before there is a most novel individual; got none")
        return in_space(self.population.representation.agent(self._genomes.rebuild(elite)))

    def _log(self, generation: Generation) -> None:
        assert generation.fitness is not None
        novelty, elite = self._selection.novelty, self._selection.elite
        self.logger.record("time/generations", generation.number, exclude="tensorboard")
        log_fitness(self.logger, generation.fitness)
        self.logger.record("rollout/best_return", self.best_return)
        self.logger.record("novelty/pop_mean", float(np.nanmean(novelty)))
        self.logger.record("novelty/elite", float(novelty[elite]))
        self.logger.record("novelty/archive_size", len(self.archive))
        self.logger.record("train/sigma", self._genomes.sigma)

    # ---------------------------------------------------------------- saving

    def _plain_state(self) -> dict[str, Any]:
        elite = None if self.elite_behavior is None else array_to_text(self.elite_behavior)
        return {**super()._plain_state(), **self.novelty.plain_state(), "elite_state": elite}

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "novelty", "elite_behavior", "_selection"]
