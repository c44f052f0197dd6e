"""What the argument ``learner`` may be, and how a learner of any kind is built from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy

from sb3_erl.core.checks import check_choice, check_range
from sb3_erl.core.registry import PARTS, resolve
from sb3_erl.learners.base import Learner
from sb3_erl.learners.sb3 import SB3Learner
from sb3_erl.learners.td3 import TD3Learner
from sb3_erl.learners.td_rule import TDRule

LearnerChoice = str | type[OffPolicyAlgorithm] | type[Learner] | type[TDRule] | TDRule
"""A key, ``"package.module:Name"``, a class of SB3, a rule, or a learner class."""
Pair = tuple[float, float]
WAY_OUT: dict[type[spaces.Space], str] = {
    spaces.Discrete: "Choose learner='td3', 'ddpg', 'td7' or 'sac', or an env with discrete actions",
    spaces.Box: "Choose an env with continuous actions; ERL and PDERL take discrete ones with learner='dqn'",
}
"""What to do, where a learner for actions of such a space is given others."""


@dataclass(frozen=True)
class LearnerSpec:
    """
    A learner that was chosen but not built yet; made by :func:`learner_spec`.

    :param learner_class: what is built
    :param kwargs: ``learner_kwargs`` without ``n_critics``
    :param rule: what the learner is given, if it is built from a rule
    :param sb3_class: the class of SB3 that learns, ``None`` with a learner of this package
    :param n_critics: critics that the policy is built with, ``None`` where it has no such argument
    :param learning_rates: published ones of actor and critic
    """

    learner_class: type[Learner]
    kwargs: dict[str, Any] = field(default_factory=dict)
    rule: TDRule | None = None
    sb3_class: type[OffPolicyAlgorithm] | None = None
    n_critics: int | None = None
    learning_rates: Pair = Learner.learning_rates

    @property
    def buffer_class(self) -> type[ReplayBuffer] | None:
        """Replay buffer that the published learner samples from; ``None`` for SB3's own choice."""
        return self.learner_class.buffer_class

    @property
    def batch_size(self) -> int | None:
        """Published batch size; ``None`` for that of the algorithm."""
        return self.learner_class.batch_size

    @property
    def defaults(self) -> dict[str, Any]:
        """Constants of the learner that ``learner_kwargs`` does not have."""
        return self.learner_class.settings_defaults if self.rule is None else self.rule.settings_defaults

    @property
    def unread(self) -> dict[str, str]:
        """Arguments of algorithms that the learner does not read, each with what to give instead."""
        own = {"max_grad_norm": "learner_kwargs=dict(max_grad_norm=...)"} if "max_grad_norm" in self.defaults else {}
        return {**own, **self.learner_class.unread}

    @property
    def policy_arguments(self) -> dict[str, Any]:
        """Arguments of the policy that follow from the learner."""
        return {} if self.n_critics is None else {"n_critics": self.n_critics}

    def aliases(self, own: Mapping[str, type[BasePolicy]]) -> dict[str, type[BasePolicy]]:
        """
        :param own: the algorithm's policies by alias
        :return: the policies that fit this learner
        """
        if self.sb3_class is not None:
            return self.sb3_class.policy_aliases
        return dict(own if self.learner_class.policy_aliases is None else self.learner_class.policy_aliases)

    def policy_class(self, alias: str, own: Mapping[str, type[BasePolicy]]) -> type[BasePolicy]:
        """
        :param alias: of the policy
        :param own: the algorithm's policies by alias
        :return: class of the policy
        :raises ValueError: if there is no such policy, or one without an actor
        """
        known = self.aliases(own)
        check_choice("policy", alias, known)
        policy_class = known[alias]
        if self.sb3_class is not None and not hasattr(policy_class, "make_actor"):
            raise ValueError(
                f"learner must be a class with an actor, for continuous actions; got {self.sb3_class.__name__}. For discrete "
                "actions choose learner='dqn'"
            )
        return policy_class

    def check_action_space(self, action_space: spaces.Space) -> None:
        """:raises ValueError: if a learner of this package cannot learn such actions; classes of SB3 check it themselves"""
        wanted = self.learner_class.action_space_class
        if self.sb3_class is None and not isinstance(action_space, wanted):
            raise ValueError(
                f"learner must be one for actions of a {type(action_space).__name__} space; got "
                f"{self.learner_class.__name__}, which learns those of a {wanted.__name__} space. {WAY_OUT[wanted]}"
            )

    def build(
        self,
        policy: BasePolicy,
        defaults: Mapping[str, Any] | None = None,
        *,
        priority_set: int = 0,
        learning_rate: Any = None,
        policy_kwargs: Mapping[str, Any] | None = None,
    ) -> Learner:
        """
        :param policy: holds the networks; a class of SB3 makes its own, ``learner.policy``, of the same class
        :param defaults: the algorithm's constants, over which those of the learner and ``learner_kwargs`` have precedence
        :param priority_set: number of the priorities in the replay buffer, for learners that use them
        :param learning_rate: for classes of SB3, a float or a schedule; ``None`` for their default
        :param policy_kwargs: for classes of SB3, arguments of their policy
        :return: the learner
        :raises ValueError: if ``learner_kwargs`` has a constant that the learner does not know
        """
        if self.sb3_class is not None:
            rate = {} if learning_rate is None else {"learning_rate": learning_rate}
            kwargs = {**rate, "policy_kwargs": dict(policy_kwargs or {}), **self.kwargs}
            spaces_ = (policy.observation_space, policy.action_space)
            return SB3Learner(self.sb3_class, type(policy), *spaces_, policy.device, **kwargs)
        settings_class = self.learner_class.settings_class
        known = [each.name for each in fields(settings_class)]
        unknown = sorted(set(self.kwargs) - set(known))
        if unknown:
            raise ValueError(
                f"learner_kwargs must be constants of {self.learner_class.__name__}, {known}; got {unknown}. A class of SB3, "
                "such as learner='stable_baselines3:SAC', takes the arguments of its own constructor"
            )
        common = {name: value for name, value in (defaults or {}).items() if name in known}
        make: Any = self.learner_class
        rule = () if self.rule is None else (self.rule,)
        learner: Learner = make(policy, settings_class(**{**common, **self.defaults, **self.kwargs}), *rule)
        learner.learning_rates = self.learning_rates
        if learner.priority_set is not None:
            learner.priority_set = priority_set
        return learner


