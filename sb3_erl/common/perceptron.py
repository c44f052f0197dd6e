"""
Perceptrons as one node of autograd's graph, with a gradient written by hand.

What networks compute is unchanged; saved are kernels, copies and gradients that nobody asked for. Where torch has to see
every operation (function transforms, ``torch.compile``, autocast), :func:`can_fuse` says no and the modules run as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

aten = torch.ops.aten


class Activation(NamedTuple):
    """
    An elementwise function whose derivative follows from its value.

    :param apply_: may write into its argument
    :param backward: gradient of the argument from (gradient of the value, value)
    """

    apply_: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


def _elu_(x: Tensor) -> Tensor:
    negative = x.clamp(max=0).exp_().sub_(1)  # torch's own takes expm1, exact where float32 ends anyway, and twice the time
    return torch.maximum(x, negative, out=x)


def leaky_relu(slope: float) -> Activation:
    """``max(x, slope * x)``."""
    return Activation(
        lambda x: F.leaky_relu_(x, slope), lambda grad, y: aten.leaky_relu_backward(grad, y, slope, self_is_result=True)
    )


ELU = Activation(_elu_, lambda grad, y: aten.elu_backward(grad, 1, 1, 1, is_result=True, self_or_result=y))
RELU = Activation(torch.relu_, lambda grad, y: aten.threshold_backward(grad, y, 0))
TANH = Activation(torch.tanh_, lambda grad, y: aten.tanh_backward(grad, y))
LEAKY_RELU = leaky_relu(0.01)


def activation_of(function: Any) -> Activation | None:
    """
    :param function: a module, or a function of ``torch.nn.functional``
    :return: the same as an :class:`Activation`, ``None`` if it is not known here
    """
    kind = type(function)
    if kind is nn.ELU:
        return ELU if function.alpha == 1 else None
    if kind is nn.LeakyReLU:
        return leaky_relu(function.negative_slope)
    return {nn.ReLU: RELU, nn.Tanh: TANH}.get(kind) or (LEAKY_RELU if function is F.leaky_relu_ else None)


class Layer(NamedTuple):
    """
    A linear layer, perhaps a stack of towers, and what follows it.

    :param weights: one per input: ``(out, in)``, or ``(towers, in, out)`` for a stack
    :param bias: ``(out,)`` or ``(towers, 1, out)``
    :param norm: scale and shift of a :class:`~sb3_erl.common.networks.StdNorm`
    :param activation: comes last
    """

    weights: tuple[Tensor, ...]
    bias: Tensor
    norm: tuple[Tensor, Tensor] | None = None
    activation: Activation | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All parameters."""
        return (*self.weights, self.bias, *(self.norm or ()))


def can_fuse(x: Tensor) -> bool:
    """Whether :func:`perceptron` may stand in for modules applied to ``x``."""
    return not (
        torch._C._are_functorch_transforms_active()
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled(x.device.type)
    )


