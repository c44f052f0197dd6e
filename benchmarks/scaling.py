"""
How many workers one main process keeps busy: ``python -m benchmarks.scaling --out docs/results/scaling.json``.

Environments that sleep stand for environments on other machines, so that many more workers than CPUs can be at work. The same
list of episodes is run with 1, 2, 4, ... workers; the efficiency of W workers is T(1) / (W * T(W)). Beside each point stands
how busy the machine was: where its CPUs were more than 70 % busy, the point says something about the machine, not about us.
A model of the time of a generation is compared with the measurement and then, and only then, asked about more workers.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback

from sb3_erl import OpenAIES
from sb3_erl.core.parameters import read_parameters
from sb3_erl.core.seeding import Address, Stream
from sb3_erl.remote import dispatcher as dispatch
from sb3_erl.remote.evaluator import RemoteEvaluator
from sb3_erl.remote.process import ProcessEvaluator
from sb3_erl.remote.ray import RayEvaluator

SPACES = {"humanoid": (376, 17), "small": (3, 2)}
"""Observations and actions; sizes of messages and costs are measured with those of Humanoid and 166673 parameters."""
BUSY = 0.7
"""Share of busy CPUs from which on a point is marked."""


class SleepEnv(gym.Env):
    """
    Sleeps where others compute.

    :param step_seconds: duration of a step
    :param n_steps: mean length of an episode
    :param spread: standard deviation of the logarithm of the length; 0 for equal lengths
    :param size: key of ``SPACES``
    """

    def __init__(self, step_seconds: float = 0.05, n_steps: int = 20, spread: float = 0.0, size: str = "humanoid"):
        self.step_seconds, self.n_steps, self.spread = step_seconds, n_steps, spread
        n_inputs, n_outputs = SPACES[size]
        self.observation_space = spaces.Box(-np.inf, np.inf, (n_inputs,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (n_outputs,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        factor = float(np.exp(self.spread * self.np_random.standard_normal() - 0.5 * self.spread**2))
        self.limit, self.time = max(1, round(self.n_steps * factor)), 0
        self.observation = self.np_random.standard_normal(self.observation_space.shape).astype(np.float32)
        return self.observation, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.step_seconds > 0:
            time.sleep(self.step_seconds)
        self.time += 1
        return self.observation, float(action[0]), self.time >= self.limit, False, {}


class Clock(BaseCallback):
    """When the evaluation of a generation began and ended."""

    def _on_rollout_start(self) -> None:
        self.begun, self.cpu_begun = time.perf_counter(), time.process_time()

    def _on_rollout_end(self) -> None:
        self.ended, self.cpu_ended = time.perf_counter(), time.process_time()

    def _on_step(self) -> bool:
        return True


def cpu_seconds() -> tuple[float, float]:
    """:return: seconds that the CPUs of this machine were busy, and all their seconds, since it was started"""
    values = [float(value) for value in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return sum(values) - values[3] - values[4], sum(values)


def our_cpu_seconds() -> float:
    """:return: CPU seconds that this process and its workers have used"""
    ticks = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            values = file.read_text().rpartition(")")[2].split()
            ticks += int(values[11]) + int(values[12]) if int(values[2]) == os.getpgrp() else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def make_model(size: str, evaluator: RemoteEvaluator, n_jobs: int, **env: Any) -> OpenAIES:
    """A model whose generations are ``n_jobs`` episodes."""
    settings: dict[str, Any] = {"n_pairs": n_jobs // 2, "n_center_episodes": 0, "seed": 1, "device": "cpu"}
    settings["policy_kwargs"] = {"net_arch": [256, 256] if size == "humanoid" else [16]}
    evaluator.make_env = lambda: SleepEnv(size=size, **env)
    model = OpenAIES("MlpPolicy", SleepEnv(size=size, **env), evaluator=evaluator, **settings)
    model.learn(1, log_interval=None)  # starts the workers
    evaluator.settle()
    return model


def generation(model: OpenAIES) -> dict[str, float]:
    """Run the one and always the same generation; returns what it cost."""
    assert model.workers is not None
    clock, length, before = Clock(), sum(lengths(model)), model.workers.traffic
    model.phase = 0
    (busy, total), ours, own, start = cpu_seconds(), our_cpu_seconds(), time.process_time(), time.perf_counter()
    model.learn(length, clock, log_interval=None)
    end = time.perf_counter()
    (busy_after, total_after), after = cpu_seconds(), model.workers.traffic
    return {
        "seconds": clock.ended - clock.begun,
        "main_cpu_seconds": clock.cpu_ended - clock.cpu_begun,
        "update_cpu_seconds": time.process_time() - own - (clock.cpu_ended - clock.cpu_begun),
        "our_load": (our_cpu_seconds() - ours) / (end - start) / (os.cpu_count() or 1),
        "machine_load": (busy_after - busy) / max(total_after - total, 1e-9),
        "messages": after.messages_in - before.messages_in,
        "bytes_in": after.bytes_in - before.bytes_in,
        "bytes_out": after.bytes_out - before.bytes_out,
    }


def lengths(model: OpenAIES) -> list[int]:
    """Steps of the episodes of that generation, in the order of the jobs."""
    assert model.env is not None and model.run_seed is not None
    env: Any = model.env.envs[0].unwrapped  # type: ignore[attr-defined]
    address, found = Address(model.run_seed, 1), []
    for candidate in range(1, 2 * model.n_pairs + 1):
        env.reset(seed=address.seed(Stream.ENVIRONMENT, candidate, 0))
        found.append(env.limit)
    return found


def makespan(durations: Sequence[float], n_workers: int) -> float:
    """
    List scheduling.

    :param durations: seconds of each job, in the order in which they are given out
    :param n_workers: each takes the next job when it is free
    :return: seconds until the last one ends

    >>> makespan([3.0, 1.0, 1.0, 1.0], 2)
    3.0
    """
    free = [0.0] * n_workers
    for duration in durations:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


def measure(args: argparse.Namespace, name: str, n_jobs: int, repeats: int, **env: Any) -> dict[str, Any]:
    """Time one list of episodes with different numbers of workers, most workers first."""
    points: dict[int, dict[str, Any]] = {}
    evaluator = make_evaluator(args)
    model = make_model("small", evaluator, n_jobs, **env)  # what computes here would compute elsewhere
    nominal = [n * env["step_seconds"] for n in lengths(model)]
    for n_workers in sorted(args.workers, reverse=True):
        evaluator.n_workers = n_workers
        evaluator.settle()
        runs = [generation(model) for _ in range(repeats)]
        keys = runs[0].keys()
        points[n_workers] = {key: statistics.median(run[key] for run in runs) for key in keys}
        points[n_workers]["all_seconds"] = [round(run["seconds"], 4) for run in runs]
        print(name, n_workers, {key: round(value, 4) for key, value in points[n_workers].items() if key in keys}, flush=True)
    evaluator.close()
    reference = points[1]["seconds"] if 1 in points else sum(nominal)
    per_second = reference / sum(nominal)
    for n_workers, point in points.items():
        point["efficiency"] = reference / (n_workers * point["seconds"])
        point["bound"] = sum(nominal) / (n_workers * makespan(nominal, n_workers))
        point["is_busy"] = point["machine_load"] > BUSY
    numbers = {
        "n_jobs": n_jobs,
        "nominal_seconds": sum(nominal),
        "measured_per_nominal": per_second,
        "t1_measured": 1 in points,
    }
    return {"name": name, **numbers, "env": env, "points": points, "durations": [round(d * per_second, 5) for d in nominal]}


def make_evaluator(args: argparse.Namespace) -> RemoteEvaluator:
    """The back-end that was asked for."""
    if args.backend == "ray":
        return RayEvaluator(n_workers=max(args.workers), num_cpus=0, start_timeout=600)
    return ProcessEvaluator(n_workers=max(args.workers), start_timeout=600)


def costs(args: argparse.Namespace) -> dict[str, float]:
    """Cost of a message to the main process, of empty episodes one per message; bytes of it; and the update."""
    wanted, dispatch.MESSAGE_SECONDS = dispatch.MESSAGE_SECONDS, 0.0
    evaluator = make_evaluator(args)
    evaluator.n_workers = 2
    model = make_model("humanoid", evaluator, 512, step_seconds=0.0, n_steps=1)
    generation(model)
    runs = [generation(model) for _ in range(5)]
    evaluator.close()
    dispatch.MESSAGE_SECONDS = wanted
    median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    n_params = int(model.evolver.mean.numel())
    return {
        "n_params": n_params,
        "message_seconds": median["main_cpu_seconds"] / median["messages"],
        "update_seconds_per_pair": median["update_cpu_seconds"] / 256,
        "bytes_in_per_message": median["bytes_in"] / median["messages"],
        "bytes_out_per_generation": median["bytes_out"],
        "messages": median["messages"],
    }


def extrapolate(cost: dict[str, float], n_workers: int, n_jobs: int, spread: float, seconds: float) -> dict[str, float]:
    """The model's answer for a number of workers that was not measured."""
    rng = np.random.default_rng(0)
    durations = (seconds * np.exp(spread * rng.standard_normal(n_jobs) - 0.5 * spread**2)).tolist()
    running = max(cost["message_seconds"] * n_jobs, makespan(durations, n_workers))
    update = cost["update_seconds_per_pair"] * n_jobs / 2
    whole = sum(durations)
    return {
        "n_workers": n_workers,
        "n_jobs": n_jobs,
        "spread": spread,
        "episode_seconds": seconds,
        "evaluation_seconds": running,
        "update_seconds": update,
        "evaluation_efficiency": whole / (n_workers * running),
        "generation_efficiency": (whole + update) / (n_workers * (running + update)),
    }


