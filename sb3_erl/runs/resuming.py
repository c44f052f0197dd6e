"""``resume_from``: a run goes on where its last checkpoint stands, as if it had not been stopped."""

from __future__ import annotations

import pathlib
import pickle
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.vec_env import VecNormalize

from sb3_erl.core.interrupts import torch_modes_kept
from sb3_erl.runs.checkpoints import BUFFER, ENVIRONMENT, LOGS, MODEL, NORMALIZER, RUN, newest_checkpoint, read_manifest
from sb3_erl.runs.run_state import make_environments, restore_logs, write_callbacks, write_generators

SelfResuming = TypeVar("SelfResuming", bound="ResumingMixin")


class Checkpointer(Protocol):
    """Who wants to save a run where it can be continued exactly."""

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


@dataclass(frozen=True)
class _Files:
    """Files of one checkpoint, ours or of SB3's ``CheckpointCallback``."""

    model: pathlib.Path
    buffer: pathlib.Path
    normalizer: pathlib.Path
    manifest: dict[str, Any] | None = None

    @property
    def folder(self) -> pathlib.Path:
        return self.model.parent

    def statistics(self) -> VecNormalize | None:
        """What ``VecNormalize`` has seen, without environments; ``None`` if there was none."""
        return pickle.loads(self.normalizer.read_bytes()) if self.normalizer.exists() else None


