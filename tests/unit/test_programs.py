"""
Updates as compiled programs.

Most tests have a stand-in for the compiler that hands back what it is given, the traced list of operations: it shows that the
trace holds the whole update. What the compiler makes of it is shown with one small class, where there is a compiler.
"""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sb3_erl import ALGOS
from sb3_erl.compiled import operators, programs
from sb3_erl.compiled.gradients import can_trace
from sb3_erl.compiled.programs import MOST, UpdatePrograms, keep_compiled_code
from sb3_erl.engine import learner_host
from sb3_erl.learners.sac import SACLearner
from tests.contract.helpers import differences, snapshot
from tests.contract.settings import make
from tests.envs import toy_vec_env
from tests.unit.test_graphs import RECORDED, assert_same, learners_of

FUSED_SAC: dict[str, Any] = {"learner": SACLearner, "policy_kwargs": {"net_arch": [32], "optimizer_kwargs": {"fused": True}}}
COMPILED = [
    *RECORDED,
    ("veb_rl", {}),
    ("pop_td7", {}),
    ("erl", {"learner": "td7"}),
    ("cem_rl", {}),
    ("esac", {}),
    ("erl", FUSED_SAC),
]
COMPILED += [("erl", {"precision": "bf16"}), ("erl", {"n_steps": 3}), ("erl_re2", {"encoder_step": "joint"})]
WIDE = {"net_arch": [32, 32]}
"""Wide enough for other products where the machine has faster ones."""


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Traced updates, which run as they are."""
    found: list[Any] = []

    def compiler(graph: Any, inputs: Any) -> Any:
        found.append(graph)
        return graph

    monkeypatch.setattr(programs, "inductor", compiler)
    return found


def trained(name: str, extra: dict[str, Any], n_steps: int = 130, **arguments: Any) -> Any:
    """A model that has learned for some steps, from equal seeds."""
    return make(name, **{"policy_kwargs": WIDE, **extra, **arguments}).learn(n_steps)


@pytest.mark.parametrize(("name", "extra"), COMPILED)
def test_programs_are_the_update(name: str, extra: dict[str, Any], traces: list[Any]) -> None:
    compiled = trained(name, extra, compile=True)
    assert traces and compiled._n_updates > 0
    for learner in learners_of(compiled):
        assert learner.programs is not None and learner.programs.problem is None
        assert learner.programs._programs
    tolerance = 0.05 if "precision" in extra else 2e-3
    assert_same(compiled, trained(name, extra), tolerance)


@pytest.mark.parametrize("name", ["erl", "erl_re2", "td7"])
def test_with_faster_products_too(name: str, traces: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch has no oneDNN here")
    monkeypatch.setattr(operators, "prefers_onednn", lambda: True)
    monkeypatch.setattr(operators, "FEWEST", 2**10)
    compiled = trained(name, {}, compile=True)
    called = {str(node.target) for graph in traces for node in graph.graph.nodes}
    assert "sb3_erl.linear.default" in called
    assert_same(compiled, trained(name, {}), 2e-3)


def test_what_is_traced_anew(traces: list[Any]) -> None:
    model = make("erl", compile=True).learn(60)
    n_before = len(traces)
    model.learning_rate, model.lr_schedule = 1e-4, lambda _: 1e-4
    model.train(3, 16)
    assert len(traces) == n_before, "learning rates are no part of a program"
    model.policy.actor.optimizer.load_state_dict(copy.deepcopy(model.policy.actor.optimizer.state_dict()))
    twin = copy.deepcopy(model)
    twin.set_logger(model.logger)
    for each in (model, twin):
        each.train(3, 16)
    assert len(traces) > n_before, "a copy traces its own"
    assert_same(model, twin)
    n_before = len(traces)
    model.gamma = 0.9
    model.train(3, 16)
    assert len(traces) == n_before + 1, "other constants are another program"


@pytest.mark.parametrize(("name", "extra"), [("erl", {}), ("erl_re2", {}), ("td7", {}), ("cem_rl", {}), ("veb_rl", {})])
def test_resumed_runs_are_uninterrupted_ones(name: str, extra: dict[str, Any], traces: list[Any], tmp_path: Path) -> None:
    check_resumed(name, tmp_path, compile=True, **extra)
    assert traces


def check_resumed(name: str, folder: Path, **arguments: Any) -> Any:
    """A run in two parts, by way of files, against one in one go; both end with the same episode or generation."""
    first = make(name, **arguments).learn(96)
    n_first = first.num_timesteps
    straight = make(name, **arguments).learn(n_first)
    straight.learn(96, reset_num_timesteps=False)
    first.save(folder / "model")
    first.save_replay_buffer(folder / "buffer")
    resumed = ALGOS[name].load(folder / "model", env=toy_vec_env())
    resumed.load_replay_buffer(folder / "buffer")
    resumed.learn(96, reset_num_timesteps=False)
    assert straight._n_updates > 0
    assert differences(snapshot(straight), snapshot(resumed)) == []
    return resumed


def test_without_a_compiler_updates_run_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(programs, "inductor", fails)
    with pytest.warns(UserWarning, match="not compiled.*No working C.*compile=False") as warned:
        model = trained("td7", {}, compile=True)
    assert len([each for each in warned if "not compiled" in str(each.message)]) == 1
    assert_same(model, trained("td7", {}))


def test_automatic_compiling_begins_after_many_updates(
    traces: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert make("td7").compile == "auto"
    trained("td7", {})
    assert not traces, "short runs are what they would be without"
    monkeypatch.setattr(learner_host, "AUTO_AFTER", 60)
    model = trained("td7", {}, 250, verbose=1)
    assert traces and model._n_updates > 60
    assert capsys.readouterr().out.count("compiling updates after") == 1
    check_resumed("td7", tmp_path)


def test_automatic_compiling_leaves_what_is_not_one_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner_host, "AUTO_AFTER", 0)
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    model = make("erl", policy_kwargs={**WIDE, "optimizer_class": torch.optim.RMSprop, "optimizer_kwargs": {}}).learn(60)
    assert model._n_updates > 0 and model.learner.programs is None


def test_constants_that_always_change_are_not_compiled() -> None:
    state = [torch.zeros(2)]

    def add(x: torch.Tensor) -> torch.Tensor:
        state[0] += x
        return state[0] * 2

    runner = UpdatePrograms(lambda: state, list, lambda graph, inputs: graph)
    with pytest.warns(UserWarning, match="change too often"):
        for key in range(MOST + 1):
            runner.run(key, add, (torch.ones(2),))
    assert torch.equal(state[0], torch.full((2,), MOST + 1.0))


def test_optimizers_that_can_be_traced() -> None:
    tensors = [torch.nn.Parameter(torch.zeros(2))]
    assert can_trace(torch.optim.Adam(tensors)) and can_trace(torch.optim.AdamW(tensors, weight_decay=0.1))
    assert not can_trace(torch.optim.SGD(tensors)) and not can_trace(torch.optim.Adam(tensors, amsgrad=True))


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_decay_of_weights(kind: type, traces: list[Any]) -> None:
    extra = {"policy_kwargs": {**WIDE, "optimizer_class": kind, "optimizer_kwargs": {"weight_decay": 0.1}}}
    compiled = trained("erl", extra, compile=True)
    assert traces
    assert_same(compiled, trained("erl", extra), 2e-3)


def test_compiled_code_is_kept_in_a_folder_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = "TORCHINDUCTOR_CACHE_DIR"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(name, str(tmp_path / "own"))
    keep_compiled_code()
    assert os.environ[name] == str(tmp_path / "own")
    for before in ("", str(Path(programs.tempfile.gettempdir()) / "torchinductor_user")):
        monkeypatch.setenv(name, before)
        keep_compiled_code()
        assert os.environ[name] == str(tmp_path / "sb3_erl" / "inductor")


CODE = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.unit.test_programs import check_resumed
folder = Path(sys.argv[1])
folder.mkdir()
resumed = check_resumed("erl", folder, compile=True)
assert resumed.learner.programs.problem is None
from torch._dynamo.utils import counters
print(counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
print(sum(p.double().sum().item() for p in resumed.policy.parameters()).hex())
"""


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="there is no compiler")
def test_compiled_runs_are_the_same_with_a_cold_and_a_warm_cache(tmp_path: Path) -> None:
    """In two processes, each of which also compares a resumed run with an uninterrupted one, bit for bit."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(root)}
    sums = []
    for name in ("cold", "warm"):
        command = [sys.executable, "-W", "ignore", "-c", CODE, str(tmp_path / name)]
        result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=900)
        assert result.returncode == 0, result.stderr
        counts, total = result.stdout.split("\n")[:2]
        sums.append(total)
        hits, misses = map(int, counts.split())
        assert (hits > 0 and misses == 0) if name == "warm" else misses > 0, counts
    assert sums[0] == sums[1]
