"""Search spaces: how a hyper-parameter is drawn and how it is perturbed."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sb3_erl.core.checks import check_range

FACTORS = (0.8, 1.2)
"""Jaderberg et al. (2017), https://arxiv.org/abs/1711.09846, section 4: by one of them a hyper-parameter is multiplied."""


class Knob(Protocol):
    """One dimension of a search space."""

    def sample(self, rng: np.random.Generator) -> Any:
        """:return: a value of the prior"""

    def perturb(self, value: Any, rng: np.random.Generator, factors: Sequence[float] = FACTORS) -> Any:
        """:return: a value near another one, inside the bounds"""

    def holds(self, value: Any) -> bool:
        """Whether a value lies inside the bounds."""

    def values(self) -> tuple[Any, ...]:
        """:return: the outermost values, or all where there are few"""


def _check_bounds(name: str, low: float, high: float) -> None:
    for side, bound in (("low", low), ("high", high)):
        check_range(f"{name}({side})", bound, -math.inf)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{name} must have finite bounds, the lower one first; got {name}({low}, {high})")


@dataclass(frozen=True)
class Uniform:
    """
    A real number, each value in the range equally likely.

    :param low: smallest value
    :param high: largest value, above ``low``
    :raises ValueError: if the bounds are not finite or in the wrong order
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_bounds(type(self).__name__, self.low, self.high)

    def sample(self, rng: np.random.Generator) -> float:
        """See :class:`Knob`."""
        return float(rng.uniform(self.low, self.high))

    def perturb(self, value: float, rng: np.random.Generator, factors: Sequence[float] = FACTORS) -> float:
        """See :class:`Knob`; 0 is drawn again, because no factor leads away from it."""
        if value == 0:
            return self.sample(rng)
        return float(np.clip(value * factors[int(rng.integers(len(factors)))], self.low, self.high))

    def holds(self, value: Any) -> bool:
        """See :class:`Knob`."""
        is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
        return is_number and bool(self.low <= value <= self.high)

    def values(self) -> tuple[float, ...]:
        """See :class:`Knob`."""
        return self.low, self.high


@dataclass(frozen=True)
class LogUniform(Uniform):
    """
    A positive real number, each order of magnitude equally likely.

    :param low: smallest value, above 0
    :param high: largest value, above ``low``
    :raises ValueError: if the bounds are not positive and finite, or in the wrong order

    >>> LogUniform(1e-5, 1e-2).holds(3e-4)
    True
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("LogUniform(low)", self.low, 0, open_low=True)

    def sample(self, rng: np.random.Generator) -> float:
        """See :class:`Knob`."""
        drawn = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        return float(np.clip(drawn, self.low, self.high))


@dataclass(frozen=True)
class IntUniform:
    """
    An integer, each value in the range equally likely.

    :param low: smallest value
    :param high: largest value, included
    :raises TypeError: if a bound is no integer
    :raises ValueError: if they are in the wrong order
    """

    low: int
    high: int

    def __post_init__(self) -> None:
        for side in ("low", "high"):
            check_range(f"IntUniform({side})", getattr(self, side), -math.inf, integer=True)
        _check_bounds("IntUniform", self.low, self.high)

    def sample(self, rng: np.random.Generator) -> int:
        """See :class:`Knob`."""
        return int(rng.integers(self.low, self.high + 1))

    def perturb(self, value: int, rng: np.random.Generator, factors: Sequence[float] = FACTORS) -> int:
        """See :class:`Knob`; a change by less than 1 becomes one by 1."""
        factor = factors[int(rng.integers(len(factors)))]
        changed = round(value * factor)
        if changed == value and factor != 1:
            changed += 1 if factor > 1 else -1
        return int(np.clip(changed, self.low, self.high))

    def holds(self, value: Any) -> bool:
        """See :class:`Knob`."""
        is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
        return is_integer and bool(self.low <= value <= self.high)

    def values(self) -> tuple[int, ...]:
        """See :class:`Knob`."""
        return self.low, self.high


def _tuples(value: Any) -> Any:
    """:return: the value with tuples in place of lists"""
    return tuple(_tuples(part) for part in value) if type(value) in (list, tuple) else value


@dataclass(frozen=True, init=False)
class Choice:
    """
    One of a few values; a perturbation goes to the one before or after it, so numbers should stand in their order.

    :param options: at least two numbers, strings, tuples, or ``None``; lists become tuples, which JSON and YAML cannot write
    :raises ValueError: if there are fewer than two
    """

    options: tuple[Any, ...]

    def __init__(self, options: Sequence[Any]):
        if isinstance(options, str) or not isinstance(options, Sequence) or len(options) < 2:
            raise ValueError(f"Choice must have a list of at least two values; got {options!r}")
        object.__setattr__(self, "options", _tuples(list(options)))

    def sample(self, rng: np.random.Generator) -> Any:
        """See :class:`Knob`."""
        return self.options[int(rng.integers(len(self.options)))]

    def perturb(self, value: Any, rng: np.random.Generator, factors: Sequence[float] = FACTORS) -> Any:
        """See :class:`Knob`; ``factors`` say only whether it may go up and down."""
        factor = factors[int(rng.integers(len(factors)))]
        step = (factor > 1) - (factor < 1)
        return self.options[int(np.clip(self.options.index(_tuples(value)) + step, 0, len(self.options) - 1))]

    def holds(self, value: Any) -> bool:
        """See :class:`Knob`."""
        return _tuples(value) in self.options

    def values(self) -> tuple[Any, ...]:
        """See :class:`Knob`."""
        return self.options


