"""
The toy problem of Jaderberg et al. (2017), figure 2: members climb a surrogate of the true value, shaped by hyper-parameters.

The true value is ``1.2 - theta_0^2 - theta_1^2``, the surrogate ``1.2 - h_0 theta_0^2 - h_1 theta_1^2``.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy


class TrueValue(gym.Env):
    """An episode is one action, theta, and its reward is the true value."""

    observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = spaces.Box(-10.0, 10.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, np.float32), float(1.2 - np.square(np.asarray(action, np.float64)).sum()), True, False, {}


class ThetaPolicy(BasePolicy):
    """Acts with its parameters."""

    def __init__(self, observation_space: Any, action_space: Any, lr_schedule: Any = None, **kwargs: Any):
        super().__init__(observation_space, action_space)
        self.theta = th.nn.Parameter(th.tensor([0.9, 0.9]))

    def forward(self, observation: Any, deterministic: bool = False) -> th.Tensor:
        return self.theta.detach().expand(len(observation), 2)

    def _predict(self, observation: Any, deterministic: bool = False) -> th.Tensor:
        return self.forward(observation)


class Surrogate(BaseAlgorithm):
    """
    Climbs the surrogate by gradient, one step per environment step.

    :param h0: weight of the first part
    :param h1: weight of the second part
    """

    policy_aliases = {"MlpPolicy": ThetaPolicy}  # noqa: RUF012 as in SB3

    def __init__(
        self,
        policy: Any,
        env: Any,
        learning_rate: Any = 0.05,
        h0: float = 0.5,
        h1: float = 0.5,
        seed: int | None = None,
        device: Any = "cpu",
        _init_setup_model: bool = True,
    ):
        self.h0, self.h1 = h0, h1
        super().__init__(policy, env, learning_rate, seed=seed, device=device)
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        made: Any = self.policy_class
        self.policy = made(self.observation_space, self.action_space)

    def learn(self, total_timesteps: int, callback: Any = None, *args: Any, **kwargs: Any) -> Any:
        _, callback = self._setup_learn(total_timesteps, callback, kwargs.get("reset_num_timesteps", True))
        callback.on_training_start(locals(), globals())
        theta: Any = self.policy.theta
        for _ in range(total_timesteps):
            self.num_timesteps += 1
            callback.on_step()
            with th.no_grad():
                theta -= self.lr_schedule(1.0) * 2 * th.tensor([self.h0, self.h1]) * theta
        callback.on_training_end()
        return self
