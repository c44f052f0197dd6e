"""CEM-RL: a cross-entropy method whose sample is partly improved by policy gradients; CEM: the same without gradients."""

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
from sb3_erl.core.checks import check_choice, check_range
from sb3_erl.core.parameters import ParameterLayout, copy_buffers, read_parameters, write_parameters
from sb3_erl.core.seeding import Stream
from sb3_erl.engine.gradient_steps import GradientSteps
from sb3_erl.engine.hybrid import EvolutionaryOffPolicyAlgorithm
from sb3_erl.engine.pure_evolution import EvolutionaryAlgorithm
from sb3_erl.engine.reuse import LearnedRows, ReusedEpisodes
from sb3_erl.evolution.base import Evolver, to_numpy
from sb3_erl.evolution.cem import DiagonalCEM
from sb3_erl.evolution.fitness.returns import episode_return
from sb3_erl.learners.base import Learner, Precision
from sb3_erl.learners.td3 import DDPGLearner, TD3Learner
from sb3_erl.learners.td7 import TD7Learner
from sb3_erl.policies.actor_only import ActorOnlyCnnPolicy, ActorOnlyPolicy
from sb3_erl.policies.cem_rl import CEMRLActor, CEMRLCnnPolicy, CEMRLPolicy
from sb3_erl.policies.erl import fused_adam
from sb3_erl.policies.td7 import SALEPolicy
from sb3_erl.remote.choice import EvaluatorChoice
from sb3_erl.rollouts.acting import ModuleActor, NetworkPool, candidates_stack, numpy_population
from sb3_erl.rollouts.exploration import NoiseExploration
from sb3_erl.rollouts.jobs import EpisodeBatch, Job, PopulationActor, Transition


class CommonDDPG(DDPGLearner):
    """DDPG with the rates of CEM-RL's authors instead of those of ERL's."""

    learning_rates = (1e-3, 1e-3)


RULES: dict[str, type[Any]] = {"td3": TD3Learner, "ddpg": CommonDDPG, "td7": TD7Learner}


