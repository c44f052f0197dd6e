"""OpenAI-ES: the mean of a population moves along the rank-weighted sum of its mirrored perturbations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import FloatSchedule

from sb3_erl.buffers.rollout_steps import Steps
from sb3_erl.core.arguments import known_to
from sb3_erl.core.checks import check_range
from sb3_erl.core.noise_table import NoiseTable
from sb3_erl.core.parameters import ParameterLayout, read_parameters, write_parameters
from sb3_erl.core.seeding import Address, Stream
from sb3_erl.engine.reference_batch import ReferenceBatchMixin
from sb3_erl.evolution.base import Evolver
from sb3_erl.evolution.es import MirroredES
from sb3_erl.evolution.fitness.shaping import ShapingMode, Ties, population_rank
from sb3_erl.policies.es import ESActor, ESLinearPolicy, ESPolicy
from sb3_erl.policies.es_pixels import ESPixelPolicy
from sb3_erl.policies.observation_statistics import ObservationStatistics, ObservationSums
from sb3_erl.remote.choice import EvaluatorChoice
from sb3_erl.remote.recipes import RebuiltActor, actor_factory
from sb3_erl.rollouts.exploration import UnboundedExploration
from sb3_erl.rollouts.jobs import EpisodeBatch, Explorer, Job, PopulationActor, Summarizer

STORED_EPISODES = 100
"""Episodes per generation whose observations are counted, as with the authors' 10000 episodes and their probability 0.01."""


@dataclass(frozen=True)
class ObservedEpisodes:
    """
    Sums the observations of some of the population's episodes; a :class:`~sb3_erl.rollouts.jobs.Summarizer`.

    :param address: root of the draws that choose them
    :param first: number of the first candidate; those before it are means
    :param probability: share of the episodes that is chosen
    """

    address: Address
    first: int
    probability: float

    def needs_steps(self, job: Job) -> bool:
        """See :class:`~sb3_erl.rollouts.jobs.Summarizer`."""
        if job.candidate < self.first:
            return False
        return self.address.rng(Stream.FITNESS, job.candidate, job.episode).random() < self.probability

    def __call__(self, job: Job, steps: Steps) -> ObservationSums | None:
        """:return: what the episode adds to the statistics, ``None`` for an episode of the mean or one that is not chosen"""
        if len(steps) == 0 or not self.needs_steps(job):
            return None
        return ObservationSums.of(steps.observations[:-1].reshape(len(steps), -1))


