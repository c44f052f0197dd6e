"""Compiled updates against the same without a compiler, and against SB3's, by the time that this process was running."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.logger import configure

from benchmarks.speed import flops
from benchmarks.speed.measuring import Measurement, Options, Part, Sample, measurement, spread, timed
from benchmarks.speed.updates import N_STORED, Still, cem_rl, made, product, trained
from sb3_erl import CEMRL, TD7, ERLRe2, EvoRainbow
from sb3_erl.compiled.operators import prefers_onednn
from sb3_erl.learners.base import Learner, LearnerSettings
from sb3_erl.learners.dqn import DQNLearner, DQNSettings
from sb3_erl.learners.sac import SACLearner, SACSettings
from sb3_erl.learners.td3 import TD3Learner
from sb3_erl.policies.erl import fused_adam

EQUAL: dict[str, Any] = {"net_arch": [256, 256]}
"""Networks that are compared with SB3's; batches of 256."""
FUSED = {**EQUAL, "optimizer_kwargs": fused_adam(torch.optim.Adam)}
"""The same with the form of Adam that the policies of this package have."""


def learner_of(model: Any) -> Learner:
    """:return: this package's rule on the networks of a model of SB3"""
    if isinstance(model, TD3):
        return TD3Learner(model.policy, LearnerSettings(policy_delay=2, target_policy_noise=0.2, target_noise_clip=0.5))
    return SACLearner(model.policy, SACSettings())


def own(algorithm: type, options: Options, n: int, compile: bool) -> Callable[[], float]:
    """:return: makes ``n`` iterations with this package's rule on the networks and the replay buffer of a model of SB3"""
    model = made(algorithm, options, policy_kwargs=dict(FUSED))
    learner, buffer = learner_of(model), model.replay_buffer
    if compile:
        learner.compile()

    def work() -> float:
        model.policy.set_training_mode(True)
        learner.update(lambda: buffer.sample(256), n)
        return float(n)

    return work


def q_learning(options: Options, n: int, learns: str) -> Callable[[], float]:
    """:return: makes ``n`` updates of DQN with batches of 32, by SB3, by this package's rule, or by that rule compiled"""
    env = Still()
    env.action_space = spaces.Discrete(6)  # type: ignore[assignment]
    model = DQN("MlpPolicy", env, seed=0, device=options.device, buffer_size=N_STORED, policy_kwargs=dict(FUSED))
    buffer, rng = model.replay_buffer, np.random.default_rng(0)
    assert buffer is not None
    buffer.observations[:], buffer.next_observations[:] = rng.standard_normal((2, *buffer.observations.shape))
    buffer.actions[:], buffer.rewards[:] = (
        rng.integers(6, size=buffer.actions.shape),
        rng.standard_normal(buffer.rewards.shape),
    )
    buffer.full = True
    model.set_logger(configure(None, []))
    if learns == "sb3":
        return trained(model, n)
    learner = DQNLearner(model.policy, DQNSettings(loss="huber", max_grad_norm=10.0))  # type: ignore[arg-type]
    if learns == "compiled":
        learner.compile()

    def work() -> float:
        learner.update(lambda: buffer.sample(32), n)
        return float(n)

    return work


def by_cpu(part: Part) -> Part:
    """:return: the same, a second being one in which this process was running"""

    def run() -> Sample:
        sample = part()
        return sample if sample.cpu_seconds is None else sample._replace(seconds=max(sample.cpu_seconds, 1e-9))

    return run


TWICE = ("TD3", "SAC", "TD7", "ERL-Re2", "ERL-Re2 on TD7", "EvoRainbow on SAC", "DQN", "CEM-RL")
"""Systems that are measured with and without."""


@measurement
def compiled_updates(options: Options) -> Measurement:
    """Gradient iterations with ``compile=True``, on HalfCheetah's spaces; compiling is not counted."""
    n = options.count(40)

    def heads(algorithm: type, compile: bool, **arguments: Any) -> Callable[[], float]:
        model = made(algorithm, options, learning_starts=0, compile=compile, **arguments)
        model._individuals = model.evolver.ask(np.random.default_rng(0))
        model.n_evaluations = 1  # the encoder's loss has its PeVFA term, as after the first generation
        return trained(model, n)

    def actors(compile: bool) -> Callable[[], float]:
        return cem_rl(made(CEMRL, options, learning_starts=0, compile=compile), n)

    systems: dict[str, tuple[Callable[[], float], float]] = {
        "SB3 TD3": (trained(made(TD3, options, policy_kwargs=EQUAL), n), 0.0),
        "TD3": (own(TD3, options, n, False), flops.td3(hidden=(256, 256))),
        "TD3 compiled": (own(TD3, options, n, True), flops.td3(hidden=(256, 256))),
        "SB3 SAC": (trained(made(SAC, options, policy_kwargs=EQUAL), n), 0.0),
        "SAC": (own(SAC, options, n, False), 0.0),
        "SAC compiled": (own(SAC, options, n, True), 0.0),
        "TD7": (trained(made(TD7, options, compile=False), n), flops.td7()),
        "TD7 compiled": (trained(made(TD7, options, compile=True), n), flops.td7()),
        "TD7 compiled, bf16": (trained(made(TD7, options, compile=True, precision="bf16"), n), flops.td7()),
        "ERL-Re2": (heads(ERLRe2, False), flops.erl_re2()),
        "ERL-Re2 compiled": (heads(ERLRe2, True), flops.erl_re2()),
        "ERL-Re2 on TD7": (heads(ERLRe2, False, learner="td7"), 0.0),
        "ERL-Re2 on TD7 compiled": (heads(ERLRe2, True, learner="td7"), 0.0),
        "EvoRainbow on SAC": (heads(EvoRainbow, False, learner="sac"), 0.0),
        "EvoRainbow on SAC compiled": (heads(EvoRainbow, True, learner="sac"), 0.0),
        "SB3 DQN": (q_learning(options, 10 * n, "sb3"), 0.0),
        "DQN": (q_learning(options, 10 * n, "plain"), 0.0),
        "DQN compiled": (q_learning(options, 10 * n, "compiled"), 0.0),
        "CEM-RL": (actors(False), flops.cem_rl()),
        "CEM-RL compiled": (actors(True), flops.cem_rl()),
    }
    products = {f"float32 product {size}": product((size,) * 3, options.device, 3e9 * options.scale) for size in (256, 512)}
    parts = {name: by_cpu(part) for name, part in products.items()}
    parts |= {name: by_cpu(timed(work, options.device)) for name, (work, _) in systems.items()}
    pairs = [(f"{name} compiled", name) for name in TWICE]
    pairs += [
        ("TD7 compiled, bf16", "TD7"),
        ("TD3 compiled", "SB3 TD3"),
        ("SAC compiled", "SB3 SAC"),
        ("DQN compiled", "SB3 DQN"),
    ]

    def more(rates: dict[str, np.ndarray]) -> dict[str, Any]:
        best = max(products, key=lambda name: float(np.median(rates[name])))
        shares = {name: spread(rates[name] * count / rates[best]) for name, (_, count) in systems.items() if count > 0}
        return {"yardstick": best, "share_of_yardstick": shares, "float32_products_by_onednn": str(prefers_onednn())}

    target = {"TD3 compiled / SB3 TD3": "1.4", "SAC compiled / SB3 SAC": "1.4", "TD7 compiled, bf16 / TD7": "1.8"}
    return Measurement("iterations per CPU second", parts, pairs, more=more, target=target)
