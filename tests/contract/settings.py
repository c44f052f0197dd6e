"""Settings that make every class fast; the only place that knows anything about single classes."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_erl import ALGOS
from sb3_erl.buffers.lap import LAPReplayBuffer
from tests.envs import toy_vec_env

ALL = list(ALGOS)
NAMES = [name for name in ALL if not getattr(ALGOS[name], "trains_whole_models", False)]
"""
Classes that step the environments themselves. A population of whole models has none of what most tests look at (candidates, a
learner, steps that callbacks see as they are made, a budget to the step): ``tests/populations`` has its own tests of the same
promises, and what holds for all classes is tested with :data:`ALL`.
"""
HYBRIDS = [name for name in NAMES if issubclass(ALGOS[name], OffPolicyAlgorithm)]
"""Classes with a learner and a replay buffer."""
GENERATIONAL = [name for name in NAMES if hasattr(ALGOS[name], "generation_order")]
"""Classes whose unit of work is a generation of whole rollouts."""
STEPWISE = [name for name in HYBRIDS if name not in GENERATIONAL]
"""Classes that store and learn between any two vector steps, in SB3's own ``collect_rollouts``."""
IMAGES = [name for name in HYBRIDS if "CnnPolicy" in ALGOS[name].policy_aliases]
"""Hybrids whose policies have SB3's features extractors."""
LEARN_FIRST = [name for name in HYBRIDS if "n_gradient_actors" in inspect.signature(ALGOS[name].__init__).parameters]
"""
Hybrids without a learner's actor: individuals take gradient steps before they are evaluated, paid for by the steps of the
generation before.
"""
DISCRETE = [name for name in NAMES if not getattr(ALGOS[name], "takes_continuous_actions", True)]
"""Classes for discrete actions only; ``tests/conftest.py`` gives them toy environments with such actions."""
CONTINUOUS = [name for name in NAMES if name not in DISCRETE]
"""Classes that take a box of actions."""
FAMILIES = {name: (name in HYBRIDS, name in GENERATIONAL, name in LEARN_FIRST, name in DISCRETE) for name in NAMES}
ONE_OF_EACH_FAMILY = list({family: name for name, family in reversed(FAMILIES.items())}.values())
"""Classes of a family step environments, learn, save and load in the same base classes; these stand for theirs."""
SCORED_BY_EPISODES = [name for name in GENERATIONAL if "fitness_batch_size" not in inspect.signature(ALGOS[name]).parameters]
"""Classes that measure fitness in the episodes of their individuals."""
EXPLORING = [name for name in HYBRIDS if name not in LEARN_FIRST]
"""Hybrids whose learner has an actor, which explores in episodes of its own."""

FAST: dict[str, Any] = {
    "pop_size": 3,
    "learning_starts": 10,
    "batch_size": 16,
    "buffer_size": 2000,
    "fitness_horizon": 5,
    "policy_embedding_dim": 8,
    "policy_kwargs": {"net_arch": [8]},
    "explore_steps": 60,
    "late_assessment_episodes": 3,
    "gammas": (0.9, 0.99),
    "rollout_size": 2,
    "min_elites": 1,
    "genetic_memory_size": 40,
    "distill_epochs": 2,
    "distill_batch_size": 8,
    "target_update_interval": 20,
    "n_pairs": 2,
    "noise_table_size": 1_000_000,
    "obs_stat_prob": 0.5,
    "n_center_episodes": 1,
    "truncation": 2,
    "n_finalists": 2,
    "n_finalist_episodes": 1,
    "meta_population_size": 2,
    "novelty_k": 3,
    "archive_prob": 0.3,
    "behavior": "final_observation",
    "device": "cpu",
    "seed": 3,
}
"""Handed to every class as far as its constructor knows the arguments."""

SALE_KWARGS = {"net_arch": [8], "zs_dim": 8}
BY_CLASS: dict[str, dict[str, Any]] = {
    "cem": {"pop_size": 4},
    "cem_rl": {"pop_size": 4},
    "cerl": {"sync_period": 2},
    "deep_ga": {"pop_size": 4},
    "erl": {"sync_period": 2},
    "esac": {
        "elite_fraction": 0.5,
        "n_gradient_bases": 1,
        "sac_interval": 1,
        "sac_episodes": 1,
        "sac_probability": (1.0, 1.0, 1.0),
        "amt_interval": 2,
        "store_population_transitions": True,
    },
    "evo_rainbow": {"pop_size": 4},
    "evo_rainbow_exp": {"pop_size": 4},
    "ga_ns": {"pop_size": 4},
    "pbt": {"algorithm": "a2c", "algorithm_kwargs": {"n_steps": 4}, "ready_steps": 16, "n_report_episodes": 0},
    "pderl": {"sync_period": 2},
    "random_search": {"pop_size": 4},
    "td7": {"policy_kwargs": SALE_KWARGS},
    "veb_rl": {"n_acting_elites": 2, "n_learner_episodes": 2, "fitness_batch_size": 40},
    "pop_td7": {"policy_kwargs": SALE_KWARGS},
}
"""What a class needs beside :data:`FAST`, by key in ALGOS."""

WHOLE_EPISODES: dict[str, Any] = {"fitness_horizon": 1000, "mc_fitness_prob": 1.0, "surrogate_prob": 0.0}
"""Fitness from whole episodes only, for classes that can also do with less."""

LEARNERS: dict[str, list[Any]] = {
    "cem_rl": ["td3", "td7", "sac"],
    "cerl": ["td3", ["td3", "sac"], ["td7", "td3"]],
    "erl": ["ddpg", "td3", "td7", "sac", "stable_baselines3:SAC"],
    "erl_re2": ["td3", "ddpg", "td7"],
    "evo_rainbow": ["td3", "sac"],
    "evo_rainbow_exp": ["td3", "sac"],
    "pderl": ["ddpg", "td7", "sac"],
}
EVOLVERS: dict[str, list[str]] = {"veb_rl": ["cem", "ga"]}
"""The same for who proposes the individuals."""
"""Learners that are tried where it matters who learns; the others only with their default."""


