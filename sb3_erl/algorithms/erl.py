"""ERL: a genetic algorithm over whole actors beside a gradient learner."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_erl.core.arguments import known_to
from sb3_erl.core.checks import check_range
from sb3_erl.core.parameters import read_parameters
from sb3_erl.engine.deployment import WholeActorHybrid
from sb3_erl.engine.replace import ReplaceWeakest
from sb3_erl.learners.base import Learner, Precision
from sb3_erl.learners.choice import LearnerChoice, LearnerSpec, learner_spec
from sb3_erl.learners.td_rule import DDPGRule
from sb3_erl.policies.erl import ERLCnnPolicy, ERLPolicy, deploying
from sb3_erl.remote.choice import EvaluatorChoice
from sb3_erl.rollouts.exploration import NoiseExploration, PolicyExploration
from sb3_erl.rollouts.jobs import Explorer, Job, PopulationActor


class ERL(WholeActorHybrid):
    """
    Evolutionary reinforcement learning.

    Khadka & Tumer (NeurIPS 2018), https://arxiv.org/abs/1805.07917; authors' code:
    ShawK91/Evolutionary-Reinforcement-Learning, 2018 revision. A GA evolves actors on their episode return, all their
    transitions train a separate learner, and every few generations the learner's actor replaces the weakest individual.

    Differences from the authors' code:

    1. the learner never overwrites a protected elite copy;
    2. the actor's gradient is clipped (their second clip names the critic's parameters by mistake);
    3. noisy actions are clipped to [-1, 1]; the noise process starts anew each episode;
    4. time limits are stored as truncations, not as terminals;
    5. the champion is not tested inside the loop, use SB3's ``EvalCallback``.

    The authors' later code: ``learner="sac", n_migrants=1, crossover_prob=0.15, elite_fraction=0.2,
    evolver_kwargs={"odd_winners": "last", "mutation_kwargs": {"fraction": 0.05, "reset_prob": 0.02, "reset_std": 0.1}}``.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"`` or a policy class; or, without ``env``, the environment or its id
    :param env: environment, vectorized or not, its id, or ``None`` for loading
    :param learning_rate: a float or a schedule for actor and critic; ``None`` for the learner's published pair (DDPG: 5e-5
        and 5e-4, TD3: 1e-3, TD7: 3e-4) or, with an SB3 class, for its default
    :param learning_starts: stored transitions before the first gradient update
    :param action_noise: exploration of the learner; ``None`` for the learner's own: Ornstein-Uhlenbeck (theta 0.15, sigma
        0.06) for DDPG, N(0, 0.1) for TD3, nothing beside the policy's own randomness for SB3 classes
    :param learner: ``"ddpg"``, ``"td3"``, ``"td7"``, ``"sac"``, an SB3 off-policy class for continuous actions (TQC, ...), a
        rule or learner of one's own (:class:`~sb3_erl.learners.td_rule.TDRule`, :class:`~sb3_erl.learners.base.Learner`), or
        ``"package.module:Name"``. With TD7 an individual is an actor on the learner's fixed state embedding, which is no part
        of its genome and changes between generations only; the replay buffer is a
        :class:`~sb3_erl.buffers.lap.LAPReplayBuffer`
    :param learner_kwargs: further arguments of the learner: ``n_critics``, ``policy_delay``, ``target_policy_noise``,
        ``target_noise_clip`` for rules and TD7, see also :class:`~sb3_erl.learners.td7.TD7Settings`; constructor arguments
        for an SB3 class
    :param max_grad_norm: clip gradients of DDPG and TD3 at this norm, ``None`` for no clipping
    :param n_eval_episodes: episodes per individual and generation (xi in the paper)
    :param elite_fraction: share of the population that survives unchanged, at least one (psi)
    :param tournament_size: contestants per tournament, at least 2
    :param mutation_prob: probability of mutating an individual
    :param crossover_prob: probability of crossing two selected individuals in place
    :param sync_period: generations between two injections of the learner's actor (omega)
    :param n_migrants: with a positive number, copies of the learner's actor join selection in unselected slots each
        ``sync_period`` generations instead of replacing the weakest after it (the authors' later code)
    :param n_learner_episodes: exploring episodes of the learner per generation
    :param evolver_kwargs: further arguments of :class:`~sb3_erl.evolution.ga.GA`, for example ``mutation_kwargs``
    :param deploy: who acts in ``predict``: ``"champion"`` (the learner before the first evaluation) or ``"learner"``
    :raises ValueError: if an argument is out of range or unknown, or the environment's spaces are not supported
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": ERLPolicy, "CnnPolicy": ERLCnnPolicy}

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule | None = None,
        buffer_size: int = 1_000_000,
        learning_starts: int = 640,
        batch_size: int = 128,
        tau: float = 0.001,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        learner: LearnerChoice = "ddpg",
        learner_kwargs: dict[str, Any] | None = None,
        max_grad_norm: float | None = 10.0,
        pop_size: int = 10,
        n_eval_episodes: int = 1,
        elite_fraction: float = 0.1,
        tournament_size: int = 3,
        mutation_prob: float = 0.9,
        crossover_prob: float = 0.0,
        sync_period: int = 10,
        n_migrants: int = 0,
        n_learner_episodes: int = 1,
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
        self.learner = learner
        self.learner_kwargs = learner_kwargs
        self.max_grad_norm = max_grad_norm
        self.n_eval_episodes = n_eval_episodes
        self.elite_fraction = elite_fraction
        self.tournament_size = tournament_size
        self.mutation_prob = mutation_prob
        self.crossover_prob = crossover_prob
        self.sync_period = sync_period
        self.n_migrants = n_migrants
        self.n_learner_episodes = n_learner_episodes
        self.evolver_kwargs = evolver_kwargs
        self.deploy = deploy
        super().__init__(**known_to(super().__init__, locals()))

    # ---------------------------------------------------------------- set-up

    @property
    def _learner_spec(self) -> LearnerSpec:
        return learner_spec(self.learner, self.learner_kwargs)

    def _aliases(self) -> dict[str, type[BasePolicy]]:
        return self._learner_spec.aliases(self.policy_aliases)

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        return deploying(self._learner_spec.policy_class(policy_name, self.policy_aliases))

    def _check_arguments(self) -> None:
        super()._check_arguments()
        self._learner_spec.check_action_space(self.action_space)
        check_range("n_learner_episodes", self.n_learner_episodes, 1, integer=True)
        check_range("n_migrants", self.n_migrants, 0, self.pop_size - 1, integer=True)

    @property
    def _n_jobs(self) -> int:
        return self.pop_size * self.n_eval_episodes + self.n_learner_episodes

    def _rule_class(self) -> type[Learner]:
        return self._learner_spec.learner_class

    @property
    def _published_rates(self) -> tuple[float, float]:
        return self._learner_spec.learning_rates

    def _policy_arguments(self) -> dict[str, Any]:
        return self._learner_spec.policy_arguments

    def _setup_parts(self) -> None:
        self.learner_rule = self._learner_spec.build(
            self.policy,
            {"max_grad_norm": self.max_grad_norm},
            learning_rate=self.learning_rate,
            policy_kwargs=self.policy_kwargs,
        )
        self.policy = self.learner_rule.policy
        policy: Any = self.policy
        self.actor, self.critic, self.encoder = policy.actor, policy.critic, getattr(policy, "encoder", None)
        self.actor_target = getattr(self.policy, "actor_target", None)
        self.critic_target = getattr(self.policy, "critic_target", None)
        self._setup_population()
        self.exchange = ReplaceWeakest(self.sync_period)

    # ---------------------------------------------------------------- the parts of a generation

    def _explorer(self, noise: ActionNoise | None) -> Explorer:
        n_actions = get_action_dim(self.action_space)
        if self.learner_rule.policy_explores:
            return PolicyExploration(self.actor, noise)
        if noise is None and isinstance(self._learner_spec.rule, DDPGRule):
            noise = OrnsteinUhlenbeckActionNoise(np.zeros(n_actions), np.full(n_actions, 0.06), theta=0.15, dt=1.0)
        elif noise is None:
            noise = NormalActionNoise(np.zeros(n_actions), np.full(n_actions, 0.1))
        return NoiseExploration(noise)

    def _plan_rollouts(self, candidates: th.Tensor) -> tuple[list[Job], PopulationActor]:
        jobs = [Job(i, k) for i in range(self.pop_size) for k in range(self.n_eval_episodes)]
        for k in range(self.n_learner_episodes):  # episodes side by side must not share an explorer
            jobs.append(Job(self.pop_size, k, explorer=self._explorer(self.action_noise)))
        vectors = th.cat([candidates, read_parameters(self.actor)[None]])
        return jobs, self._population_actor(vectors)

    def _tell(self, candidates: th.Tensor, fitness: np.ndarray | None, rng: np.random.Generator) -> None:
        assert fitness is not None
        migrate = self.n_migrants > 0 and self._is_warm and (self.n_generations + 1) % self.sync_period == 0
        migrants = read_parameters(self.actor).expand(self.n_migrants, -1) if migrate else None
        self._ga_tell(candidates, fitness, rng, migrants)

    def _exchange(self, fitness: np.ndarray | None) -> None:
        if self.n_migrants == 0:
            self._inject(read_parameters(self.actor), fitness)
