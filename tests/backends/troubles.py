"""Environments with something wrong in some episodes, and runs that can be compared."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from tests.contract.helpers import Tables, Witness, snapshot
from tests.contract.settings import make
from tests.envs import ToyEnv, toy_vec_env

EPISODES: dict[str, Any] = {"length": 4, "vary": 5, "ending": "termination"}
Trouble = Literal["none", "raise", "hang", "die", "die once"]


class TroubledEnv(ToyEnv):
    """
    :class:`~tests.envs.ToyEnv` that goes wrong in the third step of every third episode, chosen by the seed.

    :param trouble: what happens
    :param flag: file that says that it happened already
    """

    def __init__(self, trouble: Trouble = "none", flag: str = "", **kwargs: Any):
        super().__init__(**{**EPISODES, **kwargs})
        self.trouble, self.flag = trouble, flag

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.is_bad = seed is not None and seed % 3 == 0
        return super().reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.is_bad and self.time == 2:
            self._go_wrong()
        return super().step(action)

    def _go_wrong(self) -> None:
        if self.trouble == "raise":
            raise RuntimeError("the knee is broken")
        if self.trouble == "hang":
            time.sleep(1000)
        if self.trouble == "die" or (self.trouble == "die once" and not Path(self.flag).exists()):
            if self.flag:
                Path(self.flag).touch()
            os.kill(os.getpid(), signal.SIGKILL)


def toy(**kwargs: Any) -> VecEnv:
    """One environment in this process, with episodes of 4 to 9 steps."""
    return toy_vec_env(1, **{**EPISODES, **kwargs})


def end_of_generation(name: str, n_generations: int, **overrides: Any) -> int:
    """Environment steps of so many generations."""
    witness = Witness()
    make(name, toy(), **overrides).learn(90 * n_generations, witness)
    return witness.generation_ends[n_generations - 1]


def run(name: str, total: int, env: VecEnv | None = None, callback: BaseCallback | None = None, **overrides: Any) -> Any:
    """:return: what a model is after so many steps, and its log without times"""
    model = make(name, toy() if env is None else env, **overrides)
    tables = Tables(model)
    model.learn(total, callback)
    keys = sorted({key for table in tables.tables for key in table if not key.startswith("time/")})
    return snapshot(model), {key: [repr(value) for value in tables.column(key)] for key in keys}
