"""What a model consists of, in a form that can be compared; and witnesses of a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger

from sb3_erl.rollouts.jobs import EpisodeBatch, Job

COUNTERS = ("num_timesteps", "n_generations", "_n_updates", "_episode_num", "n_begun", "n_stored", "n_assessments", "budget")
RECORDS: tuple[str, ...] = ("assessment_state", "member_states")
RECORDS += ("resources", "updates_owed")
"""Attributes in which some classes keep plain numbers."""


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
    arrays = {name: array for name, array in vars(buffer).items() if not name.startswith("_")}
    for name in ("observations", "next_observations"):
        if isinstance(arrays.get(name), dict):
            arrays |= {f"{name}.{key}": part for key, part in arrays[name].items()}
    found = {
        name: array[:size].copy() for name, array in arrays.items() if isinstance(array, np.ndarray) and array.dtype != object
    }
    for index, tree in enumerate(getattr(buffer, "trees", [])):
        found[f"priority.{index}"] = tree.priority[: tree.size].copy()
        found[f"max_priority.{index}"] = np.array(tree.max_priority)
    return found


def snapshot(model: Any) -> dict[str, np.ndarray]:
    """Everything about a model that two equal runs must have in common."""
    counters = {name: np.array(getattr(model, name)) for name in COUNTERS if hasattr(model, name)}
    _walk("record", {name: getattr(model, name) for name in RECORDS if hasattr(model, name)}, counters)
    stored = {f"replay_buffer.{name}": array for name, array in transitions(model).items()}
    return {**tensors(model), **stored, **counters}


def differences(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> list[str]:
    """Names of the entries that are not equal bit for bit."""
    names = sorted({*first, *second})
    return [n for n in names if n not in first or n not in second or not _same(first[n], second[n])]


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def modules(model: Any) -> list[th.nn.Module]:
    """Everything that holds networks."""
    return [module for module in (model.policy, getattr(model, "evolver", None)) if module is not None]


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
        """``num_timesteps`` at the end of each complete rollout, that is, generation or vector step."""
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


class Accountant(BaseCallback):
    """
    Counts the steps of TD7's policy by the rule of the warm-up; asks at every step whether each has its update or waits.

    :param learning_starts: steps of the warm-up, which lasts to the end of each environment's running episode
    """

    def __init__(self, learning_starts: int = 10):
        super().__init__()
        self.learning_starts = learning_starts
        self.n_policy_steps = 0
        self.n_stored = 0

    def _on_training_start(self) -> None:
        self.uses_policy = np.full(self.model.n_envs, self.n_stored > self.learning_starts)

    def _on_step(self) -> bool:
        self.check()
        self.n_policy_steps += int(self.uses_policy.sum())
        self.n_stored += self.model.n_envs
        self.uses_policy[self.locals["dones"]] = self.n_stored > self.learning_starts
        return True

    def check(self) -> None:
        """To be called after the last step too."""
        model: Any = self.model
        assessments = [member.assessment for member in getattr(model, "members", [model])]
        waiting = sum(assessment.untrained_steps for assessment in assessments) + getattr(model, "trial_steps", 0)
        assert model._n_updates + waiting == self.n_policy_steps


def watch_phases(model: Any) -> list[tuple[list[Job], EpisodeBatch]]:
    """Everything that is evaluated from now on."""
    phases, evaluate = [], model.rollouts.run

    def keep(jobs: list[Job], *args: Any, **kwargs: Any) -> EpisodeBatch:
        episodes = evaluate(jobs, *args, **kwargs)
        phases.append((jobs, episodes))
        return episodes

    model.rollouts.run = keep
    return phases
