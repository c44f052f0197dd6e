"""
Speed of everything, in one process, what is compared being timed in turn so that a noisy machine cancels out.

    python -m benchmarks.bench [--threads 1 2] [--only updates stepping] [--rounds 7] [--device cuda]
                               [--options "dict(compile=True)"] [--json speed.json]

Medians over rounds with their quartiles; a ratio is taken round by round. CPU figures count the time that this process was
running, which is what to look at on a machine that others use too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import stable_baselines3
import torch

import benchmarks.speed.compiled
import benchmarks.speed.operators
import benchmarks.speed.runs
import benchmarks.speed.startup
import benchmarks.speed.stepping
import benchmarks.speed.storage
import benchmarks.speed.updates  # noqa: F401 each enters its measurements
from benchmarks.speed.measuring import MEASUREMENTS, Options, run


def machine() -> dict[str, Any]:
    """:return: where this was measured"""
    names = [line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")]
    found: dict[str, Any] = {
        "cpu": names[0] if names else platform.processor(),
        "n_cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "stable_baselines3": stable_baselines3.__version__,
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def table(name: str, result: dict[str, Any]) -> str:
    """:return: one measurement for reading"""
    target = result["target"]
    lines = [f"\n{name}"]
    if result["per_second"]:
        lines.append(f"  {result['unit'] + ' per second':60s} {'median':>10s}  {'quartiles':>21s} {'per CPU s':>10s}")
    for part, values in result["per_second"].items():
        quartiles, cpu = f"{_short(values['low'])} .. {_short(values['high'])}", _cpu(result["per_cpu_second"], part)
        lines.append(f"  {part:60s} {_short(values['median']):>10s}  {quartiles:>21s} {cpu:>10s}{_wanted(target, part)}")
    for pair, values in result["ratios"].items():
        quartiles, cpu = f"{values['low']:.3f} .. {values['high']:.3f}", _cpu(result["cpu_ratios"], pair)
        lines.append(
            f"  ratio {_pair(pair):54s} {values['median']:>10.3f}  {quartiles:>21s} {cpu:>10s}{_wanted(target, pair)}"
        )
    for key, value in result["facts"].items():
        lines.append(f"  {key}:" + ("" if isinstance(value, dict) else f" {_plain(value)}"))
        if isinstance(value, dict):
            lines += [f"    {part:58s} {_plain(entry)}" for part, entry in value.items()]
    return "\n".join(lines)


def _cpu(values: dict[str, Any], name: str) -> str:
    return _short(values[name]["median"]) if name in values else "-"


def _wanted(target: dict[str, str], name: str) -> str:
    return f"   target {target[name]}" if name in target else ""


def _pair(pair: str) -> str:
    first, _, second = pair.partition(" / ")
    return f"{first} to bare" if second.startswith("bare for") else pair


def _short(value: float) -> str:
    return f"{value:.3e}" if value >= 1e6 else f"{value:.4g}"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def measured(names: list[str], options: Options) -> dict[str, Any]:
    """Run measurements in this process and print them as they come."""
    torch.set_num_threads(options.n_threads)
    results = {}
    for name in names:
        results[name] = run(MEASUREMENTS[name](options), options.rounds)
        print(table(f"{name}, {options.n_threads} thread(s), {options.device}", results[name]), flush=True)
    return results


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """:return: what is written to the JSON file"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(MEASUREMENTS), default=list(MEASUREMENTS), help="what to measure")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="threads, each number in a process of its own")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the work in a round")
    parser.add_argument("--device", default="cpu", help="cpu or cuda, for models and matrix products")
    parser.add_argument("--options", default="dict()", help="constructor arguments, for the classes that have them")
    parser.add_argument("--json", type=Path, default=None, help="write all figures here")
    chosen = parser.parse_args(arguments)
    report: dict[str, Any] = {"machine": machine(), "options": chosen.options, "device": chosen.device, "threads": {}}
    for n_threads in chosen.threads:
        if len(chosen.threads) == 1:
            further = eval(chosen.options, {"dict": dict})
            options = Options(chosen.rounds, chosen.device, n_threads, chosen.scale, further)
            report["threads"][str(n_threads)] = measured(chosen.only, options)
        else:
            report["threads"][str(n_threads)] = _elsewhere(chosen, n_threads)
    if chosen.json is not None:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(json.dumps(report, indent=1) + "\n")
    return report


def _elsewhere(chosen: argparse.Namespace, n_threads: int) -> dict[str, Any]:
    """The same with another number of threads, which some libraries read only when they are loaded."""
    path = Path(f"{chosen.json or 'bench'}.{n_threads}.tmp")
    command = [sys.executable, "-m", "benchmarks.bench", "--threads", str(n_threads), "--json", str(path)]
    command += ["--rounds", str(chosen.rounds), "--scale", str(chosen.scale), "--device", chosen.device]
    command += ["--options", chosen.options, "--only", *chosen.only]
    try:
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(n_threads)})
        return json.loads(path.read_text())["threads"][str(n_threads)]
    finally:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*noise_table_size.*")
    warnings.filterwarnings("ignore", message=".*out of date.*")
    main()
