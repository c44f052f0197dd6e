"""
Acting for many candidates at once, with per-row arithmetic.

``numpy.matmul`` on stacked matrices runs one matrix-vector product per row, so a row's action does not depend on how
many candidates run side by side, and one call per layer serves them all. For one or a few candidates this is also
several times faster than a torch forward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from sb3_erl.core.parameters import ParameterLayout, copy_buffers, write_parameters
from sb3_erl.rollouts import single_row
from sb3_erl.rollouts.jobs import PopulationActor
from sb3_erl.rollouts.numpy_layers import Layer, Stack, function_of, layer_alone, supported
from sb3_erl.rollouts.single_row import ActAlone


class NumpyActor:
    """
    Plain networks (linear, norm, activation) of many candidates; the last activation bounds the action.

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
        :param layers: in order
        :return: acts by them
        """
        actor = cls([], [])
        actor._layers = list(layers)
        return actor

    def __getstate__(self) -> dict[str, Any]:
        return {"_layers": self._layers, "_gathered": [], "_candidates": None}

    def __call__(self, observations: np.ndarray, candidates: Sequence[int]) -> np.ndarray:
        """See :class:`~sb3_erl.rollouts.jobs.PopulationActor`."""
        candidates = tuple(candidates)
        if candidates != self._candidates:  # slots change hands only when a job ends
            first, last = candidates[0], candidates[-1]
            in_a_row = candidates == tuple(range(first, last + 1))
            index: Any = slice(first, last + 1) if in_a_row else list(candidates)  # a slice copies nothing
            self._gathered = [tuple(a if len(a) == 1 else a[index] for a in stack) for _, stack in self._layers]
            self._candidates = candidates
        x = np.asarray(observations, dtype=np.float32).reshape(len(candidates), -1)
        for (function, _), stack in zip(self._layers, self._gathered, strict=True):
            x = function(x, *stack)
        return x

    def alone(self, candidate: int) -> ActAlone:
        """
        :param candidate: who acts, alone
        :return: acts with the same result as a call, but faster
        """
        rows = [(function, tuple(a[0 if len(a) == 1 else candidate] for a in stack)) for function, stack in self._layers]
        return single_row.in_sequence([layer_alone(function, row) for function, row in rows])


class EmbeddingActor:
    """
    Actors of many candidates that read a state embedding after their first layer.

    :param encoder: observation to embedding, shared by all
    :param first: observation to the output of the first layer
    :param rest: that output and the embedding to the action
    """

    def __init__(self, encoder: NumpyActor, first: NumpyActor, rest: NumpyActor):
        self._encoder, self._first, self._rest = encoder, first, rest

    def __call__(self, observations: np.ndarray, candidates: Sequence[int]) -> np.ndarray:
        """See :class:`~sb3_erl.rollouts.jobs.PopulationActor`."""
        parts = [part(observations, candidates) for part in (self._first, self._encoder)]
        return self._rest(np.concatenate(parts, axis=1), candidates)

    def alone(self, candidate: int) -> ActAlone:
        """See :meth:`NumpyActor.alone`."""
        return single_row.side_by_side(*(part.alone(candidate) for part in (self._first, self._encoder, self._rest)))


class JointActor:
    """
    Candidates of several kinds in one phase, each group acting in its own way.

    :param parts: acts for the candidates of one group
    :param homes: for each candidate the number of its group and its number in it
    """

    def __init__(self, parts: Sequence[PopulationActor], homes: Sequence[tuple[int, int]]):
        self._parts, self._homes = parts, homes

    def __call__(self, observations: np.ndarray, candidates: Sequence[int]) -> np.ndarray:
        """See :class:`~sb3_erl.rollouts.jobs.PopulationActor`."""
        homes = [self._homes[candidate] for candidate in candidates]
        actions: dict[int, np.ndarray] = {}
        for part in {number for number, _ in homes}:
            rows = [row for row, (number, _) in enumerate(homes) if number == part]
            answers = self._parts[part](observations[rows], [homes[row][1] for row in rows])
            actions |= dict(zip(rows, answers, strict=True))
        return np.stack([actions[row] for row in range(len(homes))])

    def alone(self, candidate: int) -> ActAlone | None:
        """See :meth:`NumpyActor.alone`; ``None`` if there is no faster way."""
        part, number = self._homes[candidate]
        return alone_or_none(self._parts[part], number)


def alone_or_none(actor: PopulationActor, candidate: int) -> ActAlone | None:
    """
    :param actor: acts for several candidates
    :param candidate: one of them
    :return: acts for this one alone with the same result, but faster; ``None`` if there is no such way
    """
    make: Callable[[int], ActAlone | None] | None = getattr(actor, "alone", None)
    return None if make is None else make(candidate)


def has_tensors(module: nn.Module) -> bool:
    """Whether a layer has parameters, or numbers in their place."""
    return any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False)))


def tensors_of(module: nn.Module) -> Stack:
    """Parameters of one layer, or what :func:`~sb3_erl.policies.layers.constant` made of them, as a stack of one row."""
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return tuple(tensor.detach().cpu().numpy()[None] for tensor in tensors)


def on_cpu(network: BasePolicy) -> BasePolicy:
    """The network itself if it is on the CPU, otherwise a copy there."""
    return network if network.device.type == "cpu" else copy.deepcopy(network).cpu()


class ModuleActor:
    """
    Any policy network, one copy per candidate; for extractors and layers that :class:`NumpyActor` does not know.

    :param networks: one network per candidate
    """

    def __init__(self, networks: Sequence[BasePolicy] | LentNetworks):
        self._networks = networks
        for network in () if isinstance(networks, LentNetworks) else networks:
            network.set_training_mode(False)

    def __getstate__(self) -> dict[str, Any]:  # workers act on the CPU
        networks = self._networks
        return {"_networks": networks if isinstance(networks, LentNetworks) else [on_cpu(network) for network in networks]}

    @torch.no_grad()
    def __call__(self, observations: np.ndarray, candidates: Sequence[int]) -> np.ndarray:
        """See :class:`~sb3_erl.rollouts.jobs.PopulationActor`."""
        rows = []
        if isinstance(self._networks, LentNetworks):
            self._networks.hold(candidates)
        for observation, candidate in zip(observations, candidates, strict=True):
            network = self._networks[candidate]
            tensor, _ = network.obs_to_tensor(np.asarray(observation))
            rows.append(network._predict(tensor, deterministic=True).cpu().numpy().reshape(1, -1))
        return np.concatenate(rows)


class NetworkPool:
    """
    Networks that are kept between generations and overwritten with the vectors of those who act.

    :param make: makes one network
    """

    def __init__(self, make: Callable[[], BasePolicy]):
        self.make = make
        self.networks: list[BasePolicy] = []
        self.holders: list[tuple[object, int] | None] = []
        """For each network whose parameters it has: a phase and the candidate in it."""

    def filled(self, vectors: torch.Tensor, buffers_of: nn.Module | None = None) -> LentNetworks:
        """
        :param vectors: ``(n, n_params)``, not to be written while they act
        :param buffers_of: a network whose running statistics all take over
        :return: a network with these parameters for each of those who act at the same time
        """
        return LentNetworks(self, vectors, buffers_of)


class LentNetworks:
    """
    Networks of a pool for the candidates of one phase; see :meth:`NetworkPool.filled`.

    A candidate is given a network when it begins to act and keeps it while it acts, so that what follows from parameters
    alone (the moments of a reference batch) is worked out once, and memory is that of as many networks as act at a time.
    """

    def __init__(self, pool: NetworkPool, vectors: torch.Tensor, buffers_of: nn.Module | None):
        self._pool, self._vectors, self._buffers_of = pool, vectors, buffers_of
        self._phase = object()  # not self, which would keep the vectors alive
        self._places: dict[int, int] = {}

    def hold(self, candidates: Sequence[int]) -> None:
        """Give these candidates, and no others, a network each."""
        pool, wanted = self._pool, dict.fromkeys(candidates)
        self._places = {c: p for c, p in self._places.items() if c in wanted and pool.holders[p] == (self._phase, c)}
        new = [candidate for candidate in wanted if candidate not in self._places]
        free = [place for place in range(len(pool.networks)) if place not in self._places.values()] if new else []
        for candidate in new:
            if not free:
                free.append(len(pool.networks))
                pool.networks.append(pool.make())
                pool.holders.append(None)
            place = free.pop(0)
            network = pool.networks[place]
            if self._buffers_of is not None:
                copy_buffers(self._buffers_of, network)
            write_parameters(self._vectors[candidate], network)  # after the buffers, which may follow from parameters
            network.set_training_mode(False)
            self._places[candidate], pool.holders[place] = place, (self._phase, candidate)

    def __reduce__(self) -> tuple[Any, ...]:
        network = self._pool.make()
        if self._buffers_of is not None:
            copy_buffers(self._buffers_of, network)
        return _lent_elsewhere, (on_cpu(network), self._vectors.cpu())

    def __getitem__(self, candidate: int) -> BasePolicy:
        place = self._places.get(candidate)
        if place is None or self._pool.holders[place] != (self._phase, candidate):
            self.hold([candidate])
        return self._pool.networks[self._places[candidate]]


def _lent_elsewhere(network: BasePolicy, vectors: torch.Tensor) -> LentNetworks:
    """In a worker: networks like this one."""
    return LentNetworks(NetworkPool(lambda: copy.deepcopy(network)), vectors, network)


def numpy_population(actor: BasePolicy, stack_of: Callable[[nn.Module], Stack]) -> PopulationActor | None:
    """
    :param actor: a deterministic actor, or a stochastic one whose mean is squashed by tanh
    :param stack_of: the candidates' tensors of one layer of the actor, one row each or one row for all
    :return: acts for all candidates; ``None`` if the actor has parts that NumPy code does not know
    """

    def network(modules: Sequence[nn.Module], stack_of: Callable[[nn.Module], Stack] = stack_of) -> NumpyActor:
        layers = [m for m in modules if has_tensors(m)]
        own = [any(True for _ in m.parameters(recurse=False)) for m in layers]  # the others have one row for all
        return NumpyActor(modules, [(stack_of if mine else tensors_of)(m) for m, mine in zip(layers, own, strict=True)])

    if not reads_vectors(actor):
        return None
    if hasattr(actor, "zs_dim"):  # SALE: the encoder is the same for everybody
        encoder, first = list(actor.encoder), list(actor.first)  # type: ignore[arg-type]
        rest = [*actor.hidden, actor.head, nn.Tanh()]  # type: ignore[misc]
        if not supported([*encoder, *first, *rest]):
            return None
        return EmbeddingActor(network(encoder, tensors_of), network(first), network(rest))
    modules = plain_modules(actor)
    return None if modules is None else network(modules)


def plain_layers(actor: BasePolicy) -> list[tuple[Any, tuple[str, ...] | Stack]] | None:
    """
    :param actor: a deterministic actor with flat observations
    :return: for each of its layers what it does and the names of its parameters, or the tensors that all candidates share;
        ``None`` if :class:`NumpyActor` cannot run it as a plain sequence
    """
    if not reads_vectors(actor) or hasattr(actor, "zs_dim"):
        return None
    modules = plain_modules(actor)
    if modules is None:
        return None
    name_of = {id(parameter): name for name, parameter in actor.named_parameters()}
    layers: list[tuple[Any, tuple[str, ...] | Stack]] = []
    for module in modules:
        names = tuple(name_of[id(parameter)] for parameter in module.parameters(recurse=False))
        layers.append((function_of(module), names or tensors_of(module)))
    return layers


def reads_vectors(actor: BasePolicy) -> bool:
    """Whether an actor takes flat observations as they are."""
    space = actor.observation_space
    flat = isinstance(actor.features_extractor, FlattenExtractor) and isinstance(space, spaces.Box)
    return flat and not is_image_space(space, check_channels=False)


def plain_modules(actor: BasePolicy) -> list[nn.Module] | None:
    """
    :param actor: a deterministic actor, or a stochastic one whose mean is squashed by tanh
    :return: its layers from flat observation to action if :class:`NumpyActor` can run them, else ``None``
    """
    modules: list[nn.Module] = []
    output = getattr(actor, "mu", None)
    if hasattr(actor, "trunk"):  # shared encoder and head
        modules = [*actor.trunk, actor.head, nn.Tanh()]  # type: ignore[list-item, misc]
    elif isinstance(output, nn.Linear) and not getattr(actor, "use_sde", False):  # the mean of SAC and its relatives
        modules = [*actor.latent_pi, output, nn.Tanh()]  # type: ignore[misc]
    elif isinstance(output, nn.Sequential):
        modules = list(output)
    ends_well = bool(modules) and (isinstance(modules[-1], nn.Tanh) or not actor.squash_output)
    return modules if ends_well and supported(modules) else None


def candidates_stack(actor: nn.Module, vectors: np.ndarray) -> Callable[[nn.Module], Stack]:
    """
    :param actor: the network whose parameters the vectors hold
    :param vectors: ``(n, n_params)``
    :return: gives for a layer of the actor its tensors with ``n`` rows
    """
    name_of = {id(parameter): name for name, parameter in actor.named_parameters()}
    tensors = ParameterLayout.of(actor).split(vectors)
    return lambda module: tuple(np.ascontiguousarray(tensors[name_of[id(p)]]) for p in module.parameters())
