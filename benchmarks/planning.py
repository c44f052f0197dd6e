"""
What the planner reaches, and how long it takes; rows are appended to ``docs/results/planning/<measurement>.csv``.

    python -m benchmarks.planning pendulum [--episodes 20]
    python -m benchmarks.planning speed
    python -m benchmarks.planning warm_start [--seeds 1 2 3]
    python -m benchmarks.planning cheetah_run [--methods cem shooting] [--seeds 1 2 3]

``pendulum``: Pendulum-v1 with its equations of motion as the model, PlaNet's settings but horizon 20, one episode from each
start. ``speed``: seconds per action on HalfCheetah-v5 (100 candidates, 5 iterations, horizon 12), stepped one by one, in two
worker processes, and by ``mujoco.rollout`` in one and two threads. ``warm_start``:
200 steps of HalfCheetah-v5 with a fresh belief and with a warm start. ``cheetah_run``: cheetah-run of DeepMind Control with
the simulator as the model and action repeat 4, a tenth of PlaNet's candidates and half of its iterations, and random shooting
with as many sequences. It needs dm_control: ``pip install 'mujoco==3.17.0' 'dm-control==1.0.50' 'shimmy[dm-control]==2.0.1'``.
"""

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from examples.planning import pendulum_model
from sb3_erl.planning import CEMPlanner, RolloutModel, SimulatorModel

FOLDER = Path(__file__).parents[1] / "docs" / "results" / "planning"
METHODS: dict[str, dict[str, Any]] = {
    "cem": {"n_candidates": 100, "n_elites": 10, "n_iterations": 5},
    "shooting": {"n_candidates": 500, "n_elites": 1, "n_iterations": 1},
}
"""Two ways to spend 500 sequences per decision."""


def append(name: str, row: dict[str, Any], folder: Path) -> None:
    """Add a row to a table, which is begun if there is none; and show it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.csv"
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)
    print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)


def play(env: gym.Env, planner: CEMPlanner, observation: Any) -> tuple[float, int, float]:
    """:return: return of an episode from here to its end, its decisions, and seconds per decision"""
    total, n_decisions, seconds, over = 0.0, 0, 0.0, False
    planner.reset()
    while not over:
        begin = time.perf_counter()
        state = planner.model.sync(env) if planner.model.is_simulator else observation
        action, _ = planner.plan(state, deterministic=True)
        seconds += time.perf_counter() - begin
        n_decisions += 1
        for _ in range(planner.action_repeat):
            observation, reward, terminated, truncated, _ = env.step(action.astype(env.action_space.dtype))
            total, over = total + float(reward), terminated or truncated
            if over:
                break
    return total, n_decisions, seconds / n_decisions


def cheetah_run(options: argparse.Namespace) -> float:
    """:return: mean return of the last method"""
    import shimmy

    gym.register_envs(shimmy)
    returns: list[float] = []
    for method in options.methods:
        returns = []
        for seed in options.seeds:
            env: Any = gym.make("dm_control/cheetah-run-v0")
            settings = METHODS[method]
            planner = CEMPlanner(SimulatorModel(env), env.action_space, horizon=12, action_repeat=4, seed=seed, **settings)
            observation, _ = env.reset(seed=seed)
            begin = time.perf_counter()
            total, n_decisions, seconds = play(env, planner, observation)
            row = {"method": method, "seed": seed, "return": round(total, 1), "decisions": n_decisions}
            row |= {"seconds_per_decision": round(seconds, 3), "minutes": round((time.perf_counter() - begin) / 60, 1)}
            append("cheetah_run", {**row, **settings}, options.out)
            returns.append(total)
        print(f"{method}: mean {np.mean(returns):.1f}")
    return float(np.mean(returns))


def pendulum(options: argparse.Namespace) -> float:
    """:return: mean return over episodes from different starts"""
    env: Any = gym.make("Pendulum-v1")
    planner = CEMPlanner(pendulum_model(), env.action_space, horizon=20, seed=0)
    returns = []
    for seed in range(options.episodes):
        observation, _ = env.reset(seed=seed)
        total, _, seconds = play(env, planner, observation)
        append("pendulum", {"start": seed, "return": round(total, 1), "seconds_per_action": round(seconds, 3)}, options.out)
        returns.append(total)
    print(f"mean {np.mean(returns):.1f}")
    return float(np.mean(returns))


def speed(options: argparse.Namespace) -> float:
    """:return: CPU time of stepping one by one over that of ``mujoco.rollout`` in one thread, medians of interleaved rounds"""
    env: Any = gym.make("HalfCheetah-v5")
    env.reset(seed=0)
    models = {
        "step": SimulatorModel(env),
        "step, 2 workers": SimulatorModel(env, n_workers=2),
        "mujoco.rollout": RolloutModel(env),
        "mujoco.rollout, 2 threads": RolloutModel(env, n_threads=2),
    }
    planners = {name: CEMPlanner(model, env.action_space, seed=0, **METHODS["cem"]) for name, model in models.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for number in range(options.episodes + 1):
        for name, planner in planners.items():
            begin, used = time.perf_counter(), time.process_time()
            planner.plan(planner.model.sync())
            if number > 0:  # workers start in the first one
                times[name].append((time.perf_counter() - begin, time.process_time() - used))
    medians = {name: np.median(pairs, axis=0) for name, pairs in times.items()}
    for name, (seconds, used) in medians.items():
        row = {"model": name, "seconds_per_action": round(float(seconds), 3), "own_cpu_seconds": round(float(used), 3)}
        row["speed_over_step"] = round(float(medians["step"][0] / seconds), 2)
        append("speed", row, options.out)
    models["step, 2 workers"].close()
    return float(medians["step"][1] / medians["mujoco.rollout"][1])


def warm_start(options: argparse.Namespace) -> float:
    """:return: how much more the warm start with the longer horizon gets in the last seed"""
    env: Any = gym.make("HalfCheetah-v5", max_episode_steps=200)
    for seed in options.seeds:
        totals = []
        for horizon, is_warm in ((12, False), (12, True), (20, False), (20, True)):
            settings: dict[str, Any] = {**METHODS["cem"], "horizon": horizon, "warm_start": is_warm}
            planner = CEMPlanner(RolloutModel(env), env.action_space, seed=seed, **settings)
            totals.append(play(env, planner, env.reset(seed=seed)[0])[0])
            row = {"horizon": horizon, "warm_start": is_warm, "seed": seed, "return": round(totals[-1], 1)}
            append("warm_start", row, options.out)
    return totals[-1] - totals[0]


MEASUREMENTS = {"cheetah_run": cheetah_run, "pendulum": pendulum, "speed": speed, "warm_start": warm_start}


def main(arguments: list[str] | None = None) -> float:
    """:return: the figure that the measurement is about"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurement", choices=MEASUREMENTS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the tables")
    options = parser.parse_args(arguments)
    return MEASUREMENTS[options.measurement](options)


if __name__ == "__main__":
    main()