def known(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Those of the settings that the constructor of a class has."""
    arguments = inspect.signature(ALGOS[name].__init__).parameters
    return {key: value for key, value in settings.items() if key in arguments}


SELDOM: dict[str, Any] = {"train_freq": 4}
"""Few updates, which most of the time goes into, for the classes that can do with few."""


def fast(name: str, **overrides: Any) -> dict[str, Any]:
    """
    :param name: key in ALGOS
    :param overrides: arguments that win
    :return: keyword arguments of the class
    """
    seldom = SELDOM if name in HYBRIDS and name in GENERATIONAL else {}
    return {**known(name, FAST), **seldom, **BY_CLASS.get(name, {}), **overrides}


def whole(name: str) -> dict[str, Any]:
    """Arguments with which every rollout of a class is a whole episode."""
    return known(name, WHOLE_EPISODES)


def having(*arguments: str, among: list[str] = HYBRIDS) -> list[str]:
    """Classes, by default hybrids, whose constructors have all of these arguments."""
    return [name for name in among if len(known(name, dict.fromkeys(arguments))) == len(arguments)]


def pop_size(name: str) -> int:
    """Number of individuals with fast settings."""
    settings = fast(name)
    return settings["pop_size"] if "pop_size" in settings else 2 * settings["n_pairs"]


def n_exploring(name: str) -> int:
    """The learners' own rollouts in each generation of a class with fast settings."""
    return fast(name).get("rollout_size", int(name in EXPLORING))


def n_rollouts(name: str) -> int:
    """Rollouts in each generation of a class with fast settings: the population's and those of nobody in it."""
    settings = fast(name)
    others = [settings[key] for key in ("n_center_episodes", "n_finalists", "meta_population_size") if key in settings]
    return pop_size(name) + n_exploring(name) + sum(others)


def split_returns(name: str, returns: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Returns of all rollouts in a generation, in order: those of the population, and those of nobody in it."""
    members = fast(name).get("meta_population_size", 0)  # evaluated first, all others last
    return np.array(returns[members:][: pop_size(name)]), np.array(returns[:members] + returns[members:][pop_size(name) :])


def apart(name: str) -> str:
    """Log key for the mean return of the rollouts in a generation that are not the population's."""
    center = "rollout/center_ep_rew_mean"
    keys = {"n_center_episodes": center, "meta_population_size": center}
    keys["n_finalist_episodes"] = "rollout/finalist_ep_rew_mean"
    return next((key for argument, key in keys.items() if argument in fast(name)), "rollout/learner_ep_rew_mean")


def expected_updates(model: Any, name: str, ends: list[int], per_step: float) -> int:
    """
    :param model: after a run in which updates began with the first generation
    :param name: key in ALGOS
    :param ends: ``num_timesteps`` at the end of each of its generations
    :param per_step: updates per step that were asked for
    :return: how many it must have made
    """
    if name == "esac":  # only the learner's steps pay
        return int(model.n_learner_steps * per_step + 1e-9)
    if name not in LEARN_FIRST:
        return int(ends[-1] * per_step + 1e-9)
    n_learned, debt, total = pop_size(name) // 2, 0.0, 0
    for n_steps in np.diff([0, *ends]) if model.num_timesteps > ends[-1] else np.diff([0, *ends[:-1]]):
        debt += n_steps * per_step
        total += int(debt + 1e-9) // n_learned * n_learned  # the same number for each learned individual
        debt -= int(debt + 1e-9)
    return total


def online_and_target(model: Any, name: str) -> tuple[Any, Any]:
    """A network and the one that follows it with ``tau``: the actor's, or the critic's where actors have none."""
    part = "actor" if hasattr(model.policy, "actor_target") and name not in LEARN_FIRST else "critic"
    return getattr(model.policy, part), getattr(model.policy, f"{part}_target")


def variants(names: list[str] = NAMES) -> list[tuple[str, dict[str, Any]]]:
    """Each class with each of its learners: (key in ALGOS, arguments)."""
    return [
        (name, {} if choice is None else {argument: choice})
        for name in names
        for argument, choices in (("learner", LEARNERS), ("evolver", EVOLVERS))
        for choice in choices.get(name, [None] if argument == "learner" and name not in EVOLVERS else [])
    ]


def toy_actions(name: str) -> dict[str, int]:
    """Arguments of a toy environment whose actions a class can take, for other processes."""
    return {"n_actions": 3} if name in DISCRETE else {}


def n_stored(model: Any) -> int:
    """Transitions in the replay buffer, which has a column per environment or a single one."""
    return model.replay_buffer.size() * model.replay_buffer.n_envs


def all_transitions(model: Any) -> np.ndarray:
    """Indices with which ``_get_samples`` gives every stored transition; a row of a plain buffer has to hold but one."""
    buffer = model.replay_buffer
    assert buffer.n_envs == 1 or isinstance(buffer, LAPReplayBuffer)
    return np.arange(n_stored(model))


def make(name: str, env: Any = None, policy: str = "MlpPolicy", **overrides: Any) -> Any:
    """
    :param name: key in ALGOS
    :param env: environment or id, one monitored toy environment by default
    :param policy: policy alias
    :param overrides: arguments of the class
    :return: a model with fast settings
    """
    cls: type[BaseAlgorithm] = ALGOS[name]
    return cls(policy, toy_vec_env(**toy_actions(name)) if env is None else env, **fast(name, **overrides))
