"""Gradient iterations per second, and how much of the machine's rate of matrix products they reach."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.logger import configure

from benchmarks.speed import flops
from benchmarks.speed.measuring import Measurement, Options, Part, measurement, spread, timed
from sb3_erl import CEMRL, ERL, TD7, ERLRe2
from sb3_erl.buffers.append import append_steps
from sb3_erl.buffers.rollout_steps import Steps
from sb3_erl.learners.base import LearnerSettings
from sb3_erl.learners.td3 import TD3Learner
from sb3_erl.policies.erl import fused_adam

OBSERVATIONS = spaces.Box(-np.inf, np.inf, (17,), np.float32)
ACTIONS = spaces.Box(-1.0, 1.0, (6,), np.float32)
N_STORED = 20_000
PRODUCTS = ((256, 256, 256), (512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048))
PRODUCTS_CUDA = (*PRODUCTS, (4096, 4096, 4096), (8192, 8192, 8192))
"""Matrix products, of which the fastest is the yardstick; the first is a layer of TD7 on its batch."""


class Still(gym.Env):
    """Has HalfCheetah's spaces and is not stepped."""

    observation_space, action_space = OBSERVATIONS, ACTIONS

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(17, dtype=np.float32), {}


def made(algorithm: type, options: Options, **arguments: Any) -> Any:
    """:return: a model with a filled replay buffer; the user's further arguments go to those who have them"""
    known = {} if algorithm in (TD3, SAC) else inspect.signature(algorithm).parameters
    further = {name: value for name, value in options.arguments.items() if name in known}
    model = algorithm("MlpPolicy", Still(), seed=0, device=options.device, buffer_size=N_STORED, **further | arguments)
    rng = np.random.default_rng(0)
    observations = rng.standard_normal((N_STORED + 1, 17), dtype=np.float32)
    actions, rewards = rng.uniform(-1, 1, (N_STORED, 6)).astype(np.float32), rng.standard_normal(N_STORED)
    append_steps(model.replay_buffer, Steps(observations, actions, rewards, [{}] * N_STORED, done=False))
    model.set_logger(configure(None, []))
    return model


def trained(model: Any, n: int) -> Callable[[], float]:
    """:return: makes ``n`` iterations as ``learn`` does, batches drawn from the replay buffer"""

    def work() -> float:
        model.train(gradient_steps=n, batch_size=model.batch_size)
        return float(n)

    return work


def own_td3(model: TD3, n: int) -> Callable[[], float]:
    """:return: the same with this package's rule on the networks and buffer of SB3's model"""
    settings = LearnerSettings(policy_delay=2, target_policy_noise=0.2, target_noise_clip=0.5)
    learner = TD3Learner(model.policy, settings)

    def work() -> float:
        assert model.replay_buffer is not None
        buffer = model.replay_buffer
        model.policy.set_training_mode(True)
        learner.update(lambda: buffer.sample(256), n)
        return float(n)

    return work


def cem_rl(model: CEMRL, n: int) -> Callable[[], float]:
    """:return: what CEM-RL learns after ``n`` environment steps: n critic steps, and n actor steps of each of five actors"""
    candidates = model.evolver.ask(np.random.default_rng(0))[: model._n_learned]

    def work() -> float:
        model.budget = n
        model._learner_host.improve(candidates, model.gradient_steps_of_actors, n)
        return float(n)

    return work


def product(shape: tuple[int, int, int], device: str, n_flops: float) -> Part:
    """:return: times matrix products in float32; a unit is one operation"""
    rows, inner, columns = shape
    a, b = torch.randn(rows, inner, device=device), torch.randn(inner, columns, device=device)
    out = torch.empty(rows, columns, device=device)
    each = 2.0 * rows * inner * columns
    count = max(3, round(n_flops / each))

    def work() -> float:
        for _ in range(count):
            torch.mm(a, b, out=out)
        return count * each

    return timed(work, device)


@measurement
def updates(options: Options) -> Measurement:
    """Gradient iterations of the published sizes on HalfCheetah's spaces, SB3's TD3, and matrix products."""
    n, device = options.count(50), options.device
    torch.backends.cuda.matmul.allow_tf32 = False  # float32 means float32
    population = made(ERLRe2, options, learning_starts=0)
    population.n_evaluations = 1  # the encoder's loss has its PeVFA term, as after the first generation
    sb3 = made(TD3, options)
    twin = made(TD3, options, policy_kwargs={"optimizer_kwargs": fused_adam(torch.optim.Adam)})  # as in our own policies
    systems: dict[str, tuple[Callable[[], float], float]] = {
        "SB3 TD3.train, batch 256": (trained(sb3, n), flops.td3()),
        "TD3 learner, batch 256": (own_td3(twin, n), flops.td3()),
        "TD7, batch 256": (trained(made(TD7, options), n), flops.td7()),
        "ERL-Re2, batch 128": (trained(population, n), flops.erl_re2()),
        "CEM-RL, batch 100, 5 actors": (cem_rl(made(CEMRL, options, learning_starts=0), n), flops.cem_rl()),
        "ERL, DDPG learner, batch 128": (trained(made(ERL, options), n), 0.0),
    }
    shapes = PRODUCTS_CUDA if torch.device(device).type == "cuda" else PRODUCTS
    size = 2e12 if torch.device(device).type == "cuda" else 1e10 * options.scale
    parts = {f"float32 product {'x'.join(map(str, shape))}": product(shape, device, size) for shape in shapes}
    products = list(parts)
    parts |= {name: timed(work, device) for name, (work, _) in systems.items()}
    names = list(systems)

    def more(rates: dict[str, np.ndarray]) -> dict[str, Any]:
        best = max(products, key=lambda name: float(np.median(rates[name])))
        reached = {name: rates[name] * count / rates[best] for name, (_, count) in systems.items() if count > 0}
        return {
            "yardstick": best,
            "yardstick_gflop_per_second": float(np.median(rates[best])) / 1e9,
            "gflop_per_iteration": {name: count / 1e9 for name, (_, count) in systems.items() if count > 0},
            "share_of_yardstick": {name: spread(shares) for name, shares in reached.items()},
        }

    return Measurement("iterations", parts, [(name, names[0]) for name in names[1:]], more=more)
