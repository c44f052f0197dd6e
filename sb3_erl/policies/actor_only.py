"""Policies with a single network, the one that acts: for evolution without a gradient learner."""

from __future__ import annotations

from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_erl.policies.erl import ERLActor


class ActorOnlyPolicy(BasePolicy):
    """
    A policy with one network, ``deployed``; the population belongs to the evolver.

    :param net_arch: hidden widths of the actor
    :param activation_fn: activation after each hidden layer
    :param layer_norm: see :class:`~sb3_erl.policies.erl.ERLActor`
    """

    actor_class: ClassVar[type[ERLActor]] = ERLActor
    default_net_arch: ClassVar[tuple[int, ...]] = (64, 64)

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | None = None,
        activation_fn: type[nn.Module] = nn.Tanh,
        layer_norm: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
    ):
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

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """:return: actions of ``deployed``, ``(batch, action_dim)`` in [-1, 1]"""
        return self._predict(obs, deterministic=deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self.deployed(observation)

    def set_training_mode(self, mode: bool) -> None:
        """Nothing is trained by gradients: the network stays in evaluation mode."""
        self.training = False

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = ("net_arch", "activation_fn", "layer_norm", "features_extractor_class", "features_extractor_kwargs")
        mine = {name: getattr(self, name) for name in own}
        return {**super()._get_constructor_parameters(), "lr_schedule": self._dummy_schedule, **mine}


class ActorOnlyCnnPolicy(ActorOnlyPolicy):
    """:class:`ActorOnlyPolicy` behind SB3's ``NatureCNN``."""

    def __init__(self, *args: Any, features_extractor_class: type[BaseFeaturesExtractor] = NatureCNN, **kwargs: Any):
        kwargs["features_extractor_class"] = features_extractor_class
        super().__init__(*args, **kwargs)
