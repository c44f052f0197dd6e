"""Whole training runs with equal networks: SB3, SBX where it is installed, and this package's rules."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

from benchmarks.speed.measuring import Measurement, Options, Part, measurement, timed
from sb3_erl import TD7, ERLRe2, EvoRainbowExp

ENV_ID = "HalfCheetah-v5"
COMMON: dict[str, Any] = {"batch_size": 256, "learning_starts": 1000, "buffer_size": 100_000, "seed": 0}
EQUAL: dict[str, Any] = {"policy_kwargs": {"net_arch": [256, 256]}, "gamma": 0.99, "tau": 0.005}
"""Networks and constants that all have alike; an update a step, or fifty in a row after fifty steps."""
IN_A_ROW = {"train_freq": 50, "gradient_steps": 50}


def steps_of(make: Callable[..., Any], n: int, device: str, **arguments: Any) -> Part:
    """:return: times the next ``n`` environment steps of a run that has left its random steps behind"""
    model = make("MlpPolicy", ENV_ID, **COMMON, **arguments)
    model.learn(COMMON["learning_starts"] + 1)

    def work() -> float:
        before = model.num_timesteps
        model.learn(n, reset_num_timesteps=False)
        return float(model.num_timesteps - before)

    return timed(work, device)


@measurement
def runs(options: Options) -> Measurement:
    """Environment steps per second of whole runs, one update for each step; classes of this package play whole episodes."""
    if hasattr(os, "sched_setaffinity"):  # JAX takes all processors that it is given
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.n_threads])
    n, device = options.count(1000), options.device
    packages = {"SB3": "stable_baselines3"} | ({"SBX": "sbx"} if importlib.util.find_spec("sbx") else {})
    parts: dict[str, Part] = {}
    for kind in ("TD3", "SAC"):
        for label, package in packages.items():
            found = getattr(importlib.import_module(package), kind)
            own = {"device": device} if label == "SB3" else {}
            parts[f"{label} {kind}"] = steps_of(found, n, device, train_freq=1, gradient_steps=1, **own, **EQUAL)
            parts[f"{label} {kind}, 50 updates in a row"] = steps_of(found, n, device, **IN_A_ROW, **own, **EQUAL)
        for compiled in (False, True):
            own = {"learner": kind.lower(), "evolution": False, "compile": compiled, "device": device, **EQUAL}
            parts[f"our {kind} learner without evolution{', compiled' * compiled}"] = steps_of(EvoRainbowExp, n, device, **own)
    parts["TD7, compiled"] = steps_of(TD7, n, device, compile=True, device=device)
    parts["ERL-Re2 with its published networks, compiled"] = steps_of(ERLRe2, n, device, compile=True, device=device)
    ratios = [(name, f"SB3 {kind}") for kind in ("TD3", "SAC") for name in parts if f" {kind}" in name]
    return Measurement("environment steps", parts, [pair for pair in ratios if pair[0] != pair[1]])
