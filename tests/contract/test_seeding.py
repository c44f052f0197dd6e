"""One seed is one run; global generators are neither read nor moved while training."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_erl import ALGOS
from tests.contract.helpers import differences, snapshot, tensors
from tests.contract.settings import ALL, HYBRIDS, NAMES, make, variants
from tests.envs import toy_vec_env


@pytest.mark.parametrize(("name", "extra"), variants())
def test_same_seed_same_run(name: str, extra: dict[str, Any]) -> None:
    first, second = make(name, **extra).learn(100), make(name, **extra)
    np.random.seed(11)
    random.seed(12)
    th.manual_seed(13)
    second.learn(100)
    assert differences(snapshot(first), snapshot(second)) == []


@pytest.mark.parametrize("name", NAMES)
def test_other_seed_other_run(name: str) -> None:
    first, second = make(name, seed=1).learn(100), make(name, seed=2).learn(100)
    changed = differences(snapshot(first), snapshot(second))
    assert name not in HYBRIDS or {"replay_buffer.observations", "replay_buffer.actions"} <= set(changed)
    assert any(key.startswith(".evolver" if hasattr(first, "evolver") else ".policy") for key in changed)


@pytest.mark.parametrize("name", NAMES)
def test_runs_without_a_seed_differ(name: str) -> None:
    first, second = make(name, seed=None), make(name, seed=None)
    assert first.run_seed != second.run_seed
    changed = differences(snapshot(first.learn(60)), snapshot(second.learn(60)))
    assert any(key.startswith("replay_buffer.observations" if name in HYBRIDS else ".evolver.") for key in changed)


@pytest.mark.parametrize(("name", "extra"), variants())
def test_global_generators_stay_where_they_are(name: str, extra: dict[str, Any]) -> None:
    model = make(name, toy_vec_env(2), **extra)
    before = (np.random.get_state()[1].tolist(), random.getstate(), th.get_rng_state().tolist())  # type: ignore[union-attr, index]
    model.learn(100)
    after = (np.random.get_state()[1].tolist(), random.getstate(), th.get_rng_state().tolist())  # type: ignore[union-attr, index]
    assert before == after
    assert name not in HYBRIDS or model._n_updates > 0


@pytest.mark.parametrize("name", NAMES)
def test_construction_is_seeded(name: str) -> None:
    assert differences(tensors(make(name)), tensors(make(name))) == []


@pytest.mark.parametrize("name", ALL)
def test_a_seed_given_later_is_that_of_the_next_learn(name: str, tmp_path: Path) -> None:
    make(name).learn(60).save(tmp_path / "model")

    def go_on(seed: int | None) -> Any:
        loaded = ALGOS[name].load(tmp_path / "model", env=toy_vec_env())
        loaded.set_random_seed(seed)
        loaded.learn(100, reset_num_timesteps=False)
        loaded.save(tmp_path / "again")
        assert ALGOS[name].load(tmp_path / "again").run_seed == (3 if seed is None else seed)
        return loaded

    first, same, other, none, as_saved = (snapshot(go_on(seed)) for seed in (1, 1, 2, None, 3))
    assert differences(first, same) == differences(none, as_saved) == []
    assert differences(first, other) != [] and differences(first, none) != []


@pytest.mark.parametrize("name", NAMES)
def test_no_seed_keeps_that_of_the_run(name: str, tmp_path: Path) -> None:
    model = make(name, seed=None)
    model.set_random_seed(None)
    model.save(tmp_path / "model")
    assert ALGOS[name].load(tmp_path / "model").run_seed == model.run_seed
    with pytest.raises(TypeError, match="seed must be an integer; got 1\\.5"):
        model.set_random_seed(1.5)
    with pytest.raises(ValueError, match="seed must be at least 0"):
        model.set_random_seed(-1)
