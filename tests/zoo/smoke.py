"""
What must work right after an installation: import, 500 steps, a file and its new process, and a command line of the Zoo.

``make smoke PYTHON=python3.12`` runs it in an environment that has the package and nothing for developers;
``tests/zoo/test_pythons.py`` runs it with the wheel of this checkout. It imports nothing of the repository.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

LOAD = "import sys; from sb3_erl import ERLRe2; model = ERLRe2.load(sys.argv[1]); print(model.num_timesteps)"


def main() -> None:
    import sb3_erl

    source = Path(sb3_erl.__file__).resolve()
    assert "site-packages" in source.parts, f"{source} is not an installed package"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = sb3_erl.ERLRe2("Pendulum-v1", seed=0, learning_starts=200).learn(500)
        model.save(folder / "model")
        loaded = subprocess.run(
            [sys.executable, "-c", LOAD, str(folder / "model")], capture_output=True, text=True, cwd=folder
        )
        assert loaded.stdout.strip() == "500", loaded.stderr
        program = [str(Path(sys.executable).with_name("rl_zoo3"))]
        words = ["train", "--algo", "erl_re2", "--env", "Pendulum-v1", "-n", "500", "-f", "logs", "--eval-freq", "-1"]
        if (
            Path(program[0]).read_bytes()[:2] != b"#!"
        ):  # an environment without pip has scripts that Python must be told to run
            program.insert(0, sys.executable)
        trained = subprocess.run([*program, *words], capture_output=True, text=True, cwd=folder)
        assert trained.returncode == 0 and list(folder.glob("logs/erl_re2/*/Pendulum-v1.zip")), trained.stderr
    version = ".".join(map(str, sys.version_info[:3]))
    print(
        f"sb3_erl {sb3_erl.__version__} on Python {version}: import, 500 steps, load in a new process and rl_zoo3 train work"
    )


if __name__ == "__main__":
    main()
