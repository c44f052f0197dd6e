"""ERL: a genetic algorithm over whole actors beside a gradient learner."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor

from sb3_erl.core.arguments import inherits_arguments
from sb3_erl.core.checks import check_range
from sb3_erl.engine.generation import Generation
from sb3_erl.engine.hybrid import HybridAlgorithm
from sb3_erl.engine.population import Population, check_ga_arguments, ga_arguments
from sb3_erl.engine.replace import make_exchange
from sb3_erl.evolution.base import Migration, check_capability
from sb3_erl.learners.base import Learner
from sb3_erl.learners.td_rule import DDPGRule
from sb3_erl.policies.erl import ERL_POLICIES
from sb3_erl.rollouts.exploration import EpsilonGreedyExploration, NoiseExploration, PolicyExploration
from sb3_erl.rollouts.jobs import Explorer, Job, PopulationActor


class ERL(HybridAlgorithm):
    """
    Evolutionary reinforcement learning.

    A population and a gradient learner that share all transitions; for continuous actions, with ``learner="dqn"`` for discrete
    ones: ``ERL("Pendulum-v1", learner="td3", verbose=1).learn(50_000)``, then ``model.predict`` acts with the best individual.

    Khadka & Tumer (NeurIPS 2018), https://arxiv.org/abs/1805.07917; authors' code:
    ShawK91/Evolutionary-Reinforcement-Learning, 2018 revision. A GA evolves actors on their episode return, all their
    transitions train a separate learner, and every few generations the learner's actor replaces the weakest individual.

    Differences from the authors' code:

    1. the learner never overwrites a protected elite copy;
    2. the actor's gradient is clipped (their second clip names the critic's parameters by mistake);
    3. noisy actions are clipped to [-1, 1]; the noise process starts anew each episode;
    4. time limits are stored as truncations, not as terminals;
    5. the champion is not tested inside the loop, use SB3's ``EvalCallback``.

    The authors' later code, but for a learning rate of the actor's own (1e-4) and four more copies of the same migrant:
    ``learner="sac", learner_kwargs={"ent_coef": 0.1}, batch_size=512, learning_starts=5000, n_learner_episodes=5,
    n_migrants=1, sync_period=1, crossover_prob=0.15, elite_fraction=0.2, evolver_kwargs={"odd_winners": "last",
    "min_elites": 2, "crossover_kwargs": {"max_matrix_share": 0.3, "inclusive": True, "vector_skip_prob": 0.8,
    "single_entry": True}, "mutation_kwargs": {"fraction": 0.05, "inclusive": True, "reset_prob": 0.02, "reset_std": 0.1,
    "vector_scale": 0.04, "limit": 1e7}}``.

    Parameters that are not listed here are those of :class:`~sb3_erl.engine.hybrid.HybridAlgorithm` and
    :class:`~sb3_erl.engine.off_policy_model.OffPolicyModel`.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"`` or a policy class; or, without ``env``, the environment or its id
    :param env: environment, vectorized or not, its id, or ``None`` for loading
    :param learning_rate: a float or a schedule for actor and critic; ``None`` for the learner's published pair (DDPG: 5e-5
        and 5e-4, TD3: 1e-3, TD7, SAC and DQN: 3e-4) or, with an SB3 class, for its default
    :param learner: see :class:`~sb3_erl.engine.hybrid.HybridAlgorithm`. With TD7 an individual is an actor on the learner's
        fixed state embedding, which is no part of its genome and changes between generations only; the replay buffer is a
        :class:`~sb3_erl.buffers.lap.LAPReplayBuffer`. With ``"dqn"`` individuals are Q-networks, and actions are discrete
    :param max_grad_norm: clip gradients of DDPG and TD3 at this norm, ``None`` for no clipping; SAC and DQN have such an
        argument in ``learner_kwargs``
    :param crossover: ``"rows"``, ``"package.module:Name"`` or a class; further arguments are
        ``evolver_kwargs={"crossover_kwargs": {...}}``
    :param mutation: ``"gaussian"``, ``"package.module:Name"`` or a class, as ``crossover``
    :param elite_fraction: share of the population that survives unchanged, at least one (psi)
    :param tournament_size: contestants per tournament, at least 2
    :param mutation_prob: probability of mutating an individual
    :param crossover_prob: probability of crossing two selected individuals in place
    :param sync_period: generations between two injections of the learner's actor (omega)
    :param n_migrants: with a positive number, copies of the learner's actor join selection in unselected slots each
        ``sync_period`` generations instead of replacing the weakest after it (the authors' later code); without another
        ``exchange``
    :param n_learner_episodes: exploring episodes of the learner per generation
    :param exploration_initial_eps: with discrete actions, share of random actions at the beginning, in [0, 1]
    :param exploration_final_eps: with discrete actions, share of random actions in the end, in [0, 1]
    :param exploration_fraction: share of ``total_timesteps`` over which the share of random actions falls, in (0, 1]
    :param evolution: ``False`` trains the learner alone; a generation is then its ``n_learner_episodes``
    :param deploy: who acts in ``predict``: ``"champion"`` (the learner before the first evaluation) or ``"learner"``
    :raises ValueError: if an argument is out of range or unknown, or the environment's spaces are not supported
    """

    reported_candidates = ("champion",)
    _warms_up_by = "steps"
    policy_aliases = ERL_POLICIES

    @inherits_arguments(learning_starts=640, batch_size=128, tau=0.001)
    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule | None = None,
        learner: Any = "ddpg",
        max_grad_norm: float | None = 10.0,
        crossover: Any = "rows",
        mutation: Any = "gaussian",
        elite_fraction: float = 0.1,
        tournament_size: int = 3,
        mutation_prob: float = 0.9,
        crossover_prob: float = 0.0,
        sync_period: int = 10,
        n_migrants: int = 0,
        n_learner_episodes: int = 1,
        exploration_initial_eps: float = 1.0,
        exploration_final_eps: float = 0.05,
        exploration_fraction: float = 0.1,
        evolution: bool = True,
        deploy: Literal["champion", "learner"] = "champion",
        **kwargs: Any,
    ):
        self.max_grad_norm, self.crossover, self.mutation = max_grad_norm, crossover, mutation
        self.elite_fraction, self.tournament_size = elite_fraction, tournament_size
        self.mutation_prob, self.crossover_prob = mutation_prob, crossover_prob
        self.sync_period, self.n_migrants, self.n_learner_episodes = sync_period, n_migrants, n_learner_episodes
        self.exploration_initial_eps, self.exploration_final_eps = exploration_initial_eps, exploration_final_eps
        self.exploration_fraction, self.evolution, self.deploy = exploration_fraction, evolution, deploy
        super().__init__(policy, env, learning_rate, learner=learner, **kwargs)

    # ---------------------------------------------------------------- set-up

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_ga_arguments(self)
        check_range("n_learner_episodes", self.n_learner_episodes, 1, integer=True)
        check_range("n_migrants", self.n_migrants, 0, self.pop_size - 1, integer=True)
        self._check_migrants()
        if self.action_noise is not None and self.takes_discrete_actions:
            raise ValueError(
                f"action_noise must be None with discrete actions; got {self.action_noise!r}. exploration_initial_eps, "
                "exploration_final_eps and exploration_fraction say how many actions are random"
            )
        for name in ("exploration_initial_eps", "exploration_final_eps"):
            check_range(name, getattr(self, name), 0, 1)
        check_range("exploration_fraction", self.exploration_fraction, 0, 1, open_low=True)

    def _check_migrants(self) -> None:
        """:raises ValueError: if the learner shall migrate, and something else shall go to the population or nothing can"""
        if self.n_migrants == 0:
            return
        stated = f"with n_migrants={self.n_migrants}, which copies the learner before selection"
        if self.exchange_class not in ("replace_weakest", "none") or self.exchange_kwargs:
            raise ValueError(
                f"exchange must be left out {stated}; got {self.exchange_class!r} with {self.exchange_kwargs or {}}. Set "
                "n_migrants=0 for an exchange after selection"
            )
        if self.population_policy_kwargs is not None:
            raise ValueError(
                f"population_policy_kwargs must be None {stated}; got {self.population_policy_kwargs!r}. Set n_migrants=0 and "
                "exchange='imitate' for individuals of another architecture than the learner's"
            )

    @property
    def n_rollouts(self) -> int:
        """See :attr:`HybridAlgorithm.n_rollouts`."""
        return self.evolution * self.pop_size * self.n_eval_episodes + self.n_learner_episodes

    def _make_learner(self) -> Learner:
        rates_and_kwargs: Any = {"learning_rate": self.learning_rate, "policy_kwargs": dict(self.policy_kwargs)}
        return self._spec.build(self.policy, {"max_grad_norm": self.max_grad_norm}, **rates_and_kwargs)

    def _make_population(self) -> Population:
        population = super()._make_population()
        if self.n_migrants > 0:
            check_capability(population.evolver, Migration, f"n_migrants={self.n_migrants}")
        return population

    def _evolver_arguments(self) -> dict[str, Any]:
        return {**ga_arguments(self), **super()._evolver_arguments()}

    def _make_exchange(self) -> Any:
        if self.n_migrants > 0:
            return None
        return make_exchange(self.exchange_class, self.learner, {"sync_period": self.sync_period}, self.exchange_kwargs or {})

    # ---------------------------------------------------------------- the parts of a generation

    def _explorer(self, noise: ActionNoise | None) -> Explorer:
        if isinstance(self.action_space, spaces.Discrete):
            done = min((1 - self._current_progress_remaining) / self.exploration_fraction, 1.0)
            start, end = self.exploration_initial_eps, self.exploration_final_eps
            return EpsilonGreedyExploration(int(self.action_space.n), start + done * (end - start))
        n_actions, spec = get_action_dim(self.action_space), self._spec
        if self.learner.policy_explores:
            return PolicyExploration(self.actor, noise)  # type: ignore[arg-type]
        if noise is None and isinstance(spec.rule, DDPGRule):
            noise = OrnsteinUhlenbeckActionNoise(np.zeros(n_actions), np.full(n_actions, 0.06), theta=0.15, dt=1.0)
        elif noise is None:
            noise = NormalActionNoise(np.zeros(n_actions), np.full(n_actions, 0.1))
        return NoiseExploration(noise)

    def _plan_rollouts(self, candidates: Tensor) -> tuple[list[Job], PopulationActor]:
        jobs = [Job(i, k) for i in range(self.pop_size) for k in range(self.n_eval_episodes)]
        for k in range(self.n_learner_episodes):  # episodes side by side must not share an explorer
            jobs.append(Job(self.pop_size, k, explorer=self._explorer(self.action_noise)))
        return jobs, self._act(candidates)

    def _migrants(self, generation: Generation) -> Tensor | None:
        if self.n_migrants == 0 or not self._is_warm or generation.number % self.sync_period:
            return None
        learner = self.population.representation.from_learner()
        return None if learner is None else learner.expand(self.n_migrants, -1)