def learner_spec(
    choice: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    learning_rates: Mapping[Any, Pair] | None = None,
    forms: Mapping[type[Learner], type[Learner]] | None = None,
    needs: Sequence[str] = (),
) -> LearnerSpec:
    """
    :param choice: a key (``"ddpg"``, ``"td3"``, ``"td7"``, ``"sac"``, ``"dqn"``, or one that was registered),
        ``"package.module:Name"``, a :class:`~sb3_erl.learners.td_rule.TDRule`, a
        :class:`~sb3_erl.learners.base.Learner` class, or an off-policy class of SB3
    :param kwargs: further arguments of the learner; ``n_critics`` (at least 1) for all learners of this package with critics
    :param learning_rates: published learning rates of the algorithm for some rules
    :param forms: learner classes that the algorithm uses in place of others; where given, others are refused
    :param needs: methods that the algorithm calls
    :return: what was chosen
    :raises ValueError: if it is none of these, or does not fit the algorithm
    """
    part = resolve("learner", choice)
    rule = part() if isinstance(part, type) and issubclass(part, TDRule) else part
    kwargs = dict(kwargs or {})
    if isinstance(part, type) and issubclass(part, OffPolicyAlgorithm):
        spec = LearnerSpec(SB3Learner, kwargs, sb3_class=part)
    elif isinstance(rule, TDRule):
        rates = (learning_rates or {}).get(type(rule), rule.learning_rates)
        n_critics = kwargs.pop("n_critics", rule.n_critics)
        spec = LearnerSpec(TD3Learner, kwargs, rule, n_critics=n_critics, learning_rates=rates)
    elif isinstance(part, type) and issubclass(part, Learner) and part is not SB3Learner:
        n_critics = kwargs.pop("n_critics", part.n_critics) if part.n_critics is not None else None
        spec = LearnerSpec(part, kwargs, n_critics=n_critics, learning_rates=part.learning_rates)
    else:
        raise ValueError(
            f"learner must be one of {sorted(PARTS['learner'])}, 'package.module:Name', a TDRule, a Learner class or an SB3 "
            f"off-policy class; got {choice!r}"
        )
    if spec.n_critics is not None:
        check_range("n_critics", spec.n_critics, 1, integer=True)
    return _fitted(spec, choice, forms, needs)


def _fitted(
    spec: LearnerSpec, choice: Any, forms: Mapping[type[Learner], type[Learner]] | None, needs: Sequence[str]
) -> LearnerSpec:
    """The spec in the form that the algorithm uses."""
    learner_class = spec.learner_class
    if forms is not None:
        learner_class = forms.get(learner_class, learner_class)
        if not issubclass(learner_class, tuple(forms.values())):
            raise ValueError(
                f"learner must be a TDRule, such as 'td3', or one of {sorted(form.__name__ for form in forms)} here, whose "
                f"networks are shared with the population; got {choice!r}.{_elsewhere(learner_class)}"
            )
    missing = [name for name in needs if not hasattr(learner_class, name)]
    if missing:
        raise ValueError(
            f"learner must be one whose critic serves many actors here, such as 'td3'; got {choice!r}, whose "
            f"{learner_class.__name__} has no {', '.join(missing)}.{_elsewhere(learner_class)}"
        )
    return replace(spec, learner_class=learner_class)


def _elsewhere(learner_class: type[Learner]) -> str:
    """A sentence that says which class takes a learner for discrete actions."""
    is_discrete = learner_class.action_space_class is spaces.Discrete
    return " With discrete actions, use ERL or PDERL" if is_discrete else ""
