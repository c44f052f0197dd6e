"""Ctrl-C in every line of what must be done whole or not at all."""

from __future__ import annotations

import multiprocessing.shared_memory
import signal
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from benchmarks.faults import unused_memory
from benchmarks.injection import what_stays
from sb3_erl.buffers import lap
from sb3_erl.compiled import gradients
from sb3_erl.core import atomic_files as files
from sb3_erl.core.interrupts import uninterrupted
from sb3_erl.core.noise_table import NoiseTable
from sb3_erl.remote import evaluator as remote
from sb3_erl.remote import process as process_pool
from sb3_erl.remote.verification import Verification
from sb3_erl.runs import checkpoints
from tests.contract.settings import make
from tests.interruption import call_with_sigint, ctrl_c_raises

needs_shared_files = pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="shared memory has no names to look at")


def interrupted_everywhere(prepare: Callable[[], Callable[[], Any]], *modules: types.ModuleType) -> Iterator[str]:
    """
    Calls a function again and again, with SIGINT in the first line of these modules that it comes to, in the second one, ...

    :param prepare: makes the function
    :param modules: whose lines count
    :return: for each call, when it has ended, the line that was hit
    """
    sources = {module.__file__ for module in modules}
    number, hit = 0, "?"
    while hit:
        number += 1
        hit, _ = call_with_sigint(prepare(), number, sources.__contains__)
        yield hit
    assert number > 10


def evaluator_with_memory(tables: list[NoiseTable]) -> remote.RemoteEvaluator:
    """As it is inside a phase, but without workers."""
    evaluator = process_pool.ProcessEvaluator(1)
    pool = process_pool.ProcessPool(b"", "spawn")
    evaluator._close = weakref.finalize(evaluator, pool.close)
    parts = {"pool": pool, "verification": Verification(0.0, b"")}
    evaluator._dispatcher = types.SimpleNamespace(**parts)  # type: ignore[assignment]
    pool.publish(0, b"the phase before", tables)
    return evaluator


@needs_shared_files
@pytest.mark.parametrize("what", ["publish", "close"])
def test_shared_memory_is_not_left(what: str) -> None:
    tables = [NoiseTable(100, 0), NoiseTable(100, 1)]
    held: list[Any] = []

    def prepare() -> Callable[[], Any]:
        evaluator: Any = evaluator_with_memory(tables[:1])
        held[:] = [evaluator]
        pool = evaluator._dispatcher.pool
        return evaluator.close if what == "close" else lambda: pool.publish(1, b"the next phase", tables)

    before = unused_memory()
    modules = [weakref] if what == "close" else []
    for line in interrupted_everywhere(prepare, process_pool, remote, multiprocessing.shared_memory, *modules):
        held[0].close()
        assert not what_stays(lambda: unused_memory() - before), f"left by SIGINT in {line}"


def test_files_are_whole_or_as_before(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"

    def write() -> None:
        with files.replacing(path, ".zip") as temporary:
            temporary.write_text("new")

    def prepare() -> Callable[[], Any]:
        path.write_text("old")
        return write

    seen, mask = set(), files.umask()
    for line in interrupted_everywhere(prepare, files):
        assert files.umask() == mask, f"changed by SIGINT in {line}"
        assert [entry.name for entry in tmp_path.iterdir()] == ["model.zip"], f"left by SIGINT in {line}"
        seen.add(path.read_text())
    assert seen == {"old", "new"}


def test_checkpoints_are_whole_or_not_there(tmp_path: Path) -> None:
    def write() -> None:
        with checkpoints.new_checkpoint(tmp_path, 7, {}) as temporary:
            (temporary / "model.zip").write_text("new")
        checkpoints.prune(tmp_path, 1)

    def prepare() -> Callable[[], Any]:
        with checkpoints.new_checkpoint(tmp_path, 5, {}) as temporary:
            (temporary / "model.zip").write_text("old")
        return write

    for line in interrupted_everywhere(prepare, checkpoints, files):
        found = [checkpoints.read_manifest(folder) for folder in tmp_path.glob("checkpoint_*")]
        assert found and None not in found, f"left by SIGINT in {line}"
        checkpoints.remove_leftovers(tmp_path)
        for folder in tmp_path.iterdir():
            checkpoints._delete(folder)


def test_networks_do_not_stay_frozen() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(4)]

    def freeze() -> None:
        with gradients.frozen(parameters):
            pass

    for line in interrupted_everywhere(lambda: freeze, gradients):
        assert all(parameter.requires_grad for parameter in parameters), f"frozen by SIGINT in {line}"


@pytest.mark.parametrize("what", ["append", "write"])
def test_priorities_and_their_sums_agree(what: str) -> None:
    uniform, trees = np.linspace(0, 0.99, 200), [lap.PriorityTree(40)]

    def change() -> None:
        if what == "append":
            trees[0].append(np.arange(20, 30))
        else:
            trees[0].write(np.arange(5), np.full(5, 9.0))
        trees[0].find(uniform)

    def prepare() -> Callable[[], Any]:
        trees[:] = [lap.PriorityTree(40)]
        trees[0].append(np.arange(20))
        trees[0].find(uniform)
        return change

    for line in interrupted_everywhere(prepare, lap):
        sums = trees[0].priority.astype(np.float64).cumsum()
        expected = np.searchsorted(sums, uniform * sums[-1])
        assert np.array_equal(trees[0].find(uniform), expected), f"wrong by SIGINT in {line}"


def test_a_stored_transition_has_a_priority() -> None:
    space, held = spaces.Box(-1, 1, (1,), np.float32), []

    def prepare() -> Callable[[], Any]:
        held[:] = [lap.LAPReplayBuffer(8, space, space)]
        zero = np.zeros((1, 1), np.float32)
        return lambda: held[0].add(zero, zero, zero, np.zeros(1), np.zeros(1), [{}])

    for line in interrupted_everywhere(prepare, lap):
        assert held[0].trees[0].size == held[0].size() == np.count_nonzero(held[0].trees[0].priority), f"SIGINT in {line}"


@pytest.mark.parametrize("name", ["cem", "td7"])
def test_torch_computes_gradients_after_any_end(name: str) -> None:
    """Ctrl-C may come when ``torch.no_grad()`` or autocast are about to be switched back."""

    def spoil(*_: Any) -> bool:
        torch.set_grad_enabled(False)
        torch.set_autocast_enabled("cpu", True)
        raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            make(name).learn(20, spoil)
        assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    finally:
        torch.set_grad_enabled(True)
        torch.set_autocast_enabled("cpu", False)


def test_ctrl_c_comes_after_the_block() -> None:
    steps = []
    with ctrl_c_raises():
        with pytest.raises(KeyboardInterrupt), uninterrupted():
            with uninterrupted():
                signal.raise_signal(signal.SIGINT)
                steps.append("inner")
            steps.append("outer")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert steps == ["inner", "outer"]


def test_ctrl_c_does_not_wait_twice() -> None:
    steps = []
    with ctrl_c_raises(), pytest.raises(KeyboardInterrupt), uninterrupted(), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        steps.append("asked once")
        signal.raise_signal(signal.SIGINT)
        steps.append("asked twice")
    assert steps == ["asked once"]


def test_errors_of_the_block_come_through_and_handlers_return() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="mine"), uninterrupted():
        raise ValueError("mine")
    assert signal.getsignal(signal.SIGINT) is before


def test_threads_and_foreign_handlers_are_left_alone() -> None:
    def in_thread() -> None:
        with uninterrupted():
            seen.append(signal.getsignal(signal.SIGINT))

    seen: list[Any] = []
    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        in_thread()
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [before, signal.SIG_IGN]
