"""Networks that read state and state-action embeddings (SALE): encoder, actor and critics of TD7."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor, create_mlp
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_erl.policies.erl_re2 import PolicyEncoder
from sb3_erl.policies.fused_mlp import Layer, activation_of, can_fuse, perceptron
from sb3_erl.policies.layers import AvgL1Norm, KeepsFrozen, StackedLinear, constant
from sb3_erl.policies.rollout_layers import RolloutLayers, acts_on_vectors_as, in_order
from sb3_erl.policies.sequential import MLP, leading_layers, mlp


class SALEEncoder(nn.Module):
    """
    State embedding ``zs = f(s)`` and state-action embedding ``zsa = g(zs, a)``, trained to predict the next ``zs``.

    Fujimoto et al. (2023), https://arxiv.org/abs/2306.02451, section 4.1; ``zs`` has unit mean absolute value.

    With a features extractor that has parameters, s stands for its features: they are part of what is trained to predict, and
    actor and critics read those of the fixed encoder's extractor. The paper has vectors only.

    :param features_dim: length of a flat observation, or of the extractor's features
    :param action_dim: length of an action
    :param net_arch: hidden widths of f and of g
    :param zs_dim: length of both embeddings
    :param activation_fn: activation between layers
    :param extractor: from preprocessed observations to features
    """

    optimizer: th.optim.Optimizer

    def __init__(
        self,
        features_dim: int,
        action_dim: int,
        net_arch: list[int],
        zs_dim: int,
        activation_fn: type[nn.Module] = nn.ELU,
        extractor: BaseFeaturesExtractor | None = None,
    ):
        super().__init__()
        self.extractor: Any = extractor
        self.state = MLP(*create_mlp(features_dim, zs_dim, net_arch, activation_fn), AvgL1Norm())
        self.action = MLP(*create_mlp(zs_dim + action_dim, zs_dim, net_arch, activation_fn))


class SALEActor(KeepsFrozen, BasePolicy):
    """
    Actor of TD7: ``tanh(out(relu(h(relu([unit(in(s)), zs])))))`` with ``zs`` from an encoder of its own.

    The encoder is constant: it is saved, moved and copied with the actor but is no parameter of it, so genomes and
    optimizers hold the actor's layers alone; so is the features extractor. Everything before the last layer is the trunk, the
    last layer the head.

    :param net_arch: widths of the hidden layers, the first one reads the observation alone
    :param encoder_arch: hidden widths of the encoder
    :param zs_dim: length of the state embedding
    :param activation_fn: activation of the actor
    :param encoder_activation_fn: activation of the encoder
    :param features_extractor_class: of the encoder that is copied
    :param features_extractor_kwargs: its arguments
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        net_arch: list[int],
        encoder_arch: list[int],
        zs_dim: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        encoder_activation_fn: type[nn.Module] = nn.ELU,
        normalize_images: bool = True,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
    ):
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class,
            features_extractor_kwargs,
            normalize_images=normalize_images,
            squash_output=True,
        )
        self.net_arch, self.encoder_arch, self.zs_dim = net_arch, encoder_arch, zs_dim
        self.activation_fn, self.encoder_activation_fn = activation_fn, encoder_activation_fn
        self.features_extractor = self.make_features_extractor()
        features_dim, action_dim = self.features_extractor.features_dim, get_action_dim(action_space)
        constant(self.features_extractor)
        self.first = MLP(nn.Linear(features_dim, net_arch[0]), AvgL1Norm())
        widths = [net_arch[0] + zs_dim, *net_arch[1:]]
        self.hidden = mlp(widths[0], widths[1:], activation_fn, norm_class=None)
        self.feature_dim = widths[-1]
        self.head = nn.Linear(self.feature_dim, action_dim)
        self.encoder = constant(SALEEncoder(features_dim, action_dim, encoder_arch, zs_dim, encoder_activation_fn).state)

    def train(self, mode: bool = True) -> SALEActor:
        """See torch's ``nn.Module``; the extractor, a fixed copy, stays in evaluation mode."""
        super().train(mode)
        self.features_extractor.eval()
        return self

    def features(self, obs: PyTorchObs) -> th.Tensor:
        """:return: flat float32 observations, or the extractor's features ``(batch, features_dim)``"""
        return self.extract_features(obs, self.features_extractor)

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Parameters of the trunk, everything before the head."""
        return [*self.first.parameters(), *self.hidden.parameters()]

    def trunk(self, features: th.Tensor, zs: th.Tensor) -> th.Tensor:
        """
        :param features: ``(batch, features_dim)``
        :param zs: state embeddings ``(batch, zs_dim)``
        :return: what the head reads, ``(batch, feature_dim)``
        """
        if can_fuse(features):
            first, no_first = leading_layers(self.first)
            hidden, no_hidden = leading_layers(self.hidden)
            if not no_first and not no_hidden and hidden:
                return perceptron([*first, hidden[0]._replace(n_more=1), *hidden[1:]], features, zs)
        return self.hidden(th.cat([self.first(features), zs], dim=1))

    def encode(self, obs: PyTorchObs) -> th.Tensor:
        """:return: what the head reads, ``(batch, feature_dim)``, with the actor's own encoder"""
        features = self.features(obs)
        return self.trunk(features, self.encoder(features))

    def act(self, features: th.Tensor, zs: th.Tensor) -> th.Tensor:
        """
        :param features: ``(batch, features_dim)``
        :param zs: state embeddings ``(batch, zs_dim)``
        :return: actions ``(batch, action_dim)`` in [-1, 1]
        """
        return th.tanh(self.head(self.trunk(features, zs)))

    def forward(self, obs: PyTorchObs) -> th.Tensor:
        """:return: actions ``(batch, action_dim)`` in [-1, 1]"""
        return th.tanh(self.head(self.encode(obs)))

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self(observation)

    def rollout_layers(self) -> RolloutLayers | None:
        """See :class:`~sb3_erl.policies.rollout_layers.DescribesLayers`."""
        if not acts_on_vectors_as(self, SALEActor, "features", "encode", "trunk"):
            return None
        return RolloutLayers(in_order(self.first), in_order(self.encoder), in_order(self.hidden, self.head, nn.Tanh()))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own: tuple[str, ...] = ("net_arch", "encoder_arch", "zs_dim", "activation_fn", "encoder_activation_fn")
        own += ("features_extractor_class", "features_extractor_kwargs")
        return {**super()._get_constructor_parameters(), **{name: getattr(self, name) for name in own}}


