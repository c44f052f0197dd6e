"""Evaluate what a model could report while it trains, write the curve and keep a checkpoint to continue from."""

import csv
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import nn

from sb3_erl.core.atomic_files import to_disk
from sb3_erl.core.seeding import scoped_generators

# Every evaluation starts from the same states, so points of one curve and curves of several runs can be compared
EVALUATION_SEED = 1_000_000

# Column of the CSV -> key of the logger it is read from
LOGGED = {
    "population_max": "population/fitness_max",
    "population_mean": "population/fitness_mean",
    "population_std": "population/fitness_std",
    "learner_training_return": "rollout/learner_ep_rew_mean",
    "training_return": "rollout/ep_rew_mean",
    "generations": "time/generations",
    "updates": "train/n_updates",
    "evaluation_share": "time/evaluation_share",
    "learning_share": "time/learning_share",
    "evolution_share": "time/evolution_share",
}
COLUMNS = ["steps", "train_seconds", "total_seconds", "cpu_seconds", "mean", "std", "reported", *LOGGED]
"""
Columns that every curve has: ``mean`` and ``std`` are over the episodes of the deployed policy, ``reported`` is the highest
mean among the candidates that the authors of the system report.
"""
NO_TIME = {"train_seconds": 0.0, "total_seconds": 0.0, "cpu_seconds": 0.0}
"""The clock of a run that begins."""
RETURN = "_return"
"""Ending of the columns with the mean return of each candidate, such as ``champion_return``."""


class Agent(Protocol):
    """What can be evaluated: a model, or one of its parts such as ``model.learner_agent``."""

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Any: ...


def evaluate(agent: Agent, env: VecEnv, normalization: VecNormalize | None = None) -> np.ndarray:
    """
    Run one episode in each environment of ``env``, all from fixed start states, with one batched call per step.

    Random numbers of a candidate that is published with sampled actions are the same each time and touch no generator of the
    run.

    :param agent: acts as it is published, most of them deterministically
    :param env: environments without normalization, so that rewards are the task's own
    :param normalization: scales observations the way training does; its statistics are only read
    :return: undiscounted returns, shape (n_envs,)
    """
    env.seed(EVALUATION_SEED)
    observation: Any = env.reset()
    returns = np.zeros(env.num_envs)
    running = np.ones(env.num_envs, dtype=bool)
    with scoped_generators(np.random.SeedSequence(EVALUATION_SEED)):
        while running.any():
            if normalization is not None:
                observation = normalization.normalize_obs(observation)
            action, _ = agent.predict(observation, deterministic=True)
            observation, rewards, dones, _ = env.step(action)
            returns[running] += rewards[running]
            running &= ~dones
    return returns


def candidates_of(model: BaseAlgorithm) -> dict[str, Agent]:
    """:return: what could be reported of a model, by name; nothing but what is deployed of a class of another package"""
    return model.candidates_for_report() if hasattr(model, "candidates_for_report") else {}


def same_network(first: Any, second: Any) -> bool:
    """Whether two agents are networks of one kind with the same tensors, so that they need not be tested twice."""
    if first is second:
        return True
    if not isinstance(first, nn.Module) or type(first) is not type(second):
        return False
    mine, theirs = first.state_dict(), second.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def evaluate_candidates(
    model: BaseAlgorithm, test: Callable[[Agent], np.ndarray]
) -> tuple[np.ndarray, dict[str, float], float]:
    """
    Test everything that a model could report, each candidate in the same episodes.

    :param model: of any package
    :param test: plays the episodes of one candidate, and gives their returns
    :return: returns of the deployed policy ``(n_episodes,)``, the mean of each candidate, and the highest mean among those
        candidates that the authors report; that of the deployed policy if they report no other
    """
    returns = test(model)
    tested: list[tuple[Any, float]] = [(getattr(model.policy, "deployed", None), float(returns.mean()))]
    means = {}
    for name, agent in candidates_of(model).items():
        known = [mean for other, mean in tested if other is not None and same_network(other, agent)]
        means[name] = known[0] if known else float(test(agent).mean())
        tested.append((agent, means[name]))
    reported = [means[name] for name in getattr(model, "reported_candidates", ()) if name in means]
    return returns, means, max(reported, default=float(returns.mean()))


class LastLogged(KVWriter):
    """Remembers the newest value of every key the model has logged: the logger itself forgets them after each table."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.values.update(key_values)

    def close(self) -> None:
        pass


class Curve:
    """
    The CSV file of one seed.

    :param path: file; what it holds beyond ``steps`` is dropped, because the run continues from there
    :param steps: timesteps of the checkpoint the run continues from, 0 for a fresh run
    :param candidates: names of what the model could report, one more column each
    """

    def __init__(self, path: Path, steps: int, candidates: Iterable[str] = ()) -> None:
        self.path = path
        rows = [row for row in read_rows(path) if int(row["steps"]) <= steps] if path.is_file() else []
        own = [*COLUMNS, *(f"{name}{RETURN}" for name in candidates)]
        self.columns = [*own, *(name for name in (rows[0] if rows else []) if name not in own)]  # those of earlier versions
        temporary = path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, path)

    def append(self, row: dict[str, Any]) -> None:
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a curve; a line that was cut by a crash is left out."""
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values() and None not in row]


