"""Distillation crossover: a child imitates, in each state, the parent whose action has the higher value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy

from sb3_erl.core.observations import combine
from sb3_erl.core.parameters import ParameterLayout
from sb3_erl.policies.layers import plain_norms
from sb3_erl.policies.observation_statistics import one_hot_before

States = Tensor | dict[str, Tensor]
"""Observations as tensors; a dict of them for Dict observations."""
Value = Callable[[Any, Tensor], Tensor]
"""Value ``(batch,)`` of actions ``(batch, action_dim)`` in states ``(batch, *obs_shape)``."""


def act_together(actor: nn.Module, parts: dict[str, Tensor], states: States) -> Tensor:
    """
    :param actor: a network of the individuals' shape
    :param parts: stacked tensors of n individuals by name
    :param states: each individual's own ``(n, batch, *obs_shape)``
    :return: actions ``(n, batch, action_dim)``
    """
    with plain_norms(), one_hot_before(actor) as prepare:  # other norms have no fast rule for stacks
        return vmap(lambda p, s: functional_call(actor, p, (s,)))(parts, prepare(states))


@dataclass
class DistillationCrossover:
    """
    Q-filtered behavior cloning from two parents, for many children at once on stacked parameters.

    Bodnar, Day, Lio (AAAI 2020), https://arxiv.org/abs/1906.09807, section 3.2; authors' code: crisbodnar/pderl,
    ``core/ddpg.py: GeneticAgent.update_parameters``. The child begins as a copy of the second, less fit parent. The
    imitation error is summed over batch and action dimensions, the regularizer averaged (as in the code, not the paper).

    :param actor: a network of the individuals' shape, its own parameters are not read
    :param layout: tensors of one individual
    :param epochs: passes over a child's memory
    :param batch_size: states per step
    :param learning_rate: of a fresh Adam
    :param action_reg: weight of the mean squared action
    """

    needs_memories: ClassVar[bool] = True
    actor: nn.Module
    layout: ParameterLayout
    epochs: int = 12
    batch_size: int = 128
    learning_rate: float = 1e-3
    action_reg: float = 1.0

    def _act(self, parts: dict[str, Tensor], states: States) -> Tensor:
        return act_together(self.actor, parts, states)

    def actions_of(self, outputs: Tensor) -> Tensor:
        """
        :param outputs: ``(n, batch, output_dim)``, of individuals
        :return: the actions that they mean, ``(n, batch, action_dim)``, as the critic reads them
        """
        return outputs

    @torch.no_grad()
    def targets(self, first: Tensor, second: Tensor, states: States, value: Value) -> tuple[Tensor, Tensor]:
        """
        :param first: ``(n, n_params)``, the fitter parents
        :param second: ``(n, n_params)``
        :param states: ``(n, batch, *obs_shape)``
        :param value: the learner's critic
        :return: actions to imitate ``(n, batch, action_dim)``, and where they are the first parent's ``(n, batch)``
        """
        actions = [self.actions_of(self._act(self._parts(parents), states)) for parents in (first, second)]
        flat = combine(lambda tensor: tensor.flatten(0, 1), states)
        values = [value(flat, a.flatten(0, 1)).reshape(a.shape[:2]) for a in actions]
        takes_first = values[0] > values[1]  # ties go to the second parent
        return torch.where(takes_first[..., None], actions[0], actions[1]), takes_first

    def loss(self, parts: dict[str, Tensor], states: States, targets: Tensor) -> tuple[Tensor, Tensor]:
        """
        :param parts: the children's stacked tensors by name
        :param states: ``(n, batch, *obs_shape)``
        :param targets: ``(n, batch, action_dim)``
        :return: loss and mean squared error, ``(n,)`` each
        """
        actions = self._act(parts, states)
        squares = (actions - targets).square()
        return squares.sum(dim=(1, 2)) + self.action_reg * actions.square().mean(dim=(1, 2)), squares.mean(dim=(1, 2))

    def _parts(self, candidates: Tensor) -> dict[str, Tensor]:
        return {name: part.detach() for name, part in self.layout.split(candidates).items()}  # type: ignore[union-attr]

    def __call__(
        self, first: Tensor, second: Tensor, draw: Callable[[], States], n_steps: Sequence[int], value: Value
    ) -> tuple[Tensor, list[Tensor]]:
        """
        :param first: ``(n, n_params)``, the fitter parents; not written
        :param second: ``(n, n_params)``, not written
        :param draw: states ``(n, batch, *obs_shape)`` of the children's memories for one step
        :param n_steps: number of steps of each child
        :param value: the learner's critic
        :return: children ``(n, n_params)``, and each step's mean squared errors ``(n,)``
        """
        parts = {name: part.clone().requires_grad_() for name, part in self._parts(second).items()}
        tensors = list(parts.values())
        optimizer = torch.optim.Adam(tensors, lr=self.learning_rate)
        children, errors = second.clone(), []
        for step in range(1, 1 + max(n_steps)):
            states = draw()
            targets, _ = self.targets(first, second, states, value)
            losses, error = self.loss(parts, states, targets)
            for tensor, grad in zip(tensors, torch.autograd.grad(losses.sum(), tensors, allow_unused=True), strict=True):
                tensor.grad = grad
            optimizer.step()
            errors.append(error.detach())
            for child in [i for i, n in enumerate(n_steps) if n == step]:  # the others go on
                children[child] = torch.cat([tensor.detach()[child].reshape(-1) for tensor in tensors])
        return children, errors


@dataclass
class GreedyDistillation(DistillationCrossover):
    """
    The same for Q-networks: a child learns to prefer the greedy action of the parent whose action has the higher value.

    PDERL has no discrete actions; this form is ours. The cross-entropy of the child's values with the action to imitate,
    summed over the batch, stands in place of the squared difference, since the values of two parents have scales of their
    own. There are no actions to keep small, so ``action_reg`` is not read. The errors are shares of states with another
    action.
    """

    def actions_of(self, outputs: Tensor) -> Tensor:
        """See :meth:`DistillationCrossover.actions_of`; the numbers of the actions with the highest values."""
        return outputs.argmax(dim=-1, keepdim=True).to(outputs.dtype)

    def loss(self, parts: dict[str, Tensor], states: States, targets: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`DistillationCrossover.loss`."""
        values = self._act(parts, states)  # (n, batch, n_actions)
        surprise = cross_entropy(values.flatten(0, 1), targets.flatten().long(), reduction="none")
        others = (self.actions_of(values.detach()) != targets).to(values.dtype)
        return surprise.reshape(values.shape[:2]).sum(dim=1), others.mean(dim=(1, 2))
