"""
Files of version 0.1.0, in which most modules had other names, are read.

``version_0.1.0.tar.xz`` holds tiny models, replay buffers and a checkpoint that that version saved, and the actions that it
predicted (``expected.json``).
"""

from __future__ import annotations

import io
import json
import pickle
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import SAC

import sb3_erl
from sb3_erl import ALGOS, GenerationCheckpoint, load_parameters
from sb3_erl.buffers.lap import LAPReplayBuffer
from sb3_erl.envs.behavior import FinalObservation
from sb3_erl.learners.sac import SACLearner
from sb3_erl.remote.process import ProcessEvaluator
from sb3_erl.runs.moved_modules import MOVED, MOVED_CLASSES, old_modules_found, renamed_tensors, variables_of_own_learners
from tests.contract.helpers import differences, snapshot, tensors
from tests.envs import toy_vec_env

ARCHIVE = Path(__file__).parent / "old_files" / "version_0.1.0.tar.xz"
OBSERVATIONS = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
CLASSES = {cls.__name__: cls for cls in ALGOS.values()}
with tarfile.open(ARCHIVE) as _archive:
    _expected = _archive.extractfile("expected.json")
    assert _expected is not None
    EXPECTED: dict[str, dict[str, Any]] = json.load(_expected)
MODELS = [label for label in EXPECTED if label != "checkpoints"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("old_files")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(path, filter="data")
    return path


def load(label: str, folder: Path, **arguments: Any) -> Any:
    return CLASSES[EXPECTED[label]["class"]].load(folder / label, device="cpu", **arguments)


def check_actions(actions: np.ndarray, expected: dict[str, Any]) -> None:
    """Actions are those that were recorded, but for the rounding of the processor, which was another one."""
    np.testing.assert_allclose(actions, np.array(expected["actions"], dtype=np.float32), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("label", MODELS)
def test_a_model_predicts_the_same_and_goes_on(label: str, folder: Path, tmp_path: Path) -> None:
    model = load(label, folder, env=toy_vec_env())
    expected = EXPECTED[label]
    assert model.num_timesteps == expected["n"]
    actions, _ = model.predict(OBSERVATIONS, deterministic=True)
    check_actions(actions, expected)
    model.save(tmp_path / "model")
    again = type(model).load(tmp_path / "model", env=toy_vec_env(), device="cpu")
    assert differences(snapshot(model), snapshot(again)) == []
    assert differences(snapshot(model), snapshot(pickle.loads(pickle.dumps(model)))) == []
    model.evaluator = "vec"
    assert model.learn(30, reset_num_timesteps=False).num_timesteps >= expected["n"] + 30


def test_parts_that_a_file_names_are_those_of_today(folder: Path) -> None:
    assert type(load("erl_processes", folder).evaluator) is ProcessEvaluator
    assert load("ns_class", folder).behavior is FinalObservation
    members = load("pop_td7", folder).members
    assert [member.number for member in members] == [0, 1, 2] and sum(member.own_updates for member in members) > 0


def test_a_learner_that_was_a_class_of_sb3_goes_on(folder: Path) -> None:
    """``"sac"`` is a learner of this package now; its optimizers and its entropy coefficient have other names in the file."""
    model = load("erl_sac", folder, env=toy_vec_env())
    assert type(model.learner) is SACLearner
    with zipfile.ZipFile(folder / "erl_sac.zip") as file:
        saved = torch.load(io.BytesIO(file.read("pytorch_variables.pth")), weights_only=True)
        optimizer = next(name for name in file.namelist() if name.endswith("model.ent_coef_optimizer.pth"))
        state = torch.load(io.BytesIO(file.read(optimizer)), weights_only=True)["state"][0]
    (log_ent_coef,) = saved.values()
    assert torch.equal(model.learner.log_ent_coef.detach(), log_ent_coef.detach()) and log_ent_coef.item() != 0
    for name, tensor in model.learner.ent_coef_optimizer.state_dict()["state"][0].items():
        assert torch.equal(tensor, state[name]) and tensor.item() != 0, name
    with pytest.raises(ValueError, match="was saved with learner='sac' and does not fit a model with learner="):
        load("erl_sac", folder, learner="td3")


@pytest.mark.parametrize("choice", [["td3", "sac"], ["sac", SAC]])
def test_names_in_a_portfolio_of_such_learners(choice: list[Any]) -> None:
    variables = {"learner.learner_0.model.log_ent_coef": 0, "learner.learner_1.model.ent_coef_tensor": 1}
    found = variables_of_own_learners(variables, choice)
    is_own = [each == "sac" for each in choice]
    assert found.get("learner.learner_0.log_ent_coef") == (0 if is_own[0] else None)
    assert ("learner.learner_1.model.ent_coef_tensor" in found) == (not is_own[1])
    now = {"learner.learner_1.policy.actor.optimizer": {}, "learner.learner_1.ent_coef_optimizer": {}}
    old = {"learner.learner_1.model.actor.optimizer": {"a": 1}, "learner.learner_1.model.ent_coef_optimizer": {"b": 1}}
    assert renamed_tensors(old, now) == dict(zip(now, old.values(), strict=True))
    assert renamed_tensors(old, old) == old, "those of a class of SB3 stay as they are"


@pytest.mark.parametrize("label", ["erl", "erl_sac"])
def test_parameters_alone(label: str, folder: Path) -> None:
    """Also by ``set_parameters`` on a model of today."""
    old = load(label, folder)
    for given in (load_parameters(folder / label), str(folder / f"{label}.zip")):
        fresh = type(old)("MlpPolicy", toy_vec_env(), learner=old.learner_class, policy_kwargs=old.policy_kwargs, pop_size=3)
        fresh.set_parameters(given)
        assert differences(tensors(old), tensors(fresh)) == []


def test_arguments_of_a_constructor_can_be_changed(folder: Path) -> None:
    with pytest.raises(ValueError, match="was saved with learner='sac' and does not fit a model with learner="):
        load("erl_sac", folder, learner="ddpg")
    assert load("erl", folder, learner="ddpg").learner_class == "ddpg"


@pytest.mark.parametrize("label", ["erl", "pderl", "td7", "pop_td7"])
def test_a_replay_buffer(label: str, folder: Path) -> None:
    model = load(label, folder, env=toy_vec_env())
    model.load_replay_buffer(folder / label)
    assert model.replay_buffer.size() == 40, "it is full"
    if label.endswith("td7"):
        assert type(model.replay_buffer) is LAPReplayBuffer
    before = model._n_updates
    model.learn(60, reset_num_timesteps=False)
    assert model._n_updates > before


def test_a_run_goes_on_from_its_checkpoint(folder: Path, tmp_path: Path) -> None:
    model = ALGOS["td7"].resume_from(folder / "checkpoints", device="cpu")
    assert model.env is not None and model.env.get_attr("g") == [8.0] and model.get_vec_normalize_env() is not None
    actions, _ = model.predict(OBSERVATIONS, deterministic=True)
    check_actions(actions, EXPECTED["checkpoints"])
    with pytest.warns(UserWarning, match="total_timesteps was 60"):
        model.learn(90, GenerationCheckpoint(20, tmp_path))
    assert model.num_timesteps == 90


def test_old_modules_are_there_inside_only(folder: Path) -> None:
    stored = b"csb3_erl.common.policies\nERLPolicy\n."
    for _ in range(2):
        with old_modules_found():
            assert pickle.loads(stored) is sb3_erl.policies.erl.ERLPolicy
        assert not [name for name in sys.modules if name.startswith(("sb3_erl.common", "sb3_erl.evaluation"))]
        assert not hasattr(sb3_erl, "common")
        with pytest.raises(ModuleNotFoundError):
            pickle.loads(stored)


def test_a_class_that_is_gone_is_named() -> None:
    with old_modules_found(), pytest.raises(AttributeError, match="NoSuchPolicy"):
        pickle.loads(b"csb3_erl.common.policies\nNoSuchPolicy\n.")


def test_every_module_in_the_table_has_a_place() -> None:
    root = Path(sb3_erl.__file__).parent
    for old, candidates in {**MOVED, **MOVED_CLASSES}.items():
        assert all((root / f"{new.replace('.', '/')}.py").is_file() for new in candidates), old
        assert old in MOVED_CLASSES or not (root / f"{old.replace('.', '/')}.py").is_file(), old
