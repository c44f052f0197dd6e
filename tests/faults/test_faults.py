"""Faults end as documented in ``docs/faults.md``; ``make faults`` injects many more of them."""

from __future__ import annotations

import os
import threading
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecNormalize

from benchmarks.faults import Watch, draw, run_batch, unused_memory
from benchmarks.faulty import HANGS, KINDS, NOT_FINITE, faulty_vec_env
from benchmarks.injection import BUFFER_FILES, INTERRUPT, MODEL_FILES, Fault, Unexpected, fits, inject
from sb3_erl.remote.process import ProcessEvaluator
from sb3_erl.rollouts.soundness import FailedEpisodesError
from tests.contract.helpers import differences, snapshot
from tests.contract.settings import GENERATIONAL, STEPWISE, make

ONE_OF_EACH = ["openai_es", "erl_re2", "td7"]
SOME = {"one_in": 5, "at": 1, "seed": 4}


@pytest.fixture(autouse=True)
def stay() -> Any:
    """Faults are injected in a folder of their own."""
    before = os.getcwd()
    yield
    os.chdir(before)


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in HANGS and not kind.startswith("die")])
def test_in_this_process(kind: str, name: str, tmp_path: Path) -> None:
    inject(Fault(kind, "dummy", name, **SOME), tmp_path)


@pytest.mark.parametrize("name", GENERATIONAL)
@pytest.mark.parametrize("kind", ["nan reward", "inf observation"])
def test_failed_individuals_of_every_class(kind: str, name: str, tmp_path: Path) -> None:
    assert inject(Fault(kind, "dummy", name, **SOME), tmp_path) in ("failed individual", "error: all episodes failed")


@pytest.mark.parametrize("kind", ["raise in step", "nan observation", "vector reward", "die in step", INTERRUPT])
def test_in_processes_of_their_own(kind: str, tmp_path: Path) -> None:
    inject(Fault(kind, "subproc", "erl", **SOME), tmp_path)


@pytest.mark.parametrize("kind", [*MODEL_FILES, *BUFFER_FILES])
@pytest.mark.parametrize("name", ["nsra_es", "pderl"])
def test_files(kind: str, name: str, tmp_path: Path) -> None:
    if fits(kind, "file", name):
        inject(Fault(kind, "file", name, seed=3), tmp_path)


@pytest.mark.parametrize("kind", NOT_FINITE)
@pytest.mark.parametrize("name", ["openai_es", "erl_re2", "pderl"])
def test_workers_agree_about_failed_episodes(name: str, kind: str, evaluator: ProcessEvaluator) -> None:
    """Also where a run ends inside one."""

    def learned(**settings: Any) -> Any:
        env = faulty_vec_env(1, kind=kind, one_in=4)
        model = make(name, env, seed=7, **settings)
        with pytest.warns(UserWarning, match=r"episodes failed, the first one of candidate \d+: .*(nan|inf)"):
            model.learn(101)
        return snapshot(model)

    evaluator.make_env.kind[0] = kind  # type: ignore[union-attr]
    evaluator.close()
    assert differences(learned(), learned(evaluator=evaluator)) == []


class Maker:
    """Makes the environment of the moment."""

    def __init__(self) -> None:
        self.kind = ["none"]

    def __call__(self) -> Any:
        from benchmarks.faulty import monitored

        return monitored(kind=self.kind[0], one_in=4)


@pytest.fixture(scope="module")
def evaluator() -> Any:
    """Whose workers are made anew for each kind of fault."""
    with ProcessEvaluator(1, Maker()) as evaluator:
        yield evaluator


@pytest.mark.parametrize("kind", ["nan observation", "inf reward"])
@pytest.mark.parametrize("name", [*GENERATIONAL[:1], *STEPWISE[:1]])
def test_statistics_forget_what_is_not_finite(name: str, kind: str) -> None:
    env = VecNormalize(faulty_vec_env(1, kind=kind, one_in=4))
    model = make(name, env, seed=2)
    with pytest.warns(UserWarning) if name in GENERATIONAL else pytest.raises(ValueError, match="must give finite"):
        model.learn(150)
    for rms in (env.obs_rms, env.ret_rms):
        assert np.isfinite(rms.mean).all() and np.isfinite(rms.var).all() and rms.count > 10


def test_a_generation_without_an_episode_is_an_error() -> None:
    model = make("erl", faulty_vec_env(1, kind="nan in reset", one_in=1))
    with pytest.warns(UserWarning), pytest.raises(FailedEpisodesError, match=r"nan nan nan\] after reset.*as it was after"):
        model.learn(100)
    assert model.num_timesteps == 0 and model.replay_buffer.size() == 0 and model.n_generations == 0


