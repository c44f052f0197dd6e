"""State of a run outside its model: log files, callbacks, global generators, environments."""

from __future__ import annotations

import pathlib
import pickle
import random
import shutil
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.logger import CSVOutputFormat, HumanOutputFormat, JSONOutputFormat, KVWriter, Logger, configure
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_erl.core.arguments import constructor_parameters
from sb3_erl.remote.env_recipe import environment_maker

# ---------------------------------------------------------------- global generators


def read_generators() -> dict[str, Any]:
    """States of the global generators, which training does not use, but a user's callbacks may."""
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": th.get_rng_state()}


def write_generators(states: dict[str, Any]) -> None:
    """:param states: from :func:`read_generators`"""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    th.set_rng_state(states["torch"])


# ---------------------------------------------------------------- logs


def _log_files(logger: Logger) -> Iterator[tuple[str, Any]]:
    for writer in logger.output_formats:
        own: KVWriter = writer
        if isinstance(own, CSVOutputFormat | JSONOutputFormat) or (isinstance(own, HumanOutputFormat) and own.own_file):
            yield pathlib.Path(own.file.name).name, own


def copy_logs(logger: Logger, folder: pathlib.Path) -> dict[str, Any]:
    """
    :param logger: of the model
    :param folder: gets a copy of each file that the logger writes
    :return: values recorded for the next row, and the columns of tables
    """
    columns = {}
    for name, writer in _log_files(logger):
        folder.mkdir(exist_ok=True)
        writer.file.flush()
        shutil.copyfile(writer.file.name, folder / name)
        columns[name] = list(getattr(writer, "keys", []))
    waiting = {name: value for name, value in logger.name_to_value.items() if _is_plain(value)}
    counts, excluded = dict(logger.name_to_count), dict(logger.name_to_excluded)
    return {"folder": logger.dir, "columns": columns, "values": waiting, "counts": counts, "excluded": excluded}


@contextmanager
def same_folder(model: Any, folder: str | None, name: str) -> Iterator[None]:
    """
    Context for ``_setup_learn`` of a continued run, whose TensorBoard folder need not be the newest one.

    :param model: of this package
    :param folder: in which the run logged before, if that is known
    :param name: of runs, as ``learn`` takes it
    """
    is_there = folder is not None and model.tensorboard_log is not None and pathlib.Path(folder).is_dir()
    if is_there and not model._custom_logger:
        place = pathlib.Path(str(folder))
        if place.parent.resolve() == pathlib.Path(model.tensorboard_log).resolve() and place.name.startswith(f"{name}_"):
            model.set_logger(configure(str(place), ["stdout", "tensorboard"] if model.verbose >= 1 else ["tensorboard"]))
            try:
                yield
            finally:
                model._custom_logger = False
            return
    yield


def restore_logs(logger: Logger, folder: pathlib.Path, state: dict[str, Any]) -> None:
    """
    Let the open log files continue those that were copied; rows that were written after the copy are removed.

    :param logger: of the model; of its files those of the same names are filled
    :param folder: see :func:`copy_logs`
    :param state: from :func:`copy_logs`
    """
    for name, writer in _log_files(logger):
        if name in state["columns"]:
            writer.file.seek(0)
            writer.file.truncate()
            writer.file.write((folder / name).read_bytes().decode())
            writer.file.flush()
            if isinstance(writer, CSVOutputFormat):
                writer.keys = state["columns"][name]
    logger.name_to_value.update(state["values"])
    logger.name_to_count.update(state["counts"])
    logger.name_to_excluded.update(state["excluded"])


# ---------------------------------------------------------------- callbacks

LIBRARIES = ("stable_baselines3", "sb3_contrib", "rl_zoo3")
"""
Packages whose callbacks are restored with all plain attributes. Of other callbacks the number of calls is, and what a method
``run_state()`` returns, which ``restore_run_state(state)`` is given.
"""
OWN_STATE = "run_state"


