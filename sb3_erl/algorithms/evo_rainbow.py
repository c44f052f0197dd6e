"""EvoRainbow: a cross-entropy method whose sample the learner joins, and whose best individual the learner moves to."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

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
from sb3_erl.engine.generation import Generation, Verb
from sb3_erl.engine.hybrid import HybridAlgorithm
from sb3_erl.engine.population import cem_arguments
from sb3_erl.engine.replace import make_exchange
from sb3_erl.engine.representation import Representation, SharedHeads
from sb3_erl.evolution.fitness.surrogate import PEVFA, Surrogate, has_surrogate, reward_unit, surrogate_fitness
from sb3_erl.learners.base import Learner
from sb3_erl.learners.choice import LearnerSpec, learner_spec
from sb3_erl.learners.erl_re2 import Heads
from sb3_erl.learners.shared_heads import FORMS
from sb3_erl.learners.td_rule import DDPGRule
from sb3_erl.policies.erl_re2 import ERL_RE2_POLICIES
from sb3_erl.policies.evo_rainbow import PRIVATE_POLICIES
from sb3_erl.rollouts.exploration import PolicyExploration
from sb3_erl.rollouts.jobs import Explorer, Job, PopulationActor


class EvoRainbow(HybridAlgorithm):
    """
    EvoRainbow: the combination of published parts that its authors found best.

    Li, Zheng, Tang, Fu, Hao (ICML 2024), "EvoRainbow: Combining Improvements in Evolutionary Reinforcement Learning for Policy
    Search"; authors' code: yeshenpy/EvoRainbow. A cross-entropy method samples linear heads on a shared state encoder, as in
    ERL-Re2. The learner's head moves to the best one (genetic soft update) before the learner explores; after its updates it
    takes the place of the weakest in the next sample, so that the distribution learns from it. Some generations are measured
    by partial rollouts that a critic completes. Example: ``EvoRainbow("Ant-v5", verbose=1).learn(1_000_000)``.

    Differences from the authors' code:

    1. the distribution is told nothing in the random warm-up; ``tell_during_warmup=True`` restores it;
    2. an injected learner is kept out of the soft update in the next generation only, also if ``sync_period`` is above 1;
    3. partial rollouts are not bootstrapped at a true terminal, and are at time limits, which are stored as truncations;
    4. the PeVFA reads heads row by row (``policy_kwargs={"pevfa_layout": "flat"}`` for the code's cut); gradients of head and
       encoder are taken before either steps (``learner_kwargs={"encoder_step": "torch11"}`` for what torch 1.1 computed);
    5. actions are rescaled to the environment's box; no test episodes inside the loop;
    6. with SAC (folder ``MetaWorld``) as with TD3: one measure of fitness per generation, the same discounting, no soft update
       to the learner itself; the value of a partial rollout is that of the individual's mean action.

    Parameters that are not listed here are those of :class:`~sb3_erl.engine.hybrid.HybridAlgorithm` and its base class.

    :param learning_rate: of all optimizers, a float or a schedule; ``None`` for the learner's own (1e-3, SAC: 3e-4)
    :param learning_starts: random steps of the learner before anything is evaluated or learned
    :param action_noise: exploration of the learner, ``None`` for N(0, 0.1) in each dimension; with SAC beside its own
    :param learner: ``"td3"``, ``"ddpg"``, a rule of your own (see :class:`~sb3_erl.learners.td_rule.TDRule`), or ``"sac"``,
        with which individuals act by sampling
    :param learner_kwargs: further constants, such as ``policy_delay``, ``target_policy_noise`` or ``encoder_step``
    :param max_grad_norm: clip each network's gradient at this norm, ``None`` for no clipping (SAC: in ``learner_kwargs``)
    :param pop_size: number of individuals
    :param evolution: ``False`` trains the learner alone
    :param architecture: ``"shared"`` encoder and heads, or ``"private"`` actors of which all parameters are sampled
    :param surrogate: see :data:`~sb3_erl.evolution.fitness.surrogate.Surrogate`; ``None`` for whole episodes only
    :param surrogate_prob: probability of a generation with partial rollouts (one minus the authors' ``theta``)
    :param fitness_horizon: steps (H) of a partial rollout
    :param ea_tau: step of the genetic soft update in [0, 1], 0 for none
    :param sync_period: generations between two injections of the learner
    :param sigma_init: initial variance of every parameter
    :param damp: variance that is added at the first refit
    :param damp_limit: variance that is added in the long run
    :param damp_tau: share of the difference between the two that a generation keeps
    :param elitism: the last individual is the best of the last generation
    :param evolver: ``"cem"``, or another evolver
    :param tell_during_warmup: refit the distribution on zeros in the warm-up
    :param n_shared_heads: heads (K) of the PeVFA's terms in the encoder's loss
    :param deploy: who acts in ``predict``: the ``"learner"``; once the population was evaluated also the ``"champion"`` of the
        last generation or the ``"mean"`` of an evolver that has one, if shared with the current encoder
    :raises ValueError: if an argument is out of range or unknown, or the environment's spaces are not supported
    """

    policy_aliases = ERL_RE2_POLICIES
    generation_order: ClassVar[tuple[Verb, ...]] = (
        "ask", "evaluate", "score", "explore", "tell", "soft_update", "learn", "exchange", "deploy", "log",
    )  # fmt: skip
    published_rates: ClassVar[dict[type, tuple[float, float]]] = {DDPGRule: (1e-3, 1e-3)}
    deploy_choices, reported_candidates = ("learner", "champion", "mean"), ("learner", "champion")

    @inherits_arguments("population_policy_kwargs", batch_size=128)
    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule | None = None,
        max_grad_norm: float | None = 10.0,
        pop_size: int = 5,
        evolution: bool = True,
        architecture: Literal["shared", "private"] = "shared",
        surrogate: Surrogate | None = "h_step_critic",
        surrogate_prob: float = 0.5,
        fitness_horizon: int = 200,
        ea_tau: float = 0.1,
        sync_period: int = 1,
        evolver: Any = "cem",
        sigma_init: float = 1e-3,
        damp: float = 1e-3,
        damp_limit: float = 1e-5,
        damp_tau: float = 0.95,
        elitism: bool = False,
        tell_during_warmup: bool = False,
        n_shared_heads: int = 1,
        deploy: Literal["learner", "champion", "mean"] = "learner",
        **kwargs: Any,
    ):
        self.max_grad_norm, self.evolution, self.architecture = max_grad_norm, evolution, architecture
        self.surrogate, self.surrogate_prob, self.fitness_horizon = surrogate, surrogate_prob, fitness_horizon
        self.ea_tau, self.sync_period, self.tell_during_warmup = ea_tau, sync_period, tell_during_warmup
        self.sigma_init, self.damp, self.damp_limit, self.damp_tau = sigma_init, damp, damp_limit, damp_tau
        self.elitism, self.n_shared_heads, self.deploy = elitism, n_shared_heads, deploy
        self.n_evaluations = 0
        """Generations in which the population was evaluated."""
        self.fitness_mode: str | None = None
        """``"mc"`` or ``"surrogate"``: how the last evaluated generation's fitness was measured."""
        super().__init__(policy, env, learning_rate, pop_size=pop_size, evolver=evolver, **kwargs)

    @property
    def _spec(self) -> LearnerSpec:
        check_choice("architecture", self.architecture, FORMS)
        own = {"learning_rates": self.published_rates, "forms": FORMS[self.architecture]}
        return learner_spec(self.learner_class, self.learner_kwargs, **own)  # type: ignore[arg-type]

    def _aliases(self) -> dict[str, type[BasePolicy]]:
        return self._spec.aliases(self.policy_aliases if self.architecture == "shared" else PRIVATE_POLICIES)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        is_private = self.architecture == "private"
        check_choice("surrogate", self.surrogate, [s for s in (None, *get_args(Surrogate)) if not (is_private and s == PEVFA)])
        for name in ("surrogate_prob", "ea_tau", "damp_tau", "damp", "damp_limit"):
            check_range(name, getattr(self, name), 0, np.inf if name in ("damp", "damp_limit") else 1)
        for name in ("fitness_horizon", "sync_period"):
            check_range(name, getattr(self, name), 1, integer=True)
        check_range("n_shared_heads", self.n_shared_heads, 1, self.pop_size + 1, integer=True)

    def _make_learner(self) -> Learner:
        own = {"max_grad_norm": self.max_grad_norm, "n_shared_heads": self.n_shared_heads}
        return self._spec.build(self.policy, {**own, "encoder_step": "joint", "policy_first": True})

    def _make_representation(self) -> Representation:
        self.pevfa = getattr(self.policy, "pevfa", None)
        return SharedHeads(self.policy) if self.architecture == "shared" else super()._make_representation()

    def _evolver_arguments(self) -> dict[str, Any]:
        return {**cem_arguments(self), **super()._evolver_arguments()}

    def _make_exchange(self) -> Any:
        own = {"sync_period": self.sync_period}
        return make_exchange(self.exchange_class, self.learner, own, self.exchange_kwargs or {})

    def _plan_rollouts(self, candidates: th.Tensor) -> tuple[list[Job], PopulationActor]:
        jobs: list[Job] = []
        if self.evolution and self._is_warm:
            may = self.surrogate is not None and has_surrogate(self.fitness_class)
            partly = may and self._fitness_draw() >= 1 - self.surrogate_prob
            self.fitness_mode = "surrogate" if partly else "mc"
            n_episodes, horizon = (1, self.fitness_horizon) if partly else (self.n_eval_episodes, None)
            for i, vector in enumerate(candidates):
                jobs += [Job(i, k, horizon, self._sampling(vector)) for k in range(n_episodes)]
        return jobs, self.population.act(candidates)

    def _fitness_draw(self) -> float:
        """One draw in [0, 1) decides for the whole population how fitness is measured."""
        return float(self.run.rng(Stream.FITNESS).random())

    @property
    def _fitness_is_return(self) -> bool:
        return self.fitness_mode == "mc" and super()._fitness_is_return

    def _sampling(self, vector: th.Tensor, noise: Any = None) -> Explorer | None:
        """Draws the actions of a stochastic policy with these parameters; ``None`` with other learners."""
        return PolicyExploration(self.population.representation.agent(vector), noise) if self.learner.policy_explores else None

    def _learner_explorer(self, vector: th.Tensor) -> Explorer | None:
        n_actions, is_warm = get_action_dim(self.action_space), self._is_warm
        noise = self.action_noise or NormalActionNoise(np.zeros(n_actions), np.full(n_actions, 0.1))
        return (is_warm and self._sampling(vector, self.action_noise)) or self._explorer(noise)

    def _score(self, generation: Generation) -> None:
        """Returns of whole episodes, or values of partial rollouts."""
        if not generation.evaluated.episodes:
            return
        self.logger.record("population/fitness_mode", self.fitness_mode)
        if self.fitness_mode == "mc":
            generation.fitness_before = self.fitness.state_dict()
            verbs.score(self, generation)
        elif self.surrogate is not None:
            agents = [self.population.representation.agent(vector) for vector in generation.asked]
            rest = self.gamma, self.learner, agents, reward_unit(self.get_vec_normalize_env())
            generation.fitness = surrogate_fitness(self.surrogate, generation.evaluated, *rest)

    def _tell(self, generation: Generation) -> None:
        if generation.fitness is not None:
            self.n_evaluations += 1
            verbs.tell(self, generation)
        elif self.evolution and self.tell_during_warmup:
            self.evolver.tell(generation.asked, np.zeros(self.pop_size), generation.rng)

    def _learn(self, generation: Generation) -> None:
        self._individuals = generation.asked
        verbs.learn(self, generation)

    def _update(self, sample: Any, n_updates: int) -> dict[str, float]:
        learner, representation = self.learner, self.population.representation
        if not (self.evolution and isinstance(representation, SharedHeads)):
            return learner.update(sample, n_updates)
        heads, rng = Heads(*representation.weights_and_biases(self._individuals)), self.run.rng(Stream.LEARNING)
        return learner.update(sample, n_updates, heads, self.n_evaluations > 0, rng)  # type: ignore[call-arg]

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "pevfa", "_individuals"]


class EvoRainbowExp(EvoRainbow):
    """
    EvoRainbow-Exp: private actors, of which the cross-entropy method samples all parameters, measured by whole episodes.

    The second system of Li et al. (2024), folder ``EvoRainbow_Exp_core`` of the authors' code; see :class:`EvoRainbow`.
    For continuous actions: ``EvoRainbowExp("Walker2d-v5").learn(1_000_000)``. Parameters not listed are :class:`EvoRainbow`'s.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"`` or a policy class; or, without ``env``, the environment or its id
    :param env: environment, vectorized or not, its id, or ``None`` for loading
    :param learning_rate: of all optimizers, a float or a schedule; ``None`` for the learner's own (1e-3, SAC: 3e-4)
    :raises ValueError: if an argument is out of range or unknown, or the environment's spaces are not supported
    """

    policy_aliases = PRIVATE_POLICIES

    @inherits_arguments("architecture", "surrogate", "surrogate_prob", "fitness_horizon", "n_shared_heads")
    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule | None = None,
        **kwargs: Any,
    ):
        super().__init__(policy, env, learning_rate, architecture="private", surrogate=None, surrogate_prob=0.0, **kwargs)
