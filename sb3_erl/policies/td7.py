"""Policies of TD7: its networks alone, beside a population, as the shared encoder of ERL-Re2, and several sets of them."""

from __future__ import annotations

import copy
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_erl.core.checks import check_policy_kwargs
from sb3_erl.core.parameters import copy_module
from sb3_erl.policies.erl import DeployedPolicy, fused_adam
from sb3_erl.policies.erl_re2 import PolicyEncoder
from sb3_erl.policies.layers import ReadsDicts, ReadsImages, constant
from sb3_erl.policies.sale import SALEActor, SALECritic, SALEEncoder, SALEPolicyExtendedCritic, copy_constants


class CheckpointPolicy(DeployedPolicy):
    """Acts with the checkpoint, ``deployed``, or where ``deterministic=False`` with the live actor, without noise."""

    actor: Any

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self.deployed(observation) if deterministic else self.actor(observation)


class TD7Policy(CheckpointPolicy):
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
    :param features_extractor_class: where embeddings begin; it is trained as part of the encoder, see
        :class:`~sb3_erl.policies.sale.SALEEncoder`
    :param features_extractor_kwargs: its arguments
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
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        n_critics: int = 2,
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
        dims = {"features_dim": self.make_features_extractor().features_dim, "action_dim": get_action_dim(action_space)}
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
            "features_extractor_class": features_extractor_class,
            "features_extractor_kwargs": features_extractor_kwargs,
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
        extractor: Any = self.make_features_extractor()
        return SALEEncoder(**self.encoder_kwargs, extractor=extractor).to(self.device)  # type: ignore[arg-type]

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
        copy_constants(self.encoder.extractor, self.actor.features_extractor)
        copy_constants(self.encoder.state, self.actor.encoder)
        copy_constants(self.encoder.action, self.fixed_action_encoder)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own: tuple[str, ...] = ("net_arch", "zs_dim", "activation_fn", "critic_activation_fn", "encoder_activation_fn")
        own += ("optimizer_class", "optimizer_kwargs", "n_critics", "features_extractor_class", "features_extractor_kwargs")
        mine = {name: copy.copy(getattr(self, name)) for name in own}
        return {**super()._get_constructor_parameters(), "lr_schedule": self._dummy_schedule, **mine}


class SALEPolicy(TD7Policy):
    """TD7's networks beside a population: ``predict`` always acts with ``deployed``."""

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self.deployed(observation)


class PopTD7Policy(CheckpointPolicy):
    """
    Several complete sets of TD7's networks, and ``deployed``, the checkpoint of the best.

    :param n_members: number of sets
    :param kwargs: arguments of :class:`TD7Policy`
    """

    checks_arguments = True
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
        check_policy_kwargs(TD7Policy, kwargs)
        self.kwargs = kwargs
        members = [TD7Policy(observation_space, action_space, lr_schedule, **kwargs) for _ in range(n_members)]
        self.individuals = nn.ModuleList(members)
        self.deployed = members[0].make_actor()
        self.deployed.requires_grad_(False)
        self.active = 0
        """Number of the set whose live actor acts where ``deterministic=False``."""
        self.deploy(members[0].actor)
        self.set_training_mode(False)

    def activate(self, place: int) -> TD7Policy:
        """
        Act with the live actor of one set where ``deterministic=False``.

        :param place: number of the set
        :return: the set
        """
        self.active = place
        return self.individuals[place]  # type: ignore[return-value]

    @property
    def actor(self) -> SALEActor:
        """Live actor of the active set."""
        return self.individuals[self.active].actor  # type: ignore[return-value]

    def copy_member(self, source: int, target: int) -> None:
        """Copy networks and optimizers of one set into another, which keeps its checkpoint."""
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
        self.active = 0

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = {"n_members": len(self.individuals), "lr_schedule": self._dummy_schedule, **self.kwargs}
        parameters = super()._get_constructor_parameters()
        del parameters["normalize_images"]
        return {**parameters, **own}


