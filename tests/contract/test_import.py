"""Importing the package has no effect on anything else, and costs little."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

CODE = """
import json, sys, time, warnings
import gymnasium, torch
import stable_baselines3

def state():
    own = {"DeceptiveCup-v0", "HardMaze-v0", "HardMazeImage-v0", "ImageHardMaze-v0"}
    others = sorted(name for name in set(gymnasium.registry) - own if not name.startswith("MinAtar/"))
    return [torch.get_num_threads(), [str(f) for f in warnings.filters], others,
            torch.get_rng_state().tolist()[:64], torch.get_default_dtype().__str__()]

modules, before = set(sys.modules), state()
start = time.process_time()
import sb3_erl
seconds = time.process_time() - start
print(json.dumps({"same": state() == before, "seconds": seconds, "new": sorted(set(sys.modules) - modules)}))
"""

HEAVY = (
    "matplotlib",
    "minatar",
    "pandas",
    "ray",
    "seaborn",
    "mujoco",
    "optuna",
    "rl_zoo3",
    "sb3_contrib",
    "tensorboard",
    "rich",
    "tqdm",
)


def test_no_side_effects(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(tmp_path)
    for _ in range(2):  # the first time Python compiles, and everything else is the same
        command = [sys.executable, "-c", CODE]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1 and result.stderr == "", "prints nothing"
    assert report["same"], "threads, warning filters, environments of others, generators"
    assert [name for name in report["new"] if name.split(".")[0] in HEAVY] == []
    assert report["seconds"] < 0.3
