"""Runs a learner's updates on the replay buffer of a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, get_args

from sb3_erl.core.checks import check_choice
from sb3_erl.core.seeding import scoped_generators
from sb3_erl.learners.base import Precision, products_in

if TYPE_CHECKING:
    from sb3_erl.engine.off_policy_model import OffPolicyModel


class LearnerHost:
    """
    Gives a learner everything that it needs for updates, and counts and logs them.

    :param model: has the learner as ``learner_rule``, and the replay buffer
    """

    def __init__(self, model: OffPolicyModel):
        self._model = model

    def check(self) -> None:
        """:raises ValueError, TypeError: if the model's ``precision`` or ``compile`` is something else"""
        check_choice("precision", self._model.precision, get_args(Precision))
        if not isinstance(self._model.compile, bool):
            raise TypeError(f"compile must be True or False; got {self._model.compile!r}")

    def train(self, n_updates: int, batch_size: int | None = None) -> None:
        """
        :param n_updates: number of updates; none are made on an empty replay buffer
        :param batch_size: transitions per update, the model's own by default
        """
        model = self._model
        size = batch_size or model.batch_size or model._default_batch_size
        if n_updates <= 0 or model.replay_buffer is None or model.replay_buffer.size() == 0:
            return
        model.policy.set_training_mode(True)
        with self.updates(size):
            metrics = model._update(lambda: model._sample(size), n_updates)
        model.policy.set_training_mode(False)
        model._count_updates(n_updates)
        model.logger.record("train/n_updates", model._n_updates, exclude="tensorboard")
        for name, value in metrics.items():
            model.logger.record(f"train/{name}", value)

    @contextmanager
    def updates(self, batch_size: int) -> Iterator[None]:
        """Inside, the learner has the model's rates, random numbers, precision and, if wanted, compiled losses."""
        model = self._model
        model.learner_rule.follow(model, batch_size)
        if model.compile:
            model.learner_rule.compile()
        with scoped_generators(model._learning_sequence()), products_in(model.precision, model.device):
            yield
