"""The Pythons that are promised, and what must work right after an installation."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.zoo import smoke
from tests.zoo.conftest import REPOSITORY, clean_environment


@pytest.mark.slow
def test_an_installed_package_trains_at_once(fresh_python: Path, tmp_path: Path) -> None:
    command = [str(fresh_python), str(smoke.__file__)]
    result = subprocess.run(command, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert "load in a new process and rl_zoo3 train work" in result.stdout


def test_the_same_pythons_are_promised_everywhere() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    oldest = project["requires-python"].removeprefix(">=")
    assert oldest == "3.11" and sys.version_info >= tuple(int(part) for part in oldest.split("."))
    listed = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert listed == ["3.11", "3.12", "3.13"], "those that the suite ran on"
    makefile = (REPOSITORY / "Makefile").read_text()
    assert f"sb3_erl needs Python {oldest} or newer" in makefile and "sys.version_info < (3, 11)" in makefile
    assert f"Python {oldest} to 3.13" in (REPOSITORY / "README.md").read_text()
    assert "python_version" not in (REPOSITORY / "constraints.txt").read_text()
