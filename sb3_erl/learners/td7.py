"""The learner of TD7."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor
from torch.func import functional_call

from sb3_erl.buffers.lap import LAPReplayBuffer
from sb3_erl.compiled.gradients import frozen, step_optimizer
from sb3_erl.core.checks import check_range
from sb3_erl.core.parameters import copy_module
from sb3_erl.learners.base import TARGETS_ARE_COPIED, Learner, LearnerSettings, Metrics, Sampler
from sb3_erl.learners.td_rule import TD7Rule, TDRule
from sb3_erl.policies.layers import first_towers
from sb3_erl.policies.sale import SALEActor
from sb3_erl.policies.td7 import SALECnnPolicy, SALEMultiInputPolicy, SALEPolicy, TD7Policy


@dataclass
class TD7Settings(LearnerSettings):
    """
    Constants of TD7's update beside those of TD3.

    :param target_update_interval: updates between two hard copies of all targets, at least 1
    :param lap_alpha: exponent of the priorities, at least 0
    :param lap_min_priority: floor of the priorities, before the exponent, at least 0
    :param bc_coef: weight of the behavior-cloning term, 0 for none
    :raises ValueError: if a constant is out of range
    """

    policy_delay: int = 2
    target_policy_noise: float = 0.2
    target_update_interval: int = 250
    lap_alpha: float = 0.4
    lap_min_priority: float = 1.0
    bc_coef: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("target_update_interval", self.target_update_interval, 1, integer=True)
        for name in ("lap_alpha", "lap_min_priority", "bc_coef"):
            check_range(name, getattr(self, name), 0)


class Batch(NamedTuple):
    """
    What the steps of one update share.

    :param features: flat observations or fixed features of them ``(batch, features_dim)``
    :param next_features: the same of the next observations, by the targets' extractor
    :param actions: ``(batch, action_dim)`` in [-1, 1]
    :param rewards: ``(batch, 1)``
    :param discounts: ``(batch, 1)``, 0 at terminal states
    :param zs: fixed state embeddings of the observations
    :param next_zs: state embeddings of the next observations by the targets' encoder
    :param zsa: fixed state-action embeddings of observations and actions
    :param observations: what features were extracted from
    :param next_observations: the same of the next observations
    """

    features: Tensor
    next_features: Tensor
    actions: Tensor
    rewards: Tensor
    discounts: Tensor
    zs: Tensor
    next_zs: Tensor
    zsa: Tensor
    observations: Any
    next_observations: Any


class Update(NamedTuple):
    """
    What one update computed.

    :param losses: by name; ``actor_loss`` only on policy steps
    :param values: critics' values before their step, ``(towers, batch, 1)``
    :param next_values: target critics' values before minimum and clipping, ``(towers, batch, 1)``
    :param targets: ``(batch, 1)``
    :param priorities: ``(batch,)``
    """

    losses: dict[str, Tensor]
    values: Tensor
    next_values: Tensor
    targets: Tensor
    priorities: Tensor


class TD7Learner(Learner):
    """
    TD7's update: encoder step, critic step, priorities, every second time actor step, every 250th time hard copies.

    Fujimoto et al. (2023), https://arxiv.org/abs/2306.02451, appendix A; authors' code: sfujim/TD7,
    ``TD7.py: Agent.train``. Bootstrapped values are clipped to the range of the targets seen before the last hard copy,
    which starts at [0, 0]. Unused gradients are not computed.

    :param policy: networks and optimizers
    :param settings: constants
    :param priority_set: number of the priorities in the replay buffer that it draws by and writes
    """

    policy: TD7Policy
    settings: TD7Settings
    settings_class: ClassVar[type[LearnerSettings]] = TD7Settings
    rule_class: ClassVar[type[TDRule]] = TD7Rule
    """Target and losses; TD7's clipping of the bootstrapped value comes on top."""
    settings_defaults: ClassVar[dict[str, Any]] = TD7Rule.settings_defaults
    unread: ClassVar[dict[str, str]] = {"tau": TARGETS_ARE_COPIED}
    buffer_class = LAPReplayBuffer
    learning_rates = TD7Rule.learning_rates
    n_critics = TD7Rule.n_critics
    batch_size = 256
    policy_aliases: ClassVar[dict[str, type[BasePolicy]] | None] = {
        "MlpPolicy": SALEPolicy,
        "CnnPolicy": SALECnnPolicy,
        "MultiInputPolicy": SALEMultiInputPolicy,
    }
    pure_methods: ClassVar[tuple[str, ...]] = ("_embed", "_encoder_loss", "_target_values", "_critic_loss", "_actor_loss")
    use_graphs = True
    priority_set: int

    def __init__(self, policy: TD7Policy, settings: TD7Settings, priority_set: int = 0):
        super().__init__(policy, settings)
        self.rule = self.rule_class()
        self.use_graphs = type(self).use_graphs and self.rule.use_graphs
        self.priority_set = priority_set
        self._learns_features = any(True for _ in policy.encoder.extractor.parameters())
        self._encoder, self._actor = list(policy.encoder.parameters()), list(policy.actor.parameters())
        self._critic = list(policy.critic.parameters())
        self._value_parameters = self._critic
        """What the actor's loss goes through without training it."""

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        policy = self.policy
        networks: dict[str, Any] = {"encoder": policy.encoder, "actor": policy.actor, "critic": policy.critic}
        return {f"{name}.optimizer": network.optimizer for name, network in networks.items()}

    def update(self, sample: Sampler, n_updates: int) -> dict[str, float]:
        metrics = Metrics()
        for _ in range(n_updates):
            batch = sample()
            metrics.add(**self.iterate(batch, torch.randn_like(batch.actions)).losses)
        return {**metrics.means(), **self._report()}

    def _report(self) -> dict[str, float]:
        low, high = self.policy.value_range.tolist()
        priority = {} if self.buffer is None else {"max_priority": self.buffer.trees[self.priority_set].max_priority}
        return {"value_min": low, "value_max": high, **priority}

    def iterate(self, samples: ReplayBufferSamples, noise: Tensor, *more: Any) -> Update:
        """
        One update with all random choices given.

        :param samples: transitions
        :param noise: standard normal numbers ``(batch, action_dim)``, for the smoothing of the target action
        :param more: what the steps of a descendant read besides
        :return: losses, and what they came from
        """
        self.n_updates += 1
        on_policy_step = self.n_updates % self.settings.policy_delay == 0
        update: Update = self._run(self._steps, samples, noise, *more, on_policy_step=on_policy_step)
        self._after_critic_step(update.priorities)
        return update

    def _steps(self, samples: ReplayBufferSamples, noise: Tensor, *more: Any, on_policy_step: bool) -> Update:
        """What an update does on the device."""
        batch = self._prepare(samples)
        losses = {"encoder_loss": self._encoder_step(batch)}
        losses["critic_loss"], values, next_values, targets = self._critic_step(batch, noise)
        losses |= self._more_steps(batch, *more)
        if on_policy_step:
            losses["actor_loss"] = self._actor_step(batch, *more)
        return Update(losses, values, next_values, targets, self._priorities(values, targets))

    @torch.no_grad()
    def _priorities(self, values: Tensor, targets: Tensor) -> Tensor:
        errors = (values - targets).abs().amax(dim=0)[:, 0]
        return errors.clamp(min=self.settings.lap_min_priority).pow(self.settings.lap_alpha)

    def _after_critic_step(self, priorities: Tensor) -> None:
        """Priorities go to the replay buffer; the hard update when it is time."""
        if self.buffer is not None:
            self.buffer.update_priorities(priorities, self.priority_set)
        if self.n_updates % self.settings.target_update_interval == 0:
            self.hard_update()

    @torch.no_grad()
    def _prepare(self, samples: ReplayBufferSamples) -> Batch:
        features = self.policy.actor.features(samples.observations)
        next_features = self.policy.actor_target.features(samples.next_observations)
        discounts = self.settings.gamma if samples.discounts is None else samples.discounts
        discounts = (1 - samples.dones) * discounts
        embeddings = self._embed(features, next_features, samples.actions)
        seen = samples.observations, samples.next_observations
        return Batch(features, next_features, samples.actions, samples.rewards, discounts, *embeddings, *seen)

    @torch.no_grad()
    def _embed(self, features: Tensor, next_features: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        policy = self.policy
        zs = policy.actor.encoder(features)
        zsa = policy.fixed_action_encoder(torch.cat([zs, actions], dim=1))
        return zs, policy.actor_target.encoder(next_features), zsa

    def _encoder_step(self, batch: Batch) -> Tensor:
        loss = self._encoder_loss(batch)
        step_optimizer(self.policy.encoder.optimizer, loss, self._encoder, self.settings.max_grad_norm)
        return loss

    def _encoder_loss(self, batch: Batch) -> Tensor:
        encoder = self.policy.encoder
        with torch.no_grad():
            goal = encoder.state(self._live_features(batch.next_observations, batch.next_features))
        zs = encoder.state(self._live_features(batch.observations, batch.features))
        guess = encoder.action(torch.cat([zs, batch.actions], dim=1))
        return torch.nn.functional.mse_loss(guess, goal)

    def _live_features(self, observations: Any, fixed: Tensor) -> Tensor:
        """Features of the live encoder; those of a fixed one where the extractor has nothing to learn."""
        if not self._learns_features:
            return fixed
        return self.policy.actor.extract_features(observations, self.policy.encoder.extractor)

    def _critic_step(
        self, batch: Batch, noise: Tensor, target_actor: SALEActor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        policy = self.policy
        next_values = self._target_values(batch, noise, policy.actor_target if target_actor is None else target_actor)
        targets = self._targets(batch, next_values, policy.value_range, policy.seen_range)
        loss, values = self._critic_loss(batch, targets)
        step_optimizer(policy.critic.optimizer, loss, self._critic, self.settings.max_grad_norm)
        return loss, values, next_values, targets

    @torch.no_grad()
    def _target_values(self, batch: Batch, noise: Tensor, target_actor: SALEActor) -> Tensor:
        """Target critics' values of the smoothed target action, ``(towers, batch, 1)``."""
        policy, clip = self.policy, self.settings.target_noise_clip
        smoothing = (noise * self.settings.target_policy_noise).clamp(-clip, clip)
        next_actions = (target_actor.act(batch.next_features, batch.next_zs) + smoothing).clamp(-1, 1)
        return self._next_values(policy.critic_target, batch, next_actions)

    def _critic_loss(self, batch: Batch, targets: Tensor) -> tuple[Tensor, Tensor]:
        values = self.policy.critic(batch.features, batch.actions, batch.zsa, batch.zs)
        return self.rule.critic_loss(values, targets), values.detach()

    def _next_values(self, critic: Any, batch: Batch, actions: Tensor, context: Tensor | None = None) -> Tensor:
        """Values ``(towers, batch, 1)`` of actions in the next states, with the targets' encoder."""
        zsa = self.policy.target_action_encoder(torch.cat([batch.next_zs, actions], dim=1))
        return critic(batch.next_features, actions, zsa, batch.next_zs, context)

    @torch.no_grad()
    def _targets(self, batch: Batch, next_values: Tensor, value_range: Tensor, seen_range: Tensor) -> Tensor:
        """Targets ``(batch, 1)`` with clipped bootstrap; widens the range of targets seen."""
        bootstrap = self.rule.target(next_values).clamp(value_range[0], value_range[1])
        targets = batch.rewards + batch.discounts * bootstrap
        low, high = torch.aminmax(targets)
        torch.minimum(seen_range[0], low, out=seen_range[0])
        torch.maximum(seen_range[1], high, out=seen_range[1])
        return targets

    def _more_steps(self, batch: Batch, *more: Any) -> dict[str, Tensor]:
        """Steps of a descendant between critic and actor; returns their losses."""
        return {}

    def _actor_step(self, batch: Batch, *more: Any) -> Tensor:
        with frozen(self._value_parameters):
            loss = self._actor_loss(batch, *more)
        step_optimizer(self.policy.actor.optimizer, loss, self._actor, self.settings.max_grad_norm)
        return loss

    def _actor_loss(self, batch: Batch, *more: Any) -> Tensor:
        return self._learner_loss(batch, self.policy.actor.act(batch.features, batch.zs))

    def _learner_loss(self, batch: Batch, actions: Tensor) -> Tensor:
        """Minus the mean value, offline with the behavior-cloning term."""
        values = self._values(self.policy.critic, batch, actions)
        loss = -self._mean_value(values)
        if self.settings.bc_coef > 0:
            weight = self.settings.bc_coef * values.detach().abs().mean()
            loss = loss + weight * torch.nn.functional.mse_loss(actions, batch.actions)
        return loss

    def _values(self, critic: Any, batch: Batch, actions: Tensor, context: Tensor | None = None) -> Tensor:
        """Values ``(towers, batch, 1)`` of actions in the batch's states; the gradient also goes through ``zsa``."""
        zsa = self.policy.fixed_action_encoder(torch.cat([batch.zs, actions], dim=1))
        return critic(batch.features, actions, zsa, batch.zs, context)

    def _mean_value(self, values: Tensor) -> Tensor:
        return self.rule.actor_value(first_towers(values, self.rule.actor_towers)).mean()

    def all_values(self, observations: Any, actions: Tensor) -> Tensor:
        """See :meth:`Learner.all_values`; with the fixed encoder, which the actors act with."""
        policy = self.policy
        features = policy.actor.features(observations)
        zs = policy.actor.encoder(features)
        return policy.critic(features, actions, policy.fixed_action_encoder(torch.cat([zs, actions], dim=1)), zs)

    # ---------------------------------------------------------------- one critic for many actors

    def critic_update(self, samples: ReplayBufferSamples, actor: SALEActor) -> Tensor:
        """
        Encoder and critic step whose target policy is ``actor``, priorities, and the hard update when it is time.

        :param samples: transitions
        :param actor: the individual that is about to be improved
        :return: the critic's loss
        """
        self.n_updates += 1
        noise = torch.randn_like(samples.actions)
        loss, priorities = self._run_program(self._critic_steps, samples, noise, actor=actor)
        self._after_critic_step(priorities)
        return loss

    def _critic_steps(self, samples: ReplayBufferSamples, noise: Tensor, actor: SALEActor) -> tuple[Tensor, Tensor]:
        batch = self._prepare(samples)
        self._encoder_step(batch)
        loss, values, _, targets = self._critic_step(batch, noise, actor)
        return loss, self._priorities(values, targets)

    def critic_snapshot(self) -> dict[str, Tensor]:
        """Nothing: all individuals are improved on the critic as it is, which pairs with the encoder they act with."""
        return {}

    def individual_loss(self, parameters: dict[str, Tensor], snapshot: dict[str, Tensor], observations: Any) -> Tensor:
        """See :meth:`~sb3_erl.learners.td3.TD3Learner.individual_loss`; without a snapshot."""
        actions = functional_call(self.policy.actor, parameters, (observations,))
        return -self._mean_value(self.all_values(observations, actions))

    def hard_update(self) -> None:
        """Targets become copies, the targets' encoder before the fixed one; value range and highest priority follow."""
        policy = self.policy
        for network, target in policy.target_pairs():
            copy_module(network, target)
        policy.fix_encoder()
        policy.value_range.copy_(policy.seen_range)
        if self.buffer is not None:
            self.buffer.reset_max_priority(self.priority_set)
