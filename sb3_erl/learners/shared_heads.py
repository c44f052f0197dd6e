"""ERL-Re2 on TD7 and EvoRainbow on SAC: their updates, a policy-extended value function, and a trunk that serves all heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN
from torch import Tensor, nn

from sb3_erl.compiled.gradients import frozen, step_optimizer
from sb3_erl.core.parameters import soft_update
from sb3_erl.learners.base import Learner, LearnerSettings, Metrics, Sampler
from sb3_erl.learners.erl_re2 import NO_HEADS, Heads, SharedTD3Learner, as_indices, draw_heads, with_learner
from sb3_erl.learners.sac import SACLearner, SACSettings
from sb3_erl.learners.td3 import TD3Learner, td_targets
from sb3_erl.learners.td7 import Batch, TD7Learner, TD7Settings, Update
from sb3_erl.policies.evo_rainbow import PRIVATE_SAC_POLICIES, SHARED_SAC_POLICIES, SharedSACPolicy
from sb3_erl.policies.td7 import SharedSALECnnPolicy, SharedSALEMultiInputPolicy, SharedSALEPolicy


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
    unread: ClassVar[dict[str, str]] = {}  # tau is the PeVFA's
    pure_methods = ("_embed", "_encoder_loss", "_target_values", "_critic_loss")
    policy_aliases: ClassVar[dict[str, type[BasePolicy]] | None] = {
        "MlpPolicy": SharedSALEPolicy,
        "CnnPolicy": SharedSALECnnPolicy,
        "MultiInputPolicy": SharedSALEMultiInputPolicy,
    }

    def __init__(self, policy: SharedSALEPolicy, settings: SharedTD7Settings):
        super().__init__(policy, settings)
        self._pevfa = list(policy.pevfa.parameters())
        self._value_parameters = [*self._critic, *self._pevfa]

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {**super().optimizers, "pevfa.optimizer": self.policy.pevfa.optimizer}

    def heads(self, population: Heads | None) -> Heads:
        """The population's heads with the learner's current head as last one."""
        head = self.policy.actor.head
        return with_learner(population, head.weight.detach(), head.bias.detach())

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
            metrics.add(**self.iterate(batch, noise, population, td_heads, shared).losses)
        return {**metrics.means(), **self._report()}

    def iterate(
        self,
        samples: ReplayBufferSamples,
        noise: Tensor,
        population: Heads | None = None,
        td_heads: Sequence[int] | np.ndarray = NO_HEADS,
        shared_heads: Sequence[int] | np.ndarray = NO_HEADS,
    ) -> Update:
        """
        See :meth:`~sb3_erl.learners.td7.TD7Learner.iterate`.

        :param population: heads of the population, constants; ``None`` without evolution
        :param td_heads: heads of the PeVFA step; the number of individuals stands for the learner
        :param shared_heads: heads of the trunk's loss
        """
        if (self.n_updates + 1) % self.settings.policy_delay != 0:
            shared_heads = NO_HEADS  # nothing reads them
        return super().iterate(samples, noise, population, *as_indices(noise.device, td_heads, shared_heads))

    def _more_steps(self, batch: Batch, *more: Any) -> dict[str, Tensor]:
        population, td_heads, _ = more
        if population is None:
            return {}
        policy, heads = self.policy, self.heads(population)
        with torch.no_grad():
            next_trunk = policy.actor.encode(batch.next_observations)
        loss = torch.zeros((), device=batch.rewards.device)
        for weight, bias in zip(heads.weight[td_heads], heads.bias[td_heads], strict=True):
            with torch.no_grad():
                next_actions = torch.tanh(torch.addmm(bias, next_trunk, weight.t()))
                embedding = policy.pevfa_target.embed(weight, bias)
                next_values = self._next_values(policy.pevfa_target, batch, next_actions, embedding)
                targets = self._targets(batch, next_values, policy.pevfa_value_range, policy.pevfa_seen_range)
            values = policy.pevfa(batch.features, batch.actions, batch.zsa, batch.zs, policy.pevfa.embed(weight, bias))
            loss = loss + self.rule.critic_loss(values, targets)
        step_optimizer(policy.pevfa.optimizer, loss, self._pevfa, self.settings.pevfa_max_grad_norm)
        return {"pevfa_loss": loss}

    def _actor_loss(self, batch: Batch, *more: Any) -> Tensor:
        population, _, shared_heads = more
        policy, settings = self.policy, self.settings
        trunk = policy.actor.trunk(batch.features, batch.zs)
        loss = settings.rl_loss_weight * self._learner_loss(batch, torch.tanh(policy.actor.head(trunk)))
        heads = self.heads(population)
        for weight, bias in zip(heads.weight[shared_heads], heads.bias[shared_heads], strict=True):
            actions = torch.tanh(torch.addmm(bias, trunk, weight.t()))
            with torch.no_grad():
                embedding = policy.pevfa.embed(weight, bias)
            values = self._values(policy.pevfa, batch, actions, embedding)
            loss = loss - settings.pevfa_loss_weight * self._mean_value(values)
        return loss

    def hard_update(self) -> None:
        super().hard_update()
        if torch.le(*self.policy.pevfa_seen_range):  # otherwise no target of the PeVFA has been seen
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


@dataclass
class SharedSACSettings(SACSettings):
    """
    Constants of SAC with a shared embedding beside those of SAC.

    :param n_shared_heads: heads (K) of the population in the embedding's loss
    :param pevfa_heads_per_step: heads in one temporal-difference step of the PeVFA, or ``"all"``
    """

    n_shared_heads: int = 1
    pevfa_heads_per_step: int | Literal["all"] = 1


class SharedSACLearner(SACLearner):
    """
    SAC whose embedding also serves the heads of a population, with a policy-extended value function (PeVFA) for them.

    Li et al. (2024), EvoRainbow; authors' code: yeshenpy/EvoRainbow, folder ``MetaWorld``. The embedding minimizes SAC's loss
    of the learner and of K heads, whose values are the smaller ones of the PeVFA; the entropy coefficient sees the entropies
    of all of them. Heads of the population are constants. Without a population this is :class:`SACLearner`.

    :param policy: networks and optimizers
    :param settings: constants
    """

    policy: SharedSACPolicy
    settings: SharedSACSettings
    settings_class = SharedSACSettings
    policy_aliases: ClassVar[dict[str, type[BasePolicy]] | None] = SHARED_SAC_POLICIES

    def __init__(self, policy: SharedSACPolicy, settings: SharedSACSettings):
        super().__init__(policy, settings)
        self._pevfa = list(policy.pevfa.parameters())
        self._pevfa_pairs = self._pevfa, list(policy.pevfa_target.parameters())

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {**super().optimizers, "pevfa.optimizer": self.policy.pevfa.optimizer}

    def heads(self, population: Heads) -> Heads:
        """The population's heads with the learner's current head as last one; rows of means, then of standard deviations."""
        layers = self.policy.actor.head.values()
        weight, bias = (torch.cat([getattr(layer, name) for layer in layers]).detach() for name in ("weight", "bias"))
        return with_learner(population, weight, bias)

    def update(
        self,
        sample: Sampler,
        n_updates: int,
        population: Heads | None = None,
        use_pevfa_term: bool = True,
        rng: np.random.Generator | None = None,
    ) -> dict[str, float]:
        """See :meth:`~sb3_erl.learners.erl_re2.SharedTD3Learner.update`."""
        if population is None:
            return super().update(sample, n_updates)
        rng = np.random.default_rng() if rng is None else rng
        metrics, n_heads, settings = Metrics(), population.n_heads + 1, self.settings
        for _ in range(n_updates):
            self.n_updates += 1
            batch = sample()
            td_heads = draw_heads(rng, n_heads, settings.pevfa_heads_per_step)
            shared = draw_heads(rng, n_heads, settings.n_shared_heads) if use_pevfa_term else NO_HEADS
            metrics.add(**self.iterate(batch, population, td_heads, shared))
            if self.n_updates % settings.target_update_interval == 0:
                self.target_step()
                soft_update(*self._pevfa_pairs, settings.tau)
        return metrics.means()

    def iterate(
        self,
        batch: ReplayBufferSamples,
        population: Heads,
        td_heads: Sequence[int] | np.ndarray,
        shared_heads: Sequence[int] | np.ndarray,
    ) -> dict[str, Tensor]:
        """
        One iteration with the choice of heads given.

        :param batch: transitions
        :param population: heads of the population
        :param td_heads: heads of the PeVFA step; the number of individuals stands for the learner
        :param shared_heads: heads of the embedding's loss
        :return: losses and the entropy coefficient that they used
        """
        which = as_indices(batch.actions.device, td_heads, shared_heads)
        count = 2 + len(td_heads) + len(shared_heads)
        noises = tuple(torch.randn_like(batch.actions) for _ in range(count))
        return self._run(self._shared_steps, batch, noises, population, *which)

    def _shared_steps(
        self,
        batch: ReplayBufferSamples,
        noises: tuple[Tensor, ...],
        population: Heads,
        td_heads: Tensor,
        shared_heads: Tensor,
    ) -> dict[str, Tensor]:
        """One update without those of the targets; ``noises`` are for the learner, the shared, the PeVFA's, the critics'."""
        actor, heads, noise = self.policy.actor, self.heads(population), iter(noises)
        features = actor.encode(batch.observations)
        own = self._squashed(*self._parameters(features, actor.head), next(noise))
        shared = [*zip(heads.weight[shared_heads], heads.bias[shared_heads], strict=True)]
        others = [self._act_by(features, *head, next(noise)) for head in shared]
        losses = {"ent_coef": self.log_ent_coef.detach().exp()}
        if self.ent_coef_optimizer is not None:
            entropies = torch.stack([log_prob.detach() + self.target_entropy for _, log_prob in (own, *others)])
            losses["ent_coef_loss"] = -(self.log_ent_coef * entropies).mean(dim=(1, 2)).sum()
            step_optimizer(self.ent_coef_optimizer, losses["ent_coef_loss"], [self.log_ent_coef])
        ent_coef = losses["ent_coef"]
        td = [*zip(heads.weight[td_heads], heads.bias[td_heads], strict=True)]
        losses["pevfa_loss"] = self._pevfa_step(batch, td, noise, ent_coef)
        losses["critic_loss"] = self.critic_step(batch, next(noise), ent_coef=ent_coef)
        with frozen([*self._critic, *self._pevfa]):
            loss = losses["actor_loss"] = self._actor_loss(batch, *own, ent_coef)
            for head, (actions, log_prob) in zip(shared, others, strict=True):
                values = self._pevfa_values(batch.observations, actions, *head)
                loss = loss + (ent_coef * log_prob - values.amin(dim=0)).mean()
        parameters = [p for group in actor.optimizer.param_groups for p in group["params"]]
        step_optimizer(actor.optimizer, loss, parameters, self.settings.max_grad_norm)
        return {name: value.detach().mean() for name, value in (losses | {"encoder_loss": loss}).items()}

    def _parameters(self, features: Tensor, head: nn.ModuleDict) -> tuple[Tensor, Tensor]:
        return head["mean"](features), head["log_std"](features).clamp(LOG_STD_MIN, LOG_STD_MAX)

    def _act_by(self, features: Tensor, weight: Tensor, bias: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Sampled actions of a head, and their log-probabilities."""
        mean, log_std = torch.addmm(bias, features, weight.t()).chunk(2, dim=1)
        return self._squashed(mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX), noise)

    def _pevfa_values(self, observations: Any, actions: Tensor, weight: Tensor, bias: Tensor, target: bool = False) -> Tensor:
        pevfa = self.policy.pevfa_target if target else self.policy.pevfa
        return pevfa(observations, actions, context=pevfa.embed(weight, bias))

    def _pevfa_step(
        self, batch: ReplayBufferSamples, heads: list[tuple[Tensor, Tensor]], noise: Iterator[Tensor], ent_coef: Tensor
    ) -> Tensor:
        """Temporal difference of heads, with the soft value of their own next actions as target."""
        loss = torch.zeros((), device=batch.rewards.device)
        with torch.no_grad():
            next_features = self.policy.actor.encode(batch.next_observations)
        for head in heads:
            with torch.no_grad():
                next_actions, log_prob = self._act_by(next_features, *head, next(noise))
                next_values = self._pevfa_values(batch.next_observations, next_actions, *head, target=True).amin(dim=0)
                targets = td_targets(batch, next_values - ent_coef * log_prob, self.settings.gamma)
            values = self._pevfa_values(batch.observations, batch.actions, *head)
            loss = loss + 0.5 * (values - targets).square().mean(dim=(1, 2)).sum()
        step_optimizer(self.policy.pevfa.optimizer, loss, self._pevfa, self.settings.max_grad_norm)
        return loss

    @torch.no_grad()
    def bootstrap(self, observation: Tensor, weight: Tensor, bias: Tensor, pessimistic: bool = True) -> Tensor:
        """See :meth:`~sb3_erl.learners.erl_re2.SharedTD3Learner.bootstrap`; of the head's mean action."""
        features, n_actions = self.policy.actor.encode(observation), len(bias) // 2
        actions = torch.tanh(torch.addmm(bias[:n_actions], features, weight[:n_actions].t()))
        values = self._pevfa_values(observation, actions, weight, bias)
        return (values.amin(dim=0) if pessimistic else values[0])[:, 0]


class PrivateSACLearner(SACLearner):
    """:class:`~sb3_erl.learners.sac.SACLearner` with the networks of EvoRainbow's private architecture."""

    policy_aliases: ClassVar[dict[str, type[BasePolicy]] | None] = PRIVATE_SAC_POLICIES


FORMS: dict[str, dict[type[Learner], type[Learner]]] = {
    "shared": {TD3Learner: SharedTD3Learner, SACLearner: SharedSACLearner},
    "private": {TD3Learner: TD3Learner, SACLearner: PrivateSACLearner},
}
"""What learners become in EvoRainbow, by its architecture."""
