"""Network pieces that the published systems share: the layer norm of the ERL family and stacks of towers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN
from torch import Tensor, nn

from sb3_erl.core.parameters import frozen_as_buffers
from sb3_erl.policies.fused_mlp import (
    NORM_EPSILON,
    UNIT_FLOOR,
    Layer,
    activation_of,
    can_fuse,
    perceptron,
    std_norm_backward,
    std_norm_forward,
    unit_forward,
)

use_plain_norms: ContextVar[bool] = ContextVar("use_plain_norms", default=False)
"""Set by :func:`plain_norms`."""


class KeepsFrozen:
    """Lets what the author of a features extractor has frozen be constant; stands before an SB3 policy class."""

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """See SB3's ``BaseModel``, and :func:`~sb3_erl.core.parameters.frozen_as_buffers`."""
        return frozen_as_buffers(super().make_features_extractor())  # type: ignore[misc,return-value]


class ReadsImages:
    """Puts SB3's ``NatureCNN`` before the networks of a policy; stands before the policy's class."""

    def __init__(self, *args: Any, features_extractor_class: type[BaseFeaturesExtractor] = NatureCNN, **kwargs: Any):
        super().__init__(*args, features_extractor_class=features_extractor_class, **kwargs)  # type: ignore[call-arg]


class ReadsDicts:
    """Puts SB3's ``CombinedExtractor`` before the networks of a policy; stands before the policy's class."""

    def __init__(self, *args: Any, features_extractor_class: type[BaseFeaturesExtractor] = CombinedExtractor, **kwargs: Any):
        super().__init__(*args, features_extractor_class=features_extractor_class, **kwargs)  # type: ignore[call-arg]


@contextmanager
def plain_norms() -> Iterator[None]:
    """Inside, :class:`StdNorm` is made of plain operations, which nested function transforms can take apart."""
    token = use_plain_norms.set(True)
    try:
        yield
    finally:
        use_plain_norms.reset(token)


