"""The command ``sb3-erl``: the Zoo's own command line with our algorithms, also where the start-up file is not read."""

import importlib
import runpy
import sys

from sb3_erl.zoo.registration import register

SCRIPTS = ("train", "enjoy", "plot_train", "plot_from_file", "all_plots")
MODULES = ("record_video", "record_training", "load_from_hub", "push_to_hub")
OWN = ("plan", "info")
USAGE = (
    f"usage: sb3-erl {{{','.join(SCRIPTS + MODULES + OWN)}}} ...\n\n"
    "Everything after the first word is passed on to rl_zoo3; 'plan' and 'info' are commands of our own (sb3-erl info --help)."
)


def main() -> None:
    """
    Run a script of ``rl_zoo3`` after registering the algorithms of this package.

    The scripts that the Zoo offers only as modules (``python -m rl_zoo3.record_video``) work as first word too; ``plan`` and
    ``info`` are no scripts of the Zoo's (:mod:`sb3_erl.zoo.plan`, :mod:`sb3_erl.zoo.info`).
    """
    script = sys.argv[1] if len(sys.argv) > 1 else ""
    if script in ("", "-h", "--help"):
        print(USAGE)
        sys.exit(0 if script else 2)
    if script not in SCRIPTS + MODULES + OWN:
        print(f"{USAGE}\n\nsb3-erl: unknown script {script!r}", file=sys.stderr)
        sys.exit(2)
    if script != "info":  # which reads a file and nothing else
        register()
    if script in OWN:
        importlib.import_module(f"sb3_erl.zoo.{script}").main(sys.argv[2:])
    elif script in SCRIPTS:
        importlib.import_module("rl_zoo3.cli").main()
    else:
        del sys.argv[1]
        runpy.run_module(f"rl_zoo3.{script}", run_name="__main__", alter_sys=True)
