"""
Stop, save model and replay buffer, load both (in real life: in another process) and continue where training stood.

The zip file holds networks, optimizers, population, counters and the state of all random streams; transitions go into a
file of their own, as always in SB3.

    python -m examples.save_and_continue [--steps 5000]
"""

import argparse
import tempfile
from pathlib import Path

import gymnasium as gym

from sb3_erl import ERL


def main(arguments: list[str] | None = None) -> int:
    """:return: number of environment steps over both parts"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=float, default=5_000, help="steps of each part")
    steps = parser.parse_args(arguments).steps

    with tempfile.TemporaryDirectory() as folder:
        zip_file, buffer_file = Path(folder) / "model.zip", Path(folder) / "replay_buffer.pkl"
        model = ERL("Pendulum-v1", pop_size=5, buffer_size=50_000, seed=1)
        model.learn(steps)
        model.save(zip_file)
        model.save_replay_buffer(buffer_file)
        print(f"saved after {model.num_timesteps} steps and {model.n_generations} generations")

        model = ERL.load(zip_file, env=gym.make("Pendulum-v1"))
        model.load_replay_buffer(buffer_file)
    model.learn(steps, reset_num_timesteps=False)
    print(f"now at {model.num_timesteps} steps and {model.n_generations} generations")
    return model.num_timesteps


if __name__ == "__main__":
    main()
