"""
The Hard Maze: a genetic algorithm that follows the return beside one that follows novelty.

    python -m benchmarks.hard_maze --seeds 5

Writes a table of all runs (``runs.csv``), and per run the end positions of its individuals and a picture of them.
"""

import argparse
import csv
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_erl import GANS, DeepGA
from sb3_erl.envs import VecHardMaze, draw_positions

EPISODE = 400
"""Steps of every episode."""
SOLVED = -10.0
"""Return from which the goal counts as reached."""
COMMON: dict[str, Any] = {
    "pop_size": 250,
    "truncation": 25,
    "sigma": 0.1,
    "init_output_std": 1.0,
    "policy_kwargs": {"net_arch": [16, 16], "activation_fn": th.nn.ReLU},
    "device": "cpu",
}
ALGORITHMS: dict[str, tuple[type[Any], dict[str, Any], int]] = {
    "deep_ga": (DeepGA, {"n_finalists": 1, "n_finalist_episodes": 1}, 25_000),
    "ga_ns": (GANS, {"novelty_k": 25, "archive_prob": 0.01}, 80_000),
}
"""Class, arguments, and episodes after which a run is given up."""


class EndPositions(BaseCallback):
    """Keeps where episodes ended and what they returned; stops when one has reached the goal."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[np.ndarray] = []
        self.returns: list[float] = []
        self.best = -np.inf

    def _on_step(self) -> bool:
        for row in np.flatnonzero(self.locals["dones"]):
            self.ends.append(self.locals["infos"][row]["bc"])
            self.returns.append(float(self.locals["rewards"][row]))  # the only reward of an episode is its last
            self.best = max(self.best, self.returns[-1])
        return self.best < SOLVED


def run(algorithm: str, seed: int, folder: str) -> dict[str, Any]:
    """
    :param algorithm: key of :data:`ALGORITHMS`
    :param seed: seed of the run
    :param folder: gets a picture and an array of end positions
    :return: one row of the table
    """
    th.set_num_threads(1)
    cls, arguments, n_episodes = ALGORITHMS[algorithm]
    env = VecHardMaze(COMMON["pop_size"])
    model, seen, start = cls("MlpPolicy", env, seed=seed, **COMMON, **arguments), EndPositions(), time.perf_counter()
    model.learn(n_episodes * EPISODE, seen, log_interval=None)
    ends, path = np.array(seen.ends, dtype=np.float32), Path(folder) / f"{algorithm}_seed{seed}"
    np.savez_compressed(f"{path}.npz", ends=ends, returns=np.array(seen.returns, dtype=np.float32))
    draw_positions(env, ends=ends, path=f"{path}.png")
    return {
        "algorithm": algorithm,
        "seed": seed,
        "episodes": len(ends),
        "best_return": round(seen.best, 3),
        "solved": seen.best > SOLVED,
        "seconds": round(time.perf_counter() - start),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--algo", nargs="+", default=list(ALGORITHMS), choices=list(ALGORITHMS), help="what to compare")
    parser.add_argument("--seeds", type=int, default=5, help="runs each, with seeds 1, 2, ...")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--output", default="docs/results/hard_maze", help="folder")
    options = parser.parse_args()
    os.makedirs(options.output, exist_ok=True)
    with ProcessPoolExecutor(options.jobs) as pool, open(Path(options.output) / "runs.csv", "w", newline="") as file:
        jobs = [pool.submit(run, algo, seed + 1, options.output) for algo in options.algo for seed in range(options.seeds)]
        table: csv.DictWriter | None = None
        for job in jobs:
            row = job.result()
            if table is None:
                table = csv.DictWriter(file, list(row))
                table.writeheader()
            table.writerow(row)
            file.flush()
            print(", ".join(f"{key}: {value}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
