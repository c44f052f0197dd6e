"""Members of every class of SB3 and sb3-contrib, and of two of this package: they train, are saved, and go on."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import yaml

from sb3_erl import PBT, load_safe
from sb3_erl.populations.defaults import SPACES, member_class
from sb3_erl.runs.safe_files import ModelFileError
from sb3_erl.zoo import hyperparams_file
from tests.contract.helpers import differences, snapshot
from tests.populations.settings import ALL, SHORT, contents, environment, make


@pytest.mark.parametrize("key", ALL)
def test_members_of_each_class_train_with_the_default_space(key: str, tmp_path: Path) -> None:
    model = make(key)
    before = [snapshot(model.individual(number)) for number in range(3)]
    model.learn(2 * 3 * 48)
    table = model.lineage()
    assert model.n_generations >= 1 and list(table.columns[6:]) == sorted(SPACES[key])
    assert set(table.outcome) == {"trained"} and np.isfinite(table.score).all()
    for number in range(3):
        member = model.individual(number)
        assert type(member) is member_class(key)[1] and member.num_timesteps > 0
        assert differences(before[number], snapshot(member)) != []
        member.save(tmp_path / "member")
        again = type(member).load(tmp_path / "member")
        observation = np.zeros(3, np.float32)
        masks = {"action_masks": np.array([True, True, False])} if key == "ppo_mask" else {}
        actions = [one.predict(observation, deterministic=True, **masks)[0] for one in (member, again)]
        assert np.array_equal(*actions)
    model.save(tmp_path / "population", include=["replay_buffers"])
    loaded = PBT.load(tmp_path / "population", environment(key))
    assert differences(contents(model), contents(loaded)) == []
    actions = [one.predict(observation, deterministic=True, **masks)[0] for one in (model, loaded)]
    assert np.array_equal(*actions) and (key != "ppo_mask" or actions[0] != 2)
    loaded.learn(3 * 48, reset_num_timesteps=False)


def test_replay_buffers_are_saved_if_they_are_asked_for() -> None:
    model = make("dqn", **SHORT).learn(100)
    for include in (None, ["replay_buffers"]):
        file = io.BytesIO()
        model.save(file, include=include)
        file.seek(0)
        different = differences(contents(model), contents(PBT.load(file, environment("dqn"))))
        assert all("replay_buffer" in name for name in different) and bool(different) == (include is None)


def test_members_are_not_loaded_from_a_file_that_is_not_trusted(tmp_path: Path) -> None:
    """Each member is a file of another class, which SB3 reads as a pickle."""
    make("ppo").save(tmp_path / "population")
    for load in (load_safe, lambda path: PBT.load(path, trusted=False)):
        with pytest.raises(ModelFileError, match="whole files of SB3's classes, which SB3 reads as pickles"):
            load(tmp_path / "population.zip")


def test_a_seed_gives_the_same_run_again() -> None:
    """Of the other classes, runs that were killed and runs in workers are compared with plain ones."""
    first, again, other = (contents(make("ppo", seed=seed, **SHORT).learn(100)) for seed in (3, 3, 4))
    assert differences(first, again) == [] and differences(first, other) != []


def test_the_zoos_file_has_the_default_spaces() -> None:
    for entry in yaml.safe_load(hyperparams_file("pbt").read_text()).values():
        assert entry["search_space"] == SPACES
