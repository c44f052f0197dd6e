"""A population beside or without a learner: an evolver, and how its vectors act."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from sb3_erl.core.action_spaces import in_space
from sb3_erl.core.arguments import constructor_parameters
from sb3_erl.core.checks import check_range, warn_caller
from sb3_erl.core.registry import resolve
from sb3_erl.engine.representation import Representation
from sb3_erl.evolution.base import Evolver, best_index
from sb3_erl.evolution.cem import DiagonalCEM
from sb3_erl.evolution.ga import GA
from sb3_erl.evolution.operators.selection import rank_best_first
from sb3_erl.rollouts.acting import JointActor, ModuleActor, numpy_population, tensors_of
from sb3_erl.rollouts.jobs import PopulationActor


@dataclass(frozen=True)
class Champion:
    """
    The best individual of a generation, as it was evaluated.

    :param vector: ``(n_params,)``, a copy
    :param fitness: its fitness
    """

    vector: Tensor = field(repr=False)
    fitness: float


class Population:
    """
    Proposes candidates, lets them act, and learns their fitness.

    :param evolver: proposes and learns
    :param representation: how candidates act
    :param network: whose weights a user may change, see :meth:`follow`; ``None`` for none
    """

    def __init__(self, evolver: Evolver, representation: Representation, network: Any = None):
        self.evolver, self.representation = evolver, representation
        self.champion: Champion | None = None
        """The best of the last generation whose fitness was told in this process; ``None`` before the first."""
        self.ranking: np.ndarray | None = None
        """``(pop_size,)`` candidates of the last told generation, best first."""
        self._known: Tensor | None = None
        if network is not None:
            self.know(network)

    def __repr__(self) -> str:
        return f"Population({self.evolver!r}, {type(self.representation).__name__})"

    @property
    def pop_size(self) -> int:
        """Number of candidates in a generation."""
        return self.evolver.pop_size

    def ask(self, rng: np.random.Generator) -> Tensor:
        """
        :param rng: random numbers of evolution
        :return: ``(pop_size, n_params)``, a copy
        """
        return self.evolver.ask(rng)

    def act(self, candidates: Tensor) -> PopulationActor:
        """
        :param candidates: ``(n, n_params)``
        :return: acts for all of them
        """
        return self.representation.act(candidates)

    def act_with(
        self, candidates: Tensor, networks: Sequence[Any], alike: Collection[int], numbers: Sequence[int]
    ) -> PopulationActor:
        """
        Let candidates and networks from outside act side by side.

        :param candidates: ``(n, n_params)``, which have the numbers from 0
        :param networks: further networks, such as the learners' actors
        :param alike: which of them are networks of the individuals' kind, and act in one batch with them
        :param numbers: which network acts under each of the numbers from ``n`` on
        :return: acts for all of them
        """
        n, stacked = len(candidates), sorted(alike)
        own = [self.representation.read(networks[i])[None].to(candidates.dtype) for i in stacked]
        together = self.representation.act(torch.cat([candidates, *own]))
        if stacked == list(numbers):
            return together
        parts, places = [together], {number: (0, n + row) for row, number in enumerate(stacked)}
        for number, network in enumerate(networks):
            if number not in places:
                places[number] = (len(parts), 0)
                parts.append(numpy_population(network, tensors_of) or ModuleActor([network]))
        return JointActor(parts, [(0, row) for row in range(n)] + [places[number] for number in numbers])

    def tell(self, candidates: Tensor, fitness: np.ndarray, rng: np.random.Generator, migrants: Tensor | None = None) -> None:
        """
        :param candidates: ``(pop_size, n_params)`` as they were evaluated
        :param fitness: ``(pop_size,)``, higher is better, NaN is worst
        :param rng: random numbers of evolution
        :param migrants: ``(n, n_params)`` individuals from outside that join selection, for evolvers with the ability
            :class:`~sb3_erl.evolution.base.Migration`
        """
        self.ranking = rank_best_first(fitness)
        # of equals the one that a distribution keeps and saves
        best = best_index(fitness) if self.evolver.starts_from == "mean" else int(self.ranking[0])
        self.champion = Champion(candidates[best].clone(), float(fitness[best]))
        evolver: Any = self.evolver
        if migrants is None:
            evolver.tell(candidates, fitness, rng)
        else:
            evolver.tell(candidates, fitness, rng, migrants)
        evolver.outsiders = frozenset()

    def follow(self, network: Any) -> None:
        """
        Begin where a network is, if it is elsewhere than it was: a user has given it other weights.

        :param network: see the constructor
        """
        if self._known is not None and not torch.equal(self.representation.read(network), self._known):
            self.move_to(network)

    def move_to(self, network: Any) -> None:
        """
        Take over the weights of a network: a search distribution as its mean, a population as its first individual; where
        neither is possible a warning says so.

        :param network: of the kind of the individuals
        """
        vector, evolver = self.representation.read(network), self.evolver
        mean = getattr(evolver, "mean", None)
        if evolver.starts_from == "mean" and isinstance(mean, Tensor) and mean.shape == vector.shape:
            mean.copy_(vector)
        elif evolver.takes_vectors:
            evolver.inject(vector[None], [0])
        else:
            warn_caller(f"weights that the policy was given have no effect on {type(evolver).__name__}, which has its own")
        self.know(network)

    def know(self, network: Any) -> None:
        """Remember where a network is; see :meth:`follow`."""
        self._known = self.representation.read(network).clone()

    def best(self) -> Tensor | None:
        """:return: ``(n_params,)``, the best individual of the last generation as it was evaluated; ``None`` if not known"""
        return self.evolver.best() if self.champion is None else self.champion.vector

    def individual(self, index: int) -> BasePolicy:
        """
        :param index: slot in the population, from 0
        :return: a policy of its own with the individual's parameters; has ``predict``
        """
        return in_space(self.representation.agent(self.evolver.candidates[range(self.pop_size)[index]]))


class Sampled:
    """
    An agent whose actions are sampled, for systems that are published so.

    :param agent: a stochastic policy
    """

    def __init__(self, agent: BasePolicy):
        self.agent = agent

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Any:
        """See SB3's ``BasePolicy.predict``; ``deterministic`` is ignored."""
        return self.agent.predict(observation, state, episode_start, deterministic=False)


