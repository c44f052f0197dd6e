"""
PBT against the same budget spent otherwise: ``python -m benchmarks.pbt --task lunar_lander --seeds 1 2 3``.

Ways to spend a number of environment steps: ``pbt``, a population whose hyper-parameters are drawn from the default search
space; ``pbt_from_zoo``, one whose members all begin with the settings of the RL Zoo; ``independent``, as many runs as it has
members, each with an equal share of the steps and the settings of the Zoo, of which the best is taken; ``single``, one run of
all steps with these settings. The best of several is chosen by some episodes and reported by others, for all ways alike.

Everything is written as it comes: a curve (``<way>_<seed>.csv``) while a run goes on, a result (``<way>_<seed>.json``) at its
end. The command can be killed and started again: what is there is not made again, a population goes on at its last
generation, another run at its last checkpoint (with new episodes, since SB3 saves none that are going on).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rl_zoo3
import yaml
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_erl import PBT, GenerationCheckpoint, newest_checkpoint
from sb3_erl.core.seeding import scoped_generators
from sb3_erl.populations.defaults import SPACES, member_class
from sb3_erl.populations.episodes import play_episodes
from sb3_erl.populations.space import parse_space

WAYS = ("pbt", "pbt_from_zoo", "independent", "single")
N_CHOICE, N_REPORT = 20, 50
"""Episodes by which the best is chosen at the end, and others by which it is reported."""
N_CURVE = 10
"""Episodes of each of the two kinds behind a point of a curve."""
SEED_OF_CHOICE, SEED_OF_REPORT = 1_000_000, 2_000_000
"""Of the episodes' environments; no run trains with them."""
COLUMNS = ("steps", "run", "choice", "report")


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
    :param defaults: arguments of the class that the Zoo leaves at their defaults and that the default space searches
    """

    env_id: str
    algorithm: str
    zoo_entry: str
    n_steps: int
    pop_size: int
    ready_steps: int
    defaults: tuple[tuple[str, float], ...] = ()


PPO_DEFAULTS = (
    ("learning_rate", 3e-4),
    ("n_epochs", 10),
    ("gamma", 0.99),
    ("gae_lambda", 0.95),
    ("clip_range", 0.2),
    ("ent_coef", 1e-6),
    ("vf_coef", 0.5),
)
SAC_DEFAULTS = (("learning_rate", 3e-4), ("batch_size", 256), ("gamma", 0.99), ("tau", 0.005))
TASKS = {
    "lunar_lander": Task("LunarLander-v3", "ppo", "LunarLander-v3", 64 * 16_384, 4, 16_384, PPO_DEFAULTS),
    "hopper": Task("Hopper-v5", "sac", "Hopper-v4", 80_000, 4, 2_500, SAC_DEFAULTS),
    "cart_pole": Task("CartPole-v1", "ppo", "CartPole-v1", 100_000, 4, 5_000, PPO_DEFAULTS),
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


def values_of_zoo(task: Task, kwargs: dict[str, Any]) -> dict[str, Any]:
    """:return: the Zoo's settings in the default search space, or its bounds next to them"""
    space = parse_space(SPACES, task.algorithm)
    found = {**dict(task.defaults), **kwargs}
    values = {name: found[name].begin if isinstance(found[name], Linear) else found[name] for name in space}
    for name, knob in space.items():
        if not knob.holds(values[name]):  # such as an entropy coefficient of 0
            values[name] = min(knob.values(), key=lambda value: abs(value - values[name]))
    return values


# -------------------------------------------------------------------- episodes that nothing trains with


class Judge:
    """
    Plays the episodes by which models are chosen, and the others by which they are reported.

    :param env_id: of the environment
    """

    def __init__(self, env_id: str):
        self.env: VecEnv = make_vec_env(env_id, N_CURVE, seed=0)

    def choice(self, model: Any, n_episodes: int = N_CURVE) -> float:
        """:return: mean return by which models are compared"""
        return self._mean(model, n_episodes, SEED_OF_CHOICE)

    def report(self, model: Any, n_episodes: int = N_CURVE) -> float:
        """:return: mean return of episodes that select nothing"""
        return self._mean(model, n_episodes, SEED_OF_REPORT)

    def _mean(self, model: Any, n_episodes: int, seed: int) -> float:
        with scoped_generators(np.random.SeedSequence(seed)):  # training goes on as if nothing had been played
            return float(np.mean(play_episodes(model, self.env, n_episodes, seed)))


