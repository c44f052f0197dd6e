"""``sb3-erl info FILE``: what is in the file of a model, by its headers; no tensor is read and nothing is unpickled."""

from __future__ import annotations

import argparse
import json
import math
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sb3_erl.runs.loading import file_beside_folder, opened
from sb3_erl.runs.safe_files import TENSORS, ModelFileError, members, one_error, printable, read_member, read_settings
from sb3_erl.runs.saving import is_pickled

MAX_HEADER = 16 << 20
"""Bytes of JSON that are read of the tensors' header and of SB3's settings."""
MAX_LINE = 2000
"""Letters of a line that are printed."""
SHOWN = ("num_timesteps", "n_generations", "_n_updates", "pop_size", "run_seed", "n_envs")


def describe_file(path: str | Path) -> list[str]:
    """
    :param path: zip file of a model of this package or of SB3 (``.zip`` may be left out)
    :return: lines of text, without what a terminal would obey
    :raises FileNotFoundError: if there is no such file
    :raises ModelFileError: if it is damaged or none of SB3's
    """
    try:
        found = file_beside_folder(path)
    except ValueError as error:
        raise ModelFileError(str(error)) from error
    with opened(found, "zip") as file, one_error(f"path={str(path)!r}"), zipfile.ZipFile(file) as archive:
        known = members(archive)
        settings = read_settings(archive)
        lines = _described_sb3(archive, known) if settings is None else _described(archive, known, settings)
        return [printable(line[:MAX_LINE]) for line in [*lines, *_versions(archive, known)]]


def _described(archive: zipfile.ZipFile, known: dict[str, zipfile.ZipInfo], settings: dict[str, Any]) -> list[str]:
    attributes, refused = settings["attributes"], settings["refused"]
    lines = [f"algorithm:    {settings['algorithm']}"]
    lines += [f"{name.strip('_') + ':':13} {attributes[name]}" for name in SHOWN if type(attributes.get(name)) is int]
    lines += [f"{name + ':':13} {_short(attributes.get(name))}" for name in ("policy_class", "policy_kwargs")]
    spaces = {name: attributes.get(name) for name in ("observation_space", "action_space")}
    lines += [f"{name.partition('_')[0] + ':':13} {_short(space)}" for name, space in spaces.items()]
    lines.append(f"tensors:      {_described_tensors(archive, known[TENSORS])}")
    lines.append(f"networks:     {', '.join(settings['parameters'] or ())}")
    lines.append(f"pickles only: {'; '.join(refused.values()) or 'nothing, load_safe reads it'}")
    return lines


def _described_tensors(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> str:
    with archive.open(info) as member:
        length = int.from_bytes(member.read(8), "little")
        if length > min(info.file_size, MAX_HEADER):
            raise ValueError(f"the header of {TENSORS} has {length} bytes")
        header = json.loads(member.read(length).decode())
    sizes = [math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__"]
    return f"{len(sizes):,} with {sum(sizes):,} numbers, {info.file_size:,} bytes"


def _described_sb3(archive: zipfile.ZipFile, known: dict[str, zipfile.ZipInfo]) -> list[str]:
    data = json.loads(read_member(archive, known["data"], MAX_HEADER).decode())
    pickled = sorted(name for name, value in data.items() if is_pickled(value))
    lines = [f"algorithm:    {data.get('algorithm', 'unknown')}, written by SB3 or an earlier version"]
    lines += [f"{name.strip('_') + ':':13} {data[name]}" for name in SHOWN if type(data.get(name)) is int]
    lines.append(f"pickles only: {', '.join(pickled) or 'nothing'}; load_safe does not read this file")
    return lines


def _versions(archive: zipfile.ZipFile, known: dict[str, zipfile.ZipInfo]) -> list[str]:
    if "system_info.txt" not in known:
        return []
    text = read_member(archive, known["system_info.txt"], 1 << 16).decode()
    return ["saved with:", *(f"  {line}" for line in text.splitlines())]


def _short(value: Any) -> str:
    """A value as it stands in the JSON, where a kind has but one key."""
    if isinstance(value, dict) and len(value) == 1:
        ((kind, content),) = value.items()
        if kind in ("class", "deploying"):
            return str(content).rpartition(":")[2]
        if kind == "space" and isinstance(content, dict):
            return str(content.get("kind"))
        value = content if kind == "dict" else value
    return str(value)[:200]


def main(words: Sequence[str]) -> None:
    """
    :param words: of the command line, after ``info``
    """
    parser = argparse.ArgumentParser(prog="sb3-erl info", description="What is in the file of a model; nothing in it is run.")
    parser.add_argument("file", type=Path, help="zip file that save() wrote")
    path = parser.parse_args(words).file
    try:
        print("\n".join(describe_file(path)))
    except (FileNotFoundError, ModelFileError) as error:
        print(f"sb3-erl info: {error}", file=sys.stderr)
        sys.exit(1)
