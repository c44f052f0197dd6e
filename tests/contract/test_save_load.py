"""One zip holds everything but transitions and comes back whole, here and in another process."""

from __future__ import annotations

import io
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.vec_env import VecNormalize

from sb3_erl import ALGOS, GenerationCheckpoint, load_parameters
from tests.contract.helpers import differences, snapshot, tensors, transitions
from tests.contract.settings import ALL, HYBRIDS, NAMES, ONE_OF_EACH_FAMILY, having, make, pop_size, variants
from tests.envs import ToyEnv, toy_vec_env
from tests.warm import WarmPython

OBSERVATIONS = np.random.default_rng(0).uniform(-1, 1, (6, 3)).astype(np.float32)

PREDICT = """
import json, sys
import numpy as np
from {module} import {cls}
model = {cls}.load(sys.argv[1], device="cpu")
actions, _ = model.predict(np.array(json.loads(sys.argv[2]), dtype=np.float32), deterministic=True)
print(json.dumps([actions.tolist(), model.num_timesteps, model._episode_num]))
"""


@pytest.mark.parametrize(("name", "extra"), variants())
def test_every_tensor_and_counter_comes_back(name: str, extra: dict[str, Any], tmp_path: Path) -> None:
    model = make(name, **extra).learn(120)
    model.save(tmp_path / "model")
    loaded = ALGOS[name].load(tmp_path / "model", env=toy_vec_env())
    ours, theirs = snapshot(model), snapshot(loaded)
    stored = {key for key in ours if key.startswith("replay_buffer.")}
    assert stored <= set(differences(ours, theirs)), "the buffer has a file of its own"
    assert set(differences(ours, theirs)) == stored
    expected = model.predict(OBSERVATIONS, deterministic=True)[0]
    assert np.array_equal(loaded.predict(OBSERVATIONS, deterministic=True)[0], expected)


@pytest.fixture(scope="module")
def python() -> Iterator[WarmPython]:
    """An interpreter that has imported this package and made no model."""
    warm = WarmPython(sys.executable, ("torch._dynamo", "sb3_erl"), {**os.environ, "OMP_NUM_THREADS": "1"})
    yield warm
    warm.close()


@pytest.mark.parametrize("name", NAMES)
def test_another_process_predicts_the_same(name: str, python: WarmPython, tmp_path: Path) -> None:
    model = make(name).learn(120)
    model.save(tmp_path / "model.zip")
    cls, script = ALGOS[name], tmp_path / "predict.py"
    script.write_text(PREDICT.format(module=cls.__module__, cls=cls.__name__))
    words = [str(script), str(tmp_path / "model.zip"), json.dumps(OBSERVATIONS.tolist())]
    result = python.run(words, tmp_path, tmp_path, timeout=120)
    assert result.returncode == 0, result.stderr
    actions, num_timesteps, n_episodes = json.loads(result.stdout)
    assert np.array_equal(np.array(actions, dtype=np.float32), model.predict(OBSERVATIONS, deterministic=True)[0])
    assert (num_timesteps, n_episodes) == (120, model._episode_num)


