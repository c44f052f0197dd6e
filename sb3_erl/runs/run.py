"""The run that a model is in: random numbers by address, checkpoints, and the rest of an interrupted call of ``learn``."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_erl.core.interrupts import torch_modes_kept
from sb3_erl.core.observations import zeros
from sb3_erl.core.seeding import Address, Stream
from sb3_erl.runs.checkpoints import LOGS, RUN, CheckpointFiles
from sb3_erl.runs.description import EarlyTables
from sb3_erl.runs.run_state import restore_logs, restore_statistics, same_folder, write_callbacks, write_generators


class Checkpointer(Protocol):
    """Something that saves a run where it can be continued exactly."""

    @property
    def is_due(self) -> bool:
        """Whether it would save now."""

    @property
    def is_overdue(self) -> bool:
        """Whether it has waited so long that episodes may be cut."""

    def save(self) -> None:
        """Write a checkpoint."""

    def close(self) -> None:
        """``learn`` has ended, normally or not."""


class Observer(Protocol):
    """Something that looks at each generation and changes nothing, such as a callback that draws pictures of it."""

    def after_verb(self, verb: str, generation: Any) -> None:
        """
        :param verb: of the generation that was done
        :param generation: what it has produced so far, a :class:`~sb3_erl.engine.generation.Generation`
        """


class Run:
    """
    What a model needs to run reproducibly and to be continued: held as ``model.run`` and never saved itself.

    The numbers that a file has to keep are plain attributes of the model: ``run_seed``, ``phase`` and ``algorithm``.

    :param model: the model whose run it is
    """

    def __init__(self, model: Any):
        self._model = model
        self._generators: dict[Stream | str, np.random.Generator] = {}
        self._generators_at: tuple[int, ...] = ()
        self.checkpointers: list[Checkpointer] = []
        """Those of the current ``learn``; a callback appends itself when it is initialized."""
        self.observers: list[Observer] = []
        """Those of the current ``learn``; a callback appends itself when it is initialized."""
        self.latest: dict[str, Any] = {}
        """The values that were logged last, by their keys."""
        self.wasted_steps = 0
        """Environment steps of the latest calls of ``learn`` in a row that have not learned anything."""
        self.tables: EarlyTables | None = None
        """Shows tables before the first generation is over; ``None`` where nothing is to be printed."""
        self.resumption: CheckpointFiles | None = None
        """Files of an interrupted call of ``learn``, which the next call continues."""
        self.is_resumed = False
        """Whether the current ``learn`` is the rest of an interrupted one."""

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "checkpointers": [], "observers": [], "tables": None}  # they belong to a call of learn

    # ---------------------------------------------------------------- random numbers

    def choose_seed(self) -> None:
        """
        Fix the seed of the run: the model's ``seed``, else the one that was loaded, else one from NumPy's global generator, so
        that ``set_random_seed`` of SB3 has its effect.
        """
        model = self._model
        if model.seed is not None:
            model.run_seed = int(model.seed)
        elif model.run_seed is None:
            model.run_seed = int(np.random.randint(2**63, dtype=np.uint64))

    @property
    def address(self) -> Address:
        """Root of all random numbers of the current phase."""
        assert self._model.run_seed is not None
        return Address(self._model.run_seed, self._model.phase)

    def rng(self, stream: Stream | str) -> np.random.Generator:
        """
        The generator of a stream; it goes on when it is asked for again in the same phase and starts anew in the next one.

        :param stream: one of the package's streams, or any name for a stream of one's own
        :return: a generator that depends on the run's seed, the phase and the stream only
        :raises TypeError: if ``stream`` is neither
        """
        if not isinstance(stream, Stream | str):
            raise TypeError(f"stream must be a name, such as 'reseed', or a Stream; got {stream!r}")
        key = self._model._phase_key
        now = (self.address.run_seed, self.address.phase, *key)
        if now != self._generators_at:
            self._generators, self._generators_at = {}, now
        if stream not in self._generators:
            sequence = self.address.named_sequence if isinstance(stream, str) else self.address.sequence
            self._generators[stream] = np.random.default_rng(sequence(stream, *key))  # type: ignore[arg-type]
        return self._generators[stream]

    # ---------------------------------------------------------------- a call of learn

    def begin(
        self, total_timesteps: float, callback: MaybeCallback, reset_num_timesteps: bool, tb_log_name: str, progress_bar: bool
    ) -> tuple[int, BaseCallback]:
        """
        ``_setup_learn`` of SB3; after ``resume_from``, the same for the rest of the interrupted call.

        :return: step at which training ends, and all callbacks as one
        """
        model, files = self._model, self.resumption
        self.checkpointers, self.observers = [], []
        self.is_resumed = files is not None
        if files is None:
            return self._set_up(int(total_timesteps), callback, reset_num_timesteps, tb_log_name, progress_bar)
        begun_at, end = model._num_timesteps_at_start, model._num_timesteps_at_start + int(total_timesteps)
        if end != model._total_timesteps:
            warnings.warn(
                f"total_timesteps was {model._total_timesteps - begun_at} in the call of learn() that is continued and is "
                f"{int(total_timesteps)} now: training ends at step {end} instead of {model._total_timesteps}",
                stacklevel=3,
            )
        began = model.start_time
        run = {} if files.manifest is None else pickle.loads((files.folder / RUN).read_bytes())
        with same_folder(model, run.get("log", {}).get("folder"), tb_log_name):
            end, prepared = self._set_up(end - model.num_timesteps, callback, False, tb_log_name, progress_bar)
        self.resumption, model._num_timesteps_at_start = None, begun_at
        restore_statistics(model.get_vec_normalize_env(), files.statistics())
        if files.manifest is not None:
            model.start_time -= max(0, files.manifest["saved_at"] - began)
            restore_logs(model.logger, files.folder / LOGS, run["log"])
            write_callbacks(prepared, run["callbacks"])
            write_generators(run["generators"])
            self.latest = run.get("latest", {})
        return end, prepared

    def _set_up(
        self, total_timesteps: int, callback: MaybeCallback, reset_num_timesteps: bool, tb_log_name: str, progress_bar: bool
    ) -> tuple[int, BaseCallback]:
        """``_setup_learn`` of SB3, with a bar that counts steps, and without a reset: episodes begin where they are played."""
        model = self._model
        count_steps(callback)
        if progress_bar:
            callback = with_progress_bar(callback)
        with _no_reset(model.env if reset_num_timesteps or model._last_obs is None else None):
            end, prepared = model._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name)
        # What follows schedules before the first step must not go by the end of the call before
        model._update_current_progress_remaining(model.num_timesteps, end)
        return end, prepared

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Around a call of ``learn``: however it ends, torch computes gradients as before and checkpointers are closed."""
        try:
            with torch_modes_kept():
                yield
        finally:
            self.close()

    def at_boundary(self) -> None:
        """Save what is due; to be called where a run can be continued exactly, so between two generations or episodes."""
        for checkpointer in self.checkpointers:
            if checkpointer.is_due:
                checkpointer.save()

    @property
    def is_overdue(self) -> bool:
        """Whether a checkpointer has waited so long for a boundary that episodes may be cut to make one."""
        return any(checkpointer.is_overdue for checkpointer in self.checkpointers)

    def close(self) -> None:
        """Close all checkpointers; nobody observes any longer."""
        self.observers, self.tables = [], None
        for checkpointer in self.checkpointers:
            checkpointer.close()


