"""The border between populations (stacked flat vectors) and networks (modules)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ParameterLayout:
    """
    Where the tensors of one individual lie in its flat vector.

    :param names: one name per tensor
    :param shapes: one shape per tensor, in the order in which they are flattened
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, module: nn.Module) -> ParameterLayout:
        """Layout of ``module.named_parameters()``."""
        named = list(module.named_parameters())
        return cls(tuple(name for name, _ in named), tuple(tuple(p.shape) for _, p in named))

    @property
    def sizes(self) -> list[int]:
        """Number of entries of each tensor."""
        return [int(np.prod(shape, dtype=np.int64)) for shape in self.shapes]

    @property
    def n_params(self) -> int:
        """Length of the flat vector."""
        return sum(self.sizes)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each tensor lies in the flat vector."""
        stops = list(accumulate(self.sizes))
        return {n: slice(stop - size, stop) for n, stop, size in zip(self.names, stops, self.sizes, strict=True)}

    def split(self, candidates: np.ndarray | Tensor) -> dict[str, np.ndarray | Tensor]:
        """
        :param candidates: ``(n, n_params)``
        :return: views ``(n, *shape)`` by tensor name
        """
        n = candidates.shape[0]
        parts = zip(self.names, self.shapes, strict=True)
        return {name: candidates[:, self.slices[name]].reshape(n, *shape) for name, shape in parts}


def frozen_as_buffers(module: nn.Module) -> nn.Module:
    """
    Make constants of the parameters that a module's author has frozen, as those of a pretrained network.

    As buffers they keep their names in files, are copied with the module, and belong to no genome and no optimizer.

    :param module: changed in place
    :return: the module

    >>> layer = nn.Linear(1, 1).requires_grad_(False)
    >>> list(frozen_as_buffers(layer).parameters()), sorted(layer.state_dict())
    ([], ['bias', 'weight'])
    """
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None and not parameter.requires_grad:
                del part._parameters[name]
                part.register_buffer(name, parameter.data)
    return module


@torch.no_grad()
def write_parameters(vector: Tensor, module: nn.Module) -> None:
    """
    Copy a flat vector into a module (SB3's ``load_from_vector`` would make the parameters views of the vector).

    A module whose buffers follow from its parameters has a method ``parameters_changed``, which is called.

    :param vector: ``(n_params,)`` in the order of ``module.parameters()``
    :param module: the network that is overwritten in place
    :raises ValueError: if the vector has another length than the module has parameters
    """
    expected = sum(p.numel() for p in module.parameters())
    if vector.numel() != expected:
        raise ValueError(f"vector must hold the {expected} parameters of {type(module).__name__}; got {vector.numel()}")
    start = 0
    for parameter in module.parameters():
        stop = start + parameter.numel()
        parameter.copy_(vector[start:stop].view_as(parameter))
        start = stop
    changed: Callable[[], None] | None = getattr(module, "parameters_changed", None)
    if changed is not None:
        changed()


@torch.no_grad()
def read_parameters(module: nn.Module) -> Tensor:
    """
    :param module: any network
    :return: ``(n_params,)``, a copy of its parameters in the order of ``module.parameters()``
    """
    return torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()]).clone()


@torch.no_grad()
def copy_module(source: nn.Module, target: nn.Module) -> None:
    """Copy parameters and buffers of ``source`` into ``target``, a module of the same structure."""
    pairs: Iterable[tuple[Tensor, Tensor]] = zip(
        [*source.parameters(), *source.buffers()], [*target.parameters(), *target.buffers()], strict=True
    )
    for value, place in pairs:
        place.copy_(value)


@torch.no_grad()
def copy_buffers(source: nn.Module, target: nn.Module) -> None:
    """Copy running statistics of ``source`` into ``target``, a module of the same structure."""
    for place, value in zip(target.buffers(), source.buffers(), strict=True):
        place.copy_(value)


@torch.no_grad()
def soft_update(sources: Sequence[Tensor], targets: Sequence[Tensor], tau: float) -> None:
    """
    ``target <- (1 - tau) * target + tau * source`` for lists of tensors in a few fused calls.

    :param sources: online parameters
    :param targets: target parameters, overwritten in place
    :param tau: step, 0 keeps the targets and 1 copies the sources
    """
    if len(targets) > 0:
        torch._foreach_lerp_(list(targets), list(sources), tau)
