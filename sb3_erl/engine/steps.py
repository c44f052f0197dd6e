"""Steps of a user's own in a generation: what is done after one of its verbs, and how often."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sb3_erl.core.checks import check_range
from sb3_erl.engine.generation import Generation, Verb


@dataclass
class every:
    """
    Do a step every so many generations.

    :param period: generations between two times, at least 1
    :param step: called with the model and the :class:`~sb3_erl.engine.generation.Generation`
    :param after: the verb that it follows; ``None`` for the step's own ``after``, or ``"exchange"``
    :raises ValueError: if the period is out of range

    >>> every(3, Reseed(std=0.1)).after
    'exchange'
    """

    period: int
    step: Callable[[Any, Generation], Any]
    after: Verb | None = None

    def __post_init__(self) -> None:
        check_range("period", self.period, 1, integer=True)
        if self.after is None:
            self.after = getattr(self.step, "after", "exchange")

    def __call__(self, model: Any, generation: Generation) -> None:
        """See :class:`~sb3_erl.engine.generation.GenerationStep`."""
        if generation.number % self.period == 0:
            self.step(model, generation)


@dataclass
class Reseed:
    """
    Replace the population by noisy copies of the learner, but for protected individuals.

    :param std: standard deviation of the Gaussian noise on each parameter, at least 0
    :raises ValueError: if ``std`` is out of range
    """

    std: float = 0.1
    after: Verb = "exchange"

    def __post_init__(self) -> None:
        check_range("std", self.std, 0)

    def __call__(self, model: Any, generation: Generation) -> None:
        """
        See :class:`~sb3_erl.engine.generation.GenerationStep`.

        :raises ValueError: if the population has another architecture than the learner
        """
        population = model.population
        learner = population.representation.from_learner()
        if learner is None:
            raise ValueError("Reseed needs a population of the learner's architecture; got population_policy_kwargs")
        slots = [slot for slot in range(population.pop_size) if slot not in population.evolver.protected]
        noise = self.std * model.rng("reseed").standard_normal((len(slots), learner.numel()))
        vectors = learner[None] + torch.as_tensor(noise, dtype=learner.dtype, device=learner.device)
        population.evolver.inject(vectors, slots)
