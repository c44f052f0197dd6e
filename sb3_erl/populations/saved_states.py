"""Members in the zip file of a population: plain values in SB3's data, which need no pickle, and buffers as further files."""

from __future__ import annotations

import base64
import io
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from stable_baselines3.common.running_mean_std import RunningMeanStd

from sb3_erl.core.array_text import array_to_text, text_to_array
from sb3_erl.core.atomic_files import replacing
from sb3_erl.populations.member import MemberState
from sb3_erl.populations.space import Knob, own_values
from sb3_erl.runs.loading import File, opened

FOLDER = "members"
"""Folder in the zip file; SB3's own ``load`` does not look into it."""
TUPLE = ":tuple:"
"""Key of a dict that stands for a tuple, which JSON does not have."""
WITH_TUPLES = ("algorithm_kwargs", "history", "initial_hyperparameters", "search_space")
"""Attributes of a population in which tuples may stand."""


def has_tuples(value: Any) -> bool:
    """:return: whether there are tuples among plain values"""
    parts = value.values() if isinstance(value, dict) else value if type(value) is list else ()
    return type(value) is tuple or any(has_tuples(part) for part in parts)


def mark_tuples(value: Any) -> Any:
    """
    :param value: plain values, perhaps within dicts, lists and tuples
    :return: the same without tuples, as :func:`unmark_tuples` reads it
    """
    if isinstance(value, dict):
        return {key: mark_tuples(part) for key, part in value.items()}
    if type(value) is tuple:
        return {TUPLE: [mark_tuples(part) for part in value]}
    return [mark_tuples(part) for part in value] if type(value) is list else value


def unmark_tuples(value: Any) -> Any:
    """
    :param value: from :func:`mark_tuples`, or without marks
    :return: the same with tuples
    """
    if isinstance(value, dict):
        if list(value) == [TUPLE]:
            return tuple(unmark_tuples(part) for part in value[TUPLE])
        return {key: unmark_tuples(part) for key, part in value.items()}
    return [unmark_tuples(part) for part in value] if type(value) is list else value


def plain_state(model: Any) -> dict[str, Any]:
    """
    :param model: a population
    :return: plain values by the names of attributes; steps are those of the generation in which the members were trained, also
        if a callback saves them while it sees these steps
    """
    tuples = {name: mark_tuples(getattr(model, name)) for name in WITH_TUPLES if has_tuples(getattr(model, name))}
    members = {"_saved_members": [to_plain(state) for state in model._members]}
    return {**tuples, **members, "num_timesteps": model.num_timesteps + model._n_unreported}


def to_plain(state: MemberState) -> dict[str, Any]:
    """
    :param state: of a member
    :return: it without its replay buffer, as text and numbers
    """
    statistics = state.statistics
    return {
        "model": base64.b64encode(state.model).decode(),
        "hyperparameters": mark_tuples(dict(state.hyperparameters)),
        "statistics": None if statistics is None else {name: _plain(value) for name, value in statistics.items()},
    }


def from_plain(saved: Mapping[str, Any], space: Mapping[str, Knob]) -> MemberState:
    """
    :param saved: from :func:`to_plain`, perhaps of an earlier version
    :param space: of the search
    :return: the member, without a replay buffer
    """
    values = own_values(unmark_tuples(saved["hyperparameters"]), space)
    statistics = saved["statistics"]
    found = None if statistics is None else {name: _moments(value) for name, value in statistics.items()}
    return MemberState(base64.b64decode(saved["model"]), values, None, found)


def _plain(moments: Any) -> dict[str, Any]:
    """Running moments, or those of each part of a Dict observation."""
    if isinstance(moments, dict):
        return {"parts": {key: _plain(part) for key, part in moments.items()}}
    return {"mean": array_to_text(moments.mean), "var": array_to_text(moments.var), "count": float(moments.count)}


def _moments(plain: Mapping[str, Any]) -> Any:
    if "parts" in plain:
        return {key: _moments(part) for key, part in plain["parts"].items()}
    found = RunningMeanStd()
    found.mean, found.var, found.count = text_to_array(plain["mean"]), text_to_array(plain["var"]), plain["count"]
    return found


def write_with_buffers(path: File, file: io.BytesIO, buffers: Sequence[bytes | None]) -> None:
    """
    :param path: file name (``.zip`` is added) or open file
    :param file: zip file that SB3 wrote
    :param buffers: pickled replay buffer of each member, ``None`` where there is none
    """
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for number, buffer in enumerate(buffers):
            if buffer is not None:
                archive.writestr(f"{FOLDER}/{number}/replay_buffer.pkl", buffer)
    if isinstance(path, str | pathlib.Path):
        with replacing(path, ".zip") as temporary:
            pathlib.Path(temporary).write_bytes(file.getbuffer())
    else:
        path.write(file.getbuffer())


def with_buffers(states: Sequence[MemberState], path: File) -> list[MemberState]:
    """
    :param states: of the members
    :param path: file name (``.zip`` may be left out) or open file, which is left where it was
    :return: the members with their replay buffers, where they were saved
    """
    found = []
    stream: Any
    with opened(path, "zip") as stream, zipfile.ZipFile(stream) as archive:
        names = set(archive.namelist())
        for number, state in enumerate(states):
            name = f"{FOLDER}/{number}/replay_buffer.pkl"
            found.append(replace(state, buffer=archive.read(name) if name in names else None))
    return found