class ResumingMixin(BaseAlgorithm):
    """
    Runs that can be continued from their last checkpoint; stands before an SB3 base class.

    The model of :meth:`resume_from` remembers that a call of ``learn`` was interrupted; its next ``learn`` is that call.
    """

    _resumption: _Files | None = None
    _is_resumed: bool = False
    """Whether the current ``learn`` is the rest of an interrupted one."""
    _checkpointers: list[Checkpointer] | tuple[()] = ()

    # ---------------------------------------------------------------- going on

    @classmethod
    def resume_from(
        cls: type[SelfResuming],
        path: str | pathlib.Path,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        **kwargs: Any,
    ) -> SelfResuming:
        """
        The model of an interrupted run, with replay buffer and ``VecNormalize`` statistics.

        Its next ``learn`` is the interrupted call: give it the same ``total_timesteps``, of which it makes what is left, and
        the same callbacks. From a :class:`~sb3_erl.runs.callbacks.GenerationCheckpoint` the run goes on bit for bit (CPU),
        and the files of its logger go on where they stood then. From the files of SB3's ``CheckpointCallback`` (with
        ``save_replay_buffer`` and ``save_vecnormalize``) it goes on with the next generation. Checkpoints hold pickles:
        resume your own runs only.

        :param path: folder of checkpoints, of which the newest whole one is taken; or one checkpoint in it
        :param env: environment as in the interrupted run, ``None`` to make it again from its id
        :param device: ``"auto"``, ``"cpu"`` or ``"cuda"``
        :param kwargs: attributes of the model to be changed, see ``load``
        :raises ValueError: if there is no whole checkpoint, it is of another class, or ``env`` is needed or does not fit
        """
        files = cls._find_files(pathlib.Path(path))
        if files.manifest is not None and files.manifest["algorithm"] != cls.__name__:
            name = files.manifest["algorithm"]
            raise ValueError(f"path must hold checkpoints of {cls.__name__}; got {name}'s in {path}. Call {name}.resume_from")
        statistics = files.statistics()
        if env is None:
            env = cls._make_env(files, statistics)
        model = cls.load(files.model, env=env, device=device, **kwargs)
        normalizer = model.get_vec_normalize_env()
        if (normalizer is None) != (statistics is None):
            wanted = "no VecNormalize" if statistics is None else "a VecNormalize"
            raise ValueError(f"env must have {wanted}, as in the run that was saved in {files.folder}; got another one")
        if isinstance(model, OffPolicyAlgorithm):
            model.load_replay_buffer(files.buffer)
        model._resumption = files
        model._restore_normalizer(files)
        return model

    @classmethod
    def _find_files(cls, path: pathlib.Path) -> _Files:
        newest = newest_checkpoint(path)
        if newest is not None:
            return _Files(newest / MODEL, newest / BUFFER, newest / NORMALIZER, read_manifest(newest))
        found = []
        is_normalized = any(path.glob("*_vecnormalize_*_steps.pkl"))
        for model in path.glob("*_steps.zip"):
            match = re.fullmatch(r"(.+)_(\d+)_steps", model.stem)
            if match is not None:
                prefix, steps = match.groups()
                others = [model.with_name(f"{prefix}_{part}_{steps}_steps.pkl") for part in ("replay_buffer", "vecnormalize")]
                has_buffer = others[0].exists() or not issubclass(cls, OffPolicyAlgorithm)
                if has_buffer and others[1].exists() == is_normalized:  # the callback writes them one after the other
                    found.append((int(steps), _Files(model, others[0], others[1])))
        if not found:
            raise ValueError(
                f"path must be a folder with at least one whole checkpoint; got {str(path)!r}, which has none. Begin a new "
                "run where sb3_erl.newest_checkpoint(path) is None; with SB3's CheckpointCallback set save_replay_buffer=True"
            )
        return max(found, key=lambda pair: pair[0])[1]

    @staticmethod
    def _make_env(files: _Files, statistics: VecNormalize | None) -> GymEnv:
        recipe = files.folder / ENVIRONMENT
        if files.manifest is None or not recipe.exists():
            raise ValueError(
                "env must be given to resume_from: the environment of this run cannot be made again from its id. Make it as "
                "for the run that was interrupted"
            )
        env = make_environments(recipe.read_bytes(), files.manifest["n_envs"])
        return env if statistics is None else VecNormalize.load(str(files.normalizer), env)

    def _restore_normalizer(self, files: _Files) -> None:
        statistics, normalizer = files.statistics(), self._vec_normalize_env
        if normalizer is not None and statistics is not None:
            for name in ("obs_rms", "ret_rms"):
                if name in vars(statistics):  # observations have none where they are not normalized
                    setattr(normalizer, name, getattr(statistics, name))

    def _begin_learn(
        self, total_timesteps: float, callback: MaybeCallback, reset_num_timesteps: bool, tb_log_name: str, progress_bar: bool
    ) -> tuple[int, BaseCallback]:
        """``_setup_learn`` of SB3; after :meth:`resume_from`, the same for the rest of the interrupted call."""
        files, self._checkpointers = self._resumption, []
        self._is_resumed = files is not None
        if files is None:
            return self._setup_learn(int(total_timesteps), callback, reset_num_timesteps, tb_log_name, progress_bar)
        begun_at, end = self._num_timesteps_at_start, self._num_timesteps_at_start + int(total_timesteps)
        if end != self._total_timesteps:
            warnings.warn(
                f"total_timesteps was {self._total_timesteps - begun_at} in the call of learn() that is continued and is "
                f"{int(total_timesteps)} now: training ends at step {end} instead of {self._total_timesteps}",
                stacklevel=3,
            )
        began = self.start_time
        end, prepared = self._setup_learn(end - self.num_timesteps, callback, False, tb_log_name, progress_bar)
        self._resumption, self._num_timesteps_at_start = None, begun_at
        self._restore_normalizer(files)  # the reset of the environments was seen by it
        if files.manifest is not None:
            self.start_time -= max(0, files.manifest["saved_at"] - began)
            run = pickle.loads((files.folder / RUN).read_bytes())
            restore_logs(self.logger, files.folder / LOGS, run["log"])
            write_callbacks(prepared, run["callbacks"])
            write_generators(run["generators"])
        return end, prepared

    @contextmanager
    def _learning(self) -> Iterator[None]:
        """Around a call of ``learn``: however it ends, torch computes gradients as before and checkpointers are closed."""
        try:
            with torch_modes_kept():
                yield
        finally:
            for checkpointer in self._checkpointers:
                checkpointer.close()

    # ---------------------------------------------------------------- being saved

    def _at_boundary(self) -> None:
        """To be called where a run can be continued exactly: between two generations, or when no episode runs."""
        for checkpointer in self._checkpointers:
            if checkpointer.is_due:
                checkpointer.save()

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_resumption", "_is_resumed", "_checkpointers"]
