"""Policies of pure evolution and of evolution strategies: one network that acts, or SAC's networks beside it (ESAC)."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.sac.policies import Actor as SACActor
from stable_baselines3.sac.policies import ContinuousCritic, SACPolicy
from torch import nn

from sb3_erl.core.parameters import copy_buffers
from sb3_erl.policies.erl import DeployedMixin, DeployedPolicy, ERLActor
from sb3_erl.policies.layers import BinnedAction, ReadsDicts, ReadsImages
from sb3_erl.policies.observation_statistics import ObservationStatistics
from sb3_erl.policies.rollout_layers import Layers, acts_on_vectors_as, in_order
from sb3_erl.policies.sequential import choice_of, mlp


class ActorOnlyPolicy(DeployedPolicy):
    """
    A policy with one network, ``deployed``; the population belongs to the evolver.

    :param net_arch: hidden widths of the actor, or ``dict(pi=[...])``, of which other keys are not read
    :param activation_fn: activation after each hidden layer
    :param layer_norm: see :class:`~sb3_erl.policies.erl.ERLActor`
    :raises ValueError: if ``net_arch`` is a dict without ``"pi"``
    """

    actor_class: ClassVar[type[ERLActor]] = ERLActor
    default_net_arch: ClassVar[tuple[int, ...]] = (64, 64)

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.Tanh,
        layer_norm: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
    ):
        if isinstance(net_arch, dict):
            if "pi" not in net_arch:
                raise ValueError(
                    f"net_arch must be a list, or a dict with the key 'pi', the widths of the actor; got {net_arch}"
                )
            net_arch = net_arch["pi"]
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class,
            features_extractor_kwargs,
            normalize_images=normalize_images,
            squash_output=True,
        )
        self.net_arch = list(self.default_net_arch) if net_arch is None else net_arch
        self.activation_fn, self.layer_norm = activation_fn, layer_norm
        self.deployed = self.make_actor()
        self.deployed.set_training_mode(False)

    def make_actor(self) -> ERLActor:
        """A fresh actor."""
        kwargs = self._update_features_extractor(self._actor_arguments())
        return self.actor_class(**kwargs).to(self.device)

    def _actor_arguments(self) -> dict[str, Any]:
        """Arguments of ``actor_class`` beside those of the features extractor."""
        names = ("observation_space", "action_space", "net_arch", "activation_fn", "normalize_images", "layer_norm")
        return {name: getattr(self, name) for name in names}

    def set_training_mode(self, mode: bool) -> None:
        """Nothing is trained by gradients: the network stays in evaluation mode."""
        self.training = False

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = ("net_arch", "activation_fn", "layer_norm", "features_extractor_class", "features_extractor_kwargs")
        mine = {name: getattr(self, name) for name in own}
        return {**super()._get_constructor_parameters(), "lr_schedule": self._dummy_schedule, **mine}


class ActorOnlyCnnPolicy(ReadsImages, ActorOnlyPolicy):
    """:class:`ActorOnlyPolicy` behind SB3's ``NatureCNN``."""


class ActorOnlyMultiInputPolicy(ReadsDicts, ActorOnlyPolicy):
    """:class:`ActorOnlyPolicy` behind SB3's ``CombinedExtractor``."""


def normalized_columns(layer: nn.Linear, norm: float) -> None:
    """Normal weights of which those into one unit have the given L2 norm; no bias."""
    with th.no_grad():
        layer.weight.normal_()
        layer.weight.mul_(norm / layer.weight.norm(dim=1, keepdim=True))
        layer.bias.zero_()


