"""
Discrete actions: a population of Q-networks beside deep Q-learning, whose network replaces the weakest individual.

    python -m examples.extending.discrete
"""

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_erl import ERL


def main(steps: float = 20_000) -> float:
    """:return: mean return of the champion"""
    model = ERL("MlpPolicy", "CartPole-v1", learner="dqn", exploration_fraction=0.5, sync_period=1, seed=1)
    model.learn(steps)
    mean, _ = evaluate_policy(model, make_vec_env("CartPole-v1", seed=100), n_eval_episodes=5)
    print(f"champion after {model.n_generations} generations: {mean:.1f}")
    return float(mean)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
