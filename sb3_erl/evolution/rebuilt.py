"""What evolvers have in common that keep the seeds of their candidates instead of parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

_N_COMPARED = 8
"""In about how many columns told candidates are compared with those that were asked for."""


class AskedCandidates:
    """
    Notices candidates that were changed between ``ask`` and ``tell``, which an evolver that rebuilds them cannot use.

    They are compared in about 8 evenly spaced columns.

    :param candidates: ``(n, n_params)`` as they were asked for
    :param seed: decides which columns, so that they differ from generation to generation without a draw from the generator
        of the run
    """

    def __init__(self, candidates: Tensor, seed: int):
        step = max(1, candidates.shape[1] // _N_COMPARED)
        first = int(np.random.default_rng(seed).integers(step))
        self._columns = slice(first, None, step)
        self._values = candidates[:, self._columns].clone()

    def add(self, candidates: Tensor) -> None:
        """
        :param candidates: ``(n, n_params)``, further ones of the same generation, which come after the earlier ones
        """
        self._values = torch.cat([self._values, candidates[:, self._columns]])

    def check(self, candidates: Tensor) -> None:
        """
        :param candidates: ``(n, n_params)``, all that were asked for or the first of them
        :raises ValueError: if they are not those that were asked for
        """
        told, asked = candidates[:, self._columns].to(self._values), self._values[: len(candidates)]
        if torch.equal(told, asked):
            return
        changed = ((told != asked) & ~(told.isnan() & asked.isnan())).any(dim=1).nonzero().ravel().tolist()
        if changed:
            raise ValueError(
                "candidates must be those from ask(), because only their perturbations are kept; got others in the rows "
                f"{changed[:10]}{'...' if len(changed) > 10 else ''}. Choose an evolver that refits on what it is told, "
                "such as 'cem', to change candidates between ask() and tell()"
            )


def check_vectors(evolver: Any, is_needed: bool, argument: str) -> None:
    """
    :param evolver: the evolver
    :param is_needed: whether individuals from outside come into the population
    :param argument: what brings them, for the message
    :raises ValueError: if the evolver has no place for them
    """
    if is_needed and not evolver.takes_vectors:
        raise ValueError(
            f"{argument} needs an evolver that takes individuals from outside, such as 'ga' or 'cem'; got "
            f"{type(evolver).__name__}. Choose another one, or exchange='none' where the class has it"
        )


def refuse_injection(evolver: object, individuals: str, slots: Sequence[int]) -> NoReturn:
    """
    :param evolver: that has no place for vectors from outside
    :param individuals: what its individuals are, for the message
    :param slots: where they were to go
    :raises ValueError: always
    """
    raise ValueError(
        f"slots must be empty with {type(evolver).__name__}, whose {individuals} and not free vectors; got {list(slots)}. "
        "Choose another evolver, such as 'ga' or 'cem', or an exchange that injects nothing"
    )


def built(candidates: Any) -> Any:
    """:return: the tensor, if what is given only stands for candidates; otherwise what is given"""
    make = getattr(candidates, "built", None)
    return candidates if make is None else make()


class BuiltWhenRead:
    """
    The field ``candidates`` of a dataclass, ``(n, n_params)`` or ``None``; what stands for them makes them when it is read.
    """

    _name = "candidates"

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            raise AttributeError(self._name)  # so the field has no default of its own
        return built(vars(instance)[self._name])

    def __set__(self, instance: Any, value: Any) -> None:
        vars(instance)[self._name] = None if value is self else value


CANDIDATES = BuiltWhenRead()
"""For the class body of the dataclass; a field that is given this default is ``None`` by default."""
