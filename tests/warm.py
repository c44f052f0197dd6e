"""Python processes that begin where the imports end: a parent imports once, and each command is a child forked from it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

CAN_FORK = sys.platform == "linux"
"""Elsewhere a fork of a process with such libraries is unsafe or impossible, and each command is a process of its own."""

PARENT = """
import gc, importlib, json, os, runpy, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
del name, importlib
gc.freeze()  # a child that collects garbage would copy all memory that it shares with this process
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
for number, path in enumerate((os.devnull, *order["output"])):
    os.dup2(os.open(path, os.O_RDWR), number)
sys.stdin = open(os.devnull)
os.chdir(order["cwd"])
os.environ.update(order["environment"])
words, json, child, line, number, path = order["words"], None, None, None, None, None
if words[0] == "-m":
    sys.argv, sys.path[0] = words[1:], os.getcwd()
    runpy.run_module(words[1], run_name="__main__", alter_sys=True)
else:
    sys.argv, sys.path[0] = words, os.path.dirname(words[0])
    runpy.run_path(words[0], run_name="__main__")
"""


class WarmPython:
    """
    An interpreter that runs scripts and modules as from the command line, after it has imported some libraries.

    :param python: the interpreter
    :param modules: what it imports first; nothing that a command is to see imported for the first time
    :param environment: its environment variables
    """

    def __init__(self, python: str | Path, modules: Sequence[str], environment: dict[str, str]):
        self.python, self.modules, self.environment = str(python), tuple(modules), environment
        self.parent: subprocess.Popen[bytes] | None = None

    def run(
        self, words: Sequence[str], cwd: Path, output: Path, timeout: float = 600, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """
        :param words: a script and its arguments, or ``-m``, a module and its arguments
        :param cwd: working directory
        :param output: folder for two files with what the command writes
        :param timeout: seconds after which it is killed
        :param environment: variables for this command, set when Python has already started
        :return: exit status and output
        """
        files = [output / name for name in ("stdout.txt", "stderr.txt")]
        for file in files:
            file.write_bytes(b"")
        if CAN_FORK:
            status = self._fork(list(words), cwd, files, timeout, environment)
        else:
            with files[0].open("w") as out, files[1].open("w") as err:
                status = subprocess.run(
                    [self.python, *words],
                    cwd=cwd,
                    env={**self.environment, **environment},
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    timeout=timeout,
                ).returncode
        return subprocess.CompletedProcess(list(words), status, *(file.read_text(errors="replace") for file in files))

    def _fork(self, words: list[str], cwd: Path, files: list[Path], timeout: float, environment: dict[str, str]) -> int:
        if self.parent is None:
            pipes: dict[str, int] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            command = [self.python, "-c", PARENT, *self.modules]
            self.parent = subprocess.Popen(command, env=self.environment, start_new_session=True, **pipes)  # type: ignore[call-overload]
            assert self._answer(timeout) == b"ready\n"
        assert self.parent is not None and self.parent.stdin is not None
        order = {"words": words, "cwd": str(cwd), "output": [str(file) for file in files], "environment": environment}
        self.parent.stdin.write(json.dumps(order).encode() + b"\n")
        self.parent.stdin.flush()
        return int(self._answer(timeout))

    def _answer(self, timeout: float) -> bytes:
        assert self.parent is not None and self.parent.stdout is not None
        stream: IO[bytes] = self.parent.stdout
        if not select.select([stream], [], [], timeout)[0]:
            self.close()
            raise subprocess.TimeoutExpired(self.python, timeout)
        return stream.readline()

    def close(self) -> None:
        """End the parent and a command that still runs."""
        if self.parent is not None:
            os.killpg(self.parent.pid, signal.SIGKILL)
            self.parent.communicate()
            self.parent = None
