"""Of which kind a part is, where a user does not say it."""

from __future__ import annotations

from typing import Any

import pytest

from sb3_erl import GANS
from sb3_erl.engine.steps import Reseed
from sb3_erl.evolution.operators import GaussianMutation, RowCrossover
from sb3_erl.testing import check_part


class Nothing:
    """Cannot be called."""


def kind_of(part: Any) -> str:
    """What :func:`~sb3_erl.testing.check_part` takes it for: the argument under which it is given to the algorithm."""
    with pytest.raises(TypeError, match="unexpected keyword argument") as error:
        check_part(part, algorithm=Taker)
    return str(error.value).split("'")[1]


class Taker:
    """An algorithm without any part."""

    def __init__(self, policy: str, env: Any, device: str = "cpu"):
        raise AssertionError


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        *(("rows", "crossover"), ("gaussian", "mutation"), ("cem", "evolver"), ("energy", "fitness"), ("td3", "learner")),
        *((RowCrossover, "crossover"), (GaussianMutation, "mutation"), ("replace_weakest", "exchange")),
        *(("sb3_erl.evolution.operators.crossover:RowCrossover", "crossover"), (Reseed(), "generation_steps")),
    ],
)
def test_kind_is_told_from_key_and_class(part: Any, kind: str) -> None:
    assert kind_of(part) == kind


@pytest.mark.parametrize("part", [Nothing, Nothing(), "head_rows", "no_such_key", GANS, 3])
def test_what_is_no_part_or_several(part: Any) -> None:
    with pytest.raises(ValueError, match=r"kind must be given, one of \['crossover', .*it cannot be told from"):
        check_part(part)
