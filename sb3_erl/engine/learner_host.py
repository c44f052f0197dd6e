"""Gradient updates on a replay buffer, for every algorithm that has a learner."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

import numpy as np
import torch
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit

from sb3_erl.core.checks import check_choice
from sb3_erl.core.seeding import Stream, scoped_generators
from sb3_erl.learners.base import Learner, Precision, Rates, products_in
from sb3_erl.runs.saving import AddressedMixin


class LearnerHostMixin(AddressedMixin):
    """Runs a learner's updates on the replay buffer; stands before an SB3 off-policy class."""

    learner_rule: Learner
    replay_buffer: Any
    batch_size: Any  # int in SB3; None for the learner's own
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
        """Context of updates: constants and rates are set, random numbers addressed, precision and compilation chosen."""
        rates = rates_of(self, batch_size)
        self.learner_rule.begin(rates, self.replay_buffer)
        if rates.learning_rate is not None:
            self.logger.record("train/learning_rate", rates.learning_rate)
        if self.compile:
            self.learner_rule.compile()
        with scoped_generators(self._learning_sequence()), products_in(self.precision, self.device):
            yield

    @property
    def _default_batch_size(self) -> int:
        """Transitions per update if neither the call nor the model has a number."""
        return 256

    @property
    def learner_updates(self) -> int:
        """Updates that :attr:`learner_rule` has made."""
        return self._n_updates

    @property
    def optimizer_rates(self) -> Mapping[str, float]:
        """Learning rates of single optimizers, by name, in place of the common one."""
        return {}

    def _learning_sequence(self) -> np.random.SeedSequence:
        return self.address.sequence(Stream.LEARNING)

    def _sample(self, batch_size: int) -> Any:
        return self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)

    def _update(self, sample: Any, n_updates: int) -> dict[str, float]:
        return self.learner_rule.update(sample, n_updates)


def rates_of(model: Any, batch_size: int) -> Rates:
    """
    What a model tells its learner before updates.

    :param model: an algorithm with :class:`LearnerHostMixin`
    :param batch_size: transitions in the batches to come
    :return: its constants and learning rates at this point of the run
    """
    progress = model._current_progress_remaining
    return Rates(
        gamma=model.gamma,
        tau=model.tau,
        learning_rate=None if model.learning_rate is None else model.lr_schedule(progress),
        progress_remaining=progress,
        n_updates=model.learner_updates,
        batch_size=batch_size,
        by_optimizer=model.optimizer_rates,
        steps_per_update=_steps_per_update(model.train_freq, model.gradient_steps),
    )


def _steps_per_update(train_freq: Any, gradient_steps: int) -> float:
    """Environment steps for each update; 1 where updates are counted by episodes, whose length is not known here."""
    by_step = isinstance(train_freq, TrainFreq) and train_freq.unit == TrainFrequencyUnit.STEP
    return train_freq.frequency / gradient_steps if by_step and gradient_steps > 0 else 1.0
