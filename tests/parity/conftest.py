"""Finds reference cases under ``--reference DIR`` (default: the copies beside this file)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sb3_erl.learners.base import Learner, products_in
from sb3_erl.learners.gradient_steps import GradientSteps
from tests.parity.cases import Case, discover

HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--updates", default="default", choices=("default", "compiled", "bf16"), help="how losses are computed")
    parser.addoption("--reference", default=str(HERE / "reference"), help="folder with <system>/*.json reference cases")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    system = getattr(metafunc.module, "SYSTEM", None)
    if system is None:
        return
    folder = Path(metafunc.config.getoption("--reference")).resolve()
    cases: list[Case] = discover(folder, system)
    metafunc.parametrize("case", cases, ids=[f"{system}-{case.name}" for case in cases])


@pytest.fixture(autouse=True)
def updates(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Learners of the replays have compiled losses, or update as with ``precision="bf16"``, if ``--updates`` says so."""
    how, plain = request.config.getoption("--updates"), Learner.__init__
    case = getattr(request.node, "callspec", None) and request.node.callspec.params.get("case")

    def coarse(method: Callable[..., Any]) -> Callable[..., Any]:
        def update(*args: Any, **kwargs: Any) -> Any:
            if case:
                case.is_bf16 = True
            with products_in("bf16", torch.device("cpu")):
                return method(*args, **kwargs)

        return update

    def compiled(learner: Learner, method: Callable[..., Any]) -> Callable[..., Any]:
        def update(*args: Any, **kwargs: Any) -> Any:
            learner.compile()  # not before it is complete
            return method(*args, **kwargs)

        return update

    def init(self: Learner, *args: Any) -> None:
        plain(self, *args)
        for name in ("update", "iterate", "critic_update"):
            if hasattr(self, name) and how != "default":
                method = getattr(self, name)
                setattr(self, name, compiled(self, method) if how == "compiled" else coarse(method))

    if how != "default":
        monkeypatch.setattr(Learner, "__init__", init)
    if how == "bf16":
        monkeypatch.setattr(GradientSteps, "__call__", coarse(GradientSteps.__call__))
