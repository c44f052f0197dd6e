"""Start-up: fresh interpreters that import this package or Stable-Baselines3, or that make their first compiled updates."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks.speed.measuring import Measurement, Options, Part, Sample, measurement

CODE = """
import sys, time
start, cpu = time.perf_counter(), time.process_time()
import {module}
print(time.perf_counter() - start, time.process_time() - cpu)
"""
COMPILED = """
import time
from benchmarks.speed.measuring import Options
from benchmarks.speed.updates import made, trained
from sb3_erl import TD7, ERLRe2
model = made({name}, Options(), compile=True, learning_starts=0)
model.n_evaluations = 1
work = trained(model, 4)
start, cpu = time.perf_counter(), time.process_time()
work()
print(time.perf_counter() - start, time.process_time() - cpu)
"""
MODULES = ("stable_baselines3", "sb3_erl")


def fresh(code: str, **variables: str) -> Part:
    """
    :param code: prints seconds, of the clock and of the process
    :param variables: of the environment, such as folders of caches, which the first, uncounted round fills
    :return: runs the code in a new process
    """
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"} | variables
    command = [sys.executable, "-W", "ignore", "-c", code]

    def run() -> Sample:
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        seconds, cpu_seconds = (float(word) for word in done.stdout.split()[-2:])
        return Sample(1.0, seconds, cpu_seconds)

    return run


@measurement
def startup(options: Options) -> Measurement:
    """Imports per second, byte code being there already."""
    cache = tempfile.TemporaryDirectory(prefix="bench_pycache_")  # removed with the last part
    parts = {f"import {module}": fresh(CODE.format(module=module), PYTHONPYCACHEPREFIX=cache.name) for module in MODULES}
    pair = ("import sb3_erl", "import stable_baselines3")
    return Measurement("imports", parts, [pair], more=remover(cache), target={" / ".join(pair): "0.91"})


@measurement
def compiled_startup(options: Options) -> Measurement:
    """First compiled updates of a process that finds the programs of an earlier one."""
    cache = tempfile.TemporaryDirectory(prefix="bench_inductor_")
    names = ("TD7", "ERLRe2")
    parts = {f"{name}, two programs": fresh(COMPILED.format(name=name), TORCHINDUCTOR_CACHE_DIR=cache.name) for name in names}
    return Measurement("starts", parts, more=remover(cache), target={name: "0.067" for name in parts})


def remover(cache: tempfile.TemporaryDirectory[str]) -> Callable[[Any], dict[str, Any]]:
    """:return: removes a folder when all is measured"""

    def clean_up(_: Any) -> dict[str, Any]:
        cache.cleanup()
        return {}

    return clean_up
