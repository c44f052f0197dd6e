"""CERL: a genetic algorithm over whole actors beside a portfolio of learners that compete for rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch as th
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_erl.core.action_spaces import in_space
from sb3_erl.core.arguments import inherits_arguments
from sb3_erl.core.checks import check_range
from sb3_erl.core.parameters import read_parameters
from sb3_erl.engine import generation as verbs
from sb3_erl.engine.generation import Generation, Verb
from sb3_erl.engine.hybrid import HybridAlgorithm
from sb3_erl.engine.population import check_ga_arguments, ga_arguments
from sb3_erl.evolution.base import Migration, check_capability
from sb3_erl.learners.allocation import ResourceManager
from sb3_erl.learners.choice import LearnerChoice, LearnerSpec
from sb3_erl.learners.portfolio import Portfolio, build_portfolio, portfolio_specs
from sb3_erl.learners.td_rule import DDPGRule
from sb3_erl.policies.cerl import CERL_POLICIES, CERLPolicy
from sb3_erl.rollouts.exploration import NoiseExploration, PolicyExploration
from sb3_erl.rollouts.jobs import Explorer, Job, PopulationActor

# core/neuroevolution.py of the authors' code; the paper's table has the stronger values of ERL
VARIATION: dict[str, tuple[str, dict[str, Any]]] = {
    "crossover": ("rows", {"max_matrix_share": 0.3, "inclusive": True, "vector_skip_prob": 0.8, "single_entry": True}),
    "mutation": (
        "gaussian",
        {
            **{"strength": 0.02, "fraction": 0.03, "inclusive": True, "limit": 1e7},
            **{"super_prob": 0.1, "super_strength": 1.0, "reset_prob": 0.1, "reset_std": 0.1},
            **{"vector_scale": 0.04, "vector_reset_std": 1.0},
        },
    ),
}


class CERL(HybridAlgorithm):
    """
    Collaborative evolutionary reinforcement learning.

    Where the right discount factor is not known: ``CERL("Humanoid-v5", verbose=1).learn(1_000_000)``; for continuous actions.

    Khadka et al. (ICML 2019), https://arxiv.org/abs/1905.00976; authors' code: IntelAI/cerl. A GA evolves actors on their
    episode return; beside it learn several learners that differ in their discount factor. All transitions go into one
    replay buffer, on which every learner trains; a fixed number of exploring episodes per generation is shared out to the
    learners by an upper-confidence-bound rule; every few generations all learners' actors migrate into the population.

    Learners may be of different kinds. Individuals have the shape of the first learner's actor, and the learners whose
    actors have that shape migrate, see :attr:`~sb3_erl.learners.portfolio.Portfolio.migrants`; the others take part
    through the replay buffer alone.

    Differences from the authors' code:

    1. actors end in tanh and actions lie in [-1, 1] (theirs: sigmoid, [0, 1]). The noises of 0.1, 0.2 and 0.5 are TD3's;
       twice as much reproduces the released runs;
    2. noisy actions are clipped to the actor's range (theirs to the environment's); each component has its own bounds;
    3. time limits are stored as truncations, not as terminals;
    4. a generation's rollouts come before the updates they pay for (theirs overlap, on data of the generation before);
    5. the critic has no state-value head, which nothing uses there;
    6. the champion is the best of the population's last generation (a lucky learner's episode does not count), and is not
       tested inside the loop, use SB3's ``EvalCallback``;
    7. a return that is not finite leaves a learner's value as it is; the roulette cannot run past its last slot.

    Where paper and code differ in the strength of mutation, the code's values are the default: they belong to the released
    results.

    Parameters that are not listed here are those of :class:`~sb3_erl.engine.hybrid.HybridAlgorithm` and
    :class:`~sb3_erl.engine.off_policy_model.OffPolicyModel`; there is no exchange beside the migration.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"`` or a subclass of :class:`~sb3_erl.policies.cerl.CERLPolicy`; or,
        without ``env``, the environment or its id
    :param env: environment, vectorized or not, its id, or ``None`` for loading
    :param learning_rate: a float or a schedule for all learners; ``None`` for each learner's own (TD3 and DDPG: 1e-3, TD7
        and SAC: 3e-4, SB3 classes: their default)
    :param learning_starts: stored transitions, more than which there must be before the first gradient update; the updates
        owed until then follow in one go
    :param action_noise: exploration of the learners; ``None`` for N(0, 0.1), for SAC and SB3 classes nothing beside the
        policy's own randomness
    :param gammas: discount factors of the learners, which also say how many there are. They stand in place of ``gamma``
    :param learner: ``"td3"``, ``"ddpg"``, ``"td7"``, ``"sac"`` or an SB3 off-policy class for continuous actions; or a
        sequence of these, one per discount factor. Where a TD7 is among them, the replay buffer is a
        :class:`~sb3_erl.buffers.lap.LAPReplayBuffer` with priorities for each TD7, from which the others draw uniformly
    :param learner_kwargs: further arguments of the learners, as in :class:`~sb3_erl.algorithms.erl.ERL`; a mapping for all
        or a sequence with one per learner
    :param rollout_size: exploring episodes of the learners per generation, at least one per learner
    :param sync_period: generations between two migrations
    :param ucb_coefficient: weight of the exploration term in a learner's score
    :param value_smoothing: weight in (0, 1] of a new return in a learner's value
    :param crossover: ``"rows"``, ``"package.module:Name"`` or a class
    :param mutation: ``"gaussian"``, ``"package.module:Name"`` or a class
    :param elite_fraction: share of the population that survives unchanged
    :param min_elites: smallest number of elites
    :param tournament_size: contestants per tournament, at least 2
    :param crossover_prob: probability of crossing two selected individuals in place
    :param mutation_prob: probability of mutating an individual, migrants included
    :param evolver_kwargs: further arguments of :class:`~sb3_erl.evolution.ga.GA`, for example ``mutation_kwargs``, which are
        merged with those of the authors
    :param evolution: ``False`` trains the learners alone, with the episodes that are shared out to them
    :param deploy: who acts in ``predict``: ``"champion"`` (the first learner before the first evaluation), or ``"learner"``:
        of those that migrate the one with the highest value
    :param policy_kwargs: arguments of all learners' policies; ``by_learner``, a sequence of mappings, for those of each
    :raises ValueError: if an argument is out of range or unknown, or the environment's spaces are not supported
    """

    policy_aliases = CERL_POLICIES
    published_rates: ClassVar[dict[type, tuple[float, float]]] = {DDPGRule: (1e-3, 1e-3)}
    generation_order: ClassVar[tuple[Verb, ...]] = ("ask", "evaluate", "score", "tell", "learn", "deploy", "log")
    policy: CERLPolicy
    takes_discrete_actions, reported_candidates = False, ("champion",)
    _warms_up_by = "steps"
    learner: Portfolio

    @inherits_arguments(
        "gamma", "exchange", "exchange_kwargs", "population_policy_kwargs", learning_starts=2560, batch_size=256
    )
    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule | None = None,
        gammas: Sequence[float] = (0.9, 0.99, 0.997, 0.9995),
        learner: LearnerChoice | Sequence[LearnerChoice] = "td3",
        learner_kwargs: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
        rollout_size: int = 10,
        sync_period: int = 5,
        ucb_coefficient: float = 0.9,
        value_smoothing: float = 0.2,
        crossover: Any = "rows",
        mutation: Any = "gaussian",
        elite_fraction: float = 0.2,
        min_elites: int = 2,
        tournament_size: int = 3,
        crossover_prob: float = 0.01,
        mutation_prob: float = 0.2,
        evolution: bool = True,
        deploy: Literal["champion", "learner"] = "champion",
        **kwargs: Any,
    ):
        self.gammas, self.rollout_size, self.sync_period = gammas, rollout_size, sync_period
        self.ucb_coefficient, self.value_smoothing = ucb_coefficient, value_smoothing
        self.elite_fraction, self.min_elites, self.tournament_size = elite_fraction, min_elites, tournament_size
        self.crossover, self.mutation = crossover, mutation
        self.crossover_prob, self.mutation_prob, self.evolution, self.deploy = crossover_prob, mutation_prob, evolution, deploy
        self.resources: dict[str, list[float]] | None = None
        """State of the resource manager after the last generation, ``None`` before the first."""
        self.updates_owed = 0
        """Updates that the generations before ``learning_starts`` have paid for."""
        gamma = gammas[0] if isinstance(gammas, list | tuple) and gammas else 0.99  # learners have their own
        parts: dict[str, Any] = {"learner": learner, "learner_kwargs": learner_kwargs, "exchange": "none"}
        super().__init__(policy, env, learning_rate, gamma=gamma, **parts, **kwargs)

    # ---------------------------------------------------------------- set-up

    @property
    def _n_learners(self) -> int:
        return len(self.gammas)

    @property
    def _specs(self) -> list[LearnerSpec]:
        return portfolio_specs(self.gammas, self.learner_class, self.learner_kwargs, self.published_rates)

    @property
    def _spec(self) -> LearnerSpec:
        """The learner that says which replay buffer is needed."""
        specs = self._specs
        return next((spec for spec in specs if spec.buffer_class is not None), specs[0])

    def _aliases(self) -> dict[str, type[BasePolicy]]:
        return self.policy_aliases

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        return self.policy_aliases[policy_name]

    def _check_arguments(self) -> None:
        if not isinstance(self.gammas, list | tuple) or not self.gammas:
            raise ValueError(f"gammas must be a sequence of discount factors, one per learner; got {self.gammas!r}")
        for gamma in self.gammas:
            check_range("gammas", gamma, 0, 1)
        super()._check_arguments()
        check_ga_arguments(self)
        for spec in self._specs:
            spec.check_action_space(self.action_space)
        check_range("rollout_size", self.rollout_size, 1, integer=True)
        check_range("min_elites", self.min_elites, 1, integer=True)
        check_range("ucb_coefficient", self.ucb_coefficient, 0)
        check_range("value_smoothing", self.value_smoothing, 0, 1, open_low=True)
        if not issubclass(self.policy_class, CERLPolicy):
            raise ValueError(
                f"policy must be one of {sorted(self.policy_aliases)} or a subclass of CERLPolicy; got "
                f"{self.policy_class.__name__}. Put other networks into networks_class of a subclass"
            )

    @property
    def n_rollouts(self) -> int:
        """See :attr:`HybridAlgorithm.n_rollouts`."""
        return self.evolution * self.pop_size * self.n_eval_episodes + self.rollout_size

    @property
    def _n_priorities(self) -> int:
        return max(1, sum(spec.buffer_class is not None for spec in self._specs))

    def _policy_arguments(self) -> dict[str, Any]:
        alias, networks = self.policy_class.alias, self.policy_class.networks_class  # type: ignore[attr-defined]
        return {"members": [(spec.policy_class(alias, {alias: networks}), spec.policy_arguments) for spec in self._specs]}

    def _make_learner(self) -> Portfolio:
        return build_portfolio(self.policy, self._specs, self.gammas, self.learning_rate, self.policy_kwargs)

    def _evolver_arguments(self) -> dict[str, Any]:
        own, given = ga_arguments(self), super()._evolver_arguments()
        if not own:
            return given
        arguments = {"min_elites": self.min_elites, "odd_winners": "last", **own, **given}
        for name, (operator, published) in VARIATION.items():
            if arguments[name] == operator:
                arguments[f"{name}_kwargs"] = {**published, **(arguments.get(f"{name}_kwargs") or {})}
        return arguments

    def _setup_parts(self) -> None:
        super()._setup_parts()
        check_capability(self.evolver, Migration, "CERL")
        self.manager = ResourceManager(self._n_learners, self.rollout_size, self.ucb_coefficient, self.value_smoothing)
        if self.resources is not None:
            self.manager.restore(self.resources)

    # ---------------------------------------------------------------- the generation

    def _plan_rollouts(self, candidates: th.Tensor) -> tuple[list[Job], PopulationActor]:
        jobs = [Job(i, k) for i in range(self.pop_size) for k in range(self.n_eval_episodes)]
        for slot, learner in enumerate(self.manager.allocation.tolist()):
            jobs.append(Job(self.pop_size + slot, explorer=self._explorer_of(learner)))
        numbers = self.manager.allocation.tolist()
        return jobs, self.population.act_with(candidates, self.learner.actors, self.learner.migrants, numbers)

    def _parameters(self, learners: Sequence[int]) -> th.Tensor:
        return th.stack([read_parameters(self.learner.actors[number]) for number in learners])

    def _explorer_of(self, number: int) -> Explorer:
        member, noise = self.learner.members[number], self.action_noise
        if member.policy_explores:
            return PolicyExploration(member.policy.actor, noise)  # type: ignore[arg-type]
        n_actions = get_action_dim(self.action_space)
        return NoiseExploration(noise or NormalActionNoise(np.zeros(n_actions), np.full(n_actions, 0.1)))

    def _score(self, generation: Generation) -> None:
        """Fitness of the population; the manager is told the returns of the learners, in the order of the slots."""
        verbs.score(self, generation)
        episodes, allocation = generation.evaluated.episodes, self.manager.allocation
        returns = [episode.total_reward for episode in episodes if not self.is_of_population(episode.job)]
        for number, total in zip(allocation.tolist(), returns, strict=True):
            self.manager.report(number, total)
        self._shares = np.bincount(allocation, minlength=self._n_learners) / len(allocation)

    def _migrants(self, generation: Generation) -> th.Tensor | None:
        """All learners' actors that fit, as they are before this generation's updates."""
        return None if generation.number % self.sync_period else self._parameters(self.learner.migrants)

    def _tell(self, generation: Generation) -> None:
        verbs.tell(self, generation)
        self.manager.reallocate(generation.rng.random(self.rollout_size))
        self.resources = self.manager.state

    def _learn(self, generation: Generation) -> None:
        episodes = generation.evaluated
        self.updates_owed += self._updates_for(episodes.n_timesteps, len(episodes.episodes))
        if self._is_warm:
            self.train(self.updates_owed)
            self.updates_owed = 0

    def _sample(self, batch_size: int) -> Any:
        assert self.replay_buffer is not None
        return self.learner.sample(self.replay_buffer, batch_size, self._vec_normalize_env)

    def _log(self, generation: Generation) -> None:
        verbs.log(self, generation)
        for number, share in enumerate(self._shares):
            self.logger.record(f"learner_{number}/value", float(self.manager.values[number]))
            self.logger.record(f"learner_{number}/visits", int(self.manager.visits[number]))
            self.logger.record(f"learner_{number}/share", float(share))

    # ---------------------------------------------------------------- agents

    def _best(self, learners: Sequence[int]) -> Any:
        return self.learner.actors[max(learners, key=self.manager.comparable.__getitem__)]

    @property
    def _deployed_learner(self) -> Any:
        return self._best(self.learner.migrants)

    @property
    def learner_agent(self) -> BasePolicy:
        """The actor of the learner with the highest value; has ``predict``, for ``evaluate_policy``."""
        return in_space(self._best(range(self._n_learners)))

    @property
    def learner_agents(self) -> list[BasePolicy]:
        """The actors of all learners."""
        return [in_space(actor) for actor in self.learner.actors]

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "manager", "_shares"]