def candidates_of(model: Any, names: Collection[str]) -> dict[str, Any]:
    """
    See :meth:`~sb3_erl.engine.model.EvolvingModel.candidates_for_report`.

    :param model: with a population; its argument ``deploy`` says which of them ``policy.deployed`` is
    :param names: which candidates the model has
    :return: those of them that are made of a learner or a population
    """
    population, found = model.population, {}
    if "learner" in names:
        found["learner"] = model.learner_agent
    for name, vector in (("champion", population.best()), ("mean", population.evolver.center())):
        if name in names and not (name == "mean" and vector is None):
            is_deployed = vector is None or model.deploy == name
            found[name] = model.policy.deployed if is_deployed else population.representation.agent(vector)
    if getattr(model, "_deploys_checkpoint", False):
        found["checkpoint"] = model.policy.deployed
    return {name: in_space(agent) for name, agent in found.items()}


def outcome_of_injection(evolver: Any, slot: int, ranking: np.ndarray) -> Literal["elite", "selected", "discarded"] | None:
    """
    What became of the individual that had been injected into a slot before the last ``tell``.

    :param evolver: was told the fitness
    :param slot: where the individual was
    :param ranking: ``(pop_size,)`` candidates, best first
    :return: ``None`` for evolvers without parents that are selected
    """
    epoch = getattr(evolver, "epoch", None)
    if epoch is None:
        return None
    if slot in ranking[: evolver.n_elites]:
        return "elite"
    return "selected" if slot in epoch.winners else "discarded"


