"""
Acting for many candidates at once, with per-row arithmetic.

``numpy.matmul`` on stacked matrices runs one matrix-vector product per row, so a row's action does not depend on how
many candidates run side by side, and one call per layer serves them all. For one or a few candidates this is also
several times faster than a torch forward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from torch import nn

from sb3_erl.core.observations import take
from sb3_erl.core.parameters import ParameterLayout, copy_buffers, write_parameters
from sb3_erl.policies.rollout_layers import RolloutLayers, layers_of
from sb3_erl.rollouts import single_row
from sb3_erl.rollouts.jobs import PopulationActor
from sb3_erl.rollouts.numpy_layers import Layer, Stack, function_of, single_row_layer, supported
from sb3_erl.rollouts.single_row import SingleRowActor


@runtime_checkable
class SingleRowActing(PopulationActor, Protocol):
    """A population actor that can act faster for one candidate than for several."""

    def single_row(self, candidate: int) -> SingleRowActor | None:
        """
        :param candidate: number of the candidate
        :return: acts for this candidate, with the same result as a call but faster; ``None`` if there is no faster way
        """


def single_row_actor(actor: PopulationActor, candidate: int) -> SingleRowActor | None:
    """
    :param actor: acts for several candidates
    :param candidate: one of them
    :return: see :meth:`SingleRowActing.single_row`
    """
    return actor.single_row(candidate) if isinstance(actor, SingleRowActing) else None


class NumpyActor:
    """
    Plain networks (linear, norm, activation, choice of an action) of many candidates, for flat observations.

    :param modules: the layers in order; their own parameters are not read
    :param stacks: for each module with parameters its (weight, bias) or (scale, shift), each with a leading axis of
        length ``n_candidates``, or 1 where all candidates share it
    :raises ValueError: if a module is of an unknown kind
    """

    def __init__(self, modules: Sequence[nn.Module], stacks: Sequence[Stack]):
        if not supported(modules):
            raise ValueError(f"modules must be linear layers, norms and plain activations; got {list(modules)}")
        remaining = iter(stacks)
        self._layers: list[Layer] = [
            (function_of(module), next(remaining) if has_tensors(module) else ()) for module in modules
        ]
        self._gathered: list[Stack] = []
        self._candidates: tuple[int, ...] | None = None

    @classmethod
    def of_layers(cls, layers: Sequence[Layer]) -> NumpyActor:
        """
        :param layers: functions and their tensors, in order
        :return: an actor with these layers
        """
        actor = cls([], [])
        actor._layers = list(layers)
        return actor

    def __getstate__(self) -> dict[str, Any]:
        return {"_layers": self._layers, "_gathered": [], "_candidates": None}

    def __call__(self, observations: Any, candidates: Sequence[int]) -> np.ndarray:
        """See :class:`~sb3_erl.rollouts.jobs.PopulationActor`."""
        assert not isinstance(observations, dict), "networks with Dict observations act as modules"
        candidates = tuple(candidates)
        if candidates != self._candidates:  # which candidates act changes only when a job ends
            first, last = candidates[0], candidates[-1]
            is_range = candidates == tuple(range(first, last + 1))
            index: Any = slice(first, last + 1) if is_range else list(candidates)  # a slice copies nothing
            self._gathered = [tuple(a if len(a) == 1 else a[index] for a in stack) for _, stack in self._layers]
            self._candidates = candidates
        x = np.asarray(observations, dtype=np.float32).reshape(len(candidates), -1)
        for (function, _), stack in zip(self._layers, self._gathered, strict=True):
            x = function(x, *stack)
        return x

    def single_row(self, candidate: int) -> SingleRowActor:
        """See :meth:`SingleRowActing.single_row`."""
        rows = [(function, tuple(a[0 if len(a) == 1 else candidate] for a in stack)) for function, stack in self._layers]
        return single_row.in_sequence([single_row_layer(function, row) for function, row in rows])


class EmbeddingActor:
    """
    Actors of many candidates that read an embedding of the observation after their first layers.

    :param first: observation to the output of the first layers
    :param embedding: observation to embedding
    :param rest: both outputs, side by side, to the action
    """

    def __init__(self, first: NumpyActor, embedding: NumpyActor, rest: NumpyActor):
        self._first, self._embedding, self._rest = first, embedding, rest

    def __call__(self, observations: Any, candidates: Sequence[int]) -> np.ndarray:
        """See :class:`~sb3_erl.rollouts.jobs.PopulationActor`."""
        parts = [part(observations, candidates) for part in (self._first, self._embedding)]
        return self._rest(np.concatenate(parts, axis=1), candidates)

    def single_row(self, candidate: int) -> SingleRowActor:
        """See :meth:`SingleRowActing.single_row`."""
        return single_row.with_embedding(*(p.single_row(candidate) for p in (self._first, self._embedding, self._rest)))


class JointActor:
    """
    Candidates of several groups in one phase, each group with an actor of its own.

    :param parts: one actor per group
    :param members: for each candidate the number of its group, and its number within the group
    """

    def __init__(self, parts: Sequence[PopulationActor], members: Sequence[tuple[int, int]]):
        self._parts, self._members = parts, members
        self._candidates: tuple[int, ...] | None = None
        self._groups: list[tuple[int, list[int], tuple[int, ...]]] = []
        """Group, its rows, and the numbers of the candidates on these rows."""
        self._order = np.zeros(0, dtype=np.int64)
        """Where each row's action is among those of the groups, one group after the other."""

    def __call__(self, observations: Any, candidates: Sequence[int]) -> np.ndarray:
        """See :class:`~sb3_erl.rollouts.jobs.PopulationActor`."""
        candidates = tuple(candidates)
        if candidates != self._candidates:  # which candidates act changes only when a job ends
            self._group(candidates)
        answers = [self._parts[group](take(observations, rows), numbers) for group, rows, numbers in self._groups]
        return np.concatenate(answers)[self._order]

    def _group(self, candidates: tuple[int, ...]) -> None:
        rows_of: dict[int, list[int]] = {}
        for row, candidate in enumerate(candidates):
            rows_of.setdefault(self._members[candidate][0], []).append(row)
        numbers = [self._members[candidate][1] for candidate in candidates]
        self._groups = [(group, rows, tuple(numbers[row] for row in rows)) for group, rows in rows_of.items()]
        self._order = np.argsort([row for rows in rows_of.values() for row in rows])
        self._candidates = candidates

    def single_row(self, candidate: int) -> SingleRowActor | None:
        """See :meth:`SingleRowActing.single_row`."""
        part, number = self._members[candidate]
        return single_row_actor(self._parts[part], number)


