"""
CERL, for tasks whose best discount factor or learner is not known: several learn, the better ones explore more.

    python -m examples.portfolio [--steps 6000]

All learners train on the transitions of all, so those that get few episodes of their own are not left behind. The first one
sees too few steps ahead to swing the pendulum up.
"""

import argparse

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_erl import CERL


def main(arguments: list[str] | None = None) -> float:
    """:return: share of all exploring episodes that went to the learner with the highest value"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=float, default=6_000)
    steps = parser.parse_args(arguments).steps

    learners, gammas = ["td3", "td3", "sac"], [0.3, 0.95, 0.98]
    model = CERL(
        gym.make("Pendulum-v1", max_episode_steps=100),
        gammas=gammas,
        learner=learners,  # type: ignore[arg-type]
        pop_size=4,
        rollout_size=4,
        sync_period=1,
        ucb_coefficient=0.2,  # little trust in luck: the run is short
        learning_starts=800,
        train_freq=4,
        policy_kwargs={"net_arch": [64, 64]},
        seed=1,
    )
    model.learn(steps)

    env = make_vec_env("Pendulum-v1", seed=100)
    champion, _ = evaluate_policy(model, env, n_eval_episodes=5)
    print(f"champion of the population (what model.predict uses): {champion:.0f}")
    visits = model.manager.visits
    for number, agent in enumerate(model.learner_agents):
        alone, _ = evaluate_policy(agent, env, n_eval_episodes=5)
        name = f"{learners[number]}, gamma {gammas[number]}"
        print(f"{name:16} {visits[number]:3.0f} of {visits.sum():.0f} exploring episodes, return alone {alone:.0f}")
    return float(visits[model.manager.values.argmax()] / visits.sum())


if __name__ == "__main__":
    main()
