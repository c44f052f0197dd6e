"""Settings that make every class fast; the only place that knows anything about single classes."""

from __future__ import annotations

import inspect
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_erl import ALGOS
from tests.envs import toy_vec_env

NAMES = list(ALGOS)
HYBRIDS = [name for name in NAMES if issubclass(ALGOS[name], OffPolicyAlgorithm)]
"""Classes with a learner and a replay buffer."""

FAST: dict[str, Any] = {
    "pop_size": 3,
    "learning_starts": 10,
    "batch_size": 16,
    "buffer_size": 2000,
    "fitness_horizon": 5,
    "policy_embedding_dim": 8,
    "policy_kwargs": {"net_arch": [8]},
    "device": "cpu",
    "seed": 3,
}
"""Handed to every class as far as its constructor knows the arguments."""

BY_CLASS: dict[str, dict[str, Any]] = {"erl": {"sync_period": 2}}
"""What a class needs beside :data:`FAST`, by key in ALGOS."""

WHOLE_EPISODES: dict[str, Any] = {"fitness_horizon": 1000, "mc_fitness_prob": 1.0}
"""Fitness from whole episodes only, for classes that can also do with less."""

LEARNERS: dict[str, list[Any]] = {"erl": ["ddpg", "td3", "sac"], "erl_re2": ["td3", "ddpg"]}
"""Learners that are tried where it matters who learns; the others only with their default."""


def known(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Those of the settings that the constructor of a class has."""
    arguments = inspect.signature(ALGOS[name].__init__).parameters
    return {key: value for key, value in settings.items() if key in arguments}


def fast(name: str, **overrides: Any) -> dict[str, Any]:
    """
    :param name: key in ALGOS
    :param overrides: arguments that win
    :return: keyword arguments of the class
    """
    return {**known(name, FAST), **BY_CLASS.get(name, {}), **overrides}


def whole(name: str) -> dict[str, Any]:
    """Arguments with which every rollout of a class is a whole episode."""
    return known(name, WHOLE_EPISODES)


def variants() -> list[tuple[str, dict[str, Any]]]:
    """Each class with each of its learners: (key in ALGOS, arguments)."""
    return [
        (name, {} if learner is None else {"learner": learner}) for name in NAMES for learner in LEARNERS.get(name, [None])
    ]


def make(name: str, env: Any = None, policy: str = "MlpPolicy", **overrides: Any) -> Any:
    """
    :param name: key in ALGOS
    :param env: environment or id, one monitored toy environment by default
    :param policy: policy alias
    :param overrides: arguments of the class
    :return: a model with fast settings
    """
    cls: type[BaseAlgorithm] = ALGOS[name]
    return cls(policy, toy_vec_env() if env is None else env, **fast(name, **overrides))
