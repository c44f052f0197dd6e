"""Runs a learner's updates on the replay buffer of a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, get_args

import torch
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from torch import Tensor

from sb3_erl.core.arguments import accepted_parameters
from sb3_erl.core.checks import check_choice, warn_caller
from sb3_erl.core.observations import take
from sb3_erl.core.seeding import scoped_generators
from sb3_erl.learners.base import AUTO_AFTER, Precision, Rates, products_in
from sb3_erl.learners.gradient_steps import GradientSteps
from sb3_erl.policies.erl import fused_adam

if TYPE_CHECKING:
    from sb3_erl.engine.off_policy_model import OffPolicyModel
    from sb3_erl.learners.choice import LearnerSpec


class LearnerHost:
    """
    Gives a learner everything that it needs for updates, and counts and logs them.

    :param model: has the learner and the replay buffer
    """

    def __init__(self, model: OffPolicyModel):
        self._model = model

    def check(self) -> None:
        """:raises ValueError, TypeError: if the model's ``precision`` or ``compile`` is something else"""
        check_choice("precision", self._model.precision, get_args(Precision))
        if not isinstance(self._model.compile, bool) and self._model.compile != "auto":
            raise TypeError(f"compile must be True, False or 'auto'; got {self._model.compile!r}")

    def check_learner(self, spec: LearnerSpec) -> None:
        """
        Say which arguments a user has given that the learner does not read.

        :param spec: of the learner
        :raises ValueError: if it cannot learn the model's actions
        """
        spec.check_action_space(self._model.action_space)
        parameters = accepted_parameters(type(self._model).__mro__)
        for name, way_out in spec.unread.items():
            value = getattr(self._model, name, None)
            if name in parameters and value != parameters[name].default and name not in spec.kwargs:
                warn_caller(f"{name}={value!r} has no effect with {spec.learner_class.__name__}: {way_out}")

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
        self._log(n_updates, metrics)

    def improve(self, candidates: Tensor, steps: GradientSteps, n_steps: int) -> Tensor:
        """
        Let candidates take gradient steps on the learner's critic, which is trained with each of them.

        :param candidates: ``(n, n_params)``, not written
        :param steps: does it
        :param n_steps: actor steps of each candidate, and critic steps of all together
        :return: ``(n, n_params)``, the improved candidates
        """
        model: Any = self._model
        size = model.batch_size or model._default_batch_size
        n_critic = n_steps // len(candidates)

        def batch() -> Any:
            return model._sample(size)

        def observations(n: int) -> list[Any]:
            drawn = model._sample(n * size).observations
            return [take(drawn, slice(start, start + size)) for start in range(0, n * size, size)]

        model.policy.set_training_mode(True)
        try:
            with model.rollouts.stopwatch.measure("learning"), self.updates(size):
                improved, metrics = steps(model.learner, candidates, batch, observations, n_critic, n_steps)
        finally:
            model.policy.set_training_mode(False)
        self._log(len(candidates) * n_critic, metrics)
        return improved

    def _log(self, n_updates: int, metrics: dict[str, float]) -> None:
        model = self._model
        model._count_updates(n_updates)
        model.logger.record("train/n_updates", model._n_updates, exclude="tensorboard")
        for name, value in metrics.items():
            model.logger.record(f"train/{name}", value)

    @contextmanager
    def updates(self, batch_size: int) -> Iterator[None]:
        """Inside, the learner has the model's rates, random numbers, precision and, if wanted, compiled losses."""
        model, rates = self._model, rates_of(self._model, batch_size)
        if (settings := getattr(model, "_learner_settings", None)) is not None:
            model.learner.settings = settings()  # attributes may have been set since
        model.learner.begin(rates, model.replay_buffer)
        if rates.learning_rate is not None:
            model.logger.record("train/learning_rate", rates.learning_rate)
        if model.compile == "auto":
            # counted over the learner's life, so that a resumed run compiles where an uninterrupted one does
            if rates.n_updates >= AUTO_AFTER and model.learner.compile(only_whole=True):
                model.logger.info(f"compiling updates after {rates.n_updates} of them, which takes a while; see compile")
        elif model.compile:
            model.learner.compile()
        with scoped_generators(model._learning_sequence()), products_in(model.precision, model.device):
            yield


def rates_of(model: Any, batch_size: int) -> Rates:
    """
    What a model tells its learner before updates.

    :param model: with a learner and a replay buffer
    :param batch_size: transitions in the batches to come
    :return: its constants and learning rates at this point of the run
    """
    progress = model._current_progress_remaining
    return Rates(
        gamma=model.gamma,
        tau=model.tau,
        learning_rate=_given_rate(model),
        progress_remaining=progress,
        n_updates=model._learner_updates,
        batch_size=batch_size,
        by_optimizer=model._optimizer_rates,
        steps_per_update=_steps_per_update(model.train_freq, model.gradient_steps),
    )


def _given_rate(model: Any) -> float | None:
    """Of the schedule that a user has given, or a callback has put in its place; ``None`` for the published rates."""
    if model.lr_schedule is getattr(model, "published_schedule", None):
        return None
    return model.lr_schedule(model._current_progress_remaining)


def _steps_per_update(train_freq: Any, gradient_steps: int) -> float:
    """Environment steps for each update; 1 where updates are counted by episodes, whose length is not known here."""
    by_step = isinstance(train_freq, TrainFreq) and train_freq.unit == TrainFrequencyUnit.STEP
    return train_freq.frequency / gradient_steps if by_step and gradient_steps > 0 else 1.0


def optimizer_of(model: Any, tensors: list[Tensor]) -> torch.optim.Optimizer:
    """
    :param model: whose policy says which optimizer, and whose schedule, or its learner's published rate of actors, which
        learning rate
    :param tensors: parameters of actors, to be optimized
    :return: a new optimizer
    """
    kwargs = fused_adam(model.policy.optimizer_class, model.policy.optimizer_kwargs)
    given = _given_rate(model)
    rate = model.learner.learning_rates[0] if given is None else given
    return model.policy.optimizer_class(tensors, lr=rate, **kwargs)
