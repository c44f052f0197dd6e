"""Every command of ours that README and the pages show is run, with fewer steps; options of the rest are read."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.zoo.conftest import REPOSITORY, Command, clean_environment

pytestmark = [pytest.mark.zoo, pytest.mark.slow, pytest.mark.xdist_group("zoo")]

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "results" not in page.relative_to(REPOSITORY).parts and "_build" not in page.parts]
NOT_OURS = {"pip", "ray", "minari", ".", "apt", "git", "cd"}
"""Programs of others, which are named as their own documentation names them."""
NEEDS = {"dm_control": "dm_control", "PushBack-v0": "metaworld", "MinAtar": "minatar"}
"""Environments of packages that cannot all be installed side by side."""


def commands() -> Iterator[str]:
    """All lines of blocks of shell commands, continued lines joined, without comments."""
    for page in PAGES:
        for block in re.findall(r"^ *```(?:bash|sh|console)\n(.*?)^ *```", page.read_text(), flags=re.MULTILINE | re.DOTALL):
            for line in re.sub(r"\\\n\s*", " ", block).splitlines():
                yield from filter(None, (part.strip() for part in re.sub(r"(^|\s+)#.*$", "", line).split(" && ")))


COMMANDS = sorted(set(commands()))
TRAINING = [line for line in COMMANDS if re.match(r"(rl_zoo3|sb3-erl) train ", line)]
OF_RUNS = [line for line in COMMANDS if re.match(r"(rl_zoo3 enjoy|sb3-erl plot|python -m rl_zoo3.record_video) ", line)]
PLANNING = [line for line in COMMANDS if line.startswith("sb3-erl plan ")]
OTHERS = [line for line in COMMANDS if line not in [*TRAINING, *OF_RUNS, *PLANNING]]
SHORT = ["-n", "700", "--eval-freq", "-1", "-f", "logs", "--seed", "1"]


def test_there_are_commands() -> None:
    assert len(TRAINING) >= 8 and {"make demo", "make test"} <= set(OTHERS)


@pytest.mark.parametrize("line", TRAINING)
def test_training_begins_and_ends(line: str, command: Command, tmp_path: Path) -> None:
    """As typed, with fewer steps; in a folder of its own, where the files that the command names are."""
    words = shlex.split(re.sub(r'-i "\$\(.*?\)"', "", line))  # goes on from a run that is not there
    needed = NEEDS.get(words[words.index("--env") + 1].split("/")[0])
    if needed is not None and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    if "offline" in line:
        pytest.skip("reads a dataset from the internet")
    words = [word for word in words if word != "--progress"]
    if "--n-trials" in words:
        words[words.index("--n-trials") + 1] = "1"
    (tmp_path / "hyperparams").symlink_to(REPOSITORY / "hyperparams")
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    front, params = _split_params(words)
    small = ["-n", "300", "--eval-freq", "-1", "-f", "logs", "--seed", "1", "--save-freq", "-1"]
    module = {"PYTHONPATH": str(tmp_path)} if "examples." in line else {}
    result = command(*front, *small, *params, cwd=tmp_path, **module)
    assert "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def runs(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs that commands to look at runs are shown with."""
    folder = tmp_path_factory.mktemp("runs")
    command("rl_zoo3", "train", "--algo", "erl_re2", "--env", "Ant-v4", *SHORT, cwd=folder)
    watched = ["-params", "callback:'sb3_erl.PopulationCallback'"]
    command("rl_zoo3", "train", "--algo", "erl_re2", "--env", "Pendulum-v1", *SHORT, *watched, cwd=folder)
    run = folder / "logs" / "erl_re2" / "Pendulum-v1_1"
    for place in ("logs/erl/Pendulum-v1_1", "logs/erl/Pendulum-v1_2", "logs/td3/Pendulum-v1_1", "runs/pendulum"):
        shutil.copytree(run, folder / place)
    return folder


@pytest.mark.parametrize("line", OF_RUNS)
def test_runs_are_looked_at(line: str, runs: Path, command: Command) -> None:
    words = shlex.split(line)
    if words[0] == "sb3-erl":
        before = set(runs.rglob("*.png"))
        command(*words, cwd=runs)
        made = set(runs.rglob("*.png")) - before
        assert made and all(picture.stat().st_size > 5_000 for picture in made)
    elif words[1] == "enjoy":
        assert "Mean reward" in command(*words, "-n", "1500", "--no-render", cwd=runs).stdout
    else:
        renderer = {"MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl")}
        result = command(*words[1:], "-n", "20", cwd=runs, fails=None, **renderer)
        if result.returncode != 0 and re.search("egl|opengl|renderer", result.stderr, re.IGNORECASE):
            pytest.skip("there is no renderer")
        assert result.returncode == 0 and list(runs.rglob("*.mp4")), result.stderr


@pytest.mark.parametrize("line", PLANNING)
def test_planner_plays(line: str, command: Command, tmp_path: Path) -> None:
    """As typed, with few candidates and a single iteration."""
    words, params = _split_params(shlex.split(line))
    if "dm_control/" in line and importlib.util.find_spec("dm_control") is None:
        pytest.skip("dm_control is not installed")
    small = ["-params", *params[1:], "n_candidates:4", "n_elites:2", "n_iterations:1"]
    learned = ["--learn", "300"] if "--learn" in words else []
    assert "return" in command(*words, *learned, *small, cwd=tmp_path).stdout


def test_check_of_a_part(fresh_python: Path) -> None:
    (line,) = [line for line in OTHERS if line.startswith("python -c ")]
    code, environment = shlex.split(line)[2], clean_environment()
    result = subprocess.run([fresh_python, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, timeout=300)
    assert result.returncode == 0, result.stderr


def _split_params(words: list[str]) -> tuple[list[str], list[str]]:
    """:return: words of a command, and ``-params`` with the words that belong to it"""
    if "-params" not in words:
        return words, []
    begin = words.index("-params")
    end = next((i for i in range(begin + 1, len(words)) if words[i].startswith("-")), len(words))
    return words[:begin] + words[end:], words[begin:end]


@pytest.mark.parametrize("line", OTHERS)
def test_program_knows_what_it_is_given(line: str, command: Command) -> None:
    """Targets of make exist, extras are declared, programs list the options that they are shown with."""
    words = [word for word in shlex.split(line) if "=" not in word or not word[0].isupper()]
    for extra in re.findall(r"\[(\w+)\]", line) if words[0] == "pip" else []:
        assert extra in tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)
        assert set(words[1:]) <= set(targets)
        return
    if words[0] in NOT_OURS or words[:3] == ["python", "-m", "venv"] or words[1:2] == ["-c"]:
        return
    if words[:2] == ["python", "-m"]:
        program, rest = ["-m", words[2]], words[3:]
        assert importlib.util.find_spec(words[2]) is not None
    else:
        program, rest = words[:2], words[2:]
        assert program[0] in ("rl_zoo3", "sb3-erl"), f"a program that this test does not know: {line}"
    shown = command(*program, "--help", cwd=REPOSITORY).stdout if rest else ""
    assert [word for word in rest if word.startswith("-") and word not in shown] == []
