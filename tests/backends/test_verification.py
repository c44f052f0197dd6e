"""Results that are computed a second time: forged ones are found, honest ones cost what was asked for."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.monitor import Monitor

from sb3_erl.remote.dispatcher import WorkerError
from sb3_erl.remote.process import ProcessEvaluator
from sb3_erl.remote.verification import HERE, Verification, is_same
from tests import envs
from tests.backends.troubles import EPISODES, end_of_generation, run, toy
from tests.contract.helpers import differences
from tests.contract.settings import make
from tests.envs import ToyEnv


class ForgingEnv(ToyEnv):
    """
    :class:`~tests.envs.ToyEnv` that is forged in the first process that makes one.

    :param flag: file that says that there is such a process
    :param what: what is forged, in one step of the episodes: the ``"reward"``, the ``"observation"`` by its last bit, or
        ``"nothing"``; ``"chaos"`` is a reward that nobody can compute again, in all processes
    """

    def __init__(self, flag: str, what: str, **kwargs: Any):
        super().__init__(**{**EPISODES, **kwargs})
        self.what = what
        try:
            file = os.open(flag, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            os.write(file, str(os.getpid()).encode())
            os.close(file)
            self.forges = True
        except FileExistsError:
            self.forges = what == "chaos"

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, *rest = super().step(action)
        if self.forges and self.time == 3:
            reward += {"reward": 0.5, "chaos": float(np.frombuffer(os.urandom(4), np.uint32)[0])}.get(self.what, 0.0)
            if self.what == "observation":
                observation = np.nextafter(observation, np.inf, dtype=observation.dtype)
        return observation, reward, *rest  # type: ignore[return-value]


def forging_env(flag: str, what: str) -> Monitor:
    return Monitor(ForgingEnv(flag, what, n_actions=envs.N_ACTIONS))


Makes = Any


@pytest.fixture
def evaluators(tmp_path: Path) -> Iterator[Makes]:
    made: list[ProcessEvaluator] = []
    names = itertools.count()

    def make_one(what: str, n_workers: int, verify: float, **kwargs: Any) -> ProcessEvaluator:
        flag = tmp_path / str(next(names))
        made.append(ProcessEvaluator(n_workers, partial(forging_env, str(flag), what), verify=verify, **kwargs))
        return made[-1]

    yield make_one
    for evaluator in made:
        evaluator.close()


@pytest.mark.parametrize(("name", "what"), [("openai_es", "reward"), ("erl_re2", "reward"), ("erl_re2", "observation")])
@pytest.mark.parametrize("n_workers", [1, 2, 4])
def test_a_forger_is_named_dismissed_and_without_effect(name: str, what: str, n_workers: int, evaluators: Makes) -> None:
    end = end_of_generation(name, 2)
    expected, log = run(name, end)
    evaluator = evaluators(what, n_workers, 1.0)
    with pytest.warns(UserWarning, match=r"worker \d+ \(process \d+\) sent a wrong result of job \d+.*dismissed") as found:
        result, other = run(name, end, evaluator=evaluator)
    forger = Path(evaluator.make_env.args[0]).read_text()
    assert len(found) == 1 and f"(process {forger})" in str(found[0].message)
    assert len(evaluator.dismissed) == 1 and evaluator.n_deaths == 0
    assert differences(expected, result) == [] and other == log


def test_without_verification_the_forger_has_an_effect(evaluators: Makes) -> None:
    end = end_of_generation("erl_re2", 2)
    expected, _ = run("erl_re2", end)
    result, _ = run("erl_re2", end, evaluator=evaluators("reward", 1, 0.0))
    assert any("replay_buffer.rewards" in difference for difference in differences(expected, result))


@pytest.mark.parametrize("n_workers", [1, 3])
def test_honest_workers_cost_the_share(n_workers: int, evaluators: Makes) -> None:
    expected, log = run("openai_es", 800)
    n_threads, state = torch.get_num_threads(), np.random.get_state()[1]
    counts = {}
    for verify in (0.25, 1.0):
        evaluator = evaluators("nothing", n_workers, verify)
        result, other = run("openai_es", 800, evaluator=evaluator)
        assert differences(expected, result) == [] and other == log and evaluator.dismissed == []
        counts[verify] = evaluator.n_verified
    assert torch.get_num_threads() == n_threads and np.array_equal(np.random.get_state()[1], state)
    n_jobs = counts[1.0]
    assert n_jobs >= 100
    assert abs(counts[0.25] - 0.25 * n_jobs) < 5 * np.sqrt(n_jobs * 0.25 * 0.75)


@pytest.mark.parametrize("n_workers", [1, 3])
def test_an_environment_that_cannot_be_computed_again_is_refused(n_workers: int, evaluators: Makes) -> None:
    model = make("openai_es", toy(), evaluator=evaluators("chaos", n_workers, 1.0))
    with pytest.raises(WorkerError, match=r"verify=1 needs an environment in which everything follows from reset\(seed="):
        model.learn(200)


def test_a_forger_that_only_verifies_is_found() -> None:
    """Of one that was caught as a verifier nothing counts, and what it was to verify goes to others."""
    verification = Verification(1.0, b"")
    verification.begin(b"", 3)
    for number in range(3):
        verification.received("honest" if number < 2 else "forger", number, lambda: (1.0,))
    assert verification.again("forger", 0, (2.0,)) is None and verification.again("third", 0, (1.0,)) == "forger"
    assert verification.again("forger", 1, (3.0,)) is None
    assert verification.forget("forger") == [2]
    assert verification.holds(1) and verification.may_run("third", 1) and not verification.holds(2)
    assert verification.again("third", 1, (1.0,)) is None and verification.is_over


def test_this_process_does_not_overrule_two_workers() -> None:
    verification = Verification(1.0, b"")
    verification.begin(b"", 1)
    verification.received("one", 0, lambda: 1.0)
    assert verification.again(HERE, 0, 2.0) is None
    with pytest.raises(WorkerError, match="only the result of this process differs"):
        verification.again("two", 0, 1.0)


def test_results_are_compared_to_the_last_bit() -> None:
    def result(**changes: Any) -> Any:
        info = {"episode": {"r": 1.5, "l": 3, "t": 0.1}, "is_success": np.bool_(True)}
        return {"rewards": np.array([1.0, np.nan]), "info": info, "zero": 0.0, "more": [torch.ones(2), None], **changes}

    assert is_same(result(), result())
    later = result(info={"episode": {"r": 1.5, "l": 3, "t": 7.0}, "is_success": np.bool_(True)})
    assert is_same(result(), later)  # Monitor's clock
    for changes in (
        {"zero": -0.0},
        {"zero": 0},
        {"rewards": np.array([np.nextafter(1.0, 2.0), np.nan])},
        {"rewards": np.array([1.0, np.nan], dtype=np.float32)},
        {"info": {"episode": {"r": 1.0, "l": 3, "t": 0.1}, "is_success": np.bool_(True)}},
        {"more": [torch.ones(2), 0]},
        {"more": [torch.ones(2)]},
        {"another": 1},
    ):
        assert not is_same(result(), result(**changes))


@pytest.mark.parametrize("verify", [-0.1, 1.5, float("nan")])
def test_shares_that_are_none(verify: float) -> None:
    with pytest.raises(ValueError, match=r"verify must be"):
        ProcessEvaluator(verify=verify)
