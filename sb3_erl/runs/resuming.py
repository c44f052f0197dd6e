"""``resume_from``: the model of an interrupted run, which continues at its last checkpoint."""

from __future__ import annotations

import pathlib
import re
import warnings
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecNormalize

from sb3_erl.runs.checkpoints import (
    BUFFER,
    ENVIRONMENT,
    MODEL,
    NORMALIZER,
    CheckpointFiles,
    newest_checkpoint,
    read_manifest,
)
from sb3_erl.runs.moved_modules import old_modules_found
from sb3_erl.runs.run_state import make_environments, restore_statistics
from sb3_erl.runs.segments import DamagedError


def resume(cls: Any, path: pathlib.Path, env: GymEnv | None, device: th.device | str, **kwargs: Any) -> Any:
    """
    See :meth:`~sb3_erl.engine.model.EvolvingModel.resume_from`.

    :param cls: class of the model
    :param path: folder of checkpoints, or one of them
    :param env: environment, ``None`` to make it again
    :param device: of the model
    :param kwargs: attributes to change
    :return: a model whose next ``learn`` is the rest of the interrupted call
    :raises ValueError: if there is no whole checkpoint, it is of another class, or ``env`` is needed or does not fit
    """
    damaged: list[pathlib.Path] = []
    while True:
        files = find_files(path, issubclass(cls, OffPolicyAlgorithm), damaged)
        try:
            model = _resume_at(cls, files, path, env, device, **kwargs)
        except DamagedError as error:
            damaged.append(files.folder)
            if files.manifest is None or newest_checkpoint(path, damaged) is None:
                raise
            warnings.warn(f"a damaged checkpoint is passed over, the one before is continued: {error}", stacklevel=3)
        else:
            model.run.resumption = replace(files, damaged=tuple(damaged))
            return model


def _resume_at(
    cls: Any, files: CheckpointFiles, path: pathlib.Path, env: GymEnv | None, device: th.device | str, **kwargs: Any
) -> Any:
    """:func:`resume` from one checkpoint."""
    if files.manifest is not None and files.manifest["algorithm"] != cls.__name__:
        name = files.manifest["algorithm"]
        raise ValueError(f"path must hold checkpoints of {cls.__name__}; got {name}'s in {path}. Call {name}.resume_from")
    with old_modules_found():
        statistics = files.statistics()
        if env is None:
            env = _make_env(files, statistics)
    model = cls.load(files.model, env=env, device=device, **kwargs)
    normalizer = model.get_vec_normalize_env()
    if (normalizer is None) != (statistics is None):
        wanted = "no VecNormalize" if statistics is None else "a VecNormalize"
        raise ValueError(f"env must have {wanted}, as in the run that was saved in {files.folder}; got another one")
    if isinstance(model, OffPolicyAlgorithm):
        model.load_replay_buffer(files.buffer)
    restore_statistics(normalizer, statistics)
    return model


def find_files(path: pathlib.Path, needs_buffer: bool, damaged: Collection[pathlib.Path] = ()) -> CheckpointFiles:
    """
    :param path: folder of our checkpoints, one of them, or folder of SB3's ``CheckpointCallback``
    :param needs_buffer: whether there must be a replay buffer
    :param damaged: checkpoints that are passed over
    :return: the newest complete set of files
    :raises ValueError: if there is none
    """
    newest = newest_checkpoint(path, damaged)
    if newest is not None:
        return CheckpointFiles(newest / MODEL, newest / BUFFER, newest / NORMALIZER, read_manifest(newest))
    found = []
    is_normalized = any(path.glob("*_vecnormalize_*_steps.pkl"))
    for model in path.glob("*_steps.zip"):
        match = re.fullmatch(r"(.+)_(\d+)_steps", model.stem)
        if match is not None:
            prefix, steps = match.groups()
            others = [model.with_name(f"{prefix}_{part}_{steps}_steps.pkl") for part in ("replay_buffer", "vecnormalize")]
            has_buffer = others[0].exists() or not needs_buffer
            if has_buffer and others[1].exists() == is_normalized:  # the callback writes them one after the other
                found.append((int(steps), CheckpointFiles(model, others[0], others[1])))
    if not found:
        raise ValueError(
            f"path must be a folder with at least one whole checkpoint; got {str(path)!r}, which has none. Begin a new "
            "run where sb3_erl.newest_checkpoint(path) is None; with SB3's CheckpointCallback set save_replay_buffer=True"
        )
    return max(found, key=lambda pair: pair[0])[1]


def _make_env(files: CheckpointFiles, statistics: VecNormalize | None) -> GymEnv:
    recipe = files.folder / ENVIRONMENT
    if files.manifest is None or not recipe.exists():
        raise ValueError(
            "env must be given to resume_from: the environment of this run cannot be made again from its id. Make it as "
            "for the run that was interrupted"
        )
    env = make_environments(recipe.read_bytes(), files.manifest["n_envs"])
    return env if statistics is None else VecNormalize.load(str(files.normalizer), env)
