"""Base of everything with a learner and a replay buffer."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.her import HerReplayBuffer

from sb3_erl.buffers.append import buffer_class_for, store_for_networks
from sb3_erl.buffers.lap import LAPReplayBuffer
from sb3_erl.core.checks import check_common, check_range, resolve_policy_and_env, spaces_checked, warn_caller
from sb3_erl.core.seeding import Stream
from sb3_erl.engine.learner_host import LearnerHost
from sb3_erl.engine.model import EvolvingModel
from sb3_erl.envs.packages import register_namespaces
from sb3_erl.learners.base import Learner, Precision
from sb3_erl.rollouts.exploration import forgets
from sb3_erl.rollouts.slot_reset import check_order
from sb3_erl.runs.buffer_files import load_buffer, save_buffer
from sb3_erl.runs.description import log_warm_up, remember_logged


class OffPolicyModel(EvolvingModel, OffPolicyAlgorithm):
    """
    A model with a gradient learner and a replay buffer.

    :param policy: policy alias or class; or, without ``env``, the environment or its id
    :param env: environment (vectorized or not), its id, or ``None`` for loading
    :param learning_rate: a float or a schedule of the remaining progress; ``None`` for the learner's published rates
    :param buffer_size: transitions in the replay buffer
    :param learning_starts: steps before the first gradient update, see the subclass for whose steps
    :param batch_size: transitions per gradient update, ``None`` for the learner's own
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
    :param precision: ``"fp32"``, or ``"bf16"`` for products in bfloat16, which pays on hardware with instructions for it
    :param compile: translate updates into compiled programs, which takes a minute or two; ``"auto"``: where an update can be
        one program, after the first 50,000 updates
    :param policy_kwargs: arguments of the policy
    :param stats_window_size: episodes in the logged means
    :param tensorboard_log: folder of TensorBoard logs, ``None`` for none
    :param verbose: 0 no output, 1 info, 2 debug
    :param seed: seed of the run; all random numbers of a run derive from it
    :param device: ``"auto"``, ``"cpu"`` or ``"cuda"``
    :raises ValueError: if an argument is out of range or the environment has spaces that are not supported
    """

    default_policy: ClassVar[str] = "MlpPolicy"
    _warms_up_by: ClassVar[str | None] = "steps"
    """What ``learning_starts`` counts: all ``"steps"``, ``"learner steps"`` only; ``None`` where nothing waits for it."""
    learner: Learner

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
        precision: Precision = "fp32",
        compile: bool | Literal["auto"] = "auto",
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        register_namespaces(policy, env)
        policy, env = resolve_policy_and_env(policy, env, self.default_policy, list(self._aliases()))
        self.precision, self.compile = precision, compile
        self._learner_host = LearnerHost(self)
        with spaces_checked(self, verbose, policy_kwargs, not _init_setup_model, policy):
            super().__init__(
                policy=policy,
                env=env,
                learning_rate=learning_rate,
                buffer_size=buffer_size,
                learning_starts=learning_starts,
                batch_size=batch_size,
                tau=tau,
                gamma=gamma,
                train_freq=train_freq,
                gradient_steps=gradient_steps,
                action_noise=action_noise,
                replay_buffer_class=replay_buffer_class,
                replay_buffer_kwargs=replay_buffer_kwargs,
                optimize_memory_usage=optimize_memory_usage,
                n_steps=n_steps,
                policy_kwargs=policy_kwargs,
                stats_window_size=stats_window_size,
                tensorboard_log=tensorboard_log,
                verbose=verbose,
                device=device,
                support_multi_env=True,
                seed=seed,
                sde_support=False,
            )
        if _init_setup_model:
            self._setup_model()

    def _aliases(self) -> dict[str, type[BasePolicy]]:
        """Policy classes by alias for the learner that was chosen."""
        return self.policy_aliases

    def _check_arguments(self) -> None:
        """:raises ValueError: naming the argument that is out of range"""
        check_common(self)
        if self.env is not None:
            check_order(self.env)
        self._learner_host.check()
        check_range("buffer_size", self.buffer_size, 1, integer=True)
        if self.batch_size is not None:
            check_range("batch_size", self.batch_size, 1, integer=True)
        check_range("learning_starts", self.learning_starts, 0)
        check_range("gradient_steps", self.gradient_steps, -1, integer=True)
        check_range("n_steps", self.n_steps, 1, integer=True)
        for name in ("tau", "gamma"):
            check_range(name, getattr(self, name), 0, 1)
        if self.action_noise is not None and forgets(self.action_noise):
            warn_caller(
                f"action_noise={self.action_noise!r} changes with each call, but each episode begins with a copy of it as it "
                "is now; change model.action_noise in a callback instead"
            )

    def _setup_model(self) -> None:
        policy_kwargs, buffer_kwargs, given = self.policy_kwargs, self.replay_buffer_kwargs, self.replay_buffer_class
        self.policy_kwargs = {**self._policy_arguments(), **policy_kwargs}
        chosen = self._default_buffer_class() if given is None else given
        self.replay_buffer_class = buffer_class_for(self.observation_space, chosen, self.n_steps if given is None else 1)
        self.replay_buffer_kwargs = dict(buffer_kwargs or {})  # SB3 adds to it
        if issubclass(self.replay_buffer_class or ReplayBuffer, LAPReplayBuffer):
            self.replay_buffer_kwargs = {"n_priorities": self._n_priorities, **self.replay_buffer_kwargs}
        try:
            super()._setup_model()
        finally:
            self.policy_kwargs, self.replay_buffer_kwargs, self.replay_buffer_class = policy_kwargs, buffer_kwargs, given
        store_for_networks(self.replay_buffer, self.observation_space, self._vec_normalize_env is not None)
        self.run.choose_seed()

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        Go on in other environments, see ``BaseAlgorithm.set_env``.

        :param env: environment, vectorized or not
        :param force_reset: of no effect: ``learn`` begins with new episodes
        :raises ValueError: if its spaces or its number differ, or a wrapper changes observations after VecNormalize
        """
        if isinstance(env, VecEnv):
            check_order(env)
        super().set_env(env, force_reset)
        store_for_networks(self.replay_buffer, self.observation_space, self._vec_normalize_env is not None)
        if isinstance(self.replay_buffer, HerReplayBuffer):
            self.replay_buffer.env = self.env  # which says what other goals are worth

    def _policy_arguments(self) -> dict[str, Any]:
        """Arguments of the policy that follow from the model's own; ``policy_kwargs`` has precedence."""
        return {}

    def _default_buffer_class(self) -> type[ReplayBuffer] | None:
        """Replay buffer where the user names none, ``None`` for SB3's choice."""
        return None

    @property
    def _n_priorities(self) -> int:
        """Sets of priorities in a replay buffer that keeps any."""
        return 1

    # ---------------------------------------------------------------- learning

    def train(self, gradient_steps: int, batch_size: int | None = None) -> None:
        """
        Gradient updates on the replay buffer, with random numbers of the current phase.

        :param gradient_steps: number of updates
        :param batch_size: transitions per update, the model's own by default
        """
        self._learner_host.train(gradient_steps, batch_size)

    @property
    def _warm_up(self) -> tuple[int, float, str] | None:
        """
        Steps that were taken and are needed before the learner learns, and which of them are counted; a full buffer holds all
        that it can wait for.
        """
        if (
            self._warms_up_by is None
            or self.replay_buffer is None
            or (self._warms_up_by == "steps" and self.replay_buffer.full)
        ):
            return None
        n_steps = self.n_learner_steps if self._warms_up_by == "learner steps" else self.replay_buffer.size()  # type: ignore[attr-defined]
        return n_steps, self.learning_starts, self._warms_up_by

    def dump_logs(self) -> None:
        """Write the log table; while the learner waits for ``learning_starts``, the table on the screen says how long."""
        log_warm_up(self)
        remember_logged(self)
        super().dump_logs()

    @property
    def _default_batch_size(self) -> int:
        """Transitions per update where neither the call nor the model says."""
        return 256

    @property
    def _learner_updates(self) -> int:
        """Updates that the learner which is trained has made."""
        return self._n_updates

    @property
    def _optimizer_rates(self) -> Mapping[str, float]:
        """Learning rates of single optimizers, by name, in place of the common one."""
        return {}

    def _count_updates(self, n_updates: int) -> None:
        """Count gradient updates."""
        self._n_updates += n_updates

    def _learning_sequence(self) -> np.random.SeedSequence:
        """Seed of the random numbers of the next updates."""
        return self.run.address.sequence(Stream.LEARNING)

    def _sample(self, batch_size: int) -> Any:
        """Draw a batch from the replay buffer."""
        assert self.replay_buffer is not None
        return self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)

    def _update(self, sample: Any, n_updates: int) -> dict[str, float]:
        """
        :param sample: draws a batch
        :param n_updates: how many updates are made
        :return: means of what the learner logs
        """
        return self.learner.update(sample, n_updates)

    # ---------------------------------------------------------------- files

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """
        Save the replay buffer as far as it is filled, in a file that SB3 reads; a crash leaves the previous file whole.

        :param path: file name (``.pkl`` is added) or open file. ``"<name>.npz"`` gives a file of arrays and JSON without a
            pickle, which SB3 does not read
        :raises ValueError: if there is none, or, for ``.npz``, it is of a class of yours
        """
        save_buffer(self.replay_buffer, path)

    def load_replay_buffer(
        self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True, trusted: bool = True
    ) -> None:
        """
        Load a replay buffer; if that fails the model keeps its own. Unless its name ends in ``.npz`` the file is a pickle:
        load those of people you trust only.

        :param path: file name (``.pkl`` may be left out) or open file
        :param truncate_last_traj: for HER buffers only
        :param trusted: whether a pickle may be read
        :raises FileNotFoundError: if there is no such file
        :raises ValueError: if the file is damaged, of a model with other environments, has another number of priority sets,
            or is a pickle that is not trusted. An ``.npz`` file must be of a buffer of the same class and size
        """
        load_buffer(self, super().load_replay_buffer, path, truncate_last_traj, self._n_priorities, trusted)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "learner", "_learner_host"]
