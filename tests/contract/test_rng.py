"""``model.rng(name)``: random numbers of the user's own that are part of the run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.callbacks import BaseCallback

from sb3_erl import ALGOS, GenerationCheckpoint, newest_checkpoint
from sb3_erl.core.seeding import Stream
from tests.contract.helpers import differences, snapshot
from tests.contract.settings import NAMES, ONE_OF_EACH_FAMILY, make
from tests.envs import toy_vec_env


class Draw(BaseCallback):
    """Draws at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[float] = []

    def _on_step(self) -> bool:
        model: Any = self.model
        self.drawn.append(float(model.rng("mine").random()))
        return True


@pytest.mark.parametrize("name", NAMES)
def test_named_numbers_belong_to_the_run_and_change_nothing_else(name: str) -> None:
    first, second = Draw(), Draw()
    with_draws = make(name).learn(60, first)
    make(name).learn(60, second)
    assert first.drawn == second.drawn and len(set(first.drawn)) == len(first.drawn) == 60
    assert differences(snapshot(with_draws), snapshot(make(name).learn(60))) == []
    other = Draw()
    make(name, seed=4).learn(60, other)
    assert not set(other.drawn) & set(first.drawn)


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_a_resumed_run_draws_the_same(name: str, tmp_path: Path) -> None:
    whole, rest = Draw(), Draw()
    make(name).learn(170, [whole, GenerationCheckpoint(40, tmp_path, keep=None)])
    shutil.rmtree(newest_checkpoint(tmp_path) or "")
    model = ALGOS[name].resume_from(tmp_path, toy_vec_env(), "cpu")
    model.learn(170, rest)
    assert 0 < len(rest.drawn) < 170 and whole.drawn[-len(rest.drawn) :] == rest.drawn


def test_a_stream_goes_on_within_a_phase_and_starts_anew_in_the_next() -> None:
    model: Any = make("cem")
    one_go = model.rng("mine").random(6).tolist()
    model.phase += 1
    later = model.rng("mine").random(6).tolist()
    model.phase -= 1
    pieces = [float(number) for _ in range(3) for number in model.rng("mine").random(2)]
    assert pieces == one_go and not set(later) & set(one_go)
    model.phase += 1
    assert model.rng("mine").random(6).tolist() == later


def test_names_and_streams_are_independent() -> None:
    model: Any = make("cem")
    model.rng("other").random(100)
    drawn = [model.rng(name).random() for name in ("mine", "mine2", "Mine", "")]
    drawn += [model.run.rng(stream).random() for stream in Stream]
    assert len(set(drawn)) == len(drawn)
    assert model.rng("mine") is model.rng("mine") and model.rng("mine") is not model.rng("Mine")


def test_a_name_gives_the_same_numbers_on_every_machine() -> None:
    assert make("cem", seed=3).rng("mine").integers(1000, size=4).tolist() == EXPECTED


EXPECTED = [775, 873, 912, 314]
"""Written down once; Python's own ``hash`` of a string would differ from process to process."""


def test_a_name_is_a_string() -> None:
    with pytest.raises(TypeError, match=r"stream must be a name.*got 3.5"):
        make("cem").rng(3.5)
