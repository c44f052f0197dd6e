"""``load_safe``: the same model as ``load`` gives, from the part of a file that holds no pickles; anything else is refused."""

from __future__ import annotations

import io
import json
import math
import pickle
import sys
import zipfile
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.utils import LinearSchedule

from sb3_erl import ALGOS, ERL, OpenAIES, Reseed, every, load_safe
from sb3_erl.core import safe_values
from sb3_erl.core.safe_names import LimitedMemory, allowed_class, is_allowed_text
from sb3_erl.core.safe_values import NotPlain, Reader, Writer
from sb3_erl.runs.safe_files import SETTINGS, TENSORS, ModelFileError
from sb3_erl.zoo import info
from tests.contract.helpers import differences, snapshot, tensors
from tests.contract.settings import NAMES, make, toy_actions, variants
from tests.envs import toy_vec_env

OBSERVATIONS = np.random.default_rng(2).uniform(-1, 1, (6, 3)).astype(np.float32)


def env_for(name: str) -> Any:
    return toy_vec_env(**toy_actions(name))


def bytes_of(model: Any, **kwargs: Any) -> io.BytesIO:
    file = io.BytesIO()
    model.save(file, **kwargs)
    file.seek(0)
    return file


def edited(file: io.BytesIO, change: Callable[[dict[str, Any]], None]) -> io.BytesIO:
    """A copy in which the JSON is changed, with all checksums right, as the author of a malicious file would make it."""
    copy = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(copy, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            if info.filename == SETTINGS:
                settings = json.loads(data)
                change(settings)
                data = json.dumps(settings).encode()
            new.writestr(info.filename, data)
    copy.seek(0)
    return copy


@pytest.fixture
def no_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything that unpickles what SB3 pickled fails."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a pickle was read")

    for module in (pickle, sys.modules["cloudpickle"]):
        monkeypatch.setattr(module, "loads", refuse)


@pytest.mark.parametrize(("name", "extra"), variants())
def test_a_model_that_is_loaded_without_pickles_goes_on_as_one_that_is_loaded(name: str, extra: dict[str, Any]) -> None:
    model = make(name, **extra).learn(90)
    file = bytes_of(model)
    loaded = ALGOS[name].load(file, env=env_for(name))
    file.seek(0)
    safe = load_safe(file, env=env_for(name))
    assert type(safe) is ALGOS[name]
    assert differences(tensors(model), tensors(safe)) == []
    assert np.array_equal(
        safe.predict(OBSERVATIONS, deterministic=True)[0], model.predict(OBSERVATIONS, deterministic=True)[0]
    )
    for other in (loaded, safe):
        other.learn(60, reset_num_timesteps=False)
    assert differences(snapshot(loaded), snapshot(safe)) == []


@pytest.mark.usefixtures("no_pickles")
@pytest.mark.parametrize("name", NAMES)
def test_no_pickle_is_read(name: str) -> None:
    """Neither without trust nor, where everything has another form, with it."""
    file = bytes_of(make(name))
    for trusted in (False, True):
        assert ALGOS[name].load(file, env=env_for(name), trusted=trusted).num_timesteps == 0
        file.seek(0)


@pytest.mark.parametrize("name", NAMES)
def test_sb3_reads_the_file(name: str) -> None:
    model = make(name).learn(40)
    data, parameters, _ = load_from_zip_file(bytes_of(model))
    assert data is not None and data["num_timesteps"] == model.num_timesteps
    assert differences(tensors(model), tensors(_Parameters(parameters))) == []


class _Parameters:
    def __init__(self, parameters: Any):
        self.get_parameters = lambda: parameters


