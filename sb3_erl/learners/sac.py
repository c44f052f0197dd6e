"""Soft actor-critic on SB3's SAC policy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.sac import SAC
from stable_baselines3.sac.policies import Actor, SACPolicy
from torch import Tensor, nn
from torch.func import functional_call

from sb3_erl.compiled.gradients import frozen, step_optimizer
from sb3_erl.core.checks import check_range
from sb3_erl.core.parameters import soft_update
from sb3_erl.learners.base import Learner, LearnerSettings, Metrics, Sampler, SquashedMean
from sb3_erl.learners.td3 import td_targets, towers
from sb3_erl.policies.erl import fused_adam
from sb3_erl.policies.sequential import fuse_sequentials

EPSILON = 1e-6
"""Keeps the logarithm in the correction for tanh finite; SB3's value."""
ENT_COEF = "log_ent_coef"
"""Name of the entropy coefficient's logarithm among the tensors of a critic's snapshot."""


@dataclass
class SACSettings(LearnerSettings):
    """
    Constants of SAC's update beside ``gamma``, ``tau`` and ``max_grad_norm``.

    :param ent_coef: entropy coefficient, at least 0; ``"auto"`` learns it from 1 on, ``"auto_0.1"`` from 0.1 on
    :param target_entropy: entropy that a learned coefficient aims at; ``"auto"`` for minus the number of action dimensions
    :param target_update_interval: updates between two soft updates of the critics' targets, at least 1
    :raises ValueError: if a constant is out of range
    """

    ent_coef: float | str = "auto"
    target_entropy: float | Literal["auto"] = "auto"
    target_update_interval: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("ent_coef", self.first_ent_coef, 0, open_low=self.learns_ent_coef)
        check_range("target_update_interval", self.target_update_interval, 1, integer=True)

    @property
    def learns_ent_coef(self) -> bool:
        """Whether the entropy coefficient is learned."""
        return isinstance(self.ent_coef, str)

    @property
    def first_ent_coef(self) -> float:
        """The entropy coefficient before the first update."""
        if not isinstance(self.ent_coef, str):
            return self.ent_coef
        kind, _, value = self.ent_coef.partition("_")
        try:
            if kind == "auto":
                return float(value or 1.0)
        except ValueError:
            pass
        raise ValueError(f"ent_coef must be a number, 'auto' or 'auto_' with a number behind it; got {self.ent_coef!r}")


class GaussianParameters(nn.Module):
    """
    Mean and logarithm of the standard deviation, before squashing, as the output of a network.

    :param actor: SAC's actor
    """

    def __init__(self, actor: Actor):
        super().__init__()
        self.actor = actor

    def forward(self, observations: Any) -> tuple[Tensor, Tensor]:
        """:return: ``(batch, action_dim)`` each"""
        mean, log_std, _ = self.actor.get_action_dist_params(observations)
        return mean, log_std


