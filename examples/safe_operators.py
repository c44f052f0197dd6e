"""
What PDERL is good at: a child that does what its parents did.

Trains PDERL, then crosses its champion with its learner, once by distillation and once by exchanging rows of weights as ERL
does, and compares the children with their parents.

    python -m examples.safe_operators [--steps 20000]
"""

import argparse

import numpy as np
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_erl import PDERL
from sb3_erl.core.parameters import ParameterLayout, read_parameters, write_parameters
from sb3_erl.evolution.operators import RowCrossover
from sb3_erl.evolution.operators.distillation import DistillationCrossover


def main(arguments: list[str] | None = None) -> float:
    """:return: mean squared distance of the distilled child's actions from those the critic prefers"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=float, default=20_000)
    steps = parser.parse_args(arguments).steps

    model = PDERL("Pendulum-v1", pop_size=5, sync_period=2, seed=1).learn(steps)
    champion, learner = model.policy.deployed, model.learner_agent
    first, second = read_parameters(champion)[None], read_parameters(learner)[None]
    memories, rng = model.evolver.memories, np.random.default_rng(0)
    states = torch.as_tensor(np.concatenate([memories.latest(i, 1000)[0] for i in (0, model.pop_size)]))

    layout = ParameterLayout.of(champion)
    distillation = DistillationCrossover(champion, layout)
    value = model.learner.value

    def draw() -> torch.Tensor:
        return states[rng.integers(len(states), size=128)][None]

    distilled = distillation(first, second, draw, [200], value)[0]
    crossed = torch.as_tensor(RowCrossover(layout)(first.numpy(), second.numpy(), rng)[0])

    eval_env = make_vec_env("Pendulum-v1", seed=100)
    preferred = distillation.targets(first, second, states[None], value)[0][0]
    distances = {}
    for name, vector in {"champion": first, "learner": second, "distilled": distilled, "rows crossed": crossed}.items():
        agent = model.individual(0)  # a network of its own, to be overwritten
        write_parameters(vector[0], agent)
        with torch.no_grad():
            distances[name] = float((agent(states) - preferred).square().mean())
        mean, _ = evaluate_policy(agent, eval_env, n_eval_episodes=5)
        print(f"{name:13s} return {mean:7.0f}, squared distance from the preferred actions {distances[name]:.3f}")
    return distances["distilled"]


if __name__ == "__main__":
    main()