class Curve(BaseCallback):
    """
    Adds a point to a curve at the first rollout that begins after so many steps, and saves a model there.

    :param judge: plays the episodes
    :param file: CSV file
    :param every: steps of the model
    :param run: number of the run, -1 for the champion of a population
    :param folder: of the checkpoints of a single model, ``None`` for a population, which saves its own
    """

    def __init__(self, judge: Judge, file: Path, every: int, run: int = -1, folder: Path | None = None):
        super().__init__()
        self._judge, self._file, self._every, self._run, self._folder = judge, file, every, run, folder

    def _on_training_start(self) -> None:
        self._last = 0 if self._run < 0 else self.num_timesteps // self._every

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps // self._every > self._last:
            self._last = self.model.num_timesteps // self._every
            self._add()

    def _on_training_end(self) -> None:
        self._add()

    def _on_step(self) -> bool:
        return True

    def _add(self) -> None:
        model: Any = self.model
        run = model.champion if self._run < 0 else self._run
        row = [model.num_timesteps, run, self._judge.choice(model), self._judge.report(model)]
        is_new = not self._file.exists()
        with open(self._file, "a", newline="") as file:
            csv.writer(file).writerows([COLUMNS, row] if is_new else [row])
        if self._folder is not None:
            save_model(model, self._folder)


def save_model(model: Any, folder: Path) -> None:
    """Write a model and its replay buffer; the last ones stay until both are there."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{model.num_timesteps:09d}"
    if getattr(model, "replay_buffer", None) is not None:
        model.save_replay_buffer(folder / f"{name}.pkl")
    model.save(folder / f"{name}.part.zip")
    os.replace(folder / f"{name}.part.zip", folder / f"{name}.zip")
    for file in folder.iterdir():
        if not file.name.startswith(name):
            file.unlink()


# -------------------------------------------------------------------- the ways


def population(task: Task, seed: int, n_steps: int, judge: Judge, options: Any, way: str) -> tuple[list[Any], int]:
    """:return: members and steps of a run of PBT"""
    n_envs, kwargs = zoo_settings(task)
    env, checkpoints = make_vec_env(task.env_id, n_envs, seed=seed), options.checkpoints / options.task / f"{way}_{seed}"
    if newest_checkpoint(checkpoints) is None:
        common: dict[str, Any] = {"algorithm": task.algorithm, "algorithm_kwargs": kwargs, "pop_size": task.pop_size}
        if way == "pbt_from_zoo":
            common["initial_hyperparameters"] = [values_of_zoo(task, kwargs)] * task.pop_size
        common |= {"score": "training", "n_eval_episodes": 10, "n_report_episodes": 0, "seed": seed, "device": "cpu"}
        model = PBT("MlpPolicy", env, ready_steps=task.ready_steps, evaluator=options.evaluator, **common)
    else:
        model = PBT.resume_from(checkpoints, env, "cpu", evaluator=options.evaluator)
    file = options.output / options.task / f"{way}_{seed}.csv"
    model.learn(n_steps, [Curve(judge, file, 1), GenerationCheckpoint(1, checkpoints, keep=1)])
    model.lineage().to_csv(file.with_name(f"{way}_{seed}_lineage.csv"), index=False, float_format="%.6g")
    return [model.individual(number) for number in range(task.pop_size)], model.num_timesteps


def plain_runs(task: Task, seed: int, n_steps: int, judge: Judge, options: Any, way: str) -> tuple[list[Any], int]:
    """:return: models and steps of runs of SB3"""
    n_envs, kwargs = zoo_settings(task)
    n_runs = task.pop_size if way == "independent" else 1
    models, made = [], member_class(task.algorithm)[1]
    for number in range(n_runs):
        env = make_vec_env(task.env_id, n_envs, seed=1000 * seed + number)
        folder = options.checkpoints / options.task / f"{way}_{seed}" / str(number)
        saved = sorted(file for file in folder.glob("*.zip") if ".part" not in file.name)
        if saved:
            model: Any = made.load(saved[-1], env, "cpu")
            if saved[-1].with_suffix(".pkl").exists():
                model.load_replay_buffer(saved[-1].with_suffix(".pkl"))
        else:
            policy: Any = "MlpPolicy"
            model = made(policy, env, seed=1000 * seed + number, device="cpu", **kwargs)  # type: ignore[call-arg]
        left = n_steps // n_runs - model.num_timesteps
        if left > 0:
            file = options.output / options.task / f"{way}_{seed}.csv"
            every = task.ready_steps * task.pop_size
            model.learn(left, Curve(judge, file, every, number, folder), reset_num_timesteps=not saved)
        models.append(model)
    return models, sum(model.num_timesteps for model in models)


def spend(task: Task, way: str, seed: int, n_steps: int, options: Any) -> dict[str, Any]:
    """
    :param task: what is learned
    :param way: one of :data:`WAYS`
    :param seed: of the run
    :param n_steps: environment steps
    :param options: of the command line
    :return: what came of it; ``seconds`` are those of this process since it began the run or went on with it
    """
    begin, judge = time.process_time(), Judge(task.env_id)
    run = population if way.startswith("pbt") else plain_runs
    models, used = run(task, seed, n_steps, judge, options, way)
    choice = [judge.choice(model, N_CHOICE) for model in models]
    best = int(np.argmax(choice))
    report = judge.report(models[best], N_REPORT)
    seconds = round(time.process_time() - begin, 1)
    return {"way": way, "seed": seed, "steps": int(used), "return": report, "choice": choice, "seconds": seconds}


# -------------------------------------------------------------------- what came of it


def curve(file: Path, n_runs: int) -> tuple[list[int], list[float]]:
    """
    :param file: that :class:`Curve` wrote, perhaps with points that were made twice because a run was killed between
    :param n_runs: runs in it that share the budget
    :return: steps of all runs together, and the report of the run that was best by the episodes of choice
    """
    points: dict[int, dict[int, tuple[float, float]]] = {}
    with open(file, newline="") as opened:
        for row in csv.DictReader(opened):
            run = int(row["run"]) if n_runs > 1 else 0
            points.setdefault(int(row["steps"]), {})[run] = float(row["choice"]), float(row["report"])
    steps = [key for key in sorted(points) if len(points[key]) == n_runs]
    return [key * n_runs for key in steps], [max(points[key].values())[1] for key in steps]


def plot(folder: Path, task: Task, picture: Path) -> None:
    """Draw the curves of a task."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for color, way in zip(("C0", "C1", "C2", "C3"), WAYS, strict=True):
        n_runs = task.pop_size if way == "independent" else 1
        for index, file in enumerate(_curves(folder, way)):
            axes.plot(*curve(file, n_runs), color=color, label=way if index == 0 else None, alpha=0.8)
    axes.set(xlabel="environment steps of all runs or members together", ylabel="mean return, separate episodes")
    axes.set_title(f"{task.env_id}, {task.algorithm.upper()}: {task.pop_size} members or runs")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def _curves(folder: Path, way: str) -> Iterator[Path]:
    return (file for file in sorted(folder.glob(f"{way}_*.csv")) if file.stem.removeprefix(f"{way}_").isdecimal())


