"""Ctrl-C leaves a whole model and no processes behind."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_erl import ALGOS
from tests.contract.helpers import differences, tensors
from tests.contract.settings import HYBRIDS, NAMES, make, n_stored
from tests.envs import toy_vec_env


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_interrupt_inside_an_environment(name: str, n_envs: int, tmp_path: Path) -> None:
    model = make(name, toy_vec_env(n_envs, interrupt_at=50))
    with pytest.raises(KeyboardInterrupt):
        model.learn(400)
    assert 0 < model.num_timesteps <= 49 * n_envs
    model.save(tmp_path / "model")
    loaded = ALGOS[name].load(tmp_path / "model", env=toy_vec_env(n_envs))
    assert differences(tensors(model), tensors(loaded)) == []
    observation = np.zeros((1, 3), dtype=np.float32)
    assert np.array_equal(model.predict(observation)[0], loaded.predict(observation)[0])
    if name in HYBRIDS:
        assert n_stored(model) == model.num_timesteps
        model.save_replay_buffer(tmp_path / "buffer")
        loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.learn(60, reset_num_timesteps=False)
    assert loaded.num_timesteps >= model.num_timesteps + 60


@pytest.mark.parametrize("name", NAMES)
def test_interrupt_with_worker_processes(name: str, tmp_path: Path) -> None:
    others = set(multiprocessing.active_children())

    def interrupt(variables: dict[str, Any], _: dict[str, Any]) -> bool:
        calls.append(len(variables["infos"]))
        if len(calls) == 20:
            raise KeyboardInterrupt
        return True

    calls: list[int] = []
    env = toy_vec_env(2, subprocess=True)
    model = make(name, env)
    with pytest.raises(KeyboardInterrupt):
        model.learn(400, interrupt)
    model.save(tmp_path / "model")
    assert ALGOS[name].load(tmp_path / "model").num_timesteps == model.num_timesteps > 0
    model.learn(20)
    assert model.num_timesteps >= 20, "the same workers go on"
    env.close()
    assert set(multiprocessing.active_children()) <= others
