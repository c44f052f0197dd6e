"""
Injects faults, drawn by chance over kinds, back-ends and classes, and tells how each ended.

``python -m benchmarks.faults`` injects 200 of them and writes ``docs/results/faults.json`` and ``docs/results/faults.md``;
``--list`` shows them only, ``--only 17`` injects a single one. The exit status is the number of those that ended otherwise
than documented in ``docs/faults.md``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faulty import DEATHS, HANGS, KINDS, NOT_FINITE, RAISES, SHAPES
from benchmarks.injection import (
    BACKENDS,
    BUFFER_FILES,
    INTERRUPT,
    MODEL_FILES,
    Fault,
    descendants,
    fits,
    inject,
    processes_of,
    what_stays,
)
from sb3_erl import ALGOS

RESULTS = Path(__file__).parents[1] / "docs" / "results"
LIMIT = 120.0
"""Seconds after which a fault counts as lost: it hangs. Time in which it waits for a core of a busy machine does not count."""
ATTEMPTS = 5
"""To start Ray, which gives up after 30 seconds; a busy machine may need longer."""
GROUPS: dict[str, Sequence[str]] = {
    "raises": RAISES,
    "not finite": NOT_FINITE,
    "wrong shape": SHAPES,
    "hangs": HANGS,
    "kills its process": DEATHS,
    INTERRUPT: (INTERRUPT,),
    "model file": MODEL_FILES,
    "replay buffer file": BUFFER_FILES,
}
BATCH = 40
"""Faults of one process, which shares what is slow to start."""


def draw(n: int, seed: int, n_ray: int) -> list[Fault]:
    """
    :param n: number of faults
    :param seed: of the draw
    :param n_ray: how many of them with Ray, which is slow to start
    :return: every kind with every back-end in turn, with a class, a moment and a frequency of its own
    """
    rng = np.random.default_rng(seed)
    backends = [backend for backend in BACKENDS if backend != "ray"]
    pairs = [(kind, backend) for backend in backends for kind in (*KINDS, INTERRUPT)]
    pairs += [(kind, "file") for kind in (*MODEL_FILES, *BUFFER_FILES)]
    with_ray = [(kind, "ray") for kind in rng.permutation([*KINDS, INTERRUPT]).tolist()[:n_ray]]
    faults: list[Fault] = []
    while len(faults) < n - len(with_ray):
        for kind, backend in pairs:
            _add(faults, kind, backend, rng)
    faults = faults[: n - len(with_ray)]
    for kind, backend in with_ray:
        _add(faults, kind, backend, rng)
    return sorted(faults, key=lambda fault: (*BACKENDS, "file").index(fault.backend))


def _add(faults: list[Fault], kind: str, backend: str, rng: np.random.Generator) -> None:
    names = [name for name in ALGOS if fits(kind, backend, name)]
    name, one_in, at, seed = rng.choice(names or ["none"]), rng.choice([1, 5, 5]), rng.integers(4), rng.integers(10_000)
    if names:
        one_in = 5 if kind == "die once" else int(one_in)
        faults.append(Fault(kind, backend, str(name), one_in, int(at), int(seed)))


# -------------------------------------------------------------------- one process per batch


def run_batch(faults: Sequence[Fault], limit: float = LIMIT) -> list[dict[str, Any]]:
    """
    :param faults: injected one after the other in a forked process; if one hangs or dies, another process goes on after it
    :param limit: seconds for each
    :return: a record for each: how it ended and whether that is as documented
    """
    records: list[dict[str, Any]] = []
    n_unprepared = 0
    while len(records) < len(faults):
        rest = faults[len(records) :]
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _work(rest, writer)
        os.close(writer)
        new = _listen(reader, Watch(child), rest, limit)
        records += new
        is_lost = bool(new) and new[-1]["ending"].startswith("lost")
        if is_lost:
            report(new[-1])
        os.close(reader)
        below = processes_of(child)
        for pid in (child, *below):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os.waitpid(child, 0)
        if len(records) < len(faults) and not is_lost:
            n_unprepared += 1
            print(f"Ray did not start, attempt {n_unprepared}", flush=True)
            if n_unprepared == ATTEMPTS:
                raise RuntimeError(f"Ray did not start in {ATTEMPTS} attempts; inject the others with --ray 0")
    return records


class Watch:
    """
    Measures time by what a process and those below it could have done in it.

    A second in which one of them stood in the queue for a core for 0.3 s counts 0.7 s: on a busy machine a fault takes longer,
    and one that hangs waits for no core.

    :param pid: of the process
    """

    def __init__(self, pid: int):
        self.pid, self._looked_at, self._queued = pid, time.monotonic(), queued_seconds(pid)

    def look(self) -> float:
        """:return: seconds since the last look, those that count"""
        before, self._looked_at = self._looked_at, time.monotonic()
        queued, self._queued = self._queued, queued_seconds(self.pid)
        longest = max((seconds - queued.get(pid, 0.0) for pid, seconds in self._queued.items()), default=0.0)
        return max(0.0, self._looked_at - before - longest)


def queued_seconds(ancestor: int) -> dict[int, float]:
    """:return: for a process and each below it, how long it has waited for a core in its life (0 where Linux does not say)"""
    seconds = {}
    for pid in (ancestor, *descendants(ancestor)):
        with suppress(OSError, IndexError):
            seconds[pid] = int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    return seconds


def _listen(reader: int, watch: Watch, faults: Sequence[Fault], limit: float) -> list[dict[str, Any]]:
    """:return: records until one is lost, or Ray did not start"""
    records: list[dict[str, Any]] = []
    pending = b""
    for fault in faults:
        spent = 0.0
        watch.look()  # this fault's time begins
        while b"\n" not in pending:
            if not select.select([reader], [], [], min(1.0, limit))[0]:
                spent += watch.look()
                if spent >= limit:
                    return [*records, {**asdict(fault), "ok": False, "ending": f"lost: nothing for {limit:g} seconds"}]
                continue
            some = os.read(reader, 1 << 16)
            if not some and not pending and fault.backend == "ray":  # it was not even injected
                return records
            if not some:
                return [*records, {**asdict(fault), "ok": False, "ending": "lost: its process died"}]
            pending, spent = pending + some, 0.0
        line, _, pending = pending.partition(b"\n")
        records.append(json.loads(line))
        report(records[-1])
    return records


def _work(faults: Sequence[Fault], writer: int) -> None:
    """In the child: never returns."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets its background jobs ignore Ctrl-C
    multiprocessing.get_context("forkserver").set_forkserver_preload(["benchmarks.faulty", "sb3_erl.remote.worker"])
    for fault in faults:
        if fault.backend == "ray":
            try:
                start_ray()
            except Exception:  # its own processes end with this one
                os._exit(1)
        os.write(writer, b" ")  # the fault's own time begins
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            try:
                ok, ending = True, inject(fault, Path(folder))
            except BaseException:
                ok, ending = False, traceback.format_exc(limit=-3)
            os.chdir("/")
        record = {**asdict(fault), "ok": ok, "ending": ending, "seconds": round(time.perf_counter() - start, 2)}
        os.write(writer, json.dumps(record).encode() + b"\n")
    os._exit(0)


