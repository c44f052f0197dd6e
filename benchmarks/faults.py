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
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faulty import KINDS
from benchmarks.injection import BACKENDS, BUFFER_FILES, INTERRUPT, MODEL_FILES, Fault, fits, inject, processes_of
from sb3_erl import ALGOS

RESULTS = Path(__file__).parents[1] / "docs" / "results"
LIMIT = 120.0
"""Seconds after which a fault counts as lost: it hangs."""
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
    while len(records) < len(faults):
        rest = faults[len(records) :]
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _work(rest, writer)
        os.close(writer)
        records += _listen(reader, rest, limit)
        if "lost" in records[-1]["ending"]:
            report(records[-1])
        os.close(reader)
        everybody = processes_of(child)
        for pid in (child, *everybody):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os.waitpid(child, 0)
    return records


def _listen(reader: int, faults: Sequence[Fault], limit: float) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    pending = b""
    for fault in faults:
        end = time.monotonic() + limit
        while b"\n" not in pending:
            if not select.select([reader], [], [], max(0.0, end - time.monotonic()))[0]:
                return [*records, {**asdict(fault), "ok": False, "ending": f"lost: nothing for {limit:g} seconds"}]
            some = os.read(reader, 1 << 16)
            if not some:
                return [*records, {**asdict(fault), "ok": False, "ending": "lost: its process died"}]
            pending += some
        line, _, pending = pending.partition(b"\n")
        records.append(json.loads(line))
        report(records[-1])
    return records


def _work(faults: Sequence[Fault], writer: int) -> None:
    """In the child: never returns."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    multiprocessing.get_context("forkserver").set_forkserver_preload(["benchmarks.faulty", "sb3_erl.evaluation.worker"])
    for fault in faults:
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


def report(record: dict[str, Any]) -> None:
    """A line on the terminal."""
    words = (record["backend"], record["kind"], record["name"], f"1 in {record['one_in']}")
    print(
        "ok  " if record["ok"] else "LOST", *words, "->", record["ending"], f"({record.get('seconds', LIMIT)} s)", flush=True
    )


# -------------------------------------------------------------------- figures


def table(records: Sequence[dict[str, Any]]) -> str:
    """:return: Markdown, a row per back-end, kind and way to end"""
    counts = Counter((r["backend"], r["kind"], r["ending"] if r["ok"] else "OTHERWISE") for r in records)
    rows = [f"| {' | '.join(key)} | {count} |" for key, count in counts.items()]
    return "\n".join(["| back-end | fault | how it ended | times |", "|---|---|---|---|", *rows])


def main(arguments: Sequence[str] | None = None) -> int:
    """:return: number of faults that ended otherwise than documented"""
    parser = argparse.ArgumentParser(description="Inject faults and tell how each ended.")
    parser.add_argument("--faults", type=int, default=200, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--ray", type=int, default=8, help="how many of them with Ray")
    parser.add_argument("--list", action="store_true", help="show them only")
    parser.add_argument("--only", type=int, help="inject this one only, and write nothing")
    parser.add_argument("--again", action="store_true", help="those of the last run that ended otherwise, once more")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for faults.json and faults.md")
    options = parser.parse_args(arguments)
    faults = draw(options.faults, options.seed, options.ray)
    if options.list:
        print(*(f"{number} {fault}" for number, fault in enumerate(faults)), sep="\n")
        return 0
    memory = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    start, records = time.perf_counter(), []
    chosen = faults if options.only is None else [faults[options.only]]
    if options.again:
        last = json.loads((options.results / "faults.json").read_text())["records"]
        records = [record for record in last if record["ok"]]
        chosen = [Fault(**{field.name: record[field.name] for field in fields(Fault)}) for record in last if not record["ok"]]
    for first in range(0, len(chosen), BATCH):
        records += run_batch(chosen[first : first + BATCH])
    n_lost = sum(not record["ok"] for record in records)
    left = sorted(set(os.listdir("/dev/shm")) - memory) if os.path.isdir("/dev/shm") else []
    left = [name for name in left if name.startswith("psm_")]
    leaks = len(left) + len(processes_of(os.getpid()))
    seconds = time.perf_counter() - start
    head = f"{len(records)} faults, {n_lost} ended otherwise than documented, {leaks} leaks, {seconds:.0f} seconds"
    text = f"{head}\n\n{table(records)}\n"
    print(text)
    if options.only is None:
        options.results.mkdir(parents=True, exist_ok=True)
        (options.results / "faults.md").write_text(text)
        content = {"faults": len(records), "otherwise": n_lost, "leaks": leaks, "seconds": seconds, "records": records}
        (options.results / "faults.json").write_text(json.dumps(content, indent=1) + "\n")
    return n_lost + leaks


if __name__ == "__main__":
    sys.exit(main())
