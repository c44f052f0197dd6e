"""Deep GA: mutants of the best, stored as the seeds of their mutations; random search has no parents."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import FloatSchedule

from sb3_erl.core.arguments import inherits_arguments
from sb3_erl.core.checks import check_range
from sb3_erl.core.noise_table import NoiseTable
from sb3_erl.engine import generation as verbs
from sb3_erl.engine.generation import Generation, Verb
from sb3_erl.engine.population import Champion, Population
from sb3_erl.engine.pure_evolution import EvolutionaryAlgorithm
from sb3_erl.engine.reference_batch import collect_reference
from sb3_erl.engine.representation import WholeNetworks
from sb3_erl.envs.normalization import warn_of_moving_statistics
from sb3_erl.evolution.base import best_index
from sb3_erl.evolution.fitness.parts import refuse_novelty
from sb3_erl.evolution.fitness.returns import episode_return
from sb3_erl.evolution.seed_ga import SeedGA
from sb3_erl.policies.es_pixels import GA_POLICIES
from sb3_erl.remote.recipes import RebuiltActor, Renumbered, actor_factory
from sb3_erl.rollouts.jobs import EpisodeBatch, Job, PopulationActor


class DeepGA(EvolutionaryAlgorithm):
    """
    A genetic algorithm with mutation and truncation selection only, whose genomes are lists of seeds.

    Without gradients, for any actions and large networks: ``DeepGA("CartPole-v1", pop_size=100).learn(200_000)``.

    Such et al. (2017), https://arxiv.org/abs/1712.06567; authors' code: uber-research/deep-neuroevolution,
    ``gpu_implementation/ga.py``. Each generation mutates parents that are picked uniformly among the best; the best of a
    generation are evaluated again, beside the elite, and the best of these is the elite, which is deployed. Actions may be
    continuous or discrete.

    Differences from the authors' code: the noise table has 25 million numbers (theirs 250 million), everything follows from
    the seed of the run, and continuous actions are clipped to the environment's bounds.

    What is saved are genomes. They mean something only with the noise table and the network they were made for, so a model
    cannot be loaded with another ``noise_seed`` or ``noise_table_size``, and a ``VecNormalize`` that is still learning
    statistics of observations is warned of.

    Parameters that are not listed here are those of :class:`~sb3_erl.engine.pure_evolution.EvolutionaryAlgorithm`.

    :param policy: ``"MlpPolicy"`` (256, 256 tanh), ``"LinearPolicy"``, ``"CnnPolicy"`` (see
        :class:`~sb3_erl.policies.es_pixels.GAPixelPolicy`) or a policy class; or, without ``env``, the environment or
        its id
    :param env: environment, vectorized or not, its id, or ``None`` for loading
    :param learning_rate: SB3's third argument; not used
    :param pop_size: children per generation
    :param truncation: how many of the best become parents; ``None`` for the published 20, or half of a smaller population
    :param sigma: standard deviation of a mutation, a float or a schedule. The published 0.002 is for millions of parameters;
        networks of thousands need 0.02 to 0.1
    :param n_finalists: candidates for the elite, the present one among them; ``None`` for the published 10, or all of fewer
    :param n_finalist_episodes: further episodes of each of them
    :param init: see :class:`~sb3_erl.evolution.seed_genome.Initialization`
    :param init_output_std: see :class:`~sb3_erl.evolution.seed_genome.Initialization`
    :param episode_cutoff: steps after which an episode ends, ``None`` for the environment's own limit
    :param noise_table_size: see :meth:`~sb3_erl.core.noise_table.NoiseTable.for_network`; 4 bytes each
    :param noise_seed: see :class:`~sb3_erl.core.noise_table.NoiseTable`
    :raises ValueError: if an argument is out of range or unknown, the environment's spaces are not supported, or the fitness
        contains novelty, for which there is :class:`~sb3_erl.algorithms.ga_ns.GANS`
    """

    policy_aliases = GA_POLICIES
    generation_order: ClassVar[tuple[Verb, ...]] = (
        "collect_reference", "ask", "evaluate", "score", "revalidate", "tell", "deploy", "log",
    )  # fmt: skip

    @inherits_arguments("evolver", "evolver_kwargs", pop_size=1000)
    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 0.0,
        truncation: int | None = None,
        sigma: float | Schedule = 0.002,
        n_finalists: int | None = None,
        n_finalist_episodes: int = 30,
        init: Literal["fan_in", "unit_norm"] = "fan_in",
        init_output_std: float = 0.1,
        episode_cutoff: int | None = None,
        noise_table_size: int | None = None,
        noise_seed: int = 123,
        **kwargs: Any,
    ):
        self.truncation, self.sigma = truncation, sigma
        self.n_finalists, self.n_finalist_episodes = n_finalists, n_finalist_episodes
        self.init, self.init_output_std, self.episode_cutoff = init, init_output_std, episode_cutoff
        self.noise_table_size, self.noise_seed = noise_table_size, noise_seed
        self.made_for: list[Any] | None = None
        """Noise table and shapes that the genomes were made for."""
        super().__init__(policy, env, learning_rate, evolver="sb3_erl.evolution.seed_ga:SeedGA", **kwargs)
        if kwargs.get("_init_setup_model", True):  # a file of an earlier version may have it
            refuse_novelty(self.fitness, self)

    # ---------------------------------------------------------------- set-up

    def _check_arguments(self) -> None:
        check_range("n_finalist_episodes", self.n_finalist_episodes, 1, integer=True)
        if self.episode_cutoff is not None:
            check_range("episode_cutoff", self.episode_cutoff, 1, integer=True)
        super()._check_arguments()

    def _policy_arguments(self) -> dict[str, Any]:
        return {"standardize": False, **self.policy_kwargs}  # moving statistics would change what old genomes mean

    def _make_population(self) -> Population:
        representation = WholeNetworks(self.policy, self.policy.deployed)
        shapes = [list(shape) for shape in representation.layout.shapes]
        table = NoiseTable.for_network(self.policy.deployed, self.noise_table_size, self.noise_seed)
        made_for = [table.size, self.noise_seed, self.init, self.init_output_std, shapes]
        if self.made_for is not None and self.made_for != made_for:
            old, new = next(pair for pair in zip(self.made_for, made_for, strict=True) if pair[0] != pair[1])
            raise ValueError(
                "noise_table_size, noise_seed, init, init_output_std and the network must be those the genomes were saved "
                f"with; got {new} instead of {old}. Load without changing them, or start a new model"
            )
        self.made_for = made_for
        sizes, init = (self.pop_size, self._truncation), (self.init, self.init_output_std)
        evolver = SeedGA(representation.layout, *sizes, FloatSchedule(self.sigma)(1.0), self._n_finalists, *init, table)
        return Population(evolver.to(self.device), representation)

    @property
    def n_rollouts(self) -> int:
        """See :attr:`EvolutionaryAlgorithm.n_rollouts`."""
        return super().n_rollouts + self._n_finalists * self.n_finalist_episodes

    @property
    def _truncation(self) -> int:
        return min(20, max(1, self.pop_size // 2)) if self.truncation is None else self.truncation

    @property
    def _n_finalists(self) -> int:
        return min(10, self.pop_size) if self.n_finalists is None else self.n_finalists

    @property
    def _genomes(self) -> SeedGA:
        """The evolver, which keeps genomes and not vectors."""
        return self.evolver  # type: ignore[return-value]

    # ---------------------------------------------------------------- the generation

    def _train_loop(self, *arguments: Any) -> None:
        warn_of_moving_statistics(self.get_vec_normalize_env())
        super()._train_loop(*arguments)

    def _collect_reference(self, generation: Generation) -> bool:
        return collect_reference(self, generation)

    def _ask(self, generation: Generation) -> None:
        self._genomes.sigma = float(FloatSchedule(self.sigma)(self._current_progress_remaining))
        generation.candidates = self.evolver.ask(generation.rng)

    def _evaluate(self, generation: Generation) -> bool:
        generation.episodes = self._episodes(generation, generation.asked, 0, self.n_eval_episodes, is_last=False)
        return generation.episodes is not None

    def _score(self, generation: Generation) -> None:
        """Score the individuals; what that changes in the fitness waits for the end of the second evaluation."""
        before = self.fitness.state_dict()
        verbs.score(self, generation)
        self._fitness_after = self.fitness.state_dict()
        self.fitness.load_state_dict(before)

    def _revalidate(self, generation: Generation) -> bool:
        """Evaluate the best of the generation again, and the present elite."""
        assert generation.fitness is not None
        finalists, first = self._genomes.finalists(generation.fitness), len(generation.asked)
        again = self._episodes(generation, finalists, first, self.n_finalist_episodes, is_first=False)
        if again is None:
            return False
        again = again.renumbered(first)
        self._validation = verbs.fitness_of(self, generation, again, finalists)
        self.fitness.load_state_dict(self._fitness_after)
        self._finalist_returns = episode_return(again, len(finalists))
        return True

    def _episodes(
        self, generation: Generation, vectors: th.Tensor, first: int, n_episodes: int, **phase: bool
    ) -> EpisodeBatch | None:
        """Episodes of individuals whose numbers within the generation begin with ``first``."""
        jobs = [Job(first + i, k, self.episode_cutoff) for i in range(len(vectors)) for k in range(n_episodes)]

        def all_together() -> PopulationActor:
            return Renumbered(self.population.act(vectors), first)

        source = self._genomes.source_of(vectors, first)
        actor = all_together() if source is None else RebuiltActor(source, actor_factory(self.policy.deployed), all_together)
        needs = self.fitness.needs | self.episode_needs
        return self.rollouts.run(jobs, actor, generation.callback, None, needs, **phase)

    def _tell(self, generation: Generation) -> None:
        """The champion is the elite: who has the best fitness in the further episodes."""
        assert generation.fitness is not None
        self._genomes.tell(generation.asked, generation.fitness, generation.rng, self._validation)
        elite = self.evolver.best()
        assert elite is not None
        self.population.champion = Champion(elite, float(self._genomes.elite_score))
        verbs.log_champion(self)

    def _log(self, generation: Generation) -> None:
        elite, footprint, record = self._genomes.elite, self._genomes.footprint, self.logger.record
        assert elite is not None and generation.fitness is not None
        record("time/generations", generation.number, exclude="tensorboard")
        verbs.log_scores(self, generation)
        record("rollout/finalist_ep_rew_mean", float(np.nanmean(self._finalist_returns)))
        record("population/elite_return", float(self._finalist_returns[best_index(self._validation)]))
        record("population/elite_genome_length", len(elite.offsets))
        record("population/parameters", footprint.n_params, exclude="tensorboard")
        record("population/bytes_per_genome", footprint.genome_bytes, exclude="tensorboard")
        record("train/sigma", self._genomes.sigma)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_fitness_after", "_validation", "_finalist_returns"]


class RandomSearch(DeepGA):
    """
    Individuals without parents, and an elite that has to prove itself: :class:`DeepGA` with a truncation of 0.

    The baseline of Such et al. (2017), https://arxiv.org/abs/1712.06567, section 4. Parameters that are not listed here are
    those of :class:`DeepGA`. To see whether a task is easy: ``RandomSearch("CartPole-v1", verbose=1).learn(100_000)``.

    :param policy: policy alias or class; or, without ``env``, the environment or its id
    :param env: environment, vectorized or not, its id, or ``None`` for loading
    :param pop_size: individuals per generation
    :raises ValueError: if an argument is out of range or unknown, or the environment's spaces are not supported
    """

    @inherits_arguments("truncation", "sigma")
    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 0.0,
        **kwargs: Any,
    ):
        super().__init__(policy, env, learning_rate, truncation=0, **kwargs)
