"""
Film a saved model: one episode as an mp4 file.

Without a screen MuJoCo renders through EGL or OSMesa: set ``MUJOCO_GL=egl`` or ``MUJOCO_GL=osmesa`` (on Debian and Ubuntu
``apt install libegl1 libgl1-mesa-dri`` or ``apt install libosmesa6``).

    MUJOCO_GL=egl python -m examples.record_video erl_re2 Hopper-v5 model.zip video.mp4
"""

import argparse
from pathlib import Path

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np

from sb3_erl import ALGOS


def main(arguments: list[str] | None = None) -> float:
    """:return: return of the filmed episode"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("algo", choices=list(ALGOS))
    parser.add_argument("env")
    parser.add_argument("model", type=Path, help="zip file")
    parser.add_argument("video", type=Path, help="mp4 file to write")
    parser.add_argument("--steps", type=int, default=1_000, help="longest video, in steps")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    model = ALGOS[args.algo].load(args.model, buffer_size=1)  # no room needed for transitions
    env = gym.make(args.env, render_mode="rgb_array")
    observation, _ = env.reset(seed=args.seed)
    total = 0.0
    with imageio.get_writer(args.video, fps=env.metadata.get("render_fps", 30), macro_block_size=1) as video:
        for _ in range(args.steps):
            frame = np.asarray(env.render())
            even = frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]  # mp4 wants even sizes
            video.append_data(even)  # type: ignore[attr-defined]
            action, _ = model.predict(observation, deterministic=True)
            observation, reward, terminated, truncated, _ = env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
    env.close()
    print(f"{args.video}: one episode, return {total:.1f}")
    return total


if __name__ == "__main__":
    main()
