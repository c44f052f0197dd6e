"""Networks of TD7: state and state-action embeddings (SALE), an actor and twin critics that read them."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim, get_flattened_obs_dim
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_erl.core.parameters import copy_module
from sb3_erl.policies.erl import fused_adam
from sb3_erl.policies.fused_mlp import Layer, activation_of, can_fuse, perceptron
from sb3_erl.policies.layers import AvgL1Norm, StackedLinear, constant
from sb3_erl.policies.sequential import MLP, leading_layers


def plain_mlp(in_features: int, hidden: list[int], out_features: int, activation_fn: type[nn.Module]) -> list[nn.Module]:
    """``[linear, activation] * len(hidden), linear``."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(in_features, width), activation_fn()]
        in_features = width
    return [*layers, nn.Linear(in_features, out_features)]


class SALEEncoder(nn.Module):
    """
    State embedding ``zs = f(s)`` and state-action embedding ``zsa = g(zs, a)``, trained to predict the next ``zs``.

    Fujimoto et al. (2023), https://arxiv.org/abs/2306.02451, section 4.1; ``zs`` has unit mean absolute value.

    :param features_dim: length of a flat observation
    :param action_dim: length of an action
    :param net_arch: hidden widths of f and of g
    :param zs_dim: length of both embeddings
    :param activation_fn: activation between layers
    """

    optimizer: th.optim.Optimizer

    def __init__(
        self, features_dim: int, action_dim: int, net_arch: list[int], zs_dim: int, activation_fn: type[nn.Module] = nn.ELU
    ):
        super().__init__()
        self.state = MLP(*plain_mlp(features_dim, net_arch, zs_dim, activation_fn), AvgL1Norm())
        self.action = MLP(*plain_mlp(zs_dim + action_dim, net_arch, zs_dim, activation_fn))


