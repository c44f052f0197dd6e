"""Several evolution strategies of which one moves per generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from sb3_erl.core.parameters import write_parameters
from sb3_erl.evolution.base import Evolver
from sb3_erl.evolution.es import MirroredES
from sb3_erl.evolution.operators.origins import Origins


class MetaPopulation(Evolver):
    """
    Several strategies that share nothing but their noise table: each has its own mean, optimizer and network.

    Conti et al. (2018), https://arxiv.org/abs/1712.06560, section 3.1; authors' code: uber-research/deep-neuroevolution,
    ``es_distributed/nses.py``.

    :param members: one evolution strategy each
    :param networks: of the same members; their parameters are the means, and their observation statistics are kept here
    """

    takes_vectors = False
    shown = ("active",)
    active_member: Tensor
    returns: Tensor

    def __init__(self, members: Sequence[MirroredES], networks: Sequence[nn.Module]):
        super().__init__()  # candidates are rebuilt when they are needed, not stored
        self.members, self.networks = nn.ModuleList(members), nn.ModuleList(networks)
        self.register_buffer("active_member", torch.zeros((), dtype=torch.float64))  # whole; SB3 wants floats
        self.register_buffer("returns", torch.full((len(members),), -torch.inf, dtype=torch.float64))
        for index in range(len(members)):
            self.show(index)

    @property
    def active(self) -> MirroredES:
        """The member that moves in this generation, or moved in the last."""
        return self.members[int(self.active_member)]  # type: ignore[return-value]

    @property
    def network(self) -> nn.Module:
        """The active member's."""
        return self.networks[int(self.active_member)]

    @property
    def candidates(self) -> Tensor:  # type: ignore[override]
        """``(pop_size, n_params)``, those of the active member."""
        return self.active.candidates

    @property
    def pop_size(self) -> int:
        """Candidates per generation, all of them of one member."""
        return self.active.pop_size

    @property
    def n_params(self) -> int:
        """See :attr:`Evolver.n_params`."""
        return self.active.n_params

    def ask(self, rng: np.random.Generator) -> Tensor:
        """See :meth:`Evolver.ask`; candidates of the active member."""
        return self.active.ask(rng)

    def tell(self, candidates: Tensor, fitness: np.ndarray, rng: np.random.Generator) -> None:
        """See :meth:`Evolver.tell`; moves the active member and its network."""
        self.active.tell(candidates, fitness, rng)
        self.show(int(self.active_member))

    def best(self) -> Tensor | None:
        """See :meth:`Evolver.best`; of the active member's candidates."""
        return self.active.best()

    def center(self) -> Tensor:
        """See :meth:`Evolver.center`; the active member's mean."""
        return self.active.center()

    def inject(self, vectors: Tensor, slots: Sequence[int]) -> NoReturn:
        """
        Not available, see :meth:`MirroredES.inject`.

        :raises ValueError: always
        """
        self.active.inject(vectors, slots)

    def origins(self) -> Origins:
        """See :meth:`Evolver.origins`; those of the active member's candidates."""
        return self.active.origins()

    def metrics(self) -> dict[str, float]:
        """See :meth:`Evolver.metrics`; those of the active member, and its number."""
        return {**self.active.metrics(), "member": float(self.active_member)}

    def activate(self, member: int) -> None:
        """
        :param member: index of the member that moves next, from 0
        """
        self.active_member.fill_(member)

    def show(self, member: int) -> None:
        """
        Write a member's mean into its network, after it has moved.

        :param member: from 0
        """
        write_parameters(self.members[member].mean, self.networks[member])  # type: ignore[arg-type]
