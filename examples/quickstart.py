"""
Train ERL-Re2, look at what it learned, save it and load it again.

    python -m examples.quickstart [--steps 20000]
"""

import argparse
import tempfile
from pathlib import Path

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_erl import ERLRe2


def main(arguments: list[str] | None = None) -> float:
    """:return: mean return of the deployed policy"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=float, default=20_000)
    steps = parser.parse_args(arguments).steps

    model = ERLRe2("Pendulum-v1", learning_starts=min(1_000, steps // 2), fitness_horizon=100, seed=1, verbose=1)
    model.learn(steps)

    eval_env = make_vec_env("Pendulum-v1", seed=100)
    mean, std = evaluate_policy(model, eval_env, n_eval_episodes=10)
    print(f"deployed policy: {mean:.1f} +- {std:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "erl_re2_pendulum")
        model = ERLRe2.load(Path(folder) / "erl_re2_pendulum")
    action, _ = model.predict(model.observation_space.sample(), deterministic=True)
    print(f"action of the loaded model: {action}")
    return float(mean)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
