"""
PBT against the same budget spent otherwise: ``python -m benchmarks.pbt --task lunar_lander --seeds 1 2 3``.

Three ways to spend a number of environment steps: ``pbt``, a population; ``independent``, as many runs as it has members, each
with an equal share of the steps and the settings of the RL Zoo, of which the best is taken; ``single``, one run of all steps
with these settings. The best of several is chosen by some episodes and reported by others, for all three alike, and the steps
of PBT's own evaluations count. Each run leaves a file of results, and a run whose file is there is not made again, so that the
command can be stopped and started.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rl_zoo3
import yaml
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_erl import PBT, GenerationCheckpoint, newest_checkpoint
from sb3_erl.populations.defaults import member_class
from sb3_erl.populations.episodes import play_episodes

WAYS = ("pbt", "independent", "single")
N_CHOICE, N_REPORT = 20, 50
"""Episodes by which the best is chosen, and others by which it is reported."""
SEED_OF_CHOICE, SEED_OF_REPORT = 1_000_000, 2_000_000
"""Of the episodes' environments; no run trains with them."""


@dataclass(frozen=True)
class Task:
    """
    What is learned.

    :param env_id: of the environment
    :param algorithm: key of the members' class
    :param zoo_entry: whose settings of the RL Zoo are taken
    :param n_steps: budget of each way
    :param pop_size: members, and independent runs
    :param ready_steps: of a member in a generation
    """

    env_id: str
    algorithm: str
    zoo_entry: str
    n_steps: int
    pop_size: int = 8
    ready_steps: int = 50_000


TASKS = {
    "lunar_lander": Task("LunarLander-v3", "ppo", "LunarLander-v3", 4_000_000),
    "hopper": Task("Hopper-v5", "sac", "Hopper-v4", 4_000_000),
    "cart_pole": Task("CartPole-v1", "ppo", "CartPole-v1", 200_000, 4, 10_000),
}


def zoo_settings(task: Task) -> tuple[int, dict[str, Any]]:
    """:return: number of environments, and arguments of the class, as the RL Zoo has them for a task"""
    folder = Path(rl_zoo3.__file__).parent
    files = [folder / "hyperparams" / f"{task.algorithm}.yml", folder.parent / "hyperparams" / f"{task.algorithm}.yml"]
    entries = yaml.safe_load(next(file for file in files if file.exists()).read_text())
    entry = dict(entries.get(task.zoo_entry) or entries[task.env_id])
    n_envs = int(entry.pop("n_envs", 1))
    for name in ("n_timesteps", "policy"):
        entry.pop(name, None)
    for name, value in entry.items():
        if isinstance(value, str) and value.startswith("lin_"):
            entry[name] = Linear(float(value.removeprefix("lin_")))
    if "normalize" in entry or "policy_kwargs" in entry:
        raise ValueError(f"{task.zoo_entry} must have plain settings; got {entry}. Add what they need to this benchmark")
    return n_envs, entry


@dataclass(frozen=True)
class Linear:
    """The schedule that the Zoo calls ``lin_<value>``."""

    begin: float

    def __call__(self, progress_remaining: float) -> float:
        return progress_remaining * self.begin


def scored(model: Any, env: VecEnv, n_episodes: int, seed: int) -> float:
    """Mean return of episodes that nothing else uses."""
    return float(np.mean(play_episodes(model, env, n_episodes, seed)))


def spend(way: str, task: Task, seed: int, n_steps: int, workers: str, folder: Path) -> dict[str, Any]:
    """
    :param way: one of :data:`WAYS`
    :param task: what is learned
    :param seed: of the run
    :param n_steps: environment steps
    :param workers: argument ``evaluator`` of PBT
    :param folder: of the checkpoints
    :return: what came of it
    """
    begin = time.perf_counter()
    n_envs, kwargs = zoo_settings(task)
    env = make_vec_env(task.env_id, n_envs, seed=seed)
    _, algorithm = member_class(task.algorithm)
    made: Any = algorithm
    if way == "pbt":
        checkpoints = folder / f"{task.env_id}_{seed}"
        if newest_checkpoint(checkpoints) is None:
            common = {"algorithm": task.algorithm, "algorithm_kwargs": kwargs, "pop_size": task.pop_size, "seed": seed}
            model = PBT("MlpPolicy", env, ready_steps=task.ready_steps, evaluator=workers, device="cpu", **common)
        else:
            model = PBT.resume_from(checkpoints, env, "cpu", evaluator=workers)
        model.learn(n_steps, GenerationCheckpoint(task.ready_steps * task.pop_size, checkpoints, keep=1), progress_bar=False)
        models, used = [model.individual(number) for number in range(task.pop_size)], model.num_timesteps
    else:
        n_runs = task.pop_size if way == "independent" else 1
        models = []
        for number in range(n_runs):
            own = made("MlpPolicy", env, seed=1000 * seed + number, device="cpu", **kwargs)
            models.append(own.learn(n_steps // n_runs))
        used = sum(one.num_timesteps for one in models)
    choice = [scored(one, env, N_CHOICE, SEED_OF_CHOICE) for one in models]
    best = int(np.argmax(choice))
    report = scored(models[best], env, N_REPORT, SEED_OF_REPORT)
    seconds = time.perf_counter() - begin
    return {"way": way, "seed": seed, "steps": int(used), "return": report, "choice": choice, "seconds": seconds}


def main() -> None:
    """Make the runs that are missing, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=sorted(TASKS), required=True)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=float, help="environment steps of each way, those of the task by default")
    parser.add_argument("--evaluator", default="vec", choices=("vec", "process", "ray"), help="who runs PBT's members")
    parser.add_argument("--output", type=Path, default=Path("docs/results/pbt"))
    parser.add_argument("--checkpoints", type=Path, default=Path("runs/pbt"))
    options = parser.parse_args()
    task = TASKS[options.task]
    n_steps = int(options.steps or task.n_steps)
    folder = options.output / options.task
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in options.seeds:
        for way in options.ways:
            file = folder / f"{way}_{seed}.json"
            if not file.exists():
                checkpoints = options.checkpoints / options.task
                found = spend(way, task, seed, n_steps, options.evaluator, checkpoints)
                file.write_text(json.dumps(found, indent=1) + "\n")
            rows.append(json.loads(file.read_text()))
    print(f"| way | {' | '.join(f'seed {seed}' for seed in options.seeds)} | mean |")
    print("|---|" + "---|" * (len(options.seeds) + 1))
    for way in options.ways:
        returns = [row["return"] for row in rows if row["way"] == way]
        print(f"| {way} | {' | '.join(f'{value:.1f}' for value in returns)} | {np.mean(returns):.1f} |")


if __name__ == "__main__":
    main()
