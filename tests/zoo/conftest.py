"""Fixtures of the Zoo tests: a stub of ``rl_zoo3`` for fast checks, and a fresh environment with our wheel inside."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.warm import WarmPython

REPOSITORY = Path(__file__).resolve().parents[2]
STARTUP = REPOSITORY / "sb3_erl" / "zoo" / "startup"

STUB_PACKAGES = 'def register_namespaces(*env_ids):\n    """Gymnasium is not there."""\n'
STUB_ZOO = {
    "__init__.py": "from rl_zoo3.utils import ALGOS\n",
    "utils.py": "class Stock: ...\nALGOS = {'td3': Stock}\n",
    "hyperparams_opt.py": "HYPERPARAMS_SAMPLER = {'td3': max}\nHYPERPARAMS_CONVERTER = {'td3': dict}\n",
    "exp_manager.py": """
from pathlib import Path
from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS

class ExperimentManager:
    def __init__(self, algo, config=None):
        self.algo = algo
        folder = Path(__file__).parent
        if not (folder / "hyperparams").is_dir():
            folder = folder.parent
        self.config = config or str(folder / f"hyperparams/{algo}.yml")
""",
    "hyperparams/td3.yml": "default:\n  policy: MlpPolicy\n",
}
STUB_SB3_ERL = "class ERLRe2:\n    def __init__(self, policy, env, gamma=0.99): ...\nALGOS = {'erl_re2': ERLRe2}\n"


def write_tree(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment without what would change how a child Python starts."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST") and k not in ("PYTHONPATH", "SB3_ERL_ZOO")}
    return {**kept, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONWARNINGS": "default::RuntimeWarning", **extra}


class Playground:
    """A folder with copies of the start-up files, a stub of ``rl_zoo3``, and our real ``zoo`` folder in a stub package."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.site, self.library = folder / "site", folder / "library"
        shutil.copytree(STARTUP, self.site, ignore=shutil.ignore_patterns("__pycache__"))
        write_tree(self.library / "rl_zoo3", STUB_ZOO)
        write_tree(self.library / "sb3_erl", {"__init__.py": STUB_SB3_ERL})
        write_tree(self.library / "sb3_erl" / "envs", {"__init__.py": "", "packages.py": STUB_PACKAGES})
        shutil.copytree(REPOSITORY / "sb3_erl" / "zoo", self.library / "sb3_erl" / "zoo")
        shutil.copytree(REPOSITORY / "hyperparams", self.library / "sb3_erl" / "hyperparams")

    def zip_zoo(self) -> None:
        """Move the stub of ``rl_zoo3`` into an archive on the path."""
        archive = self.folder / "zoo.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted((self.library / "rl_zoo3").rglob("*.py")):
                file.write(path, path.relative_to(self.library))
        shutil.rmtree(self.library / "rl_zoo3")

    def run(self, code: str, start: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """
        Run ``code`` in a child Python that has read the start-up files and nothing else from site-packages.

        :param code: statements; what they print is the result
        :param start: read the start-up files first, as ``site`` does
        :param environment: additional variables
        """
        begin = f"import sys, site\nsys.path[:0] = [{str(self.library)!r}, {str(self.folder / 'zoo.zip')!r}]\n"
        if start:
            begin += f"site.addsitedir({str(self.site)!r})\n"
        return subprocess.run(
            [sys.executable, "-S", "-c", begin + code],
            cwd=self.folder,
            env=clean_environment(**environment),
            capture_output=True,
            text=True,
            timeout=120,
        )

    def output(self, code: str, **environment: str) -> str:
        """What ``code`` prints; it must end well and print no warning."""
        result = self.run(code, True, **environment)
        assert result.returncode == 0 and result.stderr == "", result.stderr
        return result.stdout.strip()


@pytest.fixture
def playground(tmp_path: Path) -> Playground:
    return Playground(tmp_path)


BACKEND = """
import sys
from hatchling import build
print(getattr(build, "build_" + sys.argv[1])(sys.argv[2]))
"""


def build(kind: str, repository: Path, into: Path) -> Path:
    """
    Call the build back-end as pip does, without its isolated environment.

    :param kind: ``wheel``, ``sdist`` or ``editable``
    :param repository: folder with the ``pyproject.toml``
    :param into: where the file goes
    """
    into.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", BACKEND, kind, str(into)]
    result = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return into / result.stdout.splitlines()[-1]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", REPOSITORY, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def fresh_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    Interpreter of a new virtual environment that holds our wheel, not editable, and sees the dependencies of this one.

    Start-up files of this environment are not read there, so an editable install here plays no part.
    """
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
    python = next(path for path in (folder / "bin" / "python", folder / "Scripts" / "python.exe") if path.exists())
    where = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(where, capture_output=True, text=True, check=True).stdout.strip())
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)
    packages = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    (site / "dependencies.pth").write_text("\n".join(packages) + "\n")
    for script, module in (("rl_zoo3", "rl_zoo3.cli"), ("sb3-erl", "sb3_erl.zoo")):
        (python.parent / script).write_text(f"from {module} import main\n\nif __name__ == '__main__':\n    main()\n")
    return python


LIBRARIES = (
    *(
        "torch",
        "torch._dynamo",
        "torch.utils.tensorboard",
        "stable_baselines3",
        "sb3_contrib",
        "gymnasium",
        "huggingface_hub",
        "requests",
    ),
    *("optuna.visualization", "pandas", "matplotlib.pyplot", "seaborn", "pytablewriter", "rliable.library"),
)
"""What the Zoo imports and this package does not touch; importing it takes longer than most commands."""

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def command(fresh_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """
    Runs a console script or ``-m module`` in the fresh environment and returns its result, which must be 0.

    The process has imported :data:`LIBRARIES` when the command begins, but nothing of the Zoo or of this package. With
    ``alone`` or a variable, which Python reads when it starts, it has imported nothing.
    """
    warm, output = WarmPython(fresh_python, LIBRARIES, clean_environment()), tmp_path_factory.mktemp("output")

    def run(*words: str, cwd: Path, fails: bool | None = False, alone: bool = False, **environment: str) -> Any:
        program = list(words) if words[0] == "-m" else [str(fresh_python.parent / words[0]), *words[1:]]
        if alone or environment:
            line, variables = [str(fresh_python), *program], clean_environment(**environment)
            result = subprocess.run(line, cwd=cwd, env=variables, capture_output=True, text=True, timeout=600)
        else:
            result = warm.run(program, cwd, output)
        assert fails is None or (result.returncode != 0) == fails, f"{words}\n{result.stdout[-3000:]}\n{result.stderr[-5000:]}"
        return result

    yield run
    warm.close()
