"""Zip files of models: loaded with errors that say what is wrong, or for their parameters only where they are not trusted."""

from __future__ import annotations

import io
import json
import pathlib
import pickle
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import IO, Any

import torch as th
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import json_to_data, open_path
from stable_baselines3.common.type_aliases import GymEnv

from sb3_erl.core.checks import env_ids_explained
from sb3_erl.core.registry import libraries_imported, nothing_imported
from sb3_erl.envs.packages import register_namespaces
from sb3_erl.runs.moved_modules import attributes_of_today, old_modules_found, renamed_parts, variables_of_own_learners
from sb3_erl.runs.overrides import Overrides, cause_of, check_names, deployed_as_said
from sb3_erl.runs.safe_files import (
    OF_THE_MACHINE,
    SETTINGS,
    TENSORS,
    ModelFileError,
    SafeContents,
    as_sb3_file,
    family,
    memory_limited,
    one_error,
    printable,
    read_safe,
    read_settings,
    system_info,
    unfit_attributes,
    with_variables,
)
from sb3_erl.runs.saving import is_pickled

VARIABLES = ("pytorch_variables", "tensors")
"""Members of an SB3 zip that hold single tensors, which ``set_parameters`` does not take."""
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError, ValueError, KeyError)
"""What Python's ``zipfile`` and ``json`` raise on damaged files."""

File = str | pathlib.Path | io.BufferedIOBase


def load_parameters(path: File, device: th.device | str = "cpu") -> dict[str, dict[str, Any]]:
    """
    Read the parameters of a saved model without running any code in the file, so that it need not be trusted.

    ``ALGOS[...].load`` unpickles what SB3 pickles, and so runs any code in a file; this reads the tensors only, with
    ``torch.load(weights_only=True)``. Construct the model yourself, with the settings that it was trained with, and give it
    the parameters: ``model.set_parameters(load_parameters("untrusted.zip"))``. Then ``predict`` acts as the saved model did.

    :param path: zip file of any SB3 model (``.zip`` may be left out), or open file
    :param device: where the tensors go
    :return: state dicts by name, as ``get_parameters`` gives them
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if the file is damaged, no model of SB3's, or holds anything but tensors and plain values
    """
    path = file_beside_folder(path)
    with opened(path, "zip") as file, _archive(file, path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".pth")]
        wanted = {name: name.removesuffix(".pth") for name in names if name.removesuffix(".pth") not in VARIABLES}
        found: dict[str, dict[str, Any]] = {}
        for member, name in wanted.items():
            try:
                found[name] = th.load(io.BytesIO(archive.read(member)), map_location=device, weights_only=True)
            except Exception as error:
                raise ValueError(
                    f"{named(path)} must hold tensors and plain values in {member}; it could not be read without running "
                    f"code that is in it, which was not done: {brief(error)}. Load it with load() only if you trust its author"
                ) from error
    return renamed_parts(found)


# -------------------------------------------------------------------- zip files of models


def load_model(
    cls: Any,
    sb3_load: Callable[..., Any],
    path: File,
    env: GymEnv | str | None,
    custom_objects: dict[str, Any] | None,
    trusted: bool,
    arguments: dict[str, Any],
    **kwargs: Any,
) -> Any:
    """
    See :meth:`~sb3_erl.engine.model.EvolvingModel.load`.

    :param cls: class of the model
    :param sb3_load: ``load`` of its SB3 base class
    :param path: file name or open file
    :param env: environment, its id, or ``None``
    :param custom_objects: attributes by name in place of those of the file
    :param trusted: whether pickles are read where there is nothing else
    :param arguments: further arguments of ``sb3_load``
    :param kwargs: attributes to change
    :return: the model
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if the file is damaged, or not a model of this class and version, or the id unknown
    :raises TypeError: if there is no such attribute to change
    """
    path = file_beside_folder(path)
    replaced = {**(custom_objects or {}), **kwargs}
    if trusted:
        data = check_model_file(path, family(cls))
        with opened(path, "zip") as file, one_error(named(path)), libraries_imported():
            contents, about = read_safe(file), system_info(file)
    else:
        contents = safe_contents(path, cls, replaced)
        data = dict(contents.attributes)
    check_names(cls, kwargs, data)
    register_namespaces(env)
    with env_ids_explained():
        env = None if env is None else maybe_make_env(env, verbose=0)
    plain = {} if contents is None else contents.attributes
    overrides = Overrides.of(kwargs, {**data, **plain}, env)
    arguments, explained = {**arguments, **overrides.attributes}, overrides.explained(named(path))
    if contents is not None and not trusted:
        with one_error(named(path)), memory_limited(contents), nothing_imported(), explained:
            given = [name for name in custom_objects or () if name in {**plain, **contents.refused}]
            source = as_sb3_file(replace(contents, variables={}), dict.fromkeys(given), {})
            model = sb3_load(source, env, custom_objects={**plain, **OF_THE_MACHINE, **replaced}, **arguments)
            return deployed_as_said(with_variables(model, contents), overrides)
    unread = {*overrides.attributes} - {"policy_kwargs", "observation_space", "action_space"}  # which SB3 looks at itself
    unread |= {"lr_schedule"} if "learning_rate" in unread else set()
    custom_objects = {**dict.fromkeys(name for name in unread if is_pickled(data.get(name))), **(custom_objects or {})}
    with misfits_explained(path, cls.__name__), old_modules_found(), explained:
        _say_unpickled(path, data, plain, replaced)
        if contents is None or not plain:
            file = with_names_of_today(path, data, kwargs.get("learner"))
            return deployed_as_said(sb3_load(file, env, custom_objects=custom_objects, **arguments), overrides)
        objects = {name: value for name, value in {**plain, **custom_objects}.items() if name in data}
        rest = {name: value for name, value in data.items() if name not in objects}
        source = as_sb3_file(contents, {**dict.fromkeys(objects), **rest}, about)
        return deployed_as_said(sb3_load(source, env, custom_objects=objects, **arguments), overrides)


