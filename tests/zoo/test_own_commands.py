"""The commands of this package: what they print is true, fits a screen, and comes without importing the Zoo."""

from __future__ import annotations

import inspect
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

import sb3_erl
from sb3_erl import ALGOS
from sb3_erl.core.extras import EXTRAS
from sb3_erl.core.registry import PARTS
from sb3_erl.zoo import command, doctor
from sb3_erl.zoo.systems import SYSTEMS
from tests.contract.settings import fast
from tests.zoo.conftest import REPOSITORY, clean_environment

LINES, COLUMNS = 24, 100
"""A screen."""


def run(*words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", ["sb3-erl", *words])
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    try:
        command.main()
    except SystemExit as end:
        assert end.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["list"], ["doctor"], *([name, "--help"] for name in command.OWN)]
)
def test_what_is_printed_fits_a_screen(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = run(*words, monkeypatch=monkeypatch, capsys=capsys).splitlines()
    assert 1 <= len(lines) <= LINES
    assert [line for line in lines if len(line) > COLUMNS] == []


@pytest.mark.parametrize("word", ["--version", "-V"])
def test_the_version_is_that_of_the_package(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(word, monkeypatch=monkeypatch, capsys=capsys) == f"sb3-erl {sb3_erl.__version__}\n"


def test_help_names_every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = run("--help", monkeypatch=monkeypatch, capsys=capsys)
    assert all(re.search(rf"\b{name}\b", text) for name in (*command.OWN, *command.SCRIPTS, *command.MODULES))


def test_an_unknown_command_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["sb3-erl", "plto"])
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == 2 and "unknown command 'plto'" in capsys.readouterr().err


# -------------------------------------------------------------------- list


def test_every_system_is_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run("list", monkeypatch=monkeypatch, capsys=capsys).splitlines()
    assert {line.split()[0] for line in lines[1:]} == set(ALGOS) == set(SYSTEMS)


@pytest.mark.parametrize("key", list(SYSTEMS))
def test_papers_are_those_of_the_docstrings(key: str) -> None:
    documented = " ".join(inspect.getdoc(cls) or "" for cls in ALGOS[key].__mro__ if cls.__module__.startswith("sb3_erl."))
    number = re.search(r"arXiv:([\d.]+)", SYSTEMS[key].paper)
    if number is not None:
        assert f"arxiv.org/abs/{number.group(1)}" in documented
    else:
        assert key == "pop_td7" or SYSTEMS[key].paper.split(" et al.")[0].split(",")[0] in documented


class Task(gym.Env):
    def __init__(self, actions: gym.Space):
        self.observation_space, self.action_space = gym.spaces.Box(-1.0, 1.0, (3,)), actions


SPACES: dict[str, gym.Space] = {
    "box": gym.spaces.Box(-1.0, 1.0, (2,)),
    "discrete": gym.spaces.Discrete(3),
    "multi": gym.spaces.MultiDiscrete([2, 3]),
}
OWN = [key for key in SYSTEMS if key != "pbt"]
"""Systems that have networks of their own: the members of PBT are models of any class."""


def takes(key: str, kind: str, **kwargs: Any) -> bool:
    small = {name: value for name, value in fast(key).items() if name not in ("policy_kwargs", *kwargs)}
    try:
        ALGOS[key](next(iter(ALGOS[key].policy_aliases)), Task(SPACES[kind]), **small, **kwargs)
    except (AssertionError, ValueError):
        return False
    return True


@pytest.mark.parametrize("key", OWN)
def test_kinds_of_actions_are_those_that_are_taken(key: str) -> None:
    system = SYSTEMS[key]
    kinds = [kind for kind in SPACES if takes(key, kind) or ("dqn" in system.learners and takes(key, kind, learner="dqn"))]
    assert ("every kind" if kinds == list(SPACES) else ", ".join(kinds)) == system.actions


@pytest.mark.parametrize("key", OWN)
def test_learners_are_those_that_are_taken(key: str) -> None:
    arguments, listed = inspect.signature(ALGOS[key]).parameters, SYSTEMS[key].learners.replace(",", "").split()
    if "learner" not in arguments:
        assert len(listed) <= 1
        return
    assert listed[0] == arguments["learner"].default
    kind = SYSTEMS[key].actions.split(",")[0].replace("every kind", "box")
    taken = {name for name in PARTS["learner"] if takes(key, "discrete" if name == "dqn" else kind, learner=name)}
    assert taken == set(listed) & set(PARTS["learner"])


# -------------------------------------------------------------------- doctor


def test_the_doctor_finds_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(doctor.EXTRAS) == set(EXTRAS)
    find = doctor.importlib.util.find_spec
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None if name in ("ray", "h5py") else find(name))
    text = run("doctor", monkeypatch=monkeypatch, capsys=capsys)
    assert "pip install 'sb3-erl[ray]'" in text and "pip install 'sb3-erl[offline]'" in text
    installed = re.search(r"installed: (.*)", text)
    assert installed is not None and not {"ray", "offline"} & set(installed.group(1).split(", "))
    for word in ("torch", "stable-baselines3", "OMP_NUM_THREADS", "bfloat16", "gpu", "renderer", "zoo"):
        assert word in text