def print_reached(folder: Path, task: Task, seeds: list[int], n_steps: int) -> None:
    """Print what each way had reached by a number of steps, also of runs that are not finished."""
    print(f"| way | by {n_steps} steps: last report, mean of the last three |\n|---|---|")
    for way in WAYS:
        for file in (folder / f"{way}_{seed}.csv" for seed in seeds):
            if file.exists():
                steps, reports = curve(file, task.pop_size if way == "independent" else 1)
                found = [report for step, report in zip(steps, reports, strict=True) if step <= n_steps]
                text = f"{found[-1]:.1f}, {np.mean(found[-3:]):.1f}" if found and steps[-1] >= n_steps else "not reached"
                print(f"| {file.stem} | {text} |")


def main() -> None:
    """Make the runs that are missing, print a table and draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=sorted(TASKS), required=True)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=float, help="environment steps of each way, those of the task by default")
    parser.add_argument("--evaluator", default="vec", choices=("vec", "process", "ray"), help="who runs PBT's members")
    parser.add_argument("--output", type=Path, default=Path("docs/results/pbt"))
    parser.add_argument("--checkpoints", type=Path, default=Path("runs/pbt"))
    parser.add_argument("--at", type=int, help="make no runs: print what curves that are there had reached by so many steps")
    options = parser.parse_args()
    task = TASKS[options.task]
    folder = options.output / options.task
    folder.mkdir(parents=True, exist_ok=True)
    if options.at is not None:
        print_reached(folder, task, options.seeds, options.at)
        plot(folder, task, options.output / f"{options.task}.png")
        return
    rows = []
    for seed in options.seeds:
        for way in options.ways:
            file = folder / f"{way}_{seed}.json"
            if not file.exists():
                found = spend(task, way, seed, int(options.steps or task.n_steps), options)
                file.write_text(json.dumps(found, indent=1) + "\n")
            rows.append(json.loads(file.read_text()))
            plot(folder, task, options.output / f"{options.task}.png")
    print(f"| way | {' | '.join(f'seed {seed}' for seed in options.seeds)} | mean |")
    print("|---|" + "---|" * (len(options.seeds) + 1))
    for way in options.ways:
        returns = [row["return"] for row in rows if row["way"] == way]
        print(f"| {way} | {' | '.join(f'{value:.1f}' for value in returns)} | {np.mean(returns):.1f} |")


if __name__ == "__main__":
    main()