@pytest.mark.parametrize("name", ["ns_es", "nsr_es", "nsra_es", "ga_ns"])
def test_nobody_has_a_behavior_any_more(name: str) -> None:
    """All episodes fail when the archive has entries already: their behaviors are as unknown as their fitness."""
    model = make(name, faulty_vec_env(1))
    model.learn(150)
    model.set_env(faulty_vec_env(1, kind="nan at the end", one_in=1))
    with pytest.warns(UserWarning), pytest.raises(FailedEpisodesError):
        model.learn(500)


@pytest.mark.parametrize("name", ["openai_es", "td7"])
def test_processes_that_were_interrupted_in_a_step_stay_in_step(name: str) -> None:
    """Ctrl-C while the main process waits for answers: the next ``learn`` does not take them for its own."""
    env = faulty_vec_env(2, subprocess=True)
    model = make(name, env)
    inner: Any = env
    step_wait = inner.step_wait

    def interrupted() -> Any:
        if model.num_timesteps > 20 and not calls:
            calls.append(inner.remotes[0].recv())  # one of two answers was taken
            raise KeyboardInterrupt
        return step_wait()

    calls: list[Any] = []
    inner.step_wait = interrupted
    with pytest.raises(KeyboardInterrupt):
        model.learn(100)
    assert calls and inner.waiting is False
    model.learn(40, reset_num_timesteps=False)
    env.close()


def test_closed_environments_are_refused(tmp_path: Path) -> None:
    env = faulty_vec_env(2, subprocess=True)
    env.close()
    with pytest.raises(ValueError, match=r"env must be open; its processes have ended.*set_env"):
        make("openai_es", env).learn(10)


def test_an_unexpected_ending_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that ends in another way is reported, and one that hangs is given up after the time limit."""
    monkeypatch.setattr("sb3_erl.rollouts.rollout.what_is_wrong", lambda *_: "")
    with pytest.raises(Unexpected):
        inject(Fault("nan reward", "dummy", "cem", **SOME), tmp_path)
    monkeypatch.setattr("benchmarks.faults.inject", lambda *_: threading.Event().wait())
    records = run_batch([Fault("nan reward", "dummy", "cem")], limit=0.5)
    assert [record["ok"] for record in records] == [False] and "lost" in records[0]["ending"]


def test_time_in_the_queue_for_a_core_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it counted twice where two processes waited at the same time."""
    looks: Any = iter([(10.0, {1: 4.0}), (20.0, {1: 7.0, 2: 2.0}), (30.0, {1: 7.0, 3: 11.0}), (40.0, {})])
    now: list[Any] = [0.0, {}]

    def look() -> float:
        now[:] = next(looks)
        return watch.look()

    monkeypatch.setattr("benchmarks.faults.queued_seconds", lambda _: now[1])
    monkeypatch.setattr("benchmarks.faults.time.monotonic", lambda: now[0])
    watch = Watch(1)
    assert [look() for _ in range(4)] == [6.0, 7.0, 0.0, 10.0]


def test_the_draw_has_every_kind_and_backend() -> None:
    faults = draw(200, 0, 8)
    assert len(faults) == 200 and draw(200, 0, 8) == faults != draw(200, 1, 8)
    pairs = {(fault.kind, fault.backend) for fault in faults}
    assert {kind for kind, _ in pairs} == {*KINDS, INTERRUPT, *MODEL_FILES, *BUFFER_FILES}
    assert {backend for _, backend in pairs} == {"dummy", "subproc", "process", "ray", "file"}


def test_ray_that_starts_too_late_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is started again by a new process; a fault that began is never injected twice."""

    def start() -> None:
        attempts = len(list(tmp_path.iterdir()))
        (tmp_path / str(attempts)).touch()
        if attempts < n_failures:
            raise RuntimeError("the node timed out")

    monkeypatch.setattr("benchmarks.faults.start_ray", start)
    monkeypatch.setattr(
        "benchmarks.faults.inject", lambda fault, _: os._exit(1) if fault.kind == "die in step" else fault.kind
    )
    faults = [Fault(kind, backend, "cem") for kind, backend in (("a", "dummy"), ("b", "ray"), ("die in step", "ray"))]
    n_failures = 2
    assert [record["ending"] for record in run_batch(faults)] == ["a", "b", "lost: its process died"]
    n_failures = 100
    with pytest.raises(RuntimeError, match="Ray did not start in 5 attempts"):
        run_batch(faults)


def test_memory_that_somebody_uses_is_not_left_over() -> None:
    memory = SharedMemory(create=True, size=8)
    name = memory.name.lstrip("/")
    try:
        assert name not in unused_memory()
        memory.close()
        assert name in unused_memory()
    finally:
        memory.unlink()
    assert name not in unused_memory()