class ESActor(ERLActor):
    """
    ``[statistics, (linear, tanh) * len(net_arch), linear]`` and a choice where actions are discrete or binned.

    Salimans et al. (2017), https://arxiv.org/abs/1703.03864; authors' code: openai/evolution-strategies-starter,
    ``policies.py: MujocoPolicy``. Outputs are in the units of the action space and not squashed; ``predict`` clips them.

    :param action_bins: choose among that many values in each action dimension, ``None`` for continuous actions
    :param standardize: begin with statistics of the observations (flat ones only)
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        net_arch: list[int],
        features_extractor: nn.Module,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.Tanh,
        normalize_images: bool = True,
        layer_norm: bool = False,
        action_bins: int | None = None,
        standardize: bool = True,
    ):
        sizes: Any = (observation_space, action_space, net_arch, features_extractor, features_dim)
        super().__init__(*sizes, activation_fn, normalize_images, layer_norm)  # type: ignore[call-arg]
        self._squash_output = False
        self.action_bins = action_bins
        n_outputs, choice = choice_of(action_space)
        if action_bins is not None:
            assert isinstance(action_space, spaces.Box)
            n_outputs *= action_bins
            choice = [BinnedAction(action_space.low.ravel(), action_space.high.ravel(), action_bins)]
        hidden = mlp(features_dim, net_arch, activation_fn, self.norm_class if layer_norm else None)
        output = nn.Linear([features_dim, *net_arch][-1], n_outputs)
        for layer in hidden:
            if isinstance(layer, nn.Linear):
                normalized_columns(layer, 1.0)
        normalized_columns(output, 0.01)
        is_flat = isinstance(features_extractor, FlattenExtractor) and isinstance(observation_space, spaces.Box)
        self.standardize = standardize and is_flat
        unit = 255.0 if normalize_images and is_image_space(observation_space) else 1.0  # as SB3 scales images
        first = [ObservationStatistics((features_dim,), unit=unit)] if self.standardize else []
        self.mu = nn.Sequential(*first, *hidden, output, *choice)

    @property
    def statistics(self) -> ObservationStatistics | None:
        """Of the observations, which they standardize; ``None`` without any."""
        first = self.mu[0]
        return first if isinstance(first, ObservationStatistics) else None

    def rollout_layers(self) -> Layers:
        """See :class:`~sb3_erl.policies.rollout_layers.DescribesLayers`."""
        return in_order(self.mu) if acts_on_vectors_as(self, ESActor) else None

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = {"action_bins": self.action_bins, "standardize": self.standardize}
        return {**super()._get_constructor_parameters(), **own}


class ESPolicy(ActorOnlyPolicy):
    """
    One :class:`ESActor`.

    :param action_bins: see :class:`ESActor`
    :param standardize: see :class:`ESActor`
    :raises ValueError: if ``action_bins`` is below 2 or actions are discrete already
    """

    actor_class: ClassVar[type[ERLActor]] = ESActor
    default_net_arch: ClassVar[tuple[int, ...]] = (256, 256)

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *args: Any,
        action_bins: int | None = None,
        standardize: bool = True,
        **kwargs: Any,
    ):
        if action_bins is not None and (action_bins < 2 or not isinstance(action_space, spaces.Box)):
            raise ValueError(
                f"policy_kwargs: action_bins must be None, or at least 2 with a Box action space; got {action_bins!r} with "
                f"{action_space}"
            )
        self.action_bins, self.standardize = action_bins, standardize
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)  # type: ignore[arg-type]
        self._squash_output = False

    def make_actor(self) -> ERLActor:
        """A fresh actor with the statistics of ``deployed``."""
        actor = super().make_actor()
        if hasattr(self, "deployed"):
            copy_buffers(self.deployed, actor)
        return actor

    def _actor_arguments(self) -> dict[str, Any]:
        return {**super()._actor_arguments(), "action_bins": self.action_bins, "standardize": self.standardize}

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = {"action_bins": self.action_bins, "standardize": self.standardize}
        return {**super()._get_constructor_parameters(), **own}


class ESLinearPolicy(ESPolicy):
    """:class:`ESPolicy` without hidden layers."""

    default_net_arch: ClassVar[tuple[int, ...]] = ()


class ESMultiInputPolicy(ReadsDicts, ESPolicy):
    """:class:`ESPolicy` behind SB3's ``CombinedExtractor``; observations have no running statistics."""


Network = TypeVar("Network", bound=nn.Module)


class ESACPolicy(DeployedMixin, SACPolicy):
    """
    Networks of ESAC: those of SB3's SAC, whose actor is an individual as well.

    Weights start Xavier-uniform, biases at 0 (authors' code: karush17/esac, ``model.py: weights_init_``). Whoever is deployed
    acts with the mean, squashed by tanh: individuals are evaluated so, and their standard deviations are never trained. The
    learner's ``policy.actor`` samples unless ``deterministic=True``.
    """

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> SACActor:
        """A fresh acting network of the shape of ``actor``."""
        return _with_xavier(super().make_actor(features_extractor))

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> ContinuousCritic:
        """Fresh critics."""
        return _with_xavier(super().make_critic(features_extractor))

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return super()._predict(observation, deterministic=True)


class ESACCnnPolicy(ReadsImages, ESACPolicy):
    """:class:`ESACPolicy` behind SB3's ``NatureCNN``, each individual with its own extractor."""


class ESACMultiInputPolicy(ReadsDicts, ESACPolicy):
    """:class:`ESACPolicy` behind SB3's ``CombinedExtractor``, each individual with its own extractor."""


def drawn_layers(network: nn.Module) -> list[nn.Module]:
    """
    :param network: with a features extractor
    :return: its parts whose weights are drawn; an extractor of a user's own has drawn, or loaded, its own
    """
    extractor: Any = getattr(network, "features_extractor", None)
    is_known = extractor is None or type(extractor).__module__.split(".")[0] in ("sb3_erl", "stable_baselines3")
    own = set() if is_known else set(extractor.modules())
    return [layer for layer in network.modules() if layer not in own]


def _with_xavier(network: Network) -> Network:
    """The network with new weights in its linear layers."""
    for layer in drawn_layers(network):
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network


ESAC_POLICIES: dict[str, type[BasePolicy]] = {
    "MlpPolicy": ESACPolicy,
    "CnnPolicy": ESACCnnPolicy,
    "MultiInputPolicy": ESACMultiInputPolicy,
}
"""Networks of ESAC, by alias."""


ACTOR_ONLY_POLICIES: dict[str, type[BasePolicy]] = {
    "MlpPolicy": ActorOnlyPolicy,
    "CnnPolicy": ActorOnlyCnnPolicy,
    "MultiInputPolicy": ActorOnlyMultiInputPolicy,
}
"""Networks of pure evolution, by alias."""