@pytest.mark.parametrize(
    ("variables", "libraries", "words"),
    [
        ({"MUJOCO_GL": "egl"}, ["EGL"], "MUJOCO_GL=egl"),
        ({"DISPLAY": ":0"}, ["GL"], "a window"),
        ({}, ["EGL", "OSMesa"], "export MUJOCO_GL=egl"),
        ({}, ["OSMesa"], "export MUJOCO_GL=osmesa"),
        ({}, [], "apt install libosmesa6"),
    ],
)
def test_the_doctor_says_how_to_draw(
    variables: dict[str, str], libraries: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    monkeypatch.setattr(doctor.ctypes.util, "find_library", lambda name: name if name in libraries else None)
    assert words in doctor.renderer()


# -------------------------------------------------------------------- start-up and the Zoo


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["list"], ["doctor"], ["plot", "--help"]])
def test_the_zoo_and_matplotlib_are_not_imported_for_it(words: list[str]) -> None:
    code = (
        "import sys; sys.argv = ['sb3-erl', *sys.argv[1:]]\n"
        "try:\n    from sb3_erl.zoo import main\n    main()\nexcept SystemExit:\n    pass\n"
        "print({name.split('.')[0] for name in sys.modules} & {'rl_zoo3', 'matplotlib', 'optuna', 'ray', 'seaborn'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=clean_environment(),
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.slow
def test_a_run_of_the_zoo_is_drawn(tmp_path: Path) -> None:
    """Trained with the hyperparameter ``callback``, and drawn by the next command."""
    environment = clean_environment(PYTHONPATH=str(REPOSITORY))
    settings = ["learning_starts:100", "policy_kwargs:dict(net_arch=[8])", "pop_size:2", "batch_size:8", "train_freq:20"]
    words = ["train", "--algo", "erl", "--env", "Pendulum-v1", "-n", "1300", "--eval-freq", "500", "--eval-episodes", "1"]
    for line in (
        [*words, "-params", "callback:'sb3_erl.PopulationCallback'", *settings],
        ["plot", "logs/erl/Pendulum-v1_1"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "sb3_erl.zoo", *line], capture_output=True, text=True, cwd=tmp_path, env=environment
        )
        assert done.returncode == 0, done.stderr
    folder = tmp_path / "logs" / "erl" / "Pendulum-v1_1"
    assert {"population.csv", "population.png", "learning_curve.png"} <= {path.name for path in folder.iterdir()}
    shutil.rmtree(tmp_path / "logs")


def test_videos_of_training_are_recorded_by_the_command_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """``record_training`` starts a process for each video, which has no start-up file to go by."""
    called: list[Any] = []
    monkeypatch.setattr(subprocess, "call", called.append)
    monkeypatch.setattr(sys, "argv", ["sb3-erl", "record_training", "--algo", "cem", "--env", "Pendulum-v1", "-f", "logs"])

    def run_module(name: str, **arguments: Any) -> None:
        assert name == "rl_zoo3.record_training" and sys.argv[1:3] == ["--algo", "cem"]
        subprocess.call(["python", "-m", "rl_zoo3.record_video", "--algo", "cem"])
        subprocess.call(["ffmpeg", "-i", "x"])

    monkeypatch.setattr(runpy, "run_module", run_module)
    kept = subprocess.call
    command.main()
    assert called == [[sys.executable, "-m", "sb3_erl.zoo", "record_video", "--algo", "cem"], ["ffmpeg", "-i", "x"]]
    assert subprocess.call is kept
