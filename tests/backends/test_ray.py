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

from sb3_erl.evaluation.ray_pool import RayEvaluator
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


def evaluator(n_workers: int, flag: Path | None = None, **kwargs: Any) -> RayEvaluator:
    trouble = "none" if flag is None else "die once"
    return RayEvaluator(n_workers, partial(TroubledEnv, trouble, str(flag or "")), num_cpus=0.5, **kwargs)


def pids(own: RayEvaluator) -> list[int]:
    dispatcher: Any = own._dispatcher
    actors = [dispatcher.pool.actor_of(worker) for worker in dispatcher.workers]
    return ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in actors])


@pytest.mark.parametrize(("name", "n_generations"), [("openai_es", 5), ("erl_re2", 3)])
def test_any_number_of_workers_also_when_one_dies(name: str, n_generations: int, cluster: Any, tmp_path: Path) -> None:
    """One, two and four workers; at last an episode kills the process it runs in."""
    end = end_of_generation(name, n_generations)
    expected, log = run(name, end)
    with evaluator(1) as own:
        for n_workers in (1, 2, 4):
            own.n_workers = n_workers
            result, other = run(name, end, evaluator=own)
            assert differences(expected, result) == [] and other == log
        assert own.n_deaths == 0 and own.traffic.messages_in > 0
    with evaluator(2, tmp_path / "died") as own:
        result, other = run(name, end, evaluator=own)
        assert own.n_deaths == 1 and differences(expected, result) == [] and other == log
    assert ray.is_initialized(), "it is not ours"


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


def test_a_machine_is_lost(cluster: Any) -> None:
    """The last test of the cluster: two of four workers live on the machine that goes away."""
    expected, log = run("erl_re2", 150)
    with evaluator(4) as own:
        result, other = run("erl_re2", 150, callback=Trouble(cluster), evaluator=own)
        assert own.n_deaths >= 2 and differences(expected, result) == [] and other == log


def test_a_name_is_enough(cluster: Any) -> None:
    model = make("openai_es", "Pendulum-v1", evaluator="ray", n_pairs=1, n_center_episodes=0)
    model.learn(400)
    assert model.num_timesteps == 400 and model.n_generations == 1 and model.workers.traffic.messages_in == 2
    model.workers.close()
    expected = make("openai_es", "Pendulum-v1", n_pairs=1, n_center_episodes=0)
    expected.learn(400)
    assert bool((expected.evolver.mean == model.evolver.mean).all())
