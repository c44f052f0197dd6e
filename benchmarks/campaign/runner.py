"""Make the missing runs of the campaign, at idle priority, from a checkout of the recorded commit."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from benchmarks.campaign.plan import Plan, Run
from benchmarks.evaluation import read_rows

REPOSITORY = Path(__file__).resolve().parents[2]
VERSIONS = """
import importlib.metadata as m, json, platform
names = ("stable-baselines3", "gymnasium", "mujoco", "torch", "numpy")
print(json.dumps({"python": platform.python_version(), **{name: m.version(name) for name in names}}))
"""


class Workshop:
    """
    Where runs are made: checkouts with an environment each, results and checkpoints. Nothing of it is committed.

    :param folder: may be deleted between runs; unfinished runs then begin anew
    :param results: folder that receives the CSV of each run
    """

    def __init__(self, folder: Path, results: Path) -> None:
        self.folder, self.results = folder, results

    def checkout(self, commit: str) -> tuple[Path, str]:
        """
        :param commit: of this repository
        :return: a folder with this commit, and the Python of the environment in which it is installed
        """
        folder = self.folder / "code" / commit
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                subprocess.run(["git", "clone", "--quiet", "--no-checkout", str(REPOSITORY), str(folder)], check=True)
                subprocess.run(["git", "checkout", "--quiet", commit], cwd=folder, check=True)
            subprocess.run(["make", "install", f"PYTHON={sys.executable}"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        return folder, str(folder / ".venv" / "bin" / "python")

    def out(self, run: Run) -> Path:
        """The folder of ``benchmarks.learning`` for a run, its files and checkpoints."""
        return self.folder / "runs" / self.results.name / run.task / run.method / f"seed_{run.seed}"

    def made_in(self, run: Run) -> Path | None:
        """The folder in which ``benchmarks.learning`` has begun the run."""
        return next((path.parent for path in self.out(run).glob("*/*/config.json")), None)

    def commit_of(self, run: Run, commit: str) -> str:
        """The commit with which a run was begun, which is this one for a run that was not."""
        path = self.out(run) / "commit"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(commit)
        return path.read_text()

    def is_finished(self, run: Run) -> bool:
        """Whether the CSV with the last step of the run is there."""
        path = self.results / run.file
        return path.is_file() and (rows := read_rows(path)) != [] and int(rows[-1]["steps"]) >= run.steps

    def export(self, run: Run, machine: dict[str, str]) -> bool:
        """
        Write what a run has measured so far into the folder of results.

        :param machine: further columns: commit, versions, CPU
        :return: whether there was anything to write
        """
        made = self.made_in(run)
        source = None if made is None else made / f"seed_{run.seed}.csv"
        if source is None or not source.is_file() or not (rows := read_rows(source)):
            return False
        path = self.results / run.file
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0], *machine], lineterminator="\n")
            writer.writeheader()
            writer.writerows({**row, **machine} for row in rows)
        os.replace(temporary, path)
        return True


def command(run: Run, plan: Plan, out: Path) -> list[str]:
    """:return: arguments of Python that make a run, or continue it"""
    arguments = ["-m", "benchmarks.learning", "--algo", run.algo, "--env", run.env, "--steps", str(run.steps)]
    arguments += ["--seeds", str(run.seed), "--jobs", "1", "--out", str(out), "--name", run.method]
    arguments += ["--eval-freq", str(plan.eval_freq), "--eval-episodes", str(plan.eval_episodes)]
    arguments += ["--checkpoint-freq", str(plan.checkpoint_freq)]
    if run.hyperparams:
        arguments += ["--hyperparams", *(f"{name}:{value}" for name, value in run.hyperparams.items())]
    return arguments


def cpu_name() -> str:
    """:return: the processor of this machine, in words"""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} x {names[0] if names else 'unknown'}"


def lower_priority() -> None:
    """Let this process run only when nothing else wants to."""
    os.nice(19)
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def lower_priority_of_session(pid: int) -> None:
    """
    Let the session of a process run only when no other session wants to: Linux shares processors among sessions first
    ("autogroups", see sched(7)), beside those of other terminals the niceness of a process does not count.

    :param pid: of a process that began a session
    """
    with contextlib.suppress(OSError):  # no Linux, or the process has ended
        Path(f"/proc/{pid}/autogroup").write_text("19")


def missing(plan: Plan, workshop: Workshop) -> Iterator[Run]:
    """:return: runs that are not finished, in the order of the plan"""
    return (run for run in plan.runs if not workshop.is_finished(run))


def make_runs(plan: Plan, workshop: Workshop, jobs: int, count: int | None = None) -> int:
    """
    Make runs until none is missing, several at a time, and write the curve of each where it is finished.

    :param plan: which runs
    :param workshop: where
    :param jobs: how many at the same time
    :param count: stop after so many, ``None`` for all
    :return: number of runs that failed
    :raises ValueError: if another process makes runs of this plan in the same workshop
    """
    workshop.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(workshop.folder / f"{plan.name}.lock", timeout=0):
            return _make_runs(plan, workshop, jobs, count)
    except Timeout as error:
        raise ValueError(
            f"another process makes the runs of {plan.name} in {workshop.folder}: wait for it, or stop it"
        ) from error


def _make_runs(plan: Plan, workshop: Workshop, jobs: int, count: int | None) -> int:
    lower_priority()
    commit = _git("rev-parse", plan.commit)
    waiting = list(missing(plan, workshop))[:count]
    running: dict[Run, tuple[subprocess.Popen[bytes], dict[str, str]]] = {}
    n_failed = 0
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                own = workshop.commit_of(run, commit)
                code, python = workshop.checkout(own)
                versions = json.loads(subprocess.run([python, "-c", VERSIONS], check=True, capture_output=True).stdout)
                machine = {"commit": own, "versions": " ".join(f"{k}={v}" for k, v in versions.items()), "cpu": cpu_name()}
                print(f"{time.strftime('%H:%M')} {run.method} on {run.task}, seed {run.seed}", flush=True)
                with (workshop.out(run) / "log.txt").open("ab") as log:
                    arguments = [python, *command(run, plan, workshop.out(run))]
                    process = subprocess.Popen(arguments, cwd=code, stdout=log, stderr=log, start_new_session=True)
                    lower_priority_of_session(process.pid)
                    running[run] = process, machine
            time.sleep(1.0)
            for run, (process, machine) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[run]
                workshop.export(run, machine)
                if process.returncode != 0:
                    n_failed += 1
                    print(
                        f"{run.method} on {run.task}, seed {run.seed}, failed: see {workshop.out(run) / 'log.txt'}", flush=True
                    )
    finally:
        for process, _ in running.values():
            process.terminate()
        for run, (process, machine) in running.items():
            process.wait()
            workshop.export(run, machine)
    return n_failed


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.strip()
