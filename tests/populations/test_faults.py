"""Members that diverge are replaced and never exploited; environments that fail cost a generation and lose nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sb3_erl import Choice
from sb3_erl.populations.member import is_finite
from sb3_erl.rollouts.soundness import WorkerError
from tests.contract.helpers import Tables, differences
from tests.envs import ToyEnv, toy_vec_env
from tests.populations.settings import contents, make

BAD = {"search_space": {"learning_rate": Choice([1e-3, 1e30])}, "initial_hyperparameters": [{"learning_rate": 1e-3}] * 2}
"""The third of three members gets numbers that are not finite in its first update."""


class Failing(ToyEnv):
    """:class:`ToyEnv` that raises an error at some steps of its life."""

    def __init__(self, first: int, last: float = math.inf, **kwargs: Any):
        super().__init__(**kwargs)
        self._first, self._last, self._life = first, last, 0

    def step(self, action: Any) -> Any:
        self._life += 1
        if self._first <= self._life <= self._last:
            raise OSError("the simulator is gone")
        return super().step(action)


def diverging(key: str, **kwargs: Any) -> Any:
    values = [{"learning_rate": 1e-3}, {"learning_rate": 1e-3}, {"learning_rate": 1e30}]
    return make(key, **{**BAD, "initial_hyperparameters": values, **kwargs})


@pytest.mark.parametrize("key", ["ppo", "a2c", "sac", "dqn"])
def test_a_member_that_diverges_is_replaced_and_never_exploited(key: str) -> None:
    model = diverging(key, exploit="none", explore="none")
    tables = Tables(model)
    with pytest.warns(UserWarning, match=r"member 2 has diverged with \{'learning_rate': 1e\+30\}"):
        model.learn(600)
    table = model.lineage()
    assert model.n_generations >= 2
    assert list(table.outcome[:3]) == ["trained", "trained", "diverged"] and set(table.outcome[3:]) == {"trained"}
    assert math.isnan(table.score[2]) and np.isfinite(table.score.drop(2)).all()
    assert 2 not in set(table.parent[3:6]) and table.learning_rate[5] == 1e-3
    assert tables.column("population/n_diverged")[:2] == [1, 0] and tables.column("population/n_replaced")[0] == 1
    assert model.champion != 2 or model.n_generations > 1
    assert all(is_finite(model.individual(number)) for number in range(3)) and is_finite(model)


@pytest.mark.parametrize("key", ["ppo", "dqn"])
def test_all_members_diverge(key: str) -> None:
    """They begin the generation again, with other hyper-parameters and the weights of before; DQN acts on without an error."""
    values = [{"learning_rate": 1e30}] * 3
    with pytest.warns(UserWarning, match="has diverged"):
        model = diverging(key, initial_hyperparameters=values).learn(600)
    table = model.lineage()
    assert set(table.outcome[:3]) == {"diverged"} and list(table.parent[3:6]) == [0, 1, 2]
    assert set(table.outcome) == {"diverged", "trained"} and is_finite(model)


def test_an_environment_that_fails_for_a_member() -> None:
    """The member goes on as it was before, with the same hyper-parameters."""
    model = make("ppo", toy_vec_env(env_class=Failing, first=20, last=20))
    tables = Tables(model)
    with pytest.warns(UserWarning, match="member 0 lost this generation .* OSError: the simulator is gone"):
        model.learn(600)
    table = model.lineage()
    assert list(table.outcome[:3]) == ["failed", "trained", "trained"] and set(table.outcome[3:]) == {"trained"}
    assert table.parent[3] == 0 and table["gamma"][3] == table["gamma"][0]
    assert tables.column("population/n_failed")[:2] == [1, 0]
    assert len(table) == 3 * model.n_generations


def test_an_environment_that_always_fails_loses_nothing() -> None:
    model = make("sac", toy_vec_env(env_class=Failing, first=200))
    with pytest.warns(UserWarning, match="lost this generation"), pytest.raises(WorkerError, match="simulator is gone"):
        model.learn(2000)
    assert model.n_generations == 1 and len(model.lineage()) == 3
    kept = contents(model)
    with pytest.warns(UserWarning, match="lost this generation"), pytest.raises(WorkerError, match="simulator is gone"):
        model.learn(100, reset_num_timesteps=False)
    steps = {"own.num_timesteps", "own._episode_num"}
    assert set(differences(kept, contents(model))) <= steps
    model.set_env(toy_vec_env())
    assert model.learn(300, reset_num_timesteps=False).n_generations > 1


def test_a_reward_that_is_not_finite_is_no_score() -> None:
    class Odd(ToyEnv):
        n_made = 0

        def step(self, action: Any) -> Any:
            observation, reward, *rest = super().step(action)
            Odd.n_made += 1
            return observation, float("nan") if 48 < Odd.n_made <= 48 + 8 else reward, *rest

    with pytest.warns(UserWarning, match="member 0 has diverged"):
        model = make("ppo", toy_vec_env(env_class=Odd)).learn(150)
    assert model.lineage().outcome[0] == "diverged" and model.champion != 0 and np.isfinite(model.champion_return)


def test_ctrl_c_leaves_the_members_as_they_were() -> None:
    model = make("ppo", toy_vec_env(interrupt_at=250))
    with pytest.raises(KeyboardInterrupt):
        model.learn(1000)
    assert model.n_generations == 1 and len(model.lineage()) == 3
    before = contents(model)
    assert differences(before, contents(model)) == []
    assert model.learn(200, reset_num_timesteps=False).n_generations > 1
