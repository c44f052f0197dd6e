"""
Long runs whose workers are killed again and again, beside one that is left alone.

    python -m benchmarks.soak [--minutes 120] [--kill-every 60] [--pace 20] [--backends process ray] [--json FILE]

ERL-Re2 trains with worker processes, and in another process with Ray, and of each one worker is killed every minute until
the time is over. Meanwhile a third run does the same steps without workers. Networks, population, optimizers, buffer and
counters must end the same; memory and open files of the main process must not have grown beyond the replay buffer, and no
worker may be left.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

import gymnasium as gym

from benchmarks.faulty import Mortal
from benchmarks.killed_run import differences, fingerprint
from sb3_erl import ERLRe2, ProcessEvaluator, RayEvaluator

PROCESSES: dict[str, Any] = {"process": ProcessEvaluator, "ray": RayEvaluator}
CHUNK = 2_000
"""Environment steps per call of ``learn``."""
START_TIMEOUT = 600.0
"""Seconds that a new worker may take; three runs on two cores are slow to import what they need."""
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
def killer(flag: Path, seconds: float, seen: Sequence[Any]) -> Iterator[list[float]]:
    """
    Inside, a worker is killed every so many seconds; gives the list of times at which one was sentenced.

    :param flag: file that kills
    :param seconds: between two kills, more if the run has not got on since: a job whose worker dies three times is an error
    :param seen: grows when the run gets on
    """
    times: list[float] = []
    over, place = threading.Event(), -1

    def work() -> None:
        nonlocal place
        while not over.wait(seconds):
            if not flag.exists() and len(seen) > place:  # the last one was carried out
                times.append(time.monotonic())
                place = len(seen)
                flag.touch()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield times
    finally:
        over.set()
        thread.join()
        flag.unlink(missing_ok=True)


def descendants() -> list[str]:
    """:return: command lines of the processes below this one, without helpers of :mod:`multiprocessing`, which stay"""

    def children(pid: int) -> Iterator[tuple[int, str]]:
        for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in tasks.read_text().split():
                yield int(child), Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ").strip()

    direct = list(children(os.getpid()))
    found = [command for _, command in direct if "from multiprocessing." not in command]
    unseen = [pid for pid, _ in direct]
    while unseen:
        below = list(children(unseen.pop()))
        unseen += [pid for pid, _ in below]
        found += [command for _, command in below]
    return found


def disturbed(
    backend: str, env_id: str, minutes: float, kill_every: float, pace: float, n_steps: int, answers: Connection
) -> None:
    """
    The run whose workers are killed; sends the number of calls of ``learn`` after each, and last its figures.

    :param backend: ``"process"`` or ``"ray"``
    :param env_id: environment
    :param minutes: how long the run lasts
    :param kill_every: seconds between two kills
    :param pace: seconds from one call of ``learn`` to the next, at least
    :param n_steps: environment steps per call of ``learn``
    :param answers: end of a pipe
    """
    with tempfile.TemporaryDirectory() as folder:
        flag = Path(folder) / "kill"
        model = make_model(env_id, flag, PROCESSES[backend](n_workers=2, start_timeout=START_TIMEOUT))
        n_chunks, seen = 0, list[tuple[int, int, int]]()
        end = time.monotonic() + 60 * minutes
        with killer(flag, kill_every, seen) as times:
            while time.monotonic() < end or n_chunks <= SETTLED:
                begun = time.monotonic()
                model.learn(n_steps, reset_num_timesteps=False)
                n_chunks += 1
                seen.append((*resources(), stored_bytes(model)))
                answers.send(n_chunks)
                time.sleep(max(0.0, begun + pace - time.monotonic()))
        result = fingerprint(model)
        assert model.workers is not None
        model.workers.close()
    (memory, files, stored), (last_memory, last_files, last_stored) = seen[SETTLED - 1], seen[-1]
    figures = {
        "back-end": backend,
        "minutes": minutes,
        "calls of learn": n_chunks,
        "steps": model.num_timesteps,
        "kills": len(times),
        "memory growth, MB": round((last_memory - memory) / 1e6, 1),
        "of which replay buffer, MB": round((last_stored - stored) / 1e6, 1),
        "open files": [files, last_files],
        "processes left": descendants(),
    }
    answers.send((figures, result))


def soak(
    backends: Sequence[str], env_id: str, minutes: float, kill_every: float, pace: float, n_steps: int = CHUNK
) -> list[dict[str, Any]]:
    """
    :param backends: of ``"process"`` and ``"ray"``, all at the same time
    :param env_id: environment
    :param minutes: how long the runs with kills last
    :param kill_every: seconds between two kills
    :param pace: seconds from one call of ``learn`` to the next, at least
    :param n_steps: environment steps per call of ``learn``
    :return: figures for each
    """
    context, open_pipes = multiprocessing.get_context("spawn"), []
    for backend in backends:
        pipe, other_end = context.Pipe()
        context.Process(target=disturbed, args=(backend, env_id, minutes, kill_every, pace, n_steps, other_end)).start()
        other_end.close()
        open_pipes.append(pipe)
    quiet = make_model(env_id, Path(os.devnull) / "never", "vec")
    expected: list[dict[str, str]] = []
    wanted, ended = 0, []
    while open_pipes or len(expected) < wanted:
        # the run without kills never gets ahead of the others, so that it does no step too many
        for ready in wait(open_pipes, 0 if len(expected) < wanted else None):
            pipe = cast(Any, ready)
            try:
                answer = pipe.recv()
            except EOFError:  # that run has failed, and says why on the terminal
                for process in multiprocessing.active_children():
                    process.terminate()
                raise RuntimeError("a run has failed") from None
            if isinstance(answer, int):
                wanted = max(wanted, answer)
            else:
                ended.append(answer)
                open_pipes.remove(pipe)
        if len(expected) < wanted:
            quiet.learn(n_steps, reset_num_timesteps=False)
            expected.append(fingerprint(quiet))
    for figures, result in ended:
        different = differences(result, expected[figures["calls of learn"] - 1])
        figures["different"] = [name for name in different if "evaluator" not in name]
    return [figures for figures, _ in ended]


def main(arguments: list[str] | None = None) -> int:
    """:return: 0 if all runs ended as if no worker had been killed"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120, help="length of the runs with kills")
    parser.add_argument("--kill-every", type=float, default=60, help="seconds between two kills")
    parser.add_argument("--pace", type=float, default=20, help="seconds per 2000 steps, so that three runs fit on two cores")
    parser.add_argument("--backends", nargs="+", choices=("process", "ray"), default=["process", "ray"])
    parser.add_argument("--env", default="Hopper-v5", help="environment id")
    parser.add_argument("--json", type=Path, default=Path("results/soak.json"), help="file for the figures")
    options = parser.parse_args(arguments)
    figures = soak(options.backends, options.env, options.minutes, options.kill_every, options.pace)
    for row in figures:
        print(json.dumps(row), flush=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return int(any(row["different"] or row["processes left"] for row in figures))


if __name__ == "__main__":
    sys.exit(main())
