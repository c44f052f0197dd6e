"""The learner of ERL-Re2 on TD7: TD7's update, a policy-extended value function, and a trunk that serves all heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from sb3_erl.learners.base import LearnerSettings, Metrics, Sampler, step_optimizer
from sb3_erl.learners.erl_re2 import NO_HEADS, Heads, draw_heads, with_learner
from sb3_erl.learners.td7 import Batch, TD7Learner, TD7Settings
from sb3_erl.policies.td7 import SharedSALEPolicy


@dataclass
class SharedTD7Settings(TD7Settings):
    """
    Constants beside those of TD7.

    :param n_shared_heads: heads (K) in the trunk's loss
    :param pevfa_heads_per_step: heads in one temporal-difference step of the PeVFA, or ``"all"``
    :param rl_loss_weight: weight of the learner's term in the trunk's loss
    :param pevfa_loss_weight: weight of the PeVFA terms in the trunk's loss
    :param pevfa_max_grad_norm: clip the PeVFA's gradient at this norm, ``None`` for no clipping
    """

    n_shared_heads: int = 1
    pevfa_heads_per_step: int | Literal["all"] = 1
    rl_loss_weight: float = 1.0
    pevfa_loss_weight: float = 1.0
    pevfa_max_grad_norm: float | None = None


class SharedTD7Learner(TD7Learner):
    """
    One gradient iteration of ERL-Re2 on TD7.

    TD7's encoder and critic steps; a PeVFA step for randomly drawn heads, whose target action is that of the online trunk
    on the fixed encoder; and on policy steps one joint loss: the learner's term for trunk and learner's head, the PeVFA's
    terms for the trunk alone. State embeddings get no gradient from values. The PeVFA's bootstrap has a value range of its
    own, and only the critic writes priorities. Without a population this is :class:`~sb3_erl.learners.td7.TD7Learner`.

    No such system is published; it follows Hao et al. (2023) with TD7's parts.

    :param policy: networks and optimizers
    :param settings: constants
    """

    policy: SharedSALEPolicy
    settings: SharedTD7Settings
    settings_class: ClassVar[type[LearnerSettings]] = SharedTD7Settings
    pure_methods = ("_embed", "_encoder_loss", "_target_values", "_critic_loss")
    policy_aliases: ClassVar[dict[str, type[BasePolicy]] | None] = {"MlpPolicy": SharedSALEPolicy}
    use_graphs = False  # which heads are used is decided in Python

    def __init__(self, policy: SharedSALEPolicy, settings: SharedTD7Settings):
        super().__init__(policy, settings)
        self._pevfa = list(policy.pevfa.parameters())
        self._value_parameters = [*self._critic, *self._pevfa]
        self._population: Heads | None = None
        self._td_heads: Sequence[int] | np.ndarray = []
        self._shared_heads: Sequence[int] | np.ndarray = []

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {**super().optimizers, "pevfa.optimizer": self.policy.pevfa.optimizer}

    def heads(self) -> Heads:
        """The population's heads with the learner's current head as last one."""
        head = self.policy.actor.head
        return with_learner(self._population, head.weight.detach(), head.bias.detach())

    def update(
        self,
        sample: Sampler,
        n_updates: int,
        population: Heads | None = None,
        use_pevfa_term: bool = True,
        rng: np.random.Generator | None = None,
    ) -> dict[str, float]:
        """See :meth:`~sb3_erl.learners.erl_re2.SharedTD3Learner.update`."""
        rng = np.random.default_rng() if rng is None else rng
        n_heads = 0 if population is None else population.n_heads + 1
        metrics = Metrics()
        for _ in range(n_updates):
            batch = sample()
            noise = torch.randn_like(batch.actions)
            td_heads = draw_heads(rng, n_heads, self.settings.pevfa_heads_per_step)
            shared = draw_heads(rng, n_heads, self.settings.n_shared_heads) if use_pevfa_term else NO_HEADS
            self.use_heads(population, td_heads, shared)
            metrics.add(**self.iterate(batch, noise).losses)
        self.use_heads(None, [], [])
        return {**metrics.means(), **self._report()}

    def use_heads(
        self, population: Heads | None, td_heads: Sequence[int] | np.ndarray, shared_heads: Sequence[int] | np.ndarray
    ) -> None:
        """
        Set which heads the next :meth:`iterate` uses; the number of individuals stands for the learner.

        :param population: heads of the population, constants; ``None`` without evolution
        :param td_heads: heads of the PeVFA step
        :param shared_heads: heads of the trunk's loss
        """
        self._population, self._td_heads, self._shared_heads = population, td_heads, shared_heads

    def _more_steps(self, batch: Batch) -> dict[str, Tensor]:
        if self._population is None:
            return {}
        policy, heads = self.policy, self.heads()
        with torch.no_grad():
            next_trunk = policy.actor.trunk(batch.next_features, policy.actor.encoder(batch.next_features))
        loss = torch.zeros((), device=batch.rewards.device)
        for j in self._td_heads:
            weight, bias = heads.weight[j], heads.bias[j]
            with torch.no_grad():
                next_actions = torch.tanh(torch.addmm(bias, next_trunk, weight.t()))
                embedding = policy.pevfa_target.embed(weight, bias)
                next_values = self._next_values(policy.pevfa_target, batch, next_actions, embedding)
                targets = self._targets(batch, next_values, policy.pevfa_value_range, policy.pevfa_seen_range)
            values = policy.pevfa(batch.features, batch.actions, batch.zsa, batch.zs, policy.pevfa.embed(weight, bias))
            loss = loss + self.rule.critic_loss(values, targets)
        step_optimizer(policy.pevfa.optimizer, loss, self._pevfa, self.settings.pevfa_max_grad_norm)
        return {"pevfa_loss": loss}

    def _actor_loss(self, batch: Batch) -> Tensor:
        policy, settings = self.policy, self.settings
        trunk = policy.actor.trunk(batch.features, batch.zs)
        loss = settings.rl_loss_weight * self._learner_loss(batch, torch.tanh(policy.actor.head(trunk)))
        heads = self.heads()
        for j in self._shared_heads:
            weight, bias = heads.weight[j], heads.bias[j]
            actions = torch.tanh(torch.addmm(bias, trunk, weight.t()))
            with torch.no_grad():
                embedding = policy.pevfa.embed(weight, bias)
            values = self._values(policy.pevfa, batch, actions, embedding)
            loss = loss - settings.pevfa_loss_weight * self._mean_value(values)
        return loss

    def hard_update(self) -> None:
        super().hard_update()
        if self._population is not None:  # otherwise no target of PeVFA has been seen
            self.policy.pevfa_value_range.copy_(self.policy.pevfa_seen_range)

    @torch.no_grad()
    def bootstrap(self, observation: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """See :meth:`~sb3_erl.learners.erl_re2.SharedTD3Learner.bootstrap`; with the online PeVFA and fixed encoder."""
        policy = self.policy
        features = policy.actor.features(observation)
        zs = policy.actor.encoder(features)
        actions = torch.tanh(torch.addmm(bias, policy.actor.trunk(features, zs), weight.t()))
        zsa = policy.fixed_action_encoder(torch.cat([zs, actions], dim=1))
        return self.rule.target(policy.pevfa(features, actions, zsa, zs, policy.pevfa.embed(weight, bias)))[:, 0]
