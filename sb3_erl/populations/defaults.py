"""The members' classes by name, and a search space for each of them."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_erl.core.registry import PARTS, resolve

_RATE = {"learning_rate": "LogUniform(1e-5, 1e-2)"}
_HORIZON = {"gamma": "Choice([0.95, 0.98, 0.99, 0.995, 0.999])"}
_ON_POLICY = {
    **_RATE,
    **_HORIZON,
    "ent_coef": "LogUniform(1e-6, 0.1)",
    "gae_lambda": "Choice([0.9, 0.95, 0.98, 1.0])",
    "vf_coef": "Uniform(0.2, 1.0)",
}
_CLIPPED = {**_ON_POLICY, "clip_range": "Choice([0.1, 0.2, 0.3, 0.4])", "n_epochs": "IntUniform(3, 20)"}
_OFF_POLICY = {"learning_rate": "LogUniform(1e-5, 3e-3)", **_HORIZON, "tau": "LogUniform(0.001, 0.05)"}
_ENTROPY = {**_OFF_POLICY, "batch_size": "Choice([64, 128, 256, 512])"}
_DETERMINISTIC = {**_OFF_POLICY, "batch_size": "Choice([64, 100, 256, 512])"}
_VALUES = {
    "learning_rate": "LogUniform(1e-5, 3e-3)",
    **_HORIZON,
    "batch_size": "Choice([32, 64, 128, 256])",
    "exploration_final_eps": "Uniform(0.01, 0.2)",
}

SPACES: dict[str, dict[str, str]] = {
    "a2c": _ON_POLICY,
    "ars": {"learning_rate": "LogUniform(1e-3, 1e-1)", "delta_std": "LogUniform(1e-3, 2e-1)"},
    "crossq": {"learning_rate": "LogUniform(1e-4, 3e-3)", **_HORIZON, "batch_size": "Choice([128, 256, 512])"},
    "ddpg": _DETERMINISTIC,
    "dqn": _VALUES,
    "erl_re2": _OFF_POLICY,
    "ppo": _CLIPPED,
    "ppo_lstm": _CLIPPED,
    "ppo_mask": _CLIPPED,
    "qrdqn": _VALUES,
    "sac": _ENTROPY,
    "td3": {**_DETERMINISTIC, "target_policy_noise": "Uniform(0.05, 0.5)"},
    "td7": {"learning_rate": "LogUniform(3e-5, 3e-3)", **_HORIZON, "exploration_noise": "Uniform(0.05, 0.3)"},
    "tqc": _ENTROPY,
    "trpo": {**_RATE, **_HORIZON, "gae_lambda": "Choice([0.9, 0.95, 0.98, 1.0])", "target_kl": "LogUniform(0.003, 0.05)"},
}
"""
By key of the algorithm, what is searched where the user says nothing; ``hyperparams/pbt.yml`` has the same. Rates, discounts
and entropy are those that Jaderberg et al. (2017) and the Zoo's samplers search, less what cannot change while a model trains.
"""


def member_class(choice: Any) -> tuple[str, type[BaseAlgorithm]]:
    """
    :param choice: key such as ``"ppo"``, ``"package.module:Name"``, or a class
    :return: key, empty for a class that has none; and the class
    :raises ValueError: if there is no such key, module or name
    :raises TypeError: if it is no class of SB3 algorithms that can be constructed and trained
    """
    found = resolve("algorithm", choice, "algorithm")
    if not isinstance(found, type) or not issubclass(found, BaseAlgorithm) or getattr(found, "trains_whole_models", False):
        raise TypeError(
            "algorithm must be a class of SB3, sb3-contrib or sb3_erl whose models train alone, such as PPO, or one of "
            f"{sorted(PARTS['algorithm'])}; got {choice!r}"
        )
    for key in PARTS["algorithm"]:
        if key == choice or (
            (not isinstance(choice, str) or ":" in choice) and resolve("algorithm", key, "algorithm") is found
        ):
            return key, found
    return "", found


def saved_choice(choice: Any) -> Any:
    """
    :param choice: argument ``algorithm``
    :return: text from which :func:`member_class` finds the class again, so that a file need not hold a pickle of it; the class
        itself where there is no such text, as for one that is made within a function
    """
    if not isinstance(choice, type):
        return choice
    path = f"{choice.__module__}:{choice.__qualname__}"
    try:
        is_found = "__main__" not in path and resolve("algorithm", path, "algorithm") is choice
    except (ValueError, ImportError):
        is_found = False
    return path if is_found else choice


def check_algorithm(choice: Any, saved: type) -> None:
    """
    :param choice: argument ``algorithm`` of a population that is loaded, ``None`` for that of the file
    :param saved: class of the members in the file
    :raises ValueError: if it is another class
    :raises TypeError: if it is no class of SB3 algorithms
    """
    if choice is not None and member_class(choice)[1] is not saved:
        raise ValueError(
            f"algorithm must stay as it was saved, {saved.__name__}; got {choice!r} instead. Load without it, or make a new "
            "model for members of another class"
        )


def default_space(key: str, algorithm: type[BaseAlgorithm]) -> dict[str, str]:
    """
    :param key: of the algorithm, empty for one without
    :param algorithm: its class
    :return: entry of :data:`SPACES`
    :raises ValueError: if there is none
    """
    if key in SPACES:
        return SPACES[key]
    raise ValueError(
        f"search_space must be given for {algorithm.__name__}, for which there is no default; defaults exist for "
        f"{sorted(SPACES)}"
    )
