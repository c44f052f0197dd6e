"""CERL: a genetic algorithm over whole actors beside a portfolio of learners that compete for rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_erl.core.arguments import known_to
from sb3_erl.core.checks import check_range
from sb3_erl.core.parameters import read_parameters
from sb3_erl.core.seeding import Stream
from sb3_erl.engine.deployment import WholeActorHybrid
from sb3_erl.learners.allocation import ResourceManager
from sb3_erl.learners.base import Learner, Precision
from sb3_erl.learners.choice import LearnerChoice, LearnerSpec, learner_spec
from sb3_erl.learners.portfolio import Portfolio
from sb3_erl.learners.td_rule import DDPGRule, TDRule
from sb3_erl.policies.cerl import CERLCnnPolicy, CERLPolicy
from sb3_erl.remote.choice import EvaluatorChoice
from sb3_erl.rollouts.acting import JointActor, ModuleActor, numpy_population, tensors_of
from sb3_erl.rollouts.exploration import NoiseExploration, PolicyExploration
from sb3_erl.rollouts.jobs import EpisodeBatch, Explorer, Job, PopulationActor

LEARNING_RATES: dict[type[TDRule], tuple[float, float]] = {DDPGRule: (1e-3, 1e-3)}
"""Those of the portfolio's TD3 where ERL's differ."""

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


class CERL(WholeActorHybrid):
    """
    Collaborative evolutionary reinforcement learning.

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

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"`` or a subclass of :class:`~sb3_erl.policies.cerl.CERLPolicy`; or,
        without ``env``, the environment or its id
    :param env: environment, vectorized or not, its id, or ``None`` for loading
    :param learning_rate: a float or a schedule for all learners; ``None`` for each learner's own (TD3 and DDPG: 1e-3, TD7:
        3e-4, SB3 classes: their default)
    :param learning_starts: stored transitions, more than which there must be before the first gradient update; the updates
        owed until then follow in one go
    :param action_noise: exploration of the learners; ``None`` for N(0, 0.1), for SB3 classes nothing beside the policy's own
        randomness
    :param gammas: discount factors of the learners, which also say how many there are. They stand in place of ``gamma``
    :param learner: ``"td3"``, ``"ddpg"``, ``"td7"``, ``"sac"`` or an SB3 off-policy class for continuous actions; or a
        sequence of these, one per discount factor. Where a TD7 is among them, the replay buffer is a
        :class:`~sb3_erl.buffers.lap.LAPReplayBuffer` with priorities for each TD7, from which the others draw uniformly
    :param learner_kwargs: further arguments of the learners, as in :class:`~sb3_erl.algorithms.erl.ERL`; a mapping for all
        or a sequence with one per learner
    :param pop_size: number of individuals, at least 2
    :param rollout_size: exploring episodes of the learners per generation, at least one per learner
    :param sync_period: generations between two migrations
    :param ucb_coefficient: weight of the exploration term in a learner's score
    :param value_smoothing: weight in (0, 1] of a new return in a learner's value
    :param n_eval_episodes: episodes per individual and generation
    :param elite_fraction: share of the population that survives unchanged
    :param min_elites: smallest number of elites
    :param tournament_size: contestants per tournament, at least 2
    :param crossover_prob: probability of crossing two selected individuals in place
    :param mutation_prob: probability of mutating an individual, migrants included
    :param evolver_kwargs: further arguments of :class:`~sb3_erl.evolution.ga.GA`, for example ``mutation_kwargs``, which are
        merged with those of the authors
    :param deploy: who acts in ``predict``: ``"champion"`` (the first learner before the first evaluation), or ``"learner"``:
        of those that migrate the one with the highest value
    :param policy_kwargs: arguments of all learners' policies; ``by_learner``, a sequence of mappings, for those of each
    :raises ValueError: if an argument is out of range or unknown, or the environment's spaces are not supported
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": CERLPolicy, "CnnPolicy": CERLCnnPolicy}
    policy: CERLPolicy
    learner_rule: Portfolio

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule | None = None,
        buffer_size: int = 1_000_000,
        learning_starts: int = 2560,
        batch_size: int = 256,
        tau: float = 0.005,
        gammas: Sequence[float] = (0.9, 0.99, 0.997, 0.9995),
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        learner: LearnerChoice | Sequence[LearnerChoice] = "td3",
        learner_kwargs: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
        pop_size: int = 10,
        rollout_size: int = 10,
        sync_period: int = 5,
        ucb_coefficient: float = 0.9,
        value_smoothing: float = 0.2,
        n_eval_episodes: int = 1,
        elite_fraction: float = 0.2,
        min_elites: int = 2,
        tournament_size: int = 3,
        crossover_prob: float = 0.01,
        mutation_prob: float = 0.2,
        evolver_kwargs: dict[str, Any] | None = None,
        deploy: Literal["champion", "learner"] = "champion",
        evaluator: EvaluatorChoice = "vec",
        precision: Precision = "fp32",
        compile: bool = False,
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        self.gammas, self.learner, self.learner_kwargs = gammas, learner, learner_kwargs
        self.rollout_size, self.sync_period = rollout_size, sync_period
        self.ucb_coefficient, self.value_smoothing = ucb_coefficient, value_smoothing
        self.n_eval_episodes, self.tournament_size = n_eval_episodes, tournament_size
        self.elite_fraction, self.min_elites = elite_fraction, min_elites
        self.crossover_prob, self.mutation_prob = crossover_prob, mutation_prob
        self.evolver_kwargs, self.deploy = evolver_kwargs, deploy
        self.resources: dict[str, list[float]] | None = None
        """State of the resource manager after the last generation, ``None`` before the first."""
        self.updates_owed = 0
        """Updates that the generations before ``learning_starts`` have paid for."""
        gamma = gammas[0] if isinstance(gammas, list | tuple) and gammas else 0.99  # nobody reads it
        super().__init__(**known_to(super().__init__, locals()))

    # ---------------------------------------------------------------- set-up

    @property
    def _n_learners(self) -> int:
        return len(self.gammas)

    def _per_learner(self, name: str, plain: type | tuple[type, ...]) -> list[Any]:
        """The values of an argument that is one value for all learners, of a type ``plain``, or a sequence of them."""
        given = getattr(self, name)
        if isinstance(given, plain) or not isinstance(given, list | tuple):
            return [given] * self._n_learners
        if len(given) != self._n_learners:
            raise ValueError(
                f"{name} must be one for all learners or a sequence with one for each of gammas={list(self.gammas)}, "
                f"{self._n_learners}; got {len(given)}: {given!r}"
            )
        return list(given)

    @property
    def _learners(self) -> list[LearnerChoice]:
        return self._per_learner("learner", (str, type, TDRule))

    @property
    def _learner_specs(self) -> list[LearnerSpec]:
        kwargs = self._per_learner("learner_kwargs", dict)
        pairs = zip(self._learners, kwargs, strict=True)
        return [learner_spec(learner, own, learning_rates=LEARNING_RATES) for learner, own in pairs]

    def _check_arguments(self) -> None:
        if not isinstance(self.gammas, list | tuple) or not self.gammas:
            raise ValueError(f"gammas must be a sequence of discount factors, one per learner; got {self.gammas!r}")
        for gamma in self.gammas:
            check_range("gammas", gamma, 0, 1)
        super()._check_arguments()
        for spec in self._learner_specs:
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
    def _n_jobs(self) -> int:
        return self.pop_size * self.n_eval_episodes + self.rollout_size

    def _rule_class(self) -> type[Learner]:
        rules = [spec.learner_class for spec in self._learner_specs]
        return next((rule for rule in rules if rule.buffer_class is not None), rules[0])

    @property
    def _published_rates(self) -> tuple[float, float]:
        specs = self._learner_specs
        return next((spec for spec in specs if spec.buffer_class is not None), specs[0]).learning_rates

    @property
    def _n_priorities(self) -> int:
        return max(1, sum(spec.buffer_class is not None for spec in self._learner_specs))

    def _policy_arguments(self) -> dict[str, Any]:
        alias, networks = self.policy_class.alias, self.policy_class.networks_class  # type: ignore[attr-defined]
        own = {alias: networks}
        return {"members": [(spec.policy_class(alias, own), spec.policy_arguments) for spec in self._learner_specs]}

    def _setup_parts(self) -> None:
        specs, members = self._learner_specs, []
        for number, spec in enumerate(specs):
            first = sum(each.buffer_class is not None for each in specs[:number])
            members.append(self._make_learner(number, spec, first))
        self.learner_rule = Portfolio(self.policy, members, self.gammas)
        policy: Any = self.policy
        self.actor, self.critic = policy.actor, policy.critic
        self.actor_target, self.critic_target = policy.actor_target, policy.critic_target
        self._setup_population()
        smoothing = (self.ucb_coefficient, self.value_smoothing)
        self.manager = ResourceManager(self._n_learners, self.rollout_size, *smoothing)
        if self.resources is not None:
            self.manager.restore(self.resources)

    def _make_learner(self, number: int, spec: LearnerSpec, priority_set: int) -> Learner:
        common = {key: value for key, value in self.policy_kwargs.items() if key != "by_learner"}
        own = (self.policy_kwargs.get("by_learner") or [{}] * self._n_learners)[number]
        learner = spec.build(
            self.policy.members[number],  # type: ignore[arg-type]
            {"delay_critic_target": False},
            priority_set=priority_set,
            learning_rate=self.learning_rate,
            policy_kwargs={**common, **own},
        )
        if spec.sb3_class is not None:
            self.policy.adopt(number, learner.policy)
        return learner

    def _evolver_arguments(self) -> dict[str, Any]:
        arguments = {"min_elites": self.min_elites, "odd_winners": "last", **super()._evolver_arguments()}
        for name, (operator, published) in VARIATION.items():
            if arguments.get(name, operator) == operator:
                arguments[f"{name}_kwargs"] = {**published, **(arguments.get(f"{name}_kwargs") or {})}
        return arguments

    # ---------------------------------------------------------------- the generation

    def _generation(self, callback: BaseCallback) -> bool:
        """Ask -> evaluate -> share out -> tell -> learn -> deploy -> log; see :meth:`GenerationalMixin._generation`."""
        rng = self._rng(Stream.EVOLUTION)
        candidates = self.evolver.ask(rng)  # (pop_size, n_params)
        jobs, actor = self._plan_rollouts(candidates)
        episodes = self._evaluate(jobs, actor, callback)
        if episodes is None:
            return False
        fitness = self._fitness(candidates, episodes)
        shares = self._report(episodes)
        self._tell(candidates, fitness, rng)  # migrants come as they are before this generation's updates
        self.manager.reallocate(rng.random(self.rollout_size))
        self.resources = self.manager.state
        self.updates_owed += self._n_gradient_steps(episodes)
        if self._is_warm:
            self.train(self.updates_owed)
            self.updates_owed = 0
        self._deploy(candidates, fitness)
        self._log_generation(fitness, episodes)
        self._log_learners(shares)
        return True

    def _plan_rollouts(self, candidates: th.Tensor) -> tuple[list[Job], PopulationActor]:
        jobs = [Job(i, k) for i in range(self.pop_size) for k in range(self.n_eval_episodes)]
        for slot, learner in enumerate(self.manager.allocation.tolist()):
            jobs.append(Job(self.pop_size + slot, explorer=self._explorer_of(learner)))
        return jobs, self._joint_actor(candidates)

    def _joint_actor(self, candidates: th.Tensor) -> PopulationActor:
        """Acts for the population and for the learners in their slots; those of the population's shape act with it."""
        actors, migrants = self.learner_rule.actors, self.learner_rule.migrants
        parts = [self._population_actor(th.cat([candidates, self._parameters(migrants)]))]
        homes = {number: (0, self.pop_size + row) for row, number in enumerate(migrants)}
        for number, actor in enumerate(actors):
            if number not in migrants:
                homes[number] = (len(parts), 0)
                parts.append(numpy_population(actor, tensors_of) or ModuleActor([actor]))
        population = [(0, row) for row in range(self.pop_size)]
        return JointActor(parts, population + [homes[learner] for learner in self.manager.allocation.tolist()])

    def _parameters(self, learners: Sequence[int]) -> th.Tensor:
        return th.stack([read_parameters(self.learner_rule.actors[number]) for number in learners])

    def _explorer_of(self, learner: int) -> Explorer:
        member, noise = self.learner_rule.members[learner], self.action_noise
        if member.policy_explores:
            return PolicyExploration(member.policy.actor, noise)  # type: ignore[arg-type]
        n_actions = get_action_dim(self.action_space)
        return NoiseExploration(noise or NormalActionNoise(np.zeros(n_actions), np.full(n_actions, 0.1)))

    def _report(self, episodes: EpisodeBatch) -> np.ndarray:
        """Tell the resource manager about the learners' episodes in slot order; returns each learner's share of them."""
        allocation = self.manager.allocation
        returns = [episode.total_reward for episode in episodes.episodes if episode.job.candidate >= self.pop_size]
        for learner, total in zip(allocation.tolist(), returns, strict=True):
            self.manager.report(learner, total)
        return np.bincount(allocation, minlength=self._n_learners) / len(allocation)

    def _tell(self, candidates: th.Tensor, fitness: np.ndarray | None, rng: np.random.Generator) -> None:
        assert fitness is not None
        migrate = (self.n_generations + 1) % self.sync_period == 0
        self._ga_tell(candidates, fitness, rng, self._parameters(self.learner_rule.migrants) if migrate else None)

    def _sample(self, batch_size: int) -> Any:
        assert self.replay_buffer is not None
        return self.learner_rule.sample(self.replay_buffer, batch_size, self._vec_normalize_env)

    def _log_learners(self, shares: np.ndarray) -> None:
        for number, share in enumerate(shares):
            self.logger.record(f"learner_{number}/value", float(self.manager.values[number]))
            self.logger.record(f"learner_{number}/visits", int(self.manager.visits[number]))
            self.logger.record(f"learner_{number}/share", float(share))

    # ---------------------------------------------------------------- agents

    def _best(self, learners: Sequence[int]) -> Any:
        return self.learner_rule.actors[max(learners, key=lambda number: self.manager.values[number])]

    @property
    def _leader(self) -> Any:
        return self._best(self.learner_rule.migrants)

    @property
    def learner_agent(self) -> BasePolicy:
        """The actor of the learner with the highest value; has ``predict``, for ``evaluate_policy``."""
        return self._best(range(self._n_learners))

    @property
    def learner_agents(self) -> list[BasePolicy]:
        """The actors of all learners."""
        return self.learner_rule.actors

    # ---------------------------------------------------------------- saving

    def load_replay_buffer(self, path: Any, truncate_last_traj: bool = True) -> None:
        """
        See ``OffPolicyAlgorithm.load_replay_buffer``.

        :param path: file name or open file
        :param truncate_last_traj: for HER buffers only
        :raises ValueError: if the file has priorities, but not for each TD7; the model then keeps its buffer
        """
        kept = self.replay_buffer
        super().load_replay_buffer(path, truncate_last_traj)
        wanted = self._n_priorities
        found = len(getattr(self.replay_buffer, "trees", range(wanted)))  # a buffer without priorities fits as well
        if found != wanted:
            self.replay_buffer = kept
            raise ValueError(
                f"path must hold a replay buffer with {wanted} sets of priorities, one per TD7 learner; got one with {found}. "
                "Load the buffer of a model with the same learners"
            )

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "manager"]
