"""Replay buffers: time of prioritized batches, and memory of a million Humanoid transitions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from benchmarks.lap import PER_ROUND, cumsum_way, filled, tree_way
from benchmarks.save import measured
from benchmarks.speed.measuring import Measurement, Options, measurement, timed
from sb3_erl.buffers.append import append_steps
from sb3_erl.buffers.lap import LAPReplayBuffer
from sb3_erl.buffers.rollout_steps import Steps

SIZES = (10_000, 1_000_000)
OBSERVATIONS, ACTIONS = 376, 17
"""Sizes of Humanoid-v4, whose observations are float64."""
BUFFERS: dict[str, tuple[type[ReplayBuffer], dict[str, Any]]] = {
    "LAPReplayBuffer (TD7 and learner='td7')": (LAPReplayBuffer, {}),
    "SB3 ReplayBuffer (all others)": (ReplayBuffer, {}),
    "SB3 ReplayBuffer, optimize_memory_usage": (
        ReplayBuffer,
        {"optimize_memory_usage": True, "handle_timeout_termination": False},
    ),
}
BLOCK = 1000


@measurement
def lap(options: Options) -> Measurement:
    """Batches of 256 drawn from the LAP buffer with their priorities written back; beside it a sum over all priorities."""
    ways = {"tree": tree_way, "cumulative sum": cumsum_way}
    buffers = {size: filled(size) for size in SIZES}
    parts, ratios = {}, []

    def repeated(run: Any) -> float:
        for _ in range(PER_ROUND):
            run()
        return float(PER_ROUND)

    for size in SIZES:
        for name, way in ways.items():
            run = way(buffers[size])
            parts[f"{name}, {size} stored"] = timed(lambda run=run: repeated(run))  # type: ignore[misc]
        ratios.append((f"tree, {size} stored", f"cumulative sum, {size} stored"))
    ratios.append((f"tree, {SIZES[1]} stored", f"tree, {SIZES[0]} stored"))
    return Measurement("batches", parts, ratios)


def fill(name: str, capacity: int) -> dict[str, float]:
    """
    Fill a buffer; to be called in a process of its own.

    :param name: key of ``BUFFERS``
    :param capacity: transitions
    :return: bytes of its arrays, and the most that the process held over what it had before
    """
    buffer_class, kwargs = BUFFERS[name]
    space = spaces.Box(-np.inf, np.inf, (OBSERVATIONS,), np.float64)
    rng, figures = np.random.default_rng(0), dict[str, float]()
    with measured(figures, "fill"):
        buffer = buffer_class(capacity, space, spaces.Box(-0.4, 0.4, (ACTIONS,), np.float32), "cpu", **kwargs)
        observations, actions = rng.standard_normal((BLOCK + 1, OBSERVATIONS)), rng.uniform(-1, 1, (BLOCK, ACTIONS))
        steps = Steps(observations, actions.astype(np.float32), np.ones(BLOCK), [{}] * BLOCK, done=True)
        for _ in range(capacity // BLOCK):
            append_steps(buffer, steps)
        buffer.sample(256)
    arrays = [*vars(buffer).values()]
    for tree in getattr(buffer, "trees", []):
        arrays += [tree.priority, tree._leaves, *tree._sums]
    n_bytes = sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))
    return {"transitions": capacity, "array_gigabytes": n_bytes / 1e9, "peak_gigabytes": figures["fill +MB"] / 1e3}


def available_memory() -> float:
    """:return: bytes that processes can have without swapping, infinity where the system does not say"""
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), float("inf"))


@measurement
def memory(options: Options) -> Measurement:
    """Memory of a million Humanoid transitions, each buffer filled to the last in a process of its own."""
    capacity = BLOCK * max(1, options.count(1_000_000) // BLOCK)
    found: dict[str, Any] = {}
    for name in BUFFERS:
        needed = 2.2 * 8 * OBSERVATIONS * capacity
        if available_memory() < needed:
            found[name] = f"not measured: {needed / 1e9:.1f} GB may be needed, --scale takes fewer transitions"
            continue
        code = f"import json; from benchmarks.speed.storage import fill; print(json.dumps(fill({name!r}, {capacity})))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
    return Measurement("", {}, facts={"buffers": found})
