"""Population-based training of whole models."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_erl.core.arguments import inherits_arguments
from sb3_erl.core.checks import check_common, resolve_policy_and_env
from sb3_erl.engine.model import EvolvingModel
from sb3_erl.envs.packages import register_namespaces
from sb3_erl.populations.checked import arguments_of_members, check_arguments, checked_member, spaces_explained
from sb3_erl.populations.defaults import check_algorithm, default_space, member_class, saved_choice
from sb3_erl.populations.exploit import make_part
from sb3_erl.populations.lineage import table
from sb3_erl.populations.loop import run_generations
from sb3_erl.populations.member import MemberState, Recipe, new_model, packed, unpacked
from sb3_erl.populations.normalizers import statistics_kept
from sb3_erl.populations.saved_states import (
    WITH_TUPLES,
    from_plain,
    plain_state,
    unmark_tuples,
    with_buffers,
    write_with_buffers,
)
from sb3_erl.populations.selection import Rules
from sb3_erl.populations.space import check_initial, first_values, own_values, parse_space
from sb3_erl.remote.choice import EvaluatorChoice
from sb3_erl.runs.safe_files import ModelFileError

HIDDEN = ("support_multi_env", "monitor_wrapper", "use_sde", "sde_sample_freq", "supported_action_spaces")
"""Arguments of SB3's base class that are the members' own affair."""
BUFFERS = "replay_buffers"
"""Word by which ``save`` is told to keep the members' replay buffers."""


