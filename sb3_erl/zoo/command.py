"""The command ``sb3-erl``: the Zoo's own command line with our algorithms, and a few commands of this package."""

import importlib
import runpy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

SCRIPTS = ("train", "enjoy", "plot_train", "plot_from_file", "all_plots")
MODULES = ("record_video", "record_training", "load_from_hub", "push_to_hub")
OWN = {
    "list": ("systems", "the systems: paper, actions, learners"),
    "plot": ("plot", "pictures of runs: the population, learning curves, end points in mazes"),
    "doctor": ("doctor", "versions, threads, bfloat16, GPU, renderer, extras; what to install"),
    "info": ("info", "what is in a model's file, without unpickling it"),
    "plan": ("plan", "play episodes with the CEM planner"),
}
"""Commands of our own: the module of this folder that does it, and what it does."""
USAGE = "\n".join(
    [
        "usage: sb3-erl COMMAND ...        sb3-erl COMMAND --help says more",
        "",
        "commands of this package:",
        *(f"  {name:<10} {what}" for name, (_, what) in OWN.items()),
        "",
        "commands of rl_zoo3, which know the systems of this package:",
        f"  {', '.join(SCRIPTS)},",
        f"  {', '.join(MODULES)}",
        "",
        "sb3-erl --version prints the version. An example:",
        "  sb3-erl train --algo erl_re2 --env Pendulum-v1 -P -params callback:\"'sb3_erl.PopulationCallback'\"",
        "  sb3-erl plot logs/erl_re2/Pendulum-v1_1",
    ]
)


def main() -> None:
    """
    Run a command of this package, or a script of ``rl_zoo3`` after registering the algorithms.

    The scripts that the Zoo offers only as modules (``python -m rl_zoo3.record_video``) work as first word too. Only these
    and ``plan`` import the Zoo, which takes seconds.
    """
    script = sys.argv[1] if len(sys.argv) > 1 else ""
    if script in ("", "-h", "--help"):
        print(USAGE)
        sys.exit(0 if script else 2)
    if script in ("-V", "--version"):
        print(f"sb3-erl {importlib.import_module('sb3_erl').__version__}")
        return
    if script in OWN:
        importlib.import_module(f"sb3_erl.zoo.{OWN[script][0]}").main(sys.argv[2:])
        return
    if script not in SCRIPTS + MODULES:
        print(f"{USAGE}\n\nsb3-erl: unknown command {script!r}", file=sys.stderr)
        sys.exit(2)
    importlib.import_module("sb3_erl.zoo.registration").register()
    if script in SCRIPTS:
        importlib.import_module("rl_zoo3.cli").main()
    else:
        del sys.argv[1]
        with _videos_by_us() if script == "record_training" else nullcontext():
            runpy.run_module(f"rl_zoo3.{script}", run_name="__main__", alter_sys=True)


@contextmanager
def _videos_by_us() -> Iterator[None]:
    """``record_training`` records each video in a process of its own, which must know the algorithms, too."""
    original: Any = subprocess.call

    def call(command: Any, *args: Any, **kwargs: Any) -> int:
        if isinstance(command, list) and command[:3] == ["python", "-m", "rl_zoo3.record_video"]:
            command = [sys.executable, "-m", "sb3_erl.zoo", "record_video", *command[3:]]
        return original(command, *args, **kwargs)

    subprocess.call = call  # type: ignore[assignment]
    try:
        yield
    finally:
        subprocess.call = original
