"""Whole training runs with equal networks: SB3, SBX where it is installed, and this package's rules."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

from benchmarks.speed.measuring import Measurement, Options, Part, measurement, timed
from sb3_erl import TD7, EvoRainbowExp

ENV_ID = "HalfCheetah-v5"
COMMON: dict[str, Any] = {"batch_size": 256, "learning_starts": 1000, "buffer_size": 100_000, "seed": 0}
EQUAL: dict[str, Any] = {"gamma": 0.99, "tau": 0.005}
"""Constants that all have alike, beside networks of 256 and 256 units."""
ONE_BY_ONE = {"train_freq": 1, "gradient_steps": 1}
IN_A_ROW = {"train_freq": 50, "gradient_steps": 50}


def steps_of(make: Callable[..., Any], n: int, **arguments: Any) -> Part:
    """:return: times the next ``n`` environment steps of a run that has left its random steps behind"""
    model = make("MlpPolicy", ENV_ID, **copy.deepcopy({**COMMON, **arguments}))  # SB3 writes into some of it
    model.learn(COMMON["learning_starts"] + 1)

    def work() -> float:
        before = model.num_timesteps
        model.learn(n, reset_num_timesteps=False)
        return float(model.num_timesteps - before)

    return timed(work, arguments.get("device", "cpu"))


@measurement
def runs(options: Options) -> Measurement:
    """Environment steps per second of whole runs, one update for each step; classes of this package play whole episodes."""
    if hasattr(os, "sched_setaffinity"):  # JAX takes all processors that it is given
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.n_threads])
    n, device = options.count(1000), options.device
    packages = {"SB3": "stable_baselines3"} | ({"SBX": "sbx"} if importlib.util.find_spec("sbx") else {})
    parts: dict[str, Part] = {}
    for kind in ("TD3", "SAC"):
        equal: dict[str, Any] = {"policy_kwargs": {"net_arch": [256, 256]}, **EQUAL}
        for label, package in packages.items():
            found = getattr(importlib.import_module(package), kind)
            own = equal | ({"device": device} if label == "SB3" else {})
            parts[f"{label} {kind}"] = steps_of(found, n, **ONE_BY_ONE, **own)
            parts[f"{label} {kind}, 50 updates in a row"] = steps_of(found, n, **IN_A_ROW, **own)
        for compiled in (False, True):
            own = equal | {"learner": kind.lower(), "evolution": False, "compile": compiled, "device": device}
            parts[f"our {kind} learner without evolution{', compiled' * compiled}"] = steps_of(EvoRainbowExp, n, **own)
    parts["TD7, compiled"] = steps_of(TD7, n, compile=True, device=device)
    ratios = [(name, f"SB3 {kind}") for kind in ("TD3", "SAC") for name in parts if f" {kind}" in name]
    return Measurement("environment steps", parts, [pair for pair in ratios if pair[0] != pair[1]])
