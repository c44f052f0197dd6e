"""Compiled updates against the same without a compiler, and against SB3's, by the time that this process was running."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from stable_baselines3 import SAC, TD3

from benchmarks.speed import flops
from benchmarks.speed.measuring import Measurement, Options, Part, Sample, measurement, spread, timed
from benchmarks.speed.updates import made, product, trained
from sb3_erl import TD7, ERLRe2
from sb3_erl.compiled.operators import prefers_onednn
from sb3_erl.learners.base import Learner, LearnerSettings
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
    model = made(algorithm, options, policy_kwargs=FUSED)
    learner, buffer = learner_of(model), model.replay_buffer
    if compile:
        learner.compile()

    def work() -> float:
        model.policy.set_training_mode(True)
        learner.update(lambda: buffer.sample(256), n)
        return float(n)

    return work


def by_cpu(part: Part) -> Part:
    """:return: the same, a second being one in which this process was running"""

    def run() -> Sample:
        sample = part()
        return sample if sample.cpu_seconds is None else sample._replace(seconds=max(sample.cpu_seconds, 1e-9))

    return run


@measurement
def compiled_updates(options: Options) -> Measurement:
    """Gradient iterations with ``compile=True``, on HalfCheetah's spaces; compiling is not counted."""
    n = options.count(40)

    def re2(**arguments: Any) -> Callable[[], float]:
        model = made(ERLRe2, options, learning_starts=0, **arguments)
        model.n_evaluations = 1  # the encoder's loss has its PeVFA term, as after the first generation
        return trained(model, n)

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
        "ERL-Re2": (re2(compile=False), flops.erl_re2()),
        "ERL-Re2 compiled": (re2(compile=True), flops.erl_re2()),
    }
    products = {f"float32 product {size}": product((size,) * 3, options.device, 3e9 * options.scale) for size in (256, 512)}
    parts = {name: by_cpu(part) for name, part in products.items()}
    parts |= {name: by_cpu(timed(work, options.device)) for name, (work, _) in systems.items()}
    pairs = [(f"{name} compiled", name) for name in ("TD3", "SAC", "TD7", "ERL-Re2")]
    pairs += [("TD7 compiled, bf16", "TD7"), ("TD3 compiled", "SB3 TD3"), ("SAC compiled", "SB3 SAC")]

    def more(rates: dict[str, np.ndarray]) -> dict[str, Any]:
        best = max(products, key=lambda name: float(np.median(rates[name])))
        shares = {name: spread(rates[name] * count / rates[best]) for name, (_, count) in systems.items() if count > 0}
        return {"yardstick": best, "share_of_yardstick": shares, "float32_products_by_onednn": str(prefers_onednn())}

    target = {"TD3 compiled / SB3 TD3": "1.4", "SAC compiled / SB3 SAC": "1.4", "TD7 compiled, bf16 / TD7": "1.8"}
    return Measurement("iterations per CPU second", parts, pairs, more=more, target=target)
