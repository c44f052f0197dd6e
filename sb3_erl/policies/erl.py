"""Networks of ERL and PDERL, and what all policies of the package share: the network with which ``predict`` acts."""

from __future__ import annotations

import copyreg
import itertools
from abc import ABCMeta
from functools import cache
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.td3.policies import Actor, TD3Policy
from torch import nn

from sb3_erl.core.action_spaces import ActsInSpace
from sb3_erl.core.parameters import copy_module
from sb3_erl.policies.layers import KeepsFrozen, ReadsDicts, ReadsImages, StackedLinear, StdNorm, scale_parameters
from sb3_erl.policies.rollout_layers import Layers, acts_on_vectors_as, in_order
from sb3_erl.policies.sequential import MLP, choice_of, mlp


class ActsWithDeployed(KeepsFrozen, ActsInSpace):
    """
    Lets ``predict`` act with the network ``deployed`` of a policy.

    ``actor`` keeps its meaning (what gradients train); ``deployed`` is what the published system reports: champion,
    mean or learner. It is written once at the end of each generation.
    """

    deployed: Any

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self.deployed._predict(observation, deterministic=deterministic)

    def deploy(self, actor: nn.Module) -> None:
        """Copy the parameters and buffers of ``actor`` into ``deployed``."""
        copy_module(actor, self.deployed)


class DeployedPolicy(ActsWithDeployed, BasePolicy):
    """Base of the policies that are not derived from one of SB3's; they make ``deployed`` themselves."""

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """:return: actions ``(batch, action_dim)`` as ``predict`` gives them before they are scaled to the action space"""
        return self._predict(obs, deterministic=deterministic)

    def set_training_mode(self, mode: bool) -> None:
        """As in SB3, whose loop asks for it at every step; to look at all modules takes less time than to set them again."""
        if any(module.training != mode for module in self.modules()):
            super().set_training_mode(mode)


class DeployedMixin(ActsWithDeployed):
    """Gives an SB3 policy one more network, ``deployed``, with which ``predict`` acts."""

    actor: Any

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)  # type: ignore[misc]
        self.deployed = self.make_actor()
        copy_module(self.actor, self.deployed)
        self.deployed.set_training_mode(False)

    def set_training_mode(self, mode: bool) -> None:
        """See SB3's policies; ``deployed`` only acts."""
        super().set_training_mode(mode)  # type: ignore[misc]
        if any(module.training for module in self.deployed.modules()):
            self.deployed.set_training_mode(False)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """A fresh acting network of the shape of ``actor``."""
        return super().make_actor(features_extractor)  # type: ignore[misc]


def fused_adam(optimizer_class: type[th.optim.Optimizer], optimizer_kwargs: dict[str, Any] | None = None) -> dict[str, Any]:
    """
    torch's one-kernel form of Adam and AdamW, the same formula in less time, unless the user wants another.

    :param optimizer_class: class of the optimizer
    :param optimizer_kwargs: its arguments
    :return: its arguments, completed
    """
    kwargs = dict(optimizer_kwargs or {})
    if optimizer_class in (th.optim.Adam, th.optim.AdamW) and not kwargs.keys() & {"foreach", "differentiable"}:
        kwargs.setdefault("fused", True)
    return kwargs


def check_own_extractors(share_features_extractor: bool) -> None:
    """:raises ValueError: if actor and critic shall share their features extractor"""
    if share_features_extractor:
        raise ValueError("share_features_extractor must be False: each individual has its own extractor; got True")


WITH_NETWORKS = tuple(f"stable_baselines3.{name}.policies" for name in ("td3", "sac", "dqn"))
"""Where SB3's policies with the networks of a learner are."""


class UnfitPolicyError(ValueError):
    """A policy class lacks networks that an algorithm, or its learner, needs."""


