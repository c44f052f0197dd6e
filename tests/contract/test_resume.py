"""A run that is split, or saved and loaded, at the end of a generation or of an episode continues bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sb3_erl import ALGOS
from tests.contract.helpers import Witness, differences, snapshot
from tests.contract.settings import GENERATIONAL, HYBRIDS, LEARN_FIRST, make, variants
from tests.envs import toy_vec_env


def generation_ends(name: str, extra: dict[str, Any]) -> tuple[int, int]:
    """Steps after which an earlier and a later generation of this run, or episode, are complete."""
    if name not in GENERATIONAL:
        return 48, 96
    witness = Witness()
    make(name, **extra).learn(220, witness)
    ends = witness.generation_ends
    return ends[len(ends) // 2 - 1], ends[-1]


@pytest.mark.parametrize(("name", "extra"), variants())
def test_continued_from_files(name: str, extra: dict[str, Any], tmp_path: Path) -> None:
    middle, end = generation_ends(name, extra)
    straight = make(name, **extra).learn(end)
    first = make(name, **extra).learn(middle)
    first.save(tmp_path / "model")
    resumed = ALGOS[name].load(tmp_path / "model", env=toy_vec_env())
    if name in HYBRIDS:
        first.save_replay_buffer(tmp_path / "buffer")
        resumed.load_replay_buffer(tmp_path / "buffer")
        assert straight._n_updates > first._n_updates > 0
    resumed.learn(end - middle, reset_num_timesteps=False)
    assert straight.num_timesteps == end
    assert differences(snapshot(straight), snapshot(resumed)) == []


@pytest.mark.parametrize(("name", "extra"), variants())
def test_two_calls_of_learn_are_one(name: str, extra: dict[str, Any]) -> None:
    middle, end = generation_ends(name, extra)
    straight = make(name, **extra).learn(end)
    split = make(name, **extra)
    split.learn(middle)
    split.learn(end - middle, reset_num_timesteps=False)
    assert differences(snapshot(straight), snapshot(split)) == []


@pytest.mark.parametrize(("name", "extra"), variants(GENERATIONAL))
def test_an_unfinished_generation_is_dropped(name: str, extra: dict[str, Any]) -> None:
    middle, _ = generation_ends(name, extra)
    whole, cut = make(name, **extra).learn(middle), make(name, **extra).learn(middle + 3)
    assert cut.num_timesteps == middle + 3
    assert name not in HYBRIDS or cut.replay_buffer.size() == middle + 3
    changed = set(differences(snapshot(whole), snapshot(cut)))
    free: tuple[str, ...] = (
        "num_timesteps",
        "_episode_num",
        "n_stored",
        "replay_buffer.",
        ".evolver.memories.",
    )  # what was seen stays
    asked = ("center", "offsets", "starts", "asked_sigma", "ancestors", "offspring")
    free += tuple(f".evolver.{part}" for part in asked)
    if name in LEARN_FIRST:  # the critic had its steps before the generation's first rollout, the individuals wait
        assert {"_n_updates", ".learned.rows"} <= changed
        own = (".critic.optimizer", ".encoder.optimizer", ".learner.")
        free += ("_n_updates", ".learned.", ".policy.", *own)
        assert not any(key.startswith(".policy.deployed.") for key in changed)
    assert all(key.startswith(free) for key in changed)
