"""
Other ways to compute the same updates: ``precision``, and plain modules in place of perceptrons.

Compiled losses are compared with the authors' numbers by ``pytest tests/parity --updates compiled``, which takes minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sb3_erl import ALGOS
from sb3_erl.compiled import programs
from sb3_erl.learners.base import Learner
from sb3_erl.policies import layers as networks
from sb3_erl.policies import sale, sequential
from tests.contract.helpers import Tables
from tests.contract.settings import HYBRIDS, LEARN_FIRST, make, variants

ROOT = Path(__file__).parents[2]
LEARNERS = [(name, extra) for name, extra in variants() if name in HYBRIDS and "SAC" not in str(extra)]


def losses(name: str, n_updates: int = 1, **arguments: Any) -> dict[str, float]:
    """What the first updates, on the same transitions and from the same networks, log as losses."""
    if name in LEARN_FIRST:
        model = make(name, **arguments)
        tables = Tables(model)
        model.learn(200)
        logged = next(table for table in tables.tables if "train/critic_loss" in table)
    else:
        model = make(name, learning_starts=10_000, **arguments).learn(60)
        model.train(n_updates, 16)
        logged = model.logger.name_to_value
    found = {key: value for key, value in logged.items() if key.startswith("train/") and "loss" in key}
    assert found
    return found


@pytest.mark.parametrize(("name", "extra"), LEARNERS)
def test_perceptrons_compute_what_the_modules_compute(
    name: str, extra: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = losses(name, 3, **extra)
    for module in (networks, sale, sequential):
        monkeypatch.setattr(module, "can_fuse", lambda x: False)
    assert losses(name, 3, **extra) == pytest.approx(fused, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(("name", "extra"), [each for each in LEARNERS if each[0] not in LEARN_FIRST])
def test_bf16_is_fp32_but_for_its_mantissa(name: str, extra: dict[str, Any]) -> None:
    exact, coarse = losses(name, **extra), losses(name, precision="bf16", **extra)
    assert coarse == pytest.approx(exact, rel=0.05, abs=0.02)
    assert coarse != exact


def test_bf16_keeps_to_the_authors_numbers() -> None:
    """Their updates again, in bfloat16; tolerances are in ``tests/parity/cases.py``."""
    updates = "cem_rl-update or td3_update or ddpg_update or erl_re2-train or td7-update or rule_equals_sb3"
    flags = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", updates, "--updates", "bf16"]
    outer = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    command = [sys.executable, "-m", "pytest", *flags, "tests/parity"]
    result = subprocess.run(command, cwd=ROOT, env=outer, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout


def test_bf16_reads_the_weights_as_they_are_now() -> None:
    model = make("td7", precision="bf16", learning_starts=10_000).learn(20)
    layer = torch.nn.Linear(3, 2)
    with model._learner_host.updates(16):
        before = layer(torch.ones(1, 3))
        with torch.no_grad():
            layer.weight += 1
        after = layer(torch.ones(1, 3))
    assert before.dtype is torch.bfloat16
    assert (after - before).tolist() == [pytest.approx([3, 3], abs=0.1)]


@pytest.mark.parametrize(("name", "extra"), LEARNERS)
def test_losses_are_handed_to_the_compiler(name: str, extra: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.compile makes of them is compared by ``pytest tests/parity --updates compiled``."""
    expected = losses(name, 2, **extra)
    handed, called = set(), set()

    def compiler(method: Any, dynamic: bool) -> Any:
        handed.add(method.__name__)
        return lambda *args: (called.add(method.__name__), method(*args))[1]  # type: ignore[func-returns-value]

    def inductor(graph: Any, inputs: Any) -> Any:
        handed.add("update")
        return lambda *args: (called.add("update"), graph(*args))[1]  # type: ignore[func-returns-value]

    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(programs, "inductor", inductor)
    assert losses(name, 2, compile=True, **extra) == pytest.approx(expected, rel=1e-3)
    assert handed and called >= {method for method in handed if "critic" in method or method == "update"}


@pytest.mark.parametrize("encoder_step", ["recompute", "joint", "torch11"])
def test_compiled_losses_are_walked_back_once(encoder_step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``torch.compile`` makes may reuse the memory of a first walk, so torch refuses a second one."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(Learner, "is_one_program", False)
    expected = losses("erl_re2", 2, encoder_step=encoder_step)
    assert losses("erl_re2", 2, encoder_step=encoder_step, compile=True) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", HYBRIDS)
def test_options_are_saved_and_checked(name: str, tmp_path: Path) -> None:
    make(name, precision="bf16", compile=True).save(tmp_path / "model")
    loaded = ALGOS[name].load(tmp_path / "model", device="cpu")
    assert (loaded.precision, loaded.compile) == ("bf16", True)
    with pytest.raises(ValueError, match="precision must be one of"):
        make(name, precision="fp16")
    with pytest.raises(TypeError, match="compile must be True, False or 'auto'"):
        make(name, compile="max-autotune")
