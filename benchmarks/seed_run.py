"""Train one seed in a process of its own; started by ``benchmarks.learning``, which explains the arguments."""

import argparse
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from benchmarks.evaluation import NO_TIME, Checkpoints, Curve, LearningCurveCallback, candidates_of
from benchmarks.settings import Experiment


def run_seed(folder: Path, seed: int, config: dict[str, Any], device: str, eval_freq: int, checkpoint_freq: int) -> bool:
    """
    Train until the last step, from the newest checkpoint if there is one.

    :param folder: receives ``seed_N.csv``, ``seed_N.json`` when finished, ``seed_N.zip`` (the trained model)
    :param config: keys ``algo``, ``env``, ``steps``, ``n_eval_episodes`` and ``settings``
    :return: False if the run stopped early
    """
    name = f"seed_{seed}"
    steps = config["steps"]
    experiment = Experiment(config["algo"], config["env"], config["settings"], steps)
    checkpoints = Checkpoints(folder / "checkpoints" / name)
    state = checkpoints.newest()
    clock = dict(NO_TIME)
    if state is None:
        model = experiment.make_model(experiment.make_training_env(seed), seed, device)
    else:
        saved = json.loads((state / "clock.json").read_text())
        clock = {key: saved.get(key, 0.0) for key in clock}
        statistics = state / "vecnormalize.pkl"
        env = experiment.make_training_env(seed + saved["steps"], statistics if statistics.is_file() else None)
        model = experiment.algorithm.load(state / "model.zip", env=env, device=device)
        if (state / "replay_buffer.pkl").is_file():
            model.load_replay_buffer(state / "replay_buffer.pkl")  # type: ignore[attr-defined]
        _report(name, f"{model.num_timesteps:>9d} steps  continued from the checkpoint")
    eval_env = experiment.make_env(seed=0, n_envs=config["n_eval_episodes"])
    callback = LearningCurveCallback(
        eval_env,
        Curve(folder / f"{name}.csv", model.num_timesteps, candidates_of(model)),
        checkpoints,
        steps,
        eval_freq,
        checkpoint_freq,
        clock,
        report=lambda line: _report(name, line),
    )
    # one table per generation or episode is what the CSV columns of the training are read from
    model.learn(steps - model.num_timesteps, callback=callback, log_interval=1, reset_num_timesteps=state is None)
    if model.num_timesteps < steps:
        return False
    model.save(folder / f"{name}.zip")
    normalization = model.get_vec_normalize_env()
    if normalization is not None:
        normalization.save(str(folder / f"{name}_vecnormalize.pkl"))
    finished = {"seed": seed, "steps": model.num_timesteps, **callback.clock(), "finished": time.strftime("%Y-%m-%d %H:%M:%S")}
    _write_json(folder / f"{name}.json", finished)
    checkpoints.clear()
    return True


def _report(name: str, line: str) -> None:
    print(f"{name:>8s} {line}", flush=True)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.seed_run", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--eval-freq", type=int, required=True)
    parser.add_argument("--checkpoint-freq", type=int, required=True)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # the published results are on "-v4" tasks
    config = json.loads((args.folder / "config.json").read_text())
    try:
        return 0 if run_seed(args.folder, args.seed, config, args.device, args.eval_freq, args.checkpoint_freq) else 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
