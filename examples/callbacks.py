"""
SB3's callbacks work unchanged: here the best deployed policy is kept, the replay buffer saved, and training stopped early.

``EvalCallback`` plays the policy that ``model.predict`` uses; its steps are not counted.

    python -m examples.callbacks [--steps 20000] [--out FOLDER]
"""

import argparse
import tempfile
from pathlib import Path

from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.env_util import make_vec_env

from sb3_erl import ERLRe2


def main(arguments: list[str] | None = None) -> Path:
    """:return: file with the best policy"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=float, default=20_000)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "sb3_erl_callbacks")
    args = parser.parse_args(arguments)
    period = max(int(args.steps) // 10, 1)

    evaluation = EvalCallback(
        make_vec_env("Pendulum-v1", n_envs=1, seed=100),
        callback_on_new_best=StopTrainingOnRewardThreshold(reward_threshold=-200, verbose=1),
        eval_freq=period,
        n_eval_episodes=5,
        best_model_save_path=str(args.out),
    )
    checkpoints = CheckpointCallback(save_freq=5 * period, save_path=str(args.out), save_replay_buffer=True)

    model = ERLRe2("Pendulum-v1", learning_starts=min(1_000, args.steps // 2), fitness_horizon=100, buffer_size=50_000, seed=1)
    model.learn(args.steps, callback=[evaluation, checkpoints])
    print(f"best mean return {evaluation.best_mean_reward:.1f}, saved in {args.out}")
    return args.out / "best_model.zip"


if __name__ == "__main__":
    main()
