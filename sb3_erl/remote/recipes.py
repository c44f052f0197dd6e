"""Actors that are sent as recipes: workers get what candidates are made of, and make the parameters of one when it acts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy

from sb3_erl.core.noise_table import NoiseTable
from sb3_erl.core.parameters import ParameterLayout, write_parameters
from sb3_erl.rollouts.acting import ModuleActor, NumpyActor, on_cpu, plain_layers, single_row_actor
from sb3_erl.rollouts.jobs import PopulationActor
from sb3_erl.rollouts.numpy_layers import Layer
from sb3_erl.rollouts.single_row import SingleRowActor


class CandidateSource(Protocol):
    """Makes the parameters of candidates; its pickle is smaller than these parameters."""

    @property
    def noise_tables(self) -> Sequence[NoiseTable]:
        """Noise tables that a worker must have before, because they are not in the pickle."""

    def __call__(self, candidate: int) -> np.ndarray:
        """
        :param candidate: number
        :return: ``(n_params,)`` float32, equal to the last bit to what the main process would make
        """


class ActorFactory(Protocol):
    """Makes an actor of parameters; can be pickled."""

    def __call__(self, vector: np.ndarray) -> PopulationActor:
        """
        :param vector: ``(n_params,)`` float32
        :return: acts for one candidate, which has number 0
        """


@dataclass(frozen=True)
class PlainFactory:
    """
    Makes a :class:`~sb3_erl.rollouts.acting.NumpyActor`.

    :param layout: of the parameters
    :param layers: for each layer its function and the names of its parameters, or the tensors that all candidates share
    """

    layout: ParameterLayout
    layers: tuple[tuple[Any, tuple[str, ...] | tuple[np.ndarray, ...]], ...]

    def __call__(self, vector: np.ndarray) -> PopulationActor:
        """See :class:`ActorFactory`."""
        tensors = self.layout.split(vector[None])
        layers: list[Layer] = []
        for function, parts in self.layers:
            stack = [np.ascontiguousarray(tensors[part]) if isinstance(part, str) else part for part in parts]
            layers.append((function, tuple(stack)))
        return NumpyActor.of_layers(layers)


@dataclass(frozen=True)
class NetworkFactory:
    """
    Makes a :class:`~sb3_erl.rollouts.acting.ModuleActor`.

    :param network: overwritten with the parameters of the candidate that acts
    """

    network: BasePolicy

    def __call__(self, vector: np.ndarray) -> PopulationActor:
        """See :class:`ActorFactory`."""
        write_parameters(torch.from_numpy(vector), self.network)
        return ModuleActor([self.network])


def actor_factory(actor: BasePolicy) -> ActorFactory:
    """
    :param actor: a network of the candidates' shape
    :return: makes actors with the same actions as the main process computes
    """
    layers = plain_layers(actor)
    if layers is None:
        return NetworkFactory(on_cpu(actor))
    return PlainFactory(ParameterLayout.of(actor), tuple(layers))


class Renumbered:
    """
    Acts for candidates whose numbers do not begin at 0.

    :param actor: acts for candidates from 0 on
    :param first: number of the first candidate
    """

    def __init__(self, actor: PopulationActor, first: int):
        self._actor, self._first = actor, first

    def __call__(self, observations: Any, candidates: Sequence[int]) -> np.ndarray:
        """See :class:`~sb3_erl.rollouts.jobs.PopulationActor`."""
        return self._actor(observations, [candidate - self._first for candidate in candidates])

    def single_row(self, candidate: int) -> SingleRowActor | None:
        """See :meth:`~sb3_erl.rollouts.acting.SingleRowActing.single_row`."""
        return single_row_actor(self._actor, candidate - self._first)


class RebuiltActor:
    """
    Acts for candidates that are made when they are needed; only their source and the factory are sent.

    :param source: makes parameters of candidates
    :param factory: makes actors of parameters
    :param local: makes an actor for all of them at once, for use in this process
    """

    def __init__(self, source: CandidateSource, factory: ActorFactory, local: Callable[[], PopulationActor] | None = None):
        self._source, self._factory, self._local = source, factory, local
        self._whole: PopulationActor | None = None
        self._current: tuple[int, PopulationActor] | None = None

    @property
    def noise_tables(self) -> Sequence[NoiseTable]:
        """See :class:`CandidateSource`."""
        return self._source.noise_tables

    def __call__(self, observations: Any, candidates: Sequence[int]) -> np.ndarray:
        """See :class:`~sb3_erl.rollouts.jobs.PopulationActor`."""
        if self._local is not None:
            return self._all(self._local)(observations, candidates)
        (candidate,) = candidates  # a worker has one environment
        return self._one(candidate)(observations, (0,))

    def single_row(self, candidate: int) -> SingleRowActor | None:
        """See :meth:`~sb3_erl.rollouts.acting.SingleRowActing.single_row`."""
        if self._local is not None:
            return single_row_actor(self._all(self._local), candidate)
        return single_row_actor(self._one(candidate), 0)

    def _all(self, make: Callable[[], PopulationActor]) -> PopulationActor:
        self._whole = make() if self._whole is None else self._whole
        return self._whole

    def _one(self, candidate: int) -> PopulationActor:
        if self._current is None or self._current[0] != candidate:
            self._current = candidate, self._factory(self._source(candidate))
        return self._current[1]

    def __reduce__(self) -> tuple[Any, ...]:
        return RebuiltActor, (self._source, self._factory)