def perceptron(layers: Sequence[Layer], *inputs: Tensor) -> Tensor:
    """
    :param layers: from the input to the output
    :param inputs: what the first layer reads, ``(batch, in)``, or ``(towers, batch, in)`` for a stack
    :return: ``(batch, out)`` or ``(towers, batch, out)``
    """
    tensors = [*inputs, *(tensor for layer in layers for tensor in layer.tensors)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return _Perceptron.apply(layers, *tensors)
    for layer in layers:
        inputs = (_forward(layer, inputs)[0],)
    return inputs[0]


class _Perceptron(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layers: Sequence[Layer], *tensors: Tensor) -> Tensor:
        x, values = tensors[: len(layers[0].weights)], []
        for layer in layers:
            y, *normed_and_std = _forward(layer, x)
            values += [y, *normed_and_std]
            x = (y,)
        ctx.layers = [(len(layer.weights), layer.norm is not None, layer.activation) for layer in layers]
        ctx.save_for_backward(*tensors, *values)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved, needed = ctx.saved_tensors, ctx.needs_input_grad[1:]
        grads: list[Tensor | None] = [None] * len(needed)
        # first place of each layer's parameters, and of what its forward left
        n_inputs = ctx.layers[0][0]
        starts, values = [n_inputs], [len(needed)]
        for n_weights, has_norm, _ in ctx.layers:
            starts.append(starts[-1] + n_weights + 1 + 2 * has_norm)
            values.append(values[-1] + 1 + 2 * has_norm)
        for index in reversed(range(len(ctx.layers))):
            n_weights, has_norm, activation = ctx.layers[index]
            start, value = starts[index], values[index]
            bias = start + n_weights
            if activation is not None:
                grad = activation.backward(grad, saved[value])
            if has_norm:
                normed, std, scale, shift = saved[value + 1], saved[value + 2], saved[bias + 1], saved[bias + 2]
                wanted = (any(needed[: bias + 1]), *needed[bias + 1 : bias + 3])
                grad, *grads[bias + 1 : bias + 3] = std_norm_backward(grad, normed, std, scale, shift.shape, wanted)
                if grad is None:
                    break
            stacked = saved[bias].dim() == 3
            if needed[bias]:
                grads[bias] = grad.sum(1, keepdim=True) if stacked else grad.sum(0)
            inputs = range(n_inputs) if index == 0 else (values[index - 1],)
            for place, x in zip(range(start, bias), inputs, strict=True):
                if needed[place]:
                    grads[place] = _weight_grad(saved[x], grad, stacked)
            if index == 0:
                for x in inputs:
                    if needed[x]:
                        grads[x] = _input_grad(grad, saved[start + x], stacked, shared=saved[x].dim() == 2)
            elif any(needed[:start]):
                grad = _input_grad(grad, saved[start], stacked)
            else:
                break
        return (None, *grads)


def _forward(layer: Layer, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Value of a layer, with a norm also the normed input and its standard deviation."""
    (x, *others), (weight, *more) = inputs, layer.weights
    y = _product(x, weight, layer.bias)
    for other, its_weight in zip(others, more, strict=True):
        if layer.bias.dim() == 3:
            y.baddbmm_(other.expand(y.shape[0], -1, -1), its_weight)
        else:
            y.addmm_(other, its_weight.t())
    rest: tuple[Tensor, ...] = ()
    if layer.norm is not None:
        y, *rest = std_norm_forward(y, *layer.norm)  # type: ignore[assignment]
    if layer.activation is not None:
        y = layer.activation.apply_(y)
    return (y, *rest)


def _product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if bias.dim() == 1:
        return torch.addmm(bias, x, weight.t())
    n_towers, width = len(weight), weight.shape[2]
    if x.dim() == 2:
        x = x.expand(n_towers, -1, -1)
    if width > 1:
        return torch.baddbmm(bias, x, weight)
    y = x.new_empty(n_towers, x.shape[1], 1)  # products with one column are slow in batches
    for tower in range(n_towers):
        torch.addmv(bias[tower, 0], x[tower], weight[tower, :, 0], out=y[tower, :, 0])
    return y


def _weight_grad(x: Tensor, grad: Tensor, stacked: bool) -> Tensor:
    """In the layout of the weight."""
    if not stacked:
        return grad.t() @ x
    x = x.expand(len(grad), -1, -1)
    if grad.shape[2] > 1:
        return torch.bmm(x.transpose(1, 2), grad)
    return torch.stack([torch.mv(a.t(), b[:, 0]) for a, b in zip(x, grad, strict=True)])[..., None]


def _input_grad(grad: Tensor, weight: Tensor, stacked: bool, shared: bool = False) -> Tensor:
    """:param shared: whether all towers read the same input"""
    if not stacked:
        return grad @ weight
    if shared:
        total = grad[0] @ weight[0].t()
        for a, b in zip(grad[1:], weight[1:], strict=True):
            total.addmm_(a, b.t())
        return total
    return torch.bmm(grad, weight.transpose(1, 2)) if grad.shape[2] > 1 else grad * weight.transpose(1, 2)


# ---------------------------------------------------------------- norms


NORM_EPSILON = 1e-6
"""Of the layer norm of the ERL code family, added to the standard deviation."""


def std_norm_forward(x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """
    Forward pass of :class:`~sb3_erl.common.networks.StdNorm`.

    :return: value, input with zero mean and unit standard deviation, and that deviation ``(..., 1)``
    """
    normed = x - x.mean(-1, keepdim=True)  # torch.var_mean is several times slower on the CPU
    std = torch.linalg.vector_norm(normed, dim=-1, keepdim=True) / math.sqrt(x.shape[-1] - 1)
    normed.div_(std + NORM_EPSILON)
    return torch.addcmul(shift, normed, scale), normed, std


def std_norm_backward(
    grad: Tensor, normed: Tensor, std: Tensor, scale: Tensor, shift_shape: torch.Size, needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """
    Backward pass of :func:`std_norm_forward`.

    :param needed: which of the gradients of input, scale and shift
    :return: these gradients
    """
    product = grad * normed
    grad_scale = product.sum_to_size(scale.shape) if needed[1] else None
    grad_shift = grad.sum_to_size(shift_shape) if needed[2] else None
    if not needed[0]:
        return None, grad_scale, grad_shift
    width = normed.shape[-1]
    column = scale.transpose(-1, -2) if scale.dim() > 1 else scale[:, None]
    # d normed / d x: the mean's share, and the std's share, whose weight is (std + eps) / std / (n - 1)
    along = (product @ column) * ((std + NORM_EPSILON) / (std * (width - 1)))
    mean = (grad @ column) / width
    return (grad * scale).sub_(mean).addcmul_(normed, along, value=-1.0).div_(std + NORM_EPSILON), grad_scale, grad_shift


class UnitL1(torch.autograd.Function):
    """``x / max(mean(|x|), floor)`` over the last axis, see :class:`~sb3_erl.common.networks.AvgL1Norm`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, floor: float) -> Tensor:
        size = x.abs().mean(-1, keepdim=True)
        y = x / size.clamp(min=floor)
        ctx.floor = floor
        ctx.save_for_backward(y, size)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        y, size = ctx.saved_tensors
        share = (grad * y).mean(-1, keepdim=True) * (size >= ctx.floor)
        return (grad - y.sign() * share).div_(size.clamp(min=ctx.floor)), None
