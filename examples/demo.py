"""
Train ERL-Re2 on a MuJoCo task until it has visibly learned, and show it: figures, learning curve, model and video.

    python -m examples.demo                                    # a few minutes on two cores
    python -m examples.demo --env Ant-v4 --steps 1000000       # the headline run: many hours
    make demo ENV=Ant-v4 STEPS=1000000                         # the same after installing everything

Files are written to ``--out``: ``erl_re2_<env>.zip``, ``learning_curve.png``, ``population.png``, ``population.csv``,
``evaluations.npz``, ``video.mp4``.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_erl import ERLRe2, PopulationCallback
from sb3_erl.pictures.population_figure import draw_population

DEMO_ENV, DEMO_STEPS = "Hopper-v5", 12_000
SHORT_RUN = 100_000
"""Below this many steps the demo shortens the random warm-up of 10000 steps, which the published settings ask for."""
REPOSITORY = Path(__file__).resolve().parent.parent


def whole_episodes(table: Any) -> dict[str, np.ndarray]:
    """Generations whose fitness is the return of whole episodes: the surrogate fitness is on another scale."""
    rows = table[table["fitness_is_return"].astype(bool)]
    names = {"steps": "timesteps", "mean": "fitness_mean", "low": "fitness_min", "high": "fitness_max"}
    return {name: rows[column].to_numpy(float) for name, column in names.items()}


class Progress(EvalCallback):
    """SB3's evaluation callback, reporting in one line."""

    def _on_step(self) -> bool:
        n_done = len(self.evaluations_timesteps)
        go_on = super()._on_step()
        if len(self.evaluations_timesteps) > n_done:
            seconds = time.time() - self.model.start_time / 1e9
            print(f"{self.num_timesteps:>9d} steps {seconds:6.0f} s   return {self.last_mean_reward:8.1f}", flush=True)
        return go_on


def random_return(env_id: str, n_episodes: int = 20) -> tuple[float, float]:
    """:return: mean and standard deviation of the return of uniformly random actions"""
    env = gym.make(env_id)
    env.action_space.seed(0)
    returns = []
    for episode in range(n_episodes):
        env.reset(seed=episode)
        total, over = 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    env.close()
    return float(np.mean(returns)), float(np.std(returns))


def plot(path: Path, env_id: str, population: dict[str, np.ndarray], evaluation: Progress, random: float) -> None:
    """Draw the deployed policy's evaluations over the spread of the population."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(population["steps"], population["mean"], color="C0", linewidth=1, label="population: mean, worst and best")
    axes.fill_between(population["steps"], population["low"], population["high"], color="C0", alpha=0.2, linewidth=0)
    results = np.array(evaluation.evaluations_results)
    axes.errorbar(
        evaluation.evaluations_timesteps,
        results.mean(axis=1),
        results.std(axis=1),
        color="C1",
        capsize=3,
        label="deployed policy",
    )
    axes.axhline(random, color="gray", linestyle="--", label="random actions")
    axes.set_title(f"ERL-Re2 on {env_id}")
    axes.set_xlabel("environment steps, population and learner together")
    axes.set_ylabel("return of an episode")
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    figure.savefig(path, dpi=150)


def film(env_id: str, model: Path, video: Path) -> bool:
    """Record a video in a process of its own, because MuJoCo chooses its renderer when it is imported."""
    chosen = os.environ.get("MUJOCO_GL")
    for backend in [chosen] if chosen else ["egl", "osmesa", "glfw" if os.environ.get("DISPLAY") else None]:
        if backend is None:
            continue
        environment = {**os.environ, "MUJOCO_GL": backend, "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, "-m", "examples.record_video", "erl_re2", env_id]
        command += [str(model.resolve()), str(video.resolve()), "--steps", "400"]
        try:
            done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, timeout=300, check=False)
        except subprocess.TimeoutExpired:
            continue
        if done.returncode == 0:
            return True
    video.unlink(missing_ok=True)
    return False


def main(arguments: list[str] | None = None) -> float:
    """:return: mean return of the deployed policy"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default=DEMO_ENV)
    parser.add_argument("--steps", type=float, default=DEMO_STEPS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    args = parser.parse_args(arguments)
    steps = int(args.steps)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # these networks are too small for more

    random, random_std = random_return(args.env)
    print(f"ERL-Re2 on {args.env}, {steps} steps; random actions reach {random:.1f} +- {random_std:.1f}", flush=True)
    warm_up = steps // 6 if steps < SHORT_RUN else 10_000
    model = ERLRe2(args.env, buffer_size=min(1_000_000, steps), learning_starts=warm_up, seed=args.seed)
    eval_env = make_vec_env(args.env, n_envs=1, seed=args.seed + 1000)
    n_evaluations = 6 if steps < SHORT_RUN else 100
    progress = Progress(
        eval_env, eval_freq=max(steps // n_evaluations, 1), n_eval_episodes=5, log_path=str(args.out), verbose=0
    )
    watch = PopulationCallback(args.out)
    model.learn(steps, callback=[progress, watch])

    file = args.out / f"erl_re2_{args.env.replace('/', '-')}.zip"
    model.save(file)
    mean, std = evaluate_policy(model, eval_env, n_eval_episodes=10)
    plot(args.out / "learning_curve.png", args.env, whole_episodes(watch.table()), progress, random)
    draw_population(args.out).savefig(args.out / "population.png", dpi=110)
    print(f"\nrandom actions   {random:8.1f} +- {random_std:.1f}\nERL-Re2          {mean:8.1f} +- {std:.1f}")
    print(f"model:           {file}\nlearning curve:  {args.out / 'learning_curve.png'}")
    print(f"population:      {args.out / 'population.png'}")
    if film(args.env, file, args.out / "video.mp4"):
        print(f"video:           {args.out / 'video.mp4'}")
    else:
        print("video:           no renderer found; `apt install libegl1 libgl1-mesa-dri` (or libosmesa6) and run this again")
    return float(mean)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