class _StdNormFunction(torch.autograd.Function):
    """:func:`~sb3_erl.policies.fused_mlp.std_norm_forward` for stacks of networks too (a third of autograd's kernels)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return std_norm_forward(x, scale, shift)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, scale, _ = inputs
        _, normed, std = output
        ctx.mark_non_differentiable(normed, std)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(normed, std, scale)

    @staticmethod
    def backward(ctx, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        if grad is None:
            return None, None, None
        normed, std, scale = ctx.saved_tensors
        return std_norm_backward(grad, normed, std, scale, ctx.needs_input_grad[1:])


class StdNorm(nn.Module):
    """
    Layer norm of the ERL code family: ``scale * (x - mean) / (std + 1e-6) + shift``.

    Source: ``LayerNorm`` in the authors' code of ERL, PDERL and ERL-Re2. It differs from ``torch.nn.LayerNorm``: the
    standard deviation has the divisor ``n - 1`` and the epsilon is added outside the root.

    :param size: number of features, at least 2
    :param n_towers: with towers the input is ``(n_towers, batch, size)`` and each tower has its own scale and shift

    >>> StdNorm(2)(torch.tensor([[0.0, 2.0]])).tolist()
    [[-0.7071..., 0.7071...]]
    """

    def __init__(self, size: int, n_towers: int | None = None):
        super().__init__()
        if size < 2:
            raise ValueError(f"layer norm needs at least 2 units per layer, got {size}; widen the layer in net_arch")
        shape = (size,) if n_towers is None else (n_towers, 1, size)
        self.scale = nn.Parameter(torch.ones(shape))
        self.shift = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor, n_towers: int | None = None) -> Tensor:
        """
        :param x: ``(..., size)``, or ``(towers, batch, size)`` for a stack
        :param n_towers: use only the first towers of a stack
        :return: same shape as ``x``
        """
        scale, shift = self.parts(n_towers)
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or use_plain_norms.get():
            normed = (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + NORM_EPSILON)
            return normed * scale + shift
        return _StdNormFunction.apply(x, scale, shift)[0]

    def parts(self, n_towers: int | None = None) -> tuple[Tensor, Tensor]:
        """Scale and shift, of the first towers only if wanted."""
        return first_towers(self.scale, n_towers), first_towers(self.shift, n_towers)


class PlainNorm(StdNorm):
    """``torch.nn.LayerNorm``, also for towers: variance with the divisor ``n``, the epsilon 1e-5 inside the root."""

    epsilon = 1e-5

    def forward(self, x: Tensor, n_towers: int | None = None) -> Tensor:
        """See :meth:`StdNorm.forward`."""
        normed = F.layer_norm(x, x.shape[-1:], eps=self.epsilon)
        scale, shift = self.parts(n_towers)
        return torch.addcmul(shift, normed, scale)


def first_towers(stack: Tensor, n_towers: int | None) -> Tensor:
    """The first towers of a stacked tensor; the tensor itself for all (a slice costs a zero-filled gradient)."""
    return stack if n_towers is None or n_towers == stack.shape[0] else stack[:n_towers]


class StackedLinear(nn.Module):
    """
    ``n_towers`` independent linear layers evaluated by one batched product.

    Initialized tower by tower like ``torch.nn.Linear``: uniform in ``±1/sqrt(in_features + n_context)``. The weight is
    stored as ``(n_towers, in_features, out_features)``, so that its gradient comes out in the same memory layout.

    :param n_towers: number of layers side by side
    :param in_features: size of the last input axis
    :param out_features: size of the last output axis
    :param n_context: further inputs that a whole batch has in common; they have a weight of their own
    """

    def __init__(self, n_towers: int, in_features: int, out_features: int, n_context: int = 0):
        super().__init__()
        bound = 1.0 / math.sqrt(max(in_features + n_context, 1))
        self.weight = nn.Parameter(torch.empty(n_towers, in_features, out_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_towers, 1, out_features).uniform_(-bound, bound))
        self.context_weight = None
        if n_context > 0:
            self.context_weight = nn.Parameter(torch.empty(n_towers, n_context, out_features).uniform_(-bound, bound))

    def forward(self, x: Tensor, context: Tensor | None = None, n_towers: int | None = None) -> Tensor:
        """
        :param x: ``(batch, in_features)`` shared by all towers, or ``(towers, batch, in_features)``
        :param context: ``(towers, 1, n_context)``
        :param n_towers: use only the first towers
        :return: ``(towers, batch, out_features)``
        """
        (weight,), bias = self.layer(context, n_towers)[:2]
        if x.dim() == 2:
            x = x.expand(weight.shape[0], *x.shape)
        if weight.shape[2] == 1:
            return in_full_precision(lambda x: torch.baddbmm(bias.to(x.dtype), x, weight), x)
        return torch.baddbmm(bias, x, weight)

    def layer(self, context: Tensor | None = None, n_towers: int | None = None) -> Layer:
        """Weight and bias for :func:`~sb3_erl.policies.fused_mlp.perceptron`; arguments as in :meth:`forward`."""
        weight, bias = first_towers(self.weight, n_towers), first_towers(self.bias, n_towers)
        if context is not None and self.context_weight is not None:
            bias = torch.baddbmm(bias, context, first_towers(self.context_weight, n_towers))
        return Layer((weight,), bias)


class Towers(nn.Module):
    """
    A stack of independent value networks: ``[linear, norm, activation] * len(net_arch), linear -> 1``.

    :param n_towers: number of value estimates
    :param in_features: size of the input without the context
    :param net_arch: widths of the hidden layers
    :param n_context: further inputs that a whole batch has in common
    :param norm_class: put one before each activation, ``None`` for none
    :param output_scale: factor on the initial weights and biases of the last layer
    :param activation: a function of a tensor that may write into it
    :param norm_last: put the norms after the activations
    """

    def __init__(
        self,
        n_towers: int,
        in_features: int,
        net_arch: Sequence[int],
        n_context: int = 0,
        norm_class: type[StdNorm] | None = StdNorm,
        output_scale: float = 1.0,
        activation: Callable[[Tensor], Tensor] = F.leaky_relu_,
        norm_last: bool = False,
    ):
        super().__init__()
        widths = [in_features, *net_arch, 1]
        contexts = [n_context] + [0] * len(net_arch)
        sizes = zip(widths[:-1], widths[1:], contexts, strict=True)
        layers = [StackedLinear(n_towers, a, b, n_context=c) for a, b, c in sizes]
        self.hidden = nn.ModuleList(layers[:-1])
        self.norms = None if norm_class is None else nn.ModuleList(norm_class(width, n_towers) for width in net_arch)
        self.out = layers[-1]
        self.activation, self.norm_last = activation, norm_last
        scale_parameters(self.out, output_scale)

    def forward(self, x: Tensor, context: Tensor | None = None, n_towers: int | None = None) -> Tensor:
        """
        :param x: ``(batch, in_features)``
        :param context: see :meth:`StackedLinear.forward`
        :param n_towers: evaluate only the first towers
        :return: ``(towers, batch, 1)``
        """
        if self._can_fuse(x):
            return perceptron(self._layers(context, n_towers), x)
        for index, layer in enumerate(self.hidden):
            x = layer(x, context if index == 0 else None, n_towers)
            if self.norm_last:
                x = self.activation(x)
            if self.norms is not None:
                x = self.norms[index](x, n_towers)
            if not self.norm_last:
                x = self.activation(x)
        return self.out(x, context if len(self.hidden) == 0 else None, n_towers)

    def _can_fuse(self, x: Tensor) -> bool:
        norms = () if self.norms is None else self.norms
        plain = not self.norm_last and all(type(norm) is StdNorm for norm in norms)
        return plain and activation_of(self.activation) is not None and can_fuse(x)

    def _layers(self, context: Tensor | None, n_towers: int | None) -> list[Layer]:
        contexts = [context] + [None] * len(self.hidden)
        layers = [part.layer(c, n_towers) for part, c in zip((*self.hidden, self.out), contexts, strict=True)]
        norms = [()] * len(self.hidden) if self.norms is None else [norm.parts(n_towers) for norm in self.norms]  # type: ignore[operator]
        for index, norm in enumerate(norms):
            layers[index] = layers[index]._replace(norm=norm, activation=activation_of(self.activation))
        return layers


def in_full_precision(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """
    A layer that gives values, without autocast: -800 in bfloat16 has -804 and -796 for neighbors.

    :param layer: from the last features to values
    :param x: its input
    """
    device = x.device.type
    if not torch.is_autocast_enabled(device):
        return layer(x)
    with torch.autocast(device, enabled=False):
        return layer(x.float())


def scale_parameters(module: nn.Module, factor: float) -> None:
    """Multiply all parameters of a module in place (the 0.1 on output layers of the ERL code family)."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(factor)


