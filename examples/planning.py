"""
Act without a policy: plan with known equations of motion, with the simulator itself, with a learned model.

    python -m examples.planning [--episodes 1] [--steps 1200]
"""

import argparse

import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_erl.planning import CEMAgent, FunctionModel


def pendulum_model() -> FunctionModel:
    """The equations of Pendulum-v1: the state is (angle, speed), with angle 0 upright."""

    def step(states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        angle, speed = states.T
        speed = np.clip(speed + (15.0 * np.sin(angle) + 3.0 * actions[:, 0]) * 0.05, -8.0, 8.0)
        return np.stack([angle + speed * 0.05, speed], axis=1)

    def reward(states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        angle, speed = (states[:, 0] + np.pi) % (2 * np.pi) - np.pi, states[:, 1]
        return -(angle**2 + 0.1 * speed**2 + 0.001 * actions[:, 0] ** 2)

    def state_of(observation: np.ndarray) -> np.ndarray:
        return np.array([np.arctan2(observation[1], observation[0]), observation[2]])

    return FunctionModel(step, reward, state_of=state_of)


def main(arguments: list[str] | None = None) -> float:
    """:return: the smallest of the models' mean returns"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=1, help="episodes per model")
    parser.add_argument("--steps", type=float, default=1200, help="steps with which a model is learned")
    options = parser.parse_args(arguments)

    few = {"horizon": 20, "n_candidates": 100, "n_elites": 10, "n_iterations": 4, "action_noise_std": 0.3}
    env = make_vec_env("Pendulum-v1", seed=1)
    agents = {
        "equations": CEMAgent(env=env, model=pendulum_model(), planner_kwargs=few, seed=1),
        "simulator": CEMAgent(env=env, model="simulator", planner_kwargs={**few, "n_candidates": 30, "n_elites": 5}, seed=1),
        "learned": CEMAgent(env=env, model="learned", planner_kwargs=few, learning_starts=options.steps // 3, seed=1),
    }
    agents["learned"].learn(options.steps, progress_bar=True)
    returns = {name: float(evaluate_policy(agent, env, options.episodes)[0]) for name, agent in agents.items()}  # type: ignore[arg-type]
    for name, value in returns.items():
        print(f"{name}: {value:.0f}")
    return min(returns.values())


if __name__ == "__main__":
    main()
