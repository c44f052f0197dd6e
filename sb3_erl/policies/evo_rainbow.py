"""Networks of EvoRainbow: private actors, and SAC's with and without a state embedding that all policies share."""

from __future__ import annotations

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.sac.policies import Actor, SACPolicy
from torch import nn

from sb3_erl.core.parameters import copy_module
from sb3_erl.policies.cem_rl import TowerNetworks
from sb3_erl.policies.erl import DeployedMixin, ERLActor, check_own_extractors, fused_adam
from sb3_erl.policies.erl_re2 import PolicyEncoder, PolicyExtendedCritic
from sb3_erl.policies.layers import ReadsDicts, ReadsImages, StdNorm, scale_parameters


class EvoRainbowPolicy(DeployedMixin, TowerNetworks):
    """
    Networks of EvoRainbow with private actors: ``[linear, norm, tanh] * 2, linear, tanh``, critics with leaky ReLU.

    Source: ``EvoRainbow_Exp_core/EvoRainbow_Algs.py`` of the authors' code. Output layers of the learner's actor and of the
    critics start at a tenth of torch's default, those of the population do not. The shared form has the networks of
    :class:`~sb3_erl.policies.erl_re2.ERLRe2Policy`.

    Parameters that are not listed here are those of :class:`~sb3_erl.policies.cem_rl.TowerNetworks`.

    :param layer_norm: the normalization of the authors' code, before each activation; ``False`` leaves it out
    """

    actor_class = ERLActor
    norm_class = StdNorm
    output_scale = 0.1

    def __init__(self, *args: Any, layer_norm: bool = True, **kwargs: Any):
        kwargs["layer_norm"] = layer_norm
        super().__init__(*args, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        scale_parameters(self.actor.output_layer, 0.1)
        for copied in (self.actor_target, self.deployed):
            copy_module(self.actor, copied)


class EvoRainbowCnnPolicy(ReadsImages, EvoRainbowPolicy):
    """:class:`EvoRainbowPolicy` behind SB3's ``NatureCNN``, each individual with its own extractor."""


class EvoRainbowMultiInputPolicy(ReadsDicts, EvoRainbowPolicy):
    """:class:`EvoRainbowPolicy` behind SB3's ``CombinedExtractor``, each individual with its own extractor."""


class SharedGaussianActor(Actor):
    """
    SB3's actor of SAC as a state embedding that all policies share, and a head: two linear layers on it.

    Source: ``MetaWorld`` folder of the authors' code of EvoRainbow.
    """

    optimizer: th.optim.Optimizer

    @property
    def head(self) -> nn.ModuleDict:
        """The layers of mean and logarithm of the standard deviation; its parameters are an individual."""
        layers: dict[str, Any] = {"mean": self.mu, "log_std": self.log_std}
        return nn.ModuleDict(layers)

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Parameters of the shared embedding (feature extractor and hidden layers)."""
        return [*self.features_extractor.parameters(), *self.latent_pi.parameters()]

    def encode(self, obs: PyTorchObs) -> th.Tensor:
        """:return: state features ``(batch, feature_dim)``"""
        return self.latent_pi(self.extract_features(obs, self.features_extractor))


class GaussianPolicyEncoder(nn.Module):
    """
    Embeds a head with rows for means and as many for logarithms of standard deviations, each kind by an encoder of its own.

    :param args: of :class:`~sb3_erl.policies.erl_re2.PolicyEncoder`, whose ``embedding_dim`` is that of each kind
    """

    def __init__(self, *args: Any):
        super().__init__()
        self.encoders = nn.ModuleList([PolicyEncoder(*args), PolicyEncoder(*args)])

    def forward(self, weight: th.Tensor, bias: th.Tensor, n_towers: int | None = None) -> th.Tensor:
        """
        :param weight: ``(2 * action_dim, feature_dim)``
        :param bias: ``(2 * action_dim,)``
        :param n_towers: embed only for the first towers
        :return: ``(towers, 1, 2 * embedding_dim)``
        """
        halves = zip(self.encoders, weight.chunk(2), bias.chunk(2), strict=True)
        return th.cat([encoder(*rows, n_towers) for encoder, *rows in halves], dim=-1)


class GaussianPolicyExtendedCritic(PolicyExtendedCritic):
    """:class:`~sb3_erl.policies.erl_re2.PolicyExtendedCritic` for heads of stochastic policies."""

    def _make_policy_encoder(self, feature_dim: int, embedding_dim: int, layout: str) -> nn.Module:
        action_dim = get_action_dim(self.action_space)
        return GaussianPolicyEncoder(self.n_critics, feature_dim, action_dim, embedding_dim // 2, layout)


class PrivateSACPolicy(DeployedMixin, SACPolicy):
    """
    SB3's networks of SAC with the sizes of EvoRainbow.

    Parameters that are not listed here are those of SB3's ``SACPolicy``.

    :param net_arch: hidden widths: a list for all, or ``dict(pi=..., qf=...)``; default ``[256, 256, 256]``
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        **kwargs: Any,
    ):
        net_arch = [256, 256, 256] if net_arch is None else net_arch
        super().__init__(observation_space, action_space, lr_schedule, net_arch, **kwargs)