KNOBS: dict[str, Any] = {knob.__name__: knob for knob in (Uniform, LogUniform, IntUniform, Choice)}
"""The kinds of dimensions by name, as a YAML file or a command line names them."""
EXAMPLE = "{'learning_rate': LogUniform(1e-5, 1e-2)}, or the same as text: {'learning_rate': 'LogUniform(1e-5, 1e-2)'}"


def parse_knob(name: str, choice: Any) -> Knob:
    """
    :param name: of the hyper-parameter, for messages
    :param choice: a knob, its text such as ``"LogUniform(1e-5, 1e-2)"``, or a list of values, which is a :class:`Choice`
    :return: the knob
    :raises TypeError: if it is something else
    :raises ValueError: if the text is no knob, or its bounds are wrong

    >>> parse_knob("gamma", "Choice([0.98, 0.99])")
    Choice(options=(0.98, 0.99))
    """
    if all(hasattr(choice, method) for method in ("sample", "perturb", "holds", "values")):
        return choice
    if isinstance(choice, list | tuple):
        return Choice(choice)
    if not isinstance(choice, str):
        raise TypeError(f"search_space must map names to one of {sorted(KNOBS)}; got {name}={choice!r}. Example: {EXAMPLE}")
    try:
        call = ast.parse(choice.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.keywords:
            raise ValueError("it is no call of a name with values")
        kind = KNOBS[call.func.id]
        values = [ast.literal_eval(value) for value in call.args]
    except (SyntaxError, ValueError, KeyError) as error:
        raise ValueError(
            f"search_space must map names to one of {sorted(KNOBS)}; got {name}={choice!r} ({error}). Example: {EXAMPLE}"
        ) from error
    try:
        return kind(*values)
    except TypeError as error:
        raise ValueError(f"search_space must have values that fit its kind; got {name}={choice!r}: {error}") from error


def parse_space(choice: Any, algorithm: str) -> dict[str, Knob]:
    """
    :param choice: knobs by the names of hyper-parameters; or such mappings by the names of algorithms, of which that of the
        chosen one is taken
    :param algorithm: key of the members' class, empty for a class without one
    :return: the space, in the order of the names
    :raises TypeError: if it is no mapping
    :raises ValueError: if it is empty, or has no entry for the algorithm
    """
    if not isinstance(choice, Mapping):
        raise TypeError(f"search_space must be a dict of knobs by the names of arguments; got {choice!r}. Example: {EXAMPLE}")
    if choice and all(isinstance(part, Mapping) for part in choice.values()):
        if algorithm not in choice:
            raise ValueError(
                f"search_space must have an entry for the members' algorithm where it has one per algorithm; got entries for "
                f"{sorted(choice)} and algorithm={algorithm!r}"
            )
        choice = choice[algorithm]
    if not choice:
        raise ValueError(f"search_space must name at least one argument of the members; got {choice!r}. Example: {EXAMPLE}")
    return {name: parse_knob(name, choice[name]) for name in sorted(choice)}


def check_initial(space: Mapping[str, Knob], initial: Any, pop_size: int) -> None:
    """
    :param space: of the search
    :param initial: hyper-parameters with which members begin, one mapping each; ``None`` to draw all of them
    :param pop_size: number of members
    :raises TypeError: if it is no list of mappings
    :raises ValueError: if there are too many, or one has a name or value that is not in the space
    """
    if initial is None:
        return
    if not isinstance(initial, Sequence) or isinstance(initial, str) or not all(isinstance(p, Mapping) for p in initial):
        raise TypeError(f"initial_hyperparameters must be a list of dicts, one per member; got {initial!r}")
    if len(initial) > pop_size:
        raise ValueError(f"initial_hyperparameters must be at most pop_size={pop_size} dicts; got {len(initial)}")
    for values in initial:
        for name, value in values.items():
            if name not in space:
                raise ValueError(f"initial_hyperparameters must be among those of search_space, {sorted(space)}; got {name!r}")
            if not space[name].holds(value):
                raise ValueError(f"initial_hyperparameters must lie in search_space, {name}={space[name]}; got {value!r}")


def first_values(space: Mapping[str, Knob], initial: Any, number: int, rng: np.random.Generator) -> dict[str, Any]:
    """
    :param space: of the search
    :param initial: see :func:`check_initial`
    :param number: of a member
    :param rng: generator of the member
    :return: hyper-parameters with which it begins
    """
    drawn = {name: knob.sample(rng) for name, knob in space.items()}
    return drawn if initial is None or number >= len(initial) else own_values({**drawn, **initial[number]}, space)


def own_values(values: Mapping[str, Any], space: Mapping[str, Knob]) -> dict[str, Any]:
    """
    :param values: by name, perhaps from a file, where tuples may have become lists
    :param space: of the search
    :return: the same, with the tuple in place of a list where the space has a :class:`Choice` of tuples
    """
    return {name: _tuples(value) if isinstance(space.get(name), Choice) else value for name, value in values.items()}