def start_ray() -> None:
    """Once for all faults of a process."""
    import ray

    if not ray.is_initialized():
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)


def unused_memory() -> set[str]:
    """:return: names of Python's segments of shared memory that no process uses; those of other programs are in use"""
    names = {path.name for path in Path("/dev/shm").glob("psm_*")}
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):  # it ended
            text = maps.read_text()
            names = {name for name in names if name not in text}
    return names


def report(record: dict[str, Any]) -> None:
    """A line on the terminal."""
    words = (record["backend"], record["kind"], record["name"], f"1 in {record['one_in']}")
    print(
        "ok  " if record["ok"] else "LOST", *words, "->", record["ending"], f"({record.get('seconds', LIMIT)} s)", flush=True
    )


# -------------------------------------------------------------------- figures


def table(records: Sequence[dict[str, Any]], groups: Mapping[str, Sequence[str]]) -> str:
    """
    :param records: of all faults
    :param groups: kinds by the name that they have in the table
    :return: Markdown, a row per group and back-end with the number of faults that ended in each way
    """
    header = "| fault | back-end | injected | how they ended |\n|---|---|---|---|"
    rows = []
    for group, kinds in groups.items():
        for backend in (*BACKENDS, "file"):
            found = [record for record in records if record["kind"] in kinds and record["backend"] == backend]
            counts = Counter(record["ending"] if record["ok"] else "OTHERWISE" for record in found)
            endings = ", ".join(f"{ending} ({count})" for ending, count in sorted(counts.items()))
            rows += [f"| {group} | {backend} | {len(found)} | {endings} |"] if found else []
    return "\n".join([header, *rows])


def main(arguments: Sequence[str] | None = None) -> int:
    """:return: number of faults that ended otherwise than documented"""
    parser = argparse.ArgumentParser(description="Inject faults and tell how each ended.")
    parser.add_argument("--faults", type=int, default=200, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--ray", type=int, default=8, help="how many of them with Ray")
    parser.add_argument("--list", action="store_true", help="show them only")
    parser.add_argument("--only", type=int, help="inject this one only, and write nothing")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for faults.json and faults.md")
    options = parser.parse_args(arguments)
    faults = draw(options.faults, options.seed, options.ray)
    if options.list:
        print(*(f"{number} {fault}" for number, fault in enumerate(faults)), sep="\n")
        return 0
    memory, start, records = unused_memory(), time.perf_counter(), []
    chosen = faults if options.only is None else [faults[options.only]]
    for first in range(0, len(chosen), BATCH):
        records += run_batch(chosen[first : first + BATCH])
    n_lost = sum(not record["ok"] for record in records)
    leaks = len(what_stays(lambda: unused_memory() - memory)) + len(what_stays(lambda: processes_of(os.getpid())))
    seconds = time.perf_counter() - start
    head = f"{len(records)} faults, {n_lost} ended otherwise than documented, {leaks} leaks, {seconds:.0f} seconds"
    each = {kind: [kind] for group in GROUPS.values() for kind in group}
    text = f"{head}\n\n{table(records, GROUPS)}\n\nEach kind:\n\n{table(records, each)}\n"
    print(text)
    if options.only is None:
        options.results.mkdir(parents=True, exist_ok=True)
        (options.results / "faults.md").write_text(text)
        machine = {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "platform": platform.platform()}
        content = {"faults": len(records), "otherwise": n_lost, "leaks": leaks, "seconds": round(seconds), "machine": machine}
        content["records"] = records
        (options.results / "faults.json").write_text(json.dumps(content, indent=1) + "\n")
    return n_lost + leaks


if __name__ == "__main__":
    sys.exit(main())
