"""
Time to draw a batch from the LAP replay buffer and to write its priorities back, against the number of stored transitions.

    python -m benchmarks.lap [--sizes 10000 100000 1000000] [--rounds 30] [--out lap.json]

Beside it, in the same process and interleaved with it, the cumulative-sum way of the authors' code of TD7 (a sum over all
priorities for every batch). Observations have 17 numbers and actions 6, as in HalfCheetah; a batch has 256 transitions.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from gymnasium import spaces

from sb3_erl.buffers.lap import LAPReplayBuffer

BATCH = 256
PER_ROUND = 20


def filled(size: int) -> LAPReplayBuffer:
    """A buffer for a million transitions with ``size`` of them stored, at random priorities."""
    observations, actions = spaces.Box(-np.inf, np.inf, (17,), np.float32), spaces.Box(-1, 1, (6,), np.float32)
    buffer = LAPReplayBuffer(1_000_000, observations, actions, "cpu")
    rng = np.random.default_rng(size)
    for array in (buffer.observations, buffer.next_observations, buffer.actions, buffer.rewards):
        array[:size] = rng.standard_normal((size, *array.shape[1:]), dtype=np.float32)
    buffer.pos, buffer.full = size % 1_000_000, size == 1_000_000
    slots = np.arange(size)
    buffer.trees[0].append(slots)
    buffer.trees[0].write(slots, rng.uniform(1, 3, size).astype(np.float32))
    return buffer


def tree_way(buffer: LAPReplayBuffer) -> Callable[[], None]:
    """Draw a batch and write its priorities as the package does."""
    priorities = np.random.default_rng(0).uniform(1, 3, BATCH).astype(np.float32)

    def run() -> None:
        buffer.sample(BATCH)
        buffer.update_priorities(priorities)

    return run


def cumsum_way(buffer: LAPReplayBuffer) -> Callable[[], None]:
    """The same with a cumulative sum over all priorities for each batch."""
    tree = buffer.trees[0]
    priorities, own = np.random.default_rng(0).uniform(1, 3, BATCH).astype(np.float32), tree.priority.copy()

    def run() -> None:
        sums = np.cumsum(own[: tree.size], dtype=np.float64)
        slots = np.searchsorted(sums, np.random.random_sample(BATCH) * sums[-1])
        buffer._get_samples(slots)
        own[slots] = priorities

    return run


def measure(sizes: list[int], rounds: int) -> dict[str, dict[str, float]]:
    """:return: for each way and number of stored transitions the median time of one batch in microseconds"""
    buffers = {size: filled(size) for size in sizes}
    ways = {"tree": tree_way, "cumulative sum": cumsum_way}
    runs = {(name, size): way(buffers[size]) for name, way in ways.items() for size in sizes}
    times: dict[tuple[str, int], list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            start = time.perf_counter()
            for _ in range(PER_ROUND):
                run()
            times[key].append((time.perf_counter() - start) / PER_ROUND * 1e6)
    return {name: {str(size): float(np.median(times[name, size])) for size in sizes} for name in ways}


def main(arguments: list[str] | None = None) -> float:
    """:return: the longest over the shortest time of the tree"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=None, help="write the figures here as JSON")
    options = parser.parse_args(arguments)
    figures = measure(options.sizes, options.rounds)
    print(f"{'stored':>10}" + "".join(f"{name + ' [us]':>22}" for name in figures))
    for size in options.sizes:
        print(f"{size:>10}" + "".join(f"{figures[name][str(size)]:>22.0f}" for name in figures))
    ratio = max(figures["tree"].values()) / min(figures["tree"].values())
    print(f"longest / shortest time of the tree: {ratio:.2f}")
    if options.out is not None:
        options.out.write_text(json.dumps({"microseconds_per_batch": figures, "tree_ratio": ratio}, indent=1) + "\n")
    return ratio


if __name__ == "__main__":
    main()
