"""RL -> EA: sampled candidates take policy-gradient steps on one critic before they are evaluated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sb3_erl.core.observations import combine
from sb3_erl.core.parameters import ParameterLayout, write_parameters
from sb3_erl.learners.base import Metrics, Sampler
from sb3_erl.policies.observation_statistics import one_hot_before


class CriticLearner(Protocol):
    """A learner whose critic serves many actors."""

    policy: Any

    def critic_update(self, batch: Any, actor: Any) -> Tensor:
        """A critic step whose target policy is ``actor``."""

    def critic_snapshot(self) -> dict[str, Tensor]:
        """The critic as it is now."""

    def individual_loss(self, parameters: dict[str, Tensor], snapshot: dict[str, Tensor], observations: Any) -> Tensor:
        """What an actor minimizes on a critic."""


class GradientSteps:
    """
    The first candidates are improved in place of being mutated, as in CEM-RL.

    Pourchot & Sigaud (2019), algorithm 1; authors' code: apourchot/CEM-RL, ``es_grad.py``. For each candidate in turn the
    critic is trained with that candidate as target policy, then the candidate takes actor steps with a fresh Adam. A
    candidate's critic block does not depend on the other candidates' actor steps, so all critic blocks come first here,
    each leaving a snapshot of the critic, and the actor steps of all candidates then run together on stacked parameters:
    the numbers of the sequential order in a fraction of the time. A learner without snapshots (TD7) is the exception: there
    all candidates take their actor steps on the critic as it is after the last block.

    :param actor: network of the candidates' shape; its parameters are overwritten, its running statistics (of batch
        normalization) are common to all candidates and follow the mean of theirs
    :param optimizer: makes an optimizer for a list of tensors
    """

    def __init__(self, actor: nn.Module, optimizer: Callable[[list[Tensor]], torch.optim.Optimizer]):
        self.actor, self.optimizer = actor, optimizer
        self._is_sequential = False
        """Whether a layer is there that ``torch.vmap`` cannot take, so that candidates are passed one after the other."""
        self.layout = ParameterLayout.of(actor)

    def __call__(
        self,
        learner: CriticLearner,
        candidates: Tensor,
        sample: Sampler,
        sample_many: Callable[[int], list[Any]],
        n_critic_steps: int,
        n_actor_steps: int,
    ) -> tuple[Tensor, dict[str, float]]:
        """
        :param learner: owns the critic
        :param candidates: ``(n, n_params)``, not written
        :param sample: draws a batch for a critic step
        :param sample_many: draws the observations of n batches for one actor step of all candidates
        :param n_critic_steps: critic steps per candidate
        :param n_actor_steps: actor steps per candidate
        :return: ``(n, n_params)`` improved candidates, and mean losses
        """
        metrics, snapshots = Metrics(), []
        self.actor.eval()  # as a target policy: neither dropout nor batch statistics
        for candidate in candidates:
            write_parameters(candidate, self.actor)
            for _ in range(n_critic_steps):
                metrics.add(critic_loss=learner.critic_update(sample(), self.actor))
            snapshots.append(learner.critic_snapshot())
        stacked = {name: torch.stack([s[name] for s in snapshots]) for name in snapshots[0]}
        single = candidates.to(next(self.actor.parameters()).dtype)
        parts = {name: part.clone().requires_grad_() for name, part in self.layout.split(single).items()}  # type: ignore[union-attr]
        common = running_statistics(self.actor)
        statistics = {name: torch.stack([value] * len(candidates)) for name, value in common.items()}
        optimizer = self.optimizer(list(parts.values()))
        loss_of_all = self._loss_of_all(learner, len(candidates), bool(stacked))
        self.actor.train()
        for _ in range(n_actor_steps):
            observations = combine(lambda *parts: torch.stack(parts), *sample_many(len(candidates)))
            with one_hot_before(self.actor, learner.policy) as prepare:
                losses = loss_of_all(parts | statistics, stacked, prepare(observations))
            grads = torch.autograd.grad(losses.sum(), list(parts.values()), allow_unused=True)
            for tensor, grad in zip(parts.values(), grads, strict=True):
                tensor.grad = None if grad is None else grad.contiguous()
            optimizer.step()
            metrics.add(actor_loss=losses.mean())
        for name, values in statistics.items():
            common[name].copy_(values.mean(dim=0) if values.is_floating_point() else values[0])
        self.actor.eval()
        improved = torch.cat([part.detach().reshape(len(candidates), -1) for part in parts.values()], dim=1)
        return improved.to(candidates.dtype), metrics.means()

    def _loss_of_all(self, learner: CriticLearner, n_candidates: int, has_snapshots: bool) -> Callable[..., Tensor]:
        """The losses of all candidates by their stacked parameters, the stacked critics and a batch for each."""
        together = torch.vmap(learner.individual_loss, in_dims=(0, 0 if has_snapshots else None, 0), randomness="different")

        def sequentially(parameters: dict[str, Tensor], snapshots: dict[str, Tensor], observations: Any) -> Tensor:
            losses = []
            for number in range(n_candidates):
                own = {name: tensor[number] for name, tensor in parameters.items()}
                critic = {name: tensor[number] for name, tensor in snapshots.items()}
                losses.append(learner.individual_loss(own, critic, combine(lambda array, i=number: array[i], observations)))
            return torch.stack(losses)

        def of_all(*arguments: Any) -> Tensor:
            if not self._is_sequential:
                try:
                    return together(*arguments)
                except RuntimeError:  # no rule for a layer, such as a recurrent one or a spectral norm
                    self._is_sequential = True
            return sequentially(*arguments)

        return of_all


def running_statistics(module: nn.Module) -> dict[str, Tensor]:
    """What batch normalization has seen, by name; not a module's other buffers."""
    norms = [(path, part) for path, part in module.named_modules() if isinstance(part, _BatchNorm)]
    return {f"{path}.{name}": value for path, part in norms for name, value in part.named_buffers(recurse=False)}
