"""``sb3-erl plan``: plays episodes with the planner, which has no policy that the Zoo could train."""

from __future__ import annotations

import argparse
import time
from typing import Any

import gymnasium as gym
import numpy as np
from rl_zoo3.utils import StoreDict
from stable_baselines3.common.env_util import make_vec_env

from sb3_erl.core.checks import env_ids_explained
from sb3_erl.envs.packages import register_namespaces
from sb3_erl.planning import CEMAgent

FEW: dict[str, Any] = {"n_candidates": 100, "n_elites": 10, "n_iterations": 5}
"""A tenth of PlaNet's candidates and half of its iterations, since a simulator is stepped through each of them."""
ACTION_REPEATS = {
    "dm_control/cartpole-swingup-v0": 8,
    "dm_control/reacher-easy-v0": 4,
    "dm_control/cheetah-run-v0": 4,
    "dm_control/finger-spin-v0": 2,
    "dm_control/ball_in_cup-catch-v0": 4,
    "dm_control/walker-walk-v0": 2,
}
"""Of PlaNet's tasks, Hafner et al. (2019), appendix A."""


def main(arguments: list[str] | None = None) -> list[float]:
    """
    :param arguments: of the command line
    :return: returns of the episodes
    :raises SystemExit: if one of them is wrong, after a message that names it
    """
    parser = argparse.ArgumentParser(prog="sb3-erl plan", description="Play episodes with the CEM planner of PlaNet.")
    parser.add_argument("--env", required=True, help="id of the environment")
    parser.add_argument("--model", default="simulator", choices=("simulator", "rollout", "learned"))
    parser.add_argument("--model-params", nargs="+", action=StoreDict, default={}, help="of the model, such as n_workers:2")
    parser.add_argument(
        "-params",
        "--planner-params",
        nargs="+",
        action=StoreDict,
        default={},
        help="of the planner, such as horizon:20",
    )
    parser.add_argument("--learn", type=float, default=0, help="steps to collect before, on which a learned model is fitted")
    parser.add_argument("-n", "--episodes", type=int, choices=range(1, 1001), metavar="N", default=1, help="episodes to play")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", help="zip file for the agent")
    options = parser.parse_args(arguments)
    planner = {**FEW, "action_repeat": ACTION_REPEATS.get(options.env.rpartition(":")[2], 1), **options.planner_params}
    kwargs: dict[str, Any] = {"model": options.model, "model_kwargs": options.model_params, "planner_kwargs": planner}
    try:
        register_namespaces(options.env)
        with env_ids_explained():
            env = make_vec_env(lambda: _flat(gym.make(options.env)), seed=options.seed)
        agent = CEMAgent(env=env, seed=options.seed, verbose=1, **kwargs)
    except (ImportError, TypeError, ValueError) as error:
        parser.error(str(error))
    if options.learn > 0:
        agent.learn(options.learn, progress_bar=True)
    returns = [_play(agent) for _ in range(options.episodes)]
    print(f"mean return {np.mean(returns):.2f} +/- {np.std(returns):.2f} over {len(returns)} episodes")
    if options.save is not None:
        agent.save(options.save)
    getattr(agent.model, "close", lambda: None)()
    return returns


def _flat(env: gym.Env) -> gym.Env:
    return gym.wrappers.FlattenObservation(env) if isinstance(env.observation_space, gym.spaces.Dict) else env


def _play(agent: CEMAgent) -> float:
    """:return: return of an episode, which is also printed"""
    env: Any = agent.env
    observation, state, is_over, total, n_steps = env.reset(), None, False, 0.0, 0
    begin = time.perf_counter()
    while not is_over:
        action, state = agent.predict(observation, state, np.array([n_steps == 0]), deterministic=True)
        observation, rewards, dones, _ = env.step(action)
        total, is_over, n_steps = total + float(rewards[0]), bool(dones[0]), n_steps + 1
    print(f"return {total:.2f}, {n_steps} steps, {(time.perf_counter() - begin) / n_steps:.3f} seconds per step", flush=True)
    return total