def make_evolver(
    choice: Any, representation: Representation, pop_size: int, kwargs: dict[str, Any], mean: Tensor | None = None
) -> Evolver:
    """
    :param choice: key, ``"package.module:Name"``, class or object, see :func:`~sb3_erl.core.registry.resolve`
    :param representation: of the individuals
    :param pop_size: number of individuals
    :param kwargs: further arguments of the class
    :param mean: ``(n_params,)``, where distributions begin; ``None`` for a new individual
    :return: the evolver, a copy if it was an object
    :raises TypeError: if it is no evolver
    :raises ValueError: if it has another number of individuals or parameters, or is an object and there are arguments
    """
    found = resolve("evolver", choice)
    if not isinstance(found, Evolver) and not (isinstance(found, type) and issubclass(found, Evolver)):
        raise TypeError(f"evolver must be the name of one, a subclass of sb3_erl.Evolver or an object of one; got {choice!r}")
    cls: Any = found
    if isinstance(found, Evolver):
        if kwargs:
            raise ValueError(f"evolver_kwargs must be empty where evolver is an object; got {kwargs}. Give a class instead")
        evolver = copy.deepcopy(found)
    elif cls.starts_from == "mean":
        evolver = cls(representation.fresh(1)[0] if mean is None else mean, pop_size, **kwargs)
    else:
        evolver = cls(representation.fresh(pop_size), representation.layout, **kwargs)
    wanted, sizes = (pop_size, representation.layout.n_params), (evolver.pop_size, evolver.n_params)
    if wanted != sizes:
        raise ValueError(
            f"evolver must have {wanted[0]} individuals of {wanted[1]} parameters, as the algorithm and its networks; "
            f"{type(evolver).__name__} has {sizes[0]} of {sizes[1]}. Give the algorithm as many individuals, and a class in "
            "place of an object"
        )
    return evolver


# -------------------------------------------------------------------- arguments that systems with a genetic algorithm share

GA_ARGUMENTS = ("elite_fraction", "tournament_size", "mutation_prob", "crossover_prob")
OPERATORS = ("crossover", "mutation")


def check_ga_arguments(model: Any) -> None:
    """:raises ValueError: if an argument of the genetic algorithm, or the period of the exchange, is out of range"""
    check_range("sync_period", model.sync_period, 1, integer=True)
    for name in GA_ARGUMENTS:
        if name == "tournament_size" and hasattr(model, name):
            check_range(name, model.tournament_size, 2, integer=True)
        elif hasattr(model, name):
            check_range(name, getattr(model, name), 0, 1)


def ga_arguments(model: Any) -> dict[str, Any]:
    """
    :param model: of a class with arguments of a genetic algorithm
    :return: those of the model's attributes that a genetic algorithm takes; none if the evolver is another one
    :raises ValueError: if the evolver is another one, or an object, and one of them is not its default
    """
    return _given_to_evolver(model, GA, {name: name for name in (*GA_ARGUMENTS, *OPERATORS)})


CEM_ARGUMENTS = {
    **{"n_parents": "n_parents", "sigma_init": "variance_init", "antithetic": "antithetic", "elitism": "elitism"},
    **{"damp": "damping_init", "damp_limit": "damping_final", "damp_tau": "damping_decay"},
}
"""Arguments that systems with a cross-entropy method may have, and what the evolver calls them: they are variances."""


def cem_arguments(model: Any) -> dict[str, Any]:
    """
    :param model: of a class with arguments of a cross-entropy method
    :return: those of the model's attributes that the cross-entropy method takes; none if the evolver is another one
    :raises ValueError: if ``sigma_init`` is out of range; if the evolver is another one, or an object, and one of them is not
        its default
    """
    check_range("sigma_init", model.sigma_init, 0, open_low=True)
    return _given_to_evolver(model, DiagonalCEM, CEM_ARGUMENTS)


def _given_to_evolver(model: Any, kind: type[Evolver], names: Mapping[str, str]) -> dict[str, Any]:
    """What evolvers of a kind take, by their own names; others take nothing, so nothing may have been asked of them."""
    found = resolve("evolver", model.evolver_class)
    given = {own: getattr(model, own) for own in names if hasattr(model, own)}
    if isinstance(found, type) and issubclass(found, kind):
        return {names[own]: value for own, value in given.items()}
    defaults = {
        own: each.default for own, each in constructor_parameters(type(model)).items() if each.default is not each.empty
    }
    changed = {own: value for own, value in given.items() if value is not defaults.get(own, value) and value != defaults[own]}
    if changed:
        what = "is an object that has arguments of its own" if isinstance(found, kind) else f"is no {kind.__name__}"
        raise ValueError(
            f"{', '.join(changed)} must be left out with evolver={model.evolver_class!r}, which {what}; got "
            f"{', '.join(f'{own}={value!r}' for own, value in changed.items())}. Give an evolver its arguments in "
            "evolver_kwargs, or where you make it"
        )
    return {}