def read_callbacks(root: BaseCallback) -> dict[tuple[str, int], dict[str, Any]]:
    """
    :param root: of all callbacks
    :return: plain attributes by (class, number among those of the class), such as the best score of an ``EvalCallback``
    """
    return {key: _plain_attributes(callback) for key, callback in numbered_callbacks(root)}


def write_callbacks(root: BaseCallback, states: dict[tuple[str, int], dict[str, Any]]) -> None:
    """
    :param root: callbacks of the continued run; those without a saved state are left as they are
    :param states: from :func:`read_callbacks`
    """
    for key, callback in numbered_callbacks(root):
        for name, value in states.get(key, {}).items():
            if name == OWN_STATE:
                callback.restore_run_state(value)  # type: ignore[attr-defined]
            else:
                setattr(callback, name, value)


def score_of(model: Any, root: BaseCallback) -> float | None:
    """
    What says which checkpoint is the best one.

    :param model: of this package
    :param root: of all callbacks
    :return: the mean return of the last evaluation by an ``EvalCallback``; without one, of the last training episodes, as in
        ``rollout/ep_rew_mean``; ``None`` if there is none yet
    """
    evaluations = [callback for _, callback in numbered_callbacks(root) if isinstance(callback, EvalCallback)]
    returns = [info["r"] for info in model.ep_info_buffer or ()]
    score = evaluations[0].last_mean_reward if evaluations else np.mean(returns) if returns else np.nan
    return float(score) if np.isfinite(score) else None


def numbered_callbacks(root: BaseCallback) -> Iterator[tuple[tuple[str, int], BaseCallback]]:
    """
    :param root: of all callbacks
    :return: every callback with its class and its number among those of the class
    """
    counts: Counter[str] = Counter()
    waiting, seen = deque([root]), {id(root)}
    while waiting:
        callback = waiting.popleft()
        name = f"{type(callback).__module__}.{type(callback).__qualname__}"
        yield (name, counts[name]), callback
        counts[name] += 1
        for attribute, value in vars(callback).items():
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, BaseCallback) and attribute != "parent" and id(part) not in seen:
                    waiting.append(part)
                    seen.add(id(part))


def _plain_attributes(callback: BaseCallback) -> dict[str, Any]:
    if type(callback).__module__.split(".")[0] not in LIBRARIES:
        own = getattr(callback, OWN_STATE, None)
        return {"n_calls": callback.n_calls, **({OWN_STATE: own()} if callable(own) else {})}
    given = {*constructor_parameters(type(callback)), "locals", "globals"}
    return {name: value for name, value in vars(callback).items() if name not in given and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    """Whether a value is made of numbers, strings and arrays; not of environments, files or figures."""
    if isinstance(value, list | tuple | deque):
        return all(_is_plain(part) for part in value)
    if isinstance(value, dict):
        return all(_is_plain(part) for part in value.values())
    is_array = isinstance(value, np.ndarray) and value.dtype != object
    return is_array or value is None or isinstance(value, bool | int | float | str | np.generic)


# ---------------------------------------------------------------- environments


def environment_recipe(env: VecEnv) -> bytes | None:
    """
    :param env: the model's own environments
    :return: pickle of a function that makes them again, without an outermost ``VecNormalize``; ``None`` if they cannot be
    """
    try:
        return cloudpickle.dumps(environment_maker(env.venv if isinstance(env, VecNormalize) else env, None))
    except (ValueError, TypeError, AttributeError, NotImplementedError, pickle.PicklingError):
        return None


def make_environments(recipe: bytes, n_envs: int) -> VecEnv:
    """
    :param recipe: from :func:`environment_recipe`
    :param n_envs: number of environments
    :return: new environments
    """
    return pickle.loads(recipe)(n_envs)


def restore_statistics(normalizer: VecNormalize | None, saved: VecNormalize | None) -> None:
    """
    :param normalizer: of the model's environments, which takes the saved statistics of observations and returns
    :param saved: what a checkpoint holds
    """
    if normalizer is not None and saved is not None:
        for name in ("obs_rms", "ret_rms"):
            if name in vars(saved):  # there are none of observations where they are not normalized
                setattr(normalizer, name, getattr(saved, name))
