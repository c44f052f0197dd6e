"""Base of everything with a learner and a replay buffer."""

from __future__ import annotations

import io
import pathlib
from typing import Any

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_erl.buffers.lap import LAPReplayBuffer
from sb3_erl.core.seeding import Stream
from sb3_erl.engine.learner_host import LearnerHost
from sb3_erl.engine.model import EvolvingModel
from sb3_erl.learners.base import Learner, Precision
from sb3_erl.runs.buffer_files import load_buffer, save_buffer


class OffPolicyModel(EvolvingModel, OffPolicyAlgorithm):
    """A model with a gradient learner and a replay buffer."""

    learner_rule: Learner
    precision: Precision
    compile: bool

    def __init__(self, *args: Any, precision: Precision = "fp32", compile: bool = False, **kwargs: Any):
        self.precision, self.compile = precision, compile
        self._learner_host = LearnerHost(self)
        super().__init__(*args, **kwargs)

    # ---------------------------------------------------------------- set-up

    def _setup_model(self) -> None:
        policy_kwargs, buffer_kwargs, given = self.policy_kwargs, self.replay_buffer_kwargs, self.replay_buffer_class
        self.policy_kwargs = {**self._policy_arguments(), **policy_kwargs}
        self.replay_buffer_class = self._default_buffer_class() if given is None else given
        if issubclass(self.replay_buffer_class or ReplayBuffer, LAPReplayBuffer):
            self.replay_buffer_kwargs = {"n_priorities": self._n_priorities, **buffer_kwargs}
        try:
            super()._setup_model()
        finally:
            self.policy_kwargs, self.replay_buffer_kwargs, self.replay_buffer_class = policy_kwargs, buffer_kwargs, given
        self.run.choose_seed()

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
    def _default_batch_size(self) -> int:
        """Transitions per update where neither the call nor the model says."""
        return 256

    @property
    def _learner_updates(self) -> int:
        """Updates that the learner which is trained has made."""
        return self._n_updates

    @property
    def learner_updates(self) -> int:
        """Interim."""
        return self._learner_updates

    def _count_updates(self, n_updates: int) -> None:
        """So many updates were made."""
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
        return self.learner_rule.update(sample, n_updates)

    # ---------------------------------------------------------------- files

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """
        Save the replay buffer; a crash while saving leaves the previous file whole.

        :param path: file name (``.pkl`` is added) or open file
        """
        save_buffer(super().save_replay_buffer, path)

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """
        Load a replay buffer; if that fails the model keeps its own. The file is a pickle: load those of people you trust only.

        :param path: file name (``.pkl`` may be left out) or open file
        :param truncate_last_traj: for HER buffers only
        :raises FileNotFoundError: if there is no such file
        :raises ValueError: if the file is damaged, or of a model with other environments
        """
        load_buffer(self, super().load_replay_buffer, path, truncate_last_traj)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "learner_rule", "_learner_host"]
