"""Zip files of models: written whole or not at all, without what cannot be pickled."""

from __future__ import annotations

import hashlib
import io
import json
import pathlib
import warnings
import zipfile
from collections.abc import Iterable
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import safetensors.torch
import stable_baselines3
import torch as th
from stable_baselines3.common.save_util import data_to_json, open_path, recursive_getattr
from stable_baselines3.common.utils import get_system_info

from sb3_erl.core.atomic_files import replacing
from sb3_erl.core.safe_names import NAME, misplaced, name_of
from sb3_erl.core.safe_values import NotPlain, Writer
from sb3_erl.runs.safe_files import FORMAT, MAX_SETTINGS, OF_THE_MACHINE, RUN_TIME, SETTINGS, TENSORS, arguments_of, family


def save_model(
    model: Any,
    path: str | pathlib.Path | io.BufferedIOBase,
    exclude: Iterable[str] | None,
    include: Iterable[str] | None,
    plain_state: dict[str, Any],
) -> None:
    """
    ``BaseAlgorithm.save``, but a crash leaves the previous file whole, and no attribute of the user's prevents the rest.

    The file is SB3's, with two more members that hold the same without pickles, see :func:`write_safe`.

    :param model: of this package
    :param path: file name (``.zip`` is added) or open file
    :param exclude: attributes to leave out
    :param include: attributes to save although they are excluded by default
    :param plain_state: values of further attributes
    """
    state_dicts, variables = model._get_torch_save_params()
    left_out = {*(exclude or ()), *model._excluded_save_params()} - set(include or ())
    left_out |= {name.split(".")[0] for name in (*state_dicts, *variables)}
    attributes = {name: value for name, value in vars(model).items() if name not in left_out}
    attributes.update(plain_state)
    if "algorithm" in attributes:
        attributes["algorithm"] = family(type(model))  # whatever custom_objects or a user have put there
    parameters = model.get_parameters()
    single = {name: recursive_getattr(model, name) for name in variables}
    data = data_to_json(_savable(attributes))

    def write(target: pathlib.Path | io.BufferedIOBase) -> None:
        with zipfile.ZipFile(target, "w") as archive:
            archive.writestr("data", data)
            for name, tensors in {"pytorch_variables": single, **parameters}.items():
                with archive.open(f"{name}.pth", "w", force_zip64=True) as member:
                    th.save(tensors, member)
            archive.writestr("_stable_baselines3_version", stable_baselines3.__version__)
            archive.writestr("system_info.txt", get_system_info(print_info=False)[1])
            write_safe(archive, type(model), attributes, parameters, single)

    if isinstance(path, str | pathlib.Path):
        with replacing(path, ".zip") as temporary:
            write(temporary)
    else:
        write(open_path(path, "w", verbose=0, suffix="zip"))


def write_safe(
    archive: zipfile.ZipFile, cls: type, attributes: dict[str, Any], parameters: dict[str, Any], variables: dict[str, Any]
) -> None:
    """
    Add the two members to a zip file. Attributes that only a pickle can hold are named in them with the reason.

    :param archive: open for writing
    :param cls: of the model
    :param attributes: values by name
    :param parameters: state dicts by name
    :param variables: single tensors by name
    """
    writer, written, refused, arguments = Writer(), {}, {}, arguments_of(cls)
    for name, value in attributes.items():
        n_tensors = len(writer.tensors)
        try:
            if name in RUN_TIME or name in getattr(cls, "_only_trusted", ()) or NAME.fullmatch(name) is None:
                raise NotPlain(f"{name}: not part of a model without code")
            written[name] = writer.write(value, name)
            if name not in OF_THE_MACHINE and (found := misplaced(name, value, name in arguments)) is not None:
                del written[name]
                raise NotPlain(f"{name}: {found}, which does not belong there")
        except NotPlain as reason:
            refused[name] = str(reason)
            for key in list(writer.tensors)[n_tensors:]:
                del writer.tensors[key]
    settings: dict[str, Any] = {"format": FORMAT, "algorithm": family(cls), "attributes": written, "refused": refused}
    if not cls.__module__.startswith("sb3_erl."):
        settings["own_class"] = name_of(cls)
    try:
        settings["parameters"] = {name: writer.write(value, name) for name, value in parameters.items()}
        settings["variables"] = {name: writer.write(value, name) for name, value in variables.items()}
    except NotPlain as reason:  # a network of the user's with state that is no tensor
        settings |= {"parameters": None, "variables": None, "refused": {**refused, "parameters": str(reason)}}
        settings["attributes"], writer.tensors = {}, {}
    tensors = safetensors.torch.save(writer.tensors)
    settings["sha256"] = hashlib.sha256(tensors).hexdigest()
    text = json.dumps(settings, allow_nan=False).encode()
    if len(text) <= MAX_SETTINGS:
        archive.writestr(SETTINGS, text)
        archive.writestr(TENSORS, tensors)


class _Pickled:
    """Stands for a value that SB3 cannot write as text; unpickled, it is the value itself."""

    __slots__ = ("_pickle",)

    def __init__(self, pickled: bytes):
        self._pickle = pickled

    def __reduce__(self) -> tuple[Any, ...]:
        return cloudpickle.loads, (self._pickle,)


def _savable(attributes: dict[str, Any]) -> dict[str, Any]:
    """
    :param attributes: values by name
    :return: those that can be saved, in a form from which SB3's ``load`` makes them again
    """
    savable, errors = {}, {}
    for name, value in attributes.items():
        try:
            savable[name] = value if _is_written_by_sb3(value) else _Pickled(cloudpickle.dumps(value))
        except Exception as reason:  # an object of the user's may raise anything
            errors[name] = reason
    for name, error in errors.items():
        warnings.warn(
            f"attribute {name!r} is not saved with the model, because it cannot be pickled ({type(error).__name__}: {error}); "
            f"a loaded model will not have it. save(..., exclude=[{name!r}]) leaves it out without a warning",
            stacklevel=4,
        )
    return savable


def _is_written_by_sb3(value: Any) -> bool:
    """Whether SB3 writes a value without an error and without turning the keys of dicts into strings."""
    try:
        if _has_other_keys(value):
            return False
        data_to_json({"value": value})
    except Exception:
        return False
    return True


def _has_other_keys(value: Any) -> bool:
    """Whether a dict, or one inside it, has keys that are no strings."""
    if isinstance(value, dict):
        return any(not isinstance(key, str) or _has_other_keys(part) for key, part in value.items())
    return isinstance(value, list | tuple) and any(_has_other_keys(part) for part in value)


def is_pickled(value: Any) -> bool:
    """:return: whether SB3 unpickles an attribute that stands so in the file"""
    return isinstance(value, dict) and ":serialized:" in value
