"""CEM-RL: a cross-entropy method whose sample is partly improved by policy gradients."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch as th
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_erl.core.arguments import inherits_arguments
from sb3_erl.core.checks import check_choice, check_range, warn_caller
from sb3_erl.core.parameters import read_parameters, write_parameters
from sb3_erl.engine import generation as verbs
from sb3_erl.engine.generation import Generation, Verb
from sb3_erl.engine.hybrid import HybridAlgorithm
from sb3_erl.engine.learner_host import optimizer_of
from sb3_erl.engine.population import Population, cem_arguments, make_evolver
from sb3_erl.engine.rollout_phase import CountingStore
from sb3_erl.evolution.base import ImportanceMixing, check_capability
from sb3_erl.evolution.rebuilt import check_vectors
from sb3_erl.evolution.reuse import LearnedRows, ReusedEpisodes
from sb3_erl.learners.base import Learner
from sb3_erl.learners.gradient_steps import GradientSteps
from sb3_erl.learners.td_rule import DDPGRule
from sb3_erl.policies.cem_rl import CEM_RL_POLICIES
from sb3_erl.rollouts.exploration import NoiseExploration
from sb3_erl.rollouts.jobs import Job, PopulationActor


class CEMRL(HybridAlgorithm):
    """
    CEM-RL: evolution and policy gradients on the same actors.

    For continuous actions, where a gradient alone gets stuck: ``CEMRL("Swimmer-v5", verbose=1).learn(1_000_000)``.

    Pourchot & Sigaud (ICLR 2019), https://arxiv.org/abs/1810.01222; authors' code: apourchot/CEM-RL, ``es_grad.py``. A
    diagonal Gaussian over actor parameters is sampled; the first half of the sample takes gradient steps on one common
    critic; every individual is evaluated, every transition is stored, and the Gaussian is refitted on the best half.

    Differences from the authors' code:

    1. the actor steps of all learned individuals run together, see
       :class:`~sb3_erl.learners.gradient_steps.GradientSteps`; the numbers are those of the sequential order (with TD7 all
       individuals take them on the critic as it is after the last critic step);
    2. time limits are stored as truncations; actions are rescaled to the environment's box;
    3. an elite takes its slot only once there is one;
    4. ``importance_mixing`` mixes the rows that are not learned only, each with its own fitness, length and transitions
       (the authors' bookkeeping mixes up the rows if there are learned ones), and never with ``elitism``;
    5. the mean is not tested inside the loop, use SB3's ``EvalCallback``: ``predict`` acts with the mean;
    6. if a generation is not finished, its learned individuals wait for the next one: no gradient step is taken twice.

    ``policy.actor`` is the mean. Parameters not listed here are those of :class:`~sb3_erl.engine.hybrid.HybridAlgorithm`.

    :param learning_rate: of critic and actors, a float or a schedule; ``None`` for the learner's own (1e-3, TD7 and SAC: 3e-4)
    :param learning_starts: environment steps, more than which must have been taken before the first gradient step
    :param batch_size: transitions per gradient step, ``None`` for the learner's own (100, TD7 and SAC: 256)
    :param train_freq: with ``gradient_steps``: critic steps in all, and actor steps of each learned individual, per step
        of the last generation are ``gradient_steps / train_freq``; ``(n, "episode")`` counts its episodes. They come before
        the rollouts of the next generation
    :param action_noise: noise of the noisy rollouts, ``None`` for N(0, 0.1)
    :param learner: ``"td3"``, ``"ddpg"``, ``"td7"``, a rule of your own, or ``"sac"``, whose individuals learn as Gaussian
        policies and are evaluated without noise, see :class:`~sb3_erl.learners.sac.SACLearner`
    :param learner_kwargs: further constants of the learner, such as ``target_policy_noise``, ``n_critics`` or ``ent_coef``
    :param max_grad_norm: clip the critic's gradient of DDPG and TD3 at this norm, ``None`` for no clipping
    :param n_gradient_actors: how many of the sampled individuals are learned, ``None`` for half of them, 0 for none
    :param n_noisy_episodes: additional exploring episodes per generation, by the first individuals
    :param n_parents: see :class:`~sb3_erl.evolution.cem.DiagonalCEM`
    :param sigma_init: see :class:`~sb3_erl.evolution.cem.DiagonalCEM` (a variance)
    :param antithetic: see :class:`~sb3_erl.evolution.cem.DiagonalCEM`
    :param elitism: see :class:`~sb3_erl.evolution.cem.DiagonalCEM`
    :param importance_mixing: reuse individuals of the last generation that still look like draws of the new Gaussian
    :param reward_mode: ``"dense"``; ``"episodic"`` stores zeros but for each episode's last step, which gets its return
    :param evolver: ``"cem"``, or another evolver; one that is no distribution deploys its best individual
    :param evolver_kwargs: further arguments of the evolver, such as ``damping_init`` or ``covariance_rule``
    :param deploy: who acts in ``predict``: the ``"mean"`` of the Gaussian or the ``"champion"`` of the last generation
    """

    policy_aliases = CEM_RL_POLICIES
    generation_order: ClassVar[tuple[Verb, ...]] = ("ask", "learn", "evaluate", "score", "tell", "deploy", "log")
    deploy_choices, reported_candidates, _warms_up_by = ("mean", "champion"), ("mean",), "steps"
    published_rates: ClassVar[dict[type, tuple[float, float]]] = {DDPGRule: (1e-3, 1e-3)}
    learner_needs = ("critic_update", "critic_snapshot", "individual_loss")
    _searched_network = "actor"

    @inherits_arguments("exchange", "exchange_kwargs", "population_policy_kwargs")
    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule | None = None,
        evolver: Any = "cem",
        max_grad_norm: float | None = None,
        n_gradient_actors: int | None = None,
        n_noisy_episodes: int = 0,
        n_parents: int | None = None,
        sigma_init: float = 1e-3,
        antithetic: bool | None = None,
        elitism: bool = False,
        importance_mixing: bool = False,
        reward_mode: Literal["dense", "episodic"] = "dense",
        deploy: Literal["mean", "champion"] = "mean",
        **kwargs: Any,
    ):
        self.max_grad_norm, self.n_gradient_actors, self.n_noisy_episodes = max_grad_norm, n_gradient_actors, n_noisy_episodes
        self.n_parents, self.sigma_init, self.antithetic, self.elitism = n_parents, sigma_init, antithetic, elitism
        self.importance_mixing, self.reward_mode, self.deploy = importance_mixing, reward_mode, deploy
        self.n_env_steps = 0
        """Environment steps over the life of the model."""
        self.n_stored = 0
        """Transitions stored over the life of the model, those of reused individuals each time."""
        self.budget = 0
        """Gradient steps that the last generation pays for, with its reused episodes."""
        super().__init__(policy, env, learning_rate, evolver=evolver, exchange="none", **kwargs)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_range("n_noisy_episodes", self.n_noisy_episodes, 0, self.pop_size, integer=True)
        check_range("n_gradient_actors", self._n_learned, 0, self.pop_size - self.importance_mixing, integer=True)
        check_choice("reward_mode", self.reward_mode, ("dense", "episodic"))
        if self.importance_mixing and self.elitism:
            raise ValueError("elitism must be False with importance_mixing=True, which keeps individuals itself; got True")
        unknown = {"policy_delay", "delay_critic_target"} & set(self.learner_kwargs or {})
        if unknown:
            raise ValueError(f"learner_kwargs must be constants of the critic, whose steps come first; got {sorted(unknown)}")
        if self.action_noise is not None and self.n_noisy_episodes == 0:
            warn_caller(f"action_noise={self.action_noise!r} has no effect without exploring episodes, see n_noisy_episodes")

    @property
    def n_rollouts(self) -> int:
        """See :attr:`HybridAlgorithm.n_rollouts`."""
        return self.pop_size * self.n_eval_episodes + self.n_noisy_episodes

    @property
    def _n_learned(self) -> int:
        return self.pop_size // 2 if self.n_gradient_actors is None else self.n_gradient_actors

    @property
    def _default_batch_size(self) -> int:
        return self._spec.batch_size or 100

    def _make_learner(self) -> Learner:
        return self._spec.build(self.policy, {"max_grad_norm": self.max_grad_norm})

    def _make_population(self) -> Population:
        representation, mean = self._make_representation(), read_parameters(self.actor)
        evolver = make_evolver(self.evolver_class, representation, self.pop_size, self._evolver_arguments(), mean)
        if self.importance_mixing:
            check_capability(evolver, ImportanceMixing, "importance_mixing=True")
        check_vectors(evolver, self._n_learned > 0, f"n_gradient_actors={self._n_learned}")
        return Population(evolver.to(self.device), representation, self.actor)

    def _evolver_arguments(self) -> dict[str, Any]:
        return {**cem_arguments(self), **super()._evolver_arguments()}

    def _setup_parts(self) -> None:
        super()._setup_parts()
        n_params = self.population.representation.layout.n_params
        self.gradient_steps_of_actors = GradientSteps(self.actor, partial(optimizer_of, self))
        self.learned = LearnedRows(max(self._n_learned, 1), n_params).to(self.device)
        n_reusable = self.pop_size - self._n_learned if self.importance_mixing else 1
        self.reused = ReusedEpisodes(n_reusable, n_params).to(self.device)
        self._kept: list[int] = []

    def _ask(self, generation: Generation) -> None:
        """Sample; with importance mixing, :attr:`_kept` are the rows that are reused with their old fitness."""
        distribution: Any = self.evolver
        if not self.importance_mixing:
            generation.candidates, self._kept = self.population.ask(generation.rng), []
            return
        learned = distribution.draw(self._n_learned, generation.rng)
        others, n_kept = self.reused.mix(distribution, generation.rng, self.pop_size - 1)  # one, at least, is evaluated
        generation.candidates = th.cat([learned, others])
        self._kept = list(range(self._n_learned, self._n_learned + n_kept))

    @property
    def _is_warm(self) -> bool:
        return self.n_env_steps > self.learning_starts and self.replay_buffer.size() > 0  # type: ignore[union-attr]

    def _learn(self, generation: Generation) -> None:
        """Write the first candidates after their gradient steps into their rows, unless such are waiting."""
        candidates, n_learned = generation.asked, self._n_learned
        if self.learned.waiting is not None:
            candidates[:n_learned] = self.learned.waiting
        elif n_learned > 0 and self.budget > 0 and self._is_warm:
            improved = self._learner_host.improve(candidates[:n_learned], self.gradient_steps_of_actors, self.budget)
            write_parameters(self._mean, self.actor)
            candidates[:n_learned] = improved
            self.learned.keep(improved)

    def _plan_rollouts(self, candidates: th.Tensor) -> tuple[list[Job], PopulationActor]:
        n_actions, n_noisy = get_action_dim(self.action_space), self.n_noisy_episodes
        noise = self.action_noise or NormalActionNoise(np.zeros(n_actions), np.full(n_actions, 0.1))
        jobs = [Job(self.pop_size + i, explorer=NoiseExploration(noise)) for i in range(n_noisy)]
        jobs += [Job(i, k) for i in range(self.pop_size) if i not in self._kept for k in range(self.n_eval_episodes)]
        return jobs, self.population.act(th.cat([candidates, candidates[:n_noisy]]))

    def _step_store(self) -> CountingStore:
        return CountingStore(self)

    def _evaluate(self, generation: Generation) -> bool:
        self._first = self.n_stored
        return verbs.evaluate(self, generation)

    def _score(self, generation: Generation) -> None:
        """Fitness, with that of reused individuals, and the gradient steps that this generation pays for."""
        verbs.score(self, generation)
        episodes, n_again = generation.evaluated, 0
        if self.importance_mixing:
            assert self.replay_buffer is not None and generation.fitness is not None
            rows, n_kept = slice(self._n_learned, self.pop_size), len(self._kept)
            own = (generation.fitness[rows], episodes, n_kept, self._first, self._n_learned)
            generation.fitness[rows], n_again = self.reused.account(self.replay_buffer, *own)
            self.n_stored += n_again
            self.reused.remember(self.evolver, generation.asked[rows])  # type: ignore[arg-type]
        n_reused = len(self._kept) * self.n_eval_episodes
        self.budget = self._updates_for(episodes.n_timesteps + n_again, len(episodes.episodes) + n_reused)

    def _tell(self, generation: Generation) -> None:
        self.learned.clear()
        verbs.tell(self, generation)
        n_parents, ranking = getattr(self.evolver, "n_parents", 0), self.population.ranking
        if n_parents > 0 and ranking is not None and self._n_learned > 0:
            self.logger.record("population/gradient_parents_share", float(np.mean(ranking[:n_parents] < self._n_learned)))

    @property
    def _mean(self) -> th.Tensor:
        """``(n_params,)``, the mean of the distribution, or the best individual of an evolver without one."""
        found = [self.evolver.center(), self.evolver.best(), self.evolver.candidates[0]]
        return next(vector for vector in found if vector is not None)

    def _deploy(self, generation: Generation) -> None:
        write_parameters(self._mean, self.actor)
        best = self.evolver.best() if self.deploy == "champion" else None
        self.population.representation.write(self._mean if best is None else best, self.policy.deployed)

    def _update(self, sample: Any, n_updates: int) -> dict[str, float]:
        losses = [self.learner.critic_update(sample(), self.actor).detach() for _ in range(n_updates)]  # type: ignore[attr-defined]
        return {"critic_loss": float(th.stack(losses).mean())}

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "gradient_steps_of_actors", "learned", "reused", "_kept", "_first"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        return [*state_dicts, "learned", "reused"], variables