class SharedSALEPolicy(SALEPolicy):
    """
    :class:`~sb3_erl.policies.td7.TD7Policy` with a policy-extended value function (PeVFA) and its target.

    :param policy_embedding_dim: width of the policy encoder
    :param pevfa_layout: see :class:`~sb3_erl.policies.erl_re2.PolicyEncoder`
    :param squash_heads: the policy encoder reads logarithms, because mutated heads can carry huge weights
    :param kwargs: arguments of ``TD7Policy``
    """

    pevfa_value_range: th.Tensor
    pevfa_seen_range: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        policy_embedding_dim: int = 64,
        pevfa_layout: str = "rows",
        squash_heads: bool = True,
        **kwargs: Any,
    ):
        self._own: dict[str, Any] = {
            "policy_embedding_dim": policy_embedding_dim,
            "pevfa_layout": pevfa_layout,
            "squash_heads": squash_heads,
        }
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)
        self.register_buffer("pevfa_value_range", th.zeros(2))
        self.register_buffer("pevfa_seen_range", th.tensor([1e8, -1e8]))

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.pevfa, self.pevfa_target = self.make_pevfa(), self.make_pevfa()
        self.pevfa_target.load_state_dict(self.pevfa.state_dict())
        self.pevfa_target.requires_grad_(False)
        self.pevfa.optimizer = self._make_optimizer(list(self.pevfa.parameters()), lr_schedule)

    def make_pevfa(self) -> SALEPolicyExtendedCritic:
        """Fresh PeVFA towers."""
        width = self._own["policy_embedding_dim"]
        encoder = PolicyEncoder(
            self.n_critics,
            self.actor.feature_dim,
            get_action_dim(self.action_space),
            width,
            self._own["pevfa_layout"],
            activation_fn=nn.ELU,
            squash=self._own["squash_heads"],
        )
        return SALEPolicyExtendedCritic(self.make_critic(n_context=width), encoder).to(self.device)

    def target_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """See :meth:`TD7Policy.target_pairs`; the PeVFA's target is among them once it exists."""
        own = [(self.pevfa, self.pevfa_target)] if hasattr(self, "pevfa") else []
        return [*super().target_pairs(), *own]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self._own}


class TD7CnnPolicy(ReadsImages, TD7Policy):
    """:class:`TD7Policy` behind SB3's ``NatureCNN``."""


class SALECnnPolicy(ReadsImages, SALEPolicy):
    """:class:`SALEPolicy` behind SB3's ``NatureCNN``."""


class PopTD7CnnPolicy(ReadsImages, PopTD7Policy):
    """:class:`PopTD7Policy` behind SB3's ``NatureCNN``."""


class SharedSALECnnPolicy(ReadsImages, SharedSALEPolicy):
    """:class:`SharedSALEPolicy` behind SB3's ``NatureCNN``."""


class TD7MultiInputPolicy(ReadsDicts, TD7Policy):
    """:class:`TD7Policy` behind SB3's ``CombinedExtractor``."""


class SALEMultiInputPolicy(ReadsDicts, SALEPolicy):
    """:class:`SALEPolicy` behind SB3's ``CombinedExtractor``."""


class PopTD7MultiInputPolicy(ReadsDicts, PopTD7Policy):
    """:class:`PopTD7Policy` behind SB3's ``CombinedExtractor``."""


class SharedSALEMultiInputPolicy(ReadsDicts, SharedSALEPolicy):
    """:class:`SharedSALEPolicy` behind SB3's ``CombinedExtractor``."""


Aliases = dict[str, type[BasePolicy]]
TD7_POLICIES: Aliases = {"MlpPolicy": TD7Policy, "CnnPolicy": TD7CnnPolicy, "MultiInputPolicy": TD7MultiInputPolicy}
"""Networks of TD7, by alias."""
POP_TD7_POLICIES: Aliases = {
    "MlpPolicy": PopTD7Policy,
    "CnnPolicy": PopTD7CnnPolicy,
    "MultiInputPolicy": PopTD7MultiInputPolicy,
}
"""Sets of networks of TD7, by alias."""
