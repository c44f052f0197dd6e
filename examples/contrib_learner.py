"""
ERL with a learner from sb3-contrib: any SB3 off-policy class can be the gradient half.

    python -m examples.contrib_learner [--steps 10000]
"""

import argparse

from sb3_contrib import TQC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_erl import ERL


def main(arguments: list[str] | None = None) -> float:
    """:return: mean return of the learner's own policy"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=float, default=10_000)
    steps = parser.parse_args(arguments).steps

    model = ERL("Pendulum-v1", learner=TQC, learner_kwargs={"top_quantiles_to_drop_per_net": 2}, pop_size=5, seed=1)
    model.learn(steps)

    eval_env = make_vec_env("Pendulum-v1", seed=100)
    champion, _ = evaluate_policy(model, eval_env, n_eval_episodes=5)
    learner, _ = evaluate_policy(model.learner_agent, eval_env, n_eval_episodes=5)
    print(f"champion (what model.predict uses): {champion:.1f}; TQC learner alone: {learner:.1f}")
    return float(learner)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