class PBT(EvolvingModel, BaseAlgorithm):
    """
    Population-based training, Jaderberg et al. (2017), https://arxiv.org/abs/1711.09846: models of any SB3 class train side
    by side; now and then the worst go on with the weights of the best and with changed hyper-parameters.

    A generation: each member trains for ``ready_steps`` with its own ``learn`` (step), is scored (evaluate), and when all of
    them are ready, some take over another one's weights (exploit) and hyper-parameters, which they change (explore).
    ``predict`` acts as the member with the highest score of the last generation. Example:
    ``PBT("Pendulum-v1", algorithm="sac", pop_size=4, ready_steps=2000, verbose=1).learn(80_000)``.

    Differences: members wait for each other, so that a seed gives the same run again, where the paper's members do so at
    their own pace; and each member's generation begins with new episodes. SB3's ``learn`` makes whole rollouts: a member of
    an on-policy class trains for ``ready_steps`` rounded up to them. Schedules follow the progress of the whole call.

    :param policy: policy alias or class of the members; or, without ``env``, the environment or its id
    :param env: environment (vectorized or not), its id, or ``None`` for loading; members use it one after the other, and
        workers make it again
    :param learning_rate: of all members where it is not searched, ``None`` for the default of their class; a schedule of a
        searched one is scaled
    :param algorithm: class of the members: key (``"ppo"``, ``"sac"``, ...), ``"package.module:Name"``, or a class of SB3,
        sb3-contrib or this package
    :param algorithm_kwargs: further arguments of all members
    :param pop_size: number of members, at least 2
    :param ready_steps: environment steps of each member in a generation; at least one rollout of an on-policy class
    :param search_space: knobs (:class:`~sb3_erl.populations.space.LogUniform`, ``Uniform``, ``IntUniform``, ``Choice``, or
        their text) by the names of the members' arguments, or such mappings by the keys of algorithms; ``None`` for the
        default of the algorithm
    :param initial_hyperparameters: with which the first members begin, one dict each; others are drawn
    :param exploit: ``"truncation"``, ``"tournament"``, ``"ga"``, ``"none"``, ``"package.module:Name"`` or a class, function
        or object as :class:`~sb3_erl.populations.exploit.Exploit`
    :param exploit_kwargs: arguments of its class
    :param explore: ``"perturb"``, ``"resample"``, ``"none"``, or others as for ``exploit``, see
        :class:`~sb3_erl.populations.explore.Explore`
    :param explore_kwargs: arguments of its class
    :param copy_replay_buffer: whether a member that takes over weights takes over the replay buffer, too
    :param copy_normalizer: the same of ``VecNormalize`` statistics, which each member has of its own
    :param score: by which members are compared: ``"evaluation"``, mean return of separate episodes without exploration, whose
        steps count; or ``"training"``, mean return of the last training episodes
    :param n_eval_episodes: episodes that make up a score
    :param n_report_episodes: further episodes of the champion in each generation, which are logged
        (``population/champion_return``) and select nothing; they do not count as steps
    :param evaluator: who runs the members: ``"vec"``, this process, one after the other; ``"process"``, worker processes;
        ``"ray"``, a Ray cluster; or a ``ProcessEvaluator`` or ``RayEvaluator`` with settings. The result is the same
    :param n_threads: threads of PyTorch for each member, also in this process, since the last bits of sums depend on them
    :param policy_kwargs: arguments of the members' policies
    :param stats_window_size: episodes in the logged means
    :param tensorboard_log: folder of TensorBoard logs, ``None`` for none
    :param verbose: 0 no output, 1 info, 2 debug
    :param seed: seed of the run; all random numbers of a run derive from it
    :param device: ``"auto"``, ``"cpu"`` or ``"cuda"``, for all members
    :raises ValueError: if an argument is out of range, or one that is searched cannot change while a model trains
    :raises TypeError: if ``algorithm`` is no class of SB3 algorithms
    """

    trains_whole_models: ClassVar[bool] = True
    """Members are models that train themselves, so that there are no candidates, no ``deployed`` network and no learner."""
    default_policy: ClassVar[str] = "MlpPolicy"
    reported_candidates = ("champion",)
    checkpoint_includes: ClassVar[tuple[str, ...]] = (BUFFERS,)
    """What a checkpoint needs of :meth:`save` beside the rest, so that a run goes on exactly."""
    _only_trusted: ClassVar[tuple[str, ...]] = ("_saved_members",)
    """Saved members are files of SB3's classes, which are not written a second time for files that need not be trusted."""
    champion_return: float | None = None
    """Mean return of the champion in episodes that select nothing, ``None`` before the first generation."""

    @inherits_arguments(*HIDDEN)
    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule | None = None,
        algorithm: Any = "ppo",
        algorithm_kwargs: Mapping[str, Any] | None = None,
        pop_size: int = 8,
        ready_steps: int = 20_000,
        search_space: Mapping[str, Any] | None = None,
        initial_hyperparameters: Sequence[Mapping[str, Any]] | None = None,
        exploit: Any = "truncation",
        exploit_kwargs: dict[str, Any] | None = None,
        explore: Any = "perturb",
        explore_kwargs: dict[str, Any] | None = None,
        copy_replay_buffer: bool = True,
        copy_normalizer: bool = True,
        score: Literal["evaluation", "training"] = "evaluation",
        n_eval_episodes: int = 5,
        n_report_episodes: int = 5,
        evaluator: EvaluatorChoice = "vec",
        n_threads: int = 1,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ):
        register_namespaces(policy, env)
        self.algorithm_choice = saved_choice(algorithm)
        self.algorithm_key, self.member_class = member_class(algorithm)
        policy, env = resolve_policy_and_env(policy, env, self.default_policy, self.member_class.policy_aliases)
        self.policy_choice, self.algorithm_kwargs = policy, arguments_of_members(algorithm_kwargs)
        self.pop_size, self.ready_steps = pop_size, ready_steps
        self.search_space, self.initial_hyperparameters = search_space, initial_hyperparameters
        self.exploit, self.exploit_kwargs = exploit, exploit_kwargs
        self.explore, self.explore_kwargs = explore, explore_kwargs
        self.copy_replay_buffer, self.copy_normalizer = copy_replay_buffer, copy_normalizer
        self.score, self.n_eval_episodes, self.n_report_episodes = score, n_eval_episodes, n_report_episodes
        self.evaluator, self.n_threads = evaluator, n_threads
        self._begin()
        with spaces_explained(kwargs.get("verbose", 0), kwargs.get("policy_kwargs")):
            super().__init__(policy, env, learning_rate, support_multi_env=True, **kwargs)
        if _init_setup_model:
            self._setup_model()

    # ---------------------------------------------------------------- set-up

    def _begin(self) -> None:
        self.n_generations = 0
        """Finished generations over the life of the model; ``reset_num_timesteps`` does not reset it."""
        self.champion = 0
        """Number of the member with the highest score of the last generation in which there was a score."""
        self.history: list[dict[str, Any]] = []
        self.born_of = [-1] * self.pop_size if isinstance(self.pop_size, int) else []
        self._saved_members: list[dict[str, Any]] = []
        self._states: list[MemberState] = []
        self._n_unreported = 0

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        return self.member_class.policy_aliases[policy_name]

    def _setup_model(self) -> None:
        self.algorithm_key, self.member_class = member_class(self.algorithm_choice)
        for name in WITH_TUPLES if self._saved_members else ():
            setattr(self, name, unmark_tuples(getattr(self, name)))
        check_common(self)
        check_arguments(self)
        self.run.choose_seed()
        given = {"learning_rate": self.learning_rate, "policy_kwargs": self.policy_kwargs or None}
        kwargs = {name: value for name, value in given.items() if value is not None}
        self.recipe = Recipe(self.member_class, self.policy_choice, {**kwargs, **self.algorithm_kwargs}, self.device)
        choice = self.search_space
        choice = default_space(self.algorithm_key, self.member_class) if choice is None else choice
        self.space = parse_space(choice, self.algorithm_key)
        if not self._saved_members:
            check_initial(self.space, self.initial_hyperparameters, self.pop_size)
        exploit = make_part("exploit", self.exploit, self.exploit_kwargs)
        explore = make_part("explore", self.explore, self.explore_kwargs)
        self.rules = Rules(exploit, explore, self.space, self.copy_replay_buffer, self.copy_normalizer)
        if self._saved_members:
            self._states = [from_plain(saved, self.space) for saved in self._saved_members]
            self.history = [own_values(row, self.space) for row in self.history]
            self._saved_members = []
            model = unpacked(self._states[min(self.champion, len(self._states) - 1)], self.recipe, self.env, False)
        else:
            model = checked_member(self, self._first_values(0))
        self.policy = model.policy
        self.policy.set_training_mode(False)

    def _first_values(self, number: int) -> dict[str, Any]:
        """Hyper-parameters with which a member begins."""
        rng = np.random.default_rng(self.run.address.named_sequence("first hyper-parameters", number))
        return first_values(self.space, self.initial_hyperparameters, number, rng)

    @property
    def _members(self) -> list[MemberState]:
        """The members as bytes, between two generations; made when they are first asked for."""
        if not self._states:
            assert self.env is not None
            made = []
            with statistics_kept(self.env):
                for number in range(self.pop_size):
                    values = self._first_values(number)
                    model = new_model(self.recipe, self.env, values, self.run.address, number)
                    made.append(packed(model, values))
            self._states = made
        return self._states

    # ---------------------------------------------------------------- training

    def _train_loop(self, total_timesteps: int, callback: BaseCallback, log_interval: int | None) -> None:
        run_generations(self, total_timesteps, callback, log_interval)

    def dump_logs(self) -> None:
        """Write the log table; the same rows as SB3's off-policy classes."""
        OffPolicyAlgorithm.dump_logs(self)  # type: ignore[arg-type]

    # ---------------------------------------------------------------- agents

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> Any:
        """
        Act as the champion.

        :param observation: ``(n_envs, *obs_shape)`` or one observation
        :param state: of a recurrent policy
        :param episode_start: ``(n_envs,)``, where episodes begin, for a recurrent policy
        :param deterministic: whether to act without noise
        :param action_masks: actions that are allowed, for members of ``MaskablePPO``
        :return: actions and the next state of a recurrent policy
        """
        masks = {} if action_masks is None else {"action_masks": action_masks}
        return self.policy.predict(observation, state, episode_start, deterministic, **masks)

    def individual(self, index: int) -> Any:
        """
        :param index: number of a member, from 0
        :return: a model of its own of the members' class, with optimizer and replay buffer; it shares the environments
        :raises IndexError: if there is none
        """
        if not 0 <= index < self.pop_size:
            raise IndexError(f"index must be at least 0 and below pop_size={self.pop_size}; got {index}")
        return unpacked(self._members[index], self.recipe, self.env)

    def lineage(self) -> Any:
        """
        :return: a ``pandas.DataFrame`` with a row per generation and member: the member with whose weights it began (-1 in the
            first generation), its score, whether it was trained, diverged or failed, its own count of steps and every
            hyper-parameter with which it trained
        """
        return table(self.history, list(self.space))

    def candidates_for_report(self) -> dict[str, Any]:
        """See :meth:`~sb3_erl.engine.model.EvolvingModel.candidates_for_report`; the policy of the champion."""
        return {"champion": self.policy}

    # ---------------------------------------------------------------- files

    def export(self, path: str | pathlib.Path, normalize: bool = True) -> pathlib.Path:
        """
        See :meth:`~sb3_erl.engine.model.EvolvingModel.export`; of the champion, if its class is one of this package.

        :param path: file name with the ending of a format
        :param normalize: whether the statistics of ``VecNormalize`` become part of the file
        :return: the file
        :raises ValueError: if the members are of another class, whose policies have no single network that acts
        """
        if not hasattr(self.policy, "deployed"):
            raise ValueError(
                f"export() needs members of a class of this package, such as 'td7'; got {self.member_class.__name__}. Save "
                f"individual({self.champion}), a whole {self.member_class.__name__}, and export it as SB3's documentation "
                "describes"
            )
        return super().export(path, normalize)

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save all members to one SB3 zip file; see :meth:`~sb3_erl.engine.model.EvolvingModel.save`.

        :param path: file name (``.zip`` is added) or open file
        :param exclude: attributes to leave out
        :param include: attributes to save although they are excluded by default; ``"replay_buffers"`` for those of the members
        """
        wanted = set(include or ())
        others = sorted(wanted - {BUFFERS})
        if BUFFERS not in wanted:
            super().save(path, exclude, others)
            return
        file = io.BytesIO()
        super().save(file, exclude, others)
        write_with_buffers(path, file, [state.buffer for state in self._members])

    @classmethod
    def load(
        cls,
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | str | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> PBT:
        """
        See :meth:`~sb3_erl.engine.model.EvolvingModel.load`; with the members' replay buffers, if they were saved.

        :raises ModelFileError: with ``trusted=False``, because members are files of SB3's classes, which SB3 reads as pickles
        """
        if not kwargs.get("trusted", True):
            raise ModelFileError(
                "path must be of a file that is trusted, because a population consists of whole files of SB3's classes, which "
                "SB3 reads as pickles; got trusted=False. Load it without, if you trust its author"
            )
        choice = kwargs.pop("algorithm", None)  # an attribute of this name is the class of the population
        model = super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
        check_algorithm(choice, model.member_class)
        model._states = with_buffers(model._states, path)
        return model

    def _plain_state(self) -> dict[str, Any]:
        return {**super()._plain_state(), **plain_state(self)}

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "member_class", "recipe", "space", "rules", "_states", "_n_unreported"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy"], []
