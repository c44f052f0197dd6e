"""Finds reference cases under ``--reference DIR`` (default: the copies beside this file)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity.cases import Case, discover

HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
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
