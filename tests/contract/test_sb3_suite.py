"""SB3's own test files with our classes in place of TD3 or DQN; they are fetched when this test runs, not copied."""

from __future__ import annotations

import json
import os
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from sb3_erl import ALGOS
from tests.contract.sb3_suite import source, substitute_path
from tests.contract.sb3_suite.deselect import IGNORED, deselected, small
from tests.contract.settings import DISCRETE, GENERATIONAL, IMAGES, NAMES, ONE_OF_EACH_FAMILY
from tests.warm import WarmPython

# One worker runs all of them, in processes that have imported what they share.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("sb3_suite")]

PYTEST_INI = """
[pytest]
markers = expensive: marks tests as expensive
filterwarnings =
    ignore::DeprecationWarning
    ignore:Treating image space:UserWarning
"""
LEFT_OUT = ("test_utils.py", "test_envs.py")
"""Files about no algorithm: the first needs ale_py, the second checks SB3's own environments."""


@pytest.fixture(scope="session")
def sb3_tests(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = getattr(pytestconfig, "cache", None)  # pytest may run without its cache
    folder = tmp_path_factory.mktemp("sb3_source") if cache is None else cache.mkdir("sb3_source")
    try:
        return source.sb3_tests(folder)
    except source.SourceUnavailable as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"the source distribution of Stable-Baselines3 cannot be downloaded: {error}")


@pytest.fixture(scope="module")
def python() -> Iterator[WarmPython]:
    """An interpreter that has imported what SB3's tests and all of our classes need."""
    outer = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    libraries = ("pytest", "torch", "torch._dynamo", "stable_baselines3", "pandas", "matplotlib.pyplot", "sb3_erl")
    warm = WarmPython(sys.executable, libraries, {**outer, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"})
    yield warm
    warm.close()


def run_suite(python: WarmPython, tests: Path, name: str, folder: Path) -> tuple[int, Counter[str], str]:
    """
    :param python: what runs them
    :param tests: SB3's tests
    :param name: key in ALGOS
    :param folder: where the run takes place
    :return: exit status, number of test cases by outcome, output
    """
    cls, copy = ALGOS[name], folder / "tests"
    shutil.copytree(tests, copy, ignore=shutil.ignore_patterns(*LEFT_OUT, "__pycache__"))
    shutil.copy(substitute_path, copy / "conftest.py")
    (folder / "pytest.ini").write_text(PYTEST_INI)
    replaces = "DQN" if name in DISCRETE else "TD3"
    files = [f"tests/{path.name}" for path in copy.glob("test_*.py") if replaces.lower() in path.read_text().lower()]
    environment = {
        "SB3_SUITE_CLASS": f"{cls.__module__}:{cls.__qualname__}",
        "SB3_SUITE_REPLACES": replaces,
        "SB3_SUITE_DESELECT": json.dumps(sorted(deselected(name))),
        "SB3_SUITE_IGNORED": json.dumps(IGNORED.get(name, ())),
        "SB3_SUITE_SMALL": json.dumps(small(name)),
    }
    flags = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short", "--durations=10", "--junitxml=report.xml"]
    result = python.run(["-m", "pytest", *flags, *sorted(files)], folder, folder, timeout=800, **environment)
    report = folder / "report.xml"
    outcomes: Counter[str] = Counter()
    if report.is_file():
        for case in ElementTree.parse(report).iter("testcase"):
            outcomes[next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")] += 1
    return result.returncode, outcomes, result.stdout + result.stderr


@pytest.mark.parametrize("name", NAMES)
def test_sb3_own_tests_pass(name: str, python: WarmPython, sb3_tests: Path, tmp_path: Path) -> None:
    status, outcomes, output = run_suite(python, sb3_tests, name, tmp_path)
    assert status == 0 and set(outcomes) <= {"passed", "skipped"}, output[-12000:]
    enough = (40 if name in IMAGES and name in GENERATIONAL else 28) - (0 if name in ONE_OF_EACH_FAMILY else 7)
    assert outcomes["passed"] >= enough, f"too few cases ran, is the selection right? {dict(outcomes)}"
