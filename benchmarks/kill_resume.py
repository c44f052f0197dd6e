"""
Kill training runs with SIGKILL at random moments, also inside a save; resume them and compare with a run that was left alone.

    python -m benchmarks.kill_resume [--kills 50] [--systems erl_re2 td7 cem_rl openai_es] [--out kills.json]

Compared at the end are networks, population, optimizers, replay buffer, counters, statistics of observations and rewards, and
the log file but for its times: bit for bit. Runs are as small as can be, so that hundreds of them take minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.killed_run import SYSTEMS, differences, train
from sb3_erl import newest_checkpoint


def processes() -> Any:
    """Makes processes that begin where the imports end."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "benchmarks.killed_run"])
    first = context.Process(target=time.sleep, args=(0,))  # waits for the imports
    first.start()
    first.join()
    return context


def is_saving(checkpoints: Path) -> bool:
    """Whether a checkpoint is being written or deleted, or was when the process was killed."""
    return checkpoints.is_dir() and any(path.name.startswith(".checkpoint_") for path in checkpoints.iterdir())


@dataclass
class Tally:
    """What happened to the runs of one system."""

    n_kills: int = 0
    n_inside_a_save: int = 0
    n_before_the_first: int = 0
    n_runs: int = 0
    n_identical: int = 0
    """Kills after which the run ended with the same result."""
    different: list[str] = field(default_factory=list)
    run_seconds: float = math.inf
    """Of the shortest run that was not killed."""
    resumed_at: list[int] = field(default_factory=list)


def run_until(process: Any, is_time: Callable[[], bool]) -> bool:
    """:return: whether the process was killed when it was time; otherwise it ended by itself"""
    while process.is_alive():
        if is_time():
            process.kill()
            process.join()
            return True
        time.sleep(0.0005)
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"a run ended with exit status {process.exitcode}")
    return False


def moment(checkpoints: Path, seconds: float, rng: random.Random) -> Callable[[], bool]:
    """When to kill: any time in a run, or a little after a save has begun."""
    begun = time.monotonic()
    at = begun + rng.uniform(0, seconds)
    if rng.random() < 0.5:
        return lambda: time.monotonic() >= at
    saves, delay, seen = rng.randint(1, 4), rng.uniform(0, 0.03), [0.0, 0.0]  # number of saves, when the last one began

    def is_inside() -> bool:
        saving = is_saving(checkpoints)
        if saving and not seen[1]:
            seen[:] = [seen[0] + 1, time.monotonic()]
        elif not saving:
            seen[1] = 0.0
        return seen[0] >= saves and seen[1] > 0 and time.monotonic() >= seen[1] + delay

    return is_inside


def kill_and_resume(system: str, kills: int, rng: random.Random, n_steps: int | None = None, most_per_run: int = 3) -> Tally:
    """
    :param system: key in :data:`SYSTEMS`
    :param kills: how many
    :param rng: says when
    :param n_steps: length of a run, ``None`` for the system's own
    :param most_per_run: kills of one run, which is then left to its end
    """
    tally, context = Tally(), processes()
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(10**6):
            folder = Path(temporary) / str(number)
            folder.mkdir()
            planned = 0 if number == 0 else min(rng.randint(1, most_per_run), kills - tally.n_kills)
            done, begun = 0, time.monotonic()
            while True:
                process = context.Process(target=train, args=(system, folder, n_steps))
                process.start()
                when = moment(folder / "checkpoints", tally.run_seconds, rng) if done < planned else lambda: False
                if not run_until(process, when):
                    break
                done += 1
                newest = newest_checkpoint(folder / "checkpoints")
                tally.n_inside_a_save += is_saving(folder / "checkpoints")
                tally.n_before_the_first += newest is None
                tally.resumed_at.append(0 if newest is None else int(newest.name.split("_")[1]))
            result = json.loads((folder / "result.json").read_text())
            if done == 0:  # a moment is drawn within the shortest whole run, for the machine may have been busy in others
                tally.run_seconds = min(tally.run_seconds, time.monotonic() - begun)
            if number == 0:
                reference = result
                continue
            different = differences(reference, result)
            tally.n_runs, tally.n_kills = tally.n_runs + 1, tally.n_kills + done
            tally.n_identical += done if not different else 0
            tally.different += different
            if tally.n_kills >= kills:
                return tally
    raise RuntimeError("no run lived long enough to be killed")


def main(arguments: list[str] | None = None) -> int:
    """:return: number of kills after which a run went on differently"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="for each system")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=None, help="write the figures here as JSON")
    options = parser.parse_args(arguments)
    titles = (
        "kills",
        "inside a save",
        "before the first",
        "runs",
        "bit-identical",
        "seconds of a run",
        "median step resumed at",
    )
    print(f"{'system':<15}" + "".join(f"{title:>{len(title) + 3}}" for title in titles))
    figures, n_bad = {}, 0
    for system in options.systems:
        tally = kill_and_resume(system, options.kills, random.Random(f"{options.seed} {system}"))
        counts = (tally.n_kills, tally.n_inside_a_save, tally.n_before_the_first, tally.n_runs, tally.n_identical)
        row = (*counts, round(tally.run_seconds, 1), int(statistics.median(tally.resumed_at)))
        cells = "".join(f"{value:>{len(title) + 3}}" for title, value in zip(titles, row, strict=True))
        print(f"{system:<15}{cells}", flush=True)
        if tally.different:
            print("  different:", *sorted(set(tally.different))[:10])
        figures[system] = dict(zip(titles, row, strict=True))
        n_bad += tally.n_kills - tally.n_identical
    if options.out is not None:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")
    return n_bad


if __name__ == "__main__":
    sys.exit(min(main(), 1))
