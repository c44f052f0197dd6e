"""VEB-RL: a population of Q-networks beside DQN, scored by their temporal-difference errors instead of their returns."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor

from sb3_erl.buffers.lap import LAPReplayBuffer
from sb3_erl.core.arguments import inherits_arguments
from sb3_erl.engine import generation as verbs
from sb3_erl.engine.generation import Generation, Verb
from sb3_erl.engine.hybrid import HybridAlgorithm
from sb3_erl.engine.replace import replace_value_function
from sb3_erl.evolution.ga import GA
from sb3_erl.evolution.value_targets import check_value_arguments, make_targets, td_fitness, value_evolver_arguments
from sb3_erl.learners.choice import LearnerSpec, learner_spec
from sb3_erl.learners.dqn import DQNLearner
from sb3_erl.rollouts.exploration import EpsilonGreedyExploration
from sb3_erl.rollouts.jobs import Explorer, Job, PopulationActor


class VEBRL(HybridAlgorithm):
    """
    Value-evolutionary-based reinforcement learning, for discrete actions.

    Fitness costs no episodes: ``VEBRL("CartPole-v1", learning_starts=1000, verbose=1).learn(50_000)``.

    Li, Hao, Tang, Zheng, Barez (ICML 2024), "Value-Evolutionary-Based Reinforcement Learning"; authors' code:
    yeshenpy/VEB-RL, ``GA_VEB`` and ``CEM_VEB``. An individual is a Q-network with a target network of its own, and its fitness
    is minus the mean squared temporal-difference error on one batch that all share, so no episodes are spent on it. The
    best of the last generation act, greedily; all transitions train a DQN, which acts epsilon-greedily and is written,
    with its target, over the weakest individual that does not act.

    Differences from the authors' code:

    1. time limits are stored as truncations (they abandon bad episodes of Seaquest after 1000 steps without an end);
    2. the learner's batches are drawn with replacement, as in SB3;
    3. who acts is also what the GA keeps: it has as many elites as individuals that act (theirs always has a tenth);
    4. with Double DQN and n-step returns, which they do not have, fitness follows the learner's target;
    5. their Atari version (Rainbow, SPR) was not published and is not here.

    All other parameters are those of :class:`~sb3_erl.engine.hybrid.HybridAlgorithm` and its base class.

    :param policy: ``"AutoPolicy"`` (see :class:`~sb3_erl.policies.q_network.QNetworkAutoPolicy`), ``"MlpPolicy"``,
        ``"CnnPolicy"`` or a policy class; or, without ``env``, the environment or its id
    :param learning_starts: random steps of the learner, at whose end the first update and the first fitness are due
    :param learner: ``"dqn"``, ``"package.module:Name"`` or a subclass of :class:`~sb3_erl.learners.dqn.DQNLearner`
    :param action_noise: must be ``None``: the learner explores epsilon-greedily
    :param loss: ``"mse"`` or ``"huber"``; ``None`` for the former, or with ``prioritized`` the latter
    :param double_q: Double DQN: the online network chooses the action that the target network evaluates
    :param prioritized: draw the learner's batches by priority, from a :class:`~sb3_erl.buffers.lap.LAPReplayBuffer`
    :param target_update_interval: updates between two copies into the learner's target network
    :param max_grad_norm: clip the gradient at this norm, ``None`` for no clipping
    :param evolution: ``False`` trains the DQN alone
    :param evolver: ``"cem"``, ``"ga"`` (with the operators ``"linear_rows"`` and ``"linear_gaussian"``), or another one
    :param n_acting_elites: individuals that act in each generation, at least 0
    :param n_learner_episodes: exploring episodes of the learner per generation
    :param fitness_batch_size: transitions for the fitness, drawn without replacement; all that there are if they are fewer
    :param fitness_interval: generations between two that evolve, 1 as published; more where episodes are short
    :param population_target_interval: evolved generations between two copies of all individuals into their targets; ``None``
        for the published 5 with a GA and 10 otherwise
    :param copy_targets: whether copies of individuals keep their targets; in the authors' GA targets stay in the slots
    :param sync_period: evolved generations between two injections of the learner
    :param sigma_init: initial variance of the CEM's Gaussian
    :param exploration_initial_eps: share of random actions after ``learning_starts``, in [0, 1]
    :param exploration_final_eps: share of random actions in the end, in [0, 1]
    :param exploration_decay_steps: the learner's steps until then; ``None`` for ``100000 // (n_acting_elites + 1)``
    :param deploy: who acts in ``predict``: ``"learner"``, ``"champion"`` (the individual with the best fitness) or ``"mean"``
        (of a search distribution)
    :raises ValueError: if an argument is out of range or unknown, or the environment's spaces are not supported
    """

    default_policy: ClassVar[str] = "AutoPolicy"
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = DQNLearner.policy_aliases or {}
    generation_order: ClassVar[tuple[Verb, ...]] = ("evaluate", "learn", "ask", "score", "tell", "exchange", "deploy", "log")
    deploy_choices = ("learner", "champion", "mean")
    takes_discrete_actions = True
    takes_continuous_actions = False
    _rollouts_grow_with = "n_learner_episodes"

    @inherits_arguments(
        *("tau", "fitness", "n_eval_episodes", "exchange", "exchange_kwargs", "population_policy_kwargs"),
        buffer_size=100_000,
        batch_size=32,
    )
    def __init__(
        self,
        policy: str | type[BasePolicy] = "AutoPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule | None = None,
        learner: Any = "dqn",
        loss: Literal["mse", "huber"] | None = None,
        double_q: bool = False,
        prioritized: bool = False,
        target_update_interval: int = 1000,
        max_grad_norm: float | None = None,
        pop_size: int = 10,
        evolution: bool = True,
        evolver: Any = "cem",
        n_acting_elites: int = 1,
        n_learner_episodes: int = 1,
        fitness_batch_size: int = 5120,
        fitness_interval: int = 1,
        population_target_interval: int | None = None,
        copy_targets: bool = False,
        sync_period: int = 1,
        sigma_init: float = 1e-3,
        exploration_initial_eps: float = 1.0,
        exploration_final_eps: float = 0.1,
        exploration_decay_steps: int | None = None,
        deploy: Literal["learner", "champion", "mean"] = "learner",
        **kwargs: Any,
    ):
        self.loss, self.double_q, self.prioritized, self.max_grad_norm = loss, double_q, prioritized, max_grad_norm
        self.target_update_interval, self.evolution, self.n_acting_elites = target_update_interval, evolution, n_acting_elites
        self.n_learner_episodes, self.fitness_batch_size = n_learner_episodes, fitness_batch_size
        self.fitness_interval, self.population_target_interval = fitness_interval, population_target_interval
        self.copy_targets, self.sync_period, self.sigma_init = copy_targets, sync_period, sigma_init
        self.exploration_initial_eps, self.exploration_final_eps = exploration_initial_eps, exploration_final_eps
        self.exploration_decay_steps, self.deploy = exploration_decay_steps, deploy
        self.n_random_steps = 0
        """The learner's steps of the random phase, over which epsilon does not fall."""
        self.n_warm_generations = -1
        """Finished generations after the one in which the random phase ended; -1 until that one has been finished."""
        super().__init__(policy, env, learning_rate, learner, pop_size=pop_size, evolver=evolver, exchange="none", **kwargs)

    @property
    def _spec(self) -> LearnerSpec:
        own: dict[str, Any] = {"double": self.double_q, "loss": self.loss or ("huber" if self.prioritized else "mse")}
        own |= {"target_update_interval": self.target_update_interval, "max_grad_norm": self.max_grad_norm}
        spec = learner_spec(self.learner_class, {**own, **(self.learner_kwargs or {})})
        if not issubclass(spec.learner_class, DQNLearner):
            raise ValueError(
                f"learner must be 'dqn' or a subclass of DQNLearner; got {self.learner_class!r}. ERL takes others"
            )
        return spec

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_value_arguments(self)

    @property
    def n_rollouts(self) -> int:
        """See :attr:`HybridAlgorithm.n_rollouts`."""
        return self.n_acting_elites + self.n_learner_episodes

    def _default_buffer_class(self) -> type[ReplayBuffer] | None:
        return LAPReplayBuffer if self.prioritized else super()._default_buffer_class()

    def _evolver_arguments(self) -> dict[str, Any]:
        return {**value_evolver_arguments(self), **super()._evolver_arguments()}

    def _setup_parts(self) -> None:
        super()._setup_parts()
        self.q_net, self.q_net_target = self.policy.q_net, self.policy.q_net_target
        self.targets = make_targets(self)
        self.reported_candidates = ("learner", "champion" if isinstance(self.evolver, GA) else "mean")  # type: ignore[misc]

    def is_of_population(self, job: Job) -> bool:
        """See :meth:`HybridAlgorithm.is_of_population`; acting individuals are greedy, and numbered by rank."""
        return job.explorer is None

    def _explorer(self, noise: Any = None) -> Explorer:
        n_actions = int(self.action_space.n)  # type: ignore[attr-defined]
        if not self._is_warm:
            return EpsilonGreedyExploration(n_actions, 1.0)
        first, last = self.exploration_initial_eps, self.exploration_final_eps
        fall = (first - last) / (self.exploration_decay_steps or 100_000 // (self.n_acting_elites * self.evolution + 1))
        epsilon = max(first - fall * (self.n_learner_steps - self.n_random_steps), last)
        return EpsilonGreedyExploration(n_actions, epsilon, fall, last)

    def _plan_rollouts(self, candidates: Tensor) -> tuple[list[Job], PopulationActor]:
        """The acting individuals, once the learner learns, and the learner, whose random numbers do not depend on them."""
        jobs = [Job(rank) for rank in range(len(candidates))]
        for k in range(self.n_learner_episodes):
            jobs.append(Job(len(candidates), k, explorer=self._explorer(), address=self.pop_size))
        return jobs, self._act(candidates)

    def _evaluate(self, generation: Generation) -> bool:
        was_warm = self._is_warm
        # Where the generation that ends the random phase was cut off, this one is it: no fitness has chosen yet who acts.
        self._began_warm = was_warm and (self.n_warm_generations >= 0 or self.learning_starts == 0)
        acting = self.targets.acting if self.evolution and self._began_warm else []
        jobs, actor = self._plan_rollouts(self.evolver.candidates[acting])
        generation.episodes = self.rollouts.run(jobs, actor, generation.callback, self._step_store(), self.episode_needs)
        self.n_random_steps = self.n_random_steps if was_warm else self.n_learner_steps
        if generation.episodes is not None and self._is_warm:
            self.n_warm_generations = max(self.n_warm_generations, 0) + self._began_warm
        return generation.episodes is not None

    def _learn(self, generation: Generation) -> None:
        """One update per step, but for those of the random phase."""
        episodes = generation.evaluated
        n_steps = episodes.n_timesteps if self._began_warm else int(self.n_learner_steps - self.learning_starts)
        if self._is_warm:
            self.train(self._updates_for(min(n_steps, episodes.n_timesteps), len(episodes.episodes)))

    def _ask(self, generation: Generation) -> None:
        if self.evolution and (generation.number - 1) % self.fitness_interval == 0:
            verbs.ask(self, generation)

    def _score(self, generation: Generation) -> None:
        """Minus the mean squared error of each candidate against the target of its slot, on one batch."""
        if generation.candidates is not None and self._is_warm:
            generation.fitness = td_fitness(self, generation.candidates)

    def _tell(self, generation: Generation) -> None:
        """Evolve, choose who acts next, and copy all networks into their targets if that is due."""
        if generation.candidates is None:
            return
        verbs.tell(self, generation)
        if generation.fitness is not None:
            self.targets.choose(self.evolver, generation.fitness, self.n_acting_elites, self.copy_targets)
        interval = self.population_target_interval or (5 if isinstance(self.evolver, GA) else 10)
        if max(self.n_warm_generations, 0) // self.fitness_interval % interval == 0:
            self.targets.copy_from(generation.candidates if generation.fitness is None else self.evolver.candidates)

    def _exchange(self, generation: Generation) -> None:
        """The learner and its target over the individual that was the worst, unless it acts next: then over the next one."""
        is_due = (generation.number - 1) // self.fitness_interval % self.sync_period == 0
        if generation.fitness is not None and is_due and self.n_warm_generations > 0:
            self._injected_slot = replace_value_function(self, generation.fitness)

    def _deploy(self, generation: Generation) -> None:
        if self.deploy == "mean" and self.evolution:
            self.population.representation.write(self.evolver.center(), self.policy.deployed)  # type: ignore[arg-type]
        else:
            verbs.deploy(self, generation)

    def _log(self, generation: Generation) -> None:
        verbs.log(self, generation)
        self.logger.record("rollout/exploration_rate", self._explorer().epsilon)  # type: ignore[attr-defined]
        for episode in generation.evaluated.episodes:
            if self.is_of_population(episode.job) and not episode.failed:
                self.logger.record_mean("population/return_mean", episode.total_reward)

    @property
    def _fitness_is_return(self) -> bool:
        return False

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "q_net", "q_net_target", "targets", "_began_warm", "reported_candidates"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        return [*state_dicts, "targets"], variables
