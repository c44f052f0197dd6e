"""The run that ``benchmarks.kill_resume`` kills and starts again, and what is compared when it is over."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_erl import ALGOS, GenerationCheckpoint, newest_checkpoint
from tests.contract.settings import DISCRETE, HYBRIDS, STEPWISE, fast, known

EPISODE = 25
SAVE_FREQ = 100
SMALL: dict[str, Any] = {"device": "cpu", "seed": 7, "policy_kwargs": {"net_arch": [16]}}
HYBRID = {"buffer_size": 500, "batch_size": 16, "learning_starts": 60}
"""The buffer is smaller than the run is long, so that it wraps round."""
NAMED: dict[str, tuple[int, bool, dict[str, Any]]] = {
    "erl_re2": (710, True, {**HYBRID, "pop_size": 3, "fitness_horizon": 10, "train_freq": 4}),
    "td7": (460, False, {**HYBRID, "policy_kwargs": {"net_arch": [16], "zs_dim": 8}, "late_assessment_episodes": 3}),
    "cem_rl": (710, True, {**HYBRID, "pop_size": 4, "train_freq": 4}),
    "evo_rainbow": (710, True, {**HYBRID, "pop_size": 3, "train_freq": 4}),
    "pderl": (710, True, {**HYBRID, "pop_size": 3, "train_freq": 4, "genetic_memory_size": 150, "distill_epochs": 2}),
    "openai_es": (2510, False, {"n_pairs": 4, "noise_table_size": 1_000_000}),
}
"""For each system: steps of a run, whether there is a ``VecNormalize``, and arguments."""


def _like_the_tests(name: str) -> tuple[int, bool, dict[str, Any]]:
    n_steps = 460 if name in STEPWISE else 710 if name in HYBRIDS else 1510
    return n_steps, name not in STEPWISE, fast(name, **known(name, {"buffer_size": 500, "learning_starts": 60}))


SYSTEMS = {**NAMED, **{name: _like_the_tests(name) for name in ALGOS if name not in NAMED}}
"""The same for all classes."""


def make_env(system: str, is_normalized: bool) -> VecEnv:
    """An environment with short episodes, which a checkpoint can make again."""
    env_id = "CartPole-v1" if system in DISCRETE else "Pendulum-v1"
    env = DummyVecEnv([lambda: Monitor(gym.make(env_id, max_episode_steps=EPISODE))])
    return VecNormalize(env) if is_normalized else env


def train(system: str, folder: Path, n_steps: int | None = None) -> None:
    """
    The program that is killed, and started again just as it is; writes what came out of it beside its log.

    :param system: key in :data:`SYSTEMS`
    :param folder: of the run
    :param n_steps: length of the run, ``None`` for the system's own
    """
    th.set_num_threads(1)
    usual, is_normalized, arguments = SYSTEMS[system]
    checkpoints = folder / "checkpoints"
    if newest_checkpoint(checkpoints):
        model = ALGOS[system].resume_from(checkpoints, device="cpu")
    else:
        model = ALGOS[system]("MlpPolicy", make_env(system, is_normalized), **{**SMALL, **arguments})
    model.set_logger(configure(str(folder), ["csv"]))
    model.learn(n_steps or usual, GenerationCheckpoint(SAVE_FREQ, checkpoints))
    (folder / "result.json").write_text(json.dumps(fingerprint(model, folder / "progress.csv")))


# ---------------------------------------------------------------- what is compared


def _leaves(name: str, value: Any) -> Iterator[tuple[str, bytes]]:
    if isinstance(value, th.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray) and value.dtype != object:
        yield name, str((value.shape, value.dtype)).encode() + value.tobytes()
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(f"{name}.{key}", part)
    elif isinstance(value, list | tuple | deque):
        for index, part in enumerate(value):
            yield from _leaves(f"{name}.{index}", part)
    elif value is None or isinstance(value, bool | int | float | str | np.generic):
        yield name, repr(value).encode()


def read_log(path: Path) -> list[dict[str, str]]:
    """Rows of a log file without what depends on the clock, and without empty cells."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    timed = ("fps", "time_elapsed", "share")
    return [{k: v for k, v in sorted(row.items()) if v and not k.endswith(timed)} for row in rows]


def fingerprint(model: Any, log: Path | None = None) -> dict[str, str]:
    """
    :param model: of any class of this package
    :param log: its ``progress.csv``
    :return: a hash for each number, word and array that a run leaves behind
    """
    begun_anew = {"_last_obs", "_last_original_obs"}  # as the environments are
    left_out = {*model._excluded_save_params(), *begun_anew, "start_time"}
    attributes = {name: value for name, value in vars(model).items() if name not in left_out}
    attributes["ep_info_buffer"] = [{k: v for k, v in info.items() if k != "t"} for info in model.ep_info_buffer]
    parts: dict[str, Any] = {"parameters": model.get_parameters(), "attribute": attributes}
    buffer, normalizer = getattr(model, "replay_buffer", None), model.get_vec_normalize_env()
    if buffer is not None:
        trees = [vars(tree) for tree in getattr(buffer, "trees", [])]
        parts["replay_buffer"] = {**{k: v for k, v in vars(buffer).items() if k != "_drawn"}, "trees": trees}
    if normalizer is not None:
        parts["normalizer"] = {k: vars(v) for k, v in vars(normalizer).items() if k.endswith("_rms")}
    if log is not None:
        parts["log"] = read_log(log)
    return {name: hashlib.sha256(data).hexdigest() for name, data in _leaves("", parts)}


def differences(first: dict[str, str], second: dict[str, str]) -> list[str]:
    """Names that two fingerprints do not agree on."""
    return sorted(name for name in {*first, *second} if first.get(name) != second.get(name))
