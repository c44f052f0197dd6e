"""What a model consists of, in a form that can be compared; and witnesses of a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger

COUNTERS = ("num_timesteps", "n_generations", "_n_updates", "_episode_num")


def _walk(prefix: str, value: Any, found: dict[str, np.ndarray]) -> None:
    if isinstance(value, th.Tensor):
        found[prefix] = value.detach().cpu().numpy().copy()
    elif isinstance(value, dict):
        for key, part in value.items():
            _walk(f"{prefix}.{key}", part, found)
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            _walk(f"{prefix}.{index}", part, found)
    elif isinstance(value, int | float):
        found[prefix] = np.array(value)


def tensors(model: Any) -> dict[str, np.ndarray]:
    """Copies of everything that ``get_parameters`` holds: networks, population, optimizer states."""
    found: dict[str, np.ndarray] = {}
    _walk("", model.get_parameters(), found)
    return found


def transitions(model: Any) -> dict[str, np.ndarray]:
    """Copies of the filled part of the replay buffer."""
    buffer = getattr(model, "replay_buffer", None)
    if buffer is None:
        return {}
    size = buffer.size()
    return {name: array[:size].copy() for name, array in vars(buffer).items() if isinstance(array, np.ndarray)}


def snapshot(model: Any) -> dict[str, np.ndarray]:
    """Everything about a model that two equal runs must have in common."""
    counters = {name: np.array(getattr(model, name)) for name in COUNTERS}
    stored = {f"replay_buffer.{name}": array for name, array in transitions(model).items()}
    return {**tensors(model), **stored, **counters}


def differences(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> list[str]:
    """Names of the entries that are not equal bit for bit."""
    names = sorted({*first, *second})
    return [n for n in names if n not in first or n not in second or not _same(first[n], second[n])]


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


class Witness(BaseCallback):
    """
    Writes down what a run tells its callbacks.

    :param stop_at: return False at this call of ``on_step``
    :param answer: what to return then
    """

    def __init__(self, stop_at: int | None = None, answer: Any = False):
        super().__init__()
        self.stop_at, self.answer = stop_at, answer
        self.n_begun = 0
        self.counts: list[int] = []
        """``num_timesteps`` at each vector step."""
        self.generation_ends: list[int] = []
        """``num_timesteps`` at the end of each complete generation."""
        self.begun_with: dict[str, Any] = {}

    def _on_training_start(self) -> None:
        self.begun_with = dict(self.locals)

    def _on_rollout_start(self) -> None:
        self.n_begun += 1

    def _on_step(self) -> Any:
        self.counts.append(self.model.num_timesteps)
        return self.answer if len(self.counts) == self.stop_at else True

    def _on_rollout_end(self) -> None:
        self.generation_ends.append(self.model.num_timesteps)


class Tables(KVWriter):
    """Keeps every log table that is written."""

    def __init__(self, model: Any):
        self.tables: list[dict[str, Any]] = []
        model.set_logger(Logger(folder=None, output_formats=[self]))

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.tables.append(dict(key_values))

    def close(self) -> None:
        """Nothing to close."""

    def column(self, key: str) -> list[Any]:
        """The values of one key in the tables that have it."""
        return [table[key] for table in self.tables if key in table]