def fitting_policy(policy_class: Any, required: Any) -> Any:
    """
    :param policy_class: what a user has given as ``policy``, or a file
    :param required: the class that an alias stands for
    :return: the class with a ``deployed`` network
    :raises UnfitPolicyError: if it is not derived from that class
    """
    own = required.__bases__[1] if isinstance(required, _Deploying) else required
    shared = next((base for base in own.__mro__ if base.__module__ in WITH_NETWORKS), own)  # of SB3, if it is derived from it
    if issubclass(policy_class, own) or (hasattr(policy_class, "deploy") and issubclass(policy_class, shared)):
        return deploying(policy_class)
    raise UnfitPolicyError(
        f"policy must be an alias or a class derived from {own.__module__}.{own.__name__}, which has the networks of this "
        f"algorithm; got {policy_class.__module__}.{policy_class.__name__}. Give policy='MlpPolicy' with policy_kwargs"
    )


@cache
def deploying(policy_class: type[BasePolicy]) -> Any:
    """
    :param policy_class: an SB3 actor-critic policy class with ``make_actor``
    :return: the same class with a ``deployed`` network (see :class:`DeployedMixin`)
    """
    if hasattr(policy_class, "deploy"):
        is_old = policy_class.__name__.startswith("Deploying") and not isinstance(policy_class, _Deploying)
        return deploying(policy_class.__bases__[1]) if is_old else policy_class  # one that an earlier version saved

    name = f"Deploying{policy_class.__name__}"
    return _Deploying(name, (DeployedMixin, policy_class), {"__module__": policy_class.__module__})


class _Deploying(ABCMeta):
    """Of the classes that :func:`deploying` makes. No module has them, so they are pickled as the class that they extend."""


def _reduced(cls: _Deploying) -> Any:
    return deploying, (cls.__bases__[1],)


copyreg.pickle(_Deploying, _reduced)