class PrivateSACCnnPolicy(ReadsImages, PrivateSACPolicy):
    """:class:`PrivateSACPolicy` behind SB3's ``NatureCNN``, each individual with its own extractor."""


class PrivateSACMultiInputPolicy(ReadsDicts, PrivateSACPolicy):
    """:class:`PrivateSACPolicy` behind SB3's ``CombinedExtractor``, each individual with its own extractor."""


class SharedSACPolicy(PrivateSACPolicy):
    """
    Networks of EvoRainbow on SAC: SB3's, whose actor is shared embedding and head, and a policy-extended value function.

    Parameters that are not listed here are those of :class:`PrivateSACPolicy`; ``share_features_extractor`` must be ``False``.

    :param policy_embedding_dim: width of the policy encoders together, an even number
    :param pevfa_layout: see :class:`~sb3_erl.policies.erl_re2.PolicyEncoder`
    :raises ValueError: if ``policy_embedding_dim`` is odd, or an extractor is shared
    """

    actor: SharedGaussianActor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        policy_embedding_dim: int = 64,
        pevfa_layout: str = "rows",
        **kwargs: Any,
    ):
        check_own_extractors(kwargs.get("share_features_extractor", False))
        if policy_embedding_dim % 2:
            raise ValueError(
                "policy_embedding_dim must be even with learner='sac', one half for means and one for standard deviations; "
                f"got {policy_embedding_dim}"
            )
        self.pevfa_kwargs: dict[str, Any] = {"policy_embedding_dim": policy_embedding_dim, "pevfa_layout": pevfa_layout}
        super().__init__(observation_space, action_space, lr_schedule, net_arch, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        self.optimizer_kwargs = fused_adam(self.optimizer_class, self.optimizer_kwargs)
        super()._build(lr_schedule)
        self.pevfa, self.pevfa_target = self.make_pevfa(), self.make_pevfa()
        copy_module(self.pevfa, self.pevfa_target)
        self.pevfa_target.set_training_mode(False)
        parameters = self.pevfa.parameters()
        self.pevfa.optimizer = self.optimizer_class(parameters, lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> SharedGaussianActor:
        """A fresh embedding with a fresh head."""
        return SharedGaussianActor(**self._update_features_extractor(self.actor_kwargs, features_extractor)).to(self.device)

    def make_pevfa(self) -> GaussianPolicyExtendedCritic:
        """Fresh PeVFA towers: ``[linear, relu] * len(net_arch), linear``."""
        names = ("observation_space", "action_space", "net_arch", "n_critics", "normalize_images")
        kwargs = self._update_features_extractor({name: self.critic_kwargs[name] for name in names})
        widths = [kwargs["features_dim"], *self.actor.net_arch]
        own = {"norm_class": None, "output_scale": 1.0, "activation": nn.ReLU(), "feature_dim": widths[-1]}
        return GaussianPolicyExtendedCritic(**kwargs, **own, **self.pevfa_kwargs).to(self.device)

    def set_training_mode(self, mode: bool) -> None:
        """See SB3's ``BasePolicy``; the value function that reads heads, too."""
        super().set_training_mode(mode)
        self.pevfa.set_training_mode(mode)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self.pevfa_kwargs}


class SharedSACCnnPolicy(ReadsImages, SharedSACPolicy):
    """:class:`SharedSACPolicy` whose embedding and value networks each read images through SB3's ``NatureCNN``."""


class SharedSACMultiInputPolicy(ReadsDicts, SharedSACPolicy):
    """:class:`SharedSACPolicy` whose embedding and value networks each read Dict observations."""


PRIVATE_POLICIES: dict[str, type[BasePolicy]] = {
    "MlpPolicy": EvoRainbowPolicy,
    "CnnPolicy": EvoRainbowCnnPolicy,
    "MultiInputPolicy": EvoRainbowMultiInputPolicy,
}
"""Networks of TD3 with private actors, by alias."""
PRIVATE_SAC_POLICIES: dict[str, type[BasePolicy]] = {
    "MlpPolicy": PrivateSACPolicy,
    "CnnPolicy": PrivateSACCnnPolicy,
    "MultiInputPolicy": PrivateSACMultiInputPolicy,
}
"""Networks of SAC with private actors, by alias."""
SHARED_SAC_POLICIES: dict[str, type[BasePolicy]] = {
    "MlpPolicy": SharedSACPolicy,
    "CnnPolicy": SharedSACCnnPolicy,
    "MultiInputPolicy": SharedSACMultiInputPolicy,
}
"""Networks of SAC whose actors share a state embedding, by alias."""
