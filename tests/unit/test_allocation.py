"""Shares of the exploring episodes where returns are missing."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sb3_erl.learners.allocation import ResourceManager


def test_the_first_finite_return_is_the_value_whatever_came_before() -> None:
    manager = ResourceManager(2, 2)
    for learner, total in ((0, np.nan), (0, -1000.0), (1, -1000.0)):
        manager.report(learner, total)
    assert manager.values.tolist() == [-1000, -1000] and manager.visits.tolist() == [2, 1]
    assert manager.scores[0] < manager.scores[1], "the one that was tried less often"
    manager.report(0, np.inf)
    manager.report(0, 0.0)
    assert manager.values[0] == pytest.approx(-800)


def test_a_learner_without_a_return_counts_as_the_worst() -> None:
    manager = ResourceManager(3, 3)
    for learner, total in enumerate((np.nan, -1000.0, -10.0)):
        manager.report(learner, total)
    scores = manager.scores
    assert scores[0] == scores[1] < scores[2]
    nothing = ResourceManager(2, 2)
    for learner in range(2):
        nothing.report(learner, np.nan)
    assert np.isfinite(nothing.scores).all() and len(set(nothing.scores)) == 1


def test_state_goes_through_json_and_old_ones_count_every_visit() -> None:
    manager, other = ResourceManager(2, 3), ResourceManager(2, 3)
    for learner, total in ((0, np.nan), (1, -5.0)):
        manager.report(learner, total)
    state = json.loads(json.dumps(manager.state))
    other.restore(state)
    assert np.array_equal(other.scores, manager.scores) and other.is_known.tolist() == [False, True]
    del state["is_known"]
    other.restore(state)
    assert other.is_known.tolist() == [True, True]
