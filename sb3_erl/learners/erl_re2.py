"""The learner of ERL-Re2: TD3 (or DDPG) on a shared encoder, and the policy-extended value function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor

from sb3_erl.compiled.gradients import apply_gradients, frozen, step_optimizer
from sb3_erl.core.parameters import soft_update
from sb3_erl.learners.base import Learner, LearnerSettings, Metrics, Sampler
from sb3_erl.learners.td3 import td_targets
from sb3_erl.learners.td_rule import TD3Rule, TDRule
from sb3_erl.policies.erl_re2 import ERLRe2Policy

EncoderStep = Literal["recompute", "joint", "torch11"]
NO_HEADS = np.zeros(0, dtype=np.int64)


@dataclass
class SharedSettings(LearnerSettings):
    """
    Constants of ERL-Re2's update beside those of TD3.

    :param encoder_step: which gradient of the learner's loss the encoder gets, see :class:`SharedTD3Learner`
    :param n_shared_heads: heads (K) in the encoder's loss
    :param pevfa_heads_per_step: heads in one temporal-difference step of the PeVFA, or ``"all"``
    :param rl_loss_weight: weight of the learner's term in the encoder's loss
    :param pevfa_loss_weight: weight of the PeVFA terms in the encoder's loss
    """

    encoder_step: EncoderStep = "recompute"
    n_shared_heads: int = 1
    pevfa_heads_per_step: int | Literal["all"] = 1
    rl_loss_weight: float = 1.0
    pevfa_loss_weight: float = 1.0


class Heads(NamedTuple):
    """
    Linear heads on the shared features; the last one is the learner's.

    :param weight: ``(n, action_dim, feature_dim)``
    :param bias: ``(n, action_dim)``
    """

    weight: Tensor
    bias: Tensor

    @property
    def n_heads(self) -> int:
        """Number of heads."""
        return self.weight.shape[0]


def with_learner(population: Heads | None, weight: Tensor, bias: Tensor) -> Heads:
    """The population's heads with the learner's, ``(action_dim, feature_dim)`` and ``(action_dim,)``, as last one."""
    if population is None:
        return Heads(weight[None], bias[None])
    return Heads(torch.cat([population.weight, weight[None]]), torch.cat([population.bias, bias[None]]))


def draw_heads(rng: np.random.Generator, n_heads: int, count: int | Literal["all"]) -> np.ndarray:
    """
    :param rng: generator
    :param n_heads: number of heads, 0 for none
    :param count: how many of them, at most
    :return: distinct numbers of heads
    """
    return rng.choice(n_heads, size=n_heads if count == "all" else min(count, n_heads), replace=False) if n_heads else NO_HEADS


def as_indices(device: torch.device, *numbers: Sequence[int] | np.ndarray) -> tuple[Tensor, ...]:
    """Numbers of heads as tensors, for updates that run as one program."""
    return tuple(torch.as_tensor(np.array(each, dtype=np.int64), device=device) for each in numbers)


class SharedTD3Learner(Learner):
    """
    One gradient iteration of ERL-Re2, in the order of the authors' code (``core/ddpg.py: TD3.train``).

    PeVFA step, critic step and, on every ``policy_delay``-th iteration, head step, encoder step and soft updates. The
    encoder minimizes ``rl_loss_weight * L_RL + pevfa_loss_weight * sum_j -V1(s, pi_j(s), W_j)``, Hao et al. (2023),
    section 3. The learner's head steps before the encoder; ``encoder_step`` chooses which ``L_RL`` the encoder minimizes:

    - ``"recompute"`` (default): evaluated again with the stepped head;
    - ``"joint"``: one forward pass for both, the head steps last;
    - ``"torch11"``: activations from before the head's step times its weights from after it, what the authors' code
      computed on torch 1.1; for comparisons only.

    Differences: the PeVFA reads rows that are encoded once a batch; unused gradients are not computed.

    :param policy: networks and optimizers
    :param settings: constants
    :param rule: targets and losses of critic, PeVFA and policies, TD3's if ``None``
    """

    policy: ERLRe2Policy
    settings: SharedSettings
    settings_class = SharedSettings
    pure_methods = ("_pevfa_targets", "_pevfa_loss", "_critic_targets", "_critic_loss", "_rl_loss", "_pevfa_term")

    def __init__(self, policy: ERLRe2Policy, settings: SharedSettings, rule: TDRule | None = None):
        super().__init__(policy, settings)
        self.rule = TD3Rule() if rule is None else rule
        self.learning_rates, self.use_graphs = self.rule.learning_rates, self.rule.use_graphs
        self._encoder = policy.actor.encoder_parameters()
        self._head = list(policy.actor.head.parameters())
        self._critic = list(policy.critic.parameters())
        self._pevfa = list(policy.pevfa.parameters())
        online = [policy.actor, policy.critic, policy.pevfa]
        target = [policy.actor_target, policy.critic_target, policy.pevfa_target]
        self._online = [p for network in online for p in network.parameters()]
        self._target = [p for network in target for p in network.parameters()]
        self._buffer_pairs = [
            pair for a, b in zip(online, target, strict=True) for pair in zip(a.buffers(), b.buffers(), strict=True)
        ]

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        policy = self.policy
        return {
            "actor.optimizer": policy.actor.optimizer,
            "actor.encoder_optimizer": policy.actor.encoder_optimizer,  # type: ignore[dict-item]
            "critic.optimizer": policy.critic.optimizer,
            "pevfa.optimizer": policy.pevfa.optimizer,
        }

    def heads(self, population: Heads | None) -> Heads:
        """The population's heads with the learner's current head as last one."""
        return with_learner(population, *(p.detach() for p in self._head))

    def update(
        self,
        sample: Sampler,
        n_updates: int,
        population: Heads | None = None,
        use_pevfa_term: bool = True,
        rng: np.random.Generator | None = None,
    ) -> dict[str, float]:
        """
        :param sample: draws one batch
        :param n_updates: how many gradient iterations
        :param population: heads of the population after evolution, constants here; ``None`` without evolution
        :param use_pevfa_term: whether the encoder's loss has PeVFA terms (not before the first fitness evaluation)
        :param rng: draws which heads are used
        :return: mean losses
        """
        rng = np.random.default_rng() if rng is None else rng
        n_heads = 0 if population is None else population.n_heads + 1
        metrics = Metrics()
        for iteration in range(n_updates):  # the delay restarts each generation, as in the authors' code
            batch = sample()
            noise = torch.randn_like(batch.actions) * self.settings.target_policy_noise
            td_heads = draw_heads(rng, n_heads, self.settings.pevfa_heads_per_step)
            on_policy_step = iteration % self.settings.policy_delay == 0
            in_loss = on_policy_step and use_pevfa_term
            shared = draw_heads(rng, n_heads, self.settings.n_shared_heads) if in_loss else NO_HEADS
            metrics.add(**self.iterate(batch, noise, population, td_heads, shared, on_policy_step))
        self.n_updates += n_updates
        return metrics.means()

    def iterate(
        self,
        batch: ReplayBufferSamples,
        noise: Tensor,
        population: Heads | None,
        td_heads: Sequence[int] | np.ndarray,
        shared_heads: Sequence[int] | np.ndarray,
        on_policy_step: bool,
    ) -> dict[str, Tensor]:
        """
        One iteration with all random choices given.

        :param batch: transitions
        :param noise: target smoothing noise ``(batch, action_dim)`` before clipping
        :param population: heads of the population, ``None`` without evolution
        :param td_heads: heads of the PeVFA step; the number of individuals stands for the learner
        :param shared_heads: heads of the encoder's loss
        :param on_policy_step: whether head, encoder and targets move
        :return: losses
        """
        which = as_indices(noise.device, td_heads, shared_heads)
        return self._run(self._steps, batch, noise, population, *which, on_policy_step=on_policy_step)

    def _steps(
        self,
        batch: ReplayBufferSamples,
        noise: Tensor,
        population: Heads | None,
        td_heads: Tensor,
        shared_heads: Tensor,
        on_policy_step: bool,
    ) -> dict[str, Tensor]:
        losses = {}
        if population is not None:
            losses["pevfa_loss"] = self._pevfa_step(batch, self.heads(population), td_heads)
        losses["critic_loss"] = self._critic_step(batch, noise)
        if on_policy_step:
            with frozen([*self._critic, *self._pevfa]):
                losses |= self._policy_step(batch, population, shared_heads)
            soft_update(self._online, self._target, self.settings.tau)
            for online, target in self._buffer_pairs:
                target.copy_(online)
        return losses

    def _pevfa_step(self, batch: ReplayBufferSamples, heads: Heads, which: Tensor) -> Tensor:
        loss = torch.zeros((), device=batch.rewards.device)
        encode = self.policy.actor.encode
        with torch.no_grad():
            next_features = encode(batch.next_observations)
            features = encode(batch.observations) if self.policy.pevfa.reads_features else None
        for head in zip(heads.weight[which], heads.bias[which], strict=True):
            loss = loss + self._pevfa_loss(batch, features, self._pevfa_targets(batch, next_features, *head), *head)
        step_optimizer(self.policy.pevfa.optimizer, loss, self._pevfa, self.settings.max_grad_norm)
        return loss

    @torch.no_grad()
    def _pevfa_targets(self, batch: ReplayBufferSamples, next_features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        next_actions = torch.tanh(torch.addmm(bias, next_features, weight.t()))
        target = self.policy.pevfa_target
        embedding = target.embed(weight, bias)
        next_values = target(batch.next_observations, next_actions, context=embedding, features=next_features)
        return td_targets(batch, self.rule.target(next_values), self.settings.gamma)

    def _pevfa_loss(
        self, batch: ReplayBufferSamples, features: Tensor | None, targets: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        pevfa = self.policy.pevfa
        values = pevfa(batch.observations, batch.actions, context=pevfa.embed(weight, bias), features=features)
        return self.rule.critic_loss(values, targets)

    def _critic_step(self, batch: ReplayBufferSamples, noise: Tensor) -> Tensor:
        loss = self._critic_loss(batch, self._critic_targets(batch, noise))
        step_optimizer(self.policy.critic.optimizer, loss, self._critic, self.settings.max_grad_norm)
        return loss

    @torch.no_grad()
    def _critic_targets(self, batch: ReplayBufferSamples, noise: Tensor) -> Tensor:
        policy, clip = self.policy, self.settings.target_noise_clip
        next_actions = (policy.actor_target(batch.next_observations) + noise.clamp(-clip, clip)).clamp(-1, 1)
        next_values = policy.critic_target(batch.next_observations, next_actions)
        return td_targets(batch, self.rule.target(next_values), self.settings.gamma)

    def _critic_loss(self, batch: ReplayBufferSamples, targets: Tensor) -> Tensor:
        values = self.policy.critic(batch.observations, batch.actions)
        return self.rule.critic_loss(values, targets)

    def _rl_loss(self, batch: ReplayBufferSamples, actions: Tensor) -> Tensor:
        values = self.policy.critic(batch.observations, actions, n_towers=self.rule.actor_towers)
        return -self.rule.actor_value(values).mean()

    def _policy_step(self, batch: ReplayBufferSamples, population: Heads | None, shared_heads: Tensor) -> dict[str, Tensor]:
        settings, actor, order = self.settings, self.policy.actor, self.settings.encoder_step
        limit = settings.max_grad_norm
        features = actor.encode(batch.observations)
        # with "recompute" the head's gradient stops at the features: the encoder's own pass comes after the head's step
        pre_activation = actor.head(features.detach() if order == "recompute" else features)
        head_loss = self._rl_loss(batch, torch.tanh(pre_activation))
        if order == "recompute":
            step_optimizer(actor.optimizer, head_loss, self._head, limit)
            rl_loss = self._rl_loss(batch, torch.tanh(actor.head(features)))
        else:  # one pass through the critic, because a compiled graph allows one backward pass
            slope = torch.autograd.grad(head_loss, pre_activation)[0]
            head_grads = torch.autograd.grad(pre_activation, self._head, slope, retain_graph=True)
            if order == "torch11":
                apply_gradients(actor.optimizer, self._head, head_grads, limit)
                rl_loss = (features @ actor.head.weight.detach().t() * slope).sum()
            else:  # the loss's value with its gradient
                rl_loss = head_loss.detach() + ((pre_activation - pre_activation.detach()) * slope).sum()
        loss = settings.rl_loss_weight * rl_loss
        if population is not None:
            loss = loss + settings.pevfa_loss_weight * self._pevfa_terms(batch, features, population, shared_heads)
        step_optimizer(actor.encoder_optimizer, loss, self._encoder, limit)  # type: ignore[arg-type]
        if order == "joint":
            apply_gradients(actor.optimizer, self._head, head_grads, limit)
        return {"actor_loss": head_loss, "encoder_loss": loss}

    def _pevfa_terms(self, batch: ReplayBufferSamples, features: Tensor, population: Heads, which: Tensor) -> Tensor:
        heads = self.heads(population)
        total = torch.zeros((), device=features.device)
        for head in zip(heads.weight[which], heads.bias[which], strict=True):
            total = total + self._pevfa_term(batch, features, *head)
        return total

    def _pevfa_term(self, batch: ReplayBufferSamples, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        pevfa, n_towers = self.policy.pevfa, self.rule.actor_towers
        actions = torch.tanh(torch.addmm(bias, features, weight.t()))
        embedding = pevfa.embed(weight, bias, n_towers=n_towers)
        values = pevfa(batch.observations, actions, n_towers=n_towers, context=embedding, features=features)
        return -self.rule.actor_value(values).mean()

    @torch.no_grad()
    def bootstrap(self, observation: Tensor, weight: Tensor, bias: Tensor, pessimistic: bool = True) -> Tensor:
        """
        Value of a head's own action, for fitness from partial rollouts.

        :param observation: ``(n, *obs_shape)``
        :param weight: ``(action_dim, feature_dim)``
        :param bias: ``(action_dim,)``
        :param pessimistic: the rule's target of the online PeVFA's towers, otherwise the first tower's value
        :return: ``(n,)``
        """
        actions = torch.tanh(torch.addmm(bias, self.policy.actor.encode(observation), weight.t()))
        embedding = self.policy.pevfa.embed(weight, bias)
        values = self.policy.pevfa(observation, actions, context=embedding)
        return (self.rule.target(values) if pessimistic else values[0])[:, 0]

    def all_values(self, observations: Any, actions: Tensor) -> Tensor:
        """See :meth:`Learner.all_values`."""
        return self.policy.critic(observations, actions)