def test_what_only_a_pickle_can_hold_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A user's schedule and a user's part: the error names both, and each can be given."""
    model = make("erl", learning_rate=lambda left: 0.001 * left, fitness=_own_fitness, verbose=1)
    model.save(tmp_path / "model")
    with pytest.raises(
        ModelFileError, match=r"fitness_class: the function .*_own_fitness; learning_rate: the function .*lambda"
    ):
        load_safe(tmp_path / "model")
    capsys.readouterr()
    ERL.load(tmp_path / "model")
    said = capsys.readouterr().out
    assert "unpickled fitness_class, learning_rate, lr_schedule" in said and "policy_class" not in said
    given = {"learning_rate": 0.001, "lr_schedule": None, "fitness_class": "return"}
    assert load_safe(tmp_path / "model", custom_objects=given).learning_rate == 0.001


def _own_fitness(episodes: Any) -> Any:
    return episodes.returns


def test_files_without_such_a_part(tmp_path: Path) -> None:
    """Those of SB3 and of earlier versions."""
    SAC("MlpPolicy", toy_vec_env(), **{"policy_kwargs": {"net_arch": [4]}, "buffer_size": 10}).save(tmp_path / "sac")
    with pytest.raises(ModelFileError, match=r"must have the members safe\.json"):
        load_safe(tmp_path / "sac")
    with pytest.raises(ModelFileError, match=r"must have the members safe\.json"):
        ERL.load(tmp_path / "sac", trusted=False)
    with pytest.raises(FileNotFoundError):
        load_safe(tmp_path / "nothing")
    make("cem").save(tmp_path / "cem")
    with pytest.raises(ModelFileError, match=r"saved ERL; it is a saved CEM\. Use CEM\.load"):
        ERL.load(tmp_path / "cem", trusted=False)


def test_arguments_that_are_not_numbers() -> None:
    """Classes of PyTorch, schedules and noise of SB3, and steps of a generation of this package."""
    model = make(
        "erl",
        learning_rate=LinearSchedule(1e-3, 1e-4, 0.5),
        action_noise=NormalActionNoise(np.zeros(2), 0.2 * np.ones(2)),
        generation_steps=[every(2, Reseed(std=0.2))],
        policy_kwargs={"net_arch": [8], "activation_fn": th.nn.ELU, "optimizer_class": th.optim.RMSprop},
    ).learn(60)
    safe = load_safe(bytes_of(model), env=toy_vec_env())
    assert safe.learning_rate(0.75) == model.learning_rate(0.75) and safe.generation_steps == model.generation_steps
    assert safe.policy_kwargs == model.policy_kwargs and np.array_equal(safe.action_noise._sigma, model.action_noise._sigma)
    assert isinstance(safe.policy.actor.optimizer, th.optim.RMSprop)


def test_a_file_chooses_no_place_to_write_to(tmp_path: Path) -> None:
    model = make("openai_es", tensorboard_log=str(tmp_path / "logs"))
    file = bytes_of(model)
    assert load_safe(file).tensorboard_log is None
    file.seek(0)
    assert OpenAIES.load(file).tensorboard_log == str(tmp_path / "logs")


HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a part of another module": lambda s: s["attributes"].update(evolver_class="antigravity:fly"),
    "a loaded function": lambda s: s["attributes"].update(evolver_class="os:system"),
    "an environment of a module": lambda s: s["attributes"].update(policy_class="antigravity:Env-v0"),
    "an environment's id": lambda s: s["attributes"].update(policy_class="CartPole-v1"),
    "a class that is no model's": lambda s: s["attributes"].update(evolver_class={"class": "subprocess:Popen"}),
    "workers as a part": lambda s: s["attributes"].update(evolver_class={"class": "sb3_erl.remote.process:ProcessEvaluator"}),
    "an environment": lambda s: s["attributes"].update(env="CartPole-v1"),
    "a method": lambda s: s["attributes"].update(predict=1),
    "a name of Python's": lambda s: s["attributes"].update(__class__=1),
    "an object": lambda s: s["attributes"].update(policy_kwargs={"object": ["os:_wrap_close", {}]}),
    "wide networks": lambda s: s["attributes"].update(policy_kwargs={"dict": {"net_arch": [1_000_000, 1_000_000]}}),
    "many individuals": lambda s: s["attributes"].update(pop_size=10**12),
    "another number": lambda s: s.update(format=2),
    "no parameters": lambda s: s["parameters"].clear(),
    "a tensor twice": lambda s: s["attributes"].update(a={"tensor": "0"}, b={"tensor": "0"}),
    "an unknown class": lambda s: s.update(algorithm="Popen"),
    "a class that is a dict": lambda s: s.update(algorithm={}),
    "no class": lambda s: s.update(algorithm="EvolvingModel"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_settings(what: str) -> None:
    before = set(sys.modules)
    bad = edited(bytes_of(make("erl")), HOSTILE[what])
    with pytest.raises(ModelFileError):
        load_safe(bad)
    assert "antigravity" not in set(sys.modules) - before


@pytest.mark.parametrize(("name", "pop_size"), [("cem", 150_000), ("cem_rl", 10**6), ("esac", 10**6), ("deep_ga", 10**8)])
def test_many_individuals_are_refused_before_their_memory_is_taken(name: str, pop_size: int) -> None:
    """The size follows from a tensor that is expanded, cloned, or repeated, and not from the arguments of the operation."""
    file = bytes_of(make(name, **({"policy_kwargs": {"net_arch": [64, 64]}} if name == "cem" else {})))
    largest = 0

    class Watch(th.utils._python_dispatch.TorchDispatchMode):
        """Inside of the limit, so that it sees what is really done."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, th.Tensor):
                largest = max(largest, result.untyped_storage().nbytes())
            return result

    with Watch(), pytest.raises(ModelFileError, match=r"describes networks that take more than \d+ MiB"):
        load_safe(edited(file, lambda settings: settings["attributes"].update(pop_size=pop_size)))
    assert largest < 200 << 20


