"""ESAC: an evolution strategy around a mother, her winners and a soft actor-critic that learns now and then."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor

from sb3_erl.core.action_spaces import in_space
from sb3_erl.core.arguments import inherits_arguments
from sb3_erl.core.checks import check_range
from sb3_erl.core.seeding import Stream
from sb3_erl.engine import generation as verbs
from sb3_erl.engine.generation import Generation, Verb
from sb3_erl.engine.hybrid import HybridAlgorithm
from sb3_erl.engine.population import Population, Sampled
from sb3_erl.engine.rollout_phase import ReplayStore, ScoresOnly, time_limit
from sb3_erl.evolution.esac import MixedES, Signal
from sb3_erl.learners.allocation import annealed_probability, check_annealing
from sb3_erl.learners.sac import SACLearner
from sb3_erl.policies.es import ESAC_POLICIES
from sb3_erl.rollouts.exploration import PolicyExploration, UniformExploration
from sb3_erl.rollouts.jobs import EpisodeBatch, Explorer, Job, PopulationActor


class ESAC(HybridAlgorithm):
    """
    Evolution-based soft actor-critic with automatic mutation tuning.

    Suri, Shi, Plataniotis & Lawryshyn (2020), https://arxiv.org/abs/2007.13690; authors' code: karush17/esac. Mirrored pairs
    perturb children of the last winners, the mother, and copies of the SAC policy; the mother follows the ranks of all. Every
    few generations SAC learns for some episodes, with a probability that falls. The width of the perturbations grows.
    For continuous actions: ``ESAC("HalfCheetah-v5", verbose=1).learn(1_000_000)``.

    Differences from the authors' code, which does not run as published:

    1. winners are crossed and sigma follows returns (theirs: ``hindsight_crossover=False, amt_signal="ranks"``); pairs are
       mirrored and perturbed with the new sigma (theirs are not), see :class:`~sb3_erl.evolution.esac.MixedES`;
    2. individuals act as SAC does, by the mean squashed by tanh (theirs clip it), in the environment's bounds;
    3. SAC is updated after its episodes, once for each of their steps beyond the first batch (theirs: before each step), by
       SB3's update (theirs steps one optimizer for each critic, and the actor on the old critics);
    4. the phase of SAC stands before the mother's step, so that a generation cut short tells her nothing; neither reads the
       other, and copies of SAC are those of before the phase;
    5. ``num_timesteps`` counts what was stepped; ``time/counted_timesteps``, which only ``sac_probability`` and
       ``learning_starts`` read, is the paper's axis: the time limit once per generation, for its 20 episodes.

    Parameters that are not listed here are those of :class:`~sb3_erl.engine.hybrid.HybridAlgorithm` and its base class.

    :param learning_rate: of SAC, a float or a schedule; ``None`` for 3e-4
    :param n_pairs: mirrored pairs per generation, at least 1
    :param sigma: standard deviation of perturbations in the beginning, in units of parameters, positive
    :param es_learning_rate: step size of the mother, at least 0
    :param elite_fraction: winners per pair, in [0, 1], rounded down: so many pairs are around winners
    :param n_gradient_bases: pairs around the SAC policy
    :param hindsight_crossover: ``False`` for the mother in the places of winners
    :param amt: automatic mutation tuning: whether sigma grows
    :param amt_clip: largest growth of sigma at once, at least 0
    :param amt_interval: generations between two times that sigma may grow, at least 1
    :param amt_signal: ``"returns"`` or ``"ranks"``
    :param sac_interval: generations between two phases of SAC that are due, at least 1
    :param sac_episodes: episodes of a phase, at least 1
    :param sac_probability: (start, end, decay), see :func:`~sb3_erl.learners.allocation.annealed_probability`: how likely a
        phase which is due takes place
    :param ent_coef: entropy coefficient of SAC, at least 0, or ``"auto"``
    :param learning_starts: counted steps before which SAC's episodes are random
    :param train_freq: updates per step of SAC are ``gradient_steps / train_freq``; ``(n, "episode")`` counts its episodes
    :param store_population_transitions: whether the replay buffer gets the population's steps, too
    :param deploy: who acts in ``predict``, without noise: ``"sac"``, ``"mother"`` or the last generation's best ``"winner"``
    :param evolver_kwargs: further arguments of :class:`~sb3_erl.evolution.esac.MixedES`, such as ``optimizer``
    :raises ValueError: if an argument is out of range, there are more bases than pairs, or actions are not continuous
    """

    policy_aliases = ESAC_POLICIES
    generation_order: ClassVar[tuple[Verb, ...]] = ("ask", "evaluate", "learn", "score", "tell", "deploy", "log")
    deploy_choices, reported_candidates, _warms_up_by = ("sac", "mother", "winner"), ("sampled_learner",), None
    evolver: MixedES

    @inherits_arguments("learner", "pop_size", "evolver", "exchange", "exchange_kwargs", "population_policy_kwargs")
    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule | None = None,
        n_pairs: int = 10,
        sigma: float = 0.005,
        es_learning_rate: float = 0.005,
        elite_fraction: float = 0.4,
        n_gradient_bases: int = 4,
        hindsight_crossover: bool = True,
        amt: bool = True,
        amt_clip: float = 1e-4,
        amt_interval: int = 20,
        amt_signal: Signal = "returns",
        sac_interval: int = 5,
        sac_episodes: int = 5,
        sac_probability: tuple[float, float, float] = (1.0, 0.1, 1_200_000),
        ent_coef: float | str = 0.2,
        store_population_transitions: bool = False,
        deploy: Literal["sac", "mother", "winner"] = "sac",
        **kwargs: Any,
    ):
        self.n_pairs, self.sigma, self.es_learning_rate, self.elite_fraction = n_pairs, sigma, es_learning_rate, elite_fraction
        self.n_gradient_bases, self.hindsight_crossover = n_gradient_bases, hindsight_crossover
        self.amt, self.amt_clip, self.amt_interval, self.amt_signal = amt, amt_clip, amt_interval, amt_signal
        self.sac_interval, self.sac_episodes, self.sac_probability = sac_interval, sac_episodes, sac_probability
        self.ent_coef, self.store_population_transitions, self.deploy = ent_coef, store_population_transitions, deploy
        self.n_population_steps = 0
        """Environment steps of the population over the life of the model."""
        self.counted_per_generation: int | None = None
        """Steps that the paper counts for a generation: the time limit of the first environment, or 1000."""
        self._phase_is_due = False
        pop_size = 2 * n_pairs if isinstance(n_pairs, int) else 0
        own: dict[str, Any] = {"learner": "sb3_erl.learners.sac:SACLearner", "pop_size": pop_size, "exchange": "none"}
        super().__init__(policy, env, learning_rate, **own, **kwargs)

    # ---------------------------------------------------------------- set-up

    def _aliases(self) -> dict[str, type[BasePolicy]]:
        return self.policy_aliases

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        return self.policy_aliases[policy_name]  # one that exists, see resolve_policy_and_env

    def _check_arguments(self) -> None:
        for name in ("n_pairs", "sac_interval", "sac_episodes"):
            check_range(name, getattr(self, name), 1, integer=True)
        super()._check_arguments()
        check_range("elite_fraction", self.elite_fraction, 0, 1)
        check_range("n_gradient_bases", self.n_gradient_bases, 0, integer=True)
        if self._n_winners + self.n_gradient_bases > self.n_pairs:
            raise ValueError(
                f"elite_fraction and n_gradient_bases must leave room for each other in n_pairs={self.n_pairs} pairs; got "
                f"{self.elite_fraction}, which is {self._n_winners} winners, and {self.n_gradient_bases}. Raise n_pairs"
            )
        check_range("es_learning_rate", self.es_learning_rate, 0)
        check_annealing("sac_probability", self.sac_probability)

    @property
    def _n_winners(self) -> int:
        return int(self.elite_fraction * self.n_pairs + 1e-9)

    @property
    def n_rollouts(self) -> int:
        """See :attr:`HybridAlgorithm.n_rollouts`."""
        return self.pop_size * self.n_eval_episodes + self.sac_episodes

    def _setup_parts(self) -> None:
        if self.env is not None and self.counted_per_generation is None:
            self.counted_per_generation = time_limit(self.env) or 1000  # that of the paper's tasks
        super()._setup_parts()

    def _make_learner(self) -> SACLearner:
        return self._spec.build(self.policy, {"ent_coef": self.ent_coef})  # type: ignore[return-value]

    def _make_population(self) -> Population:
        representation = self._make_representation()
        names = ("sigma", "n_gradient_bases", "hindsight_crossover", "amt", "amt_clip", "amt_interval", "amt_signal")
        own: dict[str, Any] = {"learning_rate": self.es_learning_rate, "n_winners": self._n_winners}
        own |= {**{name: getattr(self, name) for name in names}, **self._evolver_arguments()}
        evolver = MixedES(representation.fresh(1)[0], self.pop_size, representation.layout, **own)
        return Population(evolver.to(self.device), representation)

    def counted_timesteps(self, n_generations: int) -> int:
        """:return: steps that the paper counts for so many generations"""
        return n_generations * (self.counted_per_generation or 1000)

    def _ask(self, generation: Generation) -> None:
        self.evolver.use_gradient_base(self.population.representation.read(self.actor))
        verbs.ask(self, generation)
        self._phase_is_due = generation.number % self.sac_interval == 0
        if self._phase_is_due:  # drawn also where it is certain
            probability = annealed_probability(self.sac_probability, self.counted_timesteps(generation.number))
            self._phase_is_due = bool(generation.rng.random() < probability)

    def _plan_rollouts(self, candidates: Tensor) -> tuple[list[Job], PopulationActor]:
        return [Job(i, k) for i in range(self.pop_size) for k in range(self.n_eval_episodes)], self.population.act(candidates)

    def _run(self, generation: Generation, jobs: list[Job], actor: PopulationActor, **ends: bool) -> EpisodeBatch | None:
        """One call of the back-end; of the population's episodes only what they count for is kept by default."""
        of_population = self.is_of_population(jobs[0])
        store = ScoresOnly() if of_population and not self.store_population_transitions else ReplayStore(self)
        before = self.num_timesteps
        try:
            return self.rollouts.run(jobs, actor, generation.callback, store, self.fitness.needs | self.episode_needs, **ends)
        finally:
            self.n_population_steps += of_population * (self.num_timesteps - before)

    def _evaluate(self, generation: Generation) -> bool:
        generation.episodes = self._run(generation, *self._plan_rollouts(generation.asked), is_last=not self._phase_is_due)
        return generation.episodes is not None

    def _explorer(self, noise: ActionNoise | None) -> Explorer:
        if self.counted_timesteps(self.n_generations + 1) < self.learning_starts:
            return UniformExploration()
        return PolicyExploration(self.actor, noise)  # type: ignore[arg-type]

    def _learn(self, generation: Generation) -> bool:
        """The phase of SAC: episodes one after the other, each followed by its updates."""
        assert self.replay_buffer is not None
        for k in range(self.sac_episodes if self._phase_is_due else 0):
            job = Job(self.pop_size, k, explorer=self._explorer(self.action_noise))
            n_stored, ends = self.replay_buffer.size(), {"is_first": False, "is_last": k + 1 == self.sac_episodes}
            batch = self._run(generation, [job], self._act(generation.asked), **ends)
            if batch is None:
                return False
            before = generation.evaluated
            generation.episodes = EpisodeBatch(before.episodes + batch.episodes, before.n_timesteps + batch.n_timesteps)
            self.train(self._updates_after(n_stored, batch.n_timesteps))
        return True

    def _updates_after(self, n_stored: int, n_steps: int) -> int:
        """Updates that an episode pays for by the steps at which the replay buffer held more than a batch."""
        enough = (self.batch_size or self._default_batch_size) + 1
        n_steps = max(n_steps - max(enough - n_stored, 0), 0) if self.buffer_size >= enough else 0
        return self._updates_for(n_steps, int(n_steps > 0))

    def _learning_sequence(self) -> np.random.SeedSequence:  # a phase trains several times
        return self.run.address.sequence(Stream.LEARNING, self._n_updates)

    def _deploy(self, generation: Generation) -> None:
        if self.deploy == "sac":
            self.policy.deploy(self.actor)
        else:
            vector = self.evolver.mean if self.deploy == "mother" else self.evolver.winners[0]
            self.population.representation.write(vector, self.policy.deployed)

    def _log(self, generation: Generation) -> None:
        verbs.log(self, generation)
        counted = self.counted_timesteps(generation.number)
        for name, n in (("population", self.n_population_steps), ("sac", self.n_learner_steps), ("counted", counted)):
            self.logger.record(f"time/{name}_timesteps", n)

    @property
    def mother_agent(self) -> BasePolicy:
        """The mother; has ``predict``, for ``evaluate_policy``."""
        return in_space(self.population.representation.agent(self.evolver.mean))

    @property
    def winner_agent(self) -> BasePolicy:
        """The best perturbed network of the last generation, before the first the mother; has ``predict``."""
        return in_space(self.population.representation.agent(self.evolver.winners[0]))

    def candidates_for_report(self) -> dict[str, Any]:
        """See :meth:`~sb3_erl.engine.model.EvolvingModel.candidates_for_report`; SAC is published with sampled actions."""
        learner, mother, winner = self.learner_agent, self.mother_agent, self.winner_agent
        return {"learner": learner, "sampled_learner": Sampled(learner), "mother": mother, "winner": winner}