class ERLActor(Actor):
    """
    Actor of ERL and PDERL: ``[linear, norm, tanh] * len(net_arch), linear, tanh``.

    Source: ``core/ddpg.py: Actor`` of the authors' code of ERL (2018 revision), sizes 128 and 128. In pure evolution actions
    may be discrete; the highest outputs choose then, in place of tanh.

    :param layer_norm: put a :class:`~sb3_erl.policies.layers.StdNorm` before each activation
    """

    norm_class: ClassVar[type[StdNorm]] = StdNorm
    norm_last: ClassVar[bool] = False
    """Whether the norms follow the activations."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: nn.Module,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.Tanh,
        normalize_images: bool = True,
        layer_norm: bool = True,
    ):
        super().__init__(
            observation_space, action_space, net_arch, features_extractor, features_dim, activation_fn, normalize_images
        )
        self.layer_norm = layer_norm
        widths = [features_dim, *net_arch]
        n_outputs, choice = choice_of(action_space)
        last = [nn.Linear(widths[-1], n_outputs), *(choice or [nn.Tanh()])]
        norm_class = self.norm_class if layer_norm else None
        self.mu = MLP(*mlp(features_dim, net_arch, activation_fn, norm_class, self.norm_last), *last)

    @property
    def output_layer(self) -> nn.Linear:
        """The last linear layer, which gives the action before tanh."""
        return next(layer for layer in reversed(list(self.mu)) if isinstance(layer, nn.Linear))

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        actions = self(observation)
        return actions if isinstance(self.action_space, spaces.Box) else actions.long()

    def rollout_layers(self) -> Layers:
        """See :class:`~sb3_erl.policies.rollout_layers.DescribesLayers`."""
        return in_order(self.mu) if acts_on_vectors_as(self, ERLActor) else None

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "layer_norm": self.layer_norm}


class ERLCritic(BaseModel):
    """
    Critic of ERL and PDERL: ``elu`` layers for observation and action side by side, then ``[linear, norm, elu]``.

    Source: ``core/ddpg.py: Critic`` of the authors' code of ERL (2018 revision), sizes 200 + 200 and 300; the first
    layer has no norm there. Several critics are independent towers, evaluated together.

    :param net_arch: ``[h1, h2, ...]``: width of the two first layers, then of the joint ones
    :param n_critics: number of towers
    """

    features_extractor: BaseFeaturesExtractor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ELU,
        normalize_images: bool = True,
        n_critics: int = 1,
        layer_norm: bool = True,
    ):
        super().__init__(
            observation_space, action_space, features_extractor=features_extractor, normalize_images=normalize_images
        )
        action_dim = get_action_dim(action_space)
        self.n_critics = n_critics
        self.activation = activation_fn()
        self.observation_layer = self.action_layer = None
        width = features_dim + action_dim
        if net_arch:
            self.observation_layer = StackedLinear(n_critics, features_dim, net_arch[0])
            self.action_layer = StackedLinear(n_critics, action_dim, net_arch[0])
            width = 2 * net_arch[0]
        widths = [width, *net_arch[1:]]
        self.hidden = nn.ModuleList(StackedLinear(n_critics, a, b) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(StdNorm(w, n_critics) for w in widths[1:]) if layer_norm else None
        self.out = StackedLinear(n_critics, widths[-1], 1)
        scale_parameters(self.out, 0.1)

    def forward(self, obs: PyTorchObs, actions: th.Tensor, n_towers: int | None = None) -> th.Tensor:
        """
        :param obs: batch of observations
        :param actions: ``(batch, action_dim)`` in [-1, 1]
        :param n_towers: evaluate only the first towers
        :return: ``(towers, batch, 1)``
        """
        features = self.extract_features(obs, self.features_extractor)
        if self.observation_layer is None or self.action_layer is None:
            x = th.cat([features, actions], dim=1).expand(self.out.weight[:n_towers].shape[0], -1, -1)
        else:
            sides = (self.observation_layer(features, None, n_towers), self.action_layer(actions, None, n_towers))
            x = th.cat([self.activation(side) for side in sides], dim=-1)
        for index, layer in enumerate(self.hidden):
            x = layer(x, None, n_towers)
            if self.norms is not None:
                x = self.norms[index](x, n_towers)
            x = self.activation(x)
        return self.out(x, None, n_towers)


class ERLPolicy(DeployedMixin, TD3Policy):
    """
    Networks of ERL with its own learner (DDPG, or TD3 with ``n_critics=2``).

    Output layers of the learner's actor and of the critics start at a tenth of torch's default, those of the
    population do not (authors' code). ``net_arch`` is a list for both or ``dict(pi=[128, 128], qf=[200, 300])``, which
    is the default.

    :param layer_norm: the normalization of the authors' code; ``False`` leaves it out
    :param critic_activation_fn: activation of the critics
    :param share_features_extractor: must be ``False``: each individual has an extractor of its own, the critic too
    :raises ValueError: if ``share_features_extractor`` is set
    """

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
        n_critics: int = 1,
        share_features_extractor: bool = False,
        layer_norm: bool = True,
        critic_activation_fn: type[nn.Module] = nn.ELU,
    ):
        check_own_extractors(share_features_extractor)
        self.layer_norm = layer_norm
        self.critic_activation_fn = critic_activation_fn
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            {"pi": [128, 128], "qf": [200, 300]} if net_arch is None else net_arch,
            activation_fn,
            features_extractor_class,
            features_extractor_kwargs,
            normalize_images,
            optimizer_class,
            fused_adam(optimizer_class, optimizer_kwargs),
            n_critics,
            share_features_extractor,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        with th.no_grad():
            scale_parameters(self.actor.output_layer, 0.1)
        for copied in (self.actor_target, self.deployed):
            copy_module(self.actor, copied)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> ERLActor:
        kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return ERLActor(**kwargs, layer_norm=self.layer_norm).to(self.device)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> ERLCritic:  # type: ignore[override]
        kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        del kwargs["share_features_extractor"]
        kwargs["activation_fn"] = self.critic_activation_fn
        return ERLCritic(**kwargs, layer_norm=self.layer_norm).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = {"layer_norm": self.layer_norm, "critic_activation_fn": self.critic_activation_fn}
        return {**super()._get_constructor_parameters(), **own}


class ERLCnnPolicy(ReadsImages, ERLPolicy):
    """:class:`ERLPolicy` behind SB3's ``NatureCNN``, each individual with its own extractor."""


class ERLMultiInputPolicy(ReadsDicts, ERLPolicy):
    """:class:`ERLPolicy` behind SB3's ``CombinedExtractor``, each individual with its own extractor."""


ERL_POLICIES: dict[str, type[BasePolicy]] = {
    "MlpPolicy": ERLPolicy,
    "CnnPolicy": ERLCnnPolicy,
    "MultiInputPolicy": ERLMultiInputPolicy,
}
"""Networks of ERL with its own learners, by alias."""
