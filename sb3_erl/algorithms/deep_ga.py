"""Deep GA: mutants of the best, or of the most novel, stored as the seeds of their mutations; random search has no parents."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import FloatSchedule

from sb3_erl.core.arguments import known_to
from sb3_erl.core.checks import check_range
from sb3_erl.core.noise_table import NoiseTable
from sb3_erl.core.parameters import ParameterLayout, write_parameters
from sb3_erl.core.seeding import Stream
from sb3_erl.engine.novelty import NoveltyMixin
from sb3_erl.engine.reference_batch import ReferenceBatchMixin
from sb3_erl.envs.behavior import Behavior as BehaviorClass
from sb3_erl.envs.behavior import BehaviorFunction
from sb3_erl.evolution.base import Evolver
from sb3_erl.evolution.fitness.novelty import Distance
from sb3_erl.evolution.novelty import NoveltySelection, select_by_novelty
from sb3_erl.evolution.seed_ga import ELITE, SeedGA
from sb3_erl.policies.es import ESLinearPolicy, ESPolicy
from sb3_erl.policies.es_pixels import GAPixelPolicy
from sb3_erl.remote.choice import EvaluatorChoice
from sb3_erl.remote.recipes import RebuiltActor, Renumbered, actor_factory
from sb3_erl.rollouts.jobs import EpisodeBatch, Job, PopulationActor
from sb3_erl.runs.loading import array_to_text, text_to_array


class DeepGA(ReferenceBatchMixin):
    """
    A genetic algorithm with mutation and truncation selection only, whose genomes are lists of seeds.

    Such et al. (2017), https://arxiv.org/abs/1712.06567; authors' code: uber-research/deep-neuroevolution,
    ``gpu_implementation/ga.py``. Each generation mutates parents that are picked uniformly among the best; the best of a
    generation are evaluated again, beside the elite, and the best of these is the elite, which is deployed. Actions may be
    continuous or discrete.

    Differences from the authors' code: the noise table has 25 million numbers (theirs 250 million), everything follows from
    the seed of the run, and continuous actions are clipped to the environment's bounds.

    What is saved are genomes. They mean something only together with the noise table and the network they were made for, so a
    model cannot be loaded with another ``noise_seed`` or ``noise_table_size``.

    :param policy: ``"MlpPolicy"`` (256, 256 tanh), ``"LinearPolicy"``, ``"CnnPolicy"`` (see
        :class:`~sb3_erl.policies.es_pixels.GAPixelPolicy`) or a policy class; or, without ``env``, the environment or
        its id
    :param env: environment, vectorized or not, its id, or ``None`` for loading
    :param learning_rate: SB3's third argument; not used
    :param pop_size: children per generation
    :param truncation: how many of the best become parents
    :param sigma: standard deviation of a mutation, a float or a schedule. The published 0.002 is for millions of parameters;
        networks of thousands need 0.02 to 0.1
    :param n_finalists: candidates for the elite, the present one among them
    :param n_finalist_episodes: further episodes of each of them
    :param init: see :class:`~sb3_erl.evolution.seed_genome.Initialization`
    :param init_output_std: see :class:`~sb3_erl.evolution.seed_genome.Initialization`
    :param episode_cutoff: steps after which an episode ends, ``None`` for the environment's own limit
    :param n_eval_episodes: episodes per child
    :param noise_table_size: see :class:`~sb3_erl.core.noise_table.NoiseTable`; 4 bytes each
    :param noise_seed: see :class:`~sb3_erl.core.noise_table.NoiseTable`
    :raises ValueError: if an argument is out of range or unknown, or the environment's spaces are not supported
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ESPolicy,
        "LinearPolicy": ESLinearPolicy,
        "CnnPolicy": GAPixelPolicy,
    }
    takes_discrete_actions = True
    begins_with_actors = False
    evolver: SeedGA
    truncation: int

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 0.0,
        pop_size: int = 1000,
        truncation: int = 20,
        sigma: float | Schedule = 0.002,
        n_finalists: int = 10,
        n_finalist_episodes: int = 30,
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
        self.truncation, self.sigma = truncation, sigma
        self.n_finalists, self.n_finalist_episodes = n_finalists, n_finalist_episodes
        self.init, self.init_output_std, self.episode_cutoff = init, init_output_std, episode_cutoff
        self.noise_table_size, self.noise_seed = noise_table_size, noise_seed
        self.made_for: list[Any] | None = None
        """Noise table and shapes that the genomes were made for."""
        super().__init__(**known_to(super().__init__, locals()))

    # ---------------------------------------------------------------- set-up

    def _setup_model(self) -> None:
        check_range("n_finalist_episodes", self.n_finalist_episodes, 1, integer=True)
        if self.episode_cutoff is not None:
            check_range("episode_cutoff", self.episode_cutoff, 1, integer=True)
        given = self.policy_kwargs
        self.policy_kwargs = {"standardize": False, **given}  # moving statistics would change what old genomes mean
        super()._setup_model()
        self.policy_kwargs = given

    def _make_evolver(self, candidates: th.Tensor, layout: ParameterLayout) -> Evolver:
        shapes = [list(shape) for shape in layout.shapes]
        made_for = [self.noise_table_size, self.noise_seed, self.init, self.init_output_std, shapes]
        if self.made_for is not None and self.made_for != made_for:
            old, new = next(pair for pair in zip(self.made_for, made_for, strict=True) if pair[0] != pair[1])
            raise ValueError(
                "noise_table_size, noise_seed, init, init_output_std and the network must be those the genomes were saved "
                f"with; got {new} instead of {old}. Load without changing them, or start a new model"
            )
        self.made_for = made_for
        table, sizes = NoiseTable(self.noise_table_size, self.noise_seed), (self.pop_size, self.truncation)
        return SeedGA(layout, *sizes, self._sigma_now, self.n_finalists, self.init, self.init_output_std, table)

    @property
    def _n_jobs(self) -> int:
        return self.pop_size * self.n_eval_episodes + self.n_finalists * self.n_finalist_episodes

    @property
    def _sigma_now(self) -> float:
        return float(FloatSchedule(self.sigma)(self._current_progress_remaining))

    # ---------------------------------------------------------------- the generation: ask, evaluate, evaluate again, tell

    def _generation(self, callback: BaseCallback) -> bool:
        """Ask -> evaluate -> evaluate the best again -> tell -> deploy -> log; see :meth:`GenerationalMixin._generation`."""
        if not self._collect_reference(callback):
            return False
        rng = self._rng(Stream.EVOLUTION)
        self.evolver.sigma = self._sigma_now
        candidates = self.evolver.ask(rng)
        first = self._episodes(candidates, 0, self.n_eval_episodes, callback, is_last=False)
        if first is None:
            return False
        fitness = self._fitness(candidates, first)
        finalists = self.evolver.finalists(fitness)
        again = self._episodes(finalists, len(candidates), self.n_finalist_episodes, callback, is_first=False)
        if again is None:
            return False
        totals = [episode.total_reward for episode in again.episodes]
        validation = again.mean_per_candidate(totals, len(candidates) + len(finalists))[len(candidates) :]
        self.evolver.tell(candidates, fitness, rng, validation)
        elite = self.evolver.elite
        assert elite is not None
        write_parameters(self.evolver.rebuild(elite), self.policy.deployed)
        self._log_generation(fitness, validation)
        return True

    def _episodes(
        self, vectors: th.Tensor, first: int, n_episodes: int, callback: BaseCallback, **phase: bool
    ) -> EpisodeBatch | None:
        """Episodes of individuals whose numbers within the generation begin with ``first``."""
        jobs = [Job(first + i, k, self.episode_cutoff) for i in range(len(vectors)) for k in range(n_episodes)]

        def all_together() -> PopulationActor:
            return Renumbered(self._population_actor(vectors), first)

        source = self.evolver.source_of(vectors, first)
        actor = all_together() if source is None else RebuiltActor(source, actor_factory(self.policy.deployed), all_together)
        return self._evaluate(jobs, actor, callback, **phase)

    def _log_generation(self, fitness: np.ndarray, validation: np.ndarray) -> None:
        elite, footprint = self.evolver.elite, self.evolver.footprint
        assert elite is not None
        self.logger.record("time/generations", self.n_generations + 1, exclude="tensorboard")
        self._log_population(fitness)
        self.logger.record("rollout/finalist_ep_rew_mean", float(np.nanmean(validation)))
        self.logger.record("population/elite_return", float(np.nanmax(validation)))
        self.logger.record("population/elite_genome_length", len(elite.offsets))
        self.logger.record("population/parameters", footprint.n_params, exclude="tensorboard")
        self.logger.record("population/bytes_per_genome", footprint.genome_bytes, exclude="tensorboard")
        self.logger.record("train/sigma", self.evolver.sigma)


