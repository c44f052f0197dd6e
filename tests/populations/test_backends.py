"""Members one after the other, in worker processes and on Ray: the same run bit for bit, also when workers die."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecNormalize

from sb3_erl import ProcessEvaluator, RayEvaluator
from sb3_erl.rollouts.soundness import WorkerError
from tests.contract.helpers import differences
from tests.envs import ToyEnv, toy_maker
from tests.populations.settings import DISCRETE, MAIN, SHORT, contents, environment, make

TOTAL = 200


class Deadly(ToyEnv):
    """:class:`ToyEnv` that kills its process once, or always, after some steps of its life outside the main process."""

    def __init__(self, main: int, mark: str, at: int = 30, **kwargs: Any):
        super().__init__(**kwargs)
        self._main, self._mark, self._at, self._life = main, mark, at, 0

    def step(self, action: Any) -> Any:
        self._life += 1
        if os.getpid() != self._main and self._life == self._at and not Path(self._mark).exists():
            if not self._mark.endswith("always"):
                Path(self._mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


def maker(key: str) -> Any:
    """The environments of :func:`environment` for workers."""
    return toy_maker(n_actions=3 if key in DISCRETE else None, vary=3)


@pytest.mark.parametrize("key", [key for key in MAIN if key not in ("a2c", "tqc")])
def test_worker_processes_give_the_same(key: str) -> None:
    here = contents(make(key, VecNormalize(environment(key, 2)), **SHORT).learn(TOTAL))
    workers = ProcessEvaluator(2, maker(key))
    there = contents(make(key, VecNormalize(environment(key, 2)), evaluator=workers, **SHORT).learn(TOTAL))
    assert differences(here, there) == []


@pytest.mark.parametrize("key", ["ppo", "sac"])
def test_ray_gives_the_same(key: str) -> None:
    pytest.importorskip("ray")
    here = contents(make(key, **SHORT).learn(TOTAL))
    workers = RayEvaluator(1, maker(key), num_cpus=0.5, start_timeout=300.0)
    there = contents(make(key, evaluator=workers, **SHORT).learn(TOTAL))
    assert differences(here, there) == []


def test_callbacks_see_the_same_steps_everywhere() -> None:
    def seen(**kwargs: Any) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = []

        def look(variables: dict[str, Any], _: dict[str, Any]) -> bool:
            ends = [info["episode"]["r"] for info in variables["infos"] if "episode" in info]
            found.append((variables["self"].num_timesteps, variables["rewards"].tolist(), variables["dones"].tolist(), ends))
            return True

        make("ppo", **SHORT, **kwargs).learn(TOTAL, look)
        return found

    here = seen()
    assert here == seen(evaluator=ProcessEvaluator(2, maker("ppo"))) and len(here) >= TOTAL
    assert [step[0] for step in here] == list(range(1, len(here) + 1))
    assert sum(sum(step[2]) for step in here) == sum(len(step[3]) for step in here) > 20


def test_a_worker_that_dies_changes_nothing(tmp_path: Path) -> None:
    here = contents(make("ppo").learn(TOTAL))
    workers = ProcessEvaluator(2, toy_maker(Deadly, main=os.getpid(), mark=str(tmp_path / "once"), vary=3))
    there = make("ppo", evaluator=workers).learn(TOTAL)
    assert (tmp_path / "once").exists() and differences(here, contents(there)) == []


def test_workers_that_always_die_cost_generations_and_lose_nothing(tmp_path: Path) -> None:
    workers = ProcessEvaluator(1, toy_maker(Deadly, main=os.getpid(), mark=str(tmp_path / "always")))
    model = make("ppo", evaluator=workers, pop_size=2)
    before = contents(model)
    with (
        pytest.warns(UserWarning, match="member 0 lost this generation"),
        pytest.raises(WorkerError, match="no member came through"),
    ):
        model.learn(TOTAL)
    assert differences(before, contents(model)) == [], "the members are as they were before"
    model.evaluator = "vec"
    assert model.learn(TOTAL).n_generations > 0


def test_environments_that_workers_cannot_make() -> None:
    with pytest.raises(ValueError, match=r"env must be made by gymnasium.make"):
        make("ppo", evaluator="process").learn(TOTAL)


def test_statistics_of_the_environments_are_the_champions() -> None:
    env = VecNormalize(environment("ppo"))
    model = make("ppo", env).learn(TOTAL)
    best = model.lineage().groupby("generation").score.max().iloc[-1]
    assert np.isfinite(best) and env.training and env.obs_rms.count > 48


@pytest.mark.parametrize("evaluator", ["vec", ProcessEvaluator(2, toy_maker(vary=3))], ids=["here", "workers"])
def test_fixed_statistics_stay_fixed(evaluator: Any) -> None:
    env = VecNormalize(environment("ppo"), training=False)
    env.obs_rms.mean = np.array([0.5, -0.5, 0.0])
    before = [env.obs_rms.mean.copy(), env.obs_rms.count, env.ret_rms.var]
    model = make("ppo", env, evaluator=evaluator, **SHORT).learn(TOTAL)
    assert model.n_generations > 1 and not env.training
    for found in [(env.obs_rms, env.ret_rms), *((s["obs_rms"], s["ret_rms"]) for s in (m.statistics for m in model._members))]:
        assert np.array_equal(found[0].mean, before[0]) and [found[0].count, found[1].var] == before[1:]
