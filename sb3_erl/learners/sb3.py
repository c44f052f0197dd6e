"""Any off-policy class of SB3 or sb3-contrib as a learner."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import nn

from sb3_erl.learners.base import Learner, LearnerSettings, Rates, Sampler, SquashedMean


class _Batches:
    """What the wrapped model's ``train`` uses as replay buffer."""

    def __init__(self, sample: Sampler):
        self._sample = sample

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        """The next batch of the common buffer; its size is the algorithm's ``batch_size``."""
        return self._sample()


class SB3Learner(Learner):
    """
    Wraps an SB3 model without an environment: its policy acts, its ``train`` learns from the common replay buffer.

    A class that does something at every environment step, in ``_on_step`` (DQN and QR-DQN move their targets there), is called
    once for each step that the updates stand for, see :attr:`~sb3_erl.learners.base.Rates.steps_per_update`. ``num_timesteps``
    counts these steps, over ``save`` and ``load`` too; other counters of such a class start anew in a loaded model, except
    DQN's.

    :param learner_class: an off-policy class, such as SAC, TQC or CrossQ
    :param policy_class: the policy it is built with
    :param observation_space: of the environment
    :param action_space: of the environment
    :param device: device of the networks
    :param kwargs: arguments of the class
    """

    policy_explores = True
    unread: ClassVar[dict[str, str]] = {"max_grad_norm": "learner_kwargs takes the arguments of its constructor"}

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
        buffer_class: Any = DictReplayBuffer if isinstance(observation_space, spaces.Dict) else ReplayBuffer
        model.replay_buffer = buffer_class(1, observation_space, action_space, device)  # never filled
        stand_in: Any = SimpleNamespace(action_space=action_space)
        model.env = stand_in  # SAC reads its target entropy from there
        model._setup_model()
        model.env = None
        self.model = model
        self._acts_on_steps = learner_class._on_step is not OffPolicyAlgorithm._on_step
        super().__init__(model.policy, LearnerSettings())

    def greedy_actor(self) -> nn.Module:
        """See :meth:`Learner.greedy_actor`; of a squashed Gaussian the action of highest density before squashing."""
        actor: Any = self.policy.actor
        return SquashedMean(actor) if hasattr(actor, "get_action_dist_params") else actor

    def all_values(self, observations: Any, actions: torch.Tensor) -> torch.Tensor:
        """See :meth:`Learner.all_values`; of a critic with quantiles their mean."""
        critic: Any = self.policy.critic
        values = critic(observations, actions)
        return torch.stack(values) if isinstance(values, tuple) else values.mean(dim=-1, keepdim=True).transpose(0, 1)

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """None: those of the model, which it drives itself, are among :attr:`save_params`."""
        return {}

    @property
    def save_params(self) -> tuple[list[str], list[str]]:
        """See :attr:`Learner.save_params`."""
        state_dicts, variables = self.model._get_torch_save_params()
        own = [name for name in state_dicts if name != "policy"]
        return [f"learner.model.{name}" for name in own], [f"learner.model.{name}" for name in variables]

    def begin(self, rates: Rates, buffer: ReplayBuffer | None = None) -> None:
        """See :meth:`Learner.begin`; the model keeps its own learning rate schedule."""
        model = self.model
        model.tau, model.gamma = rates.tau, rates.gamma
        model._n_updates = self.n_updates = rates.n_updates
        model._current_progress_remaining = rates.progress_remaining
        self._batch_size, self._steps_per_update = rates.batch_size, rates.steps_per_update
        model.num_timesteps = self._n_steps(rates.n_updates)
        if hasattr(model, "_n_calls"):
            model._n_calls = model.num_timesteps

    def _n_steps(self, n_updates: int) -> int:
        """Environment steps that come before so many updates."""
        return math.ceil(n_updates * self._steps_per_update - 1e-6)

    def update(self, sample: Sampler, n_updates: int) -> dict[str, float]:
        """See :meth:`Learner.update`; what the model logs, on average over the calls of its ``train``."""
        buffer, self.model.replay_buffer = self.model.replay_buffer, _Batches(sample)  # type: ignore[assignment]
        logged: dict[str, list[Any]] = {}
        try:
            for n_at_once in [1] * n_updates if self._acts_on_steps else [n_updates]:
                for name, value in self._train(n_at_once).items():
                    logged.setdefault(name, []).append(value)
        finally:
            self.model.replay_buffer = buffer
        return {name: values[0] if len(values) == 1 else float(np.mean(values)) for name, values in logged.items()}

    def _train(self, n_updates: int) -> dict[str, Any]:
        """The steps before these updates, the updates, and what the model logs of them."""
        notes = Logger(folder=None, output_formats=[])
        self.model.set_logger(notes)
        if self._acts_on_steps:
            while self.model.num_timesteps < self._n_steps(self.n_updates + n_updates):
                self.model.num_timesteps += 1
                self.model._on_step()
        self.model.train(gradient_steps=n_updates, batch_size=self._batch_size)
        self.n_updates += n_updates
        logged = {key.removeprefix("train/"): value for key, value in notes.name_to_value.items()}
        return {key: value for key, value in logged.items() if key != "n_updates" and not key.startswith("rollout/")}
