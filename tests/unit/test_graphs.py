"""
Recorded updates, with a stand-in for CUDA graphs that runs on a CPU.

Like a CUDA graph it replays the operations that a function launched, on the very tensors it launched them on, and sees
nothing of Python's decisions; what it cannot show is that CUDA takes the recording.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from sb3_erl.learners.base import Learner
from sb3_erl.learners.graphs import MOST, UpdateGraphs
from sb3_erl.learners.sac import SACLearner
from tests.contract.settings import make

RECORDED: list[tuple[str, dict[str, Any]]] = [
    ("erl_re2", {}),
    ("erl", {}),
    ("erl", {"learner": "td3"}),
    ("erl", {"learner": SACLearner, "policy_kwargs": {"net_arch": [8], "optimizer_kwargs": {"fused": True}}}),
    ("td7", {}),
    ("cerl", {}),
    ("erl_re2", {"learner": "td7"}),
    ("evo_rainbow", {"learner": "sac"}),
]


def record_operations(function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """A :data:`~sb3_erl.learners.graphs.Recorder`."""
    results: list[Any] = []

    def tensors_of(value: Any) -> list[torch.Tensor]:
        if isinstance(value, torch.Tensor):
            return [value]
        parts = value.values() if isinstance(value, dict) else value
        return [tensor for part in parts for tensor in tensors_of(part)]

    def traced() -> list[torch.Tensor]:
        results.append(function())
        return tensors_of(results[-1])

    program = make_fx(traced)()
    function()  # what tracing returned are not tensors
    places = function()

    @torch.no_grad()
    def replay() -> None:
        for place, value in zip(tensors_of(places), program(), strict=True):
            place.copy_(value)

    return places, replay


def learners_of(model: Any) -> list[Learner]:
    return getattr(model.learner, "members", [model.learner])


def trained(name: str, extra: dict[str, Any], record: Any = None) -> Any:
    """A model that has collected 150 transitions and made 20 updates with its learner, in two calls of ``train``."""
    model = make(name, learning_starts=10_000, **extra).learn(150)
    if record is not None:
        for learner in learners_of(model):
            learner.graphs = UpdateGraphs(learner._state, lambda it=learner: list(it.optimizers.values()), record)  # type: ignore[misc]
    for _ in range(2):
        model.train(10, 16)
    return model


def assert_same(first: Any, second: Any, tolerance: float = 0.0) -> None:
    for a, b in zip(first.policy.parameters(), second.policy.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("name", "extra"), RECORDED)
def test_replays_are_the_update(name: str, extra: dict[str, Any]) -> None:
    recorded = trained(name, extra, record_operations)
    for learner in learners_of(recorded):
        assert learner.graphs is not None and learner.graphs.problem is None
        recordings = [recording for recording in learner.graphs._recordings.values() if recording is not None]
        assert recordings and all(recording.n_unchecked == 0 for recording in recordings)
    assert_same(recorded, trained(name, extra), 1e-5)


def refuses(function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """A recorder that fails after it has changed the networks, as a device may."""
    function()
    raise RuntimeError("operation not permitted when stream is capturing")


def forgets(function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """A recorder whose replays do nothing."""
    return function(), lambda: None


@pytest.mark.parametrize(("record", "problem"), [(refuses, "not permitted"), (forgets, "other numbers")])
def test_without_a_good_recording_updates_run_as_they_are(record: Any, problem: str) -> None:
    with pytest.warns(UserWarning, match=f"without CUDA graphs.*{problem}"):
        model = trained("td7", {}, record)
    assert problem in model.learner.graphs.problem
    assert_same(model, trained("td7", {}))


def test_buffers_that_a_module_exchanges_are_not_recorded() -> None:
    class Counting(torch.nn.Module):
        n: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("n", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.n = self.n + 1
            return x + self.n

    module = Counting()
    graphs = UpdateGraphs(lambda: [*module.buffers()], lambda: [], record_operations)
    with pytest.warns(UserWarning, match="without CUDA graphs.* in the place of its buffers"):
        results = [graphs.run("count", lambda x: (module(x),), (torch.zeros(()),))[0].item() for _ in range(4)]
    assert results == [1.0, 2.0, 3.0, 4.0] and module.n == 4


def test_recordings_can_be_switched_off() -> None:
    model = trained("erl", {}, record_operations)
    model.learner.use_graphs = False
    model.train(2, 16)
    assert model.learner.graphs is None


def counted(calls: list[int]) -> tuple[UpdateGraphs, list[torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]:
    state = [torch.zeros(2)]

    def record(function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        calls.append(1)
        result = function()
        return result, lambda: result.copy_(function())

    def add(x: torch.Tensor) -> torch.Tensor:
        state[0] += x
        return state[0] * 2

    return UpdateGraphs(lambda: state, list, record), state, add


def test_what_is_recorded_anew() -> None:
    calls: list[int] = []
    graphs, state, add = counted(calls)
    for step in range(1, 9):
        assert torch.equal(graphs.run("a", add, (torch.ones(2),)), torch.full((2,), 2.0 * step))
    assert len(calls) == 1
    for _ in range(2):  # numbers that are no tensors, and shapes
        graphs.run("b", add, (torch.ones(2),))
        graphs.run("a", add, (torch.ones(1),))
    assert len(calls) == 3
    graphs.refresh()
    graphs.run("a", add, (torch.ones(2),))
    assert len(calls) == 3
    state[0] = state[0].clone()  # as when a model is loaded
    graphs.refresh()
    for _ in range(2):
        graphs.run("a", add, (torch.ones(2),))
    assert len(calls) == 4


def test_constants_that_always_change_are_not_recorded() -> None:
    graphs, state, add = counted([])
    with pytest.warns(UserWarning, match="change too often"):
        for key in range(MOST + 1):
            graphs.run(key, add, (torch.ones(2),))
    graphs.run(MOST, add, (torch.ones(2),))
    assert torch.equal(state[0], torch.full((2,), MOST + 2.0))