def has_tensors(module: nn.Module) -> bool:
    """Whether a layer has parameters or buffers."""
    return any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False)))


def tensors_of(module: nn.Module) -> Stack:
    """Parameters and buffers of one layer, each with a leading axis of length 1: the same for all candidates."""
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return tuple(tensor.detach().cpu().numpy()[None] for tensor in tensors)


def on_cpu(network: BasePolicy) -> BasePolicy:
    """The network itself if it is on the CPU, otherwise a copy there."""
    return network if network.device.type == "cpu" else copy.deepcopy(network).cpu()


class ModuleActor:
    """
    Any policy network, one copy per candidate; for observations, extractors and layers that :class:`NumpyActor` cannot run.

    :param networks: one network per candidate
    """

    def __init__(self, networks: Sequence[BasePolicy] | PooledNetworks):
        self._networks = networks
        for network in () if isinstance(networks, PooledNetworks) else networks:
            network.set_training_mode(False)

    def __getstate__(self) -> dict[str, Any]:  # workers act on the CPU
        networks = self._networks
        return {"_networks": networks if isinstance(networks, PooledNetworks) else [on_cpu(network) for network in networks]}

    @torch.no_grad()
    def __call__(self, observations: Any, candidates: Sequence[int]) -> np.ndarray:
        """See :class:`~sb3_erl.rollouts.jobs.PopulationActor`."""
        actions = []
        if isinstance(self._networks, PooledNetworks):
            self._networks.load(candidates)
        for row, candidate in enumerate(candidates):
            network = self._networks[candidate]
            tensor, _ = network.obs_to_tensor(take(observations, row))
            actions.append(network._predict(tensor, deterministic=True).cpu().numpy().reshape(1, -1))
        return np.concatenate(actions).astype(np.float32, copy=False)


class NetworkPool:
    """
    Networks that are kept between generations and overwritten with the parameters of the candidates that act.

    :param make: makes one network
    """

    def __init__(self, make: Callable[[], BasePolicy]):
        self.make = make
        self.networks: list[BasePolicy] = []
        self.loaded: list[tuple[object, int] | None] = []
        """For each network whose parameters it has: a phase and the candidate in it."""

    def filled(self, vectors: torch.Tensor, buffers_of: nn.Module | None = None) -> PooledNetworks:
        """
        :param vectors: ``(n, n_params)``, not to be written while the candidates act
        :param buffers_of: a network whose buffers, such as running statistics, are copied into all others
        :return: a network with these parameters for each candidate that acts
        """
        return PooledNetworks(self, vectors, buffers_of)


