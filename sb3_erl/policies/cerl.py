"""Networks of CERL: those of each learner of a portfolio, and the network with which ``predict`` acts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_erl.core.checks import check_policy_kwargs
from sb3_erl.core.parameters import copy_module
from sb3_erl.policies.cem_rl import TowerNetworks
from sb3_erl.policies.erl import DeployedPolicy, ERLActor
from sb3_erl.policies.layers import PlainNorm, ReadsDicts, ReadsImages, StackedLinear

MemberSpec = tuple[type[BasePolicy], dict[str, Any]]
"""Policy class of one learner, and its arguments beside spaces and schedule."""


class CERLActor(ERLActor):
    """``[linear, elu, layer norm] * len(net_arch), linear, tanh`` with torch's layer norm."""

    norm_class = PlainNorm
    norm_last = True


class CERLNetworks(TowerNetworks):
    """
    Networks of one TD3 or DDPG learner of CERL: ``[linear, elu, layer norm] * 2, linear`` in actor and critics.

    Source: ``core/models.py: Actor, Critic`` of the authors' code, with tanh in place of the actor's sigmoid and without
    the critic's third head, which nothing uses. The learner's weights are Kaiming-uniform, its biases 0.01; targets are
    copies; a fresh actor of :meth:`make_actor`, an individual, has torch's initialization.

    :param activation_fn: activation of actor and critic
    :param layer_norm: put torch's layer norm after each activation
    """

    actor_class = CERLActor

    def __init__(self, *args: Any, activation_fn: type[nn.Module] = nn.ELU, layer_norm: bool = True, **kwargs: Any):
        kwargs |= {"activation_fn": activation_fn, "layer_norm": layer_norm}
        super().__init__(*args, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        for network, target in ((self.actor.mu, self.actor_target.mu), (self.critic.towers, self.critic_target.towers)):
            initialize_learner(network)  # type: ignore[arg-type]
            copy_module(network, target)  # type: ignore[arg-type]

    def _tower_arguments(self) -> dict[str, Any]:
        return {"activation": self.activation_fn(), "norm_last": True}


class CERLCnnNetworks(ReadsImages, CERLNetworks):
    """:class:`CERLNetworks` behind SB3's ``NatureCNN``, which keeps its own initialization."""


class CERLMultiInputNetworks(ReadsDicts, CERLNetworks):
    """:class:`CERLNetworks` behind SB3's ``CombinedExtractor``, which keeps its own initialization."""


@th.no_grad()
def initialize_learner(network: nn.Module) -> None:
    """
    Kaiming-uniform weights with torch's default arguments and biases of 0.01, in linear layers and stacks of them.

    Source: ``core/mod_utils.py: init_weights`` of the authors' code.

    :param network: changed in place
    """
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight)
            nn.init.constant_(layer.bias, 0.01)
        elif isinstance(layer, StackedLinear):
            for weight in layer.weight:  # of one tower, (in, out)
                nn.init.kaiming_uniform_(weight.T)
            nn.init.constant_(layer.bias, 0.01)


class CERLPolicy(DeployedPolicy):
    """
    One complete policy per learner (``members``) and ``deployed``, the network ``predict`` acts with.

    ``deployed`` and the individuals have the shape of the first learner's actor, which is ``actor``.

    :param members: class and arguments of each learner's policy; without it a single :class:`CERLNetworks`
    :param by_learner: one mapping of arguments per learner, which have precedence over the common ones
    :param kwargs: arguments of all learners' policies
    :raises ValueError: if ``by_learner`` has not one mapping per learner
    """

    checks_arguments: ClassVar[bool] = True
    alias: ClassVar[str] = "MlpPolicy"
    networks_class: ClassVar[type[BasePolicy]] = CERLNetworks
    """Policy of TD3 and DDPG learners."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        members: Sequence[MemberSpec] | None = None,
        by_learner: Sequence[dict[str, Any]] | None = None,
        **kwargs: Any,
    ):
        super().__init__(observation_space, action_space, squash_output=True)
        members = [(self.networks_class, {})] if members is None else members
        by_learner = [{}] * len(members) if by_learner is None else by_learner
        if len(by_learner) != len(members):
            raise ValueError(
                f"by_learner must hold one mapping per learner, {len(members)}; got {len(by_learner)}. "
                "Use {} for learners without arguments of their own"
            )
        for (policy_class, _), own in zip(members, by_learner, strict=True):
            check_policy_kwargs(policy_class, {**kwargs, **own})
        common = {"observation_space": observation_space, "action_space": action_space, "lr_schedule": lr_schedule}
        built = [
            policy_class(**{**common, **arguments, **kwargs, **own})
            for (policy_class, arguments), own in zip(members, by_learner, strict=True)
        ]
        self.members = nn.ModuleList(built)
        self.deployed: Any = None
        self.adopt(0, built[0])
        self.set_training_mode(False)

    def adopt(self, number: int, policy: BasePolicy) -> None:
        """
        Replace the policy of a learner. For the first learner, ``deployed`` becomes a copy of its actor.

        :param number: of the learner
        :param policy: its policy
        """
        self.members[number] = policy
        if number == 0:
            self.deployed = self.make_actor()
            self.deployed.requires_grad_(False)
            self.deployed.set_training_mode(False)
            self.deploy(self.actor)

    @property
    def first(self) -> Any:
        """Policy of the first learner."""
        return self.members[0]

    @property
    def actor(self) -> Any:
        """Actor of the first learner."""
        return self.first.actor

    @property
    def actor_target(self) -> Any:
        """Target of :attr:`actor`, ``None`` for learners without one."""
        return getattr(self.first, "actor_target", None)

    @property
    def critic(self) -> Any:
        """Critic of the first learner."""
        return self.first.critic

    @property
    def critic_target(self) -> Any:
        """Target of :attr:`critic`, ``None`` for learners without one."""
        return getattr(self.first, "critic_target", None)

    def make_actor(self) -> Any:
        """A fresh actor of the shape of the first learner's."""
        return self.first.make_actor()

    def set_training_mode(self, mode: bool) -> None:
        """Set the mode of all learners' networks; ``deployed`` stays in evaluation mode."""
        for member in self.members:
            member.set_training_mode(mode)  # type: ignore[operator]
        self.deployed.set_training_mode(False)
        self.training = mode

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        del parameters["normalize_images"]
        members = [(type(member), member._get_constructor_parameters()) for member in self.members]  # type: ignore[operator]
        return {**parameters, "lr_schedule": self._dummy_schedule, "members": members}


class CERLCnnPolicy(CERLPolicy):
    """:class:`CERLPolicy` for images: learners read them through SB3's ``NatureCNN``."""

    alias = "CnnPolicy"
    networks_class = CERLCnnNetworks


class CERLMultiInputPolicy(CERLPolicy):
    """:class:`CERLPolicy` for Dict observations: learners read them through SB3's ``CombinedExtractor``."""

    alias = "MultiInputPolicy"
    networks_class = CERLMultiInputNetworks


CERL_POLICIES: dict[str, type[BasePolicy]] = {
    "MlpPolicy": CERLPolicy,
    "CnnPolicy": CERLCnnPolicy,
    "MultiInputPolicy": CERLMultiInputPolicy,
}
"""Networks of CERL, by alias."""
