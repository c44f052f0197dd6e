"""A model of an environment that is learned from its transitions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from torch import Tensor, nn
from torch.nn import functional

from sb3_erl.core.checks import check_range
from sb3_erl.planning.base import PlanningModel


class Dynamics(nn.Module):
    """
    A network with the statistics by which its inputs and outputs are normalized.

    :param body: maps normalized observations and actions ``(n, obs_dim + action_dim)`` to normalized changes of the
        observation and rewards ``(n, obs_dim + 1)``
    :param obs_dim: length of an observation
    :param action_dim: number of action components
    """

    in_mean: Tensor
    in_std: Tensor
    out_mean: Tensor
    out_std: Tensor

    def __init__(self, body: nn.Module, obs_dim: int, action_dim: int):
        super().__init__()
        self.body = body
        for name, size in (("in", obs_dim + action_dim), ("out", obs_dim + 1)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))

    def forward(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """
        :param observations: ``(n, obs_dim)``
        :param actions: ``(n, action_dim)`` in [-1, 1]
        :return: next observations ``(n, obs_dim)`` and rewards ``(n,)``
        """
        inputs = torch.cat([observations, actions], dim=1)
        outputs = self.body((inputs - self.in_mean) / self.in_std) * self.out_std + self.out_mean
        return observations + outputs[:, :-1], outputs[:, -1]

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """
        :param inputs: ``(n, obs_dim + action_dim)``
        :param targets: ``(n, obs_dim + 1)``, changes of the observation and rewards
        :return: mean squared error in normalized units
        """
        predicted = self.body((inputs - self.in_mean) / self.in_std)
        return functional.mse_loss(predicted, (targets - self.out_mean) / self.out_std)

    @torch.no_grad()
    def normalize_by(self, inputs: Tensor, targets: Tensor) -> None:
        """
        :param inputs: ``(n, obs_dim + action_dim)`` of all data
        :param targets: ``(n, obs_dim + 1)`` of all data
        """
        for name, values in (("in", inputs), ("out", targets)):
            getattr(self, f"{name}_mean").copy_(values.mean(dim=0))
            getattr(self, f"{name}_std").copy_(values.std(dim=0, unbiased=False).clamp_min(1e-6))


class LearnedModel(PlanningModel):
    """
    A torch module that predicts the next observation and the reward, fitted on a replay buffer.

    One deterministic network on observations, not PlaNet's recurrent model of images: the planner is the paper's, the model is
    the plainest that serves it.

    :param observation_space: a ``Box`` with one axis
    :param action_space: a bounded ``Box`` with one axis
    :param network: any module that maps ``(n, obs_dim + action_dim)`` to ``(n, obs_dim + 1)``, in normalized units, see
        :class:`Dynamics`; ``None`` for a perceptron of ``net_arch``
    :param net_arch: widths of its hidden layers
    :param learning_rate: of Adam
    :param terminated: ``terminated(next_observations (n, obs_dim)) -> (n,)`` booleans; rewards after that are 0. ``None``:
        episodes do not end in the model
    :param seed: of the initial weights and of the batches
    :param device: where it is computed
    :raises ValueError: if a space is not supported or the module maps to another shape
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        network: nn.Module | None = None,
        net_arch: list[int] | tuple[int, ...] = (200, 200),
        learning_rate: float = 1e-3,
        terminated: Callable[[np.ndarray], np.ndarray] | None = None,
        seed: int | None = None,
        device: torch.device | str = "cpu",
    ):
        for name, space in (("observation_space", observation_space), ("action_space", action_space)):
            if not isinstance(space, spaces.Box) or len(space.shape) != 1:
                raise ValueError(f"{name} must be a Box with one axis for a LearnedModel; got {space}. Flatten observations")
        check_range("learning_rate", learning_rate, 0, open_low=True)
        if network is not None and not isinstance(network, nn.Module):
            raise TypeError(f"network must be None or a torch module; got {network!r}")
        if terminated is not None and not callable(terminated):
            raise TypeError(f"terminated must be None or a function of next observations; got {terminated!r}")
        assert isinstance(action_space, spaces.Box) and observation_space.shape is not None
        self.obs_dim, self.action_dim = observation_space.shape[0], action_space.shape[0]
        self.low, self.high = action_space.low, action_space.high
        self.learning_rate, self.terminated, self.device = learning_rate, terminated, torch.device(device)
        self.rng = np.random.default_rng(seed)
        if network is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(self.rng.integers(2**31)))
                network = _perceptron([self.obs_dim + self.action_dim, *net_arch, self.obs_dim + 1])
        self.network = Dynamics(network, self.obs_dim, self.action_dim).to(self.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=learning_rate)
        with torch.no_grad():
            found = network(torch.zeros(2, self.obs_dim + self.action_dim, device=self.device)).shape
        if found != (2, self.obs_dim + 1):
            raise ValueError(
                f"network must map (n, {self.obs_dim + self.action_dim}) to (n, {self.obs_dim + 1}), the change of the "
                f"observation and the reward; got {tuple(found)} for n=2"
            )

    def fit(self, replay_buffer: ReplayBuffer, gradient_steps: int, batch_size: int = 256) -> dict[str, float]:
        """
        Gradient steps on the transitions of a replay buffer of SB3's, whose actions are in [-1, 1], as SB3 stores them.

        :param replay_buffer: at least one transition
        :param gradient_steps: at least 1
        :param batch_size: transitions per step
        :return: ``model_loss``, the mean squared error in normalized units, averaged over the steps
        :raises ValueError: if the buffer is empty or a number is out of range
        """
        check_range("gradient_steps", gradient_steps, 1, integer=True)
        check_range("batch_size", batch_size, 1, integer=True)
        size = replay_buffer.size()
        if size == 0:
            raise ValueError("replay_buffer must hold transitions to fit a model on; it is empty. Collect some first")
        inputs, targets = self._data(replay_buffer, size)
        self.network.normalize_by(inputs, targets)
        losses = torch.zeros((), device=self.device)
        for _ in range(gradient_steps):
            rows = torch.as_tensor(self.rng.integers(len(inputs), size=batch_size), device=self.device)
            loss = self.network.loss(inputs[rows], targets[rows])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses += loss.detach()
        return {"model_loss": float(losses) / gradient_steps}

    def _data(self, buffer: ReplayBuffer, size: int) -> tuple[Tensor, Tensor]:
        """:return: inputs ``(n, obs_dim + action_dim)`` and targets ``(n, obs_dim + 1)`` of all transitions that are stored"""
        if buffer.optimize_memory_usage:
            raise ValueError("replay_buffer must store next observations: make it with optimize_memory_usage=False")

        def flat(array: np.ndarray) -> Tensor:
            values = array[:size].reshape(size * buffer.n_envs, -1)
            return torch.as_tensor(values, dtype=torch.float32, device=self.device)

        observations, actions = flat(buffer.observations), flat(buffer.actions)
        changes = flat(buffer.next_observations) - observations
        return torch.cat([observations, actions], dim=1), torch.cat([changes, flat(buffer.rewards)], dim=1)

    @torch.no_grad()
    def rollout(self, state: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """
        :param state: an observation ``(obs_dim,)``
        :param actions: ``(n_candidates, n_steps, action_dim)`` in units of the environment
        :return: rewards ``(n_candidates, n_steps)``
        """
        n_candidates, n_steps, _ = actions.shape
        scaled = torch.as_tensor(
            2.0 * (actions - self.low) / (self.high - self.low) - 1.0, dtype=torch.float32, device=self.device
        )
        start = torch.as_tensor(np.asarray(state), dtype=torch.float32, device=self.device)
        observations = start.expand(n_candidates, -1)
        rewards = torch.zeros(n_candidates, n_steps, device=self.device)
        is_alive = torch.ones(n_candidates, dtype=torch.bool, device=self.device)
        for t in range(n_steps):
            observations, reward = self.network(observations, scaled[:, t])
            rewards[:, t] = torch.where(is_alive, reward, 0.0)
            if self.terminated is not None:
                ended = np.asarray(self.terminated(observations.cpu().numpy()), dtype=bool)
                is_alive &= ~torch.as_tensor(ended, device=self.device)
        return rewards.cpu().numpy().astype(np.float64)

    def __getstate__(self) -> dict[str, Any]:
        state = {**vars(self), "network": copy.deepcopy(self.network).cpu(), "device": torch.device("cpu")}
        del state["optimizer"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.learning_rate)


def _perceptron(sizes: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes[:-1]):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))
