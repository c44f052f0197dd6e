"""
Learning curves of an algorithm on a task: one process with one thread per seed, evaluated as it trains.

    python -m benchmarks.learning --algo erl_re2 --env HalfCheetah-v4 --steps 100000 --seeds 1 2
    python -m benchmarks.learning --algo erl_re2 --env HalfCheetah-v4 --steps 100000 --seeds 1 2 \
        --hyperparams evolution:False --compare results/learning/erl_re2_HalfCheetah-v4/default=ERL-Re2

Settings are those of the Zoo file of the algorithm (``hyperparams/<algo>.yml``, the entry of the environment, else
``default``), overridden by ``--hyperparams``. Algorithms of stable_baselines3 and sb3_contrib (``td3``, ``sac``, ``tqc`` ...)
serve as baselines under the same measurement.

Every ``--eval-freq`` steps the deployed policy (``model.predict(..., deterministic=True)``) and everything that the system has
to report (learner, champion, mean: ``model.candidates_for_report()``) play ``--eval-episodes`` episodes each, from the same
start states. These steps are not counted and change nothing in the run. The curve has a column for each of them
(``champion_return``) and ``reported``, the highest mean among those that the authors report. Only that may stand beside a
published number; it is, like theirs, too high by about half a standard error where it is the maximum of two means.

Files, in ``<out>/<algo>_<env>/<name>``: ``seed_N.csv`` (the curve), ``seed_N.zip`` (the trained model), ``curve.png``,
``summary.json``, ``config.json`` (the settings).

The command can be interrupted at any time; the same command continues every seed from its newest checkpoint and skips
finished seeds.
"""

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--algo", default="erl_re2", help="Zoo name of the algorithm")
    parser.add_argument("--env", default="HalfCheetah-v4", help="registered environment id")
    parser.add_argument("--steps", type=float, default=100_000, help="training steps of each seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="one run each")
    parser.add_argument("--hyperparams", nargs="+", default=[], metavar="NAME:VALUE", help="override the Zoo's settings")
    parser.add_argument("--eval-freq", type=int, default=5_000, help="steps between evaluations")
    parser.add_argument("--eval-episodes", type=int, default=10, help="episodes of each evaluation")
    parser.add_argument("--checkpoint-freq", type=int, default=25_000, help="steps between checkpoints to continue from")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="seeds that run at the same time")
    parser.add_argument("--device", default="cpu", help="passed to the algorithm")
    parser.add_argument("--out", type=Path, default=Path("results/learning"), help="parent of all result folders")
    parser.add_argument("--name", help="result folder of these settings; made from --hyperparams by default")
    parser.add_argument(
        "--compare", nargs="+", default=[], metavar="DIR[=LABEL]", help="result folders drawn in the same plot"
    )
    parser.add_argument("--plot-only", action="store_true", help="train nothing, redo plot and summary")
    args = parser.parse_args(arguments)
    args.steps = int(args.steps)
    for name in ("steps", "eval_freq", "eval_episodes", "checkpoint_freq", "jobs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    args.name = args.name or folder_name(args.hyperparams)
    return args


def folder_name(hyperparams: list[str]) -> str:
    """
    Name the result folder after what differs from the Zoo's settings.

    >>> folder_name([]), folder_name(["evolution:False", "gamma:0.98"])
    ('default', 'evolution=False,gamma=0.98')
    """
    return re.sub(r"[^\w=,.+-]+", "_", ",".join(item.replace(":", "=", 1) for item in hyperparams)) or "default"


def prepare(args: argparse.Namespace) -> Path:
    """Create the result folder and its ``config.json``; refuse a folder that belongs to another experiment."""
    from benchmarks.settings import Experiment, load_settings, parse_hyperparams

    settings, origin = load_settings(args.algo, args.env)
    settings.update(parse_hyperparams(args.hyperparams))
    config = {
        "algo": args.algo,
        "env": args.env,
        "steps": args.steps,
        "n_eval_episodes": args.eval_episodes,
        "settings": settings,
    }
    config = json.loads(json.dumps(config))
    Experiment(args.algo, args.env, config["settings"], args.steps)  # a wrong setting should fail here, not in every process
    folder: Path = args.out / f"{args.algo}_{args.env.replace('/', '-')}" / args.name
    path = folder / "config.json"
    if path.is_file():
        old = json.loads(path.read_text())
        changed = [key for key in config if old.get(key) != config[key]]
        if changed:
            raise ValueError(
                f"{folder} holds a run with other {' and '.join(changed)}: {[old.get(key) for key in changed]} there, "
                f"{[config[key] for key in changed]} now. Choose another --name, or delete the folder."
            )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config, indent=2) + "\n")
    print(f"{args.algo} on {args.env}, {args.steps} steps; settings: {origin}; results: {folder}", flush=True)
    return folder