@contextmanager
def _no_reset(env: VecEnv | None) -> Iterator[None]:
    """Context in which the next call of ``env.reset()`` does nothing and returns zeros."""
    if env is None:
        yield
        return
    own, before = vars(env), {name: value for name, value in vars(env).items() if name == "reset"}

    def restore() -> None:
        own.pop("reset", None)
        own.update(before)

    def reset() -> Any:
        restore()
        normalizer = unwrap_vec_normalize(env)
        if normalizer is not None:  # which SB3 asks for the originals then
            vars(normalizer).setdefault("old_obs", zeros(normalizer.venv.observation_space, env.num_envs))
        return zeros(env.observation_space, env.num_envs)

    own["reset"] = reset
    try:
        yield
    finally:
        restore()


# -------------------------------------------------------------------- a progress bar that counts the steps that are counted


class StepProgressBar(ProgressBarCallback):
    """
    SB3's progress bar at ``num_timesteps``.

    SB3 adds the number of environments at each call. Here slots without a job are not counted, workers report one step at a
    call, and offline learning counts updates.

    :raises ImportError: without tqdm and rich
    """

    _begun_at = 0

    def _on_step(self) -> bool:
        self.pbar.update(self.model.num_timesteps - self._begun_at - self.pbar.n)
        return True

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self._begun_at = self.model.num_timesteps

    def _on_training_end(self) -> None:
        self._on_step()  # steps that were counted without a call
        super()._on_training_end()


def count_steps(callback: MaybeCallback) -> None:
    """
    Make SB3's bars among a user's callbacks count steps as well; the Zoo's ``-P`` adds such a one.

    :param callback: what a user gives to ``learn``
    """
    if type(callback) is ProgressBarCallback:
        callback.__class__ = StepProgressBar
    for each in callback.callbacks if isinstance(callback, CallbackList) else callback if isinstance(callback, list) else ():
        count_steps(each)


def with_progress_bar(callback: MaybeCallback) -> BaseCallback:
    """
    :param callback: what a user gives to ``learn``
    :return: the same and a progress bar
    """
    if isinstance(callback, list):
        callback = CallbackList(callback)
    if not isinstance(callback, BaseCallback):
        callback = ConvertCallback(callback)
    return CallbackList([callback, StepProgressBar()])