class SALEActor(BasePolicy):
    """
    Actor of TD7: ``tanh(out(relu(h(relu([unit(in(s)), zs])))))`` with ``zs`` from an encoder of its own.

    The encoder is constant: it is saved, moved and copied with the actor but is no parameter of it, so genomes and
    optimizers hold the actor's layers alone. Everything before the last layer is the trunk, the last layer the head.

    :param net_arch: widths of the hidden layers, the first one reads the observation alone
    :param encoder_arch: hidden widths of the encoder
    :param zs_dim: length of the state embedding
    :param activation_fn: activation of the actor
    :param encoder_activation_fn: activation of the encoder
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
    ):
        super().__init__(observation_space, action_space, normalize_images=normalize_images, squash_output=True)
        self.net_arch, self.encoder_arch, self.zs_dim = net_arch, encoder_arch, zs_dim
        self.activation_fn, self.encoder_activation_fn = activation_fn, encoder_activation_fn
        self.features_extractor = self.make_features_extractor()
        features_dim, action_dim = get_flattened_obs_dim(observation_space), get_action_dim(action_space)
        self.first = MLP(nn.Linear(features_dim, net_arch[0]), AvgL1Norm())
        layers, width = [], net_arch[0] + zs_dim
        for next_width in net_arch[1:]:
            layers += [nn.Linear(width, next_width), activation_fn()]
            width = next_width
        self.hidden = MLP(*layers)
        self.feature_dim = width
        self.head = nn.Linear(width, action_dim)
        self.encoder = constant(SALEEncoder(features_dim, action_dim, encoder_arch, zs_dim, encoder_activation_fn).state)

    def features(self, obs: PyTorchObs) -> th.Tensor:
        """:return: flat float32 observations ``(batch, features_dim)``"""
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

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = ("net_arch", "encoder_arch", "zs_dim", "activation_fn", "encoder_activation_fn")
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


class TD7Policy(BasePolicy):
    """
    All networks of TD7.

    ``encoder`` is the live encoder; ``actor.encoder`` and ``fixed_action_encoder`` are its fixed copy, which actor and
    critic read; ``actor_target.encoder`` and ``target_action_encoder`` are the copy the targets read. ``deployed`` is the
    checkpoint: an actor with the encoder it was scored with.

    :param net_arch: hidden widths: a list for all, or ``dict(pi=..., qf=...)`` with ``encoder=...`` if wanted; default
        ``dict(pi=[256, 256, 256], qf=[256, 256, 256], encoder=[256, 256])``. The first layers of actor and critic are
        those before the embeddings come in
    :param zs_dim: length of the embeddings
    :param activation_fn: activation of the actor
    :param critic_activation_fn: activation of the critic
    :param encoder_activation_fn: activation of the encoder
    :param optimizer_class: of encoder, critic and actor
    :param optimizer_kwargs: further arguments of the optimizers
    :param n_critics: number of critics
    :raises ValueError: if ``net_arch`` has other keys or no layer for actor or critic
    """

    actor: SALEActor
    deployed: SALEActor
    value_range: th.Tensor
    """``(2,)``: bounds of the bootstrapped values in force."""
    seen_range: th.Tensor
    """``(2,)``: smallest and largest target so far."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        zs_dim: int = 256,
        activation_fn: type[nn.Module] = nn.ReLU,
        critic_activation_fn: type[nn.Module] = nn.ELU,
        encoder_activation_fn: type[nn.Module] = nn.ELU,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        n_critics: int = 2,
    ):
        super().__init__(
            observation_space,
            action_space,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            squash_output=True,
            normalize_images=normalize_images,
        )
        self.net_arch = net_arch
        if net_arch is None:
            net_arch = {"pi": [256] * 3, "qf": [256] * 3, "encoder": [256] * 2}
        archs = net_arch if isinstance(net_arch, dict) else dict.fromkeys(("pi", "qf", "encoder"), net_arch)
        archs = {"encoder": [256] * 2, **archs}
        if set(archs) != {"pi", "qf", "encoder"} or not archs["pi"] or not archs["qf"]:
            raise ValueError(
                "net_arch must be a list of widths or a dict with the keys 'pi' and 'qf' (and 'encoder'), with at least one "
                f"layer in 'pi' and 'qf'; got {net_arch}"
            )
        self.zs_dim, self.n_critics = zs_dim, n_critics
        self.activation_fn, self.critic_activation_fn = activation_fn, critic_activation_fn
        self.encoder_activation_fn = encoder_activation_fn
        dims = {"features_dim": get_flattened_obs_dim(observation_space), "action_dim": get_action_dim(action_space)}
        self.encoder_kwargs = {**dims, "net_arch": archs["encoder"], "zs_dim": zs_dim, "activation_fn": encoder_activation_fn}
        own = {"n_critics": n_critics, "activation_fn": critic_activation_fn}
        self.critic_kwargs = {**dims, "net_arch": archs["qf"], "zs_dim": zs_dim, **own}
        self.actor_kwargs: dict[str, Any] = {
            "observation_space": observation_space,
            "action_space": action_space,
            "net_arch": archs["pi"],
            "encoder_arch": archs["encoder"],
            "zs_dim": zs_dim,
            "activation_fn": activation_fn,
            "encoder_activation_fn": encoder_activation_fn,
            "normalize_images": normalize_images,
        }
        self.register_buffer("value_range", th.zeros(2))
        self.register_buffer("seen_range", th.tensor([1e8, -1e8]))
        self._build(lr_schedule)

    def _build(self, lr_schedule: Schedule) -> None:
        self.encoder, self.actor, self.critic = self.make_encoder(), self.make_actor(), self.make_critic()
        self.fixed_action_encoder, self.target_action_encoder = (constant(self.make_encoder().action) for _ in range(2))
        self.actor_target, self.deployed, self.critic_target = self.make_actor(), self.make_actor(), self.make_critic()
        self.fix_encoder()
        for source, copied in self.target_pairs():
            copy_module(source, copied)
        self.deploy(self.actor)
        for network in (self.encoder, self.actor, self.critic):
            network.optimizer = self._make_optimizer(list(network.parameters()), lr_schedule)
        for network in (self.actor_target, self.critic_target, self.deployed):
            network.requires_grad_(False)
        self.set_training_mode(False)

    def _make_optimizer(self, parameters: list[nn.Parameter], lr_schedule: Schedule) -> th.optim.Optimizer:
        kwargs = fused_adam(self.optimizer_class, self.optimizer_kwargs)
        return self.optimizer_class(parameters, lr=lr_schedule(1), **kwargs)  # type: ignore[call-arg]

    def make_encoder(self) -> SALEEncoder:
        """A fresh encoder."""
        return SALEEncoder(**self.encoder_kwargs).to(self.device)  # type: ignore[arg-type]

    def make_actor(self) -> SALEActor:
        """A fresh actor."""
        return SALEActor(**self.actor_kwargs).to(self.device)

    def make_critic(self, n_context: int = 0) -> SALECritic:
        """Fresh critic towers."""
        return SALECritic(**self.critic_kwargs, n_context=n_context).to(self.device)  # type: ignore[arg-type]

    def target_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """(network, target) for the hard updates, the encoder's fixed copy among them."""
        encoders = (self.fixed_action_encoder, self.target_action_encoder)
        return [(self.actor, self.actor_target), (self.critic, self.critic_target), encoders]

    def fix_encoder(self) -> None:
        """Copy the live encoder into the fixed one that actor and critic read."""
        copy_constants(self.encoder.state, self.actor.encoder)
        copy_constants(self.encoder.action, self.fixed_action_encoder)

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """:return: see :meth:`_predict`"""
        return self._predict(obs, deterministic=deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """Actions of the checkpoint, or with ``deterministic=False`` of the live actor, without noise."""
        return self.deployed(observation) if deterministic else self.actor(observation)

    def deploy(self, actor: nn.Module) -> None:
        """Copy ``actor`` with its encoder into ``deployed``."""
        copy_module(actor, self.deployed)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own: tuple[str, ...] = ("net_arch", "zs_dim", "activation_fn", "critic_activation_fn", "encoder_activation_fn")
        own += ("optimizer_class", "optimizer_kwargs", "n_critics")
        mine = {name: copy.copy(getattr(self, name)) for name in own}
        return {**super()._get_constructor_parameters(), "lr_schedule": self._dummy_schedule, **mine}


@th.no_grad()
def copy_constants(source: nn.Module, target: nn.Module) -> None:
    """Copy a live network into its constant twin (see :func:`~sb3_erl.policies.layers.constant`)."""
    for value, place in zip(source.parameters(), target.buffers(), strict=True):
        place.copy_(value)


class SALEPolicy(TD7Policy):
    """TD7's networks beside a population: ``predict`` always acts with ``deployed``."""

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self.deployed(observation)


class PopTD7Policy(BasePolicy):
    """
    Several complete sets of TD7's networks, and ``deployed``, the checkpoint of the best.

    :param n_members: number of sets
    :param kwargs: arguments of :class:`TD7Policy`
    """

    deployed: SALEActor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        n_members: int = 3,
        **kwargs: Any,
    ):
        super().__init__(observation_space, action_space, squash_output=True)
        self.kwargs = kwargs
        members = [TD7Policy(observation_space, action_space, lr_schedule, **kwargs) for _ in range(n_members)]
        self.individuals = nn.ModuleList(members)
        self.deployed = members[0].make_actor()
        self.deployed.requires_grad_(False)
        self.turn = 0
        self.deploy(members[0].actor)
        self.set_training_mode(False)

    def give_turn(self, place: int) -> TD7Policy:
        """Act with this set's live actor where ``deterministic=False``; returns the set."""
        self.turn = place
        return self.individuals[place]  # type: ignore[return-value]

    @property
    def actor(self) -> SALEActor:
        """Live actor of the individual whose turn it is."""
        return self.individuals[self.turn].actor  # type: ignore[return-value]

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """:return: see :meth:`_predict`"""
        return self._predict(obs, deterministic=deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """Actions of ``deployed``, or with ``deterministic=False`` of the individual whose turn it is, without noise."""
        return self.deployed(observation) if deterministic else self.actor(observation)

    def deploy(self, actor: nn.Module) -> None:
        """Copy ``actor`` with its encoder into ``deployed``."""
        copy_module(actor, self.deployed)

    def copy_member(self, source: int, target: int) -> None:
        """Overwrite a set's networks and optimizers by another's, but for its checkpoint."""
        giver, taker = self.individuals[source], self.individuals[target]
        kept = copy.deepcopy(taker.deployed.state_dict())  # type: ignore[union-attr]
        taker.load_state_dict(giver.state_dict())
        taker.deployed.load_state_dict(kept)  # type: ignore[union-attr]
        for name in ("encoder", "actor", "critic"):
            state = copy.deepcopy(getattr(giver, name).optimizer.state_dict())
            getattr(taker, name).optimizer.load_state_dict(state)

    def keep_only(self, place: int) -> None:
        """Drop all other sets."""
        self.individuals = nn.ModuleList([self.individuals[place]])
        self.turn = 0

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = {"n_members": len(self.individuals), "lr_schedule": self._dummy_schedule, **self.kwargs}
        parameters = super()._get_constructor_parameters()
        del parameters["normalize_images"]
        return {**parameters, **own}