class CEMRL(EvolutionaryOffPolicyAlgorithm):
    """
    CEM-RL: evolution and policy gradients on the same actors.

    Pourchot & Sigaud (ICLR 2019), https://arxiv.org/abs/1810.01222; authors' code: apourchot/CEM-RL, ``es_grad.py``. A
    diagonal Gaussian over actor parameters is sampled; the first half of the sample takes gradient steps on one common
    critic; everybody is evaluated, every transition is stored, and the Gaussian is refitted on the best half.

    Differences from the authors' code:

    1. the actor steps of all learned individuals run together, see
       :class:`~sb3_erl.engine.gradient_steps.GradientSteps`; the numbers are those of the sequential order (with TD7 all
       individuals take them on the critic as it is after the last critic step);
    2. time limits are stored as truncations; actions are rescaled to the environment's box;
    3. an elite takes its slot only once there is one;
    4. ``importance_mixing`` mixes the rows that are not learned only, each with its own fitness, length and transitions
       (the authors' bookkeeping mixes up the rows if there are learned ones), and never with ``elitism``;
    5. the mean is not tested inside the loop, use SB3's ``EvalCallback``: ``predict`` acts with the mean;
    6. if a generation is not finished, its learned individuals wait for the next one: no gradient step is taken twice.

    ``policy.actor`` is the mean of the Gaussian: there is no learner's actor beside the population.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"`` or a policy class; or, without ``env``, the environment or its id
    :param env: environment, vectorized or not, its id, or ``None`` for loading
    :param learning_rate: of critic and actors, a float or a schedule; ``None`` for the learner's own (1e-3, TD7: 3e-4)
    :param learning_starts: environment steps, more than which must have been taken before the first gradient step
    :param batch_size: transitions per gradient step, ``None`` for the learner's own (100, TD7: 256)
    :param train_freq: with ``gradient_steps``: critic steps in all, and actor steps of each learned individual, per step
        of the last generation are ``gradient_steps / train_freq``; ``(n, "episode")`` counts its episodes. They come before
        the rollouts of the next generation
    :param action_noise: noise of the noisy rollouts, ``None`` for N(0, 0.1)
    :param learner: critic rule: ``"td3"``, ``"ddpg"`` or ``"td7"``
    :param learner_kwargs: further constants of the critic rule, such as ``target_policy_noise``
    :param max_grad_norm: clip the critic's gradient at this norm, ``None`` for no clipping
    :param n_gradient_actors: how many of the sampled individuals are learned, ``None`` for half of them, 0 for none
    :param n_eval_episodes: episodes per individual
    :param n_noisy_episodes: additional exploring episodes per generation, by the first individuals
    :param n_parents: see :class:`~sb3_erl.evolution.cem.DiagonalCEM`
    :param sigma_init: initial variance of every parameter (the authors' name)
    :param antithetic: see :class:`~sb3_erl.evolution.cem.DiagonalCEM`
    :param elitism: see :class:`~sb3_erl.evolution.cem.DiagonalCEM`
    :param importance_mixing: reuse individuals of the last generation that still look like draws of the new Gaussian
    :param reward_mode: ``"dense"``; ``"episodic"`` stores zeros but for each episode's last step, which gets its return
    :param evolver_kwargs: further arguments of the evolver, such as ``damping_init`` or ``covariance_rule``
    :param deploy: who acts in ``predict``: the ``"mean"`` of the Gaussian or the ``"champion"`` of the last generation
    :raises ValueError: if an argument is out of range or unknown, or the environment's spaces are not supported
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": CEMRLPolicy, "CnnPolicy": CEMRLCnnPolicy}
    evolver: DiagonalCEM

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
        learner: Literal["td3", "ddpg", "td7"] = "td3",
        learner_kwargs: dict[str, Any] | None = None,
        max_grad_norm: float | None = None,
        pop_size: int = 10,
        n_gradient_actors: int | None = None,
        n_eval_episodes: int = 1,
        n_noisy_episodes: int = 0,
        n_parents: int | None = None,
        sigma_init: float = 1e-3,
        antithetic: bool | None = None,
        elitism: bool = False,
        importance_mixing: bool = False,
        reward_mode: Literal["dense", "episodic"] = "dense",
        evolver_kwargs: dict[str, Any] | None = None,
        deploy: Literal["mean", "champion"] = "mean",
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
        self.learner, self.learner_kwargs, self.max_grad_norm = learner, learner_kwargs, max_grad_norm
        self.n_gradient_actors = n_gradient_actors
        self.n_eval_episodes, self.n_noisy_episodes = n_eval_episodes, n_noisy_episodes
        self.n_parents, self.sigma_init, self.antithetic, self.elitism = n_parents, sigma_init, antithetic, elitism
        self.importance_mixing, self.reward_mode = importance_mixing, reward_mode
        self.evolver_kwargs, self.deploy = evolver_kwargs, deploy
        self.n_env_steps = 0
        """Environment steps over the life of the model."""
        self.n_stored = 0
        """Transitions stored over the life of the model, those of reused individuals each time."""
        self.budget = 0
        """Gradient steps that the last finished generation pays for, with its reused episodes."""
        super().__init__(**known_to(super().__init__, locals()))

    # ---------------------------------------------------------------- set-up

    def _check_arguments(self) -> None:
        check_choice("learner", self.learner, tuple(RULES))
        super()._check_arguments()
        check_range("n_noisy_episodes", self.n_noisy_episodes, 0, self.pop_size, integer=True)
        check_range("n_gradient_actors", self._n_learned, 0, self.pop_size, integer=True)
        check_choice("reward_mode", self.reward_mode, ("dense", "episodic"))
        check_choice("deploy", self.deploy, ("mean", "champion"))
        if self.importance_mixing:
            check_range("n_gradient_actors", self._n_learned, 0, self.pop_size - 1, integer=True)
            if self.elitism:
                raise ValueError("elitism must be False with importance_mixing=True, which keeps individuals itself; got True")
        unknown = {"policy_delay", "delay_critic_target"} & set(self.learner_kwargs or {})
        if unknown:
            raise ValueError(
                f"learner_kwargs must be constants of the critic's rule; got {sorted(unknown)}: here all critic steps of a "
                "generation come before its actor steps, nothing is delayed"
            )

    @property
    def _n_jobs(self) -> int:
        return super()._n_jobs + self.n_noisy_episodes

    @property
    def _n_learned(self) -> int:
        return self.pop_size // 2 if self.n_gradient_actors is None else self.n_gradient_actors

    def _aliases(self) -> dict[str, type[BasePolicy]]:
        return {"MlpPolicy": SALEPolicy} if self.learner == "td7" else self.policy_aliases

    def _rule_class(self) -> type[Learner]:
        return RULES[self.learner]

    @property
    def _default_batch_size(self) -> int:
        return 256 if self.learner == "td7" else 100

    def _policy_arguments(self) -> dict[str, Any]:
        return {"n_critics": RULES[self.learner].n_critics}

    def _setup_parts(self) -> None:
        rule, policy = RULES[self.learner], self.policy
        kwargs = {"max_grad_norm": self.max_grad_norm, **rule.settings_defaults, **(self.learner_kwargs or {})}
        self.learner_rule = rule(policy, rule.settings_class(**kwargs))
        parts: Any = policy
        self.actor, self.critic, self.encoder = parts.actor, parts.critic, getattr(policy, "encoder", None)
        self.actor_target, self.critic_target = parts.actor_target, parts.critic_target  # nobody reads the actor's
        own = {name: getattr(self, name) for name in ("n_parents", "antithetic", "elitism")}
        own["variance_init"] = self.sigma_init
        mean = read_parameters(self.actor)
        self.evolver = DiagonalCEM(mean, self.pop_size, **{**own, **(self.evolver_kwargs or {})}).to(self.device)
        self.exchange = GradientSteps(self.actor, self._actor_optimizer)
        self.learned = LearnedRows(max(self._n_learned, 1), mean.numel()).to(self.device)
        n_reusable = self.pop_size - self._n_learned if self.importance_mixing else 1
        self.reused = ReusedEpisodes(n_reusable, mean.numel()).to(self.device)
        self._pool = NetworkPool(parts.make_actor)

    def _actor_optimizer(self, tensors: list[th.Tensor]) -> th.optim.Optimizer:
        kwargs = fused_adam(self.policy.optimizer_class, self.policy.optimizer_kwargs)
        rate = self.lr_schedule(self._current_progress_remaining)
        return self.policy.optimizer_class(tensors, lr=rate, **kwargs)  # type: ignore[call-arg]

    # ---------------------------------------------------------------- the generation: ask, learn, evaluate, tell

    def _generation(self, callback: BaseCallback) -> bool:
        """Ask -> learn in place -> evaluate -> tell -> deploy -> log; see :meth:`GenerationalMixin._generation`."""
        rng = self._rng(Stream.EVOLUTION)
        candidates, kept = self._sample_candidates(rng)  # (pop_size, n_params), rows that need no evaluation
        self._learn_in_place(candidates)
        jobs, actor = self._plan_rollouts(candidates, kept)
        first = self.n_stored
        episodes = self._evaluate(jobs, actor, callback)
        if episodes is None:
            return False
        fitness = self._fitness(candidates, episodes)
        n_again = 0
        if self.importance_mixing:
            fitness, n_again = self._account_for_reused(candidates, fitness, episodes, kept, first)
        n_episodes = len(episodes.episodes) + len(kept) * self.n_eval_episodes
        self.budget = self._updates_for(episodes.n_timesteps + n_again, n_episodes)
        self.learned.clear()
        self.evolver.tell(candidates, fitness)
        self._deploy(candidates, fitness)
        self._log_generation(fitness, episodes)
        self.logger.record("population/sigma", float(self.evolver.variance.sqrt().mean()))
        return True

    def _sample_candidates(self, rng: np.random.Generator) -> tuple[th.Tensor, list[int]]:
        """:return: ``(pop_size, n_params)``, and the rows that are reused with their old fitness"""
        if not self.importance_mixing:
            return self.evolver.ask(rng), []
        learned = self.evolver.draw(self._n_learned, rng)
        others, n_kept = self.reused.mix(self.evolver, rng)
        return th.cat([learned, others]), list(range(self._n_learned, self._n_learned + n_kept))

    @property
    def _is_warm(self) -> bool:
        assert self.replay_buffer is not None
        return self.n_env_steps > self.learning_starts and self.replay_buffer.size() > 0

    def _learn_in_place(self, candidates: th.Tensor) -> None:
        """Write the first candidates after their gradient steps into their rows, unless such are waiting."""
        n_learned = self._n_learned
        if self.learned.waiting is not None:
            candidates[:n_learned] = self.learned.waiting
        elif n_learned > 0 and self.budget > 0 and self._is_warm:
            candidates[:n_learned] = self._improved(candidates[:n_learned])
            self.learned.keep(candidates[:n_learned])

    def _improved(self, candidates: th.Tensor) -> th.Tensor:
        """:return: ``(n_learned, n_params)``, the candidates after the gradient steps of the last generation's budget"""
        size = self.batch_size or self._default_batch_size
        n_critic = self.budget // len(candidates)
        self.policy.set_training_mode(True)

        def observations(n: int) -> list[Any]:
            return list(self._sample(n * size).observations.split(size))

        rule: Any = self.learner_rule
        try:
            with self._stopwatch.measure("learning"), self._updates(size):
                improved, metrics = self.exchange(
                    rule, candidates, lambda: self._sample(size), observations, n_critic, self.budget
                )
        finally:
            write_parameters(self.evolver.mean, self.actor)
            self.policy.set_training_mode(False)
        self._n_updates += len(candidates) * n_critic
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, value in metrics.items():
            self.logger.record(f"train/{name}", value)
        return improved

    def _plan_rollouts(self, candidates: th.Tensor, kept: Sequence[int] = ()) -> tuple[list[Job], PopulationActor]:
        n_actions = get_action_dim(self.action_space)
        noise = self.action_noise or NormalActionNoise(np.zeros(n_actions), np.full(n_actions, 0.1))
        n_noisy = self.n_noisy_episodes
        jobs = [Job(self.pop_size + i, explorer=NoiseExploration(noise)) for i in range(n_noisy)]
        jobs += [Job(i, k) for i in range(self.pop_size) if i not in kept for k in range(self.n_eval_episodes)]
        return jobs, self._population_actor(th.cat([candidates, candidates[:n_noisy]]))

    def _population_actor(self, vectors: th.Tensor) -> PopulationActor:
        actor: Any = self.actor
        plain = numpy_population(actor, candidates_stack(actor, to_numpy(vectors)))
        return ModuleActor(self._pool.filled(vectors, actor)) if plain is None else plain

    def _fitness(self, candidates: th.Tensor, episodes: EpisodeBatch) -> np.ndarray:
        return episode_return(episodes.of(range(self.pop_size)), self.pop_size)

    def _account_for_reused(
        self, candidates: th.Tensor, fitness: np.ndarray, episodes: EpisodeBatch, kept: list[int], first: int
    ) -> tuple[np.ndarray, int]:
        """:return: fitness with that of the reused rows, and how many of their transitions were stored again"""
        assert self.replay_buffer is not None
        rows = slice(self._n_learned, self.pop_size)
        own, n_again = self.reused.account(self.replay_buffer, fitness[rows], episodes, len(kept), first, self._n_learned)
        self.n_stored += n_again
        fitness[rows] = own
        self.reused.remember(self.evolver, candidates[rows])
        return fitness, n_again

    def _tell(self, candidates: th.Tensor, fitness: np.ndarray | None, rng: np.random.Generator) -> None:
        assert fitness is not None
        self.evolver.tell(candidates, fitness, rng)

    def _deploy(self, candidates: th.Tensor, fitness: np.ndarray | None) -> None:
        deployed: Any = self.policy.deployed
        write_parameters(self.evolver.mean, self.actor)
        write_parameters(self.evolver.elite if self.deploy == "champion" else self.evolver.mean, deployed)
        copy_buffers(self.actor, deployed)

    def store(self, job: Job, transitions: Sequence[Transition]) -> None:
        """See :meth:`EvolutionaryOffPolicyAlgorithm.store`; with ``reward_mode="episodic"`` rewards move to the end."""
        self.n_stored += len(transitions)
        self.n_env_steps += len(transitions)
        if self.reward_mode == "episodic" and transitions:
            total = float(sum(step.reward for step in transitions))
            transitions = [step._replace(reward=0.0) for step in transitions]
            transitions[-1] = transitions[-1]._replace(reward=total)
        super().store(job, transitions)

    def individual(self, index: int) -> BasePolicy:
        """See :meth:`EvolutionaryOffPolicyAlgorithm.individual`; as it was evaluated in the last generation."""
        agent = self.policy.make_actor()  # type: ignore[operator]
        write_parameters(self.evolver.candidates[range(self.pop_size)[index]], agent)
        copy_buffers(self.actor, agent)
        agent.set_training_mode(False)
        return agent

    def train(self, gradient_steps: int, batch_size: int | None = None) -> None:
        """Not available: gradient steps belong to the individuals of a generation, see :meth:`learn`."""
        raise NotImplementedError(f"{type(self).__name__} has no learner beside its population; call learn() instead")

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "actor_target", "critic_target", "encoder", "learned", "reused"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        return [*state_dicts, "learned", "reused"], variables


