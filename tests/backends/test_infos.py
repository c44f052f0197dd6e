"""Infos of steps that workers played: replay buffers read them whatever callbacks are given."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_erl.remote.process import ProcessEvaluator
from sb3_erl.rollouts.jobs import Job
from tests.backends.records import Record, evaluate, transitions
from tests.backends.troubles import EPISODES
from tests.contract.settings import make
from tests.envs import ToyEnv


class Costly(ToyEnv):
    """:class:`~tests.envs.ToyEnv` whose infos have a cost."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        *others, info = super().step(action)
        return *others, {**info, "cost": float(np.square(action).sum())}  # type: ignore[return-value]


class CostBuffer(ReplayBuffer):
    """Keeps the costs, which have to be there in every step."""

    costs: list[float]

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: list[dict[str, Any]]) -> None:
        self.costs = [*getattr(self, "costs", []), infos[0]["cost"]]
        super().add(obs, next_obs, action, reward, done, infos)


costly = partial(Costly, **EPISODES)


def test_a_replay_buffer_reads_the_infos_of_all_steps() -> None:
    def costs(**evaluator: Any) -> list[float]:
        model = make("erl", DummyVecEnv([costly]), replay_buffer_class=CostBuffer, **evaluator).learn(80)
        return model.replay_buffer.costs

    with ProcessEvaluator(2, costly, step_infos=False) as evaluator:
        assert costs(evaluator=evaluator) == costs() != []


@pytest.mark.parametrize("reads_infos", [True, False])
def test_infos_that_nobody_reads_are_not_sent(reads_infos: bool) -> None:
    with ProcessEvaluator(1, costly, step_infos=False) as evaluator:
        _, record = evaluate(DummyVecEnv([costly]), [Job(0)], Record(reads_infos=reads_infos), remote=evaluator)
    found = ["cost" in step.info for step in transitions(record)]
    assert len(found) > 3 and found[-1] and all(found[:-1]) == any(found[:-1]) == reads_infos
