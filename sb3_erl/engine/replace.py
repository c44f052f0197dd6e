"""From the learner to the population, whose weak individual it replaces, and back: the best one pulls the learner."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn.functional import cross_entropy

from sb3_erl.core.checks import check_choice, check_range
from sb3_erl.core.parameters import read_parameters
from sb3_erl.core.registry import own_copy, resolve
from sb3_erl.engine.population import Population
from sb3_erl.evolution.base import Evolver, best_index
from sb3_erl.evolution.rebuilt import check_vectors
from sb3_erl.learners.base import SquashedMean


def weakest_slot(
    fitness: np.ndarray, protected: Collection[int], otherwise: Literal["next", "next_weakest"] = "next_weakest"
) -> int | None:
    """
    The slot that the learner takes: that of the least fit individual, unless it is protected.

    :param fitness: ``(n,)`` of the individuals that were evaluated, NaN is worst
    :param protected: slots that must not be overwritten
    :param otherwise: where the weakest slot is protected: the next slot (authors' code of ERL-Re2) or the slot of the
        next weakest individual
    :return: the slot, ``None`` if all are protected

    >>> weakest_slot(np.array([3.0, 1.0, 2.0]), protected=[1]), weakest_slot(np.array([3.0, 1.0, 2.0]), [1], "next")
    (2, 2)
    """
    n = len(fitness)
    order = np.argsort(np.where(np.isnan(fitness), -np.inf, fitness), kind="stable")
    candidates = order if otherwise == "next_weakest" else (order[0] + np.arange(n)) % n
    return next((int(slot) for slot in candidates if slot not in protected), None)


class Exchange(Protocol):
    """What moves from the learner into the population after each generation's updates."""

    def __call__(self, population: Population, fitness: np.ndarray, number: int, observations: Any) -> int | None:
        """
        :param population: its evolver gets the individual
        :param fitness: ``(pop_size,)`` of this generation
        :param number: of this generation, from 1
        :param observations: function of a number ``n`` that gives so many stored observations, as the networks read them
        :return: the slot that got a new individual, ``None`` if none did
        """


@dataclass
class ReplaceWeakest:
    """
    Every ``sync_period`` generations a copy of the learner's acting network replaces the weakest individual.

    Khadka & Tumer (2018), algorithm 1, line 21. It follows evolution, so the copy is evaluated unmutated. Difference
    from the authors' code of ERL: slots with protected elite copies are never overwritten. A population of another
    architecture than the learner's gets nothing.

    :param sync_period: generations between two injections, at least 1
    :param otherwise: see :func:`weakest_slot`
    :raises ValueError: if an argument is out of range or unknown
    """

    sync_period: int = 1
    otherwise: Literal["next", "next_weakest"] = "next_weakest"

    def __post_init__(self) -> None:
        check_range("sync_period", self.sync_period, 1, integer=True)
        check_choice("otherwise", self.otherwise, ("next", "next_weakest"))

    def __call__(self, population: Population, fitness: np.ndarray, number: int, observations: Any) -> int | None:
        """See :class:`Exchange`."""
        if number % self.sync_period:
            return None
        learner = population.representation.from_learner()
        if learner is None:
            return None
        return put(learner, population, fitness, self.otherwise)


def put(vector: Tensor, population: Population, fitness: np.ndarray, otherwise: Any = "next_weakest") -> int | None:
    """
    Let an individual take the place of the weakest one.

    :param vector: ``(n_params,)``, copied
    :param population: its evolver gets it
    :param fitness: ``(pop_size,)`` of this generation
    :param otherwise: see :func:`weakest_slot`
    :return: the slot, ``None`` if all are protected
    """
    slot = weakest_slot(fitness, population.evolver.protected, otherwise)
    if slot is not None:
        population.evolver.inject(vector[None], [slot])
    return slot


def replace_value_function(model: Any, fitness: np.ndarray) -> int | None:
    """
    Write the learner and its target over the individual that was the worst, or if that acts next, over one after it.

    The slot is that of the fitness that was told; a GA has put other individuals there since, as in VEB-RL's authors' code.

    :param model: with ``targets``, ``evolver`` and the learner's networks
    :param fitness: ``(pop_size,)`` of this generation
    :return: the slot, ``None`` if all are protected
    """
    slot = weakest_slot(fitness, {*model.targets.acting, *model.evolver.protected}, "next")
    if slot is not None:
        model.evolver.inject(read_parameters(model.policy.q_net)[None], [slot])
        model.targets.put(read_parameters(model.policy.q_net_target), slot)
    return slot


class ImitateLearner:
    """
    Every ``sync_period`` generations the best individual, trained to act like the learner, replaces the weakest one.

    For populations of another architecture than the learner's, into which its parameters cannot be copied: the mean squared
    difference of both networks' actions on stored observations is minimized by Adam; with discrete actions the cross-entropy
    of the individual's values with the learner's action. The idea is that of distillation in PDERL (Bodnar et al. 2020,
    https://arxiv.org/abs/1906.09807, section 3.2) with the learner as the only parent.

    :param teacher: the learner's acting network
    :param sync_period: generations between two injections, at least 1
    :param n_steps: gradient steps, at least 1
    :param batch_size: observations per step, at least 1
    :param learning_rate: of Adam, above 0
    :raises ValueError: if an argument is out of range
    """

    def __init__(
        self, teacher: Any, sync_period: int = 1, n_steps: int = 100, batch_size: int = 128, learning_rate: float = 1e-3
    ):
        for name, value in (("sync_period", sync_period), ("n_steps", n_steps), ("batch_size", batch_size)):
            check_range(name, value, 1, integer=True)
        check_range("learning_rate", learning_rate, 0, open_low=True)
        self.teacher, self.sync_period = teacher, sync_period
        self.n_steps, self.batch_size, self.learning_rate = n_steps, batch_size, learning_rate

    def __call__(self, population: Population, fitness: np.ndarray, number: int, observations: Any) -> int | None:
        """See :class:`Exchange`."""
        if number % self.sync_period or population.champion is None:
            return None
        representation = population.representation
        student: Any = representation.agent(population.champion.vector)
        output = SquashedMean(student) if hasattr(student, "get_action_dist_params") else student
        is_discrete = isinstance(student.action_space, spaces.Discrete)
        optimizer = torch.optim.Adam(representation.own_part(student).parameters(), lr=self.learning_rate)
        for _ in range(self.n_steps):
            batch = observations(self.batch_size)
            with torch.no_grad():
                wanted = self.teacher(batch)
            found = output(batch)
            loss = cross_entropy(found, wanted[:, 0].long()) if is_discrete else (found - wanted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return put(representation.read(student), population, fitness)


class NoExchange:
    """Nothing goes from the learner to the population."""

    def __call__(self, population: Population, fitness: np.ndarray, number: int, observations: Any) -> int | None:
        """See :class:`Exchange`."""
        return None


def make_exchange(choice: Any, learner: Any, own: dict[str, Any], kwargs: dict[str, Any]) -> Exchange:
    """
    :param choice: key, ``"package.module:Name"``, class or object, see :func:`~sb3_erl.core.registry.resolve`
    :param learner: whose acting network is the teacher of those that imitate it
    :param own: arguments of the algorithm, handed to a class that has parameters of these names
    :param kwargs: further arguments of the class
    :return: the exchange
    :raises TypeError: if it cannot be called
    :raises ValueError: if it is an object and there are arguments
    """
    found = resolve("exchange", choice)
    if kwargs and not isinstance(found, type):
        raise ValueError(f"exchange_kwargs must be empty where exchange is an object; got {kwargs}. Give a class instead")
    found = own_copy(found)
    if isinstance(found, type):
        known = inspect.signature(found).parameters
        given = {"teacher": learner.greedy_actor(), **own}
        found = found(**{**{name: value for name, value in given.items() if name in known}, **kwargs})
    if not callable(found):
        raise TypeError(f"exchange must be the name of one, a class or an object that can be called; got {choice!r}")
    return found


def fitting(exchange: Any, evolver: Evolver) -> Any:
    """
    :param exchange: from :func:`make_exchange`, or ``None``
    :param evolver: into whose population it brings individuals
    :return: the exchange
    :raises ValueError: if the evolver has no place for them
    """
    check_vectors(evolver, not isinstance(exchange, NoExchange | None), f"exchange={type(exchange).__name__}")
    return exchange


def pulled_networks(model: Any, generation: Any) -> dict[str, Tensor]:
    """
    The genetic soft update of EvoRainbow: the best individual pulls the learner's acting network and its target to itself.

    Li et al. (2024); authors' code: yeshenpy/EvoRainbow, ``agent.py``. Not before the learner has joined the population for
    the first time, and not if the best individual is the learner. Optimizers keep their state.

    :param model: with ``ea_tau``, the step
    :param generation: after ``score``
    :return: ``ea_tau * best + (1 - ea_tau) * own`` by the name of the network, ``(n_params,)`` each; empty for no update
    """
    if generation.fitness is None or model.ea_tau == 0 or model._n_injections == 0:
        return {}
    index, representation, pulled = best_index(generation.fitness), model.population.representation, {}
    if index == model._injected_slot:
        return {}
    for name in ("actor", "actor_target"):
        network = getattr(model.policy, name, None)
        if network is not None:
            own = representation.read(network)
            pulled[name] = model.ea_tau * generation.asked[index].to(own) + (1 - model.ea_tau) * own
    return pulled