class SACLearner(Learner):
    """
    Soft actor-critic: entropy coefficient, critic step, actor step, soft update of the critics' targets.

    Haarnoja et al. (2018), https://arxiv.org/abs/1812.05905. Equal to SB3's ``SAC.train`` on the same batches and torch seed,
    with optional gradient clipping of actor and critics. Parts of an update can be called alone and for other actors.

    An individual is a whole actor, its standard deviations included. Where it is evaluated it acts with tanh of its mean;
    where it is the target policy or takes actor steps, as in CEM-RL, it is the Gaussian policy that it also describes.

    :param policy: SB3's ``SACPolicy`` or a policy of the same structure
    :param settings: constants
    :raises ValueError: if the policy explores with gSDE
    """

    policy: SACPolicy
    settings: SACSettings
    settings_class: ClassVar[type[LearnerSettings]] = SACSettings
    settings_defaults: ClassVar[dict[str, Any]] = {"max_grad_norm": None}
    learning_rates = (3e-4, 3e-4)
    n_critics = 2
    batch_size = 256
    policy_aliases: ClassVar[dict[str, type[BasePolicy]] | None] = SAC.policy_aliases
    policy_explores = True
    pure_methods = ("_sampled", "_targets", "_critic_loss", "_actor_loss")
    use_graphs = True

    def __init__(self, policy: SACPolicy, settings: SACSettings):
        super().__init__(policy, settings)
        if policy.actor.use_sde:
            raise ValueError("policy_kwargs must not have use_sde=True: SACLearner samples independent noise")
        for network in (policy.actor, policy.critic, policy.critic_target):
            fuse_sequentials(network)
        self._critic = [p for group in policy.critic.optimizer.param_groups for p in group["params"]]
        self._pairs = list(policy.critic.parameters()), list(policy.critic_target.parameters())
        self._buffers = [*zip(policy.critic.buffers(), policy.critic_target.buffers(), strict=True)]
        self._gaussian = GaussianParameters(policy.actor)
        n_actions = math.prod(policy.action_space.shape or ())
        self.target_entropy = -float(n_actions) if settings.target_entropy == "auto" else float(settings.target_entropy)
        start = torch.full((1,), settings.first_ent_coef, device=policy.device)
        self.log_ent_coef = nn.Parameter(start.log(), requires_grad=settings.learns_ent_coef)
        """Logarithm of the entropy coefficient."""
        self.ent_coef_optimizer: torch.optim.Optimizer | None = None
        if settings.learns_ent_coef:
            kwargs = fused_adam(torch.optim.Adam)
            self.ent_coef_optimizer = torch.optim.Adam([self.log_ent_coef], lr=self.learning_rates[1], **kwargs)

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        networks = {"actor.optimizer": self.policy.actor.optimizer, "critic.optimizer": self.policy.critic.optimizer}
        return networks | ({"learner.ent_coef_optimizer": self.ent_coef_optimizer} if self.ent_coef_optimizer else {})

    @property
    def save_params(self) -> tuple[list[str], list[str]]:
        return list(self.optimizers), ["learner.log_ent_coef"] if self.ent_coef_optimizer else []

    def _state(self) -> list[Tensor]:
        return [*super()._state(), self.log_ent_coef]

    def update(self, sample: Sampler, n_updates: int) -> dict[str, float]:
        metrics = Metrics()
        for _ in range(n_updates):
            self.n_updates += 1
            batch = sample()
            noise, next_noise = torch.randn_like(batch.actions), torch.randn_like(batch.actions)
            metrics.add(**self._run(self._steps, batch, noise, next_noise))
            if self.n_updates % self.settings.target_update_interval == 0:
                self.target_step()
        return metrics.means()

    def _steps(self, batch: ReplayBufferSamples, noise: Tensor, next_noise: Tensor) -> dict[str, Tensor]:
        """One update without that of the targets; returns losses and the entropy coefficient that they used."""
        actions, log_prob = self._sampled(self.policy.actor, batch.observations, noise)
        losses = self._ent_coef_step(log_prob)
        ent_coef = losses["ent_coef"]
        losses["critic_loss"] = self.critic_step(batch, next_noise, ent_coef=ent_coef)
        losses["actor_loss"] = self._step_actor(self.policy.actor, batch, actions, log_prob, ent_coef)
        return {name: value.detach().mean() for name, value in losses.items()}

    def _ent_coef_step(self, log_prob: Tensor) -> dict[str, Tensor]:
        """A step of a learned entropy coefficient; returns it as it was before, and the loss."""
        ent_coef = self.log_ent_coef.detach().exp()
        if self.ent_coef_optimizer is None:
            return {"ent_coef": ent_coef}
        loss = -(self.log_ent_coef * (log_prob.detach() + self.target_entropy)).mean()
        step_optimizer(self.ent_coef_optimizer, loss, [self.log_ent_coef])
        return {"ent_coef": ent_coef, "ent_coef_loss": loss}

    def critic_step(
        self, batch: ReplayBufferSamples, next_noise: Tensor, actor: Actor | None = None, ent_coef: Tensor | None = None
    ) -> Tensor:
        """
        A step of the critics alone.

        :param batch: transitions
        :param next_noise: standard normal numbers for the next actions, ``(batch, action_dim)``
        :param actor: whose next actions the targets are about, ``policy.actor`` if ``None``
        :param ent_coef: entropy coefficient, the current one if ``None``
        :return: loss, half the mean squared error summed over critics
        """
        ent_coef = self.log_ent_coef.detach().exp() if ent_coef is None else ent_coef
        targets = self._targets(batch, next_noise, self.policy.actor if actor is None else actor, ent_coef)
        loss = self._critic_loss(batch, targets)
        step_optimizer(self.policy.critic.optimizer, loss, self._critic, self.settings.max_grad_norm)
        return loss

    def actor_step(self, batch: ReplayBufferSamples, noise: Tensor, actor: Actor | None = None) -> Tensor:
        """
        A step of an actor on the critics as they are.

        :param batch: transitions
        :param noise: standard normal numbers for its actions, ``(batch, action_dim)``
        :param actor: with an optimizer of its own, ``policy.actor`` if ``None``
        :return: loss: entropy coefficient times log-probability minus the smallest value
        """
        actor = self.policy.actor if actor is None else actor
        actions, log_prob = self._sampled(actor, batch.observations, noise)
        return self._step_actor(actor, batch, actions, log_prob, self.log_ent_coef.detach().exp())

    def _step_actor(
        self, actor: Actor, batch: ReplayBufferSamples, actions: Tensor, log_prob: Tensor, ent_coef: Tensor
    ) -> Tensor:
        with frozen(self._critic):
            loss = self._actor_loss(batch, actions, log_prob, ent_coef)
        parameters = [p for group in actor.optimizer.param_groups for p in group["params"]]
        step_optimizer(actor.optimizer, loss, parameters, self.settings.max_grad_norm)
        return loss

    def _sampled(self, actor: Actor, observations: Any, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions ``(batch, action_dim)`` and their log-probabilities ``(batch, 1)``."""
        mean, log_std, _ = actor.get_action_dist_params(observations)
        return self._squashed(mean, log_std, noise)

    def _squashed(self, mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        gaussian = mean + log_std.exp() * noise
        actions = torch.tanh(gaussian)
        density = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        return actions, (density - (1 - actions.square() + EPSILON).log()).sum(dim=1, keepdim=True)

    @torch.no_grad()
    def _targets(self, batch: ReplayBufferSamples, next_noise: Tensor, actor: Actor, ent_coef: Tensor) -> Tensor:
        next_actions, log_prob = self._sampled(actor, batch.next_observations, next_noise)
        next_values = towers(self.policy.critic_target(batch.next_observations, next_actions)).amin(dim=0)
        return td_targets(batch, next_values - ent_coef * log_prob, self.settings.gamma)

    def _critic_loss(self, batch: ReplayBufferSamples, targets: Tensor) -> Tensor:
        return 0.5 * (self.all_values(batch.observations, batch.actions) - targets).square().mean(dim=(1, 2)).sum()

    def _actor_loss(self, batch: ReplayBufferSamples, actions: Tensor, log_prob: Tensor, ent_coef: Tensor) -> Tensor:
        return (ent_coef * log_prob - self.all_values(batch.observations, actions).amin(dim=0)).mean()

    # ---------------------------------------------------------------- one critic for many actors

    def critic_update(self, batch: ReplayBufferSamples, actor: Actor) -> Tensor:
        """
        Steps of the entropy coefficient and of the critics about another actor, and the soft update of their targets.

        :param batch: transitions
        :param actor: the individual that is about to be improved
        :return: loss of the critics
        """
        self.n_updates += 1
        noise, next_noise = torch.randn_like(batch.actions), torch.randn_like(batch.actions)
        loss = self._run_program(self._critic_steps, batch, noise, next_noise, actor=actor)
        if self.n_updates % self.settings.target_update_interval == 0:
            self.target_step()
        return loss

    def _critic_steps(self, batch: ReplayBufferSamples, noise: Tensor, next_noise: Tensor, actor: Actor) -> Tensor:
        with torch.no_grad():
            _, log_prob = self._sampled(actor, batch.observations, noise)
        ent_coef = self._ent_coef_step(log_prob)["ent_coef"]
        return self.critic_step(batch, next_noise, actor, ent_coef)

    def critic_snapshot(self) -> dict[str, Tensor]:
        """Copies of the critics' tensors and of the entropy coefficient's logarithm, for :meth:`individual_loss`."""
        critic = self.policy.critic
        tensors = (*critic.named_parameters(), *critic.named_buffers(), (ENT_COEF, self.log_ent_coef))
        return {name: tensor.detach().clone() for name, tensor in tensors}

    def individual_loss(self, parameters: dict[str, Tensor], snapshot: dict[str, Tensor], observations: Any) -> Tensor:
        """
        :param parameters: an actor's tensors by name, running statistics included
        :param snapshot: of the critics, see :meth:`critic_snapshot`
        :param observations: batch of observations
        :return: mean of the entropy coefficient times log-probability minus the smallest value of sampled actions
        """
        own = {f"actor.{name}": tensor for name, tensor in parameters.items()}
        mean, log_std = functional_call(self._gaussian, own, (observations,))
        actions, log_prob = self._squashed(mean, log_std, torch.randn_like(mean))
        critic = {name: tensor for name, tensor in snapshot.items() if name != ENT_COEF}
        values = towers(functional_call(self.policy.critic, critic, (observations, actions))).amin(dim=0)
        return (snapshot[ENT_COEF].exp() * log_prob - values).mean()

    def target_step(self) -> None:
        """Soft update of the critics' targets; running statistics are copied, as SB3 does."""
        soft_update(*self._pairs, self.settings.tau)
        for value, place in self._buffers:
            place.copy_(value)

    def greedy_actor(self) -> nn.Module:
        """See :meth:`Learner.greedy_actor`; the action of highest density before squashing."""
        return SquashedMean(self.policy.actor)

    def all_values(self, observations: Any, actions: Tensor) -> Tensor:
        """See :meth:`Learner.all_values`."""
        return towers(self.policy.critic(observations, actions))
