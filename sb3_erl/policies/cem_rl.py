"""Networks of CEM-RL: the actor whose parameters are sampled, and one critic for all samples."""

from __future__ import annotations

from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.td3.policies import TD3Policy
from torch import nn

from sb3_erl.policies.erl import DeployedMixin, ERLActor, TowerCritic, check_own_extractors, fused_adam
from sb3_erl.policies.es import ActorOnlyCnnPolicy, ActorOnlyPolicy
from sb3_erl.policies.layers import PlainNorm, ReadsImages, StdNorm


class CEMRLActor(ERLActor):
    """``[linear, tanh] * len(net_arch), linear, tanh``, with torch's layer norm before each hidden tanh if asked for."""

    norm_class = PlainNorm


class TowerNetworks(TD3Policy):
    """
    SB3's TD3 policy with actors of the ERL family and critics that are towers of one stack.

    :param net_arch: hidden widths: a list for both, or ``dict(pi=..., qf=...)``; default ``[400, 300]``
    :param activation_fn: activation of the actor; the critic's is leaky ReLU
    :param layer_norm: put a layer norm before each activation
    :param share_features_extractor: must be ``False``: each individual has an extractor of its own, the critic too
    :raises ValueError: if ``share_features_extractor`` is set
    """

    actor_class: ClassVar[type[ERLActor]] = CEMRLActor
    norm_class: ClassVar[type[StdNorm]] = PlainNorm
    """Norm of the critics; that of the actors is their own."""
    output_scale: ClassVar[float] = 1.0
    """Factor on the initial output layers of the critics."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.Tanh,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        n_critics: int = 2,
        share_features_extractor: bool = False,
        layer_norm: bool = False,
    ):
        check_own_extractors(share_features_extractor)
        self.layer_norm = layer_norm
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            [400, 300] if net_arch is None else net_arch,
            activation_fn,
            features_extractor_class,
            features_extractor_kwargs,
            normalize_images,
            optimizer_class,
            fused_adam(optimizer_class, optimizer_kwargs),
            n_critics,
            share_features_extractor,
        )

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> ERLActor:
        kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return self.actor_class(**kwargs, layer_norm=self.layer_norm).to(self.device)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> TowerCritic:  # type: ignore[override]
        kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        for name in ("activation_fn", "share_features_extractor"):
            kwargs.pop(name)
        norm_class = self.norm_class if self.layer_norm else None
        arguments = {"norm_class": norm_class, "output_scale": self.output_scale, **self._tower_arguments()}
        return TowerCritic(**kwargs, **arguments).to(self.device)

    def _tower_arguments(self) -> dict[str, Any]:
        return {}

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "layer_norm": self.layer_norm}


class CEMRLPolicy(DeployedMixin, TowerNetworks):
    """
    Networks of CEM-RL. Source: ``es_grad.py: Actor, CriticTD3`` of the authors' code; torch's default initialization.

    Its parameters are those of :class:`TowerNetworks`.
    """


class CEMRLCnnPolicy(ReadsImages, CEMRLPolicy):
    """:class:`CEMRLPolicy` behind SB3's ``NatureCNN``, each individual with its own extractor."""


class CEMPolicy(ActorOnlyPolicy):
    """The actor of CEM-RL alone."""

    actor_class = CEMRLActor
    default_net_arch = (400, 300)


class CEMCnnPolicy(CEMPolicy, ActorOnlyCnnPolicy):
    """:class:`CEMPolicy` behind SB3's ``NatureCNN``."""
