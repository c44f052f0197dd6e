"""Small populations of each class of members."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_erl import PBT
from sb3_erl.core.registry import PARTS
from tests.envs import ToyEnv, toy_vec_env

ON_POLICY: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "n_epochs": 2}
OFF_POLICY: dict[str, Any] = {"buffer_size": 500, "learning_starts": 10, "batch_size": 16, "train_freq": 4}
KWARGS: dict[str, dict[str, Any]] = {
    "a2c": {"n_steps": 5},
    "ars": {"n_delta": 2},
    "crossq": OFF_POLICY,
    "ddpg": OFF_POLICY,
    "dqn": {**OFF_POLICY, "target_update_interval": 20},
    "erl_re2": {**OFF_POLICY, "pop_size": 3, "fitness_horizon": 5, "policy_embedding_dim": 8},
    "ppo": ON_POLICY,
    "ppo_lstm": ON_POLICY,
    "ppo_mask": ON_POLICY,
    "qrdqn": {**OFF_POLICY, "target_update_interval": 20},
    "sac": OFF_POLICY,
    "td3": OFF_POLICY,
    "td7": {"buffer_size": 500, "learning_starts": 10, "batch_size": 16, "late_assessment_episodes": 3},
    "tqc": OFF_POLICY,
    "trpo": {"n_steps": 16, "batch_size": 16},
}
"""Arguments with which members are fast, by key."""
POLICY_KWARGS: dict[str, dict[str, Any]] = {
    "ars": {},
    "ppo_lstm": {"net_arch": [8], "lstm_hidden_size": 8},
    "qrdqn": {"net_arch": [8], "n_quantiles": 5},
    "td7": {"net_arch": [8], "zs_dim": 8},
    "tqc": {"net_arch": [8], "n_quantiles": 5},
}
POLICIES = {"ppo_lstm": "MlpLstmPolicy"}
DISCRETE = ("dqn", "qrdqn", "ppo_mask")
ALL = sorted(PARTS["algorithm"])
MAIN = ("ppo", "a2c", "dqn", "sac", "tqc", "crossq", "td7")
"""Classes that are also killed, resumed and run in workers."""
SHORT: dict[str, Any] = {"ready_steps": 32, "n_eval_episodes": 1}
"""For tests in which nothing depends on how long a generation is."""


class MaskedEnv(ToyEnv):
    """:class:`ToyEnv` with three actions, of which the last one is never allowed."""

    def __init__(self, **kwargs: Any):
        super().__init__(**{**kwargs, "n_actions": 3})

    def action_masks(self) -> np.ndarray:
        return np.array([True, True, False])

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert action != 2, "a masked action was taken"
        return super().step(action)


def environment(key: str, n_envs: int = 1) -> VecEnv:
    """An environment in which members of a class can act."""
    if key == "ppo_mask":
        return toy_vec_env(n_envs, env_class=MaskedEnv)
    return toy_vec_env(n_envs, n_actions=3 if key in DISCRETE else None, vary=3)


def make(key: str, env: Any = None, **kwargs: Any) -> PBT:
    """
    :param key: of the members' class
    :param env: environment, one toy environment by default
    :param kwargs: arguments of the population that win
    :return: a small population
    """
    common: dict[str, Any] = {
        "pop_size": 3,
        "ready_steps": 48,
        "n_eval_episodes": 2,
        "n_report_episodes": 1,
        "device": "cpu",
        "seed": 3,
        "policy_kwargs": POLICY_KWARGS.get(key, {"net_arch": [8]}),
        "algorithm": key,
        "algorithm_kwargs": KWARGS.get(key, {}),
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You have specified a mini-batch size")
        return PBT(POLICIES.get(key, "MlpPolicy"), environment(key) if env is None else env, **{**common, **kwargs})


def contents(model: PBT) -> dict[str, np.ndarray]:
    """Everything that two equal populations must have in common: weights, optimizers, buffers, counters, lineage."""
    from tests.contract.helpers import snapshot

    found = {f"own.{name}": value for name, value in snapshot(model).items()}
    for number in range(model.pop_size):
        found |= {f"{number}.{name}": value for name, value in snapshot(model.individual(number)).items()}
    for name, column in model.lineage().items():
        found[f"lineage.{name}"] = np.array([str(value) for value in column])
    return found


def is_discrete(model: Any) -> bool:
    """Whether actions are numbers of actions."""
    return isinstance(model.action_space, spaces.Discrete)
