"""
Learn from recorded data alone: record a mediocre controller with Minari, then train TD7 offline on the recording.

    pip install 'sb3-erl[offline]'
    python -m examples.offline [--episodes 50] [--updates 5000]
"""

import argparse
import os
import tempfile

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_erl import TD7
from sb3_erl.buffers.offline import fill_replay_buffer


def controller(observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Swing the pendulum up by pumping energy, catch it near the top; noisy."""
    cos, sin, speed = observation
    if cos > 0.8:
        torque = -8.0 * sin - 1.5 * speed
    else:
        torque = 2.0 * np.sign(speed)
    return np.clip([torque + rng.normal(0, 0.5)], -2.0, 2.0).astype(np.float32)


def record(n_episodes: int) -> tuple[str, float]:
    """:return: id of the dataset and the controller's mean return"""
    from minari import DataCollector

    env = DataCollector(gym.make("Pendulum-v1"))
    rng, returns = np.random.default_rng(0), []
    for episode in range(n_episodes):
        observation, _ = env.reset(seed=episode)
        total, over = 0.0, False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(controller(observation, rng))
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    name = "pendulum/controller-v0"
    env.create_dataset(name, algorithm_name="energy pumping", author="sb3_erl", description="noisy hand-made controller")
    env.close()
    return name, float(np.mean(returns))


def main(arguments: list[str] | None = None) -> float:
    """:return: mean return of the learned policy"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--updates", type=float, default=5000)
    options = parser.parse_args(arguments)

    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINARI_DATASETS_PATH"] = folder
        dataset, behavior = record(options.episodes)
        model = TD7("Pendulum-v1", offline=True, buffer_size=options.episodes * 200, seed=1)
        n_transitions = fill_replay_buffer(model, dataset)
    print(f"{n_transitions} transitions of a controller with mean return {behavior:.0f}")
    eval_env = make_vec_env("Pendulum-v1", seed=100)
    callback = EvalCallback(eval_env, eval_freq=max(int(options.updates) // 5, 1), n_eval_episodes=5, verbose=1)
    model.learn(options.updates, callback)
    mean, std = evaluate_policy(model, eval_env, n_eval_episodes=10)
    print(f"TD7 offline: {mean:.0f} +- {std:.0f}")
    return float(mean)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
