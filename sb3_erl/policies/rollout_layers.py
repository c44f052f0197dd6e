"""
What a network tells the NumPy path of rollouts: the layers that lead from an observation to an action.

A network of this package has a method ``rollout_layers()``; for networks of SB3 and sb3-contrib a function per class says the
same. A class that does neither, or that changes how it acts, runs as a module: slower, with the same actions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, Protocol, TypeAlias, runtime_checkable

from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.dqn.policies import QNetwork
from stable_baselines3.sac.policies import Actor as SACActor
from stable_baselines3.td3.policies import Actor as TD3Actor
from torch import nn

from sb3_erl.policies.layers import BestAction
from sb3_erl.policies.sequential import MLP


@dataclass(frozen=True)
class RolloutLayers:
    """
    Layers of an actor that reads an embedding of the observation after its first layers.

    Layers whose tensors are buffers (see :func:`~sb3_erl.policies.layers.constant`) are the same for all candidates.

    :param first: from the observation on
    :param embedding: from the observation to the embedding
    :param rest: from the outputs of ``first`` and ``embedding``, side by side, to the action
    """

    first: list[nn.Module]
    embedding: list[nn.Module]
    rest: list[nn.Module]


Layers: TypeAlias = list[nn.Module] | RolloutLayers | None
"""Layers in order, layers with an embedding between them, or ``None`` for a network that runs as a module."""


@runtime_checkable
class DescribesLayers(Protocol):
    """A network that says by which layers it acts."""

    def rollout_layers(self) -> Layers:
        """
        :return: layers from a flat float32 observation ``(n_inputs,)`` to the action that ``_predict`` gives, or to the number
            of a discrete action as a float; ``None`` if the network must run as a module
        """


def layers_of(network: nn.Module) -> Layers:
    """
    :param network: any acting network
    :return: see :meth:`DescribesLayers.rollout_layers`; ``None`` for a class that is not known here and does not say it
    """
    return network.rollout_layers() if isinstance(network, DescribesLayers) else layers_of_sb3(network)


@singledispatch
def layers_of_sb3(network: nn.Module) -> Layers:
    """
    :param network: an acting network without a method ``rollout_layers``
    :return: as :func:`layers_of`
    """
    for described in _actors_like_sacs():
        if isinstance(network, described):
            return _squashed_mean(network, described)
    return None


@layers_of_sb3.register
def _(network: TD3Actor) -> Layers:
    return in_order(network.mu) if acts_on_vectors_as(network, TD3Actor) else None


@layers_of_sb3.register
def _(network: SACActor) -> Layers:
    return _squashed_mean(network, SACActor)


def _actors_like_sacs() -> list[type[Any]]:
    """Actors of sb3-contrib with a squashed Gaussian, if the program has imported them; this package does not."""
    modules = (sys.modules.get(f"sb3_contrib.{name}.policies") for name in ("tqc", "crossq"))
    return [module.Actor for module in modules if module is not None]


def _squashed_mean(network: Any, described: type[Any]) -> Layers:
    """The mean, squashed by tanh; with gSDE it may be clipped in between, which stays with the module."""
    if network.use_sde or not acts_on_vectors_as(network, described, "get_action_dist_params"):
        return None
    return in_order(network.latent_pi, network.mu, nn.Tanh())


@layers_of_sb3.register
def _(network: QNetwork) -> Layers:
    return in_order(network.q_net, BestAction()) if acts_on_vectors_as(network, QNetwork) else None


def acts_on_vectors_as(network: BaseModel, described: type[BaseModel], *methods: str) -> bool:
    """
    :param network: an instance of ``described`` or of a subclass
    :param described: the class whose way of acting is known
    :param methods: what its ``forward`` calls beside ``extract_features``
    :return: whether the network reads flat observations as they are and its class overrides none of the methods by which
        ``described`` acts
    """
    names = ("forward", "_predict", "extract_features", *methods)
    return reads_vectors(network) and all(getattr(type(network), name) is getattr(described, name) for name in names)


def reads_vectors(network: BaseModel) -> bool:
    """Whether a network takes observations of a Box, flattened and not scaled as images are."""
    extractor, space = network.features_extractor, network.observation_space
    flattens = isinstance(extractor, FlattenExtractor) and type(extractor).forward is FlattenExtractor.forward
    return flattens and isinstance(space, spaces.Box) and not is_image_space(space, check_channels=False)


def in_order(*parts: nn.Module) -> list[nn.Module]:
    """
    :param parts: layers and plain sequences of layers, one after the other
    :return: their layers; a sequence of another class counts as one layer, since it may compute something else
    """
    layers: list[nn.Module] = []
    for part in parts:
        within: Iterable[nn.Module] = part if type(part) in (nn.Sequential, MLP) else (part,)  # type: ignore[assignment]
        layers += within
    return layers
