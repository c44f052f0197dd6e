"""Base of pure evolution: a population and an environment, no gradient learner and no replay buffer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor

from sb3_erl.core.action_spaces import in_space
from sb3_erl.core.checks import check_common, check_range, resolve_policy_and_env, spaces_checked
from sb3_erl.core.parameters import read_parameters
from sb3_erl.engine.generation import Generation, Verb, make_steps, run_generations
from sb3_erl.engine.model import EvolvingModel
from sb3_erl.engine.population import Population, make_evolver
from sb3_erl.engine.representation import WholeNetworks
from sb3_erl.engine.rollout_phase import Rollouts, StepStore, check_rollouts
from sb3_erl.envs.packages import register_namespaces
from sb3_erl.evolution.base import Evolver
from sb3_erl.evolution.fitness.base import Fitness, make_fitness
from sb3_erl.policies.erl import fitting_policy
from sb3_erl.policies.es import ACTOR_ONLY_POLICIES, ActorOnlyPolicy, ESPolicy
from sb3_erl.remote.choice import EvaluatorChoice
from sb3_erl.rollouts.jobs import Job, PopulationActor
from sb3_erl.runs.description import remember_logged

if TYPE_CHECKING:
    from sb3_erl.remote.evaluator import RemoteEvaluator


class EvolutionaryAlgorithm(EvolvingModel, BaseAlgorithm):
    """
    Evolution alone: ask, evaluate, score, tell, deploy, log.

    Usable as it is, with any evolver and fitness, and the base of all systems without a learner.

    :param policy: policy alias or class; or, without ``env``, the environment or its id
    :param env: environment (vectorized or not), its id, or ``None`` for loading
    :param learning_rate: step size of evolvers that have one
    :param pop_size: candidates per generation, at least 2
    :param n_eval_episodes: episodes per candidate and generation
    :param fitness: what is maximized: ``"return"`` (undiscounted), another key, ``"package.module:Name"``, a function of
        episodes, or a weighted sum such as ``{"return": 1.0, "energy": 0.1}``; see
        :func:`~sb3_erl.evolution.fitness.base.make_fitness`. Returns are logged in any case
    :param evolver: ``"ga"``, ``"cem"``, ``"package.module:Name"`` or a subclass of
        :class:`~sb3_erl.evolution.base.Evolver`
    :param evolver_kwargs: further arguments of the evolver
    :param generation_steps: steps of your own in each generation, see :mod:`sb3_erl.engine.steps`
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

    reported_candidates = ("champion",)
    default_policy: ClassVar[str] = "MlpPolicy"
    takes_discrete_actions: ClassVar[bool] = True
    takes_several_choices: ClassVar[bool] = True
    """Whether actions may be of a ``MultiDiscrete`` or ``MultiBinary`` space."""
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = ACTOR_ONLY_POLICIES
    generation_order: ClassVar[tuple[Verb, ...]] = ("ask", "evaluate", "score", "tell", "deploy", "log")
    _searched_network = "policy.deployed"
    episode_needs: ClassVar[frozenset[str]] = frozenset()
    """What episodes carry beside that which the fitness needs."""
    policy: ActorOnlyPolicy
    champion_fitness: float | None = None
    """Fitness of the last evaluated champion, ``None`` before the first evaluation."""
    champion_return: float | None = None
    """Return of the last evaluated champion, ``None`` before, and where fitness is not the return."""
    _injected_slot: int | None = None

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 1e-2,
        pop_size: int = 10,
        n_eval_episodes: int = 1,
        fitness: Any = "return",
        evolver: Any = "ga",
        evolver_kwargs: dict[str, Any] | None = None,
        generation_steps: Sequence[Any] = (),
        evaluator: EvaluatorChoice = "vec",
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        register_namespaces(policy, env)
        policy, env = resolve_policy_and_env(policy, env, self.default_policy, self.policy_aliases)
        self.pop_size, self.n_eval_episodes, self.fitness_class = pop_size, n_eval_episodes, fitness
        self.evolver_class, self.evolver_kwargs, self.generation_steps = evolver, evolver_kwargs, generation_steps
        self.evaluator, self.rollouts = evaluator, Rollouts(self)
        self.n_generations = 0
        """Finished generations over the life of the model; ``reset_num_timesteps`` does not reset it."""
        self.fitness_state: dict[str, Any] = {}
        with spaces_checked(self, verbose, policy_kwargs, not _init_setup_model, policy):
            super().__init__(
                policy=policy,
                env=env,
                learning_rate=learning_rate,
                policy_kwargs=policy_kwargs,
                stats_window_size=stats_window_size,
                tensorboard_log=tensorboard_log,
                verbose=verbose,
                device=device,
                support_multi_env=True,
                seed=seed,
            )
        if _init_setup_model:
            self._setup_model()

    # ---------------------------------------------------------------- set-up

    def _check_arguments(self) -> None:
        """:raises ValueError: naming the argument that is out of range"""
        check_common(self)
        check_range("pop_size", self.pop_size, 2, integer=True)
        check_rollouts(self)

    def _setup_model(self) -> None:
        self._check_arguments()
        required = next(iter(self.policy_aliases.values()))
        required = next((base for base in required.__mro__ if base in (ESPolicy, ActorOnlyPolicy)), required)
        self.policy_class = fitting_policy(self.policy_class, required)
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        arguments = (self.observation_space, self.action_space, self.lr_schedule)
        policy: Any = self.policy_class(*arguments, **self._policy_arguments())
        self.policy = policy.to(self.device)
        self.run.choose_seed()
        self.population = self._make_population()
        self.fitness: Fitness = make_fitness(self._fitness_choice)
        if self.fitness_state:
            self.fitness.load_state_dict(self.fitness_state)
        self.extra_steps = make_steps(self.generation_steps, self.generation_order)

    def _policy_arguments(self) -> dict[str, Any]:
        """Arguments of the policy; ``policy_kwargs`` has precedence over those that follow from the model's own."""
        return self.policy_kwargs

    @property
    def _fitness_choice(self) -> Any:
        """The fitness that was chosen, or that follows from other arguments."""
        return self.fitness_class

    def _make_population(self) -> Population:
        representation = WholeNetworks(self.policy, self.policy.deployed)
        mean = read_parameters(self.policy.deployed)
        evolver = make_evolver(self.evolver_class, representation, self.pop_size, self._evolver_arguments(), mean)
        return Population(evolver.to(self.device), representation, self.policy.deployed)

    def _evolver_arguments(self) -> dict[str, Any]:
        """Arguments of the evolver beside candidates and layout, or mean and number."""
        return dict(self.evolver_kwargs or {})

    @property
    def n_rollouts(self) -> int:
        """Rollouts in a generation."""
        return self.pop_size * self.n_eval_episodes

    # ---------------------------------------------------------------- the verbs of a generation

    def _train_loop(self, total_timesteps: int, callback: BaseCallback, log_interval: int | None) -> None:
        run_generations(self, total_timesteps, callback, log_interval)

    def _plan_rollouts(self, candidates: Tensor) -> tuple[list[Job], PopulationActor]:
        """:return: the jobs of this generation, and who acts"""
        jobs = [Job(i, k) for i in range(len(candidates)) for k in range(self.n_eval_episodes)]
        return jobs, self.population.act(candidates)

    def _step_store(self) -> StepStore | None:
        """What takes the steps of this generation; ``None``: they are not kept."""
        return None

    def is_of_population(self, job: Job) -> bool:
        """Whether a rollout is an individual's."""
        return True

    def _migrants(self, generation: Generation) -> Tensor | None:
        """There is no learner that individuals could come from."""
        return None

    @property
    def _fitness_is_return(self) -> bool:
        return self._fitness_choice == "return"

    def _deploy(self, generation: Generation) -> None:
        """Write ``policy.deployed``; the only place that does."""
        assert self.population.champion is not None
        self.population.representation.write(self.population.champion.vector, self.policy.deployed)

    # ---------------------------------------------------------------- agents

    @property
    def evolver(self) -> Evolver:
        """Proposes the candidates; ``evolver.candidates`` has the parameters of the population."""
        return self.population.evolver

    @property
    def workers(self) -> RemoteEvaluator | None:
        """The evaluator with workers, to add some, remove some or ``close()`` it; ``None`` without, or before ``learn``."""
        return self.rollouts.workers

    def individual(self, index: int) -> BasePolicy:
        """
        :param index: slot in the population, from 0
        :return: a policy of its own with the parameters that the evolver holds there; has ``predict``
        """
        return self.population.individual(index)

    def dump_logs(self) -> None:
        """Write the log table; the same rows as SB3's off-policy classes."""
        remember_logged(self)
        OffPolicyAlgorithm.dump_logs(self)  # type: ignore[arg-type]

    def candidates_for_report(self) -> dict[str, Any]:
        """See :meth:`~sb3_erl.engine.model.EvolvingModel.candidates_for_report`; the network that is deployed."""
        return {"champion" if self.evolver.center() is None else "mean": in_space(self.policy.deployed)}

    # ---------------------------------------------------------------- saving

    def _plain_state(self) -> dict[str, Any]:
        return {**super()._plain_state(), "fitness_state": self.fitness.state_dict()}

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "population", "fitness", "extra_steps", "rollouts"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "evolver"], []
