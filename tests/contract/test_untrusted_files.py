"""Untrusted files: their parameters are read, and no code in them is run."""

from __future__ import annotations

import base64
import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import TD3
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_erl import ALGOS, load_parameters, load_safe
from tests.contract.helpers import differences, tensors
from tests.contract.settings import ALL, make, variants
from tests.envs import toy_vec_env

OBSERVATIONS = np.random.default_rng(1).uniform(-1, 1, (6, 3)).astype(np.float32)
OWN_CODE = {"policy_class", "lr_schedule", "train_freq", "observation_space", "action_space"}
RUN_TIME = {"_last_obs", "_last_original_obs", "_last_episode_starts", "ep_info_buffer", "ep_success_buffer"}
"""What SB3 pickles of every off-policy model; nothing of ours is added to it."""


class Malice:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "executed")


def rewritten(source: Path, target: Path, **members: bytes) -> Path:
    """A copy of a zip file with other contents of some members, and checksums that fit."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, members.get(name.removesuffix(".pth"), old.read(name)))
    return target


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make("openai_es").learn(60).save(tmp_path / "model.zip")
    return tmp_path / "model.zip"


@pytest.mark.parametrize(("name", "extra"), variants())
def test_a_model_with_loaded_parameters_acts_as_the_saved_one(name: str, extra: dict[str, Any], tmp_path: Path) -> None:
    model = make(name, **extra).learn(90)
    model.save(tmp_path / "model")
    fresh = make(name, **{**extra, "seed": 99})
    expected = model.predict(OBSERVATIONS, deterministic=True)[0]
    assert not np.array_equal(fresh.predict(OBSERVATIONS, deterministic=True)[0], expected)
    fresh.set_parameters(load_parameters(tmp_path / "model"))
    assert np.array_equal(fresh.predict(OBSERVATIONS, deterministic=True)[0], expected)
    assert differences(tensors(model), tensors(fresh)) == []


@pytest.mark.parametrize("name", ALL)
def test_nothing_of_ours_is_pickled(name: str, tmp_path: Path) -> None:
    make(name).learn(90).save(tmp_path / "model")
    data = json.loads(zipfile.ZipFile(tmp_path / "model.zip").read("data"))
    pickled = {key for key, value in data.items() if isinstance(value, dict) and ":serialized:" in value}
    assert pickled <= OWN_CODE | RUN_TIME


def test_settings_that_would_run_code(saved: Path, tmp_path: Path) -> None:
    """SB3's own reader runs them, which shows that the file is malicious; ours reads the same settings without pickles."""
    flag = tmp_path / "flag"
    data = json.loads(zipfile.ZipFile(saved).read("data"))
    data["lr_schedule"] = {":type:": "x", ":serialized:": base64.b64encode(pickle.dumps(Malice(flag))).decode()}
    bad = rewritten(saved, tmp_path / "bad.zip", data=json.dumps(data).encode())
    parameters = load_parameters(bad)
    assert not flag.exists() and set(parameters) == {"policy", "evolver"}
    for trusted in (False, True):
        ALGOS["openai_es"].load(bad, trusted=trusted)
    assert load_safe(bad).lr_schedule(1.0) == ALGOS["openai_es"].load(saved).lr_schedule(1.0) and not flag.exists()
    load_from_zip_file(bad)
    assert flag.exists()


@pytest.mark.parametrize("style", ["torch", "pickle"])
@pytest.mark.parametrize("member", ["policy", "evolver"])
def test_parameters_that_would_run_code(member: str, style: str, saved: Path, tmp_path: Path) -> None:
    flag, file = tmp_path / "flag", io.BytesIO()
    if style == "torch":
        th.save({"weight": Malice(flag)}, file)
    else:
        pickle.dump(Malice(flag), file)
    bad = rewritten(saved, tmp_path / "bad.zip", **{member: file.getvalue()})
    with pytest.raises(ValueError, match=rf"bad\.zip.*must hold tensors and plain values in {member}\.pth.*was not done"):
        load_parameters(bad)
    with pytest.raises(Exception, match="Weights only load failed"):
        load_from_zip_file(bad)
    for trusted in (False, True):  # the tensors stand in another member, too
        loaded = ALGOS["openai_es"].load(bad, trusted=trusted)
        assert differences(tensors(loaded), tensors(ALGOS["openai_es"].load(saved))) == []
    assert not flag.exists()
    th.load(io.BytesIO(file.getvalue()), weights_only=False) if style == "torch" else pickle.loads(file.getvalue())
    assert flag.read_text() == "executed", "it would have run"


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_parameters(tmp_path / "nothing.zip")
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.zip.*damaged or none"):
        load_parameters(tmp_path / "text.zip")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(ValueError, match=r"empty\.zip.*has no data and no policy\.pth"):
        load_parameters(tmp_path / "empty.zip")
    TD3("MlpPolicy", toy_vec_env(), **{"policy_kwargs": {"net_arch": [4]}, "buffer_size": 10}).save(tmp_path / "td3")
    assert {"policy", "actor.optimizer"} <= set(load_parameters(str(tmp_path / "td3")))


def test_the_archive_of_an_older_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first versions pickled it with the model."""
    cls, model = ALGOS["nsra_es"], make("nsra_es").learn(150)
    assert len(model.archive) > 0
    model.save(tmp_path / "new")
    assert model.archive_state is None and model.weight_state == {}
    with monkeypatch.context() as patch:
        patch.setattr(cls, "_plain_state", lambda self: {"archive": self.archive, "weight": self.weight})
        model.save(tmp_path / "old", exclude=["algorithm"])
    for name in ("old", "new"):
        loaded = cls.load(tmp_path / name, env=toy_vec_env())
        assert [entry.tolist() for entry in loaded.archive.entries] == [entry.tolist() for entry in model.archive.entries]
        assert vars(loaded.weight) == vars(model.weight) and loaded.archive.n_added == model.archive.n_added


def test_open_files_are_left_where_they_were(saved: Path) -> None:
    with saved.open("rb") as file:
        assert set(load_parameters(file)) == {"policy", "evolver"}
        assert file.tell() == 0
