"""How a learner explores; every explorer draws from the address of its episode only."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.policies import BasePolicy

from sb3_erl.common.seeding import ScopedGenerators
from sb3_erl.evaluation.acting import on_cpu


class UniformExploration:
    """Uniform random actions, for the warm-up."""

    def begin(self, sequence: np.random.SeedSequence) -> None:
        """See :class:`~sb3_erl.evaluation.base.Explorer`."""
        self._rng = np.random.default_rng(sequence)

    def __call__(self, observation: np.ndarray, action: np.ndarray) -> np.ndarray:
        return self._rng.uniform(-1.0, 1.0, size=action.shape).astype(action.dtype)


class UnboundedExploration:
    """
    Normal noise on outputs that the environment's bounds clip later, in the units of the action space.

    :param std: standard deviation in each dimension
    """

    def __init__(self, std: float):
        self._std = std

    def begin(self, sequence: np.random.SeedSequence) -> None:
        """See :class:`~sb3_erl.evaluation.base.Explorer`."""
        self._rng = np.random.default_rng(sequence)

    def __call__(self, observation: np.ndarray, action: np.ndarray) -> np.ndarray:
        return (action + self._std * self._rng.standard_normal(action.shape)).astype(action.dtype)


class NoiseExploration:
    """
    SB3's action noise on top of the deterministic action, clipped to [-1, 1].

    :param noise: any SB3 action noise (a vectorised one stands for its base noise)
    """

    def __init__(self, noise: ActionNoise):
        self._noise = copy.deepcopy(noise.base_noise if isinstance(noise, VectorizedActionNoise) else noise)

    def begin(self, sequence: np.random.SeedSequence) -> None:
        """See :class:`~sb3_erl.evaluation.base.Explorer`."""
        self._noise.reset()
        if type(self._noise) is NormalActionNoise:
            self._rng = np.random.default_rng(sequence)
        else:  # SB3's other noises read the global generator
            self._scope = ScopedGenerators(sequence)

    def __call__(self, observation: np.ndarray, action: np.ndarray) -> np.ndarray:
        if type(self._noise) is NormalActionNoise:
            noise = self._rng.normal(self._noise._mu, self._noise._sigma)
        else:
            with self._scope:
                noise = self._noise()
        return np.clip(action + noise, -1.0, 1.0).astype(action.dtype)


class PolicyExploration:
    """
    Actions sampled from a stochastic policy (SAC and its relatives), with optional noise on top.

    :param actor: SB3 actor with a squashed output
    :param noise: added to the sampled action
    """

    def __init__(self, actor: BasePolicy, noise: ActionNoise | None = None):
        self._actor = actor
        self._noise = None if noise is None else NoiseExploration(noise)

    def __getstate__(self) -> dict[str, Any]:  # workers act on the CPU
        return {"_actor": on_cpu(self._actor), "_noise": self._noise}

    def begin(self, sequence: np.random.SeedSequence) -> None:
        """See :class:`~sb3_erl.evaluation.base.Explorer`."""
        first, second = sequence.spawn(2)
        self._scope = ScopedGenerators(first)
        if self._noise is not None:
            self._noise.begin(second)

    def __call__(self, observation: np.ndarray, action: np.ndarray) -> np.ndarray:
        with self._scope, torch.no_grad():
            tensor, _ = self._actor.obs_to_tensor(np.asarray(observation))
            sampled = self._actor._predict(tensor, deterministic=False).cpu().numpy().reshape(-1)
        return sampled if self._noise is None else self._noise(observation, sampled)
