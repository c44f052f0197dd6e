"""The protocol of fitness functions: episodes in, one number per candidate out; and how a user names one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeVar

import numpy as np

from sb3_erl.core.array_text import class_and_numbers
from sb3_erl.core.registry import own_copy, resolve
from sb3_erl.evolution.rebuilt import CANDIDATES
from sb3_erl.rollouts.jobs import EPISODE_PARTS, EpisodeBatch


@dataclass(frozen=True)
class FitnessContext:
    """
    What a fitness function may read beside the episodes.

    :param n_candidates: how many candidates there are; ``episode.job.candidate`` is from 0 to this minus one
    :param candidates: ``(n_candidates, n_params)``, ``None`` where they are not at hand
    :param gamma: discount factor, in [0, 1]
    :param generation: number of the generation, from 1
    :param rng: generator for fitness functions that draw
    """

    n_candidates: int
    candidates: Any
    gamma: float
    generation: int
    rng: np.random.Generator


FitnessContext.candidates = CANDIDATES


class Fitness:
    """
    Base of all fitness functions.

    Fitness is called once per generation, with the episodes of a complete one. A subclass with state defines
    :meth:`state_dict` and :meth:`load_state_dict`.
    """

    needs: frozenset[str] = frozenset()
    """Parts of an episode beside its sums that are read: some of :data:`~sb3_erl.rollouts.jobs.EPISODE_PARTS`."""

    def __call__(self, episodes: EpisodeBatch, context: FitnessContext) -> np.ndarray:
        """
        :param episodes: all episodes of the candidates
        :param context: number of candidates, discount factor, generator
        :return: ``(n_candidates,)``, higher is better; NaN, the worst, for a candidate without episodes or with a failed one
        """
        raise NotImplementedError

    def checked(self, episodes: EpisodeBatch, context: FitnessContext) -> np.ndarray:
        """
        What :meth:`__call__` says, once it is known to be fitness.

        :raises ValueError: if it is something else than one number per candidate
        """
        values = np.asarray(self(episodes, context), dtype=np.float64)
        if values.shape != (context.n_candidates,):
            function = getattr(self, "function", None)
            name = type(self).__name__ if function is None else getattr(function, "__name__", type(function).__name__)
            raise ValueError(
                f"fitness={name} must return shape ({context.n_candidates},), one number per candidate; got {values.shape}. "
                "episodes.mean_per_candidate(values, context.n_candidates) makes it of one number per episode"
            )
        return values

    def __repr__(self) -> str:
        return class_and_numbers(self)

    def state_dict(self) -> dict[str, Any]:
        """:return: the state as values that JSON can hold, empty without any"""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """:param state: what :meth:`state_dict` returned, also that of another fitness, whose entries are left out"""


FitnessFunction = Callable[[EpisodeBatch, FitnessContext], np.ndarray]
AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])


def needs(*parts: str) -> Callable[[AnyFunction], AnyFunction]:
    """
    Declare what a fitness function reads of an episode, so that workers send it.

    :param parts: some of :data:`~sb3_erl.rollouts.jobs.EPISODE_PARTS`; without this decorator a function gets rewards
    :return: the decorator
    :raises ValueError: if there is no such part

    >>> @needs("actions")
    ... def smallest(episodes, context):
    ...     return episodes.mean_per_candidate([-abs(e.actions).max() for e in episodes.episodes], context.n_candidates)
    >>> sorted(make_fitness(smallest).needs)
    ['actions']
    """
    wanted = _checked_needs(parts)

    def declare(function: AnyFunction) -> AnyFunction:
        function.needs = wanted  # type: ignore[attr-defined]
        return function

    return declare


def _checked_needs(parts: Any) -> frozenset[str]:
    unknown = sorted(set(parts) - EPISODE_PARTS)
    if unknown:
        raise ValueError(f"needs must be some of {sorted(EPISODE_PARTS)}; got {unknown}")
    return frozenset(parts)


class FunctionFitness(Fitness):
    """
    A function of the episodes as fitness.

    :param function: ``f(episodes, context) -> (n_candidates,)``; what it reads is said by :func:`needs`
    """

    def __init__(self, function: FitnessFunction):
        self.function = function
        self.needs = _checked_needs(getattr(function, "needs", ("rewards",)))

    def __call__(self, episodes: EpisodeBatch, context: FitnessContext) -> np.ndarray:
        """See :meth:`Fitness.__call__`."""
        return self.function(episodes, context)


class WeightedSum(Fitness):
    """
    Several fitness functions, each times its weight, added up as they are: nothing is ranked or standardized.

    :param parts: fitness functions by name
    :param weights: of the same names, finite
    """

    def __init__(self, parts: Mapping[str, Fitness], weights: Mapping[str, float]):
        self.parts, self.weights = dict(parts), dict(weights)
        self.needs = frozenset().union(*(part.needs for part in self.parts.values()))

    def __call__(self, episodes: EpisodeBatch, context: FitnessContext) -> np.ndarray:
        """See :meth:`Fitness.__call__`; NaN where a part is."""
        values = [self.weights[name] * part.checked(episodes, context) for name, part in self.parts.items()]
        return np.sum(values, axis=0)

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Fitness.state_dict`; the states of the parts by name."""
        states = {name: part.state_dict() for name, part in self.parts.items()}
        return {name: state for name, state in states.items() if state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`Fitness.load_state_dict`."""
        for name, part in self.parts.items():
            if name in state:
                part.load_state_dict(state[name])


def make_fitness(choice: Any, kwargs: dict[str, Any] | None = None) -> Fitness:
    """
    :param choice: a registered key (``"return"``, ``"discounted_return"``, ``"sign_sum"``, ``"energy"``, ``"novelty"``),
        ``"package.module:Name"``, a class, a :class:`Fitness`, a function ``f(episodes, context)``, or a dict of such names
        with their weights
    :param kwargs: further arguments of the class; for a dict, arguments by name: ``{"novelty": {"k": 5}}``
    :return: the fitness function
    :raises ValueError: if there is no such key, module or name, a weight is not finite, or an object is given with arguments
    :raises TypeError: if the choice is none of these

    >>> make_fitness({"return": 1.0, "energy": 0.1}).weights
    {'return': 1.0, 'energy': 0.1}
    """
    kwargs = kwargs or {}
    if isinstance(choice, Mapping):
        return _weighted_sum(choice, kwargs)
    part = resolve("fitness", choice)
    if isinstance(part, type):
        part = part(**kwargs)
    elif kwargs:
        raise ValueError(
            f"fitness_kwargs must be empty where fitness is a function or an object; got {kwargs}. Give a class instead"
        )
    if isinstance(part, Fitness):
        _checked_needs(part.needs)
        return part if type(part).state_dict is Fitness.state_dict else own_copy(part)
    if not callable(part):
        raise TypeError(
            "fitness must be a key, 'package.module:Name', a Fitness (class or object), a function of (episodes, context), or "
            f"a dict of names with weights; got {part!r}"
        )
    return FunctionFitness(part)


def _weighted_sum(weights: Mapping[Any, Any], kwargs: dict[str, Any]) -> WeightedSum:
    unknown = sorted(set(kwargs) - set(weights))
    if not weights or unknown:
        raise ValueError(
            f"fitness must be a dict of at least one name, and fitness_kwargs arguments by these names; got {dict(weights)} "
            f"and arguments of {unknown}"
        )
    for name, weight in weights.items():
        is_number = isinstance(name, str) and isinstance(weight, Real) and not isinstance(weight, bool)
        if not (is_number and math.isfinite(weight)):
            raise ValueError(f"fitness must be a dict of names with finite weights; got {name!r}: {weight!r}")
    parts = {name: make_fitness(name, kwargs.get(name)) for name in weights}
    return WeightedSum(parts, {name: float(weight) for name, weight in weights.items()})
