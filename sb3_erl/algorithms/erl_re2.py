"""ERL-Re2: evolution on linear heads over a state representation that all policies share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch as th
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_erl.core.arguments import inherits_arguments
from sb3_erl.core.checks import check_choice, check_range
from sb3_erl.core.seeding import Stream
from sb3_erl.engine import generation as verbs
from sb3_erl.engine.generation import Generation
from sb3_erl.engine.hybrid import HybridAlgorithm
from sb3_erl.engine.population import check_ga_arguments, ga_arguments
from sb3_erl.engine.replace import make_exchange
from sb3_erl.engine.representation import Representation, SharedHeads
from sb3_erl.evolution.fitness.surrogate import h_step_value, has_surrogate, reward_unit
from sb3_erl.evolution.operators.selection import rank_best_first
from sb3_erl.learners.assessment import Assessment, AssessmentSettings
from sb3_erl.learners.base import Learner
from sb3_erl.learners.choice import LearnerSpec, learner_spec
from sb3_erl.learners.erl_re2 import EncoderStep, Heads, SharedTD3Learner
from sb3_erl.learners.shared_heads import SharedTD7Learner
from sb3_erl.learners.td3 import TD3Learner
from sb3_erl.learners.td7 import TD7Learner
from sb3_erl.learners.td_rule import DDPGRule
from sb3_erl.policies.erl_re2 import ERL_RE2_POLICIES, PolicyEncoder, PolicyExtendedCritic
from sb3_erl.rollouts.jobs import EpisodeBatch, Job, PopulationActor


class ERLRe2(HybridAlgorithm):
    """
    ERL-Re2: evolutionary reinforcement learning with two-scale state and policy representation.

    For continuous actions and few environment steps: ``ERLRe2("HalfCheetah-v5", verbose=1).learn(1_000_000)``.

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

    Parameters that are not listed here are those of :class:`~sb3_erl.engine.hybrid.HybridAlgorithm` and
    :class:`~sb3_erl.engine.off_policy_model.OffPolicyModel`.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"`` or a policy class; or, without ``env``, the environment or its id
    :param env: environment, vectorized or not, its id, or ``None`` for loading
    :param learning_rate: of all optimizers, a float or a schedule; ``None`` for the learner's own (1e-3, TD7: 3e-4)
    :param learning_starts: random steps of the learner before anything is evaluated or learned
    :param action_noise: exploration of the learner, ``None`` for N(0, 0.1) in each dimension
    :param batch_size: transitions per update, ``None`` for the learner's own (128, TD7: 256)
    :param learner: ``"td3"``, ``"ddpg"``, a rule of your own (see :class:`~sb3_erl.learners.td_rule.TDRule`), or ``"td7"``
        (TD7's actor without its last layer is the shared encoder, see
        :class:`~sb3_erl.learners.shared_heads.SharedTD7Learner`; ``tau`` and ``encoder_step`` have no meaning there)
    :param policy_delay: iterations per policy step; ``None`` for the learner's own (2 for TD3, 1 for DDPG)
    :param target_policy_noise: std of target smoothing; ``None`` for the learner's own (0.2 for TD3, 0 for DDPG)
    :param target_noise_clip: bound of target smoothing
    :param max_grad_norm: clip each network's gradient at this norm (with TD7 that of the PeVFA alone), ``None`` for no
        clipping
    :param encoder_step: ``"recompute"``, ``"joint"`` or ``"torch11"``, see
        :class:`~sb3_erl.learners.erl_re2.SharedTD3Learner`
    :param pop_size: number of heads in the population
    :param evolution: ``False`` trains the learner alone (no population, no PeVFA)
    :param crossover: ``"head_rows"``, ``"package.module:Name"`` or a class
    :param mutation: ``"head_rows"``, ``"package.module:Name"`` or a class
    :param elite_fraction: share of the population that survives unchanged, at least one
    :param mutation_fraction: share of a row's weights that one mutation changes (beta in the paper)
    :param super_mutation_prob: probability of a super mutation of a row
    :param reset_prob: probability of a reset of a row
    :param sync_period: generations between two injections of the learner's head
    :param evolve_during_warmup: evolve blindly before the first evaluation, as the authors' code does
    :param mc_fitness_prob: probability (theta) that a generation's fitness is the return of whole episodes; any ``fitness``
        but ``"return"`` and ``"discounted_return"`` always is that of whole episodes
    :param fitness_horizon: steps (H) of a partial rollout
    :param policy_embedding_dim: width of the PeVFA's policy encoder
    :param pevfa_layout: ``"rows"``, ``"flat"`` or ``"rows_onehot"``, see
        :class:`~sb3_erl.policies.erl_re2.PolicyEncoder`
    :param pevfa_input: ``"obs_action"``; or ``"features"``, as with ``OFF_TYPE=0`` in the authors' code: a value of the
        shared features alone, whose targets are those of the policy that acted; only for ``learner="td3"`` or ``"ddpg"`` with
        ``mc_fitness_prob=1``
    :param pevfa_heads_per_step: heads in one PeVFA step, or ``"all"``
    :param n_shared_heads: heads (K) in the encoder's loss
    :param rl_loss_weight: weight of the learner's term in the encoder's loss
    :param pevfa_loss_weight: weight of the PeVFA terms in the encoder's loss
    :param deploy: who acts in ``predict``: ``"learner"``; ``"champion"``: the protected elite head with the current encoder
        (the learner before the first evaluation); ``"checkpoint"``, with TD7 only: the best champion of whole episodes, by
        its worst return, with the encoders it had. ``None`` for the learner's own (TD7: the checkpoint)
    :raises ValueError: if an argument is out of range or unknown, or the environment's spaces are not supported
    """

    reported_candidates = ("learner", "champion")
    policy_aliases = ERL_RE2_POLICIES
    published_rates: ClassVar[dict[type, tuple[float, float]]] = {DDPGRule: (1e-3, 1e-3)}
    deploy_choices = (None, "learner", "champion", "checkpoint")

    @inherits_arguments("learner_kwargs", "population_policy_kwargs")
    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule | None = None,
        learner: Any = "td3",
        policy_delay: int | None = None,
        target_policy_noise: float | None = None,
        target_noise_clip: float = 0.5,
        max_grad_norm: float | None = 10.0,
        encoder_step: EncoderStep = "recompute",
        pop_size: int = 5,
        evolution: bool = True,
        crossover: Any = "head_rows",
        mutation: Any = "head_rows",
        elite_fraction: float = 0.2,
        mutation_fraction: float = 0.7,
        super_mutation_prob: float = 0.05,
        reset_prob: float = 0.05,
        sync_period: int = 1,
        evolve_during_warmup: bool = False,
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
        **kwargs: Any,
    ):
        self.policy_delay, self.max_grad_norm, self.encoder_step = policy_delay, max_grad_norm, encoder_step
        self.target_policy_noise, self.target_noise_clip = target_policy_noise, target_noise_clip
        self.evolution, self.elite_fraction, self.mutation_fraction = evolution, elite_fraction, mutation_fraction
        self.super_mutation_prob, self.reset_prob = super_mutation_prob, reset_prob
        self.crossover, self.mutation = crossover, mutation
        self.sync_period, self.evolve_during_warmup = sync_period, evolve_during_warmup
        self.mc_fitness_prob, self.fitness_horizon = mc_fitness_prob, fitness_horizon
        self.policy_embedding_dim, self.pevfa_layout, self.pevfa_input = policy_embedding_dim, pevfa_layout, pevfa_input
        self.pevfa_heads_per_step, self.n_shared_heads = pevfa_heads_per_step, n_shared_heads
        self.rl_loss_weight, self.pevfa_loss_weight, self.deploy = rl_loss_weight, pevfa_loss_weight, deploy
        self.n_evaluations = 0
        """Generations in which the population was evaluated."""
        self.fitness_mode: str | None = None
        """``"mc"`` or ``"surrogate"``: how the last evaluated generation's fitness was measured."""
        self.checkpoint_state: dict[str, Any] = {}
        super().__init__(policy, env, learning_rate, learner=learner, pop_size=pop_size, **kwargs)

    # ---------------------------------------------------------------- set-up

    @property
    def _spec(self) -> LearnerSpec:
        forms: dict[Any, Any] = {TD3Learner: SharedTD3Learner, TD7Learner: SharedTD7Learner}
        return learner_spec(self.learner_class, None, learning_rates=self.published_rates, forms=forms)

    @property
    def _is_td7(self) -> bool:
        return issubclass(self._spec.learner_class, SharedTD7Learner)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_ga_arguments(self)
        if self.deploy == "checkpoint" and not self._is_td7:
            raise ValueError(f"deploy must be 'learner' or 'champion' with learner={self.learner_class!r}; got 'checkpoint'")
        check_choice("encoder_step", self.encoder_step, ("recompute", "joint", "torch11"))
        check_choice("pevfa_layout", self.pevfa_layout, PolicyEncoder.layouts)
        check_choice("pevfa_input", self.pevfa_input, PolicyExtendedCritic.inputs)
        for name in ("mutation_fraction", "super_mutation_prob", "reset_prob", "mc_fitness_prob"):
            check_range(name, getattr(self, name), 0, 1)
        check_range("target_noise_clip", self.target_noise_clip, 0)
        if self.target_policy_noise is not None:
            check_range("target_policy_noise", self.target_policy_noise, 0)
        if self.policy_delay is not None:
            check_range("policy_delay", self.policy_delay, 1, integer=True)
        for name in ("fitness_horizon", "policy_embedding_dim"):
            check_range(name, getattr(self, name), 1, integer=True)
        check_range("n_shared_heads", self.n_shared_heads, 1, self.pop_size + 1, integer=True)
        if self.pevfa_heads_per_step != "all":
            check_range("pevfa_heads_per_step", self.pevfa_heads_per_step, 1, self.pop_size + 1, integer=True)
        if self.pevfa_input == "features" and self._is_td7:
            raise ValueError("pevfa_input must be 'obs_action' with learner='td7'; got 'features'")
        if self.pevfa_input == "features" and self.mc_fitness_prob < 1:
            raise ValueError(
                f"mc_fitness_prob must be 1 with pevfa_input='features', whose values are not those of a head's own actions; "
                f"got {self.mc_fitness_prob}. Set mc_fitness_prob=1, or pevfa_input='obs_action'"
            )

    @property
    def _default_batch_size(self) -> int:
        return self._spec.batch_size or 128

    def _policy_arguments(self) -> dict[str, Any]:
        names = ("policy_embedding_dim", "pevfa_layout") + (() if self._is_td7 else ("pevfa_input",))
        return {**super()._policy_arguments(), **{name: getattr(self, name) for name in names}}

    def _make_learner(self) -> Learner:
        names = ("n_shared_heads", "pevfa_heads_per_step", "rl_loss_weight", "pevfa_loss_weight", "target_noise_clip")
        values = {name: getattr(self, name) for name in names}
        for name in ("policy_delay", "target_policy_noise"):
            if getattr(self, name) is not None:
                values[name] = getattr(self, name)
        if self._is_td7:
            values["pevfa_max_grad_norm"] = self.max_grad_norm
        else:
            values |= {"max_grad_norm": self.max_grad_norm, "encoder_step": self.encoder_step}
        return replace(self._spec, kwargs=values).build(self.policy)

    def _make_representation(self) -> Representation:
        return SharedHeads(self.policy)

    def _evolver_arguments(self) -> dict[str, Any]:
        own, given = ga_arguments(self), super()._evolver_arguments()
        if not own:
            return given
        arguments = {**own, **given}
        if arguments["mutation"] == "head_rows":
            names = {"fraction": self.mutation_fraction, "super_prob": self.super_mutation_prob, "reset_prob": self.reset_prob}
            arguments["mutation_kwargs"] = {**names, **(arguments.get("mutation_kwargs") or {})}
        return arguments

    def _make_exchange(self) -> Any:
        own = {"sync_period": self.sync_period, "otherwise": "next"}
        return make_exchange(self.exchange_class, self.learner, own, self.exchange_kwargs or {})

    def _setup_parts(self) -> None:
        super()._setup_parts()
        self.pevfa = self.policy.pevfa
        episodes = AssessmentSettings(early_episodes=self.n_eval_episodes, late_episodes=self.n_eval_episodes)
        self.assessment = Assessment(self.checkpoint_state, episodes)
        self._new_checkpoint: dict[str, th.Tensor] | None = None

    # ---------------------------------------------------------------- the parts of a generation

    def heads(self, candidates: th.Tensor) -> Heads:
        """
        :param candidates: ``(n, n_params)`` flat heads
        :return: views of their weights and biases
        """
        parts = self.population.representation.layout.split(candidates.to(self.policy.actor.head.weight.dtype))
        return Heads(parts["weight"], parts["bias"])  # type: ignore[arg-type]

    def _plan_rollouts(self, candidates: th.Tensor) -> tuple[list[Job], PopulationActor]:
        n_actions = get_action_dim(self.action_space)
        noise = self.action_noise or NormalActionNoise(np.zeros(n_actions), np.full(n_actions, 0.1))
        jobs = []
        if self.evolution and self._is_warm:
            self.n_evaluations += 1
            whole = not has_surrogate(self.fitness_class) or self._fitness_draw() < self.mc_fitness_prob
            self.fitness_mode = "mc" if whole else "surrogate"
            n_episodes, horizon = (self.n_eval_episodes, None) if whole else (1, self.fitness_horizon)
            jobs = [Job(i, k, horizon) for i in range(self.pop_size) for k in range(n_episodes)]
        jobs.append(Job(self.pop_size, explorer=self._explorer(noise)))
        return jobs, self._act(candidates)

    @property
    def _fitness_is_return(self) -> bool:
        return self.fitness_mode == "mc" and super()._fitness_is_return

    def _fitness_draw(self) -> float:
        """One draw in [0, 1) decides for the whole population how fitness is measured."""
        return float(self.run.rng(Stream.FITNESS).random())

    def _score(self, generation: Generation) -> None:
        """Returns of whole episodes, or H-step values; with TD7 the champion may become the checkpoint."""
        population = generation.evaluated.of(range(self.pop_size))
        if not population.episodes:
            if not self.evolution and self._is_warm:
                head = self.population.representation.from_learner()
                self._assess(head, generation.evaluated)  # type: ignore[arg-type]
            return
        self.logger.record("population/fitness_mode", self.fitness_mode)
        if self.fitness_mode == "mc":
            verbs.score(self, generation)
            assert generation.fitness is not None
            champion = int(rank_best_first(generation.fitness)[0])
            self._assess(generation.asked[champion], population.of(range(champion, champion + 1)))
            return
        heads, learner = self.heads(generation.asked), self.learner

        def value(candidate: int, observation: np.ndarray) -> float:
            tensor, _ = self.policy.obs_to_tensor(observation)
            return float(learner.bootstrap(tensor, heads.weight[candidate], heads.bias[candidate]))  # type: ignore[attr-defined]

        unit = reward_unit(self.get_vec_normalize_env())
        generation.fitness = h_step_value(population, self.pop_size, self.gamma, value, unit)

    @property
    def _deploys_checkpoint(self) -> bool:
        return self.deploy == "checkpoint" or (self.deploy is None and self._is_td7)

    def _assess(self, head: th.Tensor, episodes: EpisodeBatch) -> None:
        """Keep this head, with the encoders it acted with, for ``deploy``, if its worst return beats the checkpoint's."""
        if not self._deploys_checkpoint:
            return
        worst = float(np.min([episode.total_reward for episode in episodes.episodes]))  # NaN if one of them failed
        if worst >= self.assessment.score or (self.assessment.is_first and np.isfinite(worst)):
            self.checkpoint_state["score"] = worst
            self.checkpoint_state["n_accepted"] += 1
            agent = self.population.representation.agent(head)
            self._new_checkpoint = agent.state_dict()
        self.logger.record("checkpoint/score", self.assessment.score)

    def _tell(self, generation: Generation) -> None:
        if generation.fitness is not None:
            verbs.tell(self, generation)
        elif self.evolution and self.evolve_during_warmup:
            self.evolver.tell(generation.asked, np.zeros(self.pop_size), generation.rng)

    def _update(self, sample: Any, n_updates: int) -> dict[str, float]:
        self.assessment.pass_updates(self._n_updates, n_updates)
        population = self.heads(self.evolver.candidates) if self.evolution else None
        rng, learner = self.run.rng(Stream.LEARNING), self.learner
        return learner.update(sample, n_updates, population, self.n_evaluations > 0, rng)  # type: ignore[call-arg]

    def _deploy(self, generation: Generation) -> None:
        if self._deploys_checkpoint:  # encoders may have moved on since it was assessed
            if self._new_checkpoint is not None:
                self.policy.deployed.load_state_dict(self._new_checkpoint)
            self._new_checkpoint = None
        elif self.deploy == "champion" and self.n_evaluations > 0:
            verbs.deploy(self, generation)
        else:
            self.policy.deploy(self.policy.actor)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "pevfa", "assessment", "_new_checkpoint"]
