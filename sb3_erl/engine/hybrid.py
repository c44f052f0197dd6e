"""Base of all hybrids: a population, a gradient learner and one replay buffer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule, TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import ConstantSchedule
from torch import Tensor, as_tensor

from sb3_erl.core.action_spaces import in_space
from sb3_erl.core.arguments import inherits_arguments
from sb3_erl.core.array_text import array_to_text, text_to_array
from sb3_erl.core.checks import check_choice, check_range
from sb3_erl.engine.generation import Generation, Verb, evolves, make_steps, run_generations
from sb3_erl.engine.off_policy_model import OffPolicyModel
from sb3_erl.engine.population import Champion, Population, candidates_of, make_evolver
from sb3_erl.engine.replace import fitting, make_exchange
from sb3_erl.engine.representation import Representation, WholeNetworks, own_networks
from sb3_erl.engine.rollout_phase import ReplayStore, Rollouts, check_rollouts
from sb3_erl.evolution.base import Evolver
from sb3_erl.evolution.fitness.base import make_fitness
from sb3_erl.learners.base import Learner
from sb3_erl.learners.choice import LearnerSpec, learner_spec
from sb3_erl.policies.erl import deploying, fitting_policy
from sb3_erl.remote.choice import EvaluatorChoice
from sb3_erl.rollouts.exploration import NoiseExploration, UniformExploration
from sb3_erl.rollouts.jobs import Explorer, Job, PopulationActor

if TYPE_CHECKING:
    from sb3_erl.remote.evaluator import RemoteEvaluator

NETWORKS = ("actor", "critic", "encoder", "actor_target", "critic_target")


class HybridAlgorithm(OffPolicyModel):
    """
    Evolution and an off-policy learner that share what they see.

    A system is a population, a learner, an exchange and a generation order. Rollouts of population and learner run in one
    phase, on one VecEnv, into one replay buffer, in the order of the jobs; so results do not depend on ``n_envs``.

    Parameters that are not listed here are those of :class:`~sb3_erl.engine.off_policy_model.OffPolicyModel`.

    :param learner: ``"td3"``, ``"ddpg"``, ``"td7"``, ``"sac"``, ``"dqn"``, ``"package.module:Name"``, a subclass of
        :class:`~sb3_erl.learners.td_rule.TDRule` or :class:`~sb3_erl.learners.base.Learner`, or an SB3 off-policy class
    :param learner_kwargs: further constants of the learner, such as ``n_critics`` or ``policy_delay``
    :param pop_size: number of individuals, at least 2
    :param n_eval_episodes: episodes per individual and generation
    :param fitness: what is maximized: ``"return"`` (undiscounted), another key, ``"package.module:Name"``, a function of
        episodes, or a weighted sum such as ``{"return": 1.0, "energy": 0.1}``; see
        :func:`~sb3_erl.evolution.fitness.base.make_fitness`. Returns are logged in any case
    :param evolver: ``"ga"``, ``"cem"``, ``"package.module:Name"`` or a subclass of
        :class:`~sb3_erl.evolution.base.Evolver`
    :param evolver_kwargs: further arguments of the evolver
    :param exchange: what goes from the learner to the population: ``"replace_weakest"``, ``"imitate"``, ``"none"``,
        ``"package.module:Name"`` or a class, see :mod:`sb3_erl.engine.replace`
    :param exchange_kwargs: further arguments of the exchange
    :param population_policy_kwargs: arguments of the policy whose networks the individuals are, where they have another
        architecture than the learner; ``exchange="replace_weakest"`` then copies nothing, ``"imitate"`` trains an individual
    :param generation_steps: steps of your own in each generation, such as ``every(3, Reseed(std=0.1))``; see
        :mod:`sb3_erl.engine.steps`
    :param evaluator: who runs the episodes: ``"vec"``, the model's own env in this process; ``"process"``, worker processes;
        ``"ray"``, a Ray cluster; or a :class:`~sb3_erl.remote.process.ProcessEvaluator` or
        :class:`~sb3_erl.remote.ray.RayEvaluator` with settings. The result is the same
    :raises ValueError: if an argument is out of range or the environment has spaces that are not supported
    """

    generation_order: ClassVar[tuple[Verb, ...]] = (
        "ask", "evaluate", "score", "tell", "learn", "exchange", "deploy", "log",
    )  # fmt: skip
    deploy_choices: ClassVar[tuple[str | None, ...]] = ("champion", "learner")
    published_rates: ClassVar[dict[type, tuple[float, float]]] = {}
    """Learning rates of actor and critic by rule, where this system's differ from those of the rule."""
    learner_needs: ClassVar[tuple[str, ...]] = ()
    """Methods that a learner must have."""
    policy: Any
    _warms_up_by: ClassVar[str | None] = "learner steps"
    deploy: Any = "champion"
    champion_fitness: float | None = None
    """Fitness of the last evaluated champion, ``None`` before the first evaluation."""
    champion_return: float | None = None
    """Return of the last champion that was found by whole episodes, ``None`` before."""
    episode_needs: ClassVar[frozenset[str]] = frozenset({"rewards"})
    """What episodes carry beside that which the fitness needs."""
    _n_injections: int = 0
    """Times that the exchange has put an individual into the population."""
    _injected_slot: int | None = None

    @inherits_arguments()
    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule | None = None,
        learner: Any = "td3",
        learner_kwargs: dict[str, Any] | None = None,
        pop_size: int = 10,
        n_eval_episodes: int = 1,
        fitness: Any = "return",
        evolver: Any = "ga",
        evolver_kwargs: dict[str, Any] | None = None,
        exchange: Any = "replace_weakest",
        exchange_kwargs: dict[str, Any] | None = None,
        population_policy_kwargs: dict[str, Any] | None = None,
        generation_steps: Sequence[Any] = (),
        evaluator: EvaluatorChoice = "vec",
        **kwargs: Any,
    ):
        self.learner_class, self.learner_kwargs = learner, learner_kwargs
        self.pop_size, self.n_eval_episodes, self.fitness_class = pop_size, n_eval_episodes, fitness
        self.evolver_class, self.evolver_kwargs = evolver, evolver_kwargs
        self.exchange_class, self.exchange_kwargs = exchange, exchange_kwargs
        self.population_policy_kwargs, self.generation_steps = population_policy_kwargs, generation_steps
        self.evaluator, self.rollouts = evaluator, Rollouts(self)
        self.n_generations = 0
        """Finished generations over the life of the model; ``reset_num_timesteps`` does not reset it."""
        self.n_learner_steps = 0
        """Environment steps of the learner's own episodes over the life of the model."""
        self.fitness_state: dict[str, Any] = {}
        self.champion_state: str | None = None
        self._update_debt = 0.0
        super().__init__(policy, env, learning_rate, **kwargs)

    # ---------------------------------------------------------------- what follows from the choice of a learner

    @property
    def _spec(self) -> LearnerSpec:
        """The learner that was chosen; it knows the published replay buffer and learning rates."""
        return learner_spec(
            self.learner_class, self.learner_kwargs, learning_rates=self.published_rates, needs=self.learner_needs
        )

    @property
    def takes_discrete_actions(self) -> bool:
        """Whether the learner is one for discrete actions."""
        return issubclass(self._spec.learner_class.action_space_class, spaces.Discrete)

    def _aliases(self) -> dict[str, type[BasePolicy]]:
        """Policy classes by alias for the learner that was chosen."""
        return self._spec.aliases(self.policy_aliases)

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        check_choice("policy", policy_name, self._aliases())
        return deploying(self._spec.policy_class(policy_name, self._aliases()))

    def _setup_lr_schedule(self) -> None:
        if self.learning_rate is not None:
            return super()._setup_lr_schedule()
        self.lr_schedule = self.published_schedule = ConstantSchedule(self._spec.learning_rates[1])

    # ---------------------------------------------------------------- set-up

    def _check_arguments(self) -> None:
        super()._check_arguments()
        self._learner_host.check_learner(self._spec)
        check_range("pop_size", self.pop_size, 2, integer=True)
        check_choice("deploy", self.deploy, self.deploy_choices)
        check_rollouts(self)

    @property
    def n_rollouts(self) -> int:
        """Rollouts in a generation in which all are evaluated in whole episodes."""
        return self.pop_size * self.n_eval_episodes + 1

    def _setup_model(self) -> None:
        self._check_arguments()
        required = self._get_policy_from_name(next(iter(self._aliases())))
        self.policy_class = fitting_policy(self.policy_class, required)  # that of a file may be of an earlier version
        n_envs, self.n_envs = self.n_envs, 1  # transitions are stored job by job, so the buffer has one column
        try:
            super()._setup_model()
        finally:
            self.n_envs = n_envs
        self._setup_parts()

    def _default_buffer_class(self) -> type[ReplayBuffer] | None:
        return self._spec.buffer_class if self.n_steps == 1 else None

    def _policy_arguments(self) -> dict[str, Any]:
        return self._spec.policy_arguments

    def _setup_parts(self) -> None:
        """Build learner, population, fitness and exchange; also runs in ``load``, before their tensors are loaded."""
        self.learner = self._make_learner()
        self.policy = self.learner.policy
        self._name_networks()
        self.population, self.fitness = self._make_population(), make_fitness(self.fitness_class)
        if self.fitness_state:
            self.fitness.load_state_dict(self.fitness_state)
        if self.champion_state is not None and self.champion_fitness is not None:
            vector = as_tensor(text_to_array(self.champion_state), device=self.device)
            self.population.champion, self.champion_state = Champion(vector, self.champion_fitness), None
        self.exchange = fitting(self._make_exchange(), self.evolver)
        self.extra_steps = make_steps(self.generation_steps, self.generation_order)

    def _name_networks(self) -> None:
        """Networks under the names by which SB3's classes have them."""
        vars(self).update({name: getattr(self.policy, name, None) for name in NETWORKS})

    def _make_learner(self) -> Learner:
        return self._spec.build(self.policy, learning_rate=self.learning_rate, policy_kwargs=dict(self.policy_kwargs))

    def _make_population(self) -> Population:
        representation = self._make_representation()
        evolver = make_evolver(self.evolver_class, representation, self.pop_size, self._evolver_arguments())
        return Population(evolver.to(self.device), representation)

    def _make_representation(self) -> Representation:
        """How individuals act: as the learner's own network does, unless ``population_policy_kwargs`` say otherwise."""
        if self.population_policy_kwargs is None:
            return WholeNetworks(self.policy, self.actor)
        own = own_networks(self, {**self._policy_arguments(), **self.population_policy_kwargs})
        if self.deploy != "learner":
            self.policy.deployed = own.agent(own.fresh(1)[0])
        return own

    def _evolver_arguments(self) -> dict[str, Any]:
        """Arguments of the evolver beside candidates and layout."""
        return dict(self.evolver_kwargs or {})

    def _make_exchange(self) -> Any:
        """What goes from the learner to the population, see :mod:`sb3_erl.engine.replace`; ``None`` for nothing."""
        return make_exchange(self.exchange_class, self.learner, {}, self.exchange_kwargs or {})

    # ---------------------------------------------------------------- the verbs of a generation

    def _train_loop(self, total_timesteps: int, callback: Any, log_interval: int | None) -> None:
        run_generations(self, total_timesteps, callback, log_interval)

    @abstractmethod
    def _plan_rollouts(self, candidates: Tensor) -> tuple[list[Job], PopulationActor]:
        """
        :param candidates: ``(pop_size, n_params)``
        :return: the jobs of this generation, see :meth:`is_of_population`, and who acts
        """

    def is_of_population(self, job: Job) -> bool:
        """Whether a rollout is an individual's: individuals have the numbers below ``pop_size``, the learner those above."""
        return job.candidate < self.pop_size

    def _step_store(self) -> ReplayStore:
        """What takes the steps of this generation."""
        return ReplayStore(self)

    def _migrants(self, generation: Generation) -> Tensor | None:
        """Individuals from outside that join the selection of this generation, ``(n, n_params)``."""
        return None

    def _stored_observations(self, n: int) -> Any:
        assert self.replay_buffer is not None
        return self.replay_buffer.sample(n, env=self._vec_normalize_env).observations

    @property
    def _fitness_is_return(self) -> bool:
        """Whether this generation's fitness is the return of whole episodes."""
        return self.fitness_class == "return"

    # ---------------------------------------------------------------- rollouts

    def _act(self, candidates: Tensor) -> PopulationActor:
        """Acts for the candidates, and for the learner with the number after them."""
        alike = [] if self.population.representation.from_learner() is None else [0]
        return self.population.act_with(candidates, [self.actor], alike, [0])

    def _explorer(self, noise: ActionNoise | None) -> Explorer | None:
        """Exploration of the learner: uniform while it has not begun to learn, then its noise."""
        after = None if noise is None else NoiseExploration(noise)
        return UniformExploration() if self.n_learner_steps < self.learning_starts else after

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
        """Whether the learner learns; where all steps count, one step after ``learning_starts``, as in the authors' code."""
        n_steps, of, unit = self._warm_up or (0, 0, "")
        return n_steps > of if unit == "steps" else n_steps >= of

    def train(self, gradient_steps: int, batch_size: int | None = None) -> None:
        """See :meth:`OffPolicyModel.train`; counted as learning in the log."""
        with self.rollouts.stopwatch.measure("learning"):
            super().train(gradient_steps, batch_size)

    # ---------------------------------------------------------------- agents

    @property
    def evolver(self) -> Evolver:
        """Proposes the candidates; ``evolver.candidates`` has the parameters of the population."""
        return self.population.evolver

    @property
    def workers(self) -> RemoteEvaluator | None:
        """The evaluator with workers, to add some, remove some or ``close()`` it; ``None`` without, or before ``learn``."""
        return self.rollouts.workers

    @property
    def learner_agent(self) -> BasePolicy:
        """The learner's actor; has ``predict``, for ``evaluate_policy``."""
        return in_space(self.actor)

    @property
    def _deployed_learner(self) -> Any:
        """The learner's network that acts where a learner is deployed."""
        return self.actor

    def individual(self, index: int) -> BasePolicy:
        """
        :param index: slot in the population, from 0
        :return: a policy of its own with the individual's parameters; has ``predict``
        """
        return self.population.individual(index)

    def candidates_for_report(self) -> dict[str, Any]:
        """See :meth:`~sb3_erl.engine.model.EvolvingModel.candidates_for_report`."""
        names = [name for name in self.deploy_choices if name is not None]
        return candidates_of(self, names if evolves(self) else ["learner"])

    # ---------------------------------------------------------------- saving

    def _plain_state(self) -> dict[str, Any]:
        champion, is_elsewhere = self.population.champion, self.deploy == "champion" or self.evolver.starts_from == "mean"
        state = None if champion is None or is_elsewhere else array_to_text(champion.vector.cpu().numpy())
        return {**super()._plain_state(), "fitness_state": self.fitness.state_dict(), "champion_state": state}

    def _excluded_save_params(self) -> list[str]:
        parts = ["population", "learner", "exchange", "fitness", "extra_steps", "rollouts", "published_schedule"]
        return [*super()._excluded_save_params(), *NETWORKS, *parts]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = self.learner.save_params
        return ["policy", *state_dicts, "evolver"], variables

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> Any:
        """Not available: a generation is the unit of work, see :meth:`learn`."""
        raise NotImplementedError(f"{type(self).__name__} collects whole generations; call learn() instead")
