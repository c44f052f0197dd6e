"""
A long run whose workers are killed again and again, beside one that is left alone.

    python -m benchmarks.soak [--minutes 120] [--kill-every 60] [--backends process ray] [--json FILE]

ERL-Re2 trains with worker processes, of which one is killed every minute, until the time is over; then it does the same
number of steps in one process. Networks, population, optimizers, buffer and counters must end the same, and memory and
open files of the main process must not have grown beyond the replay buffer.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym

from benchmarks.faulty import Mortal
from benchmarks.killed_run import differences, fingerprint
from sb3_erl import ERLRe2, ProcessEvaluator, RayEvaluator

CHUNK = 2_000
"""Environment steps per call of ``learn``."""
SETTLED = 3
"""Calls of ``learn`` after which libraries are loaded and buffers of sockets are there."""


def make_model(env_id: str, flag: Path, evaluator: Any) -> ERLRe2:
    """ERL-Re2 with small networks, so that workers have more to do than the learner."""
    return ERLRe2(
        "MlpPolicy",
        Mortal(gym.make(env_id), flag=str(flag)),
        learning_starts=1_000,
        gradient_steps=1,
        train_freq=8,
        batch_size=64,
        policy_kwargs={"net_arch": [64, 64]},
        evaluator=evaluator,
        seed=1,
        device="cpu",
    )


def resources() -> tuple[int, int]:
    """:return: resident bytes of this process, and its open files"""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))


def stored_bytes(model: ERLRe2) -> int:
    """Bytes of the replay buffer that transitions were written to."""
    buffer: Any = model.replay_buffer
    arrays = (buffer.observations, buffer.next_observations, buffer.actions, buffer.rewards, buffer.dones, buffer.timeouts)
    return sum(array.nbytes // len(array) for array in arrays) * buffer.size()


@contextmanager
def killer(flag: Path, seconds: float) -> Iterator[list[float]]:
    """Inside, a worker is killed every so many seconds; gives the list of times at which one was sentenced."""
    times: list[float] = []
    over = threading.Event()

    def work() -> None:
        while not over.wait(seconds):
            if not flag.exists():  # the last one was carried out
                times.append(time.monotonic())
                flag.touch()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield times
    finally:
        over.set()
        thread.join()
        flag.unlink(missing_ok=True)


def soak(backend: str, env_id: str, minutes: float, kill_every: float, folder: Path) -> dict[str, Any]:
    """
    :param backend: ``"process"`` or ``"ray"``
    :param env_id: environment
    :param minutes: how long the run with kills lasts
    :param kill_every: seconds between two kills
    :param folder: for the file that kills
    :return: figures
    """
    flag = folder / "kill"
    evaluator = ProcessEvaluator(n_workers=2) if backend == "process" else RayEvaluator(n_workers=2)
    model = make_model(env_id, flag, evaluator)
    n_chunks, seen = 0, []
    end = time.monotonic() + 60 * minutes
    with killer(flag, kill_every) as times:
        while time.monotonic() < end or n_chunks <= SETTLED:
            model.learn(CHUNK, reset_num_timesteps=False)
            n_chunks += 1
            seen.append((*resources(), stored_bytes(model)))
    result, n_steps = fingerprint(model), model.num_timesteps
    assert model.workers is not None
    model.workers.close()
    quiet = make_model(env_id, flag, "vec")
    for _ in range(n_chunks):
        quiet.learn(CHUNK, reset_num_timesteps=False)
    different = [name for name in differences(result, fingerprint(quiet)) if "evaluator" not in name]
    (memory, files, stored), (last_memory, last_files, last_stored) = seen[SETTLED], seen[-1]
    return {
        "back-end": backend,
        "minutes": minutes,
        "steps": n_steps,
        "kills": len(times),
        "different": different,
        "memory growth, MB": round((last_memory - memory) / 1e6, 1),
        "of which replay buffer, MB": round((last_stored - stored) / 1e6, 1),
        "open files": [files, last_files],
    }


def main(arguments: list[str] | None = None) -> int:
    """:return: 0 if all runs ended as if nobody had been killed"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120, help="length of each run with kills")
    parser.add_argument("--kill-every", type=float, default=60, help="seconds between two kills")
    parser.add_argument("--backends", nargs="+", choices=("process", "ray"), default=["process", "ray"])
    parser.add_argument("--env", default="Hopper-v5", help="environment id")
    parser.add_argument("--json", type=Path, default=Path("results/soak.json"), help="file for the figures")
    options = parser.parse_args(arguments)
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for backend in options.backends:
            figures.append(soak(backend, options.env, options.minutes, options.kill_every, Path(folder)))
            print(json.dumps(figures[-1]), flush=True)
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(figures, indent=1))
    return int(any(figure["different"] for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