class RandomSearch(DeepGA):
    """
    Individuals without parents, and an elite that has to prove itself: :class:`DeepGA` with a truncation of 0.

    The baseline of Such et al. (2017), https://arxiv.org/abs/1712.06567, section 4. Parameters that are not listed here are
    those of :class:`DeepGA`.

    :param policy: policy alias or class; or, without ``env``, the environment or its id
    :param env: environment, vectorized or not, its id, or ``None`` for loading
    :param pop_size: individuals per generation
    :raises ValueError: if an argument is out of range or unknown, or the environment's spaces are not supported
    """

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 0.0,
        pop_size: int = 1000,
        n_finalists: int = 10,
        n_finalist_episodes: int = 30,
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
        truncation = 0
        super().__init__(**known_to(super().__init__, locals()))


class GANS(NoveltyMixin, DeepGA):
    """
    A genetic algorithm whose fitness is novelty (GA-NS): returns play no part in evolution.

    Such et al. (2017), https://arxiv.org/abs/1712.06567, section 3.1 and the Image Hard Maze; the authors' code of this
    variant is not public. Novelty is the mean distance of an individual's behavior to the nearest ones in the archive and
    in the population. The most novel individual is the elite, whose behavior is compared anew in the next generation. The
    best return that any individual ever had decides what is deployed; :meth:`most_novel` gives the elite.

    Parameters that are not listed here are those of :class:`DeepGA`, and of
    :class:`~sb3_erl.engine.novelty.NoveltyMixin`: what describes an episode, and how descriptions are compared.

    :param truncation: how many of the most novel, the elite among them, become parents
    :param archive_prob: probability with which an individual enters the archive
    :raises ValueError: if an argument is out of range or unknown, or ``env`` does not fit
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
        n_finalists = 1  # the elite is known by its behavior and needs no further episodes
        super().__init__(**known_to(super().__init__, locals()))

    def _setup_model(self) -> None:
        check_range("archive_prob", self.archive_prob, 0, 1)
        check_range("truncation", self.truncation, 1, integer=True)
        self._check_novelty()
        if self.elite_state is not None:
            self.elite_behavior, self.elite_state = text_to_array(self.elite_state), None
        super()._setup_model()

    elite_state: str | None = None
    """The elite's behavior as text, while a model is saved or loaded."""

    def _write_state(self) -> None:
        super()._write_state()
        self.elite_state = None if self.elite_behavior is None else array_to_text(self.elite_behavior)

    def _forget_state(self) -> None:
        super()._forget_state()
        self.elite_state = None

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "elite_behavior"]

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
