"""Finds reference cases under ``--reference DIR`` (default: the copies beside this file)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sb3_erl.learners.base import Learner
from tests.parity.cases import Case, discover

HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--updates", default="default", choices=("default", "compiled"), help="how losses are computed")
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
def compiled_updates(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``--updates compiled`` all learners of the replays have compiled losses."""
    if request.config.getoption("--updates") == "compiled":
        plain = Learner.__init__

        def init(self: Learner, *args: Any) -> None:
            plain(self, *args)
            self.compile()

        monkeypatch.setattr(Learner, "__init__", init)
