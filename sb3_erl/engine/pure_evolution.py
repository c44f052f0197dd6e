"""Base of pure evolution: a population and an environment, no gradient learner and no replay buffer."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_erl.core.arguments import known_to
from sb3_erl.core.checks import check_common, check_range, resolve_policy_and_env, spaces_checked
from sb3_erl.core.parameters import ParameterLayout, read_parameters, write_parameters
from sb3_erl.core.seeding import Stream
from sb3_erl.engine.generation import GenerationalMixin
from sb3_erl.evolution.base import Evolver, to_numpy
from sb3_erl.evolution.fitness.returns import episode_return
from sb3_erl.policies.es import ActorOnlyCnnPolicy, ActorOnlyPolicy
from sb3_erl.remote.choice import EvaluatorChoice
from sb3_erl.rollouts.acting import ModuleActor, NetworkPool, candidates_stack, numpy_population
from sb3_erl.rollouts.jobs import EpisodeBatch, Job, PopulationActor


class EvolutionaryAlgorithm(GenerationalMixin, BaseAlgorithm):
    """
    Evolution alone: ask, evaluate, tell, deploy, log.

    A subclass builds its evolver in :meth:`_make_evolver` and may override how episodes become fitness and which vector is
    deployed. See ``examples/custom_system.py`` for a whole one.

    :param policy: policy alias or class; or, without ``env``, the environment or its id
    :param env: environment (vectorized or not), its id, or ``None`` for loading
    :param learning_rate: step size of evolvers that have one
    :param pop_size: candidates per generation, at least 2
    :param n_eval_episodes: episodes per candidate and generation
    :param evaluator: who runs the episodes: ``"vec"``, the model's own env in this process; ``"process"``, worker processes;
        ``"ray"``, a Ray cluster; or a :class:`~sb3_erl.remote.process.ProcessEvaluator` or
        :class:`~sb3_erl.remote.ray.RayEvaluator` with settings. The result is the same
    :param policy_kwargs: arguments of the policy
    :param stats_window_size: episodes in the logged means
    :param tensorboard_log: folder of TensorBoard logs, ``None`` for none
    :param verbose: 0 no output, 1 info, 2 debug
    :param seed: seed of the run; all random numbers of a run derive from it
    :param device: ``"auto"``, ``"cpu"`` or ``"cuda"``
    :raises ValueError: if an argument is out of range or the environment has spaces that are not supported
    """

    default_policy: ClassVar[str] = "MlpPolicy"
    takes_discrete_actions: ClassVar[bool] = False
    begins_with_actors: ClassVar[bool] = True
    """Whether the evolver is given ``pop_size`` fresh actors, and not a single one because it makes its own."""
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ActorOnlyPolicy,
        "CnnPolicy": ActorOnlyCnnPolicy,
    }
    evolver: Evolver
    policy: ActorOnlyPolicy

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 1e-2,
        pop_size: int = 10,
        n_eval_episodes: int = 1,
        evaluator: EvaluatorChoice = "vec",
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        policy, env = resolve_policy_and_env(policy, env, self.default_policy, self.policy_aliases)
        self.pop_size = pop_size
        self.n_eval_episodes = n_eval_episodes
        self.evaluator = evaluator
        self._init_generational()
        with spaces_checked(self, verbose, policy_kwargs):
            super().__init__(**known_to(BaseAlgorithm.__init__, locals()), support_multi_env=True)
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        check_common(self)
        check_range("pop_size", self.pop_size, 2, integer=True)
        self._check_rollouts()
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        arguments = (self.observation_space, self.action_space, self.lr_schedule)
        policy: Any = self.policy_class(*arguments, **self.policy_kwargs)
        self.policy = policy.to(self.device)
        self._setup_addresses()
        makers = [self.policy.make_actor] * (self.pop_size if self.begins_with_actors else 1)
        fresh = th.stack([read_parameters(make()) for make in makers])
        self.evolver = self._make_evolver(fresh, ParameterLayout.of(self.policy.deployed)).to(self.device)
        self._pool = NetworkPool(self.policy.make_actor)

    @abstractmethod
    def _make_evolver(self, candidates: th.Tensor, layout: ParameterLayout) -> Evolver:
        """
        :param candidates: ``(pop_size, n_params)``, freshly initialized actors; one row if not :attr:`begins_with_actors`
        :param layout: tensors of one actor
        :return: the evolver; its tensors are loaded afterwards where a model is loaded
        """

    def _generation(self, callback: BaseCallback) -> bool:
        rng = self._rng(Stream.EVOLUTION)
        candidates = self.evolver.ask(rng)
        jobs = [Job(i, k) for i in range(len(candidates)) for k in range(self.n_eval_episodes)]
        episodes = self._evaluate(jobs, self._population_actor(candidates), callback)
        if episodes is None:
            return False
        fitness = self._fitness(candidates, episodes)
        self.evolver.tell(candidates, fitness, rng)
        write_parameters(self._deployed_vector(candidates, fitness), self.policy.deployed)
        self.logger.record("time/generations", self.n_generations + 1, exclude="tensorboard")
        self._log_population(fitness)
        return True

    @property
    def _network(self) -> BasePolicy:
        """Whose statistics of observations the candidates act with."""
        return self.policy.deployed

    def _population_actor(self, candidates: th.Tensor) -> PopulationActor:
        network = self._network
        plain = numpy_population(network, candidates_stack(network, to_numpy(candidates)))
        return ModuleActor(self._pool.filled(candidates, network)) if plain is None else plain

    def _fitness(self, candidates: th.Tensor, episodes: EpisodeBatch) -> np.ndarray:
        """:return: ``(pop_size,)``, higher is better, NaN is worst"""
        return episode_return(episodes, len(candidates))

    def _deployed_vector(self, candidates: th.Tensor, fitness: np.ndarray) -> th.Tensor:
        """:return: ``(n_params,)``, what ``predict`` uses from now on; the best candidate by default"""
        return candidates[int(np.nanargmax(np.where(np.isnan(fitness), -np.inf, fitness)))]

    def individual(self, index: int) -> BasePolicy:
        """
        :param index: slot in the population, from 0
        :return: a policy of its own with the parameters that the evolver holds there; has ``predict``
        """
        agent = self.policy.make_actor()
        write_parameters(self.evolver.candidates[range(self.pop_size)[index]], agent)
        agent.set_training_mode(False)
        return agent

    def dump_logs(self) -> None:
        """Write the log table; the same rows as SB3's off-policy classes."""
        OffPolicyAlgorithm.dump_logs(self)  # type: ignore[arg-type]

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "evolver", "_evaluator", "_callback", "_pool", "_stopwatch", "_failures"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "evolver"], []
