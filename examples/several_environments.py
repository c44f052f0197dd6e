"""
Evaluate the population in several environments at once: one batched network call serves all of them.

The result does not depend on the number of environments (without VecNormalize), only the speed does. For MuJoCo on few
cores the default ``DummyVecEnv`` is about twice as fast as ``SubprocVecEnv``.

    python -m examples.several_environments [--steps 10000] [--n-envs 4] [--subprocesses]
"""

import argparse
import time

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_erl import ERLRe2


def main(arguments: list[str] | None = None) -> int:
    """:return: number of environment steps that were counted"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=float, default=10_000)
    parser.add_argument("--n-envs", type=int, default=4)
    parser.add_argument("--subprocesses", action="store_true")
    args = parser.parse_args(arguments)

    env = make_vec_env("Hopper-v5", n_envs=args.n_envs, vec_env_cls=SubprocVecEnv if args.subprocesses else None)
    model = ERLRe2("MlpPolicy", env, learning_starts=min(1_000, args.steps // 2), seed=1)
    start = time.perf_counter()
    model.learn(args.steps)
    seconds = time.perf_counter() - start
    print(f"{model.num_timesteps} steps, {model.n_generations} generations in {seconds:.0f} s with {args.n_envs} environments")
    env.close()
    return model.num_timesteps


if __name__ == "__main__":
    main()
