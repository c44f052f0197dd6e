"""NS-ES, NSR-ES and NSRA-ES: evolution strategies that follow novelty, or novelty and return."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import numpy as np
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_erl.algorithms.openai_es import OpenAIES
from sb3_erl.core.action_spaces import in_space
from sb3_erl.core.arguments import inherits_arguments
from sb3_erl.core.checks import check_choice, check_range
from sb3_erl.core.parameters import copy_module, read_parameters, write_parameters
from sb3_erl.core.seeding import Stream
from sb3_erl.engine.generation import Generation, Verb
from sb3_erl.engine.mirrored_rollouts import evaluate_members
from sb3_erl.engine.population import Population
from sb3_erl.engine.reference_batch import collect_reference
from sb3_erl.engine.representation import MemberNetworks
from sb3_erl.evolution.base import best_index
from sb3_erl.evolution.es import MirroredES
from sb3_erl.evolution.fitness.behaviors import BehaviorChoice, Novelty, Shown, check_novelty
from sb3_erl.evolution.fitness.novelty import Distance, NoveltyArchive
from sb3_erl.evolution.meta_population import MetaPopulation
from sb3_erl.evolution.novelty import AdaptiveWeight, FixedWeight, MemberRule, Mode, mix_ranks, next_member, reward_weight


class NSES(OpenAIES):
    """
    Novelty search by an evolution strategy (NS-ES): returns play no part in what is learned.

    Conti et al. (2018), https://arxiv.org/abs/1712.06560; code: uber-research/deep-neuroevolution, ``es_distributed``. A
    generation evaluates all members, adds to the archive how the one that moved last behaves now, draws the next one by its
    novelty, and moves it along the novelty of its mirrored perturbations. The member with the best mean return is deployed.
    For tasks whose rewards mislead: ``NSES("HardMaze-v0", verbose=1).learn(2_000_000)``.

    Differences from the authors' code:

    1. the episodes that show how the moved member behaves begin the generation instead of ending it, count as steps, and tell
       the novelty with which the next member is drawn (theirs runs others);
    2. every member acts with its own observation statistics at all times;
    3. novelties that sum to 0 make all members equally likely (theirs: NaN);
    4. those of :class:`~sb3_erl.algorithms.openai_es.OpenAIES`, whose docstring explains the parameters that are not listed
       here. ``fitness`` stands for the return where novelty and return are mixed.

    :param meta_population_size: number of members
    :param parent_selection: ``"novelty_prob"`` or ``"round_robin"``, see :func:`~sb3_erl.evolution.novelty.next_member`
    :param novelty_k: number of nearest neighbors
    :param behavior: what describes an episode, see :class:`~sb3_erl.evolution.fitness.behaviors.Novelty`
    :param behavior_kwargs: further arguments of a class of behaviors
    :param distance: between behaviors, ``"euclidean"`` or ``"sqeuclidean"``
    :param archive_max_size: behaviors to keep, the newest; ``None`` for all
    :param n_bc_episodes: episodes of a member per generation, over which its behavior is the mean
    :raises ValueError: if an argument is out of range or unknown, or the environment's spaces are not supported
    """

    mode: ClassVar[Mode] = "ns"
    generation_order: ClassVar[tuple[Verb, ...]] = (
        "collect_reference", "show_members", "ask", "evaluate", "score", "deploy", "tell", "log",
    )  # fmt: skip
    episode_needs = Novelty.needs

    @inherits_arguments("evolver", "evolver_kwargs", "fitness_shaping", "n_center_episodes")
    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 0.01,
        meta_population_size: int = 5,
        parent_selection: MemberRule = "novelty_prob",
        novelty_k: int = 10,
        behavior: BehaviorChoice = "auto",
        behavior_kwargs: dict[str, Any] | None = None,
        distance: Distance = "euclidean",
        archive_max_size: int | None = None,
        n_bc_episodes: int = 1,
        **kwargs: Any,
    ):
        self.meta_population_size, self.parent_selection = meta_population_size, parent_selection
        self.novelty_k, self.behavior, self.behavior_kwargs = novelty_k, behavior, behavior_kwargs
        self.distance, self.archive_max_size, self.n_bc_episodes = distance, archive_max_size, n_bc_episodes
        self.moved: int | None = None
        """The member that moved in the last generation, ``None`` before the first."""
        self.archive_state: str | None = None
        self.weight_state: dict[str, Any] = {}
        super().__init__(policy, env, learning_rate, n_center_episodes=0, **kwargs)  # members are evaluated beforehand

    # ---------------------------------------------------------------- set-up

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_range("meta_population_size", self.meta_population_size, 1, integer=True)
        check_range("n_bc_episodes", self.n_bc_episodes, 1, integer=True)
        check_choice("parent_selection", self.parent_selection, ("novelty_prob", "round_robin"))
        check_novelty(self.novelty_k, self.behavior)

    def _setup_model(self) -> None:
        super()._setup_model()
        self.novelty = Novelty.of_model(self)
        if not hasattr(self, "weight"):  # which files of the first versions hold as a pickle
            self.weight = self._make_weight()
            vars(self.weight).update(self.weight_state)
            self.weight_state = {}

    @property
    def archive(self) -> NoveltyArchive:
        """The behaviors seen so far; saved with the model."""
        return self.novelty.archive

    def _make_weight(self) -> FixedWeight | AdaptiveWeight:
        """The share of returns in what is followed."""
        return reward_weight(self.mode)

    def _make_population(self) -> Population:
        # The first network drawn is left out, so that a seed gives the members that it gave in version 0.1.0.
        networks = [self.policy.make_actor() for _ in range(1 + self.meta_population_size)][1:]
        write_parameters(read_parameters(networks[0]), self.policy.deployed)
        vectors, arguments = [read_parameters(network) for network in networks], self._evolver_arguments()
        members = [MirroredES(vector, self.pop_size, **arguments) for vector in vectors]
        evolver = MetaPopulation(members, networks).to(self.device)
        return Population(evolver, MemberNetworks(self.policy, evolver))

    @property
    def n_rollouts(self) -> int:
        """See :attr:`EvolutionaryAlgorithm.n_rollouts`."""
        return self.pop_size * self.n_eval_episodes + self.meta_population_size * self.n_bc_episodes

    @property
    def _members(self) -> MetaPopulation:
        return self.evolver  # type: ignore[return-value]

    @property
    def _es(self) -> MirroredES:
        return self._members.active

    def _train_loop(self, *arguments: Any) -> None:
        self.novelty.prepare(self)
        super()._train_loop(*arguments)

    # ---------------------------------------------------------------- the generation

    def _collect_reference(self, generation: Generation) -> bool:
        return collect_reference(self, generation, self._members.networks)

    def _show_members(self, generation: Generation) -> bool:
        """Evaluate all members, and draw the one that moves by its novelty."""
        n, episodes = self.meta_population_size, evaluate_members(self, generation, self._members.networks, self.n_bc_episodes)
        if episodes is None:
            return False
        shown = self._shown = Shown.of(episodes, n, self.novelty_k, self.moved, self.novelty, self.weight)
        rng = self.run.address.rng(Stream.EVOLUTION, 1)
        self._members.activate(0 if self.moved is None else next_member(self.moved, shown.novelty, rng, self.parent_selection))
        return True

    def _evaluate(self, generation: Generation) -> bool:
        self._mirrored = self._rollouts_of(n_means=self.meta_population_size)
        return self._mirrored.run(generation, is_first=False)

    def _deploy(self, generation: Generation) -> None:
        """The member with the best return, as it was evaluated."""
        copy_module(self._members.networks[best_index(self._shown.returns)], self.policy.deployed)

    def _tell(self, generation: Generation) -> None:
        """Move the active member; what the members have shown is kept."""
        assert generation.fitness is not None
        self.novelty.archive, self.weight = self._shown.archive, self._shown.weight
        behaviors = self.novelty.behaviors(generation.evaluated, len(generation.proposed))
        novelty = self.archive.novelty(behaviors, self.novelty_k)
        self.logger.record("novelty/pop_mean", float(np.nanmean(novelty)) if np.isfinite(novelty).any() else np.nan)
        self._es.update(mix_ranks(generation.fitness, novelty, self.weight.value, self.ties))
        self._members.returns.copy_(self._members.returns.new_tensor(self._shown.returns))
        self.moved = int(self._members.active_member)
        self._after_tell(generation)
        self._members.show(self.moved)

    def _log(self, generation: Generation) -> None:
        super()._log(generation)
        assert self.moved is not None
        self._shown.log(self.logger)
        self.logger.record("novelty/center", float(self._shown.novelty[self.moved]))
        self.logger.record("novelty/archive_size", len(self.archive))
        self.logger.record("novelty/reward_weight", self.weight.value)
        self.logger.record("novelty/member", self.moved)

    def member(self, index: int) -> BasePolicy:
        """
        :param index: member of the meta-population, from 0
        :return: a policy of its own with the member's present mean and statistics; has ``predict``
        """
        agent: Any = copy.deepcopy(self._members.networks[range(self.meta_population_size)[index]])
        agent.set_training_mode(False)
        return in_space(agent)

    def _plain_state(self) -> dict[str, Any]:
        return {**super()._plain_state(), **self.novelty.plain_state(), "weight_state": dict(vars(self.weight))}

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "novelty", "weight", "_shown"]


class NSRES(NSES):
    """
    Novelty and return, ranked apart and mixed half and half (NSR-ES); everything else is :class:`NSES`.

    Conti et al. (2018), https://arxiv.org/abs/1712.06560, section 3.2: ``NSRES("HardMaze-v0", verbose=1).learn(2_000_000)``.
    """

    mode = "nsr"


class NSRAES(NSES):
    """
    Novelty and return, ranked apart, with a share of the return that falls while nothing improves (NSRA-ES).

    Conti et al. (2018), https://arxiv.org/abs/1712.06560, section 3.3, algorithm 3. Parameters that are not listed here are
    those of :class:`NSES`. Where it is not known whether rewards mislead: ``NSRAES("Humanoid-v5").learn(10_000_000)``.

    :param reward_weight: initial share of the return, see :class:`~sb3_erl.evolution.novelty.AdaptiveWeight`
    :param weight_delta: by how much the share goes up or down
    :param weight_patience: generations without improvement after which it goes down
    :param weight_min: its lower limit
    :param improvement_tol: an improvement must be larger than this; about a thousandth of the scale of returns is advised
        where returns creep up by tiny amounts
    """

    mode = "nsra"

    @inherits_arguments()
    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 0.01,
        reward_weight: float = 1.0,
        weight_delta: float = 0.05,
        weight_patience: int = 50,
        weight_min: float = 0.0,
        improvement_tol: float = 0.0,
        **kwargs: Any,
    ):
        self.reward_weight, self.weight_delta, self.weight_patience = reward_weight, weight_delta, weight_patience
        self.weight_min, self.improvement_tol = weight_min, improvement_tol
        super().__init__(policy, env, learning_rate, **kwargs)

    def _make_weight(self) -> FixedWeight | AdaptiveWeight:
        numbers = (self.reward_weight, self.weight_delta, self.weight_patience, self.weight_min, self.improvement_tol)
        return reward_weight(self.mode, *numbers)
