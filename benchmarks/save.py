"""
Seconds, memory and disk that a checkpoint with a full replay buffer takes, and a resume from it.

    python -m benchmarks.save [--algos erl_re2 td7 pderl] [--envs HalfCheetah-v4 Humanoid-v4] [--size 1000000]
                             [--out save.json]

Each figure comes from a process of its own. Memory (Linux only) is the peak of what that process holds, over what it held
before. "plain" is one file with as many bytes, written right before the save; it also fills the page cache, as the checkpoint
before does in a long run. "cpu s" leaves out what disk and other processes take. "next" is the checkpoint after, when 10,000
transitions of the buffer have been replaced: what it adds to the disk, and its seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.logger import Logger

from sb3_erl import ALGOS, GenerationCheckpoint

FIELDS = ("observations", "next_observations", "actions", "rewards")
BLOCK = 10_000
MEGABYTE = 1_000_000


def memory_mb(name: str) -> float:
    """:return: ``"VmRSS"``, what this process holds, or ``"VmHWM"``, the most it has held, in MB"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024 / 1e6


@contextmanager
def measured(figures: dict[str, float], name: str) -> Iterator[None]:
    """Enters seconds, those of the processor, and the peak of memory over what was held before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins at what is held now
    held, begun, worked = memory_mb("VmRSS"), time.monotonic(), time.process_time()
    yield
    figures[f"{name} s"], figures[f"{name} cpu s"] = time.monotonic() - begun, time.process_time() - worked
    figures[f"{name} +MB"] = memory_mb("VmHWM") - held


def full_model(algo: str, env: str, size: int) -> Any:
    """A model whose replay buffer was filled to the last slot with noise, which no disk can compress."""
    model = ALGOS[algo]("MlpPolicy", env, buffer_size=size, device="cpu", seed=0)
    buffer, rng = model.replay_buffer, np.random.default_rng(0)
    for name in FIELDS:
        array = getattr(buffer, name)
        for start in range(0, size, BLOCK):
            array[start : start + BLOCK] = rng.standard_normal(array[start : start + BLOCK].shape)
    buffer.full = True
    for array in (buffer.dones, buffer.timeouts):
        array[...] = 0
    for tree in getattr(buffer, "trees", []):
        for start in range(0, size, BLOCK):
            tree.append(np.arange(start, min(start + BLOCK, size)))
        tree.find(np.zeros(1))
    model.set_logger(Logger(None, []))
    return model


def save(algo: str, env: str, size: int, folder: Path) -> dict[str, float]:
    """What one checkpoint takes, and one plain file of the size of its replay buffer."""
    model = full_model(algo, env, size)
    callback = GenerationCheckpoint(1, folder, keep=None)
    callback.init_callback(model)
    callback.on_training_start({"callback": callback}, {})
    figures: dict[str, float] = {"held MB": memory_mb("VmRSS")}
    with measured(figures, "plain"):
        write_plainly(folder / "plain", sum(getattr(array, "nbytes", 0) for array in vars(model.replay_buffer).values()))
    with measured(figures, "save"):
        callback.save()
    written = bytes_on_disk(folder)
    refill(model, np.random.default_rng(1))
    with measured(figures, "next"):
        callback.save()
    return {"checkpoint MB": written / 1e6, "next MB": (bytes_on_disk(folder) - written) / 1e6, **figures}


def refill(model: Any, rng: np.random.Generator) -> None:
    """The oldest transitions are replaced, and priorities written, as it happens until the next checkpoint."""
    buffer, rows = model.replay_buffer, slice(0, BLOCK)
    for name in FIELDS:
        array = getattr(buffer, name)
        array[rows] = rng.standard_normal(array[rows].shape)
    for tree in getattr(buffer, "trees", []):
        slots = rng.integers(0, tree.capacity, BLOCK)
        tree.write(slots, rng.uniform(1, 2, BLOCK))
        tree.find(np.zeros(1))
    model.num_timesteps += BLOCK


def bytes_on_disk(folder: Path) -> int:
    """Size of all files, those with several names once."""
    found = (file.stat() for file in folder.rglob("*") if file.is_file())
    return sum({(each.st_dev, each.st_ino): each.st_size for each in found}.values())


def write_plainly(path: Path, n_bytes: int) -> None:
    """So many bytes go to the disk and are deleted."""
    block = np.random.default_rng(0).bytes(MEGABYTE)
    with path.open("wb", buffering=0) as file:
        for _ in range(n_bytes // MEGABYTE):
            file.write(block)
        os.fsync(file.fileno())
    path.unlink()


def resume(algo: str, env: str, size: int, folder: Path) -> dict[str, float]:
    """What it takes to have the model back."""
    figures: dict[str, float] = {}
    with measured(figures, "resume"):
        ALGOS[algo].resume_from(folder, device="cpu")
    return figures


def measure(algo: str, env: str, size: int) -> dict[str, float]:
    """:return: figures of a save and of a resume in fresh processes"""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        for part in ("save", "resume"):
            words = [sys.executable, "-m", "benchmarks.save", "--part", part, "--folder", folder, "--size", str(size)]
            command = [*words, "--algos", algo, "--envs", env]
            result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            figures.update(json.loads(result.stdout.splitlines()[-1]))
    return {name: round(value, 1) for name, value in figures.items()}


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    """:return: figures for each algorithm and environment"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algos", nargs="+", default=["erl_re2", "td7", "pderl"])
    parser.add_argument("--envs", nargs="+", default=["HalfCheetah-v4", "Humanoid-v4"])
    parser.add_argument("--size", type=int, default=1_000_000, help="transitions in the buffer")
    parser.add_argument("--out", type=Path, default=None, help="write the figures here as JSON")
    parser.add_argument("--part", choices=("save", "resume"), default=None, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part is not None:
        work = {"save": save, "resume": resume}[options.part]
        print(json.dumps(work(options.algos[0], options.envs[0], options.size, options.folder)))
        return {}
    figures = {f"{algo} {env}": measure(algo, env, options.size) for env in options.envs for algo in options.algos}
    names = list(next(iter(figures.values())))
    print(f"{'':<24}" + "".join(f"{name:>15}" for name in names))
    for case, values in figures.items():
        print(f"{case:<24}" + "".join(f"{values[name]:>15.1f}" for name in names), flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")
    return figures


if __name__ == "__main__":
    main()