class CEMPolicy(ActorOnlyPolicy):
    """The actor of CEM-RL alone."""

    actor_class = CEMRLActor
    default_net_arch = (400, 300)


class CEMCnnPolicy(CEMPolicy, ActorOnlyCnnPolicy):
    """:class:`CEMPolicy` behind SB3's ``NatureCNN``."""


class CEM(EvolutionaryAlgorithm):
    """
    The cross-entropy method on policy parameters: CEM-RL without its gradients.

    Pourchot & Sigaud (ICLR 2019), https://arxiv.org/abs/1810.01222, the baseline "CEM"; see
    :class:`~sb3_erl.evolution.cem.DiagonalCEM` for the distribution and its differences from the authors' code. No replay buffer,
    no gradients. The network is CEM-RL's actor.

    :param learning_rate: SB3's third argument; not used, because the distribution is refitted in closed form
    :param n_parents: candidates that the distribution is refitted on, ``None`` for half of them
    :param sigma_init: initial variance of every parameter (the authors' name)
    :param antithetic: mirrored sampling, ``None`` for yes if ``pop_size`` is even
    :param elitism: the last candidate is the best of the last generation
    :param evolver_kwargs: further arguments of the evolver, such as ``damping_init`` or ``covariance_rule``
    :param deploy: who acts in ``predict``: the ``"mean"`` of the distribution or the ``"champion"`` of the last generation
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": CEMPolicy, "CnnPolicy": CEMCnnPolicy}

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 0.0,
        pop_size: int = 10,
        n_eval_episodes: int = 1,
        n_parents: int | None = None,
        sigma_init: float = 1e-3,
        antithetic: bool | None = None,
        elitism: bool = False,
        evolver_kwargs: dict[str, Any] | None = None,
        deploy: Literal["mean", "champion"] = "mean",
        evaluator: EvaluatorChoice = "vec",
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        self.n_parents, self.sigma_init, self.antithetic, self.elitism = n_parents, sigma_init, antithetic, elitism
        self.evolver_kwargs, self.deploy = evolver_kwargs, deploy
        super().__init__(**known_to(super().__init__, locals()))

    def _setup_model(self) -> None:
        check_choice("deploy", self.deploy, ("mean", "champion"))
        super()._setup_model()

    def _make_evolver(self, candidates: th.Tensor, layout: ParameterLayout) -> Evolver:
        own = {name: getattr(self, name) for name in ("n_parents", "antithetic", "elitism")}
        own["variance_init"] = self.sigma_init
        return DiagonalCEM(read_parameters(self.policy.deployed), len(candidates), **{**own, **(self.evolver_kwargs or {})})

    def _deployed_vector(self, candidates: th.Tensor, fitness: np.ndarray) -> th.Tensor:
        evolver: Any = self.evolver
        return evolver.elite if self.deploy == "champion" else evolver.mean

    def _log_population(self, fitness: np.ndarray) -> None:
        super()._log_population(fitness)
        evolver: Any = self.evolver
        self.logger.record("population/sigma", float(evolver.variance.sqrt().mean()))
