"""OpenAI-ES: the mean of a population moves along the rank-weighted sum of its mirrored perturbations."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import FloatSchedule

from sb3_erl.core.arguments import inherits_arguments
from sb3_erl.core.checks import check_cutoff, check_range
from sb3_erl.core.noise_table import NoiseTable
from sb3_erl.core.registry import resolve
from sb3_erl.engine import generation as verbs
from sb3_erl.engine.generation import Generation, Verb
from sb3_erl.engine.mirrored_rollouts import MirroredRollouts
from sb3_erl.engine.population import Population
from sb3_erl.engine.pure_evolution import EvolutionaryAlgorithm
from sb3_erl.engine.reference_batch import collect_reference
from sb3_erl.evolution.base import MirroredPairs, check_capability
from sb3_erl.evolution.es import MirroredES
from sb3_erl.evolution.fitness.shaping import ShapingMode, Ties, population_rank
from sb3_erl.policies.es import ESActor
from sb3_erl.policies.es_pixels import ES_POLICIES
from sb3_erl.policies.observation_statistics import ObservationStatistics, wants_statistics


class OpenAIES(EvolutionaryAlgorithm):
    """
    Evolution strategies as a scalable alternative to reinforcement learning.

    Without gradients, for any actions: ``OpenAIES("CartPole-v1", n_pairs=20, verbose=1).learn(200_000)``.

    Salimans et al. (2017), https://arxiv.org/abs/1703.03864; authors' code: openai/evolution-strategies-starter. Each
    generation perturbs the mean in mirrored pairs out of a shared table of noise, ranks all returns together and lets Adam
    follow the rank-weighted sum of the perturbations.

    Differences from the authors' code:

    1. a generation is a fixed number of pairs, or the shortest series of them that has ``min_timesteps`` steps (theirs takes
       them as they arrive, which favors short episodes), and everything follows from the seed (theirs is not reproducible);
    2. equal returns share their rank (``ties="stable"``: order of the candidates);
    3. the mean is evaluated in a fixed number of episodes per generation (theirs tosses a coin);
    4. the sums of the observation statistics are float64, and enough episodes are counted for small populations too;
    5. actions are clipped to the environment's bounds;
    6. ``obs_stat_prob`` and other settings are not those of the paper's 1440 workers by default: see the Zoo's file.

    Parameters that are not listed here are those of :class:`~sb3_erl.engine.pure_evolution.EvolutionaryAlgorithm`.

    :param policy: ``"MlpPolicy"`` (256, 256 tanh), ``"LinearPolicy"``, ``"CnnPolicy"`` (see
        :class:`~sb3_erl.policies.es_pixels.ESPixelPolicy`) or a policy class; or, without ``env``, the environment or
        its id
    :param env: environment, vectorized or not, its id, or ``None`` for loading
    :param learning_rate: step size of the optimizer, a float or a schedule
    :param n_pairs: mirrored pairs per generation
    :param sigma: standard deviation of the perturbations, a float or a schedule
    :param evolver: ``"es"``; another one proposes ``2 * n_pairs`` candidates, has its arguments in ``evolver_kwargs`` and uses
        none of ``learning_rate``, ``sigma``, ``l2_coeff``, ``optimizer``, ``optimizer_kwargs``, ``ties``,
        ``perturb_fraction`` and the noise table; of one without a mean, the best candidate is deployed
    :param l2_coeff: pull of the mean toward zero
    :param optimizer: ``"adam"``, ``"corrected_adam"``, ``"damped_sgd"``, ``"sgd"``, see :mod:`sb3_erl.evolution.es_optimizers`
    :param optimizer_kwargs: further arguments of the optimizer, for example ``{"momentum": 0.9}``
    :param fitness_shaping: see :func:`~sb3_erl.evolution.fitness.shaping.shape_fitness`
    :param ties: see :func:`~sb3_erl.evolution.fitness.shaping.centered_ranks`
    :param min_timesteps: add pairs until a generation has as many environment steps, of which pairs that were not needed are
        logged as ``time/wasted_timesteps``; needs an evolver that can (:class:`~sb3_erl.evolution.base.MirroredPairs`)
    :param normalize_obs: standardize observations by statistics that the policy carries; off, with a warning, where the
        environment is a ``VecNormalize`` that does so; images are not standardized
    :param obs_stat_prob: probability that an episode's observations are counted, ``None`` for 100 episodes per generation
    :param action_noise_std: normal noise on continuous actions of the population, in units of the action space
    :param episode_cutoff: steps after which an episode ends, ``None`` for the environment's own limit; or ``(start,
        threshold, ratio)`` or ``(start, threshold, ratio, largest)``: multiplied by ``ratio`` after a generation of which a
        share of at least ``threshold`` was cut
    :param n_center_episodes: episodes of the mean itself per generation, for the log
    :param common_random_numbers: both candidates of a pair meet the same start states; needs mirrored pairs, too
    :param perturb_fraction: see :class:`~sb3_erl.evolution.es.MirroredES`
    :param noise_table_size: see :meth:`~sb3_erl.core.noise_table.NoiseTable.for_network`; 4 bytes each
    :param noise_seed: see :class:`~sb3_erl.core.noise_table.NoiseTable`
    :raises ValueError: if an argument is out of range or unknown, or the environment's spaces are not supported
    """

    policy_aliases = ES_POLICIES
    reported_candidates = ("mean",)
    generation_order: ClassVar[tuple[Verb, ...]] = ("collect_reference", "ask", "evaluate", "score", "tell", "deploy", "log")

    @inherits_arguments("pop_size")
    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 0.01,
        n_pairs: int = 32,
        sigma: float | Schedule = 0.02,
        evolver: Any = "es",
        l2_coeff: float = 0.005,
        optimizer: Literal["adam", "corrected_adam", "damped_sgd", "sgd"] = "adam",
        optimizer_kwargs: dict[str, Any] | None = None,
        fitness_shaping: ShapingMode = "centered_rank",
        ties: Ties = "average",
        min_timesteps: int = 0,
        normalize_obs: bool = True,
        obs_stat_prob: float | None = None,
        action_noise_std: float = 0.01,
        episode_cutoff: int | tuple[float, ...] | None = None,
        n_center_episodes: int = 1,
        common_random_numbers: bool = False,
        perturb_fraction: float = 1.0,
        noise_table_size: int | None = None,
        noise_seed: int = 123,
        **kwargs: Any,
    ):
        self.n_pairs, self.sigma, self.l2_coeff = n_pairs, sigma, l2_coeff
        self.optimizer, self.optimizer_kwargs = optimizer, optimizer_kwargs
        self.fitness_shaping, self.ties, self.min_timesteps = fitness_shaping, ties, min_timesteps
        self.normalize_obs, self.obs_stat_prob = wants_statistics(normalize_obs, env), obs_stat_prob
        self.action_noise_std, self.episode_cutoff = action_noise_std, episode_cutoff
        self.n_center_episodes, self.common_random_numbers = n_center_episodes, common_random_numbers
        self.perturb_fraction, self.noise_table_size, self.noise_seed = perturb_fraction, noise_table_size, noise_seed
        self.cutoff: int | None = None
        """Steps after which episodes end now; it grows if ``episode_cutoff`` says so."""
        pop_size = 2 * n_pairs if isinstance(n_pairs, int) else 0
        super().__init__(policy, env, learning_rate, pop_size=pop_size, evolver=evolver, **kwargs)

    # ---------------------------------------------------------------- set-up

    def _check_arguments(self) -> None:
        check_range("n_pairs", self.n_pairs, 1, integer=True)
        check_range("min_timesteps", self.min_timesteps, 0, integer=True)
        check_range("n_center_episodes", self.n_center_episodes, 0, integer=True)
        check_range("action_noise_std", self.action_noise_std, 0)
        if self.obs_stat_prob is not None:
            check_range("obs_stat_prob", self.obs_stat_prob, 0, 1)
        check_cutoff(self.episode_cutoff)
        super()._check_arguments()

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.cutoff is None and self.episode_cutoff is not None:
            start = self.episode_cutoff if isinstance(self.episode_cutoff, int) else self.episode_cutoff[0]
            self.cutoff = int(start)

    def _policy_arguments(self) -> dict[str, Any]:
        return {"standardize": self.normalize_obs, **self.policy_kwargs}

    @property
    def _fitness_choice(self) -> Any:
        by_sign = self.fitness_class == "return" and self.fitness_shaping != "centered_rank"
        return "sign_sum" if by_sign else self.fitness_class

    def _make_population(self) -> Population:
        population = super()._make_population()
        for argument in ("min_timesteps", "common_random_numbers"):
            if getattr(self, argument):
                check_capability(population.evolver, MirroredPairs, f"{argument}={getattr(self, argument)}")
        return population

    def _evolver_arguments(self) -> dict[str, Any]:
        found, given = resolve("evolver", self.evolver_class), super()._evolver_arguments()
        if not (isinstance(found, type) and issubclass(found, MirroredES)):
            return given
        names = ("l2_coeff", "optimizer", "optimizer_kwargs", "fitness_shaping", "ties", "perturb_fraction")
        own = {name: getattr(self, name) for name in names}
        table = NoiseTable.for_network(self.policy.deployed, self.noise_table_size, self.noise_seed)
        return {**own, "sigma": FloatSchedule(self.sigma)(1.0), "table": table, **given}

    @property
    def n_rollouts(self) -> int:
        """See :attr:`EvolutionaryAlgorithm.n_rollouts`."""
        return super().n_rollouts + self.n_center_episodes

    @property
    def _es(self) -> Any:
        """The evolver whose candidates this generation evaluates."""
        return self.evolver

    def _now(self, value: float | Schedule) -> float:
        """The value of a schedule at this moment."""
        return float(FloatSchedule(value)(self._current_progress_remaining))

    @property
    def _network(self) -> Any:
        """The network whose buffers the candidates act with."""
        return self.population.representation.learner  # type: ignore[attr-defined]

    @property
    def _statistics(self) -> ObservationStatistics | None:
        """Of the observations; ``None`` if none are kept, or VecNormalize keeps them."""
        network, twice = self._network, getattr(self._vec_normalize_env, "norm_obs", False)
        return network.statistics if isinstance(network, ESActor) and not twice else None

    # ---------------------------------------------------------------- the generation

    def _collect_reference(self, generation: Generation) -> bool:
        return collect_reference(self, generation)

    def _ask(self, generation: Generation) -> None:
        evolver = self._es
        if isinstance(evolver, MirroredES):
            evolver.learning_rate, evolver.sigma = self._now(self.lr_schedule), self._now(self.sigma)
        is_own = isinstance(evolver, MirroredES) and evolver.has_unbuilt_candidates
        generation.candidates = (evolver.propose if is_own else evolver.ask)(generation.rng)  # workers make what is proposed

    def _evaluate(self, generation: Generation) -> bool:
        self._mirrored = self._rollouts_of(n_means=1)
        return self._mirrored.run(generation, 0 if self._es.center() is None else self.n_center_episodes)

    def _rollouts_of(self, n_means: int) -> MirroredRollouts:
        return MirroredRollouts(self, self._es, n_means, self._network, self._statistics is not None)

    def _tell(self, generation: Generation) -> None:
        verbs.tell(self, generation)
        self._after_tell(generation)

    def _after_tell(self, generation: Generation) -> None:
        """Count observations, and let episodes grow if they were cut."""
        if self._mirrored.observations is not None and self._statistics is not None:
            self._mirrored.observations.merge_into(self._statistics, len(generation.proposed))
        if self.cutoff is not None and isinstance(self.episode_cutoff, list | tuple):
            _, threshold, ratio, *largest = self.episode_cutoff
            if np.mean([episode.length >= self.cutoff for episode in generation.evaluated.episodes]) >= threshold:
                self.cutoff = int(min([ratio * self.cutoff, *largest]))

    def _deploy(self, generation: Generation) -> None:
        center, best = self.evolver.center(), self.evolver.best()
        vector = best if center is None else center
        assert vector is not None
        self.population.representation.write(vector, self.policy.deployed)

    def _log(self, generation: Generation) -> None:
        record = self.logger.record
        record("time/generations", generation.number, exclude="tensorboard")
        returns = np.array([episode.total_reward for episode in generation.evaluated.episodes])
        if self.fitness_class == "return":  # also where only the signs of rewards are followed
            verbs.log_fitness(self.logger, returns)
        else:
            verbs.log_scores(self, generation)
        if self._mirrored.means.episodes:
            own = np.array([episode.total_reward for episode in self._mirrored.means.episodes])
            record("rollout/center_ep_rew_mean", float(own.mean()))
            record("population/rank_of_center", population_rank(own, returns))
        kind = "train" if isinstance(self._es, MirroredES) else "population"
        for name, value in self._es.metrics().items():
            record(f"{kind}/{name}", value)
        if self.cutoff is not None:
            record("rollout/episode_cutoff", self.cutoff)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_mirrored"]