class AvgL1Norm(nn.Module):
    """
    Divide by the mean absolute value over the last axis, floored at 1e-8 (SALE's normalization).

    Fujimoto et al. (2023), https://arxiv.org/abs/2306.02451, section 4.1.

    >>> AvgL1Norm()(torch.tensor([2.0, -4.0])).tolist()
    [0.66..., -1.33...]
    """

    floor = UNIT_FLOOR

    def forward(self, x: Tensor) -> Tensor:
        """:return: same shape as ``x``"""
        return unit_forward(x)[0]


def constant(module: nn.Module) -> nn.Module:
    """
    Turn a module's parameters into buffers: they are saved, moved and copied with it, but no optimizer sees them.

    :param module: changed in place
    :return: the module
    """
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            del part._parameters[name]
            part.register_buffer(name, None if parameter is None else parameter.detach())
    return module


class BestAction(nn.Module):
    """Scores to the number of the action with the highest one, ``(batch, 1)``; the first of equals."""

    def forward(self, scores: Tensor) -> Tensor:
        return scores.argmax(dim=-1, keepdim=True).to(scores.dtype)


class BinnedAction(nn.Module):
    """
    Scores to one of a few evenly spaced values in each dimension of a box.

    Salimans et al. (2017), section 4: continuous outputs are too smooth under parameter noise on some tasks.

    :param low: ``(action_dim,)``
    :param high: ``(action_dim,)``
    :param n_bins: values per dimension, at least 2
    """

    low: Tensor
    width: Tensor

    def __init__(self, low: np.ndarray, high: np.ndarray, n_bins: int):
        super().__init__()
        self.n_bins = n_bins
        # neither parameters nor saved: the action space has them
        self.register_buffer("low", torch.as_tensor(low, dtype=torch.float32), persistent=False)
        self.register_buffer("width", torch.as_tensor((high - low) / (n_bins - 1), dtype=torch.float32), persistent=False)

    def forward(self, scores: Tensor) -> Tensor:
        best = scores.unflatten(-1, (-1, self.n_bins)).argmax(dim=-1)
        return self.low + best * self.width
