"""``GenerationCheckpoint``, the callback that saves a run so that it can be continued exactly."""

from __future__ import annotations

import pathlib
import pickle
import time
from typing import Any

import filelock
from stable_baselines3.common.callbacks import BaseCallback

from sb3_erl.buffers.genetic_memory import memories_trimmed
from sb3_erl.core.atomic_files import make_folder
from sb3_erl.core.checks import check_range
from sb3_erl.runs.checkpoints import (
    BUFFER,
    ENVIRONMENT,
    LOGS,
    MODEL,
    NORMALIZER,
    RUN,
    checkpoint_at,
    claim,
    new_checkpoint,
    newest_checkpoint,
    prune,
    read_manifest,
    remove_damaged,
    remove_leftovers,
)
from sb3_erl.runs.run import Run
from sb3_erl.runs.run_state import copy_logs, environment_recipe, read_callbacks, read_generators, score_of
from sb3_erl.runs.segments import write_buffer

THINNED = "thinned"
LAST = 2
"""Newest checkpoints that are kept if :data:`THINNED`."""


class GenerationCheckpoint(BaseCallback):
    """
    Saves a run between two generations, so that ``resume_from`` continues it bit for bit.

    A checkpoint is a folder with model, replay buffer, ``VecNormalize`` statistics, log files, the state of SB3's callbacks
    and of the global generators. It appears in a single step when all of it is on disk: a kill at any moment leaves the
    previous checkpoint. There is one more at the end of the budget. Of the replay buffer only what is new is written; the rest
    is shared with the checkpoint before by hard links, so that each folder can be copied or deleted by itself.

    ``TD7`` and ``PopTD7`` have no generations: they are saved when no episode runs. If there is no such moment within
    another ``save_freq`` steps, as with several environments, running episodes are cut and stored as truncated.

    :param save_freq: environment steps between two checkpoints; each is written at the first possible moment after them
    :param save_path: folder of this run's checkpoints, which no other process can use while ``learn`` runs
    :param keep: which checkpoints stay: ``"thinned"`` for the two newest and the best of the older ones, a number for so many
        of the newest, ``None`` for all. The best has the highest mean return, of the last evaluation where there is an
        ``EvalCallback``, of the last training episodes otherwise
    :param verbose: 2 to say when a checkpoint is written
    :param keep_best: whether the best of the older ones stays also with a number for ``keep``
    :param keep_every: every so many-th checkpoint stays too, ``None`` for no further ones
    :raises ValueError: if an argument is out of range, another run is writing to the folder, or it holds later checkpoints
        than the model is at
    """

    def __init__(
        self,
        save_freq: int,
        save_path: str | pathlib.Path,
        keep: int | str | None = THINNED,
        verbose: int = 0,
        keep_best: bool = False,
        keep_every: int | None = None,
    ):
        super().__init__(verbose)
        check_range("save_freq", save_freq, 1, integer=True)
        if isinstance(keep, str):
            if keep != THINNED:
                raise ValueError(f"keep must be {THINNED!r}, a number of checkpoints, or None for all; got {keep!r}")
        elif keep is not None:
            check_range("keep", keep, 1, integer=True)
        if keep_every is not None:
            check_range("keep_every", keep_every, 1, integer=True)
        self.save_freq, self.save_path, self.keep = save_freq, pathlib.Path(save_path).absolute(), keep
        self.keep_best, self.keep_every = keep_best or keep == THINNED, keep_every
        self._saved_at = self._number = 0
        self._newest: pathlib.Path | None = None
        self._damaged: tuple[pathlib.Path, ...] = ()
        self._recipe: bytes | None = None
        self._root: BaseCallback = self
        self._lock: filelock.BaseFileLock | None = None

    def _init_callback(self) -> None:
        run = getattr(self.model, "run", None)
        if not isinstance(run, Run):
            raise TypeError(
                f"GenerationCheckpoint needs a model of sb3_erl; got {type(self.model).__name__}. Use SB3's CheckpointCallback"
            )
        make_folder(self.save_path)
        self._lock = claim(self.save_path)
        run.checkpointers.append(self)
        remove_leftovers(self.save_path)
        self._saved_at = self.model.num_timesteps
        self._damaged = () if run.resumption is None else run.resumption.damaged
        self._newest = newest = newest_checkpoint(self.save_path, self._damaged)
        manifest = None if newest is None else read_manifest(newest)
        if manifest is not None and manifest["num_timesteps"] > self._saved_at:
            raise ValueError(
                "save_path must not hold later checkpoints than the model is at, of another run; got "
                f"step {manifest['num_timesteps']} in {str(newest)!r} and a model at step {self._saved_at}. Continue that run "
                f"with {type(self.model).__name__}.resume_from(save_path), or choose an empty folder"
            )
        self._number = 0 if manifest is None else manifest.get("number", 0)
        self._recipe = environment_recipe(self.training_env)

    def _on_training_start(self) -> None:
        self._root = self.locals["callback"]

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        if self.model.num_timesteps >= self.model._total_timesteps > self._saved_at:
            self.save()

    @property
    def is_due(self) -> bool:
        """Whether ``save_freq`` steps were taken since the last checkpoint."""
        return self.model.num_timesteps // self.save_freq > self._saved_at // self.save_freq

    @property
    def is_overdue(self) -> bool:
        """Whether another ``save_freq`` steps were taken without a possible moment to save."""
        return self.model.num_timesteps // self.save_freq > self._saved_at // self.save_freq + 1

    def save(self) -> None:
        """Write a checkpoint of the model as it is, and delete those that need not stay."""
        model: Any = self.model
        normalizer = model.get_vec_normalize_env()
        number = self._number + 1
        about = {
            "algorithm": type(model).__name__,
            "total_timesteps": model._total_timesteps,
            "n_envs": model.n_envs,
            "saved_at": time.time_ns(),
            "number": number,
            "score": score_of(model, self._root),
        }
        with new_checkpoint(self.save_path, model.num_timesteps, about) as folder:
            with memories_trimmed():
                model.save(folder / MODEL, include=getattr(model, "checkpoint_includes", None))
            if getattr(model, "replay_buffer", None) is not None:
                previous = None if self._newest is None else self._newest / BUFFER
                write_buffer(model.replay_buffer, folder / BUFFER, previous)
            if normalizer is not None:
                normalizer.save(str(folder / NORMALIZER))
            if self._recipe is not None:
                (folder / ENVIRONMENT).write_bytes(self._recipe)
            log, callbacks = copy_logs(model.logger, folder / LOGS), read_callbacks(self._root)
            run = {"log": log, "callbacks": callbacks, "generators": read_generators(), "latest": model.run.latest}
            (folder / RUN).write_bytes(pickle.dumps(run))
        self._saved_at, self._number = model.num_timesteps, number
        self._newest = checkpoint_at(self.save_path, model.num_timesteps)
        remove_damaged(self._damaged, self._newest)
        self._damaged = ()
        if self.keep is not None:
            prune(self.save_path, LAST if isinstance(self.keep, str) else self.keep, self.keep_best, self.keep_every)
        if self.verbose >= 2:
            print(f"Saving a checkpoint of step {model.num_timesteps} to {self.save_path}")

    def close(self) -> None:
        """Let other processes use the folder; called at the end of ``learn``."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
