"""Optimizers of evolution strategies: from an estimated gradient to a step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from sb3_erl.core.checks import check_range


@dataclass(frozen=True)
class ESUpdate:
    """
    What the last :meth:`~sb3_erl.evolution.es.MirroredES.tell` did.

    :param shaped: ``(n_candidates,)`` shaped fitness, in the order of the candidates
    :param direction: ``(n_params,)`` estimated ascent direction, not divided by sigma
    :param gradient: ``(n_params,)`` what the optimizer descended: minus the direction plus the pull toward zero
    :param grad_norm: L2 norm of the direction
    :param update_ratio: L2 norm of the step relative to that of the mean before it
    """

    shaped: np.ndarray = field(repr=False)
    direction: np.ndarray = field(repr=False)
    gradient: np.ndarray = field(repr=False)
    grad_norm: float
    update_ratio: float


class MomentumSGD(nn.Module):
    """
    ``velocity <- momentum * velocity + (1 - damping) * gradient``; the step is ``-learning_rate * velocity``.

    Public code: uber-research/deep-neuroevolution, ``gpu_implementation/neuroevolution/optimizers.py: SGD``.

    :param n_params: length of the vector that is optimized
    :param momentum: share of the velocity that a step keeps, in [0, 1]
    """

    damped: ClassVar[bool] = False
    velocity: Tensor

    def __init__(self, n_params: int, momentum: float = 0.9):
        super().__init__()
        check_range("momentum", momentum, 0, 1)
        self.momentum = momentum
        self.register_buffer("velocity", torch.zeros(n_params))

    def step(self, gradient: Tensor, learning_rate: float) -> Tensor:
        """
        :param gradient: ``(n_params,)``, of what is minimized
        :param learning_rate: step size
        :return: ``(n_params,)``, what is to be added to the parameters
        """
        weight = 1 - self.momentum if self.damped else 1.0
        self.velocity.mul_(self.momentum).add_(gradient, alpha=weight)
        return -learning_rate * self.velocity


class DampedSGD(MomentumSGD):
    """
    :class:`MomentumSGD` whose velocity is a running mean: the gradient enters with weight ``1 - momentum``.

    Authors' code of Salimans et al. (2017): openai/evolution-strategies-starter, ``es_distributed/optimizers.py: SGD``.
    """

    damped = True


class ClassicAdam(nn.Module):
    """
    Adam in the efficient form of its paper, where epsilon is added to the second moment's root before bias correction.

    Kingma & Ba (2015), https://arxiv.org/abs/1412.6980, end of section 2; authors' code of Salimans et al. (2017):
    openai/evolution-strategies-starter, ``es_distributed/optimizers.py: Adam``. :class:`CorrectedAdam` adds epsilon after the
    correction, which differs visibly where gradients are small.

    :param n_params: length of the vector that is optimized
    :param beta1: decay of the first moment, in [0, 1)
    :param beta2: decay of the second moment, in [0, 1)
    :param epsilon: positive
    """

    corrected: ClassVar[bool] = False
    first_moment: Tensor
    second_moment: Tensor
    n_steps: Tensor

    def __init__(self, n_params: int, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8):
        super().__init__()
        for name, value in (("beta1", beta1), ("beta2", beta2)):
            check_range(name, value, 0, math.nextafter(1, 0))
        check_range("epsilon", epsilon, 0, open_low=True)
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self.register_buffer("first_moment", torch.zeros(n_params))
        self.register_buffer("second_moment", torch.zeros(n_params))
        self.register_buffer("n_steps", torch.zeros((), dtype=torch.float64))

    def step(self, gradient: Tensor, learning_rate: float) -> Tensor:
        """See :meth:`MomentumSGD.step`."""
        self.n_steps += 1
        t = float(self.n_steps)
        rate = learning_rate * math.sqrt(1 - self.beta2**t) / (1 - self.beta1**t)
        epsilon = self.epsilon * (math.sqrt(1 - self.beta2**t) if self.corrected else 1.0)
        self.first_moment.mul_(self.beta1).add_(gradient, alpha=1 - self.beta1)
        self.second_moment.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        return -rate * self.first_moment / (self.second_moment.sqrt() + epsilon)


class CorrectedAdam(ClassicAdam):
    """Adam as ``torch.optim.Adam`` has it: epsilon is added to the root of the corrected second moment."""

    corrected = True


ES_OPTIMIZERS: dict[str, type[Any]] = {
    "adam": ClassicAdam,
    "corrected_adam": CorrectedAdam,
    "damped_sgd": DampedSGD,
    "sgd": MomentumSGD,
}
