"""
Gates of ESAC on a task that SAC solves: its SAC against that of Stable-Baselines3 after as many steps, and its pairs.

``python -m benchmarks.esac --env Pendulum-v1 --steps 20000 --seeds 1 2 3 --output docs/results/esac_Pendulum-v1``
"""

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_erl import ESAC
from sb3_erl.engine.generation import Generation
from sb3_erl.engine.steps import every

NETWORKS = {"net_arch": [64, 64]}
N_COMPARED = 10
"""Generations after the last phase in which pairs around SAC are compared with those around the mother."""


class Ahead:
    """A step of a generation that counts when the best pair around SAC was better than the mean of those around the mother."""

    def __init__(self) -> None:
        self.n_ahead = 0

    def __call__(self, model: Any, generation: Generation) -> None:
        """:param model: ESAC; :param generation: after ``score``"""
        assert generation.fitness is not None
        pairs, slots = generation.fitness.reshape(-1, 2).mean(axis=1), model.evolver.base_slots
        self.n_ahead += bool(pairs[slots["learner"]].max() > pairs[slots["mother"]].mean())


def tested(agent: Any, env: str) -> float:
    """:return: mean return of 10 episodes by deterministic actions, from the same start states for all agents"""
    return float(evaluate_policy(agent, make_vec_env(env, seed=1000), n_eval_episodes=10)[0])  # type: ignore[arg-type]


def run_sac(env: str, steps: int, seed: int) -> dict[str, Any]:
    """:return: what SB3's SAC reaches, with the entropy coefficient and the random start of ESAC"""
    kwargs: dict[str, Any] = {"ent_coef": 0.2, "learning_starts": 1000, "policy_kwargs": NETWORKS}
    model: BaseAlgorithm = SAC("MlpPolicy", env, seed=seed, device="cpu", **kwargs).learn(steps)
    return {"sac": tested(model, env)}


def run_esac(env: str, steps: int, seed: int) -> dict[str, Any]:
    """:return: what ESAC's agents reach after as many steps of its SAC, five episodes of which follow each generation"""
    ahead = Ahead()
    kwargs: dict[str, Any] = {"sac_interval": 1, "sac_probability": (1, 1, 1), "policy_kwargs": NETWORKS}
    watch = every(1, ahead, after="score")
    model = ESAC("MlpPolicy", env, seed=seed, device="cpu", generation_steps=[watch], **kwargs)
    limit = model.counted_timesteps(1)
    model.learning_starts = 2 * limit  # the first phase is random
    model.learn(steps // (5 * limit) * 25 * limit)
    agents = {"sac": model.learner_agent, "mother": model.mother_agent, "winner": model.winner_agent}
    row: dict[str, Any] = {name: tested(agent, env) for name, agent in agents.items()}
    model.sac_interval, ahead.n_ahead = model.n_generations + N_COMPARED + 1, 0
    model.learn(N_COMPARED * 20 * limit, reset_num_timesteps=False)
    return {**row, "sac_pairs_ahead": ahead.n_ahead, "sac_steps": model.n_learner_steps}


def main() -> None:
    """Run both systems with each seed, one after the other, and write a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1] if __doc__ else None)
    parser.add_argument("--env", default="Pendulum-v1", help="a task whose episodes all have the length of its time limit")
    parser.add_argument("--steps", type=int, default=20_000, help="steps of SAC, its own in ESAC")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--output", type=Path, required=True, help="folder of gates.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    columns = ["system", "seed", "sac_steps", "sac", "mother", "winner", "sac_pairs_ahead", "seconds"]
    with (arguments.output / "gates.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        for seed in arguments.seeds:
            for system, run in (("esac", run_esac), ("sac", run_sac)):
                start = time.perf_counter()
                row = {
                    "system": system,
                    "seed": seed,
                    "sac_steps": arguments.steps,
                    **run(arguments.env, arguments.steps, seed),
                }
                row["seconds"] = round(time.perf_counter() - start)
                table.writerow({key: round(value, 1) if isinstance(value, float) else value for key, value in row.items()})
                file.flush()


if __name__ == "__main__":
    main()
