"""Networks of CEM-RL: the actor whose parameters are sampled, and one critic for all samples."""

from __future__ import annotations

from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.td3.policies import TD3Policy
from torch import nn

from sb3_erl.policies.erl import DeployedMixin, ERLActor, check_own_extractors, fused_adam
from sb3_erl.policies.es import ActorOnlyCnnPolicy, ActorOnlyMultiInputPolicy, ActorOnlyPolicy
from sb3_erl.policies.layers import KeepsFrozen, PlainNorm, ReadsDicts, ReadsImages, StdNorm, Towers


class TowerCritic(BaseModel):
    """
    Critic of CEM-RL, CERL and ERL-Re2: independent towers ``[linear, norm, leaky relu] * 2, linear`` on (observation, action).

    :param n_critics: number of towers
    :param net_arch: hidden widths of each tower
    :param norm_class: normalization before each activation, ``None`` for none
    :param output_scale: factor on the initial output layers
    :param in_features: size of the input, if a subclass does not hand observation and action to the towers
    :param kwargs: further arguments of :class:`~sb3_erl.policies.layers.Towers`
    """

    features_extractor: BaseFeaturesExtractor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        normalize_images: bool = True,
        n_critics: int = 2,
        n_context: int = 0,
        norm_class: type[StdNorm] | None = StdNorm,
        output_scale: float = 0.1,
        in_features: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            observation_space, action_space, features_extractor=features_extractor, normalize_images=normalize_images
        )
        self.n_critics = n_critics
        in_features = features_dim + get_action_dim(action_space) if in_features is None else in_features
        self.towers = Towers(n_critics, in_features, net_arch, n_context, norm_class, output_scale, **kwargs)

    def forward(
        self, obs: PyTorchObs, actions: th.Tensor, n_towers: int | None = None, context: th.Tensor | None = None
    ) -> th.Tensor:
        """
        :param obs: batch of observations
        :param actions: ``(batch, action_dim)`` in [-1, 1]
        :param n_towers: evaluate only the first towers
        :param context: ``(towers, 1, n_context)``, inputs that the whole batch has in common
        :return: ``(towers, batch, 1)``
        """
        features = self.extract_features(obs, self.features_extractor)
        return self.towers(th.cat([features, actions], dim=1), context, n_towers)


class CEMRLActor(ERLActor):
    """``[linear, tanh] * len(net_arch), linear, tanh``, with torch's layer norm before each hidden tanh if asked for."""

    norm_class = PlainNorm


class TowerNetworks(KeepsFrozen, TD3Policy):
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


class CEMRLMultiInputPolicy(ReadsDicts, CEMRLPolicy):
    """:class:`CEMRLPolicy` behind SB3's ``CombinedExtractor``, each individual with its own extractor."""


class CEMPolicy(ActorOnlyPolicy):
    """The actor of CEM-RL alone."""

    actor_class = CEMRLActor
    default_net_arch = (400, 300)


class CEMCnnPolicy(CEMPolicy, ActorOnlyCnnPolicy):
    """:class:`CEMPolicy` behind SB3's ``NatureCNN``."""


class CEMMultiInputPolicy(CEMPolicy, ActorOnlyMultiInputPolicy):
    """:class:`CEMPolicy` behind SB3's ``CombinedExtractor``."""


CEM_RL_POLICIES: dict[str, type[BasePolicy]] = {
    "MlpPolicy": CEMRLPolicy,
    "CnnPolicy": CEMRLCnnPolicy,
    "MultiInputPolicy": CEMRLMultiInputPolicy,
}
"""Networks of CEM-RL, by alias."""


CEM_POLICIES: dict[str, type[BasePolicy]] = {
    "MlpPolicy": CEMPolicy,
    "CnnPolicy": CEMCnnPolicy,
    "MultiInputPolicy": CEMMultiInputPolicy,
}
"""The actor of CEM-RL alone, by alias."""
