"""Ctrl-C leaves a whole model and no processes behind."""

from __future__ import annotations

import multiprocessing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sb3_erl
from sb3_erl import ALGOS
from sb3_erl.buffers.lap import PriorityTree
from tests.contract.helpers import differences, tensors
from tests.contract.settings import HYBRIDS, NAMES, make, n_stored
from tests.envs import toy_vec_env
from tests.interruption import call_with_sigint


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


@pytest.mark.parametrize("name", NAMES)
def test_interrupt_in_any_line(name: str, tmp_path: Path) -> None:
    """In lines of this package drawn by chance: the buffer has the steps that were taken, and training goes on."""

    def begun() -> Any:
        model = make(name, toy_vec_env(1), seed=0)
        model.learn(60, log_interval=None)
        return model

    def interrupt(model: Any, number: int) -> tuple[str, int]:
        package = str(Path(sb3_erl.__file__).parent)
        learn = partial(model.learn, 60, reset_num_timesteps=False, log_interval=None)
        return call_with_sigint(learn, number, lambda file: file.startswith(package))

    quiet = begun()
    _, n_lines = interrupt(quiet, 0)
    for number in np.random.default_rng(NAMES.index(name)).integers(1, n_lines, 8).tolist():
        model = begun()
        line, _ = interrupt(model, number)
        assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu"), line
        taken = model.env.envs[0].unwrapped.n_steps
        assert taken - 1 <= model.num_timesteps <= taken, line
        if name in HYBRIDS:
            assert -20 <= n_stored(model) - model.num_timesteps <= 1, line  # Ctrl-C may cost an episode
            check_buffer(model.replay_buffer, quiet.replay_buffer)
        model.save(tmp_path / "model")
        assert differences(tensors(model), tensors(ALGOS[name].load(tmp_path / "model"))) == [], line
        before = model.num_timesteps
        model.learn(60, reset_num_timesteps=False, log_interval=None)
        assert model.num_timesteps >= before + 60, line


def test_interrupt_in_every_line_of_an_episode() -> None:
    """Steps are counted once and stored once, whichever line of stepping and storing is hit."""
    engine = ("engine/generation.py", "engine/rollout_phase.py", "engine/hybrid.py")
    counted = ("rollouts/vectorized.py", "rollouts/slots.py", "buffers/append.py", *engine)
    quiet = make("erl", toy_vec_env(1), seed=0)
    quiet.learn(10)
    number, line = 0, "?"
    while line:
        number += 1
        model: Any = make("erl", toy_vec_env(1), seed=0)
        line, _ = call_with_sigint(partial(model.learn, 10, log_interval=None), number, lambda file: file.endswith(counted))
        taken = model.env.envs[0].unwrapped.n_steps
        assert taken - 1 <= model.num_timesteps <= taken and n_stored(model) <= taken, line
        check_buffer(model.replay_buffer, quiet.replay_buffer)
    assert number > 100


def check_buffer(buffer: Any, quiet: Any) -> None:
    """It has what the quiet one began with, and priorities that add up."""
    n = buffer.size()
    for part in ("observations", "actions", "next_observations", "rewards"):
        assert np.array_equal(getattr(buffer, part)[:n], getattr(quiet, part)[:n]), part
    for tree in getattr(buffer, "trees", []):
        twin = PriorityTree(tree.capacity)
        twin.append(np.arange(tree.size))
        twin.write(np.arange(tree.size), tree.priority[: tree.size])
        uniform = np.arange(0.005, 1, 0.01)
        assert np.array_equal(tree.find(uniform), twin.find(uniform))