def _say_unpickled(path: File, data: dict[str, Any], known: Collection[str], replaced: Collection[str]) -> None:
    """Print, where the model is not silent, which attributes are read by running what stands in a file."""
    pickled = [name for name, value in data.items() if is_pickled(value) and name not in known and name not in replaced]
    if pickled and isinstance(data.get("verbose"), int) and data["verbose"] >= 1:
        names = printable(", ".join(sorted(pickled)))
        print(f"{named(path)}: unpickled {names}, which runs what stands in them; load_safe() does not")


def safe_contents(path: File, cls: Any, replaced: dict[str, Any]) -> SafeContents:
    """
    :param path: of a file that is not trusted
    :param cls: class that is to be loaded
    :param replaced: attributes that the caller has values for
    :return: what it holds without pickles
    :raises FileNotFoundError: if there is no such file
    :raises ModelFileError: if that is not a whole model of the class
    """
    with opened(path, "zip") as file, one_error(named(path)):
        contents = read_safe(file)
    if contents is None:
        raise ModelFileError(
            f"{named(path)} must have the members {SETTINGS} and {TENSORS}, which this version writes; it has none, as files "
            "of earlier versions and of SB3. If you trust its author, load() it and save() it again; else take its networks "
            "with load_parameters()"
        )
    if contents.algorithm != family(cls):
        raise ModelFileError(
            f"{named(path)} must hold a saved {family(cls)}; it is a saved {contents.algorithm}. Use {contents.algorithm}.load"
        )
    refused = {name: reason for name, reason in contents.refused.items() if name not in {*replaced, *OF_THE_MACHINE}}
    if refused:
        raise ModelFileError(
            f"{named(path)} holds what only a pickle can: {'; '.join(refused.values())}. Give your own by name, as in "
            f"load_safe(path, custom_objects={{{next(iter(refused))!r}: ...}}), or load() the file if you trust its author"
        )
    policy = replaced["policy_class"] if "policy_class" in replaced else contents.attributes.get("policy_class")
    hidden = unfit_attributes(contents, cls)
    if hidden or not isinstance(policy, type) or not issubclass(policy, BasePolicy):
        raise ModelFileError(f"{named(path)} must hold a {family(cls)}; it has {hidden or policy} among its attributes")
    return contents


def saved_class(path: File, base: Any) -> Any:
    """
    :param path: of a file that is not trusted
    :param base: of all classes
    :return: the class of this package of which it holds a model
    :raises FileNotFoundError: if there is no such file
    :raises ModelFileError: if there is no such class
    """
    path = file_beside_folder(path)
    with opened(path, "zip") as file, one_error(named(path)), zipfile.ZipFile(file) as archive:
        settings = read_settings(archive)
    waiting, found = [base], {}
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if cls.__module__.startswith("sb3_erl."):
            found[cls.__name__] = cls
    name = base.__name__ if settings is None else settings.get("algorithm")
    if settings is not None and "own_class" in settings:
        own = str(settings["own_class"])[:80]
        raise ModelFileError(
            f"{named(path)} must hold a model of this package; it is one of {own}, a class of somebody's own. Use that class, "
            f"if you know it: {own.rpartition(':')[2]}.load(path, trusted=False)"
        )
    if not isinstance(name, str) or name not in found or (settings is not None and name == base.__name__):
        raise ModelFileError(f"{named(path)} must hold a model of this package; it says {str(name)[:80]!r}")
    return found[name]


