"""
What CEM-RL is good at: rewards that come late. The fitness of individuals is that of whole episodes, gradients only help.

Trains CEM-RL once with every step's reward in the replay buffer and once with zeros but for each episode's last step, which
gets the return; and CEM, which uses no rewards of single steps at all.

    python -m examples.reward_at_the_end [--steps 10000]
"""

import argparse

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_erl import CEM, CEMRL

TASK = "InvertedPendulum-v5"


def main(arguments: list[str] | None = None) -> float:
    """:return: mean return of CEM-RL with rewards at the end only"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=float, default=10_000)
    steps = parser.parse_args(arguments).steps

    small = {"net_arch": [64, 64]}
    models = {
        "CEM-RL, a reward at each step": CEMRL("MlpPolicy", TASK, learning_starts=500, policy_kwargs=small, seed=1),
        "CEM-RL, rewards at the end": CEMRL(
            "MlpPolicy", TASK, learning_starts=500, reward_mode="episodic", policy_kwargs=small, seed=1
        ),
        "CEM": CEM("MlpPolicy", TASK, policy_kwargs=small, seed=1),
    }
    env = make_vec_env(TASK, seed=100)
    returns = {}
    for name, model in models.items():
        model.learn(steps)
        returns[name], spread = evaluate_policy(model, env, n_eval_episodes=10)
        print(f"{name:30s} return of the mean {returns[name]:6.1f} +- {spread:.1f}")
    return float(returns["CEM-RL, rewards at the end"])


if __name__ == "__main__":
    main()