class OpenAIES(ReferenceBatchMixin):
    """
    Evolution strategies as a scalable alternative to reinforcement learning.

    Salimans et al. (2017), https://arxiv.org/abs/1703.03864; authors' code: openai/evolution-strategies-starter. Each
    generation perturbs the mean in mirrored pairs out of a shared table of noise, ranks all returns together and lets Adam
    follow the rank-weighted sum of the perturbations. Actions may be continuous or discrete.

    Differences from the authors' code:

    1. a generation is a fixed number of pairs, or the shortest series of them that has ``min_timesteps`` steps (theirs takes
       whoever comes first, which favors short episodes), and everything follows from the seed (theirs is not reproducible);
    2. equal returns share their rank (``ties="stable"``: order of the candidates);
    3. the mean is evaluated in a fixed number of episodes per generation (theirs tosses a coin);
    4. the sums of the observation statistics are float64, and enough episodes are counted for small populations too;
    5. actions are clipped to the environment's bounds;
    6. ``obs_stat_prob`` and other settings are not those of the paper's 1440 workers by default: see the Zoo's file.

    :param policy: ``"MlpPolicy"`` (256, 256 tanh), ``"LinearPolicy"``, ``"CnnPolicy"`` (see
        :class:`~sb3_erl.policies.es_pixels.ESPixelPolicy`) or a policy class; or, without ``env``, the environment or
        its id
    :param env: environment, vectorized or not, its id, or ``None`` for loading
    :param learning_rate: step size of the optimizer, a float or a schedule
    :param n_pairs: mirrored pairs per generation
    :param sigma: standard deviation of the perturbations, a float or a schedule
    :param l2_coeff: pull of the mean towards zero
    :param optimizer: ``"adam"``, ``"damped_sgd"`` or ``"sgd"``, see :mod:`sb3_erl.evolution.es_optimizers`
    :param optimizer_kwargs: further arguments of the optimizer, for example ``{"momentum": 0.9}``
    :param fitness_shaping: see :func:`~sb3_erl.evolution.fitness.shaping.shape_fitness`
    :param ties: see :func:`~sb3_erl.evolution.fitness.shaping.centered_ranks`
    :param min_timesteps: add pairs until a generation has as many environment steps
    :param normalize_obs: standardize observations by statistics that the policy carries; images are not standardized
    :param obs_stat_prob: probability that an episode's observations are counted, ``None`` for 100 episodes per generation
    :param action_noise_std: normal noise on continuous actions of the population, in units of the action space
    :param episode_cutoff: steps after which an episode ends, ``None`` for the environment's own limit; or ``(start,
        threshold, ratio)`` or ``(start, threshold, ratio, largest)``: multiplied by ``ratio`` after a generation of which a
        share of at least ``threshold`` was cut
    :param n_eval_episodes: episodes per candidate
    :param n_center_episodes: episodes of the mean itself per generation, for the log
    :param common_random_numbers: both candidates of a pair meet the same start states
    :param perturb_fraction: see :class:`~sb3_erl.evolution.es.MirroredES`
    :param noise_table_size: see :class:`~sb3_erl.core.noise_table.NoiseTable`; 4 bytes each
    :param noise_seed: see :class:`~sb3_erl.core.noise_table.NoiseTable`
    :raises ValueError: if an argument is out of range or unknown, or the environment's spaces are not supported
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ESPolicy,
        "LinearPolicy": ESLinearPolicy,
        "CnnPolicy": ESPixelPolicy,
    }
    takes_discrete_actions = True
    begins_with_actors = False
    evolver: MirroredES

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 0.01,
        n_pairs: int = 32,
        sigma: float | Schedule = 0.02,
        l2_coeff: float = 0.005,
        optimizer: Literal["adam", "damped_sgd", "sgd"] = "adam",
        optimizer_kwargs: dict[str, Any] | None = None,
        fitness_shaping: ShapingMode = "centered_rank",
        ties: Ties = "average",
        min_timesteps: int = 0,
        normalize_obs: bool = True,
        obs_stat_prob: float | None = None,
        action_noise_std: float = 0.01,
        episode_cutoff: int | tuple[float, ...] | None = None,
        n_eval_episodes: int = 1,
        n_center_episodes: int = 1,
        common_random_numbers: bool = False,
        perturb_fraction: float = 1.0,
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
        self.n_pairs, self.sigma, self.l2_coeff = n_pairs, sigma, l2_coeff
        self.optimizer, self.optimizer_kwargs = optimizer, optimizer_kwargs
        self.fitness_shaping, self.ties, self.min_timesteps = fitness_shaping, ties, min_timesteps
        self.normalize_obs, self.obs_stat_prob = normalize_obs, obs_stat_prob
        self.action_noise_std, self.episode_cutoff = action_noise_std, episode_cutoff
        self.n_center_episodes, self.common_random_numbers = n_center_episodes, common_random_numbers
        self.perturb_fraction, self.noise_table_size, self.noise_seed = perturb_fraction, noise_table_size, noise_seed
        self.cutoff: int | None = None
        """Steps after which episodes end now; it grows if ``episode_cutoff`` says so."""
        self._seen: dict[int, ObservationSums] = {}
        pop_size = 2 * n_pairs if isinstance(n_pairs, int) else 0
        super().__init__(**known_to(super().__init__, locals()))

    # ---------------------------------------------------------------- set-up

    def _setup_model(self) -> None:
        self._check_arguments()
        if self.cutoff is None and self.episode_cutoff is not None:
            start = self.episode_cutoff if isinstance(self.episode_cutoff, int) else self.episode_cutoff[0]
            self.cutoff = int(start)
        given = self.policy_kwargs
        self.policy_kwargs = {"standardize": self.normalize_obs, **given}
        super()._setup_model()
        self.policy_kwargs = given

    def _check_arguments(self) -> None:
        check_range("n_pairs", self.n_pairs, 1, integer=True)
        check_range("min_timesteps", self.min_timesteps, 0, integer=True)
        check_range("n_center_episodes", self.n_center_episodes, 0, integer=True)
        check_range("action_noise_std", self.action_noise_std, 0)
        if self.obs_stat_prob is not None:
            check_range("obs_stat_prob", self.obs_stat_prob, 0, 1)
        if isinstance(self.episode_cutoff, list | tuple):
            if len(self.episode_cutoff) not in (3, 4):
                raise ValueError(
                    "episode_cutoff must be None, a number of steps, or (start, threshold, ratio) with an optional largest "
                    f"value; got {self.episode_cutoff!r}"
                )
            check_range("episode_cutoff", self.episode_cutoff[0], 1)
            check_range("episode_cutoff (threshold)", self.episode_cutoff[1], 0, 1)
            check_range("episode_cutoff (ratio)", self.episode_cutoff[2], 1)
        elif self.episode_cutoff is not None:
            check_range("episode_cutoff", self.episode_cutoff, 1, integer=True)

    @property
    def _n_jobs(self) -> int:
        return super()._n_jobs + self.n_center_episodes

    @property
    def _n_centers(self) -> int:
        """How many means there are; candidates are numbered after them."""
        return 1

    @property
    def _es(self) -> MirroredES:
        """Whose candidates this generation evaluates."""
        return self.evolver

    def _make_evolver(self, candidates: th.Tensor, layout: ParameterLayout) -> Evolver:
        return self._make_es(self.policy.deployed, NoiseTable(self.noise_table_size, self.noise_seed))

    def _make_es(self, network: BasePolicy, table: NoiseTable) -> MirroredES:
        names = ("l2_coeff", "optimizer", "optimizer_kwargs", "fitness_shaping", "ties", "perturb_fraction")
        own = {name: getattr(self, name) for name in names}
        return MirroredES(read_parameters(network), 2 * self.n_pairs, self._now(self.sigma), table=table, **own)

    def _now(self, value: float | Schedule) -> float:
        """The value of a schedule at this moment."""
        return float(FloatSchedule(value)(self._current_progress_remaining))

    @property
    def _statistics(self) -> ObservationStatistics | None:
        """Of the observations, ``None`` if nobody keeps any: then VecNormalize may."""
        network, twice = self._network, getattr(self._vec_normalize_env, "norm_obs", False)
        return network.statistics if isinstance(network, ESActor) and not twice else None

    # ---------------------------------------------------------------- the generation: ask, evaluate, tell

    def _generation(self, callback: BaseCallback) -> bool:
        """Ask -> evaluate -> tell -> observe -> deploy -> log; see :meth:`GenerationalMixin._generation`."""
        if not self._collect_reference(callback):
            return False
        rng = self._rng(Stream.EVOLUTION)
        evaluated = self._ask_and_evaluate(rng, callback, self.n_center_episodes)
        if evaluated is None:
            return False
        candidates, episodes, center = evaluated
        self._learn(candidates, episodes)
        write_parameters(self._es.mean, self.policy.deployed)
        self._log_generation(episodes, center)
        return True

    def _ask_and_evaluate(
        self, rng: np.random.Generator, callback: BaseCallback, n_center_episodes: int = 0, is_first: bool = True
    ) -> tuple[th.Tensor, EpisodeBatch, EpisodeBatch] | None:
        """
        :param rng: generator
        :param callback: called at every vector step
        :param n_center_episodes: episodes of the mean beside those of the candidates
        :param is_first: whether a rollout begins for callbacks
        :return: candidates, their episodes and those of the mean; ``None`` if training was stopped
        """
        self._seen = {}
        self._es.learning_rate, self._es.sigma = self._now(self.lr_schedule), self._now(self.sigma)
        candidates = self._es.ask(rng)
        jobs = self._jobs(0, len(candidates)) + [Job(0, k, self.cutoff) for k in range(n_center_episodes)]
        actor, is_last = self._actor_beside_mean(candidates), self.min_timesteps == 0
        episodes = self._evaluate(jobs, actor, callback, is_first, is_last)
        if episodes is None:
            return None
        center = episodes.of(range(self._n_centers))
        episodes = episodes.of(self._numbers(len(candidates)))
        while episodes.n_timesteps < self.min_timesteps:
            candidates = th.cat([candidates, self._es.ask_more(rng, self.n_pairs)])
            jobs = self._jobs(len(candidates) - 2 * self.n_pairs, len(candidates))
            more = self._evaluate(jobs, self._actor_beside_mean(candidates), callback, is_first=False, is_last=False)
            if more is None:
                return None
            episodes = EpisodeBatch(episodes.episodes + more.episodes, episodes.n_timesteps + more.n_timesteps)
        if not is_last:
            callback.on_rollout_end()
        return *self._shortest_series(candidates, episodes), center

    def _learn(self, candidates: th.Tensor, episodes: EpisodeBatch) -> None:
        """Move the mean, count observations, and let episodes grow if they were cut."""
        self._tell(candidates, episodes)
        self._observe(len(candidates))
        self._adapt_cutoff(episodes)

    def _tell(self, candidates: th.Tensor, episodes: EpisodeBatch) -> None:
        self._es.tell(candidates, self._fitness(candidates, episodes))

    def _numbers(self, n_candidates: int) -> range:
        """Numbers of the candidates among all that act in a generation: they come after the means."""
        return range(self._n_centers, self._n_centers + n_candidates)

    def _actor_beside_mean(self, candidates: th.Tensor) -> PopulationActor:
        """Acts for the mean, which has number 0, and for the candidates, see :meth:`_numbers`."""

        def all_together() -> PopulationActor:
            return self._population_actor(th.cat([self._es.mean.expand(self._n_centers, -1), candidates]))

        if len(candidates) != 2 * len(self._es.pairs):  # not those that were asked for
            return all_together()
        source = replace(self._es.source, first=self._n_centers)
        return RebuiltActor(source, actor_factory(self._network), all_together)

    def _jobs(self, first: int, last: int) -> list[Job]:
        jobs = []
        for i in range(first, last):
            number = self._n_centers + i
            twin = number - i % 2 if self.common_random_numbers else None
            jobs += [Job(number, k, self.cutoff, self._explorer(), twin) for k in range(self.n_eval_episodes)]
        return jobs

    def _explorer(self) -> Explorer | None:
        """One per job: jobs that run at the same time must not share random numbers."""
        wanted = self.action_noise_std > 0 and isinstance(self.action_space, spaces.Box)
        return UnboundedExploration(self.action_noise_std) if wanted else None

    def _shortest_series(self, candidates: th.Tensor, episodes: EpisodeBatch) -> tuple[th.Tensor, EpisodeBatch]:
        """The first pairs that have ``min_timesteps`` steps together, at least ``n_pairs`` of them."""
        steps = np.zeros(len(candidates), dtype=np.int64)
        for episode in episodes.episodes:
            steps[episode.job.candidate - self._n_centers] += episode.length
        enough = int(np.searchsorted(steps.cumsum(), self.min_timesteps)) + 1
        n = min(max(2 * self.n_pairs, enough + enough % 2), len(candidates))
        return candidates[:n], episodes.of(self._numbers(n))

    def _fitness(self, candidates: th.Tensor, episodes: EpisodeBatch) -> np.ndarray:
        by_sign = self.fitness_shaping != "centered_rank"
        values = [e.sign_sum if by_sign else e.total_reward for e in episodes.episodes]
        return episodes.mean_per_candidate(values, self._n_centers + len(candidates))[self._n_centers :]

    # ---------------------------------------------------------------- observations

    @property
    def summarizer(self) -> Summarizer | None:
        """Sums over the observations of some of the population's episodes, where statistics are kept."""
        if self._statistics is None:
            return super().summarizer
        probability = self.obs_stat_prob
        if probability is None:
            probability = min(1.0, STORED_EPISODES / (self.pop_size * self.n_eval_episodes))
        return ObservedEpisodes(self.address, self._n_centers, probability)

    def store(self, job: Job, summary: Any) -> None:
        """Keep what an episode adds to the statistics until the generation is complete."""
        super().store(job, summary)
        if isinstance(summary, ObservationSums):
            self._seen[(job.candidate - self._n_centers) * self.n_eval_episodes + job.episode] = summary

    def _observe(self, n_candidates: int) -> None:
        if self._statistics is not None:
            last = n_candidates * self.n_eval_episodes
            self._statistics.merge({number: sums for number, sums in self._seen.items() if number < last})
        self._seen = {}

    # ---------------------------------------------------------------- what follows a generation

    def _adapt_cutoff(self, episodes: EpisodeBatch) -> None:
        if self.cutoff is None or not isinstance(self.episode_cutoff, list | tuple):
            return
        _, threshold, ratio, *largest = self.episode_cutoff
        share = np.mean([episode.length >= self.cutoff for episode in episodes.episodes])
        if share >= threshold:
            self.cutoff = int(min([ratio * self.cutoff, *largest]))

    def _log_generation(self, episodes: EpisodeBatch, center: EpisodeBatch) -> None:
        record, update = self.logger.record, self._es.last_update
        assert update is not None
        record("time/generations", self.n_generations + 1, exclude="tensorboard")
        returns = np.array([episode.total_reward for episode in episodes.episodes])
        self._log_population(returns)
        if center.episodes:
            own = np.array([episode.total_reward for episode in center.episodes])
            record("rollout/center_ep_rew_mean", float(own.mean()))
            record("population/rank_of_center", population_rank(own, returns))
        record("train/sigma", self._es.sigma)
        record("train/learning_rate", self._es.learning_rate)
        record("train/grad_norm", update.grad_norm)
        record("train/update_ratio", update.update_ratio)
        record("train/theta_norm", float(self._es.mean.norm()))
        if self.cutoff is not None:
            record("rollout/episode_cutoff", self.cutoff)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_seen"]
