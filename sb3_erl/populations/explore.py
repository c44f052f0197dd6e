"""How a member that took over another one's weights changes the hyper-parameters that came with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sb3_erl.core.checks import check_range
from sb3_erl.populations.space import FACTORS, Knob


class Explore(Protocol):
    """New hyper-parameters of those of a parent."""

    def __call__(self, values: Mapping[str, Any], space: Mapping[str, Knob], rng: np.random.Generator) -> dict[str, Any]:
        """
        :param values: of the parent, by name
        :param space: the knob of each of them
        :param rng: generator of this generation
        :return: new values, of the same names
        """


@dataclass(frozen=True)
class Perturb:
    """
    Multiply each hyper-parameter by a factor that is drawn for it, inside its bounds.

    Jaderberg et al. (2017), https://arxiv.org/abs/1711.09846, section 4 (perturb). Differences: values stay inside the
    bounds of the search space; integers change by at least 1, choices go to a neighbor, and 0 is drawn again.

    :param factors: positive numbers, of which one is drawn each time
    :param resample_prob: probability of drawing a value from the search space in place of a perturbation
    :raises ValueError: if a factor is not positive or the probability out of range
    """

    factors: Sequence[float] = FACTORS
    resample_prob: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.factors, str) or len(self.factors) == 0:
            raise ValueError(f"factors must be a list of positive numbers; got {self.factors!r}")
        for factor in self.factors:
            check_range("factors", factor, 0, open_low=True)
        check_range("resample_prob", self.resample_prob, 0, 1)

    def __call__(self, values: Mapping[str, Any], space: Mapping[str, Knob], rng: np.random.Generator) -> dict[str, Any]:
        """See :class:`Explore`."""
        new = {}
        for name, value in values.items():
            is_drawn = self.resample_prob > 0 and rng.random() < self.resample_prob
            new[name] = space[name].sample(rng) if is_drawn else space[name].perturb(value, rng, self.factors)
        return new


@dataclass(frozen=True)
class Resample:
    """
    Draw each hyper-parameter again from the search space, with some probability.

    Jaderberg et al. (2017), https://arxiv.org/abs/1711.09846, section 4 (resample).

    :param prob: for each hyper-parameter
    :raises ValueError: if it is out of range
    """

    prob: float = 1.0

    def __post_init__(self) -> None:
        check_range("prob", self.prob, 0, 1)

    def __call__(self, values: Mapping[str, Any], space: Mapping[str, Knob], rng: np.random.Generator) -> dict[str, Any]:
        """See :class:`Explore`."""
        return {name: space[name].sample(rng) if rng.random() < self.prob else value for name, value in values.items()}


class NoExplore:
    """Hyper-parameters are taken over as they are."""

    def __call__(self, values: Mapping[str, Any], space: Mapping[str, Knob], rng: np.random.Generator) -> dict[str, Any]:
        """See :class:`Explore`."""
        return dict(values)
