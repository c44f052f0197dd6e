"""Networks of ERL-Re2: a state encoder that all policies share, linear heads, and a critic that reads heads."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_erl.core.parameters import copy_module
from sb3_erl.policies.cem_rl import TowerCritic
from sb3_erl.policies.erl import DeployedPolicy, fused_adam
from sb3_erl.policies.layers import ReadsDicts, ReadsImages, StackedLinear, scale_parameters
from sb3_erl.policies.rollout_layers import Layers, acts_on_vectors_as, in_order
from sb3_erl.policies.sequential import mlp


class SharedActor(BasePolicy):
    """
    Actor of ERL-Re2: a nonlinear state encoder that all policies share and one linear head, ``tanh(W z(s) + b)``.

    Hao et al. (2023), https://arxiv.org/abs/2210.17375, section 3 (two-scale representation).

    :param net_arch: widths of the encoder's layers; the last one is the feature dimension
    """

    features_extractor: BaseFeaturesExtractor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.Tanh,
        normalize_images: bool = True,
    ):
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
            squash_output=True,
        )
        self.net_arch, self.features_dim, self.activation_fn = net_arch, features_dim, activation_fn
        self.trunk = mlp(features_dim, net_arch, activation_fn)
        self.feature_dim = ([features_dim, *net_arch])[-1]
        self.head = nn.Linear(self.feature_dim, get_action_dim(action_space))

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Parameters of the shared encoder (feature extractor and trunk)."""
        return [*self.features_extractor.parameters(), *self.trunk.parameters()]

    def encode(self, obs: PyTorchObs) -> th.Tensor:
        """:return: state features ``(batch, feature_dim)``"""
        return self.trunk(self.extract_features(obs, self.features_extractor))

    def forward(self, obs: PyTorchObs) -> th.Tensor:
        """:return: actions ``(batch, action_dim)`` in [-1, 1]"""
        return th.tanh(self.head(self.encode(obs)))

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self(observation)

    def rollout_layers(self) -> Layers:
        """See :class:`~sb3_erl.policies.rollout_layers.DescribesLayers`."""
        return in_order(self.trunk, self.head, nn.Tanh()) if acts_on_vectors_as(self, SharedActor, "encode") else None

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = ("net_arch", "features_dim", "activation_fn", "features_extractor")
        return {**super()._get_constructor_parameters(), **{name: getattr(self, name) for name in own}}