class PooledNetworks:
    """
    Networks of a pool for the candidates of one phase; see :meth:`NetworkPool.filled`.

    A candidate gets a network when it begins to act and keeps it while it acts, so that what follows from parameters alone
    (the moments of a reference batch) is computed once, and memory is that of as many networks as act at the same time.
    """

    def __init__(self, pool: NetworkPool, vectors: torch.Tensor, buffers_of: nn.Module | None):
        self._pool, self._vectors, self._buffers_of = pool, vectors, buffers_of
        self._phase = object()  # not self, which would keep the vectors in memory
        self._places: dict[int, int] = {}

    def load(self, candidates: Sequence[int]) -> None:
        """Write the parameters of these candidates into a network each; networks of other candidates become free."""
        pool, wanted = self._pool, dict.fromkeys(candidates)
        self._places = {c: p for c, p in self._places.items() if c in wanted and pool.loaded[p] == (self._phase, c)}
        new = [candidate for candidate in wanted if candidate not in self._places]
        free = [place for place in range(len(pool.networks)) if place not in self._places.values()] if new else []
        for candidate in new:
            if not free:
                free.append(len(pool.networks))
                pool.networks.append(pool.make())
                pool.loaded.append(None)
            place = free.pop(0)
            network = pool.networks[place]
            if self._buffers_of is not None:
                copy_buffers(self._buffers_of, network)
            write_parameters(self._vectors[candidate], network)  # after the buffers, which may follow from parameters
            network.set_training_mode(False)
            self._places[candidate], pool.loaded[place] = place, (self._phase, candidate)

    def __reduce__(self) -> tuple[Any, ...]:
        network = self._pool.make()
        if self._buffers_of is not None:
            copy_buffers(self._buffers_of, network)
        return _pooled_networks, (on_cpu(network), self._vectors.cpu())

    def __getitem__(self, candidate: int) -> BasePolicy:
        place = self._places.get(candidate)
        if place is None or self._pool.loaded[place] != (self._phase, candidate):
            self.load([candidate])
        return self._pool.networks[self._places[candidate]]


def _pooled_networks(network: BasePolicy, vectors: torch.Tensor) -> PooledNetworks:
    """Networks like this one, in a process that unpickles them."""
    return PooledNetworks(NetworkPool(lambda: copy.deepcopy(network)), vectors, network)


def numpy_population(actor: BasePolicy, stack_of: Callable[[nn.Module], Stack]) -> PopulationActor | None:
    """
    :param actor: a network of the candidates' shape
    :param stack_of: the candidates' tensors of one layer of the actor that has parameters, one row each or one row for all;
        buffers are the same for all candidates
    :return: acts for all candidates; ``None`` if the network must run as a module (see
        :func:`~sb3_erl.policies.rollout_layers.layers_of`) or has layers that NumPy code does not know
    """

    def network(modules: Sequence[nn.Module]) -> NumpyActor:
        layers = [m for m in modules if has_tensors(m)]
        own = [any(True for _ in m.parameters(recurse=False)) for m in layers]
        return NumpyActor(modules, [(stack_of if mine else tensors_of)(m) for m, mine in zip(layers, own, strict=True)])

    layers = layers_of(actor)
    if layers is None:
        return None
    parts = [layers.first, layers.embedding, layers.rest] if isinstance(layers, RolloutLayers) else [layers]
    if not all(supported(part) for part in parts):
        return None
    return EmbeddingActor(*map(network, parts)) if isinstance(layers, RolloutLayers) else network(layers)


def plain_layers(actor: BasePolicy) -> list[tuple[Any, tuple[str, ...] | Stack]] | None:
    """
    :param actor: a network of the candidates' shape
    :return: for each of its layers what it does and the names of its parameters, or the tensors that all candidates share;
        ``None`` if :class:`NumpyActor` cannot run it as a plain sequence
    """
    modules = layers_of(actor)
    if not isinstance(modules, list) or not supported(modules):
        return None
    name_of = {id(parameter): name for name, parameter in actor.named_parameters()}
    layers: list[tuple[Any, tuple[str, ...] | Stack]] = []
    for module in modules:
        names = tuple(name_of[id(parameter)] for parameter in module.parameters(recurse=False))
        layers.append((function_of(module), names or tensors_of(module)))
    return layers


def candidates_stack(actor: nn.Module, vectors: np.ndarray) -> Callable[[nn.Module], Stack]:
    """
    :param actor: the network whose parameters the vectors hold
    :param vectors: ``(n, n_params)``
    :return: gives for a layer of the actor its tensors with ``n`` rows
    """
    name_of = {id(parameter): name for name, parameter in actor.named_parameters()}
    tensors = ParameterLayout.of(actor).split(vectors)
    return lambda module: tuple(np.ascontiguousarray(tensors[name_of[id(p)]]) for p in module.parameters())
