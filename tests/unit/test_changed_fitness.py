"""The state of a fitness in a model that is loaded with another one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sb3_erl.evolution.fitness.base import Fitness, make_fitness
from sb3_erl.evolution.fitness.parts import Novelty


def archive_of(fitness: Any) -> int:
    return len(fitness.archive if isinstance(fitness, Novelty) else fitness.parts["novelty"].archive)


def filled(choice: Any) -> Fitness:
    fitness: Any = make_fitness(choice)
    (fitness if isinstance(fitness, Novelty) else fitness.parts["novelty"]).archive.extend(np.eye(3))
    return fitness


SUM, OTHER_SUM = {"return": 1.0, "novelty": 0.5}, {"novelty": 2.0, "energy": 1.0}


@pytest.mark.parametrize(("old", "new", "n_kept"), [(SUM, OTHER_SUM, 3), ("novelty", SUM, 0), (SUM, "novelty", 0)])
def test_what_the_new_fitness_does_not_have_is_left_out(old: Any, new: Any, n_kept: int) -> None:
    fitness = make_fitness(new)
    fitness.load_state_dict(filled(old).state_dict())
    assert archive_of(fitness) == n_kept


def test_a_sum_without_the_part_that_had_a_state() -> None:
    fitness = make_fitness({"return": 1.0})
    fitness.load_state_dict(filled(SUM).state_dict())
    assert fitness.state_dict() == {}