def start(folder: Path, seed: int, args: argparse.Namespace) -> subprocess.Popen[bytes]:
    """Start the process of one seed, limited to one thread before it loads any numerical library."""
    environment = dict(os.environ, **dict.fromkeys(ONE_THREAD, "1"))
    environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment["PYTHONWARNINGS"] = "ignore::DeprecationWarning"
    command = [sys.executable, "-m", "benchmarks.seed_run", str(folder), "--seed", str(seed), "--device", args.device]
    command += ["--eval-freq", str(args.eval_freq), "--checkpoint-freq", str(args.checkpoint_freq)]
    return subprocess.Popen(command, env=environment)


def train(folder: Path, args: argparse.Namespace) -> dict[int, int]:
    """
    Train all seeds, ``--jobs`` at a time, and stop their processes when this one is interrupted.

    :return: exit code of every seed that did not finish
    """
    waiting = [seed for seed in args.seeds if not (folder / f"seed_{seed}.json").is_file()]
    for seed in [seed for seed in args.seeds if seed not in waiting]:
        print(f"{f'seed_{seed}':>8s} is finished already", flush=True)
    running: dict[int, subprocess.Popen[bytes]] = {}
    failed: dict[int, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < args.jobs:
                seed = waiting.pop(0)
                running[seed] = start(folder, seed, args)
            time.sleep(0.2)
            for seed, process in list(running.items()):
                if process.poll() is not None:
                    del running[seed]
                    if process.returncode != 0:
                        failed[seed] = process.returncode
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return failed


def report(folder: Path, args: argparse.Namespace) -> None:
    """Write plot and summary, and print one line per seed."""
    from benchmarks.report import plot, summarize

    summary = summarize(folder, shlex.join(["python", "-m", "benchmarks.learning", *sys.argv[1:]]))
    label = args.algo if args.name == "default" else f"{args.algo} {args.name}"
    folders = {label: folder}
    for item in args.compare:
        path, name = Path(item), ""
        if not path.is_dir():  # the folder names themselves may contain "="
            directory, _, name = item.rpartition("=")
            path = Path(directory or item)
        if not path.is_dir():
            raise ValueError(f"--compare expects result folders, as DIR or DIR=LABEL; {item!r} is not one")
        folders[name or f"{path.parent.name} {path.name}"] = path
    if plot(folder / "curve.png", args.env, folders):
        print(f"plot: {folder / 'curve.png'}")
    for seed, values in summary["seeds"].items():
        reported = "" if values["final_reported"] is None else f"reported {values['final_reported']:.1f}, "
        print(
            f"seed {seed}: {values['steps']:.0f} steps, final return {values['final']:.1f} +- {values['final_std']:.1f}, "
            f"{reported}best {values['best']:.1f}, {values['train_seconds']:.0f} s of training"
        )


def _stop(number: int, frame: FrameType | None) -> Any:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    signal.signal(signal.SIGTERM, _stop)
    try:
        folder = prepare(args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        failed = {} if args.plot_only else train(folder, args)
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the newest checkpoints", file=sys.stderr)
        return 130
    report(folder, args)
    for seed, code in failed.items():
        print(f"error: seed {seed} stopped early (exit code {code}); the same command continues it", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
