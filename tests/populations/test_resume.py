"""A killed run goes on bit for bit at its last generation, with VecNormalize, logs and callbacks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.callbacks import CheckpointCallback, ConvertCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize

from sb3_erl import PBT, GenerationCheckpoint, newest_checkpoint
from tests.contract.helpers import differences
from tests.populations.settings import MAIN, SHORT, contents, environment, make

TOTAL = 300


def learn(key: str, folder: Path, dies_at: int | None = None, **kwargs: Any) -> Any:
    """The program of a user whose jobs may be killed: it begins the run of this folder, or goes on with it."""
    env, checkpoints = VecNormalize(environment(key)), folder / "checkpoints"
    if newest_checkpoint(checkpoints) is None:
        model = make(key, env, **SHORT, **kwargs)
    else:
        model = PBT.resume_from(checkpoints, env=env, device="cpu")
    model.set_logger(configure(str(folder), ["csv"]))

    def die(variables: dict[str, Any], _: dict[str, Any]) -> bool:
        if variables["self"].num_timesteps == dies_at:
            raise ZeroDivisionError
        return True

    return model.learn(TOTAL, [GenerationCheckpoint(1, checkpoints, keep=None), ConvertCallback(die)])


@pytest.mark.parametrize("key", MAIN)
def test_killed_in_the_third_generation(key: str, tmp_path: Path) -> None:
    whole = learn(key, tmp_path / "whole")
    assert whole.n_generations >= 3
    with pytest.raises(ZeroDivisionError):
        learn(key, tmp_path / "killed", dies_at=270)
    model = learn(key, tmp_path / "killed")
    assert model.run.is_resumed and differences(contents(whole), contents(model)) == []
    columns = [(folder / "progress.csv").read_text().splitlines() for folder in (tmp_path / "whole", tmp_path / "killed")]
    assert columns[0][0] == columns[1][0] and len(columns[0]) == len(columns[1]) == whole.n_generations + 1


def test_environments_are_made_again_from_their_id(tmp_path: Path) -> None:
    def run() -> PBT:
        arguments: dict[str, Any] = {"algorithm_kwargs": {"n_steps": 32, "batch_size": 32, "n_epochs": 1}, "seed": 1}
        return PBT("MlpPolicy", "CartPole-v1", pop_size=2, ready_steps=64, n_eval_episodes=1, device="cpu", **arguments)

    whole = run().learn(600, GenerationCheckpoint(1, tmp_path, keep=None))
    folders = sorted(tmp_path.glob("checkpoint_*"))
    assert len(folders) >= 3
    for folder in folders[2:]:
        shutil.rmtree(folder)
    assert differences(contents(whole), contents(PBT.resume_from(tmp_path, device="cpu").learn(600))) == []


def test_files_of_sb3s_callback(tmp_path: Path) -> None:
    """They are written after a generation, so they hold its members and all of its steps; the run goes on with the next."""
    whole = make("ppo").learn(400, CheckpointCallback(250, str(tmp_path)))
    (file,) = tmp_path.glob("*.zip")
    assert file.stem.endswith("_250_steps")
    model = PBT.resume_from(tmp_path, environment("ppo"), "cpu")
    assert (model.num_timesteps, model.n_generations) == (whole.num_timesteps, whole.n_generations) and whole.n_generations > 1
    before = contents(model)
    assert differences(before, contents(model.learn(400))) == []
    again = PBT.resume_from(tmp_path, environment("ppo"), "cpu").learn(900)
    assert again.num_timesteps >= 900 and again.n_generations > whole.n_generations


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    before = contents(learn("ppo", tmp_path))
    assert differences(before, contents(learn("ppo", tmp_path))) == []