def with_names_of_today(path: File, data: dict[str, Any], learner: Any = None) -> File:
    """
    :param path: of the zip file of a model
    :param data: its attributes, see :func:`check_model_file`
    :param learner: the learner that is to be loaded, ``None`` for that of the file
    :return: the file, or a copy in memory where it has names of an earlier version
    """
    attributes = attributes_of_today(data)
    member, kept = f"{VARIABLES[0]}.pth", {"learner": attributes.get("learner_class")}
    choice = json_to_data(json.dumps(kept))["learner"] if learner is None else learner  # a list with classes is a pickle
    with opened(path, "zip") as file, zipfile.ZipFile(file) as old:
        saved = old.read(member) if member in old.namelist() else b""
        tensors = th.load(io.BytesIO(saved), map_location="cpu", weights_only=True) if saved else None
        variables = None if tensors is None else variables_of_own_learners(renamed_parts(tensors), choice)
        if attributes.keys() == data.keys() and (tensors is None or tensors.keys() == variables.keys()):  # type: ignore[union-attr]
            return path
        copy, stream = io.BytesIO(), io.BytesIO()
        th.save(variables, stream)
        changed = {"data": json.dumps(attributes).encode(), member: stream.getvalue()}
        with zipfile.ZipFile(copy, "w") as new:
            for name in old.namelist():
                new.writestr(name, changed.get(name) or old.read(name))
    copy.seek(0)
    return copy


def file_beside_folder(path: File) -> File:
    """
    Find the model's file ``<name>.zip`` beside the folder ``<name>`` in which rl_zoo3 keeps its settings.

    :param path: what ``load`` was given
    :return: the file, where ``path`` is a folder
    :raises ValueError: if there is no such file
    """
    if not isinstance(path, str | pathlib.Path) or not pathlib.Path(path).is_dir():
        return path
    file = pathlib.Path(f"{path}.zip")
    if not file.is_file():
        raise ValueError(
            f"{named(path)} must be a zip file that save() wrote; it is a folder. Give the name of a file in it, or go on "
            "with a folder of checkpoints by resume_from"
        )
    return file


def check_model_file(path: File, algorithm: str) -> dict[str, Any]:
    """
    :param path: what ``load`` was given; an open file is left where it was
    :param algorithm: class that is to be loaded
    :return: the saved attributes by name, those that are pickled as they are
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if it is damaged, or not a model of SB3, of this package, or of this class
    """
    with opened(path, "zip") as file, _archive(file, path) as archive:
        try:
            data = json.loads(archive.read("data").decode())
        except (UnicodeDecodeError, ValueError) as error:
            raise ValueError(f"{named(path)} must hold a model of SB3's, but its settings cannot be read: {error}") from error
    if not isinstance(data, dict) or "run_seed" not in data:
        raise ValueError(
            f"{named(path)} must hold a model that sb3_erl saved; it is one of another package. Load it with the class that "
            "saved it, or take its networks with sb3_erl.load_parameters"
        )
    saved = data.get("algorithm", algorithm)  # not in files of the first versions
    if saved != algorithm:
        raise ValueError(f"{named(path)} must hold a saved {algorithm}; it is a saved {saved}. Use {saved}.load")
    return data


@contextmanager
def misfits_explained(path: File, algorithm: str) -> Iterator[None]:
    """
    Turn errors of SB3's ``load`` about files that do not fit into one with the file's name.

    :param path: of the file
    :param algorithm: name of the class
    :raises ValueError: if the file does not fit the class
    """
    try:
        yield
    except (AttributeError, AssertionError, KeyError, IndexError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        if isinstance(error, ValueError):
            raise
        raise ValueError(
            f"{named(path)} does not fit a {algorithm} of this version: {brief(cause_of(error))}. It may come from another "
            "version of sb3_erl, SB3 or PyTorch (system_info.txt in the file says which), or have been loaded with arguments "
            "that change its networks; load it where it was saved, or make a new model"
        ) from error


@contextmanager
def _archive(file: IO[bytes], path: File) -> Iterator[zipfile.ZipFile]:
    """Open a zip file; a ValueError says if its checksums are wrong or SB3 did not make it."""
    try:
        archive = zipfile.ZipFile(file)
        damaged = archive.testzip()
    except BROKEN as error:
        raise ValueError(f"{named(path)} must be a zip file that save() wrote; it is damaged or none: {error}") from error
    if damaged is not None:
        raise ValueError(f"{named(path)} is damaged: the checksum of {damaged} is wrong. Use an earlier save or copy it again")
    with archive:
        missing = [name for name in ("data", "policy.pth") if name not in archive.namelist()]
        if missing:
            raise ValueError(f"{named(path)} must hold a model that SB3's save() wrote; it has no {' and no '.join(missing)}")
        yield archive


@contextmanager
def opened(path: File, suffix: str) -> Iterator[Any]:
    if not isinstance(path, str | pathlib.Path):
        position = path.tell()
        try:
            yield path
        finally:
            path.seek(position)
        return
    with open_path(path, "r", verbose=0, suffix=suffix) as file:
        yield file


def named(path: File) -> str:
    return f"path={str(path)!r}" if isinstance(path, str | pathlib.Path) else f"path={path!r}"


def brief(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
