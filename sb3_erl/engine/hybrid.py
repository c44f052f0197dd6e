"""Base of all hybrids: a population, a gradient learner and one replay buffer."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule, TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import ConstantSchedule

from sb3_erl.buffers.append import append_steps
from sb3_erl.buffers.lap import LAPReplayBuffer
from sb3_erl.buffers.rollout_steps import Steps
from sb3_erl.core.arguments import known_to
from sb3_erl.core.checks import check_choice, check_common, check_range, resolve_policy_and_env, spaces_checked
from sb3_erl.core.seeding import Stream
from sb3_erl.engine.generation import GenerationalMixin
from sb3_erl.engine.learner_host import LearnerHostMixin
from sb3_erl.evolution.base import Evolver
from sb3_erl.learners.base import Learner, Precision
from sb3_erl.remote.choice import EvaluatorChoice
from sb3_erl.rollouts.exploration import NoiseExploration, UniformExploration
from sb3_erl.rollouts.jobs import EpisodeBatch, Explorer, Job, PopulationActor, Summarizer
from sb3_erl.runs.saving import SafeBufferMixin


class EvolutionaryOffPolicyAlgorithm(SafeBufferMixin, LearnerHostMixin, GenerationalMixin, OffPolicyAlgorithm):
    """
    Evolution and an off-policy learner that share what they see.

    A generation is a straight line: ask, evaluate, tell, learn, exchange, deploy, log. Population and learner rollouts
    run in one phase, on one VecEnv, into one replay buffer, in job order; so results do not depend on ``n_envs``.
    Subclasses say which jobs a generation has, how episodes become fitness and what is exchanged.

    :param policy: policy alias or class; or, without ``env``, the environment or its id
    :param env: environment (vectorized or not), its id, or ``None`` for loading
    :param learning_rate: a float or a schedule of the remaining progress
    :param buffer_size: transitions in the replay buffer
    :param learning_starts: steps before the first gradient update, see the subclass for whose steps
    :param batch_size: transitions per gradient update
    :param tau: soft update coefficient in [0, 1]
    :param gamma: discount factor in [0, 1]
    :param train_freq: with ``gradient_steps``: updates per counted environment step are
        ``gradient_steps / train_freq``; ``(n, "episode")`` counts episodes. The updates follow each generation's rollouts
    :param gradient_steps: see ``train_freq``; -1 for as many updates as steps were counted
    :param action_noise: exploration noise of the learner
    :param replay_buffer_class: an SB3 replay buffer class, chosen automatically if ``None``
    :param replay_buffer_kwargs: further arguments of the replay buffer
    :param optimize_memory_usage: SB3's memory-efficient replay buffer
    :param n_steps: length of n-step returns, 1 for one-step targets
    :param pop_size: number of individuals, at least 2
    :param evaluator: who runs the episodes: ``"vec"``, the model's own env in this process; ``"process"``, worker processes;
        ``"ray"``, a Ray cluster; or a :class:`~sb3_erl.remote.process.ProcessEvaluator` or
        :class:`~sb3_erl.remote.ray.RayEvaluator` with settings. The result is the same
    :param precision: ``"fp32"``, or ``"bf16"`` for products in bfloat16, which pays on hardware with instructions for it
    :param compile: translate the losses with ``torch.compile``; pays after some ten thousand updates
    :param policy_kwargs: arguments of the policy
    :param stats_window_size: episodes in the logged means
    :param tensorboard_log: folder of TensorBoard logs, ``None`` for none
    :param verbose: 0 no output, 1 info, 2 debug
    :param seed: seed of the run; all random numbers of a run derive from it
    :param device: ``"auto"``, ``"cpu"`` or ``"cuda"``
    :raises ValueError: if an argument is out of range or the environment has spaces that are not supported
    """

    default_policy: ClassVar[str] = "MlpPolicy"
    evolver: Evolver
    learner_rule: Learner

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule | None,
        buffer_size: int,
        learning_starts: int,
        batch_size: int,
        tau: float,
        gamma: float,
        train_freq: int | tuple[int, str],
        gradient_steps: int,
        action_noise: ActionNoise | None,
        replay_buffer_class: type[ReplayBuffer] | None,
        replay_buffer_kwargs: dict[str, Any] | None,
        optimize_memory_usage: bool,
        n_steps: int,
        pop_size: int,
        evaluator: EvaluatorChoice,
        precision: Precision,
        compile: bool,
        policy_kwargs: dict[str, Any] | None,
        stats_window_size: int,
        tensorboard_log: str | None,
        verbose: int,
        seed: int | None,
        device: th.device | str,
        _init_setup_model: bool = True,
    ):
        policy, env = resolve_policy_and_env(policy, env, self.default_policy, self._known_policies())
        self.pop_size = pop_size
        self.evaluator = evaluator
        self.precision, self.compile = precision, compile
        self._init_generational()
        self.n_learner_steps = 0
        """Environment steps of the learner's own episodes over the life of the model."""
        self._update_debt = 0.0
        with spaces_checked(self, verbose, policy_kwargs):
            super().__init__(**known_to(super().__init__, locals()), support_multi_env=True, sde_support=False)
        if _init_setup_model:
            self._setup_model()

    # ---------------------------------------------------------------- what follows from the choice of a learner

    def _aliases(self) -> dict[str, type[BasePolicy]]:
        """Policy classes by alias for the learner that was chosen."""
        return self.policy_aliases

    def _known_policies(self) -> list[str]:
        return list(self._aliases())

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        check_choice("policy", policy_name, self._aliases())
        return self._aliases()[policy_name]

    @abstractmethod
    def _rule_class(self) -> type[Learner]:
        """The rule that was chosen; it knows the published replay buffer and learning rates."""

    def _setup_lr_schedule(self) -> None:
        if self.learning_rate is not None:
            super()._setup_lr_schedule()
        else:
            self.lr_schedule = ConstantSchedule(self._rule_class().learning_rates[1])

    # ---------------------------------------------------------------- set-up

    def _check_arguments(self) -> None:
        """:raises ValueError: naming the argument that is out of range"""
        check_common(self)
        self._check_update_options()
        check_range("pop_size", self.pop_size, 2, integer=True)
        check_range("buffer_size", self.buffer_size, 1, integer=True)
        if self.batch_size is not None:
            check_range("batch_size", self.batch_size, 1, integer=True)
        check_range("learning_starts", self.learning_starts, 0)
        check_range("gradient_steps", self.gradient_steps, -1, integer=True)
        check_range("n_steps", self.n_steps, 1, integer=True)
        check_range("tau", self.tau, 0, 1)
        check_range("gamma", self.gamma, 0, 1)

    def _setup_model(self) -> None:
        self._check_arguments()
        self._check_rollouts()
        n_envs, policy_kwargs = self.n_envs, self.policy_kwargs
        buffer_class, buffer_kwargs = self.replay_buffer_class, self.replay_buffer_kwargs
        self.n_envs = 1  # transitions are stored job by job, so the buffer has one column
        self.policy_kwargs = {**self._policy_arguments(), **policy_kwargs}
        if buffer_class is None and self.n_steps == 1:
            self.replay_buffer_class = self._rule_class().buffer_class
        if issubclass(self.replay_buffer_class or ReplayBuffer, LAPReplayBuffer):
            self.replay_buffer_kwargs = {"n_priorities": self._n_priorities, **buffer_kwargs}
        try:
            super()._setup_model()
        finally:
            self.n_envs, self.policy_kwargs = n_envs, policy_kwargs
            self.replay_buffer_class, self.replay_buffer_kwargs = buffer_class, buffer_kwargs
        self._setup_addresses()
        self._setup_parts()

    @property
    def _n_priorities(self) -> int:
        """Sets of priorities in a replay buffer that keeps any."""
        return 1

    def _policy_arguments(self) -> dict[str, Any]:
        """Arguments of the policy that follow from the model's own; ``policy_kwargs`` has precedence."""
        return {}

    @abstractmethod
    def _setup_parts(self) -> None:
        """Build learner, evolver and exchange; also runs in ``load``, before their tensors are loaded."""

    # ---------------------------------------------------------------- the generation line

    def _generation(self, callback: BaseCallback) -> bool:
        """See :meth:`GenerationalMixin._generation`; ask -> evaluate -> tell -> learn -> exchange -> deploy -> log."""
        rng = self._rng(Stream.EVOLUTION)
        candidates = self.evolver.ask(rng)  # (pop_size, n_params)
        jobs, actor = self._plan_rollouts(candidates)
        episodes = self._evaluate(jobs, actor, callback)
        if episodes is None:
            return False
        fitness = self._fitness(candidates, episodes)  # (pop_size,), None while the population is not evaluated
        self._tell(candidates, fitness, rng)
        if self._is_warm:
            self.train(self._n_gradient_steps(episodes))
            self._exchange(fitness)
        self._deploy(candidates, fitness)
        self._log_generation(fitness, episodes)
        return True

    @abstractmethod
    def _plan_rollouts(self, candidates: th.Tensor) -> tuple[list[Job], PopulationActor]:
        """
        :param candidates: ``(pop_size, n_params)``
        :return: the jobs of this generation, candidates from ``pop_size`` on being the learner, and who acts
        """

    @abstractmethod
    def _fitness(self, candidates: th.Tensor, episodes: EpisodeBatch) -> np.ndarray | None:
        """:return: ``(pop_size,)``, higher is better, NaN is worst; ``None`` if nobody was evaluated"""

    @abstractmethod
    def _tell(self, candidates: th.Tensor, fitness: np.ndarray | None, rng: np.random.Generator) -> None:
        """Let the evolver make the next population."""

    def _exchange(self, fitness: np.ndarray | None) -> None:
        """Move parameters between learner and population, after learning; nothing by default."""

    @abstractmethod
    def _deploy(self, candidates: th.Tensor, fitness: np.ndarray | None) -> None:
        """Write ``policy.deployed``, the only place that does."""

    def _log_generation(self, fitness: np.ndarray | None, episodes: EpisodeBatch) -> None:
        self.logger.record("time/generations", self.n_generations + 1, exclude="tensorboard")
        learner = [e.total_reward for e in episodes.episodes if e.job.candidate >= self.pop_size and not e.failed]
        if learner:
            self.logger.record("rollout/learner_ep_rew_mean", float(np.mean(learner)))
        if fitness is not None:
            self._log_population(fitness)

    # ---------------------------------------------------------------- rollouts

    @property
    def summarizer(self) -> Summarizer | None:
        """:meth:`store` gets the steps themselves."""
        return None

    @property
    def needs(self) -> frozenset[str]:
        """Rewards, which come with the steps at no cost."""
        return frozenset({"rewards"})

    def store(self, job: Job, steps: Steps) -> None:
        """Add one job's steps to the replay buffer; see :class:`~sb3_erl.rollouts.jobs.Recorder`."""
        buffer = self.replay_buffer
        assert buffer is not None
        if job.candidate >= self.pop_size:
            self.n_learner_steps += len(steps)
        append_steps(buffer, steps)

    def _explorer(self, noise: ActionNoise | None) -> Explorer | None:
        """Exploration of the learner: uniform while it has not begun to learn, then its noise."""
        if self.n_learner_steps < self.learning_starts:
            return UniformExploration()
        return None if noise is None else NoiseExploration(noise)

    # ---------------------------------------------------------------- learning

    def train(self, gradient_steps: int, batch_size: int | None = None) -> None:
        """See :meth:`LearnerHostMixin.train`; counted as learning in the log."""
        with self._stopwatch.measure("learning"):
            super().train(gradient_steps, batch_size)

    def _n_gradient_steps(self, episodes: EpisodeBatch) -> int:
        """Updates for these episodes."""
        return self._updates_for(episodes.n_timesteps, len(episodes.episodes))

    def _updates_for(self, n_timesteps: int, n_episodes: int) -> int:
        """Updates that so much experience pays for; what integer division leaves over is kept for the next call."""
        if self.gradient_steps < 0:
            return n_timesteps
        assert isinstance(self.train_freq, TrainFreq)
        count = n_episodes if self.train_freq.unit == TrainFrequencyUnit.EPISODE else n_timesteps
        self._update_debt += self.gradient_steps * count / self.train_freq.frequency
        n_updates = int(self._update_debt + 1e-9)
        self._update_debt -= n_updates
        return n_updates

    @property
    def _is_warm(self) -> bool:
        """Whether the learner learns."""
        return self.n_learner_steps >= self.learning_starts

    # ---------------------------------------------------------------- agents

    @property
    def learner_agent(self) -> BasePolicy:
        """The learner's actor; has ``predict``, for ``evaluate_policy``."""
        return self.actor  # type: ignore[return-value]

    @abstractmethod
    def individual(self, index: int) -> BasePolicy:
        """
        :param index: slot in the population, from 0
        :return: a policy of its own with the individual's parameters; has ``predict``
        """

    # ---------------------------------------------------------------- saving

    def _excluded_save_params(self) -> list[str]:
        own = [
            "actor",
            "critic",
            "evolver",
            "learner_rule",
            "exchange",
            "_evaluator",
            "_callback",
            "_pool",
            "_stopwatch",
            "_failures",
        ]
        return [*super()._excluded_save_params(), *own]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = self.learner_rule.save_params
        return ["policy", *state_dicts, "evolver"], variables

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> Any:
        """Not available: a generation is the unit of work, see :meth:`learn`."""
        raise NotImplementedError(f"{type(self).__name__} collects whole generations; call learn() instead")