class PolicyEncoder(nn.ModuleList):
    """
    Embeds a linear head, row by row, for each tower of a policy-extended value function.

    :param n_towers: number of towers, each with its own encoder
    :param feature_dim: number of state features, the length of a head row without its bias
    :param action_dim: number of rows of a head
    :param embedding_dim: width of the three layers
    :param layout: ``"rows"``: row i is (W[i], b[i]), as in the paper; ``"flat"``: all of W then b, cut again into rows, as
        in the authors' code; ``"rows_onehot"``: ``"rows"`` with the row number as one-hot
    :param activation_fn: between the layers
    :param squash: read ``sign(w) * log(1 + |w|)`` in place of w, for heads with huge weights
    """

    layouts: ClassVar[tuple[str, ...]] = ("rows", "flat", "rows_onehot")

    def __init__(
        self,
        n_towers: int,
        feature_dim: int,
        action_dim: int,
        embedding_dim: int = 64,
        layout: str = "rows",
        activation_fn: type[nn.Module] = nn.LeakyReLU,
        squash: bool = False,
    ):
        width = feature_dim + 1 + (action_dim if layout == "rows_onehot" else 0)
        sizes = [width] + [embedding_dim] * 3
        super().__init__(StackedLinear(n_towers, a, b) for a, b in pairwise(sizes))
        self.layout, self.squash = layout, squash
        self._activation = [activation_fn()]  # in a list, so that it is not registered as a layer

    def rows(self, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
        """
        :param weight: ``(action_dim, feature_dim)``
        :param bias: ``(action_dim,)``
        :return: what the first layer reads, one row per action dimension
        """
        if self.layout == "flat":
            rows = th.cat([weight.reshape(-1), bias]).reshape(weight.shape[0], -1)
        else:
            rows = th.cat([weight, bias[:, None]], dim=1)
        if self.squash:
            rows = rows.sign() * rows.abs().log1p()
        if self.layout == "rows_onehot":
            rows = th.cat([rows, th.eye(len(rows), dtype=rows.dtype, device=rows.device)], dim=1)
        return rows

    def forward(self, weight: th.Tensor, bias: th.Tensor, n_towers: int | None = None) -> th.Tensor:
        """
        :param weight: ``(action_dim, feature_dim)``
        :param bias: ``(action_dim,)``
        :param n_towers: embed only for the first towers
        :return: ``(towers, 1, embedding_dim)``, the mean over rows
        """
        x = self.rows(weight, bias)
        for index, layer in enumerate(self):
            x = layer(x, None, n_towers)
            if index < len(self) - 1:
                x = self._activation[0](x)
        return x.mean(dim=1, keepdim=True)


class PolicyExtendedCritic(TowerCritic):
    """
    Policy-extended value function (PeVFA): a critic that also reads the head of the policy whose value it estimates.

    Hao et al. (2023), section 3; rows are encoded once a batch, not once a sample as in the authors' code.

    :param feature_dim: number of state features, the length of a head row without its bias
    :param policy_embedding_dim: width of the policy encoder
    :param pevfa_layout: see :class:`PolicyEncoder`
    :param pevfa_input: ``"obs_action"``, or ``"features"`` for a value of state features z, whatever the action
    """

    inputs: ClassVar[tuple[str, ...]] = ("obs_action", "features")

    def __init__(
        self,
        *args: Any,
        feature_dim: int,
        policy_embedding_dim: int = 64,
        pevfa_layout: str = "rows",
        pevfa_input: str = "obs_action",
        **kwargs: Any,
    ):
        self.reads_features = pevfa_input == "features"
        kwargs |= {"n_context": policy_embedding_dim, "in_features": feature_dim if self.reads_features else None}
        super().__init__(*args, **kwargs)
        self.policy_encoder = self._make_policy_encoder(feature_dim, policy_embedding_dim, pevfa_layout)

    def _make_policy_encoder(self, feature_dim: int, embedding_dim: int, layout: str) -> nn.Module:
        return PolicyEncoder(self.n_critics, feature_dim, get_action_dim(self.action_space), embedding_dim, layout)

    def embed(self, weight: th.Tensor, bias: th.Tensor, n_towers: int | None = None) -> th.Tensor:
        """See :meth:`PolicyEncoder.forward`."""
        return self.policy_encoder(weight, bias, n_towers)

    def forward(
        self,
        obs: PyTorchObs,
        actions: th.Tensor,
        n_towers: int | None = None,
        context: th.Tensor | None = None,
        features: th.Tensor | None = None,
    ) -> th.Tensor:
        """
        See :meth:`~sb3_erl.policies.cem_rl.TowerCritic.forward`.

        :param features: ``(batch, feature_dim)``, state features, read in place of observations and actions by a network
            that ``reads_features``
        """
        if self.reads_features:
            return self.towers(features, context, n_towers)
        return super().forward(obs, actions, n_towers, context)


class ERLRe2Policy(DeployedPolicy):
    """
    Networks of ERL-Re2: shared encoder, the learner's head, critics, PeVFA, their targets, and ``deployed``.

    Sizes and initialization follow the authors' code: output layers of the learner's head, critics and PeVFA start at
    a tenth of torch's default. The population's heads belong to the evolver.

    :param net_arch: hidden widths: a list for all, or ``dict(pi=..., qf=...)`` for encoder and value networks;
        default ``[400, 300]``
    :param activation_fn: activation of the encoder
    :param n_critics: towers of critic and PeVFA, 2 for TD3, 1 for DDPG
    :param policy_embedding_dim: see :class:`PolicyExtendedCritic`
    :param pevfa_layout: see :class:`PolicyExtendedCritic`
    :param pevfa_input: see :class:`PolicyExtendedCritic`
    """

    actor: SharedActor
    deployed: SharedActor

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
        policy_embedding_dim: int = 64,
        pevfa_layout: str = "rows",
        pevfa_input: str = "obs_action",
    ):
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class,
            features_extractor_kwargs,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            squash_output=True,
            normalize_images=normalize_images,
        )
        net_arch = [400, 300] if net_arch is None else net_arch
        archs = net_arch if isinstance(net_arch, dict) else {"pi": net_arch, "qf": net_arch}
        if set(archs) != {"pi", "qf"}:
            raise ValueError(f"net_arch must be a list or a dict with the keys 'pi' and 'qf'; got {net_arch}")
        self.net_arch, self.activation_fn, self.n_critics = net_arch, activation_fn, n_critics
        self.pevfa_kwargs: dict[str, Any] = {
            "policy_embedding_dim": policy_embedding_dim,
            "pevfa_layout": pevfa_layout,
            "pevfa_input": pevfa_input,
        }
        self.net_args = {"observation_space": observation_space, "action_space": action_space}
        self.actor_kwargs = {**self.net_args, "net_arch": archs["pi"], "activation_fn": activation_fn}
        self.critic_kwargs = {**self.net_args, "net_arch": archs["qf"], "n_critics": n_critics}
        for kwargs in (self.actor_kwargs, self.critic_kwargs):
            kwargs["normalize_images"] = normalize_images
        self._build(lr_schedule)

    def _build(self, lr_schedule: Schedule) -> None:
        self.actor = self.make_actor()
        scale_parameters(self.actor.head, 0.1)
        self.critic, self.pevfa = self.make_critic(), self.make_pevfa()
        self.actor_target, self.deployed = self.make_actor(), self.make_actor()
        self.critic_target, self.pevfa_target = self.make_critic(), self.make_pevfa()
        pairs = ((self.actor, self.actor_target), (self.actor, self.deployed))
        for source, target in (*pairs, (self.critic, self.critic_target), (self.pevfa, self.pevfa_target)):
            copy_module(source, target)
            target.set_training_mode(False)
        self.actor.encoder_optimizer = self._make_optimizer(self.actor.encoder_parameters(), lr_schedule)  # type: ignore[assignment]
        self.actor.optimizer = self._make_optimizer(list(self.actor.head.parameters()), lr_schedule)
        self.critic.optimizer = self._make_optimizer(list(self.critic.parameters()), lr_schedule)
        self.pevfa.optimizer = self._make_optimizer(list(self.pevfa.parameters()), lr_schedule)

    def _make_optimizer(self, parameters: list[nn.Parameter], lr_schedule: Schedule) -> th.optim.Optimizer:
        parameters = parameters or [nn.Parameter(th.zeros(0))]  # an empty encoder (net_arch=[]) has nothing to train
        kwargs = fused_adam(self.optimizer_class, self.optimizer_kwargs)
        return self.optimizer_class(parameters, lr=lr_schedule(1), **kwargs)  # type: ignore[call-arg]

    def make_actor(self) -> SharedActor:
        """A fresh encoder with a fresh head."""
        return SharedActor(**self._update_features_extractor(self.actor_kwargs)).to(self.device)

    def make_critic(self) -> TowerCritic:
        """Fresh critic towers."""
        return TowerCritic(**self._update_features_extractor(self.critic_kwargs)).to(self.device)

    def make_pevfa(self) -> PolicyExtendedCritic:
        """Fresh PeVFA towers."""
        own = {"feature_dim": self.actor.feature_dim, **self.pevfa_kwargs}
        # a network that reads features needs no extractor; this one has no parameters
        unused = FlattenExtractor(self.observation_space) if own["pevfa_input"] == "features" else None
        return PolicyExtendedCritic(**self._update_features_extractor(self.critic_kwargs, unused), **own).to(self.device)

    def set_training_mode(self, mode: bool) -> None:
        for network in (self.actor, self.critic, self.pevfa):
            network.set_training_mode(mode)
        if any(module.training for module in self.deployed.modules()):
            self.deployed.set_training_mode(False)
        self.training = mode

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own: tuple[str, ...] = ("net_arch", "activation_fn", "n_critics")
        own += ("optimizer_class", "optimizer_kwargs", "features_extractor_class", "features_extractor_kwargs")
        mine = {name: copy.copy(getattr(self, name)) for name in own}
        mine |= {"lr_schedule": self._dummy_schedule, **self.pevfa_kwargs}
        return {**super()._get_constructor_parameters(), **mine}


class ERLRe2CnnPolicy(ReadsImages, ERLRe2Policy):
    """:class:`ERLRe2Policy` whose encoder, critic and PeVFA each read images through SB3's ``NatureCNN``."""


class ERLRe2MultiInputPolicy(ReadsDicts, ERLRe2Policy):
    """:class:`ERLRe2Policy` whose encoder, critic and PeVFA each read Dict observations through a ``CombinedExtractor``."""


ERL_RE2_POLICIES: dict[str, type[BasePolicy]] = {
    "MlpPolicy": ERLRe2Policy,
    "CnnPolicy": ERLRe2CnnPolicy,
    "MultiInputPolicy": ERLRe2MultiInputPolicy,
}
"""Networks of ERL-Re2 on TD3 and DDPG, by alias."""