OPERATIONS: dict[str, Callable[[th.Tensor], Any]] = {
    "clone": lambda row: row.expand(1000, -1).clone(),
    "contiguous": lambda row: row.expand(1000, -1).contiguous(),
    "repeat": lambda row: row.repeat(1000, 1),
    "cat": lambda row: th.cat([row] * 1000),
    "stack": lambda row: th.stack([row] * 1000),
    "arange": lambda row: th.arange(100_000),
    "eye": lambda row: th.eye(400),
    "full": lambda row: th.full((1000, 100), 1.0),
    "a product": lambda row: row.expand(1000, -1) * 2,
    "an outer product": lambda row: row[:, None].expand(-1, 1000) * th.ones(1000),
    "a matrix product": lambda row: row.expand(1000, -1)[:, :1] @ row[None],
    "another type": lambda row: row.expand(1000, -1).double(),
    "random numbers": lambda row: th.randperm(100_000),
    "rows": lambda row: row[None][th.zeros(1, dtype=th.long).expand(1000)],
    "repeated elements": lambda row: row.repeat_interleave(1000),
    "a resized tensor": lambda row: th.empty(0).resize_(1000, 100),
    "a diagonal": lambda row: th.diag_embed(row.repeat(10)),
    "zeros like it": lambda row: th.zeros_like(row.expand(1000, -1)),
    "another size": lambda row: row.new_zeros(1000, 100),
}


