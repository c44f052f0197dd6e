"""Networks of ERL-Re2 on TD7: the trunk of TD7's actor is the shared encoder, its last layer the learner's head."""

from __future__ import annotations

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_erl.policies.erl_re2 import PolicyEncoder
from sb3_erl.policies.layers import AvgL1Norm
from sb3_erl.policies.sale import SALECritic
from sb3_erl.policies.td7 import SALEPolicy


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
        """See :meth:`~sb3_erl.policies.sale.SALECritic.forward`; the context is a head's embedding."""
        return self.critic(*inputs)


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
