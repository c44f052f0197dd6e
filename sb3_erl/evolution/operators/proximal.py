"""Proximal mutation: noise that is small where the actions are sensitive to a weight."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from sb3_erl.core.parameters import ParameterLayout
from sb3_erl.policies.layers import plain_norms
from sb3_erl.policies.observation_statistics import one_hot_before

OFFICIAL_BATCH_SIZE = 256
"""States of the authors' code, to which magnitudes are tuned."""
CHUNK = 10_000_000
"""Parameters of all individuals whose sensitivities are measured at the same time."""


def sensitivity(actor: nn.Module, layout: ParameterLayout, candidates: Tensor, observations: Any) -> Tensor:
    """
    How much the actions of individuals change with each of their parameters.

    :param actor: a network of the individuals' shape, its own parameters are not read
    :param layout: tensors of one individual
    :param candidates: ``(n, n_params)``
    :param observations: ``(n, batch, *obs_shape)``, or a dict of such tensors, each individual's own
    :return: ``(n, n_params)``: root of the sum over action dimensions of the squared gradient of the sum over the batch
    """

    def summed_actions(parameters: dict[str, Tensor], batch: Any) -> Tensor:
        return functional_call(actor, parameters, (batch,)).sum(dim=0)  # (action_dim,)

    parts = {name: part.detach() for name, part in layout.split(candidates).items()}  # type: ignore[union-attr]
    with plain_norms(), one_hot_before(actor) as prepare:
        # few individuals at a time if they are large: a Jacobian has a row per action dimension
        jacobians = vmap(jacrev(summed_actions), chunk_size=max(1, CHUNK // layout.n_params))(parts, prepare(observations))
    flat = [jacobians[name].square().sum(dim=1).reshape(len(candidates), -1) for name in layout.names]
    return torch.cat(flat, dim=1).sqrt()


class ProximalMutation:
    """
    Add Gaussian noise to the weight matrices, divided by the sensitivity of the actions to each weight.

    Bodnar, Day, Lio (AAAI 2020), https://arxiv.org/abs/1906.09807, section 3.3; authors' code: crisbodnar/pderl,
    ``core/mod_neuro_evo.py: proximal_mutate``. Weights without any influence are divided by 1, other small sensitivities
    are raised to the floor; biases and norms are left alone.

    :param layout: tensors of one individual
    :param magnitude: standard deviation of the noise
    :param floor: smallest sensitivity
    :param random_magnitude: draw each individual's magnitude from N(magnitude, 0.02) and take its absolute value
    :param batch_size: states on which the sensitivity is measured, fewer where an individual has not seen as many
    :param normalize_batch: scale sensitivities, which are sums over states, to the 256 states of the authors' code; without it
        (as theirs) an individual takes larger steps where there are fewer
    """

    needs_memories: ClassVar[bool] = True

    def __init__(
        self,
        layout: ParameterLayout,
        magnitude: float = 0.05,
        floor: float = 0.01,
        random_magnitude: bool = False,
        batch_size: int = 256,
        normalize_batch: bool = False,
    ):
        self.layout, self.magnitude, self.floor, self.random_magnitude = layout, magnitude, floor, random_magnitude
        self.batch_size, self.normalize_batch = batch_size, normalize_batch
        self.mutable = np.concatenate(
            [np.full(size, len(shape) >= 2) for size, shape in zip(layout.sizes, layout.shapes, strict=True)]
        )

    def scaling(self, sensitivities: np.ndarray) -> np.ndarray:
        """The divisor of the noise: sensitivities with exact zeros replaced by 1, then raised to the floor."""
        return np.maximum(np.where(sensitivities == 0, 1.0, sensitivities), self.floor)

    def batch_factor(self, n_states: int) -> float:
        """The factor for a sensitivity that was measured on this many states."""
        return OFFICIAL_BATCH_SIZE / n_states if self.normalize_batch else 1.0

    def __call__(self, parents: np.ndarray, sensitivities: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """
        :param parents: ``(n, n_params)``, not written
        :param sensitivities: ``(n, n_params)``
        :param rng: generator
        :return: ``(n, n_params)``
        """
        magnitudes = np.full(len(parents), self.magnitude)
        if self.random_magnitude:
            magnitudes = np.abs(rng.normal(self.magnitude, 0.02, len(parents)))
        return self.apply(parents, sensitivities, magnitudes[:, None] * rng.standard_normal(parents.shape))

    def apply(self, parents: np.ndarray, sensitivities: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """
        :param parents: ``(n, n_params)``, not written
        :param sensitivities: ``(n, n_params)``
        :param noise: ``(n, n_params)``, already multiplied by the magnitude; read for weight matrices only
        :return: ``(n, n_params)``
        """
        steps = np.where(self.mutable, noise / self.scaling(sensitivities), 0.0)
        return (parents + steps).astype(parents.dtype)
