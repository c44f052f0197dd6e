"""What the argument ``learner`` may be: the name of a rule of this package, or a class of SB3."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from stable_baselines3 import SAC
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy

from sb3_erl.core.checks import check_choice

SB3_CLASSES: dict[str, type[OffPolicyAlgorithm]] = {"sac": SAC}


def sb3_class(learner: Any, rules: Collection[str]) -> type[OffPolicyAlgorithm] | None:
    """
    :param learner: what the user gave
    :param rules: names of this package's own rules
    :return: the SB3 class that learns, ``None`` with a rule of this package
    :raises ValueError: if it is neither
    """
    known = sorted([*rules, *SB3_CLASSES])
    if isinstance(learner, str):
        check_choice("learner", learner, known)
        return SB3_CLASSES.get(learner)
    if not (isinstance(learner, type) and issubclass(learner, OffPolicyAlgorithm)):
        raise ValueError(f"learner must be one of {known} or an SB3 off-policy class; got {learner!r}")
    return learner


def sb3_policy_class(learner: type[OffPolicyAlgorithm], alias: str) -> type[BasePolicy]:
    """
    :param learner: an SB3 class
    :param alias: of the policy
    :return: the class of its policy
    :raises ValueError: if there is no such policy, or one without an actor
    """
    check_choice("policy", alias, learner.policy_aliases)
    policy_class = learner.policy_aliases[alias]
    if not hasattr(policy_class, "make_actor"):
        raise ValueError(f"learner must be a class with an actor, for continuous actions; got {learner.__name__}")
    return policy_class
