"""TD3, DDPG and rules like them on SB3's TD3 policy or one shaped like it."""

from __future__ import annotations

from typing import Any

import torch
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn
from torch.func import functional_call

from sb3_erl.compiled.gradients import frozen, step_optimizer
from sb3_erl.core.parameters import soft_update
from sb3_erl.learners.base import Learner, LearnerSettings, Metrics, Sampler
from sb3_erl.learners.td_rule import TD3Rule, TDRule
from sb3_erl.policies.sequential import fuse_sequentials


class TD3Learner(Learner):
    """
    One temporal-difference rule: critic step, and every ``policy_delay``-th update actor step and soft updates.

    Fujimoto et al. (2018), https://arxiv.org/abs/1802.09477. With TD3's and DDPG's rules equal to SB3's ``train`` on the same
    batches and torch seed, with optional gradient clipping; unused gradients are not computed.

    :param policy: SB3's ``TD3Policy`` or a policy of the same structure
    :param settings: constants
    :param rule: targets and losses, TD3's if ``None``
    """

    policy: TD3Policy
    pure_methods = ("_targets", "_critic_loss", "_actor_loss")

    def __init__(self, policy: TD3Policy, settings: LearnerSettings, rule: TDRule | None = None):
        super().__init__(policy, settings)
        self.rule = TD3Rule() if rule is None else rule
        self.learning_rates, self.use_graphs = self.rule.learning_rates, self.rule.use_graphs
        for network in (policy.actor, policy.critic, policy.actor_target, policy.critic_target):
            fuse_sequentials(network)
        self._actor = list(policy.actor.parameters())
        self._critic = list(policy.critic.parameters())
        self._pairs = [
            (list(policy.actor.parameters()), list(policy.actor_target.parameters())),
            (list(policy.critic.parameters()), list(policy.critic_target.parameters())),
        ]
        networks = ((policy.critic, policy.critic_target), (policy.actor, policy.actor_target))
        self._critic_buffers, actor_buffers = ([*zip(a.buffers(), b.buffers(), strict=True)] for a, b in networks)
        self._buffers = [*self._critic_buffers, *actor_buffers]

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"actor.optimizer": self.policy.actor.optimizer, "critic.optimizer": self.policy.critic.optimizer}

    def update(self, sample: Sampler, n_updates: int) -> dict[str, float]:
        metrics = Metrics()
        for index in range(n_updates):
            self.n_updates += 1
            batch = sample()
            count = index if self.settings.policy_first else self.n_updates
            on_policy_step = count % self.settings.policy_delay == 0
            noise = self._smoothing_noise(batch.actions)
            metrics.add(**self._run(self._steps, batch, noise, on_policy_step=on_policy_step))
        return metrics.means()

    def _steps(self, batch: ReplayBufferSamples, noise: Tensor, on_policy_step: bool) -> dict[str, Tensor]:
        """One update; returns losses."""
        losses = {"critic_loss": self.critic_step(batch, noise)}
        if on_policy_step:
            losses["actor_loss"] = self.actor_step(batch)
            self.target_step()
        if not self.settings.delay_critic_target:
            soft_update(*self._pairs[1], self.settings.tau)
        return losses

    def _smoothing_noise(self, actions: Tensor) -> Tensor:
        """Noise on the target action, drawn as SB3 draws it; see :attr:`LearnerSettings.target_policy_noise`."""
        settings = self.settings
        noise = actions.clone().normal_(0, settings.target_policy_noise)
        return noise.clamp(-settings.target_noise_clip, settings.target_noise_clip)

    def critic_step(self, batch: ReplayBufferSamples, noise: Tensor, target_actor: nn.Module | None = None) -> Tensor:
        """
        :param batch: transitions
        :param noise: clipped target smoothing noise, ``(batch, action_dim)``
        :param target_actor: gives the target action, the policy's target actor if ``None``
        :return: loss, summed over critics
        """
        targets = self._targets(batch, noise, self.policy.actor_target if target_actor is None else target_actor)
        loss = self._critic_loss(batch, targets)
        step_optimizer(self.policy.critic.optimizer, loss, self._critic, self.settings.max_grad_norm)
        return loss

    @torch.no_grad()
    def _targets(self, batch: ReplayBufferSamples, noise: Tensor, target_actor: nn.Module) -> Tensor:
        next_actions = (target_actor(batch.next_observations) + noise).clamp(-1, 1)
        next_values = towers(self.policy.critic_target(batch.next_observations, next_actions))
        return td_targets(batch, self.rule.target(next_values), self.settings.gamma)

    def _critic_loss(self, batch: ReplayBufferSamples, targets: Tensor) -> Tensor:
        values = towers(self.policy.critic(batch.observations, batch.actions))
        return self.rule.critic_loss(values, targets)

    def actor_step(self, batch: ReplayBufferSamples) -> Tensor:
        """
        :param batch: transitions
        :return: loss: minus the mean value of the actor's actions
        """
        with frozen(self._critic):
            loss = self._actor_loss(batch)
        step_optimizer(self.policy.actor.optimizer, loss, self._actor, self.settings.max_grad_norm)
        return loss

    def _actor_loss(self, batch: ReplayBufferSamples) -> Tensor:
        values = self._values(batch.observations, self.policy.actor(batch.observations), self.rule.actor_towers)
        return -self.rule.actor_value(values).mean()

    def _values(self, observations: Any, actions: Tensor, n_towers: int | None) -> Tensor:
        """``(towers, batch, 1)``, of the first critics only if wanted."""
        critic = self.policy.critic
        if not hasattr(critic, "q1_forward"):
            return critic(observations, actions, n_towers=n_towers)
        if n_towers == 1:
            return critic.q1_forward(observations, actions)[None]
        return towers(critic(observations, actions))[:n_towers]

    def all_values(self, observations: Any, actions: Tensor) -> Tensor:
        """See :meth:`Learner.all_values`."""
        return towers(self.policy.critic(observations, actions))

    # ---------------------------------------------------------------- one critic for many actors

    def critic_update(self, batch: ReplayBufferSamples, actor: nn.Module) -> Tensor:
        """
        A critic step whose target policy is ``actor``, followed by the soft update of the critic's target.

        :param batch: transitions
        :param actor: the individual that is about to be improved
        :return: loss
        """
        self.n_updates += 1
        return self._run_program(self._critic_steps, batch, self._smoothing_noise(batch.actions), actor=actor)

    def _critic_steps(self, batch: ReplayBufferSamples, noise: Tensor, actor: nn.Module) -> Tensor:
        loss = self.critic_step(batch, noise, actor)
        soft_update(self._critic, self._pairs[1][1], self.settings.tau)
        for value, place in self._critic_buffers:
            place.copy_(value)
        return loss

    def critic_snapshot(self) -> dict[str, Tensor]:
        """Copies of the critic's tensors, for :meth:`individual_loss`."""
        critic = self.policy.critic
        return {name: tensor.detach().clone() for name, tensor in (*critic.named_parameters(), *critic.named_buffers())}

    def individual_loss(self, parameters: dict[str, Tensor], snapshot: dict[str, Tensor], observations: Any) -> Tensor:
        """
        :param parameters: an actor's tensors by name, running statistics included
        :param snapshot: the critic's, see :meth:`critic_snapshot`
        :param observations: batch of observations
        :return: minus the mean value of the actor's actions
        """
        actions = functional_call(self.policy.actor, parameters, (observations,))
        towers = {"n_towers": self.rule.actor_towers}
        values = functional_call(self.policy.critic, snapshot, (observations, actions), towers)
        return -self.rule.actor_value(values).mean()

    def target_step(self) -> None:
        """Soft updates of the targets; running statistics are copied, as SB3 does."""
        moving = self._pairs if self.settings.delay_critic_target else self._pairs[:1]
        online, target = ([p for pair in moving for p in pair[side]] for side in (0, 1))
        soft_update(online, target, self.settings.tau)
        for value, place in self._buffers:
            place.copy_(value)


def td_targets(batch: ReplayBufferSamples, next_values: Tensor, gamma: float) -> Tensor:
    """
    One-step or n-step targets.

    :param batch: transitions
    :param next_values: what is bootstrapped from, ``(batch, 1)``
    :param gamma: discount factor, where the batch has none of its own
    :return: ``(batch, 1)``
    """
    discounts = gamma if batch.discounts is None else batch.discounts
    return batch.rewards + (1 - batch.dones) * discounts * next_values


def towers(values: Tensor | tuple[Tensor, ...]) -> Tensor:
    """``(towers, batch, 1)`` from a stack or from SB3's tuple."""
    return torch.stack(values) if isinstance(values, tuple) else values
