"""Environment steps of whole generations without updates, against the same steps of the bare environment."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks.speed.measuring import Measurement, Options, Part, measurement, timed
from sb3_erl import CEMRL, ERL, ERLRe2, OpenAIES, ProcessEvaluator
from sb3_erl.engine import generation as verbs
from sb3_erl.envs import MujocoVecEnv

Tape = list[Any]
"""What was asked of an environment: an action for a step, a dict of arguments for a reset."""


class Taping(gym.Wrapper):
    """
    Writes down what is asked of an environment.

    :param env: the environment
    :param tape: is written
    """

    def __init__(self, env: gym.Env, tape: Tape):
        super().__init__(env)
        self.tape = tape

    def reset(self, **kwargs: Any) -> Any:
        self.tape.append(kwargs)
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> Any:
        self.tape.append(action)
        return self.env.step(action)


def one_generation(model: Any) -> Callable[[], None]:
    """:return: runs one generation of the model, however many steps that takes"""
    log = getattr(model, "_log", partial(verbs.log, model))

    def stop_after(generation: Any) -> bool:
        log(generation)
        return False

    model._log = stop_after
    return lambda: model.learn(1e12, log_interval=None) and None


def beside_bare(make_bare: Callable[[], gym.Env], make: Callable[[DummyVecEnv], Any], n_envs: int) -> tuple[Part, Part]:
    """
    :param make_bare: makes the environment
    :param make: makes the model
    :param n_envs: environments
    :return: a generation of the model, and the bare environment with the same resets and
        the same actions as that generation
    """
    tapes: list[Tape] = [[] for _ in range(n_envs)]
    env = DummyVecEnv([lambda tape=tape: Monitor(Taping(make_bare(), tape)) for tape in tapes])  # type: ignore[misc]
    generation, bare = one_generation(make(env)), make_bare()

    def ours() -> float:
        for tape in tapes:
            tape.clear()
        generation()
        return n_steps()

    def n_steps() -> float:
        return float(sum(not isinstance(entry, dict) for tape in tapes for entry in tape))

    def theirs() -> float:
        reset, step = bare.reset, bare.step
        for tape in tapes:
            for entry in tape:
                if isinstance(entry, dict):
                    reset(**entry)
                else:
                    step(entry)
        return n_steps()

    return timed(ours), timed(theirs)


def makes_processes(env: Any, options: Options) -> ERL:
    """:return: ERL whose episodes run in as many processes as torch has threads here"""
    evaluator = ProcessEvaluator(n_workers=max(2, options.n_threads))
    return ERL("MlpPolicy", env, gradient_steps=0, buffer_size=100_000, evaluator=evaluator, **common(options))


def counted(model: Any) -> Part:
    """:return: a generation of the model, in environment steps"""
    generation = one_generation(model)

    def work() -> float:
        generation()
        return float(model.num_timesteps)

    return timed(work)


def in_processes(make_bare: Callable[[], gym.Env], options: Options) -> Part:
    """:return: a generation of ERL whose episodes run in worker processes, one per CPU but no more than four"""
    n_workers = min(4, os.cpu_count() or 1)
    evaluator = ProcessEvaluator(n_workers, make_env=lambda: Monitor(make_bare()))
    model = SYSTEMS["ERL"](make_bare(), options)
    model.evaluator = evaluator
    part = counted(model)
    return lambda: part()._replace(cpu_seconds=None)


def common(options: Options, **arguments: Any) -> dict[str, Any]:
    """Arguments of all models."""
    return {"seed": 0, "device": options.device, "buffer_size": 100_000, **arguments}


def evolution_strategy(env: Any, options: Options) -> OpenAIES:
    """:return: five pairs of linear policies"""
    return OpenAIES("LinearPolicy", env, n_pairs=5, n_center_episodes=0, seed=0, device=options.device)


SYSTEMS: dict[str, Callable[[Any, Options], Any]] = {
    "ERL": lambda env, o: ERL("MlpPolicy", env, gradient_steps=0, **common(o)),
    "ERL-Re2": lambda env, o: ERLRe2(
        "MlpPolicy", env, **common(o, gradient_steps=0, learning_starts=0, mc_fitness_prob=1.0, pop_size=10)
    ),
    "CEM-RL": lambda env, o: CEMRL("MlpPolicy", env, **common(o, learning_starts=10**9)),
    "OpenAI-ES, linear": evolution_strategy,
}
CASES = (
    ("ERL", "HalfCheetah-v4", 1),
    ("ERL", "HalfCheetah-v4", 10),
    ("ERL-Re2", "HalfCheetah-v4", 1),
    ("ERL-Re2", "HalfCheetah-v4", 10),
    ("CEM-RL", "HalfCheetah-v4", 10),
    ("OpenAI-ES, linear", "HalfCheetah-v4", 1),
    ("OpenAI-ES, linear", "HalfCheetah-v4", 10),
    ("OpenAI-ES, linear", "Swimmer-v5", 1),
    ("ERL", "Hopper-v5", 10),
    ("ERL", "Humanoid-v4", 10),
    ("OpenAI-ES, linear", "CartPole-v1", 1),
)
"""System, environment, number of environments; ten individuals (and a learner, where there is one) per generation."""
ROBOTS = ("Hopper-v5", "Walker2d-v5")
IN_PROCESSES = "ERL, HalfCheetah-v4, worker processes"


@measurement
def stepping(options: Options) -> Measurement:
    """Population stepping against the environment alone; transitions are stored, nothing is learned from them."""
    parts: dict[str, Part] = {}
    ratios: list[tuple[str, str]] = []

    def bare(env_id: str) -> Callable[[], gym.Env]:
        return lambda: gym.make(env_id, max_episode_steps=options.count(1000))

    for system, env_id, n_envs in CASES:
        name = f"{system}, {env_id}" + (f", {n_envs} envs" if n_envs > 1 else "")
        make = SYSTEMS[system]
        parts[name], parts[f"bare for {name}"] = beside_bare(bare(env_id), lambda env, make=make: make(env, options), n_envs)  # type: ignore[misc]
        ratios.append((name, f"bare for {name}"))
    parts[IN_PROCESSES] = in_processes(bare("HalfCheetah-v4"), options)
    ratios.append((IN_PROCESSES, "bare for ERL, HalfCheetah-v4"))
    target = {f"{a} / {b}": "0.85" for a, b in ratios if "CartPole" not in a}
    return Measurement("environment steps", parts, ratios, target=target)


@measurement
def mujoco_vec_env(options: Options) -> Measurement:
    """Whole generations of ERL without updates, ten environments, in two kinds of VecEnv."""
    parts, kwargs = dict[str, Part](), {"max_episode_steps": options.count(1000)}
    for env_id in ROBOTS:
        for cls in (DummyVecEnv, MujocoVecEnv):
            env = make_vec_env(env_id, 10, seed=0, env_kwargs=kwargs, vec_env_cls=cls)
            parts[f"{cls.__name__}, {env_id}"] = counted(SYSTEMS["ERL"](env, options))
    ratios = [(f"MujocoVecEnv, {env_id}", f"DummyVecEnv, {env_id}") for env_id in ROBOTS]
    return Measurement("environment steps", parts, ratios, target={f"{a} / {b}": "1.1" for a, b in ratios})
