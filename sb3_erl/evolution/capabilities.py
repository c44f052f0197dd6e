"""Abilities that some evolvers have beyond ``ask`` and ``tell``, and the check that an evolver has one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from sb3_erl.evolution.base import Evolver


class Migration(Protocol):
    """The population can take in individuals from outside that were not evaluated with it."""

    def tell(self, candidates: Tensor, fitness: np.ndarray, rng: np.random.Generator, migrants: Tensor | None = None) -> None:
        """See :meth:`~sb3_erl.evolution.base.Evolver.tell`; ``migrants`` ``(n, n_params)`` join the next population."""


class ImportanceMixing(Protocol):
    """The search distribution is a diagonal Gaussian, so that old samples can be reused as draws of the new one."""

    mean: Tensor
    """``(n_params,)``"""
    variance: Tensor
    """``(n_params,)``"""

    def draw(self, n: int, rng: np.random.Generator) -> Tensor:
        """:return: ``(n, n_params)`` independent draws"""


class MirroredPairs(Protocol):
    """Candidates 2k and 2k + 1 are mirrored at the center, and are rebuilt from a few numbers."""

    source: Any
    """Rebuilds the candidates one at a time, here or in another process."""

    def ask_more(self, rng: np.random.Generator, n_pairs: int) -> Tensor:
        """:return: ``(2 * n_pairs, n_params)``, further candidates of the same generation"""

    def update(self, shaped: np.ndarray) -> None:
        """Move the center by weights ``(n,)`` of the candidates."""


def check_capability(evolver: Evolver, capability: type[Any], argument: str) -> None:
    """
    Refuse an evolver that lacks an ability which a setting needs.

    :param evolver: the evolver
    :param capability: one of the protocols of this module
    :param argument: the setting that needs it, for the message, such as ``"importance_mixing=True"``
    :raises ValueError: if members of the protocol, or parameters of its methods, are missing
    """
    members = {name: vars(capability).get(name) for name in (*vars(capability), *inspect.get_annotations(capability))}
    missing, known = [], set(dir(evolver))
    for name, method in members.items():
        if name.startswith("_"):
            continue
        if name not in known:
            missing.append(f"{name}()" if inspect.isfunction(method) else name)
        elif inspect.isfunction(method):
            lacking = _parameters(method) - _parameters(getattr(type(evolver), name))
            missing += [f"{name}(..., {parameter})" for parameter in sorted(lacking)]
    if missing:
        raise ValueError(
            f"{argument} needs an evolver with {', '.join(missing)} (sb3_erl.evolution.capabilities.{capability.__name__}); "
            f"got {type(evolver).__name__}. Add them to it, choose another evolver, or leave out "
            f"{argument.partition('=')[0]}"
        )


def _parameters(method: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(method).parameters)
