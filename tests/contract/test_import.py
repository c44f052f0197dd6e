"""Importing the package has no effect on anything else, and costs little."""

from __future__ import annotations

import json
import subprocess
import sys

CODE = """
import json, sys, time, warnings
import gymnasium, torch
import stable_baselines3

def state():
    return [torch.get_num_threads(), [str(f) for f in warnings.filters], sorted(gymnasium.registry),
            torch.get_rng_state().tolist()[:64], torch.get_default_dtype().__str__()]

modules, before = set(sys.modules), state()
start = time.process_time()
import sb3_erl
seconds = time.process_time() - start
print(json.dumps({"same": state() == before, "seconds": seconds, "new": sorted(set(sys.modules) - modules)}))
"""

HEAVY = ("matplotlib", "pandas", "ray", "seaborn", "mujoco", "optuna", "rl_zoo3", "sb3_contrib", "tensorboard", "rich", "tqdm")


def test_no_side_effects() -> None:
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1 and result.stderr == "", "prints nothing"
    assert report["same"], "threads, warning filters, registered environments, generators"
    assert [name for name in report["new"] if name.split(".")[0] in HEAVY] == []
    assert report["seconds"] < 0.3
