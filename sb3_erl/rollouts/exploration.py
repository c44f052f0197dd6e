"""Exploration of learners; every explorer draws its random numbers from the address of its episode only."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.policies import BasePolicy

from sb3_erl.core.checks import check_range
from sb3_erl.core.seeding import ScopedGenerators
from sb3_erl.rollouts.acting import on_cpu

BLOCK = 64
"""Number of steps for which random numbers are drawn at once; the numbers equal those of single draws."""


class EpsilonGreedyExploration:
    """
    A uniformly random discrete action with probability epsilon, otherwise the greedy one.

    Mnih et al. (2015), https://doi.org/10.1038/nature14236; with the same two draws as SB3's ``DQN.predict``.

    :param n_actions: number of discrete actions, at least 1
    :param epsilon: probability of a random action in the first step of an episode, in [0, 1]
    :param fall: what is taken off it after each step of the episode, at least 0
    :param final_epsilon: where it stops to fall, in [0, 1]
    :raises ValueError: if a number is out of range
    """

    def __init__(self, n_actions: int, epsilon: float, fall: float = 0.0, final_epsilon: float = 0.0):
        check_range("n_actions", n_actions, 1, integer=True)
        check_range("epsilon", epsilon, 0, 1)
        check_range("fall", fall, 0)
        check_range("final_epsilon", final_epsilon, 0, 1)
        self.n_actions, self.epsilon = int(n_actions), float(epsilon)
        self.fall, self.final_epsilon = float(fall), min(float(final_epsilon), float(epsilon))

    def begin(self, sequence: np.random.SeedSequence) -> None:
        """See :class:`~sb3_erl.rollouts.jobs.Explorer`."""
        self._rng, self._n_steps = np.random.default_rng(sequence), 0

    def __call__(self, observation: Any, action: np.ndarray) -> np.ndarray:
        """:return: ``(1,)``, the index of the action in the dtype of ``action``"""
        epsilon = max(self.epsilon - self.fall * self._n_steps, self.final_epsilon) if self.fall else self.epsilon
        self._n_steps += 1
        if self._rng.random() >= epsilon:
            return action
        return np.full_like(action, self._rng.integers(self.n_actions))


class UniformExploration:
    """Uniform random actions, for the warm-up."""

    def begin(self, sequence: np.random.SeedSequence) -> None:
        """See :class:`~sb3_erl.rollouts.jobs.Explorer`."""
        self._rng = np.random.default_rng(sequence)

    def __call__(self, observation: Any, action: np.ndarray) -> np.ndarray:
        return self._rng.uniform(-1.0, 1.0, size=action.shape).astype(action.dtype)


class UnboundedExploration:
    """
    Normal noise on outputs that the environment's bounds clip later, in the units of the action space.

    :param std: standard deviation in each dimension
    """

    def __init__(self, std: float):
        self._std = std

    def begin(self, sequence: np.random.SeedSequence) -> None:
        """See :class:`~sb3_erl.rollouts.jobs.Explorer`."""
        self._draws = _Draws(_NormalDraws(np.random.default_rng(sequence), 0.0, self._std))

    def __call__(self, observation: Any, action: np.ndarray) -> np.ndarray:
        return (action + self._draws.next(action.shape)).astype(action.dtype)


class NoiseExploration:
    """
    SB3's action noise on top of the deterministic action, clipped to [-1, 1].

    :param noise: any SB3 action noise (a vectorized one stands for its base noise)
    """

    def __init__(self, noise: ActionNoise):
        self._noise = copy.deepcopy(noise.base_noise if isinstance(noise, VectorizedActionNoise) else noise)

    def begin(self, sequence: np.random.SeedSequence) -> None:
        """See :class:`~sb3_erl.rollouts.jobs.Explorer`."""
        noise = self._noise
        noise.reset()
        if type(noise) is NormalActionNoise:
            mean, std = (np.ravel(each) if np.ndim(each) > 1 else each for each in (noise._mu, noise._sigma))
            self._shape = np.broadcast(mean, std).shape
            self._draws = _Draws(_NormalDraws(np.random.default_rng(sequence), mean, std))
            return
        self._shape = ()
        draw = _NoiseDraws(ScopedGenerators(sequence), noise)
        self._draws = _Draws(draw, BLOCK if type(noise) is OrnsteinUhlenbeckActionNoise else 1)

    def __call__(self, observation: Any, action: np.ndarray) -> np.ndarray:
        noisy = action + self._draws.next(self._shape)
        return np.minimum(np.maximum(noisy, -1.0, out=noisy), 1.0, out=noisy).astype(action.dtype)


def forgets(noise: ActionNoise) -> bool:
    """
    :param noise: of a user
    :return: whether it is another one after an episode, which ``reset`` does not undo
    """
    base = noise.base_noise if isinstance(noise, VectorizedActionNoise) else noise
    if type(base) in (NormalActionNoise, OrnsteinUhlenbeckActionNoise):
        return False
    with ScopedGenerators(np.random.SeedSequence(0)), contextlib.suppress(pickle.PicklingError, AttributeError, TypeError):
        one = copy.deepcopy(base)
        one.reset()
        before = pickle.dumps(vars(one))
        one()
        one.reset()
        return pickle.dumps(vars(one)) != before
    return False


@dataclass(frozen=True)
class _NormalDraws:
    """Blocks of independent normal numbers; an object and no closure, so that a model can be copied within an episode."""

    rng: np.random.Generator
    mean: Any
    std: Any

    def __call__(self, block: tuple[int, ...]) -> np.ndarray:
        return self.rng.normal(self.mean, self.std, block)


@dataclass(frozen=True)
class _NoiseDraws:
    """Blocks of any of SB3's action noises, which read NumPy's global generator."""

    scope: ScopedGenerators
    noise: ActionNoise

    def __call__(self, block: tuple[int, ...]) -> list[np.ndarray]:
        with self.scope:
            return [np.ravel(drawn) if np.ndim(drawn := self.noise()) > 1 else drawn for _ in range(block[0])]


class _Draws:
    """
    Random numbers step by step, drawn in blocks.

    :param draw: returns an array of the given shape, whose first axis are the steps
    :param size: number of steps in a block; 1 where the time of the draw matters
    """

    def __init__(self, draw: Callable[[tuple[int, ...]], np.ndarray | Sequence[np.ndarray]], size: int = BLOCK):
        self._draw, self._size, self._next = draw, size, 0
        self._block: np.ndarray | Sequence[np.ndarray] = ()

    def next(self, shape: tuple[int, ...]) -> np.ndarray:
        """
        :param shape: of the numbers of one step, always the same
        :return: the numbers of this step
        """
        if self._next == len(self._block):
            self._block, self._next = self._draw((self._size, *shape)), 0
        self._next += 1
        return self._block[self._next - 1]


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
        """See :class:`~sb3_erl.rollouts.jobs.Explorer`."""
        first, second = sequence.spawn(2)
        self._scope = ScopedGenerators(first)
        if self._noise is not None:
            self._noise.begin(second)

    def __call__(self, observation: Any, action: np.ndarray) -> np.ndarray:
        with self._scope, torch.no_grad():
            tensor, _ = self._actor.obs_to_tensor(observation)
            sampled = self._actor._predict(tensor, deterministic=False).cpu().numpy().reshape(-1)
        return sampled if self._noise is None else self._noise(observation, sampled)