class Checkpoints:
    """
    The newest state of one run: model, replay buffer, normalization and clock, in a folder that is renamed when whole.

    :param folder: holds at most one ``step_N`` folder once a save is complete
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def newest(self) -> Path | None:
        found = [path for path in self.folder.glob("step_*") if path.suffix != ".tmp"]
        return max(found, key=lambda path: int(path.name.removeprefix("step_")), default=None)

    def save(self, model: BaseAlgorithm, clock: dict[str, float]) -> None:
        path = self.folder / f"step_{model.num_timesteps}"
        temporary = path.with_suffix(".tmp")
        self.clear(keep=self.newest())
        temporary.mkdir(parents=True)
        model.save(temporary / "model.zip")
        if hasattr(model, "save_replay_buffer"):
            model.save_replay_buffer(temporary / "replay_buffer.pkl")
        normalization = model.get_vec_normalize_env()
        if normalization is not None:
            normalization.save(str(temporary / "vecnormalize.pkl"))
        (temporary / "clock.json").write_text(json.dumps({"steps": model.num_timesteps, **clock}))
        for entry in (*temporary.iterdir(), temporary):
            to_disk(entry)
        os.replace(temporary, path)
        to_disk(self.folder)
        self.clear(keep=path)

    def clear(self, keep: Path | None = None) -> None:
        """Delete every state but ``keep``, also those whose saving was interrupted."""
        for path in self.folder.glob("step_*"):
            if path != keep:
                shutil.rmtree(path)


class LearningCurveCallback(BaseCallback):
    """
    Evaluate everything that the model could report, and save the state of the run. Training goes on as if nothing had been.

    Evaluations happen inside a rollout, at the first step that reaches a multiple of ``eval_freq`` and at the last step.
    Checkpoints wait for the start of the next rollout, where no generation is half done; a continued run therefore
    repeats the evaluations that came after its checkpoint.

    :param env: evaluation environments, in each of which every candidate plays one episode
    :param curve: receives one row per evaluation
    :param checkpoints: receives the state of the run
    :param steps: timesteps at which training ends
    :param eval_freq: timesteps between evaluations
    :param checkpoint_freq: timesteps between checkpoints
    :param clock: seconds spent so far by a run that is continued, keys as in :data:`NO_TIME`
    :param report: receives one line of text per evaluation
    """

    def __init__(
        self,
        env: VecEnv,
        curve: Curve,
        checkpoints: Checkpoints,
        steps: int,
        eval_freq: int,
        checkpoint_freq: int,
        clock: dict[str, float],
        report: Callable[[str], None] = print,
    ) -> None:
        super().__init__()
        self.env = env
        self.curve = curve
        self.checkpoints = checkpoints
        self.steps = steps
        self.eval_freq = eval_freq
        self.checkpoint_freq = checkpoint_freq
        self.report = report
        self.last = LastLogged()
        self._parent_process = os.getppid()
        self._before = {**NO_TIME, **clock}
        self._paused_wall = self._paused_cpu = 0.0
        self._start_wall, self._start_cpu = time.perf_counter(), time.process_time()

    def clock(self) -> dict[str, float]:
        """
        Return the seconds so far: of training alone, with evaluation and saving, and of the processor for training alone.

        The last is that of this process: of a run without workers, it hardly depends on what else the machine does.
        """
        wall, cpu = time.perf_counter() - self._start_wall, time.process_time() - self._start_cpu
        passed = {"train_seconds": wall - self._paused_wall, "total_seconds": wall, "cpu_seconds": cpu - self._paused_cpu}
        return {name: self._before[name] + seconds for name, seconds in passed.items()}

    @contextmanager
    def _no_training(self) -> Iterator[None]:
        """What happens here is no part of the time of training."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self._paused_wall += time.perf_counter() - wall
        self._paused_cpu += time.process_time() - cpu

    def _on_training_start(self) -> None:
        self.logger.output_formats.append(self.last)
        self._next_evaluation = self._after(self.num_timesteps, self.eval_freq)
        self._next_checkpoint = self._after(self.num_timesteps, self.checkpoint_freq)

    @staticmethod
    def _after(steps: int, period: int) -> int:
        return (steps // period + 1) * period

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self._next_checkpoint:
            with self._no_training():
                self.checkpoints.save(self.model, self.clock())
            self._next_checkpoint = self._after(self.num_timesteps, self.checkpoint_freq)

    def _on_step(self) -> bool:
        if self.num_timesteps >= min(self._next_evaluation, self.steps):
            clock = self.clock()
            with self._no_training():
                self._evaluate(clock)
            self._next_evaluation = self._after(self.num_timesteps, self.eval_freq)
            return os.getppid() == self._parent_process  # the process that asked for the result has ended
        return True

    def _evaluate(self, clock: dict[str, float]) -> None:
        normalization = self.model.get_vec_normalize_env()
        returns, means, reported = evaluate_candidates(self.model, lambda agent: evaluate(agent, self.env, normalization))
        row: dict[str, Any] = dict.fromkeys(self.curve.columns, "")
        row.update({"steps": self.num_timesteps, **{key: f"{value:.2f}" for key, value in clock.items()}})
        row.update({"mean": f"{returns.mean():.3f}", "std": f"{returns.std():.3f}", "reported": f"{reported:.3f}"})
        row.update({f"{name}{RETURN}": f"{mean:.3f}" for name, mean in means.items()})
        row.update({column: _number(self.last.values.get(key)) for column, key in LOGGED.items()})
        self.curve.append(row)
        others = "".join(f"  {name} {mean:9.1f}" for name, mean in means.items())
        self.report(
            f"{self.num_timesteps:>9d} steps  {clock['train_seconds']:7.0f} s"
            f"  return {returns.mean():9.1f} +- {returns.std():7.1f}  reported {reported:9.1f}{others}"
        )


def _number(value: Any) -> str:
    return "" if value is None or isinstance(value, str) else f"{float(value):.6g}"
