"""What other processes do in ``test_checkpoints``: begin a run that is killed, or go on with one."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from benchmarks.killed_run import fingerprint
from sb3_erl import ALGOS, GenerationCheckpoint, newest_checkpoint
from tests.contract.settings import STEPWISE, make, toy_actions
from tests.envs import toy_vec_env

SAVE_FREQ = 40
TOTAL = {name: 230 if name in STEPWISE else 170 for name in ALGOS}
"""Steps of a run: inside a generation, and where updates are made."""


def environment(name: str) -> VecEnv:
    """A toy environment whose statistics are part of the run."""
    return VecNormalize(toy_vec_env(vary=3, **toy_actions(name)), norm_obs=name not in STEPWISE)


def learn(name: str, folder: Path, keep: int | None = None) -> Any:
    """The program of a user whose jobs may be killed: it begins the run of this folder, or goes on with it."""
    checkpoints = folder / "checkpoints"
    if newest_checkpoint(checkpoints) is None:
        model = make(name, environment(name))
    else:
        model = ALGOS[name].resume_from(checkpoints, env=environment(name), device="cpu")
    model.set_logger(configure(str(folder), ["csv", "json", "log"]))
    return model.learn(TOTAL[name], GenerationCheckpoint(SAVE_FREQ, checkpoints, keep=keep), log_interval=2)


def learn_elsewhere(name: str, folder: Path) -> None:
    """:func:`learn` in a process of its own, which leaves a fingerprint."""
    th.set_num_threads(1)
    (folder / "result.json").write_text(json.dumps(fingerprint(learn(name, folder), folder / "progress.csv")))


def learn_until(name: str, folder: Path, n_events: int) -> None:
    """:func:`learn`, killed just before the process touches its checkpoints for so many-th time."""
    th.set_num_threads(1)
    remaining = n_events

    def count(event: str, words: tuple[Any, ...]) -> None:
        nonlocal remaining
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod") and "checkpoint_" in str(words):
            remaining -= 1
            if remaining == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    learn(name, folder, keep=1)
    (folder / "n_events").write_text(str(n_events - remaining))
