"""What surrounds a model in a user's program: file systems, folders, embedded code, workers of models that are gone."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest

from sb3_erl import ALGOS, CEM, ERL, GenerationCheckpoint
from sb3_erl.compiled.programs import keep_compiled_code
from sb3_erl.remote.process import ProcessEvaluator
from tests.contract.settings import make
from tests.envs import ToyEnv, toy_vec_env


def test_files_where_permissions_cannot_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", refuse)
    model = make("erl", seed=1)
    model.learn(100, callback=GenerationCheckpoint(30, tmp_path / "checkpoints"))
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    assert (tmp_path / "model.zip").is_file() and list((tmp_path / "checkpoints").glob("checkpoint_*"))


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    model = make("cem", seed=1)
    model.save(tmp_path / "store" / "run")
    first = (tmp_path / "store" / "run.zip").stat().st_mtime_ns
    (tmp_path / "latest.zip").symlink_to(tmp_path / "store" / "run.zip")
    model.learn(60)
    model.save(tmp_path / "latest")
    assert (tmp_path / "latest.zip").is_symlink() and (tmp_path / "store" / "run.zip").stat().st_mtime_ns > first
    assert CEM.load(tmp_path / "latest").num_timesteps == model.num_timesteps


def test_relative_folders_are_those_of_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    callback = GenerationCheckpoint(30, "checkpoints")
    model = make("erl", seed=1)
    monkeypatch.chdir(tmp_path / "elsewhere")
    model.learn(100, callback=callback)
    assert list((tmp_path / "checkpoints").glob("checkpoint_*")) and not list((tmp_path / "elsewhere").iterdir())
    monkeypatch.chdir(tmp_path)
    resumed = ERL.resume_from("checkpoints", env=toy_vec_env())
    monkeypatch.chdir(tmp_path / "elsewhere")
    resumed.learn(100)
    assert resumed.num_timesteps >= 100


def test_a_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    keep_compiled_code()
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    monkeypatch.setenv("HOME", str(tmp_path))
    keep_compiled_code()
    assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]) == tmp_path / ".cache" / "sb3_erl" / "inductor"


def test_code_without_a_name() -> None:
    code = "model = CEM('MlpPolicy', env, pop_size=200)\nmodel.learn(1200)\n"
    names: dict[str, Any] = {"CEM": CEM, "env": toy_vec_env()}
    with pytest.warns(UserWarning, match="ended inside its first generation"):
        exec(code, names)
    assert names["model"].num_timesteps >= 1200


@pytest.mark.parametrize("name", ["cem", "erl", "td7", "pbt"])
def test_less_than_a_step(name: str) -> None:
    more: dict[str, Any] = {"algorithm": "ppo", "pop_size": 2} if name == "pbt" else {}
    model = ALGOS[name]("MlpPolicy", "Pendulum-v1", **more)
    with pytest.raises(ValueError, match="total_timesteps must be at least 1"):
        model.learn(0.5)  # type: ignore[arg-type]


def test_workers_of_models_that_are_gone_end_before_others_begin() -> None:
    evaluators = []
    gc.disable()
    try:
        for seed in range(2):
            model = make("cem", seed=seed, evaluator=ProcessEvaluator(1, make_env=ToyEnv))
            model.learn(60)
            evaluators.append(weakref.ref(model.workers))
            if seed == 1:
                assert evaluators[0]() is None
            del model
    finally:
        gc.enable()


def test_members_do_not_depend_on_assertions() -> None:
    code = (
        "from sb3_erl import PBT, LogUniform\n"
        "model = PBT('MlpPolicy', 'Pendulum-v1', algorithm='ppo', pop_size=2, seed=1, ready_steps=32,\n"
        "    algorithm_kwargs={'n_steps': 32, 'batch_size': 32, 'policy_kwargs': {'net_arch': [4]}},\n"
        "    search_space={'learning_rate': LogUniform(1e-5, 1e-3)}, n_eval_episodes=1, n_report_episodes=0)\n"
        "model.learn(64)\n"
        "print([member.hyperparameters['learning_rate'] for member in model._members])\n"
    )
    runs = [[sys.executable, *flags, "-c", code] for flags in ([], ["-O"])]
    found = [subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[-1] for words in runs]
    assert found[0] == found[1]