class SALECritic(nn.Module):
    """
    Critics of TD7 as a stack of towers: ``out(elu(h(elu([unit(in([s, a])), zsa, zs]))))``.

    The layer that reads the embeddings keeps its weights for each of them apart: where no gradient for an input is
    needed, none is computed.

    :param features_dim: length of a flat observation
    :param action_dim: length of an action
    :param net_arch: widths of the hidden layers, the first one reads observation and action alone
    :param zs_dim: length of the embeddings
    :param n_critics: number of towers
    :param activation_fn: activation between layers
    :param n_context: further inputs, next to the embeddings, that the whole batch has in common
    """

    optimizer: th.optim.Optimizer

    def __init__(
        self,
        features_dim: int,
        action_dim: int,
        net_arch: list[int],
        zs_dim: int,
        n_critics: int = 2,
        activation_fn: type[nn.Module] = nn.ELU,
        n_context: int = 0,
    ):
        super().__init__()
        self.n_critics, self.zs_dim = n_critics, zs_dim
        widths = [*net_arch, 1]
        self.first = StackedLinear(n_critics, features_dim + action_dim, widths[0])
        self.unit = AvgL1Norm()
        self.second = StackedLinear(n_critics, widths[0], widths[1], n_context=n_context)
        bound = 1.0 / math.sqrt(widths[0] + 2 * zs_dim + n_context)

        def weight(width: int) -> nn.Parameter:
            return nn.Parameter(th.empty(n_critics, width, widths[1]).uniform_(-bound, bound))

        self.zsa_weight, self.zs_weight = weight(zs_dim), weight(zs_dim)
        with th.no_grad():
            for parameter in self.second.parameters():
                parameter.uniform_(-bound, bound)
        pairs = itertools.pairwise(widths[1:])
        self.rest = nn.ModuleList(StackedLinear(n_critics, a, b) for a, b in pairs)
        self.activation = activation_fn()

    def forward(
        self,
        features: th.Tensor,
        actions: th.Tensor,
        zsa: th.Tensor,
        zs: th.Tensor,
        context: th.Tensor | None = None,
    ) -> th.Tensor:
        """
        :param features: ``(batch, features_dim)``
        :param actions: ``(batch, action_dim)`` in [-1, 1]
        :param zsa: state-action embeddings ``(batch, zs_dim)``
        :param zs: state embeddings ``(batch, zs_dim)``
        :param context: ``(towers, 1, n_context)``
        :return: ``(towers, batch, 1)``
        """
        x = th.cat([features, actions], dim=1)
        activation = activation_of(self.activation)
        if activation is not None and can_fuse(x):
            (weight,), bias = self.second.layer(context)[:2]
            second = Layer((weight, self.zsa_weight, self.zs_weight), bias, n_more=2)
            *hidden, out = [second, *(layer.layer() for layer in self.rest)]  # type: ignore[operator]
            first = self.first.layer()._replace(unit=True)
            return perceptron([first, *(layer._replace(activation=activation) for layer in hidden), out], x, zsa, zs)
        x = self.second(self.unit(self.first(x)), context)
        for embedding, weight in ((zsa, self.zsa_weight), (zs, self.zs_weight)):
            x = th.baddbmm(x, embedding.expand(self.n_critics, -1, -1), weight)
        for layer in self.rest:
            x = layer(self.activation(x))
        return x


class SALEPolicyExtendedCritic(nn.Module):
    """
    TD7's critic that also reads an embedding of a policy's head, ``[unit(in([s, a])), zsa, zs, unit(e(W))]``.

    :param critic: towers with a context of the embedding's width
    :param policy_encoder: embeds heads, one encoder per tower
    """

    optimizer: th.optim.Optimizer

    def __init__(self, critic: SALECritic, policy_encoder: PolicyEncoder):
        super().__init__()
        self.critic, self.policy_encoder, self.unit = critic, policy_encoder, AvgL1Norm()

    def embed(self, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
        """
        :param weight: ``(action_dim, feature_dim)``
        :param bias: ``(action_dim,)``
        :return: ``(towers, 1, policy_embedding_dim)`` with unit mean absolute value
        """
        return self.unit(self.policy_encoder(weight, bias))

    def forward(self, *inputs: th.Tensor) -> th.Tensor:
        """See :meth:`SALECritic.forward`; the context is a head's embedding."""
        return self.critic(*inputs)


@th.no_grad()
def copy_constants(source: nn.Module, target: nn.Module) -> None:
    """Copy a live network into its constant twin (see :func:`~sb3_erl.policies.layers.constant`)."""
    values = dict([*source.named_parameters(remove_duplicate=False), *source.named_buffers(remove_duplicate=False)])
    for name, place in target.named_buffers(remove_duplicate=False):
        place.copy_(values[name])
