"""Any off-policy class of SB3 or sb3-contrib as a learner."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import nn

from sb3_erl.learners.base import Learner, LearnerSettings, Sampler


class _Batches:
    """Stands for the replay buffer in the wrapped model's ``train``."""

    def __init__(self, sample: Sampler):
        self._sample = sample

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        """The next batch of the common buffer; its size is the algorithm's ``batch_size``."""
        return self._sample()


class _SquashedMean(nn.Module):
    """
    Deterministic actions of SB3's actors with a squashed Gaussian, without its distribution objects.

    :param actor: actor of SAC, TQC or CrossQ
    """

    def __init__(self, actor: Any):
        super().__init__()
        self.actor = actor

    def forward(self, observations: Any) -> torch.Tensor:
        return torch.tanh(self.actor.get_action_dist_params(observations)[0])


class SB3Learner(Learner):
    """
    Wraps an SB3 model without an environment: its policy acts, its ``train`` learns from the common replay buffer.

    :param learner_class: an off-policy class for continuous actions, such as SAC, TQC or CrossQ
    :param policy_class: the policy it is built with
    :param observation_space: of the environment
    :param action_space: of the environment
    :param device: device of the networks
    :param kwargs: arguments of the class
    """

    def __init__(
        self,
        learner_class: type[OffPolicyAlgorithm],
        policy_class: type[BasePolicy],
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: torch.device | str,
        **kwargs: Any,
    ):
        model = learner_class(policy=policy_class, env=None, device=device, _init_setup_model=False, **kwargs)  # type: ignore[arg-type, call-arg]
        model.observation_space, model.action_space, model.n_envs = observation_space, action_space, 1
        model.replay_buffer = ReplayBuffer(1, observation_space, action_space, device)  # never filled
        stand_in: Any = SimpleNamespace(action_space=action_space)
        model.env = stand_in  # SAC reads its target entropy from there
        model._setup_model()
        model.env = None
        self.model = model
        super().__init__(model.policy, LearnerSettings())

    def greedy_actor(self) -> nn.Module:
        """See :meth:`Learner.greedy_actor`; of a squashed Gaussian the action of highest density before squashing."""
        actor: Any = self.policy.actor
        return _SquashedMean(actor) if hasattr(actor, "get_action_dist_params") else actor

    def all_values(self, observations: Any, actions: torch.Tensor) -> torch.Tensor:
        """See :meth:`Learner.all_values`; of a critic with quantiles their mean."""
        critic: Any = self.policy.critic
        values = critic(observations, actions)
        return torch.stack(values) if isinstance(values, tuple) else values.mean(dim=-1, keepdim=True).transpose(0, 1)

    @property
    def save_params(self) -> tuple[list[str], list[str]]:
        """See :attr:`Learner.save_params`."""
        state_dicts, variables = self.model._get_torch_save_params()
        own = [name for name in state_dicts if name != "policy"]
        return [f"learner_rule.model.{name}" for name in own], [f"learner_rule.model.{name}" for name in variables]

    def follow(self, host: Any, batch_size: int) -> None:
        """See :meth:`Learner.follow`; the model keeps its own learning rate schedule."""
        model = self.model
        model.tau = host.tau
        self.discount_by(host.gamma)
        model._n_updates = host.learner_updates
        model._current_progress_remaining = host._current_progress_remaining
        self._batch_size = batch_size

    def discount_by(self, gamma: float) -> None:
        """See :meth:`Learner.discount_by`."""
        self.model.gamma = gamma

    def update(self, sample: Sampler, n_updates: int) -> dict[str, float]:
        """See :meth:`Learner.update`; what the model logs."""
        notes = Logger(folder=None, output_formats=[])
        self.model.set_logger(notes)
        buffer, self.model.replay_buffer = self.model.replay_buffer, _Batches(sample)  # type: ignore[assignment]
        try:
            self.model.train(gradient_steps=n_updates, batch_size=self._batch_size)
        finally:
            self.model.replay_buffer = buffer
        return {key.removeprefix("train/"): value for key, value in notes.name_to_value.items() if key != "train/n_updates"}
