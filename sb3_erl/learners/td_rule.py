"""Temporal-difference rules: the target, the critics' loss and the actor's loss, apart from networks and optimizers."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor


class TDRule:
    """
    How an actor-critic learns from the values of its critics; the defaults are TD3's.

    The learner of ERL, PDERL, CEM-RL and CERL (:class:`~sb3_erl.learners.td3.TD3Learner`) and that of ERL-Re2
    (:class:`~sb3_erl.learners.erl_re2.SharedTD3Learner`) use the same rule, so a rule is written once: derive from this class
    and pass the class, or ``"package.module:Name"``, as ``learner``.

    The control flow of methods must not depend on values of tensors, and they must not write into their arguments: then
    they can be compiled. A rule that draws random numbers (with torch) sets :attr:`use_graphs` to ``False``.

    Fujimoto et al. (2018), https://arxiv.org/abs/1802.09477, algorithm 1.
    """

    n_critics: ClassVar[int] = 2
    """Critics (towers), unless ``learner_kwargs`` has ``n_critics``."""
    settings_defaults: ClassVar[dict[str, Any]] = {"policy_delay": 2, "target_policy_noise": 0.2}
    """Constants of :class:`~sb3_erl.learners.base.LearnerSettings` that ``learner_kwargs`` does not have."""
    learning_rates: ClassVar[tuple[float, float]] = (1e-3, 1e-3)
    """Learning rates of actor and critics where the user gives none."""
    actor_towers: ClassVar[int | None] = 1
    """How many of the critics :meth:`actor_value` reads, the first ones; ``None`` for all."""
    use_graphs: ClassVar[bool] = True
    """Whether updates on a GPU may become CUDA graphs; ``False`` for a rule that draws random numbers."""

    def target(self, next_values: Tensor) -> Tensor:
        """
        The value that the critics bootstrap from; for TD3 the smallest (eq. 10).

        :param next_values: of the target critics, ``(towers, batch, 1)``
        :return: ``(batch, 1)``
        """
        return next_values.amin(dim=0)

    def critic_loss(self, values: Tensor, targets: Tensor) -> Tensor:
        """
        The loss of the critics; for TD3 the mean squared error, summed over critics.

        :param values: ``(towers, batch, 1)``
        :param targets: ``(batch, 1)``
        :return: scalar
        """
        return (values - targets).square().mean(dim=(1, 2)).sum()

    def actor_value(self, values: Tensor) -> Tensor:
        """
        The value that the actor maximizes the mean of; for TD3 that of the first critic.

        :param values: ``(towers, batch, 1)``, of :attr:`actor_towers` critics
        :return: ``(batch, 1)``, or with more axes in front: the actor's loss is minus the mean over all of them
        """
        return values[0]


class TD3Rule(TDRule):
    """Twin delayed DDPG, Fujimoto et al. (2018), https://arxiv.org/abs/1802.09477."""


class DDPGRule(TDRule):
    """
    Deep deterministic policy gradient: TD3 with one critic, no delay and no smoothing.

    Lillicrap et al. (2015), https://arxiv.org/abs/1509.02971, with the constants of the authors' code of ERL.
    """

    n_critics = 1
    settings_defaults: ClassVar[dict[str, Any]] = {"policy_delay": 1, "target_policy_noise": 0.0}
    learning_rates = (5e-5, 5e-4)


class TD7Rule(TDRule):
    """
    TD7: the smallest value as target, LAP's loss, and the mean of all critics for the actor.

    Fujimoto et al. (2023), https://arxiv.org/abs/2306.02451, section 4; the clipped bootstrap is the learner's.
    """

    settings_defaults: ClassVar[dict[str, Any]] = {**TDRule.settings_defaults, "max_grad_norm": None}
    learning_rates = (3e-4, 3e-4)
    actor_towers = None

    def critic_loss(self, values: Tensor, targets: Tensor) -> Tensor:
        """LAP's loss: ``d^2 / 2`` below 1, else ``d`` (without the offset of Huber's), mean over the batch, sum of critics."""
        distance = (values - targets).abs()
        return torch.where(distance < 1, 0.5 * distance.square(), distance).mean(dim=(1, 2)).sum()

    def actor_value(self, values: Tensor) -> Tensor:
        """All values."""
        return values
