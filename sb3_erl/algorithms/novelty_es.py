"""NS-ES, NSR-ES and NSRA-ES: evolution strategies that follow novelty, or novelty and return."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_erl.algorithms.openai_es import OpenAIES
from sb3_erl.core.arguments import known_to
from sb3_erl.core.checks import check_choice, check_range
from sb3_erl.core.noise_table import NoiseTable
from sb3_erl.core.parameters import ParameterLayout, copy_buffers, read_parameters, write_parameters
from sb3_erl.core.seeding import Stream
from sb3_erl.engine.novelty import NoveltyMixin
from sb3_erl.envs.behavior import Behavior as BehaviorClass
from sb3_erl.envs.behavior import BehaviorFunction
from sb3_erl.evolution.base import Evolver
from sb3_erl.evolution.es import MirroredES
from sb3_erl.evolution.fitness.novelty import Distance
from sb3_erl.evolution.fitness.shaping import Ties
from sb3_erl.evolution.meta_population import MetaPopulation
from sb3_erl.evolution.novelty import AdaptiveWeight, FixedWeight, MemberRule, Mode, mix_ranks, next_member, reward_weight
from sb3_erl.remote.choice import EvaluatorChoice
from sb3_erl.rollouts.acting import JointActor, ModuleActor, numpy_population, tensors_of
from sb3_erl.rollouts.jobs import EpisodeBatch, Job


class NSES(NoveltyMixin, OpenAIES):
    """
    Novelty search by an evolution strategy (NS-ES): returns play no part in what is learned.

    Conti et al. (2018), https://arxiv.org/abs/1712.06560; authors' code: uber-research/deep-neuroevolution,
    ``es_distributed/nses.py``. A generation evaluates the members of a meta-population, adds to the archive how the one
    that moved last behaves now, draws the next one by its novelty, and moves that one along the novelty of its mirrored
    perturbations. Deployed is the member with the best mean return when it was last evaluated.

    Differences from the authors' code:

    1. the episodes that show the moved member's behavior also tell the novelty with which the next member is drawn (theirs
       runs others), they begin the generation instead of ending it, and they count as steps;
    2. every member acts with its own observation statistics at all times;
    3. novelties that sum to 0 make all members equally likely (theirs: NaN);
    4. those of :class:`~sb3_erl.algorithms.openai_es.OpenAIES`, whose docstring explains the parameters that are not listed
       here; :class:`~sb3_erl.engine.novelty.NoveltyMixin` explains those about behaviors and the archive.

    :param policy: ``"MlpPolicy"`` (256, 256 tanh), ``"LinearPolicy"``, ``"CnnPolicy"`` or a policy class; or, without
        ``env``, the environment or its id
    :param env: environment, vectorized or not, its id, or ``None`` for loading
    :param meta_population_size: number of members
    :param parent_selection: ``"novelty_prob"`` or ``"round_robin"``, see :func:`~sb3_erl.evolution.novelty.next_member`
    :param n_bc_episodes: episodes of a member per generation, over which its behavior is the mean
    :raises ValueError: if an argument is out of range or unknown, or the environment's spaces are not supported
    """

    mode: ClassVar[Mode] = "ns"
    evolver: MetaPopulation  # type: ignore[assignment]

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 0.01,
        n_pairs: int = 32,
        sigma: float | Schedule = 0.02,
        l2_coeff: float = 0.005,
        meta_population_size: int = 5,
        parent_selection: MemberRule = "novelty_prob",
        novelty_k: int = 10,
        behavior: str | type[BehaviorClass] | BehaviorFunction = "auto",
        behavior_kwargs: dict[str, Any] | None = None,
        distance: Distance = "euclidean",
        archive_max_size: int | None = None,
        n_bc_episodes: int = 1,
        optimizer: str = "adam",
        optimizer_kwargs: dict[str, Any] | None = None,
        ties: Ties = "average",
        min_timesteps: int = 0,
        normalize_obs: bool = True,
        obs_stat_prob: float | None = None,
        action_noise_std: float = 0.01,
        episode_cutoff: int | tuple[float, ...] | None = None,
        n_eval_episodes: int = 1,
        common_random_numbers: bool = False,
        perturb_fraction: float = 1.0,
        noise_table_size: int = 25_000_000,
        noise_seed: int = 123,
        evaluator: EvaluatorChoice = "vec",
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        self.meta_population_size, self.parent_selection = meta_population_size, parent_selection
        self.novelty_k, self.behavior, self.behavior_kwargs = novelty_k, behavior, behavior_kwargs
        self.distance, self.archive_max_size, self.n_bc_episodes = distance, archive_max_size, n_bc_episodes
        self.moved: int | None = None
        """The member that moved in the last generation, ``None`` before the first."""
        n_center_episodes = 0  # members are evaluated beforehand
        super().__init__(**known_to(super().__init__, locals()))

    # ---------------------------------------------------------------- set-up

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_range("meta_population_size", self.meta_population_size, 1, integer=True)
        check_range("n_bc_episodes", self.n_bc_episodes, 1, integer=True)
        check_choice("parent_selection", self.parent_selection, ("novelty_prob", "round_robin"))
        self._check_novelty()
        if not hasattr(self, "weight"):  # which files of the first versions hold as a pickle
            self.weight = self._make_weight()
            vars(self.weight).update(self.weight_state)
            self.weight_state = {}

    weight_state: dict[str, Any] = {}  # noqa: RUF012 replaced, never written
    """The numbers of the weight, while a model is saved or loaded."""

    def _write_state(self) -> None:
        super()._write_state()
        self.weight_state = dict(vars(self.weight))

    def _forget_state(self) -> None:
        super()._forget_state()
        self.weight_state = {}

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "weight"]

    def _make_weight(self) -> FixedWeight | AdaptiveWeight:
        """The share of returns in what is followed."""
        return reward_weight(self.mode)

    def _make_evolver(self, candidates: th.Tensor, layout: ParameterLayout) -> Evolver:
        table = NoiseTable(self.noise_table_size, self.noise_seed)
        networks = [self.policy.make_actor() for _ in range(self.meta_population_size)]
        write_parameters(read_parameters(networks[0]), self.policy.deployed)
        return MetaPopulation([self._make_es(network, table) for network in networks], networks)

    @property
    def _n_jobs(self) -> int:
        return self.pop_size * self.n_eval_episodes + self._n_centers * self.n_bc_episodes

    @property
    def _n_centers(self) -> int:
        return self.meta_population_size

    @property
    def _network(self) -> BasePolicy:
        return self.evolver.network  # type: ignore[return-value]

    @property
    def _es(self) -> MirroredES:
        return self.evolver.active

    # ---------------------------------------------------------------- the generation

    def _generation(self, callback: BaseCallback) -> bool:
        """Evaluate members -> draw one -> ask -> evaluate -> tell -> observe -> log; the archive grows if all went well."""
        if not self._collect_reference(callback):
            return False
        shown = self._evaluate_members(callback)
        if shown is None:
            return False
        behaviors, returns = shown
        weight, archive = copy.copy(self.weight), copy.copy(self.archive)  # kept if the generation is finished
        archive.entries = list(archive.entries)
        new = range(self._n_centers) if self.moved is None else [self.moved]
        archive.extend([behaviors[member] for member in new])
        if self.moved is not None:
            weight.update(float(returns[self.moved]))
        novelty = archive.novelty(behaviors, self.novelty_k)
        self.evolver.activate(self._next(novelty))
        evaluated = self._ask_and_evaluate(self._rng(Stream.EVOLUTION), callback, is_first=False)
        if evaluated is None:
            return False
        self.archive, self.weight, self.moved = archive, weight, int(self.evolver.active_member)
        self.evolver.returns.copy_(th.from_numpy(returns))
        self._deploy(int(np.nanargmax(np.where(np.isnan(returns), -np.inf, returns))))
        candidates, episodes, _ = evaluated
        self._learn(candidates, episodes)
        self.evolver.show(self.moved)
        self._log_generation(episodes, EpisodeBatch((), 0))
        self._log_novelty(novelty, returns)
        return True

    def _collect_reference(self, callback: BaseCallback) -> bool:
        needs = getattr(self.policy.deployed, "needs_reference", False)
        collected = super()._collect_reference(callback)
        if needs and collected:
            for index, network in enumerate(self.evolver.networks):
                copy_buffers(self.policy.deployed, network)
                self.evolver.show(index)
        return collected

    def _evaluate_members(self, callback: BaseCallback) -> tuple[list[np.ndarray], np.ndarray] | None:
        """:return: behaviors of all members and ``(meta_population_size,)`` their mean returns; ``None`` if stopped"""
        everybody = range(self._n_centers)
        parts = [numpy_population(net, tensors_of) or ModuleActor([net]) for net in self.evolver.networks]  # type: ignore
        jobs = [Job(member, k, self.cutoff) for member in everybody for k in range(self.n_bc_episodes)]
        actor = JointActor(parts, [(member, 0) for member in everybody])
        episodes = self._evaluate(jobs, actor, callback, is_last=False)
        if episodes is None:
            return None
        returns = episodes.mean_per_candidate([e.total_reward for e in episodes.episodes], len(everybody))
        return self._behaviors(episodes, everybody), returns

    def _next(self, novelty: np.ndarray) -> int:
        if self.moved is None:
            return 0
        return next_member(self.moved, novelty, self.address.rng(Stream.EVOLUTION, 1), self.parent_selection)

    def _deploy(self, member: int) -> None:
        network = self.evolver.networks[member]
        write_parameters(read_parameters(network), self.policy.deployed)
        copy_buffers(network, self.policy.deployed)

    def _tell(self, candidates: th.Tensor, episodes: EpisodeBatch) -> None:
        behaviors = self._behaviors(episodes, self._numbers(len(candidates)))
        novelty = self.archive.novelty(behaviors, self.novelty_k)
        self.logger.record("novelty/pop_mean", float(np.nanmean(novelty)) if np.isfinite(novelty).any() else np.nan)
        self._es.update(mix_ranks(self._fitness(candidates, episodes), novelty, self.weight.value, self.ties))

    def _log_novelty(self, novelty: np.ndarray, returns: np.ndarray) -> None:
        assert self.moved is not None
        self.logger.record("rollout/center_ep_rew_mean", float(np.nanmean(returns)))
        self.logger.record("novelty/center", float(novelty[self.moved]))
        self.logger.record("novelty/archive_size", len(self.archive))
        self.logger.record("novelty/reward_weight", self.weight.value)
        self.logger.record("novelty/member", self.moved)

    def member(self, index: int) -> BasePolicy:
        """
        :param index: member of the meta-population, from 0
        :return: a policy of its own with the member's present mean and statistics; has ``predict``
        """
        agent, network = self.policy.make_actor(), self.evolver.networks[range(self.meta_population_size)[index]]
        write_parameters(read_parameters(network), agent)
        copy_buffers(network, agent)
        agent.set_training_mode(False)
        return agent


class NSRES(NSES):
    """
    Novelty and return, ranked apart and mixed half and half (NSR-ES); everything else is :class:`NSES`.

    Conti et al. (2018), https://arxiv.org/abs/1712.06560, section 3.2.
    """

    mode = "nsr"


class NSRAES(NSES):
    """
    Novelty and return, ranked apart, with a share of the return that falls while nothing improves (NSRA-ES).

    Conti et al. (2018), https://arxiv.org/abs/1712.06560, section 3.3 and algorithm 3. Parameters that are not listed here
    are those of :class:`NSES`.

    :param policy: policy alias or class; or, without ``env``, the environment or its id
    :param env: environment, vectorized or not, its id, or ``None`` for loading
    :param reward_weight: initial share of the return, see :class:`~sb3_erl.evolution.novelty.AdaptiveWeight`
    :param weight_delta: by how much the share goes up or down
    :param weight_patience: generations without improvement after which it goes down
    :param weight_min: its lower limit
    :param improvement_tol: an improvement must be larger than this; about a thousandth of the scale of returns is advised
        where returns creep up by tiny amounts
    :raises ValueError: if an argument is out of range or unknown, or the environment's spaces are not supported
    """

    mode = "nsra"

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 0.01,
        n_pairs: int = 32,
        sigma: float | Schedule = 0.02,
        l2_coeff: float = 0.005,
        meta_population_size: int = 5,
        parent_selection: MemberRule = "novelty_prob",
        novelty_k: int = 10,
        reward_weight: float = 1.0,
        weight_delta: float = 0.05,
        weight_patience: int = 50,
        weight_min: float = 0.0,
        improvement_tol: float = 0.0,
        behavior: str | type[BehaviorClass] | BehaviorFunction = "auto",
        behavior_kwargs: dict[str, Any] | None = None,
        distance: Distance = "euclidean",
        archive_max_size: int | None = None,
        n_bc_episodes: int = 1,
        optimizer: str = "adam",
        optimizer_kwargs: dict[str, Any] | None = None,
        ties: Ties = "average",
        min_timesteps: int = 0,
        normalize_obs: bool = True,
        obs_stat_prob: float | None = None,
        action_noise_std: float = 0.01,
        episode_cutoff: int | tuple[float, ...] | None = None,
        n_eval_episodes: int = 1,
        common_random_numbers: bool = False,
        perturb_fraction: float = 1.0,
        noise_table_size: int = 25_000_000,
        noise_seed: int = 123,
        evaluator: EvaluatorChoice = "vec",
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        self.reward_weight, self.weight_delta, self.weight_patience = reward_weight, weight_delta, weight_patience
        self.weight_min, self.improvement_tol = weight_min, improvement_tol
        super().__init__(**known_to(super().__init__, locals()))

    def _make_weight(self) -> FixedWeight | AdaptiveWeight:
        numbers = (self.reward_weight, self.weight_delta, self.weight_patience, self.weight_min, self.improvement_tol)
        return reward_weight(self.mode, *numbers)
