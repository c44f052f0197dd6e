"""Names that classes which are not converted yet still use; goes when they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import numpy as np
import torch

from sb3_erl.core.checks import check_choice
from sb3_erl.core.seeding import Address, Stream, scoped_generators
from sb3_erl.engine.model import EvolvingModel
from sb3_erl.learners.base import Learner, Precision, products_in
from sb3_erl.runs.buffer_files import load_buffer, save_buffer


class AddressedMixin(EvolvingModel):
    """The methods that :class:`EvolvingModel` hands to ``model.run``, under their old names."""

    def _init_addresses(self) -> None:
        """Done by ``__init__``."""

    def _setup_addresses(self) -> None:
        self.run.choose_seed()

    @property
    def address(self) -> Address:
        return self.run.address

    def _rng(self, stream: Stream) -> np.random.Generator:
        return self.run.rng(stream)

    def _begin_learn(self, *arguments: Any) -> Any:
        return self.run.begin(*arguments)

    def _learning(self) -> Any:
        return self.run.learning()

    def _at_boundary(self) -> None:
        self.run.at_boundary()

    def save(self, path: Any, exclude: Any = None, include: Any = None) -> None:
        self._write_state()
        try:
            super().save(path, exclude, include)
        finally:
            self._forget_state()

    def _write_state(self) -> None:
        pass

    def _forget_state(self) -> None:
        pass


class SafeBufferMixin:
    """Replay buffer files."""

    def save_replay_buffer(self, path: Any) -> None:
        base: Any = super()
        save_buffer(base.save_replay_buffer, path)

    def load_replay_buffer(self, path: Any, truncate_last_traj: bool = True) -> None:
        base: Any = super()
        load_buffer(self, base.load_replay_buffer, path, truncate_last_traj)


class LearnerHostMixin(AddressedMixin):
    """Runs a learner's updates on the replay buffer; stands before an SB3 off-policy class."""

    learner: Learner
    replay_buffer: Any
    batch_size: Any  # SB3 says int; None stands for the learner's own
    precision: Precision = "fp32"
    compile: bool = False
    device: torch.device
    _n_updates: int

    def _check_update_options(self) -> None:
        check_choice("precision", self.precision, get_args(Precision))
        if not isinstance(self.compile, bool):
            raise TypeError(f"compile must be True or False; got {self.compile!r}")

    def train(self, gradient_steps: int, batch_size: int | None = None) -> None:
        """
        Gradient updates on the replay buffer, with random numbers of the current address.

        :param gradient_steps: number of updates
        :param batch_size: transitions per update, the model's own by default
        """
        size = batch_size or self.batch_size or self._default_batch_size
        if gradient_steps <= 0 or self.replay_buffer.size() == 0:
            return
        self.policy.set_training_mode(True)
        with self._updates(size):
            metrics = self._update(lambda: self._sample(size), gradient_steps)
        self.policy.set_training_mode(False)
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, value in metrics.items():
            self.logger.record(f"train/{name}", value)

    @contextmanager
    def _updates(self, batch_size: int) -> Iterator[None]:
        """Inside, the learner has the algorithm's constants, random numbers, precision and, if wanted, compiled losses."""
        self.learner.follow(self, batch_size)
        if self.compile:
            self.learner.compile()
        with scoped_generators(self._learning_sequence()), products_in(self.precision, self.device):
            yield

    @property
    def _default_batch_size(self) -> int:
        """Transitions per update where neither the call nor the model says."""
        return 256

    @property
    def learner_updates(self) -> int:
        """Updates that the learner whose turn it is has made."""
        return self._n_updates

    def _learning_sequence(self) -> np.random.SeedSequence:
        return self.address.sequence(Stream.LEARNING)

    def _sample(self, batch_size: int) -> Any:
        return self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)

    def _update(self, sample: Any, n_updates: int) -> dict[str, float]:
        return self.learner.update(sample, n_updates)
