"""What the wheel, the sdist and the editable wheel contain, and where an installation finds its settings."""

from __future__ import annotations

import email
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.zoo.conftest import REPOSITORY, build, clean_environment

STARTUP_FILES = {"_sb3_erl_zoo.py", "sb3_erl_zoo.pth", "sb3_erl_zoo.start"}
SETTINGS = {f"sb3_erl/{path.relative_to(REPOSITORY).as_posix()}" for path in (REPOSITORY / "hyperparams").rglob("*.yml")}
MODULES = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "sb3_erl").rglob("*.py")}
MODULES = {name for name in MODULES if "/startup/" not in name}


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as file:
        return {name for name in file.namelist() if ".dist-info/" not in name}


def test_wheel_contains_the_package_and_nothing_else(wheel: Path) -> None:
    assert SETTINGS and names(wheel) == STARTUP_FILES | SETTINGS | MODULES | {"sb3_erl/py.typed"}


def test_wheel_from_sdist_is_the_same(wheel: Path, tmp_path: Path) -> None:
    archive = build("sdist", REPOSITORY, tmp_path / "sdist")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "source", filter="data")
    source = next((tmp_path / "source").iterdir())
    assert names(build("wheel", source, tmp_path / "wheel")) == names(wheel)


def test_editable_wheel_adds_only_the_startup_files(tmp_path: Path) -> None:
    wheel = build("editable", REPOSITORY, tmp_path)
    (path_file,) = names(wheel) - STARTUP_FILES
    assert path_file.endswith(".pth") and path_file < "sb3_erl_zoo.pth", "site reads them in this order"
    with zipfile.ZipFile(wheel) as file:
        assert Path(file.read(path_file).decode().strip()) == REPOSITORY


def test_startup_files_are_copied_unchanged(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        for name in STARTUP_FILES:
            assert file.read(name) == (REPOSITORY / "sb3_erl" / "zoo" / "startup" / name).read_bytes()


def test_every_file_is_in_the_record_for_uninstalling(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        (record,) = (name for name in file.namelist() if name.endswith("RECORD"))
        recorded = {line.split(",")[0] for line in file.read(record).decode().splitlines()}
    assert STARTUP_FILES | SETTINGS <= recorded


def test_command_is_declared(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        (entries,) = (name for name in file.namelist() if name.endswith("entry_points.txt"))
        assert "sb3-erl = sb3_erl.zoo:main" in file.read(entries).decode()


@pytest.mark.parametrize("installed", [True, False], ids=["wheel", "checkout"])
def test_settings_are_found(installed: bool, wheel: Path, fresh_python: Path, tmp_path: Path) -> None:
    """From any directory; the checkout's folder is on the path as an editable install puts it there."""
    path = {} if installed else {"PYTHONPATH": str(REPOSITORY)}
    code = "from sb3_erl.zoo import hyperparams_folder as f; print(f()); print(*sorted(p.name for p in f().glob('*.yml')))"
    command = [str(fresh_python), "-c", code]
    environment = clean_environment(**path)
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    folder, files = result.stdout.splitlines()
    assert set(files.split()) == {Path(name).name for name in SETTINGS}
    assert (Path(folder) == REPOSITORY / "hyperparams") != installed
    assert Path(folder).parent.name == ("sb3_erl" if installed else REPOSITORY.name)


def test_lost_settings_are_an_error(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "sb3_erl" / "zoo", tmp_path / "package" / "zoo")
    source = tmp_path / "package" / "zoo" / "hyperparams.py"
    scope: dict[str, object] = {"__file__": str(source)}
    exec(compile(source.read_text(), str(source), "exec"), scope)
    with pytest.raises(FileNotFoundError, match="reinstall it, or pass your own settings with --conf-file"):
        scope["hyperparams_folder"]()  # type: ignore[operator]


def test_constraints_cover_the_direct_dependencies(wheel: Path) -> None:
    """A fresh clone gets the versions the tests ran with."""
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith("METADATA"))
        metadata = email.message_from_bytes(file.read(name))
    requirements = [text for text in metadata.get_all("Requires-Dist", []) if "extra ==" not in text or "'dev'" in text]
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0] for line in lines if line and not line.startswith("#")}
    wanted = {re.split(r"[^\w.-]", text)[0].lower().replace("_", "-") for text in requirements}
    assert {"torch", "pytest", "hatchling"} <= wanted and wanted <= pinned
    assert next(line for line in lines if "==" in line) == "torch==2.13.0"


def test_constraints_for_dm_control_differ_in_mujoco_only() -> None:
    plain, dmc = ((REPOSITORY / name).read_text().splitlines()[1:] for name in ("constraints.txt", "constraints-dmc.txt"))
    assert [line for line in dmc if line not in plain] == ["mujoco==3.17.0"]
    assert {line.split("==")[0] for line in plain if line not in dmc} == {"mujoco", "mujoco-core", "mujoco-studio"}


def test_what_pypi_shows(wheel: Path, tmp_path: Path) -> None:
    """The README renders there, and none of its links or pictures depends on the files around it."""
    sdist = build("sdist", REPOSITORY, tmp_path)
    checked = [sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist)]
    result = subprocess.run(checked, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith("METADATA"))
        metadata = email.message_from_bytes(file.read(name))
    text = str(metadata.get_payload())
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(links) > 20 and [link for link in links if not link.startswith("https://")] == []
    assert "](https://raw.githubusercontent.com/sb3-erl/sb3-erl/main/docs/images/" in text
    tested = {line.rsplit(" ", 1)[1] for line in metadata.get_all("Classifier", []) if ":: Python :: 3." in line}
    assert tested == {"3.11", "3.12", "3.13"}
    assert "Documentation, https://sb3-erl.readthedocs.io" in metadata.get_all("Project-URL", [])
