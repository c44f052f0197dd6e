"""
Updates as CUDA graphs: one launch in place of hundreds of kernels that Python launches one by one.

Batches are drawn on the host, as on a CPU, so that both devices learn from the same transitions; what follows is recorded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sb3_erl.compiled.programs import EXCHANGED, exchanged

Recorder = Callable[[Callable[[], Any]], tuple[Any, Callable[[], None]]]
"""From a function to what it returned, tensors that every replay writes again, and its replay."""
WARM_UP = 3
"""Runs before a recording, in which libraries reserve their memory."""
CHECKED = 3
"""Replays of each recording that are compared with the function itself."""
TOLERANCE = 0.05
"""Relative difference between two changes of a tensor that may come from the order of additions."""
MOST = 32
"""Recordings; where constants change so often that more are needed, recording does not pay."""


def record_cuda_graph(function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """See :data:`Recorder`; runs the function a few times."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*capturable=True")  # optimizers complain of steps outside a recording
        for _ in range(WARM_UP):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()
    return result, graph.replay


@dataclass
class _Recording:
    inputs: Any
    result: Any
    replay: Callable[[], None]
    n_unchecked: int = CHECKED


class UpdateGraphs:
    """
    Runs functions of tensors; from its second call on, a function is recorded and replayed.

    The first replays of every recording are compared with the function. Where they differ, where something cannot be
    recorded, or where constants change all the time, there is one warning, and functions run as they are from then on:
    the numbers are right in any case.

    :param state: gives the tensors that functions change: parameters, buffers, states of optimizers
    :param optimizers: gives the optimizers that functions use
    :param record: makes recordings

    :attr:`problem` is the reason why nothing is recorded any more, ``None`` while updates are recorded.
    """

    def __init__(
        self,
        state: Callable[[], list[Tensor]],
        optimizers: Callable[[], Sequence[torch.optim.Optimizer]],
        record: Recorder = record_cuda_graph,
    ):
        self._state, self._optimizers, self._record = state, optimizers, record
        self._recordings: dict[Hashable, _Recording | None] = {}
        self._addresses: list[tuple[int, bool]] = []
        self.problem: str | None = None

    def refresh(self) -> None:
        """Forget recordings if tensors were exchanged since, as happens when parameters are loaded, or frozen."""
        before = self._addresses
        if self._note_addresses() != before:
            self._recordings.clear()

    def _note_addresses(self) -> list[tuple[int, bool]]:
        self._addresses = [(tensor.data_ptr(), tensor.requires_grad) for tensor in self._state()]
        return self._addresses

    def run(self, key: Hashable, function: Callable[..., Any], inputs: tuple[Any, ...]) -> Any:
        """
        :param key: names the function and all numbers in it that are no tensors
        :param function: from tensors to tensors, whose control flow does not depend on values
        :param inputs: tensors, ``None``, and tuples and dicts of them
        :return: what the function returns; the next call writes into the same tensors
        """
        if self.problem is not None:
            return function(*inputs)
        key = key, _shapes(inputs)
        if key not in self._recordings:
            self._recordings[key] = None  # the first call makes what is missing, such as states of optimizers
            if len(self._recordings) > MOST:
                self._give_up("learning rates or other constants change too often")
            return function(*inputs)
        recording = self._recordings[key]
        if recording is None:
            return self._recorded(key, function, inputs)
        return self._checked(recording, function, inputs) if recording.n_unchecked else _replayed(recording, inputs)

    def _recorded(self, key: Hashable, function: Callable[..., Any], inputs: tuple[Any, ...]) -> Any:
        self._note_addresses()
        state = self._state()
        before, places = _copied(state), _copied(inputs)
        for optimizer in self._optimizers():  # else Adam counts its steps in Python
            _set_capturable(optimizer, True)
        try:
            result, replay = self._record(lambda: function(*places))
            if exchanged(state, self._state()):
                self._give_up(EXCHANGED)
        except Exception as error:  # whatever it is, the update itself is not at fault
            self._give_up(f"{type(error).__name__}: {error}")
        finally:
            for optimizer in self._optimizers():
                _set_capturable(optimizer, False)
            for place, value in zip(self._state(), before, strict=False):
                _write(place, value)
        if self.problem is not None:
            return function(*inputs)
        recording = self._recordings[key] = _Recording(places, result, replay)
        return self._checked(recording, function, inputs)

    def _checked(self, recording: _Recording, function: Callable[..., Any], inputs: tuple[Any, ...]) -> Any:
        state = self._state()
        before = _copied(state)
        result = _copied(function(*inputs))
        after = _copied(state)
        _write(state, before)
        replayed = _replayed(recording, inputs)
        recording.n_unchecked -= 1
        if all(_same_change(*tensors) for tensors in zip(before, after, state, strict=True)):
            return replayed
        _write(state, after)
        self._give_up("a replay computed other numbers than the update itself")
        return result

    def _give_up(self, why: str) -> None:
        self.problem = why
        self._recordings.clear()
        warnings.warn(f"updates run without CUDA graphs, which is slower: {why}", stacklevel=2)


def _replayed(recording: _Recording, inputs: tuple[Any, ...]) -> Any:
    _write(recording.inputs, inputs)
    recording.replay()
    return recording.result


def _set_capturable(optimizer: torch.optim.Optimizer, value: bool) -> None:
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = value


def _same_change(before: Tensor, expected: Tensor, actual: Tensor) -> bool:
    """Whether a tensor changed as expected, but for the order of additions."""
    rounding = 1e-6 * before.double().norm()
    change = (expected.double() - before.double()).norm()
    return bool((actual.double() - expected.double()).norm() <= TOLERANCE * change + rounding)


def _copied(value: Any) -> Any:
    """Clones of the tensors of a nest of tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {name: _copied(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        parts = [_copied(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


@torch.no_grad()
def _write(places: Any, values: Any) -> None:
    """Copy the tensors of one nest into those of another."""
    if isinstance(places, Tensor):
        places.copy_(values)
    elif isinstance(places, dict):
        for name, place in places.items():
            _write(place, values[name])
    elif isinstance(places, tuple | list):
        for place, value in zip(places, values, strict=True):
            _write(place, value)


def _shapes(value: Any) -> Hashable:
    """What recordings of one function depend on: shapes and types of its inputs."""
    if isinstance(value, Tensor):
        return (*value.shape, value.dtype)
    if isinstance(value, dict):
        return tuple((name, _shapes(part)) for name, part in value.items())
    return tuple(_shapes(part) for part in value) if isinstance(value, tuple) else value
