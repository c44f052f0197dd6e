"""Ray gives the answer of the default back-end, on one machine and on several, whatever happens to them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_erl.remote.ray import RayEvaluator
from sb3_erl.rollouts.jobs import EPISODE_PARTS, Job, NoSummary
from tests.backends.records import Record, assert_same_episodes, evaluate
from tests.backends.troubles import TroubledEnv, end_of_generation, run
from tests.contract.helpers import differences
from tests.contract.settings import make

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two machines of two CPUs each, of which the second one can go away."""
    from ray.cluster_utils import Cluster

    sizes = {"num_cpus": 2, "object_store_memory": 100_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=sizes)
    cluster.second = cluster.add_node(num_cpus=2, object_store_memory=100_000_000)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def flag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While this file exists, no environment kills its process."""
    path = tmp_path_factory.mktemp("ray") / "died"
    path.touch()
    return path


@pytest.fixture(scope="module")
def evaluator(cluster: Any, flag: Path) -> Iterator[RayEvaluator]:
    """Workers that are kept from test to test, because Ray takes seconds to start one."""
    evaluator = RayEvaluator(1, partial(TroubledEnv, "die once", str(flag)), num_cpus=0.5)
    with evaluator:
        yield evaluator


def pids(own: RayEvaluator) -> list[int]:
    dispatcher: Any = own._dispatcher
    actors = [dispatcher.pool.actor_of(worker) for worker in dispatcher.workers]
    return ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in actors])


@pytest.mark.parametrize(("name", "n_generations"), [("openai_es", 5), ("erl_re2", 3)])
def test_any_number_of_workers(name: str, n_generations: int, evaluator: RayEvaluator, flag: Path) -> None:
    """One, two and four workers; at last an episode kills the process it runs in."""
    end = end_of_generation(name, n_generations)
    expected, log = run(name, end)
    for n_workers, dies in ((1, False), (2, False), (4, True)):
        deaths, evaluator.n_workers = evaluator.n_deaths, n_workers
        if dies:
            flag.unlink()
        result, other = run(name, end, evaluator=evaluator)
        assert differences(expected, result) == [] and other == log
        assert evaluator.n_deaths == deaths + dies and evaluator.traffic.messages_in > 0


@pytest.mark.parametrize("summarizer", [NoSummary(), None], ids=["scores", "steps"])
def test_what_is_needed_is_there(summarizer: Any, evaluator: RayEvaluator) -> None:
    def episodes(needs: list[str], remote: RayEvaluator | None) -> Any:
        jobs = [Job(0), Job(1, 1), Job(2, horizon=3)]
        env = DummyVecEnv([partial(TroubledEnv, "none")])
        return evaluate(env, jobs, Record(summarizer=summarizer, needs=needs), remote=remote)[0]

    needs = sorted(EPISODE_PARTS)
    assert_same_episodes(episodes(needs, evaluator), episodes(needs, None))
    with pytest.raises(ValueError, match=r"must declare that it needs 'rewards'"):
        _ = episodes([], evaluator).episodes[0].rewards


class Trouble(BaseCallback):
    """Kills a worker at one step, hangs up a machine at another."""

    def __init__(self, cluster: Any):
        super().__init__()
        self.cluster = cluster

    def _on_step(self) -> bool:
        if self.n_calls == 20:
            os.kill(pids(self.model.workers)[0], signal.SIGKILL)
        if self.n_calls == 60:
            self.cluster.remove_node(self.cluster.second, allow_graceful=False)
        return True


def test_a_machine_is_lost(cluster: Any, evaluator: RayEvaluator) -> None:
    """The machine that goes away takes some of the four workers with it; another worker is killed before."""
    expected, log = run("erl_re2", 150)
    evaluator.n_workers, before = 4, evaluator.n_deaths
    result, other = run("erl_re2", 150, callback=Trouble(cluster), evaluator=evaluator)
    assert evaluator.n_deaths >= before + 2 and differences(expected, result) == [] and other == log


def test_a_name_is_enough(cluster: Any, evaluator: RayEvaluator) -> None:
    """And a cluster that somebody else started is left as it is."""
    evaluator.close()
    settings: dict[str, Any] = {"n_pairs": 1, "n_center_episodes": 0}
    model, expected = (make("openai_es", "Pendulum-v1", evaluator=kind, **settings) for kind in ("ray", "vec"))
    for one in (model, expected):
        one.learn(400)
    assert model.num_timesteps == 400 and model.n_generations == 1 and model.workers.traffic.messages_in == 2
    model.workers.close()
    assert bool((expected.evolver.mean == model.evolver.mean).all()) and ray.is_initialized()
