"""
The campaign that asks whether evolution pays.

    python -m benchmarks.campaign run --jobs 2      # make the missing runs, at idle priority; interrupt it at any time
    python -m benchmarks.campaign status            # what is finished, begun and missing
    python -m benchmarks.campaign random            # returns of random actions, the zero of the score
    python -m benchmarks.campaign report            # tables and figures of the curves that are there

Which runs: ``benchmarks/campaign/campaign.yml``, or another file there by ``--plan``: ``systems`` has those that each system
is judged by. Their curves: ``docs/results/<plan>``. Checkouts, logs and checkpoints: ``--work``, which is not committed.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import Any

from benchmarks.campaign.plan import PLANS, Plan, read_plan
from benchmarks.campaign.runner import REPOSITORY, Workshop, make_runs

RESULTS = REPOSITORY / "docs" / "results"
N_RANDOM_EPISODES = 100


def random_returns(plan: Plan) -> dict[str, float]:
    """:return: mean return of 100 episodes of uniform random actions, by task"""
    import gymnasium as gym
    import numpy as np

    import sb3_erl.envs  # noqa: F401 registers ids

    found = {}
    for task, name in dict.fromkeys((run.task, run.env) for run in plan.runs):
        env = gym.make(name)
        env.action_space.seed(0)
        returns = []
        for episode in range(N_RANDOM_EPISODES):
            env.reset(seed=episode)
            total, over = 0.0, False
            while not over:
                _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
                total, over = total + float(reward), terminated or truncated
            returns.append(total)
        found[task] = round(float(np.mean(returns)), 2)
        env.close()
    return found


def show_status(plan: Plan, workshop: Workshop) -> None:
    """Print one line per run."""
    n_finished = 0
    for run in plan.runs:
        finished = workshop.is_finished(run)
        n_finished += finished
        state = "finished" if finished else "begun" if workshop.made_in(run) is not None else "missing"
        print(f"{state:9s} {run.task:24s} {run.method:22s} seed {run.seed}")
    print(f"{n_finished} of {len(plan.runs)} runs are finished")


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """:return: exit status: 0, or 1 if a run failed or an argument is wrong, or 130 after an interruption"""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.campaign", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("run", "status", "random", "report"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--count", type=int, help="stop after so many runs")
    parser.add_argument("--work", type=Path, default=REPOSITORY / ".campaign", help="checkouts, logs and checkpoints")
    parser.add_argument("--plan", default="campaign", choices=sorted(path.stem for path in PLANS.glob("*.yml")))
    parser.add_argument("--results", type=Path, default=RESULTS, help="parent of the folder of the curves")
    args = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _stop)
    plan, results = read_plan(PLANS / f"{args.plan}.yml"), args.results / args.plan
    workshop = Workshop(args.work.resolve(), results)
    try:
        if args.what == "run":
            return 1 if make_runs(plan, workshop, args.jobs, args.count) else 0
        if args.what == "status":
            show_status(plan, workshop)
        elif args.what == "random":
            results.mkdir(parents=True, exist_ok=True)
            (results / "random.json").write_text(json.dumps(random_returns(plan), indent=2) + "\n")
        else:
            from benchmarks.campaign.report import write_report

            print(write_report(results, plan))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