@pytest.mark.parametrize("what", OPERATIONS)
def test_operations_count_for_what_they_make(what: str) -> None:
    class Refused(Exception): ...

    row, done = th.ones(100), []
    OPERATIONS[what](row)

    class Watch(th.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            done.append(func(*args, **(kwargs or {})))
            return done[-1]

    with Watch(), pytest.raises(Refused), LimitedMemory(300_000, Refused):
        OPERATIONS[what](row)
    assert all(result.untyped_storage().nbytes() < 300_000 for result in done if isinstance(result, th.Tensor))
    with LimitedMemory(8 << 20, Refused):
        OPERATIONS[what](row)
    many = LimitedMemory(100 << 10, Refused)
    with pytest.raises(Refused), many:
        for _ in range(30):
            row.mul_(1)


@pytest.mark.parametrize("member", [SETTINGS, TENSORS])
def test_members_of_another_model(member: str) -> None:
    """The checksums of the zip file are right."""
    ours, theirs, mixed = bytes_of(make("erl")), bytes_of(make("erl", seed=7)), io.BytesIO()
    with zipfile.ZipFile(ours) as first, zipfile.ZipFile(theirs) as second, zipfile.ZipFile(mixed, "w") as new:
        for name in first.namelist():
            new.writestr(name, (second if name == member else first).read(name))
    with pytest.raises(ModelFileError, match="is not the one"):
        load_safe(mixed)


def test_compressed_and_doubled_members() -> None:
    file = bytes_of(make("cem"))
    packed, doubled = io.BytesIO(), io.BytesIO(file.getvalue())
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(ModelFileError, match="compressed"):
        load_safe(packed)
    with zipfile.ZipFile(doubled, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(SETTINGS, "{}")
    with pytest.raises(ModelFileError, match="two members"):
        load_safe(doubled)


def sampled(space: spaces.Space[Any]) -> spaces.Space[Any]:
    space.seed(3)
    space.sample()
    return space


VALUES: dict[str, Any] = {
    "numbers": [1, True, None, 1.5, 10**30],
    "no finite numbers": (math.inf, -math.inf),
    "texts": ["a", "x" * 5000, "ä:ö", "td3", "http://x"],
    "dicts": {"a": {1: (2, b"3")}, "b": OrderedDict([("c", deque([1, 2], maxlen=3))]), "empty": b""},
    "arrays": [
        np.arange(6, dtype=np.uint16).reshape(2, 3),
        np.array(2.5),
        np.float32(1.5),
        np.zeros((0, 2)),
        np.array([True]),
    ],
    "classes": [th.nn.Tanh, th.optim.Adam, SAC, ERL],
}
SPACES: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(np.array([-1, -np.inf], np.float32), np.array([1, np.inf], np.float32)),
    "image": spaces.Box(0, 255, (4, 4, 1), np.uint8),
    "discrete": spaces.Discrete(4, start=-1),
    "multi": spaces.MultiDiscrete([2, 3]),
    "binary": spaces.MultiBinary(3),
    "grid": spaces.MultiBinary([2, 3]),
    "dict": spaces.Dict({"b": spaces.Discrete(2), "a": spaces.Box(0, 1, (2,))}),
}


@pytest.mark.parametrize("kind", VALUES)
def test_values_come_back(kind: str) -> None:
    writer = Writer()
    text = json.dumps(writer.write(VALUES[kind], kind), allow_nan=False)
    found = Reader(writer.tensors).read(json.loads(text))
    assert repr(found) == repr(VALUES[kind]) and type(found) is type(VALUES[kind])


@pytest.mark.parametrize("kind", SPACES)
def test_spaces_come_back_with_their_generator(kind: str) -> None:
    writer, space = Writer(), sampled(SPACES[kind])
    found = Reader(writer.tensors).read(json.loads(json.dumps(writer.write(space, kind))))
    assert found == space and type(found) is type(space) and found.dtype == space.dtype
    for _ in range(3):
        assert repr(found.sample()) == repr(space.sample())


@pytest.mark.parametrize(
    "value", [print, object(), np.array([None]), lambda: 0, Path, {(1, 2): 3}, "os:system", th.zeros(1).to_sparse()]
)
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(NotPlain, match=r"^what: "):
        Writer().write(value, "what")


def test_names_of_code() -> None:
    assert allowed_class("sb3_erl.evolution.ga:GA") is not None
    for name in (
        "os:system",
        "sb3_erl.remote.process:ProcessEvaluator",
        "sb3_erl.runs.saving:_Pickled",
        "torch.nn:os",
        "torch:load",
    ):
        assert allowed_class(name) is None and not is_allowed_text(name)
    assert allowed_class(f"{safe_values.__name__}:os") is None
    assert is_allowed_text("sb3_erl.learners.sac:SACLearner") and is_allowed_text("sum of: things")


@pytest.mark.usefixtures("no_pickles")
def test_info_reads_headers(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """``sb3-erl info``: the class, steps, spaces and versions; the tensors are not looked at."""
    monkeypatch.setattr("safetensors.torch.load", None)
    make("erl").learn(40).save(tmp_path / "model")
    info.main([str(tmp_path / "model")])
    said = capsys.readouterr().out
    for text in ("ERL", "ERLPolicy", "Box", "load_safe reads it", "actor.optimizer", "PyTorch"):
        assert text in said
    SAC("MlpPolicy", toy_vec_env(), **{"policy_kwargs": {"net_arch": [4]}, "buffer_size": 10}).save(tmp_path / "sac")
    info.main([str(tmp_path / "sac.zip")])
    assert "load_safe does not read this file" in capsys.readouterr().out
    (tmp_path / "text.zip").write_text("hello")
    for name in ("text.zip", "nothing"):
        with pytest.raises(SystemExit):
            info.main([str(tmp_path / name)])
        assert name in capsys.readouterr().err