class Losing(BaseCallback):
    """
    Ends half of the workers again and again, without warning, as where machines are taken away; others are started for them.

    :param evaluator: of the model
    :param period: seconds from one time to the next
    """

    def __init__(self, evaluator: RemoteEvaluator, period: float):
        super().__init__()
        self.evaluator, self.period, self.rng = evaluator, period, np.random.default_rng(0)
        self.next = time.monotonic() + period

    def _on_step(self) -> bool:
        pool: Any = self.evaluator._dispatcher.pool  # type: ignore[union-attr]
        if time.monotonic() >= self.next:
            self.next = time.monotonic() + self.period
            workers: Any = self.evaluator._dispatcher.workers  # type: ignore[union-attr]
            for worker in self.rng.permutation(workers)[: len(workers) // 2].tolist():
                if isinstance(self.evaluator, RayEvaluator):
                    pool._ray.kill(pool.actor_of(worker))
                else:
                    pool.process_of(worker).kill()
        return True


def come_and_go(args: argparse.Namespace, n_workers: int = 8) -> dict[str, Any]:
    """Two runs of the same generations, one of them losing half of its workers every few seconds; a minute is shortened."""
    seconds, deaths = [], 0
    parameters: list[Any] = []
    for is_losing in (False, True):
        evaluator = make_evaluator(args)
        evaluator.n_workers = n_workers
        model = make_model("small", evaluator, 256, step_seconds=0.02, n_steps=12, spread=0.5)
        start = time.perf_counter()
        model.learn(7000, Losing(evaluator, args.period) if is_losing else None, log_interval=None)
        seconds.append(time.perf_counter() - start)
        parameters.append(read_parameters(model.policy.deployed).tolist())
        deaths = evaluator.n_deaths
        evaluator.close()
    return {
        "n_workers": n_workers,
        "period_seconds": args.period,
        "workers_lost": deaths,
        "seconds": seconds[0],
        "seconds_losing": seconds[1],
        "is_equal": parameters[0] == parameters[1],
    }


def table(result: dict[str, Any]) -> str:
    """The measurement in Markdown."""
    lines = []
    for part in result["parts"]:
        lines += [f"\n{part['name']}: {part['n_jobs']} episodes, {part['nominal_seconds']:.0f} s of sleep", ""]
        lines += ["| workers | seconds | efficiency | at most | model | our load | machine load | |", "|" + "---|" * 8]
        for n_workers, point in sorted(part["points"].items(), key=lambda item: int(item[0])):
            mark = "machine busy" if point["is_busy"] else ""
            lines.append(
                f"| {n_workers} | {point['seconds']:.2f} | {point['efficiency']:.3f} | {point['bound']:.3f} | "
                f"{point['model_seconds']:.2f} | {point['our_load']:.0%} | {point['machine_load']:.0%} | {mark} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure, compare with the model, write JSON and a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=["process", "ray"], default="process")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--jobs", type=int, default=128, help="episodes of one second")
    parser.add_argument("--varied-jobs", type=int, default=256, help="episodes of varying length, a quarter of a second")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--period", type=float, default=4.0, help="seconds after which half of the workers are lost")
    parser.add_argument("--out", type=Path, default=Path("scaling.json"))
    args = parser.parse_args()
    cost = costs(args)
    print("costs", {key: round(value, 7) for key, value in cost.items()}, flush=True)
    parts: list[dict[str, Any]] = []
    result: dict[str, Any] = {"backend": args.backend, "costs": cost, "parts": parts}
    settings: list[tuple[str, int, dict[str, Any]]] = [
        ("equal", args.jobs, {"step_seconds": 0.25, "n_steps": 4, "spread": 0.0}),
        ("varied", args.varied_jobs, {"step_seconds": 0.02, "n_steps": 12, "spread": 0.5}),
    ]
    for name, n_jobs, env in settings:
        if n_jobs == 0:
            continue
        part = measure(args, name, n_jobs, args.repeats, **env)
        for n_workers, point in part["points"].items():
            least = cost["message_seconds"] * point["messages"]
            point["model_seconds"] = max(least, makespan(part["durations"], int(n_workers)))
        parts.append(part)
        result["extrapolated"] = [
            extrapolate(cost, n_workers, 10_000, spread, 1.0) for n_workers in (64, 250, 1000) for spread in (0.0, 0.5)
        ]
        args.out.write_text(json.dumps(result, indent=1))
    result["come_and_go"] = come_and_go(args)
    args.out.write_text(json.dumps(result, indent=1))
    print(table(result))
    print("come and go", result["come_and_go"])
    print("extrapolated, not measured:")
    for line in result.get("extrapolated", []):
        print({key: round(value, 4) for key, value in line.items()})


if __name__ == "__main__":
    main()