@pytest.mark.parametrize("kind", ["path", "string", "file"])
@pytest.mark.parametrize("name", ALL)
def test_paths_strings_and_open_files(name: str, kind: str, tmp_path: Path) -> None:
    model = make(name).learn(40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        target: Any = {"path": tmp_path / "model.zip", "string": str(tmp_path / "model"), "file": io.BytesIO()}[kind]
        model.save(target)
        if kind == "file":
            assert not target.closed
            target.seek(0)
        loaded = ALGOS[name].load(target)
    assert differences(tensors(model), tensors(loaded)) == []
    assert [p.name for p in tmp_path.iterdir()] == ([] if kind == "file" else ["model.zip"])


@pytest.mark.parametrize("name", ALL)
def test_a_crash_while_saving_leaves_the_previous_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(name).learn(40)
    model.save(tmp_path / "model.zip")
    before = (tmp_path / "model.zip").read_bytes()

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(th, "save", full_disk)
    with pytest.raises(OSError, match="no space left"):
        model.save(tmp_path / "model.zip")
    assert (tmp_path / "model.zip").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.zip"]


@pytest.mark.parametrize("name", HYBRIDS)
def test_replay_buffer_has_its_own_file(name: str, tmp_path: Path) -> None:
    model = make(name).learn(60)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["buffer.pkl", "model.zip"]
    loaded = ALGOS[name].load(tmp_path / "model", env=toy_vec_env())
    assert loaded.replay_buffer.size() == 0
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded.replay_buffer.size() == 60
    assert differences(transitions(model), transitions(loaded)) == []


@pytest.mark.parametrize("name", ALL)
def test_load_overrides_arguments(name: str, tmp_path: Path) -> None:
    make(name).learn(40).save(tmp_path / "model")
    loaded = ALGOS[name].load(tmp_path / "model", learning_rate=2.0, verbose=0, custom_objects={"tensorboard_log": "logs"})
    assert (loaded.learning_rate, loaded.tensorboard_log) == (2.0, "logs")
    if name in HYBRIDS:
        assert ALGOS[name].load(tmp_path / "model", custom_objects={"gamma": 0.5}).gamma == 0.5


SIZES = [
    ("openai_es", {"n_pairs": 8}, "n_pairs=2", "n_pairs=8"),
    ("openai_es", {"normalize_obs": False, "learning_rate": 0.5}, "normalize_obs=True", "normalize_obs=False"),
    ("openai_es", {"evolver": "cem"}, "evolver='es'", "evolver='cem'"),
    ("esac", {"n_pairs": 4}, "n_pairs=2", "n_pairs=4"),
    ("esac", {"elite_fraction": 1.0, "n_gradient_bases": 0}, "elite_fraction=0.5", "elite_fraction=1.0"),
    ("ns_es", {"meta_population_size": 4}, "meta_population_size=2", "meta_population_size=4"),
    ("erl_re2", {"policy_embedding_dim": 10}, "policy_embedding_dim=8", "policy_embedding_dim=10"),
    ("erl", {"learner": "td3"}, "learner='ddpg'", "learner='td3'"),
]


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize(("name", "given", "saved", "asked"), SIZES)
def test_load_names_arguments_that_change_sizes(
    name: str, given: dict[str, Any], saved: str, asked: str, trusted: bool, tmp_path: Path
) -> None:
    make(name).save(tmp_path / "model")
    with pytest.raises(ValueError, match=f"saved with {saved}.* does not fit a model with {asked}.*Load it without") as error:
        ALGOS[name].load(tmp_path / "model", trusted=trusted, **given)
    assert "learning_rate" not in str(error.value).partition("from which")[0]


@pytest.mark.parametrize("trusted", [True, False])
def test_load_changes_what_follows_from_an_argument(trusted: bool, tmp_path: Path) -> None:
    make("openai_es", episode_cutoff=5, stats_window_size=9).learn(40).save(tmp_path / "model")

    def load(**given: Any) -> Any:
        return ALGOS["openai_es"].load(tmp_path / "model", env=toy_vec_env(), trusted=trusted, **given)

    assert [load(episode_cutoff=steps).cutoff for steps in (5, 8, None)] == [5, 8, None]
    assert load(n_pairs=2).pop_size == 4
    assert load(stats_window_size=7).learn(40, reset_num_timesteps=False).ep_info_buffer.maxlen == 7
    assert load().learn(40, reset_num_timesteps=False).ep_info_buffer.maxlen == 9


def test_a_cutoff_that_has_grown_is_kept_where_nothing_changes(tmp_path: Path) -> None:
    model = make("openai_es", episode_cutoff=(2, 0.5, 2.0))
    model.learn(60).save(tmp_path / "model")
    assert model.cutoff > 2
    for same in ((2, 0.5, 2.0), [2, 0.5, 2.0]):  # a YAML file has a list
        assert ALGOS["openai_es"].load(tmp_path / "model", episode_cutoff=same).cutoff == model.cutoff
    assert ALGOS["openai_es"].load(tmp_path / "model", episode_cutoff=(3, 0.5, 2.0)).cutoff == 3


def test_load_with_statistics_that_the_environment_keeps(tmp_path: Path) -> None:
    """``rl_zoo3 train -i`` hands the constructor's arguments to ``load``."""
    with pytest.warns(UserWarning, match="normalize_obs is off"):
        make("openai_es", VecNormalize(toy_vec_env())).save(tmp_path / "model")
    with pytest.warns(UserWarning, match="normalize_obs is off"):
        loaded = ALGOS["openai_es"].load(tmp_path / "model", env=VecNormalize(toy_vec_env()), normalize_obs=True)
    assert loaded.normalize_obs is False


@pytest.mark.parametrize("name", ALL)
def test_no_argument_changes_the_class_of_a_file(name: str, tmp_path: Path) -> None:
    model = make(name)
    model.algorithm = "ppo"
    model.save(tmp_path / "model")
    assert ALGOS[name].load(tmp_path / "model").algorithm == model.__class__.__name__
    if name != "pbt":
        with pytest.raises(TypeError, match=r"load\(\) got \['algorithm'\]"):
            ALGOS[name].load(tmp_path / "model", algorithm="ppo")


def test_load_finds_the_file_beside_the_zoos_folder(tmp_path: Path) -> None:
    """``Toy-v0.zip`` is the model, ``Toy-v0/`` has the settings of the run."""
    make("erl").learn(40).save(tmp_path / "Toy-v0")
    (tmp_path / "Toy-v0").mkdir()
    for path in (tmp_path / "Toy-v0", str(tmp_path / "Toy-v0"), tmp_path / "Toy-v0.zip"):
        assert ALGOS["erl"].load(path).num_timesteps >= 40
        assert "policy" in load_parameters(path)


@pytest.mark.parametrize("name", ALL)
def test_load_takes_the_id_of_an_environment(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gym.registry, "Toy-v0", EnvSpec("Toy-v0", ToyEnv))
    make(name).learn(40).save(tmp_path / "model")
    loaded = ALGOS[name].load(tmp_path / "model", env="Toy-v0")
    assert isinstance(loaded.get_env().envs[0].unwrapped, ToyEnv)
    assert loaded.learn(40, reset_num_timesteps=False).num_timesteps >= 80


@pytest.mark.parametrize("name", having("pop_size", among=ALL))
def test_load_refuses_another_pop_size(name: str, tmp_path: Path) -> None:
    make(name).learn(40).save(tmp_path / "model")
    size = pop_size(name)
    with pytest.raises(ValueError, match=rf"pop_size.*{size} .*{size + 2} "):
        ALGOS[name].load(tmp_path / "model", pop_size=size + 2)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_saved_depends_on_the_number_of_envs(name: str, tmp_path: Path) -> None:
    make(name, toy_vec_env(2)).learn(60).save(tmp_path / "model")
    loaded = ALGOS[name].load(tmp_path / "model", env=toy_vec_env(3))
    loaded.learn(60, reset_num_timesteps=False)
    assert loaded.n_envs == 3 and 120 <= loaded.num_timesteps < 123
    with pytest.raises(AssertionError):
        loaded.set_env(toy_vec_env(2))


@pytest.mark.parametrize("name", ALL)
def test_wrong_parameters_are_refused(name: str) -> None:
    model = make(name)
    parameters = model.get_parameters()
    with pytest.raises(ValueError):
        model.set_parameters({**parameters, "unknown": parameters["policy"]})
    with pytest.raises(ValueError):
        model.set_parameters({key: value for key, value in parameters.items() if key != "policy"})
    incomplete = dict(parameters["policy"])
    incomplete.popitem()
    with pytest.raises(RuntimeError):
        model.set_parameters({**parameters, "policy": incomplete})


# ------------------------------------------------------------------ attributes of the user's own


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_attributes_that_sb3_cannot_write_come_back(name: str, tmp_path: Path) -> None:
    """Also with a checkpoint, which is written in the middle of a run."""
    model = make(name)
    own = {
        "by_cell": {(0, 1): "a", (2, 3): [1.0]},
        "by_number": {1: "one", 2: {3: "three"}},
        "inside": [{"deep": {(4,): 5}}],
        "plain": {"a": [1, None, "b"]},
        "points": np.arange(3.0),
        "words": {"one", "two"},
    }
    vars(model).update(own)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(60, GenerationCheckpoint(30, tmp_path / "run"))
        model.save(tmp_path / "model")
        loaded = [ALGOS[name].load(tmp_path / "model"), ALGOS[name].resume_from(tmp_path / "run", toy_vec_env())]
        loaded[0].save(tmp_path / "again")
        loaded.append(ALGOS[name].load(tmp_path / "again"))
    for each in loaded:
        for key, value in own.items():
            assert np.array_equal(getattr(each, key), value), key
    assert vars(model)["by_cell"] is own["by_cell"], "saving changes nothing in the model"


def test_attributes_that_cannot_be_pickled_are_left_out_with_a_warning(tmp_path: Path) -> None:
    class Stubborn:
        def __reduce__(self) -> Any:
            raise RuntimeError("not me")

    model: Any = make("td7")
    with (tmp_path / "notes.txt").open("w") as file:
        model.notes, model.stubborn, model.circle = file, Stubborn(), []
        model.circle.append(model.circle)
        with pytest.warns(UserWarning, match=r"'(notes|stubborn)' is not saved.*(TextIOWrapper|not me)") as caught:
            model.learn(60, GenerationCheckpoint(1000, tmp_path / "run"))
        assert len(caught) == 2, "one for each attribute"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.save(tmp_path / "model", exclude=["notes", "stubborn"])
        with pytest.warns(UserWarning, match="'notes' is not saved") as caught:
            model.save(tmp_path / "other", exclude=["stubborn"])
        assert [warning.filename for warning in caught] == [__file__], "it points to the user's line"
    for loaded in (ALGOS["td7"].load(tmp_path / "model"), ALGOS["td7"].resume_from(tmp_path / "run", toy_vec_env())):
        assert not hasattr(loaded, "notes") and not hasattr(loaded, "stubborn")
        assert loaded.circle[0] is loaded.circle and loaded.num_timesteps == 60
