"""Deep Q-learning for discrete actions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor, nn
from torch.func import functional_call, vmap

from sb3_erl.compiled.gradients import step_optimizer
from sb3_erl.core.checks import check_choice, check_range
from sb3_erl.core.observations import take
from sb3_erl.core.parameters import copy_module
from sb3_erl.learners.base import TARGETS_ARE_COPIED, Learner, LearnerSettings, Metrics, Sampler
from sb3_erl.learners.td3 import td_targets
from sb3_erl.policies.layers import BestAction
from sb3_erl.policies.q_network import QNetworkAutoPolicy, QNetworkCnnPolicy, QNetworkMultiInputPolicy, QNetworkPolicy
from sb3_erl.policies.sequential import fuse_sequentials

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": nn.functional.mse_loss,
    "huber": nn.functional.smooth_l1_loss,
}

Network = Callable[[Any], Tensor]
"""Observations to the values of all actions, ``(batch, n_actions)``."""
Parameters = dict[str, Tensor]
"""Tensors of one network by name."""
_ROWS, _ROWS_STACKED = 512, 2048
"""Transitions on which many networks are evaluated at a time, one after the other or together."""


@dataclass
class DQNSettings(LearnerSettings):
    """
    Constants of DQN's update; ``tau`` and the constants of actors have no meaning here.

    :param double: the online network chooses the next action that the target network evaluates (double DQN)
    :param loss: mean squared error or Huber's loss (with the threshold 1)
    :param target_update_interval: updates between two copies of the Q-network into the target network, at least 1
    :param lap_alpha: exponent of the priorities, where the replay buffer has any
    :param lap_min_priority: floor of the priorities, before the exponent
    :raises ValueError: if a constant is out of range or unknown
    """

    double: bool = False
    loss: Literal["mse", "huber"] = "mse"
    target_update_interval: int = 1000
    lap_alpha: float = 0.4
    lap_min_priority: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("loss", self.loss, LOSSES)
        check_range("target_update_interval", self.target_update_interval, 1, integer=True)
        check_range("lap_alpha", self.lap_alpha, 0)
        check_range("lap_min_priority", self.lap_min_priority, 0)


class DQNLearner(Learner):
    """
    Deep Q-learning, Mnih et al. (2015), https://doi.org/10.1038/nature14236; double DQN, van Hasselt et al. (2016),
    https://arxiv.org/abs/1509.06461.

    The defaults are those of VEB-RL's authors (yeshenpy/VEB-RL): mean squared error without clipping, Adam with 3e-4, batches
    of 32, targets copied every 1000 updates. With ``loss="huber", max_grad_norm=10`` equal to SB3's ``DQN.train`` on the same
    batches; SB3 counts environment steps between two copies, this class updates. Priorities are written where the replay
    buffer has any (LAP's, which are meant for ``loss="huber"``).

    :param policy: the networks
    :param settings: constants
    """

    policy: QNetworkPolicy
    settings: DQNSettings
    settings_class: ClassVar[type[LearnerSettings]] = DQNSettings
    settings_defaults: ClassVar[dict[str, Any]] = {"max_grad_norm": None}
    unread: ClassVar[dict[str, str]] = {"tau": TARGETS_ARE_COPIED}
    learning_rates = (3e-4, 3e-4)
    batch_size = 32
    policy_aliases: ClassVar[dict[str, type[BasePolicy]] | None] = {
        "MlpPolicy": QNetworkPolicy,
        "CnnPolicy": QNetworkCnnPolicy,
        "MultiInputPolicy": QNetworkMultiInputPolicy,
        "AutoPolicy": QNetworkAutoPolicy,
    }
    action_space_class = spaces.Discrete
    pure_methods = ("_targets", "_loss")
    use_graphs = True
    priority_set: int

    def __init__(self, policy: QNetworkPolicy, settings: DQNSettings, priority_set: int = 0):
        super().__init__(policy, settings)
        self.priority_set = priority_set
        for network in (policy.q_net, policy.q_net_target):
            fuse_sequentials(network)
        self._parameters = list(policy.q_net.parameters())

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"policy.optimizer": self.policy.optimizer}

    def update(self, sample: Sampler, n_updates: int) -> dict[str, float]:
        metrics = Metrics()
        for _ in range(n_updates):
            self.n_updates += 1
            loss, errors = self._run(self._steps, sample())
            if self.buffer is not None:
                priorities = errors.abs().clamp(min=self.settings.lap_min_priority).pow(self.settings.lap_alpha)
                self.buffer.update_priorities(priorities, self.priority_set)
            if self.n_updates % self.settings.target_update_interval == 0:
                self.target_step()
            metrics.add(loss=loss)
        return metrics.means()

    def _steps(self, batch: ReplayBufferSamples) -> tuple[Tensor, Tensor]:
        """One update; returns the loss and the temporal-difference errors ``(batch,)`` before it."""
        targets = self._targets(batch, self.policy.q_net, self.policy.q_net_target)
        loss, values = self._loss(batch, targets)
        step_optimizer(self.policy.optimizer, loss, self._parameters, self.settings.max_grad_norm)
        return loss.detach(), (values - targets)[:, 0]

    @torch.no_grad()
    def _targets(self, batch: ReplayBufferSamples, network: Network, target: Network) -> Tensor:
        """``(batch, 1)``"""
        next_values = target(batch.next_observations)
        if self.settings.double:
            best = next_values.gather(1, network(batch.next_observations).argmax(dim=1, keepdim=True))
        else:
            best = next_values.amax(dim=1, keepdim=True)
        return td_targets(batch, best, self.settings.gamma)

    def _loss(self, batch: ReplayBufferSamples, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the values ``(batch, 1)`` of the batch's actions."""
        values = self.policy.q_net(batch.observations).gather(1, batch.actions.long())
        return LOSSES[self.settings.loss](values, targets), values.detach()

    def target_step(self) -> None:
        """Copy the Q-network into the target network."""
        copy_module(self.policy.q_net, self.policy.q_net_target)

    @torch.no_grad()
    def td_errors(
        self, batch: ReplayBufferSamples, network: nn.Module | None = None, target: nn.Module | None = None
    ) -> Tensor:
        """
        Temporal-difference errors of any Q-network on a batch, such as those of an individual.

        :param batch: transitions
        :param network: gives the values, ``policy.q_net`` if ``None``
        :param target: gives the targets, ``policy.q_net_target`` if ``None``
        :return: values minus targets, ``(batch,)``
        """
        network = self.policy.q_net if network is None else network
        targets = self._targets(batch, network, self.policy.q_net_target if target is None else target)
        return (network(batch.observations).gather(1, batch.actions.long()) - targets)[:, 0]

    @torch.no_grad()
    def td_errors_of(
        self, batch: ReplayBufferSamples, vectors: Tensor, target_vectors: Tensor, stacked: bool | None = None
    ) -> Tensor:
        """
        Temporal-difference errors of many Q-networks on one batch, each against a target network of its own.

        :param batch: transitions
        :param vectors: ``(n, n_params)``, parameters of the networks
        :param target_vectors: ``(n, n_params)``, parameters of their target networks
        :param stacked: all networks in one call, or one after the other; ``None`` for what is faster: one after the other on
            a CPU, where their activations then stay in the cache, together on a GPU
        :return: ``(n, batch)``, values minus targets
        """
        stacked = self.policy.device.type == "cuda" if stacked is None else stacked
        networks, targets = self._parameters_of(vectors), self._parameters_of(target_vectors)
        rows = _ROWS_STACKED if stacked else _ROWS
        parts = [self._errors(part, networks, targets, stacked) for part in _split(batch, rows)]
        return torch.cat(parts, dim=1)

    def _errors(
        self, batch: ReplayBufferSamples, networks: list[Parameters], targets: list[Parameters], stacked: bool
    ) -> Tensor:
        """``(n, batch)``"""
        template, buffers = self.policy.deployed, dict(self.policy.q_net.named_buffers())

        def errors(network: Parameters, target: Parameters) -> Tensor:
            def values(parameters: Parameters) -> Callable[[Any], Tensor]:
                return lambda observations: functional_call(template, {**buffers, **parameters}, (observations,))

            aims = type(self)._targets(self, batch, values(network), values(target))  # never a compiled one
            return (values(network)(batch.observations).gather(1, batch.actions.long()) - aims)[:, 0]

        if not stacked:
            return torch.stack([errors(*pair) for pair in zip(networks, targets, strict=True)])
        together = [{name: torch.stack([each[name] for each in group]) for name in group[0]} for group in (networks, targets)]
        return vmap(errors)(*together)

    def _parameters_of(self, vectors: Tensor) -> list[Parameters]:
        """Views of the vectors as parameters by name; ``deployed`` is the network of their shape that is not fused."""
        named = list(self.policy.deployed.named_parameters())
        parts = [row.split([p.numel() for _, p in named]) for row in vectors.to(named[0][1])]
        return [{name: x.view_as(p) for (name, p), x in zip(named, row, strict=True)} for row in parts]

    def greedy_actor(self) -> nn.Module:
        """See :meth:`Learner.greedy_actor`; the number of the action with the highest value."""
        return nn.Sequential(self.policy.q_net, BestAction())

    def all_values(self, observations: Any, actions: Tensor) -> Tensor:
        """
        Values of actions by the Q-network.

        :param observations: batch of observations
        :param actions: ``(batch, 1)``, numbers of actions
        :return: ``(1, batch, 1)``
        """
        return self.policy.q_net(observations).gather(1, actions.long())[None]


def _split(batch: ReplayBufferSamples, n_rows: int) -> list[ReplayBufferSamples]:
    """Parts of a batch with at most so many transitions; what the batch does not have, such as discounts, they have not."""
    rows = [slice(start, start + n_rows) for start in range(0, len(batch.rewards), n_rows)]
    parts: Any = ([None if x is None else take(x, part) for x in batch] for part in rows)  # type: ignore[arg-type]
    return [type(batch)(*part) for part in parts]
