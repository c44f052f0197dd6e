"""Several learners side by side, each with a discount factor of its own, on one replay buffer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_erl.buffers.lap import LAPReplayBuffer
from sb3_erl.core.parameters import ParameterLayout
from sb3_erl.learners.base import Learner, LearnerSettings, Rates, Sampler
from sb3_erl.learners.choice import LearnerSpec, learner_spec
from sb3_erl.learners.td_rule import TDRule


class Portfolio(Learner):
    """
    Learners of any kind that take the same number of updates, each on batches of its own.

    Khadka et al. (ICML 2019), https://arxiv.org/abs/1905.00976, section 3. Learner i is also the attribute
    ``learner_<i>``, which is how its optimizers are named in files.

    :param policy: holds the learners' networks as ``members``
    :param members: the learners
    :param gammas: their discount factors, each in [0, 1]
    """

    def __init__(self, policy: BasePolicy, members: Sequence[Learner], gammas: Sequence[float]):
        super().__init__(policy, LearnerSettings())
        self.members, self.gammas = list(members), list(gammas)
        self.active = 0
        """Number of the learner that is updated now."""
        for number, member in enumerate(members):
            setattr(self, f"learner_{number}", member)

    @property
    def actors(self) -> list[Any]:
        """The learners' actors, each with ``predict``."""
        return [member.policy.actor for member in self.members]

    @property
    def migrants(self) -> list[int]:
        """
        Numbers of the learners whose actors can become individuals.

        Individuals have the shape, and where it has any the buffers, of the first learner's actor. So that learner is
        always among them, another one if its actor is of the same structure and has no buffers of its own.
        """
        first, *others = self.actors
        fits = [not list(actor.buffers()) and _structure(actor) == _structure(first) for actor in others]
        return [0, *(number for number, fit in enumerate(fits, 1) if fit)]

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Optimizers of the learners of this package; those of SB3 classes belong to their models."""
        found: dict[str, torch.optim.Optimizer] = {}
        for number, member in enumerate(self.members):
            found |= {_saved_name(number, name): optimizer for name, optimizer in member.optimizers.items()}
        return found

    @property
    def save_params(self) -> tuple[list[str], list[str]]:
        """See :attr:`Learner.save_params`."""
        names: tuple[list[str], list[str]] = ([], [])
        for number, member in enumerate(self.members):
            for all_names, own in zip(names, member.save_params, strict=True):
                all_names += [_saved_name(number, name) for name in own]
        return names

    def compile(self, only_whole: bool = False) -> bool:
        """See :meth:`Learner.compile`."""
        return any([member.compile(only_whole) for member in self.members])

    def begin(self, rates: Rates, buffer: ReplayBuffer | None = None) -> None:
        """See :meth:`Learner.begin`; discount factors are the portfolio's."""
        self.n_updates = rates.n_updates
        for member, gamma in zip(self.members, self.gammas, strict=True):
            member.begin(replace(rates, gamma=gamma), buffer)

    def update(self, sample: Sampler, n_updates: int) -> dict[str, float]:
        """
        See :meth:`Learner.update`.

        :param sample: draws one batch for the learner with the number :attr:`active`, see :meth:`sample`
        :param n_updates: of every learner
        :return: means by learner, ``learner_<i>/<name>``
        """
        metrics: dict[str, float] = {}
        for number, member in enumerate(self.members):
            self.active = number
            own = member.update(sample, n_updates)
            metrics |= {f"learner_{number}/{name}": value for name, value in own.items()}
        self.n_updates += n_updates
        return metrics

    def sample(self, buffer: ReplayBuffer, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """
        A batch for the learner with the number :attr:`active`: TD7's by its own priorities, the others' uniformly.

        :param buffer: common to all learners; n-step returns are discounted by the learner's factor
        :param batch_size: number of transitions
        :param env: normalizes observations and rewards
        :return: the batch
        """
        if isinstance(buffer, LAPReplayBuffer):
            return buffer.sample(batch_size, env, self.members[self.active].priority_set)
        if isinstance(buffer, NStepReplayBuffer):
            own, buffer.gamma = buffer.gamma, self.gammas[self.active]
            try:
                return buffer.sample(batch_size, env=env)
            finally:  # files of buffers hold it
                buffer.gamma = own
        return buffer.sample(batch_size, env=env)


def _saved_name(number: int, name: str) -> str:
    """Name of a learner's attribute as one of the algorithm."""
    own = name.removeprefix("learner.")
    return f"learner.learner_{number}.{own if own != name else 'policy.' + name}"


def _structure(actor: nn.Module) -> tuple[type, ParameterLayout, list[tuple[str, str]]]:
    """
    What two networks have in common that are the same function of their parameters: layers, sizes, activations.

    A sequence of layers is what its layers are: those of a learner of this package run fused, those of SB3's do not.
    """
    layers = [(path, repr(layer)) for path, layer in actor.named_modules() if not list(layer.children())]
    return type(actor), ParameterLayout.of(actor), layers


def portfolio_specs(
    gammas: Sequence[float], learners: Any, kwargs: Any, learning_rates: Mapping[type[TDRule], tuple[float, float]]
) -> list[LearnerSpec]:
    """
    :param gammas: discount factors, one per learner
    :param learners: one choice for all learners or a sequence with one for each
    :param kwargs: their further arguments, in the same way
    :param learning_rates: published rates for some rules
    :return: what each learner is
    :raises ValueError: if a sequence is not one per learner, or a choice is unknown
    """
    choices = _per_learner("learner", learners, gammas, (str, type, TDRule))
    each = _per_learner("learner_kwargs", kwargs, gammas, dict)
    return [learner_spec(choice, own, learning_rates=learning_rates) for choice, own in zip(choices, each, strict=True)]


def _per_learner(name: str, given: Any, gammas: Sequence[float], plain: type | tuple[type, ...]) -> list[Any]:
    """The values of an argument that is one value for all learners, of a type ``plain``, or a sequence of them."""
    if isinstance(given, plain) or not isinstance(given, list | tuple):
        return [given] * len(gammas)
    if len(given) != len(gammas):
        raise ValueError(
            f"{name} must be one for all learners or a sequence with one for each of gammas={list(gammas)}, "
            f"{len(gammas)}; got {len(given)}: {given!r}"
        )
    return list(given)


def build_portfolio(
    policy: Any, specs: Sequence[LearnerSpec], gammas: Sequence[float], learning_rate: Any, policy_kwargs: dict[str, Any]
) -> Portfolio:
    """
    :param policy: holds the learners' networks as ``members``; takes over those that classes of SB3 make themselves
    :param specs: one per learner
    :param gammas: their discount factors
    :param learning_rate: of all learners, ``None`` for each one's own
    :param policy_kwargs: of all policies; ``by_learner``, a sequence of mappings, has those of each
    :return: the learners
    """
    members: list[Learner] = []
    common = {key: value for key, value in policy_kwargs.items() if key != "by_learner"}
    by_learner = policy_kwargs.get("by_learner") or [{}] * len(specs)
    for number, spec in enumerate(specs):
        member = spec.build(
            policy.members[number],
            {"delay_critic_target": False},
            priority_set=sum(each.buffer_class is not None for each in specs[:number]),
            learning_rate=learning_rate,
            policy_kwargs={**common, **by_learner[number]},
        )
        if spec.sb3_class is not None:
            policy.adopt(number, member.policy)
        members.append(member)
    return Portfolio(policy, members, gammas)
