"""Start-up: a fresh interpreter that imports this package, and one that imports Stable-Baselines3."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks.speed.measuring import Measurement, Options, Part, Sample, measurement

CODE = """
import sys, time
start, cpu = time.perf_counter(), time.process_time()
import {module}
print(time.perf_counter() - start, time.process_time() - cpu)
"""
MODULES = ("stable_baselines3", "sb3_erl")


def fresh(module: str, cache: str) -> Part:
    """
    :param module: what is imported
    :param cache: folder of byte code, which the first, uncounted round fills
    :return: imports the module in a new process
    """
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = cache
    command = [sys.executable, "-c", CODE.format(module=module)]

    def run() -> Sample:
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        seconds, cpu_seconds = (float(word) for word in done.stdout.split()[-2:])
        return Sample(1.0, seconds, cpu_seconds)

    return run


@measurement
def startup(options: Options) -> Measurement:
    """Imports per second, byte code being there already."""
    cache = tempfile.TemporaryDirectory(prefix="bench_pycache_")  # removed with the last part
    parts = {f"import {module}": fresh(module, cache.name) for module in MODULES}
    pair = ("import sb3_erl", "import stable_baselines3")

    def clean_up(_: Any) -> dict[str, Any]:
        cache.cleanup()
        return {}

    return Measurement("imports", parts, [pair], facts={}, more=clean_up, target={" / ".join(pair): "0.91"})
