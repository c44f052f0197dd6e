"""ERL-Re2: evolution on linear heads over a state representation that all policies share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_erl.core.arguments import known_to
from sb3_erl.core.checks import check_choice, check_range
from sb3_erl.core.parameters import ParameterLayout, read_parameters, write_parameters
from sb3_erl.core.seeding import Stream
from sb3_erl.engine.genetic import GeneticHybrid
from sb3_erl.engine.replace import ReplaceWeakest
from sb3_erl.evolution.fitness.returns import episode_return
from sb3_erl.evolution.fitness.surrogate import h_step_value
from sb3_erl.evolution.ga import GA
from sb3_erl.evolution.operators.selection import rank_best_first
from sb3_erl.learners.assessment import Assessment, AssessmentSettings
from sb3_erl.learners.base import Learner, Precision
from sb3_erl.learners.choice import LearnerChoice, LearnerSpec, learner_spec
from sb3_erl.learners.erl_re2 import EncoderStep, Heads, SharedTD3Learner
from sb3_erl.learners.erl_re2_td7 import SharedTD7Learner
from sb3_erl.learners.td3 import TD3Learner
from sb3_erl.learners.td7 import TD7Learner
from sb3_erl.learners.td_rule import DDPGRule, TDRule
from sb3_erl.policies.erl_re2 import ERLRe2CnnPolicy, ERLRe2Policy, PolicyEncoder, PolicyExtendedCritic
from sb3_erl.policies.erl_re2_td7 import SharedSALEPolicy
from sb3_erl.remote.choice import EvaluatorChoice
from sb3_erl.rollouts.acting import ModuleActor, NetworkPool, numpy_population, tensors_of
from sb3_erl.rollouts.jobs import EpisodeBatch, Job, PopulationActor

FORMS: dict[type[Learner], type[Learner]] = {TD3Learner: SharedTD3Learner, TD7Learner: SharedTD7Learner}
"""Learners on a shared encoder."""
LEARNING_RATES: dict[type[TDRule], tuple[float, float]] = {DDPGRule: (1e-3, 1e-3)}
"""The DDPG form is that of the paper's section 10 with TD3's learning rates."""


class ERLRe2(GeneticHybrid):
    """
    ERL-Re2: evolutionary reinforcement learning with two-scale state and policy representation.

    Hao, Li, Tang, Zheng, Fu, Meng (ICLR 2023), https://arxiv.org/abs/2210.17375; authors' code: yeshenpy/ERL-Re2. One
    nonlinear state encoder is shared; every policy is a linear head on it. A GA works on head rows, a TD3 learner trains
    its own head, and a policy-extended value function (PeVFA) trains the encoder for the population and replaces most of
    each fitness episode by a bootstrap.

    Differences from the authors' code:

    1. no evolution before the first fitness evaluation (``evolve_during_warmup=True`` restores it);
    2. the PeVFA reads a head row by row as in the paper (``pevfa_layout="flat"`` restores the code's cut);
    3. the encoder sees the learner's loss with the stepped head, see ``encoder_step``;
    4. partial rollouts are not bootstrapped at a true terminal, and are at time limits;
    5. time limits are stored as truncations; actions are rescaled to the environment's box;
    6. no test episodes inside the loop, use SB3's ``EvalCallback``.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"`` or a policy class; or, without ``env``, the environment or its id
    :param env: environment, vectorized or not, its id, or ``None`` for loading
    :param learning_rate: of all optimizers, a float or a schedule; ``None`` for the learner's own (1e-3, TD7: 3e-4)
    :param learning_starts: random steps of the learner before anything is evaluated or learned
    :param action_noise: exploration of the learner, ``None`` for N(0, 0.1) in each dimension
    :param batch_size: transitions per update, ``None`` for the learner's own (128, TD7: 256)
    :param learner: ``"td3"``, ``"ddpg"``, a :class:`~sb3_erl.learners.td_rule.TDRule` of one's own, ``"package.module:Name"``,
        or ``"td7"`` (TD7's actor without its last layer is the shared encoder, see
        :class:`~sb3_erl.learners.erl_re2_td7.SharedTD7Learner`; ``tau`` and ``encoder_step`` have no meaning there)
    :param policy_delay: iterations per policy step; ``None`` for the learner's own (2 for TD3, 1 for DDPG)
    :param target_policy_noise: std of target smoothing; ``None`` for the learner's own (0.2 for TD3, 0 for DDPG)
    :param target_noise_clip: bound of target smoothing
    :param max_grad_norm: clip each network's gradient at this norm (with TD7 that of the PeVFA alone), ``None`` for no
        clipping
    :param encoder_step: ``"recompute"``, ``"joint"`` or ``"torch11"``, see
        :class:`~sb3_erl.learners.erl_re2.SharedTD3Learner`
    :param pop_size: number of heads in the population
    :param evolution: ``False`` trains the learner alone (no population, no PeVFA)
    :param elite_fraction: share of the population that survives unchanged, at least one
    :param mutation_fraction: share of a row's weights that one mutation changes (beta in the paper)
    :param super_mutation_prob: probability of a super mutation of a row
    :param reset_prob: probability of a reset of a row
    :param sync_period: generations between two injections of the learner's head
    :param evolve_during_warmup: evolve blindly before the first evaluation, as the authors' code does
    :param n_eval_episodes: episodes per individual where whole episodes are used
    :param mc_fitness_prob: probability (theta) that a generation's fitness is the return of whole episodes
    :param fitness_horizon: steps (H) of a partial rollout
    :param policy_embedding_dim: width of the PeVFA's policy encoder
    :param pevfa_layout: ``"rows"``, ``"flat"`` or ``"rows_onehot"``, see
        :class:`~sb3_erl.policies.erl_re2.PolicyEncoder`
    :param pevfa_input: ``"obs_action"``; or ``"features"``, as with ``OFF_TYPE=0`` in the authors' code: a value of the
        shared features alone, whose targets are those of whoever acted; only for ``learner="td3"`` or ``"ddpg"`` with
        ``mc_fitness_prob=1``
    :param pevfa_heads_per_step: heads in one PeVFA step, or ``"all"``
    :param n_shared_heads: heads (K) in the encoder's loss
    :param rl_loss_weight: weight of the learner's term in the encoder's loss
    :param pevfa_loss_weight: weight of the PeVFA terms in the encoder's loss
    :param deploy: who acts in ``predict``: ``"learner"``; ``"champion"``: the protected elite head with the current encoder
        (the learner before the first evaluation); ``"checkpoint"``, with TD7 only: the best champion of whole episodes, by
        its worst return, with the encoders it had. ``None`` for the learner's own (TD7: the checkpoint)
    :param evolver_kwargs: further arguments of :class:`~sb3_erl.evolution.ga.GA`, for example ``mutation_kwargs``
    :raises ValueError: if an argument is out of range or unknown, or the environment's spaces are not supported
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": ERLRe2Policy, "CnnPolicy": ERLRe2CnnPolicy}
    policy: ERLRe2Policy | SharedSALEPolicy
    learner_rule: SharedTD3Learner | SharedTD7Learner
    deploy_choices = (None, "learner", "champion", "checkpoint")

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule | None = None,
        buffer_size: int = 1_000_000,
        learning_starts: int = 10_000,
        batch_size: int | None = None,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        learner: LearnerChoice = "td3",
        policy_delay: int | None = None,
        target_policy_noise: float | None = None,
        target_noise_clip: float = 0.5,
        max_grad_norm: float | None = 10.0,
        encoder_step: EncoderStep = "recompute",
        pop_size: int = 5,
        evolution: bool = True,
        elite_fraction: float = 0.2,
        mutation_fraction: float = 0.7,
        super_mutation_prob: float = 0.05,
        reset_prob: float = 0.05,
        sync_period: int = 1,
        evolve_during_warmup: bool = False,
        n_eval_episodes: int = 1,
        mc_fitness_prob: float = 0.5,
        fitness_horizon: int = 200,
        policy_embedding_dim: int = 64,
        pevfa_layout: Literal["rows", "flat", "rows_onehot"] = "rows",
        pevfa_input: Literal["obs_action", "features"] = "obs_action",
        pevfa_heads_per_step: int | Literal["all"] = 1,
        n_shared_heads: int = 1,
        rl_loss_weight: float = 1.0,
        pevfa_loss_weight: float = 1.0,
        deploy: Literal["learner", "champion", "checkpoint"] | None = None,
        evolver_kwargs: dict[str, Any] | None = None,
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
        self.policy_delay = policy_delay
        self.target_policy_noise = target_policy_noise
        self.target_noise_clip = target_noise_clip
        self.max_grad_norm = max_grad_norm
        self.encoder_step = encoder_step
        self.evolution = evolution
        self.elite_fraction = elite_fraction
        self.mutation_fraction = mutation_fraction
        self.super_mutation_prob = super_mutation_prob
        self.reset_prob = reset_prob
        self.sync_period = sync_period
        self.evolve_during_warmup = evolve_during_warmup
        self.n_eval_episodes = n_eval_episodes
        self.mc_fitness_prob = mc_fitness_prob
        self.fitness_horizon = fitness_horizon
        self.policy_embedding_dim = policy_embedding_dim
        self.pevfa_layout = pevfa_layout
        self.pevfa_input = pevfa_input
        self.pevfa_heads_per_step = pevfa_heads_per_step
        self.n_shared_heads = n_shared_heads
        self.rl_loss_weight = rl_loss_weight
        self.pevfa_loss_weight = pevfa_loss_weight
        self.deploy = deploy
        self.evolver_kwargs = evolver_kwargs
        self.n_evaluations = 0
        """Generations in which the population was evaluated."""
        self.checkpoint_state: dict[str, Any] = {}
        super().__init__(**known_to(super().__init__, locals()))

    # ---------------------------------------------------------------- set-up

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if self.deploy == "checkpoint" and not self._is_td7:
            raise ValueError(f"deploy must be 'learner' or 'champion' with learner={self.learner!r}; got 'checkpoint'")
        check_choice("encoder_step", self.encoder_step, ("recompute", "joint", "torch11"))
        check_choice("pevfa_layout", self.pevfa_layout, PolicyEncoder.layouts)
        check_choice("pevfa_input", self.pevfa_input, PolicyExtendedCritic.inputs)
        for name in ("mutation_fraction", "super_mutation_prob", "reset_prob", "mc_fitness_prob"):
            check_range(name, getattr(self, name), 0, 1)
        for name in ("target_policy_noise", "target_noise_clip"):
            check_range(name, self._or_learners(name), 0)
        check_range("policy_delay", self._or_learners("policy_delay"), 1, integer=True)
        check_range("fitness_horizon", self.fitness_horizon, 1, integer=True)
        check_range("policy_embedding_dim", self.policy_embedding_dim, 1, integer=True)
        check_range("n_shared_heads", self.n_shared_heads, 1, self.pop_size + 1, integer=True)
        if self.pevfa_heads_per_step != "all":
            check_range("pevfa_heads_per_step", self.pevfa_heads_per_step, 1, self.pop_size + 1, integer=True)
        if self.pevfa_input == "features" and self._is_td7:
            raise ValueError("pevfa_input must be 'obs_action' with learner='td7'; got 'features'")
        if self.pevfa_input == "features" and self.mc_fitness_prob < 1:
            raise ValueError(
                f"mc_fitness_prob must be 1 with pevfa_input='features', whose values do not judge a head's own actions; "
                f"got {self.mc_fitness_prob}. Set mc_fitness_prob=1, or pevfa_input='obs_action'"
            )

    @property
    def _learner_spec(self) -> LearnerSpec:
        return learner_spec(self.learner, learning_rates=LEARNING_RATES, forms=FORMS)

    @property
    def _is_td7(self) -> bool:
        return issubclass(self._learner_spec.learner_class, TD7Learner)

    def _or_learners(self, name: str) -> Any:
        value = getattr(self, name)
        return self._learner_spec.defaults.get(name) if value is None else value

    @property
    def _default_batch_size(self) -> int:
        return self._learner_spec.batch_size or 128

    def _aliases(self) -> dict[str, type[BasePolicy]]:
        return self._learner_spec.aliases(self.policy_aliases)

    def _rule_class(self) -> type[Learner]:
        return self._learner_spec.learner_class

    @property
    def _published_rates(self) -> tuple[float, float]:
        return self._learner_spec.learning_rates

    def _policy_arguments(self) -> dict[str, Any]:
        names = ("policy_embedding_dim", "pevfa_layout") + (() if self._is_td7 else ("pevfa_input",))
        return {**self._learner_spec.policy_arguments, **{name: getattr(self, name) for name in names}}

    def _make_learner(self) -> Learner:
        own = ("n_shared_heads", "pevfa_heads_per_step", "rl_loss_weight", "pevfa_loss_weight", "target_noise_clip")
        values = {name: getattr(self, name) for name in (*own, "max_grad_norm", "encoder_step")}
        given = {name: getattr(self, name) for name in ("policy_delay", "target_policy_noise")}
        kwargs = {name: value for name, value in given.items() if value is not None}
        values["pevfa_max_grad_norm"] = self.max_grad_norm
        return replace(self._learner_spec, kwargs=kwargs).build(self.policy, values)

    def _setup_parts(self) -> None:
        policy: Any = self.policy
        self.learner_rule = self._make_learner()  # type: ignore[assignment]
        self.actor, self.critic, self.pevfa = policy.actor, policy.critic, policy.pevfa
        self.actor_target, self.critic_target = policy.actor_target, policy.critic_target
        self.encoder = getattr(policy, "encoder", None)
        episodes = AssessmentSettings(early_episodes=self.n_eval_episodes, late_episodes=self.n_eval_episodes)
        self.assessment = Assessment(self.checkpoint_state, episodes)
        self.head_layout = ParameterLayout.of(policy.actor.head)
        fresh = th.stack([read_parameters(policy.make_actor().head) for _ in range(self.pop_size)])
        arguments = self._evolver_arguments()
        arguments["mutation_kwargs"] = {
            "fraction": self.mutation_fraction,
            "super_prob": self.super_mutation_prob,
            "reset_prob": self.reset_prob,
            **(arguments.get("mutation_kwargs") or {}),
        }
        arguments = {"crossover": "head_rows", "mutation": "head_rows", **arguments}
        self.evolver = GA(fresh, self.head_layout, **arguments).to(self.device)
        self.exchange = ReplaceWeakest(self.sync_period, otherwise="next")
        self._pool = NetworkPool(policy.make_actor)

    def _excluded_save_params(self) -> list[str]:
        return [
            *super()._excluded_save_params(),
            "pevfa",
            "actor_target",
            "critic_target",
            "head_layout",
            "encoder",
            "assessment",
        ]

    # ---------------------------------------------------------------- the parts of a generation

    def heads(self, candidates: th.Tensor) -> Heads:
        """
        :param candidates: ``(n, n_params)`` flat heads
        :return: views of their weights and biases
        """
        parts = self.head_layout.split(candidates)
        return Heads(parts["weight"], parts["bias"])  # type: ignore[arg-type]

    def _plan_rollouts(self, candidates: th.Tensor) -> tuple[list[Job], PopulationActor]:
        noise = self.action_noise
        if noise is None:
            n_actions = get_action_dim(self.action_space)
            noise = NormalActionNoise(np.zeros(n_actions), np.full(n_actions, 0.1))
        jobs = []
        if self.evolution and self._is_warm:
            self.n_evaluations += 1
            whole = self._fitness_draw() < self.mc_fitness_prob
            self.fitness_mode = "mc" if whole else "surrogate"
            n_episodes, horizon = (self.n_eval_episodes, None) if whole else (1, self.fitness_horizon)
            jobs = [Job(i, k, horizon) for i in range(self.pop_size) for k in range(n_episodes)]
        jobs.append(Job(self.pop_size, explorer=self._explorer(noise)))
        learner = read_parameters(self.policy.actor.head)[None]
        return jobs, self._population_actor(th.cat([candidates, learner]))

    fitness_mode: str | None = None
    """``"mc"`` or ``"surrogate"``: how the last evaluated generation's fitness was measured."""

    @property
    def _fitness_is_return(self) -> bool:
        return self.fitness_mode == "mc"

    def _fitness_draw(self) -> float:
        """One draw in [0, 1) decides for the whole population how fitness is measured."""
        return float(self._rng(Stream.FITNESS).random())

    def _population_actor(self, heads: th.Tensor) -> PopulationActor:
        actor: Any = self.policy.actor
        stack = (self.heads(heads).weight.cpu().numpy(), self.heads(heads).bias.cpu().numpy())
        plain = numpy_population(actor, lambda layer: stack if layer is actor.head else tensors_of(layer))
        if plain is not None:
            return plain
        encoder = th.cat([p.detach().reshape(-1) for p in actor.encoder_parameters()])
        vectors = th.cat([encoder.expand(len(heads), -1), heads], dim=1)
        return ModuleActor(self._pool.filled(vectors, actor))

    def _fitness(self, candidates: th.Tensor, episodes: EpisodeBatch) -> np.ndarray | None:
        population = episodes.of(range(self.pop_size))
        if not population.episodes:
            if not self.evolution and self._is_warm:
                self._assess(read_parameters(self.policy.actor.head), episodes)
            return None
        self.logger.record("population/fitness_mode", self.fitness_mode)
        if self.fitness_mode == "mc":
            returns = episode_return(population, self.pop_size)
            champion = int(rank_best_first(returns)[0])
            self._assess(candidates[champion], population.of(range(champion, champion + 1)))
            return returns
        heads = self.heads(candidates)

        def value(candidate: int, observation: np.ndarray) -> float:
            tensor, _ = self.policy.obs_to_tensor(observation)
            return float(self.learner_rule.bootstrap(tensor, heads.weight[candidate], heads.bias[candidate]))  # type: ignore[arg-type]

        return h_step_value(population, self.pop_size, self.gamma, value)

    @property
    def _deploys_checkpoint(self) -> bool:
        return self.deploy == "checkpoint" or (self.deploy is None and self._is_td7)

    def _assess(self, head: th.Tensor, episodes: EpisodeBatch) -> None:
        """Keep this head, with the encoders it acted with, if its worst return beats that of the checkpoint."""
        if not self._deploys_checkpoint:
            return
        worst = float(np.min([episode.total_reward for episode in episodes.episodes]))  # NaN if one of them failed
        if worst >= self.assessment.score:
            self.checkpoint_state["score"] = worst
            self.policy.deploy(self.policy.actor)
            write_parameters(head, self.policy.deployed.head)
        self.logger.record("checkpoint/score", self.assessment.score)

    def _tell(self, candidates: th.Tensor, fitness: np.ndarray | None, rng: np.random.Generator) -> None:
        if fitness is not None:
            self._ga_tell(candidates, fitness, rng)
        elif self.evolution and self.evolve_during_warmup:
            self.evolver.tell(candidates, np.zeros(self.pop_size), rng)

    def _update(self, sample: Any, n_updates: int) -> dict[str, float]:
        self.assessment.pass_updates(self._n_updates, n_updates)
        population = self.heads(self.evolver.candidates) if self.evolution else None
        rng = self._rng(Stream.LEARNING)
        return self.learner_rule.update(sample, n_updates, population, self.n_evaluations > 0, rng)

    def _exchange(self, fitness: np.ndarray | None) -> None:
        if self.evolution:
            self._inject(read_parameters(self.policy.actor.head), fitness)

    def _deploy(self, candidates: th.Tensor, fitness: np.ndarray | None) -> None:
        policy = self.policy
        if self._deploys_checkpoint:  # written when it was assessed, before the encoders moved on
            return
        policy.deploy(policy.actor)
        epoch = self.evolver.epoch
        if self.deploy == "champion" and epoch is not None and self.n_evaluations > 0:
            write_parameters(self.evolver.candidates[epoch.protected[0]], policy.deployed.head)

    def individual(self, index: int) -> BasePolicy:
        """See :meth:`EvolutionaryOffPolicyAlgorithm.individual`."""
        agent = self.policy.make_actor()
        agent.load_state_dict(self.policy.actor.state_dict())
        write_parameters(self.evolver.candidates[range(self.pop_size)[index]], agent.head)
        agent.set_training_mode(False)
        return agent
