"""
Perceptrons as one node of autograd's graph, with a gradient written by hand.

The result is that of the modules, with fewer kernels and copies, and without gradients that are not needed. Where torch has to
see every operation (function transforms, ``torch.compile``, ``torch.export``, ``torch.jit.trace``, autocast),
:func:`can_fuse` is false and the modules run instead.
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
_NOTHING = torch.empty(0)


class Activation(NamedTuple):
    """
    An elementwise function whose derivative follows from its value.

    :param apply_: may write into its argument
    :param backward: gradient of the argument from (gradient of the value, value)
    """

    apply_: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


def _elu_(x: Tensor) -> Tensor:
    negative = x.clamp(max=0).exp_().sub_(1)  # F.elu_ uses expm1: more digits near 0, in twice the time
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
    A linear layer or a stack of towers, with the norm and the activation that follow it.

    :param weights: ``(out, in)``, or ``(towers, in, out)`` for a stack; one for all inputs side by side, or one for each
    :param bias: ``(out,)`` or ``(towers, 1, out)``
    :param norm: scale and shift of a :class:`~sb3_erl.policies.layers.StdNorm`, empty without one
    :param unit: whether the output is divided by its mean absolute value
    :param activation: applied last, ``None`` for none
    :param n_more: inputs that the layer reads beside the previous layer's output
    """

    weights: tuple[Tensor, ...]
    bias: Tensor
    norm: tuple[Tensor, ...] = ()
    unit: bool = False
    activation: Activation | None = None
    n_more: int = 0


def has_hooks(module: nn.Module) -> bool:
    """Whether something is called with a module, such as a spectral norm or a mask, so that nothing may stand in for it."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def can_fuse(x: Tensor) -> bool:
    """Whether :func:`perceptron` may stand in for modules applied to ``x``."""
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch.is_autocast_enabled(x.device.type)
    )


def perceptron(layers: Sequence[Layer], *inputs: Tensor) -> Tensor:
    """
    :param layers: from the input to the output
    :param inputs: what the first layer reads, ``(batch, in)`` or ``(towers, batch, in)`` for a stack; then the further
        inputs of the layers that have some
    :return: ``(batch, out)`` or ``(towers, batch, out)``
    """
    if torch.is_grad_enabled():
        tensors = list(inputs)
        for layer in layers:
            tensors += (*layer.weights, layer.bias, *layer.norm)
        if any([tensor.requires_grad for tensor in tensors]):
            return _Perceptron.apply(layers, len(inputs), *tensors)
    x, more = inputs[0], 1
    for layer in layers:
        x = _forward(layer, (x, *inputs[more : more + layer.n_more]))[0]
        more += layer.n_more
    return x


class _Perceptron(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layers: Sequence[Layer], n_inputs: int, *tensors: Tensor) -> Tensor:
        x, more = tensors[0], 1
        values: list[Tensor] = []
        for layer in layers:
            x, *rest = _forward(layer, (x, *tensors[more : more + layer.n_more]))
            # a linear last layer's value is not read again, and others may write into it
            values += (_NOTHING if layer is layers[-1] and layer.activation is None else x, *rest)
            more += layer.n_more
        # the tensors are saved below; this is how many of them belong to each layer
        ctx.layers = [(len(a.weights), len(a.norm), a.unit, a.activation, a.n_more) for a in layers]
        ctx.n_inputs = n_inputs
        ctx.save_for_backward(*tensors, *values)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved, needed = ctx.saved_tensors, ctx.needs_input_grad[2:]
        grads: list[Tensor | None] = [None] * len(needed)
        end, value, more = len(needed), len(saved), ctx.n_inputs
        for index in range(len(ctx.layers) - 1, -1, -1):
            n_weights, n_norm, unit, activation, n_more = ctx.layers[index]
            start = end - n_weights - 1 - n_norm
            weights, bias, norm = saved[start : start + n_weights], saved[end - 1 - n_norm], saved[end - n_norm : end]
            value -= 1 + n_norm + 2 * unit
            if activation is not None:
                grad = activation.backward(grad, saved[value])
            if unit:
                grad = unit_backward(grad, *saved[value + 1 : value + 3])
            if n_norm:
                normed, std = saved[value + 1 : value + 3]
                grad, *grads[end - 2 : end] = std_norm_backward(grad, normed, std, norm[0], needed[end - 2 : end])
            if needed[start + n_weights]:
                grads[start + n_weights] = grad.sum(1, keepdim=True) if bias.dim() == 3 else grad.sum(0)
            more -= n_more
            below = 0 if index == 0 else value - 1 - ctx.layers[index - 1][1] - 2 * ctx.layers[index - 1][2]
            inputs = (saved[below], *saved[more : more + n_more])
            if any(needed[start : start + n_weights]):
                grads[start : start + n_weights] = _weight_grads(grad, inputs, weights, needed[start : start + n_weights])
            wanted = any(needed[:1]) if index == 0 else any(needed[:more]) or any(needed[ctx.n_inputs : start])
            down, *grads[more : more + n_more] = _input_grads(grad, inputs, weights, (wanted, *needed[more : more + n_more]))
            if index == 0:
                grads[0] = down
            elif down is None:
                break
            else:
                grad = down
            end = start
        return (None, None, *grads)


def _forward(layer: Layer, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Value of a layer; with a norm also the normed input and its standard deviation or mean absolute value."""
    weights, bias = layer.weights, layer.bias
    if bias.dim() == 3:
        y = _stacked_product(inputs[0], weights[0], bias)
        for more, weight in zip(inputs[1:], weights[1:], strict=True):
            y.baddbmm_(more.expand(len(y), -1, -1) if more.dim() == 2 else more, weight)
    else:
        (weight,) = weights
        if len(inputs) == 1:
            y = torch.addmm(bias, inputs[0], weight.t())
        else:
            first, *others = weight.split([x.shape[1] for x in inputs], dim=1)
            y = torch.addmm(bias, inputs[0], first.t())
            for more, columns in zip(inputs[1:], others, strict=True):
                y.addmm_(more, columns.t())
    rest: tuple[Tensor, ...] = ()
    if layer.norm:
        y, *rest = std_norm_forward(y, *layer.norm)  # type: ignore[assignment]
    if layer.unit:
        y, size = unit_forward(y)
        rest = (y, size)
    if layer.activation is not None:
        y = layer.activation.apply_(y)
    return (y, *rest)


def _stacked_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if x.dim() == 2:
        x = x.expand(len(weight), -1, -1)
    if weight.shape[2] > 1:
        return torch.baddbmm(bias, x, weight)
    y = x.new_empty(len(weight), x.shape[1], 1)  # batched products with one column are slow
    for tower in range(len(weight)):
        torch.addmv(bias[tower, 0], x[tower], weight[tower, :, 0], out=y[tower, :, 0])
    return y


def _weight_grads(
    grad: Tensor, inputs: Sequence[Tensor], weights: Sequence[Tensor], needed: Sequence[bool]
) -> list[Tensor | None]:
    """In the layout of the weights."""
    if grad.dim() == 3:
        return [_stacked_weight_grad(grad, x) if n else None for x, n in zip(inputs, needed, strict=True)]
    if len(inputs) == 1:
        return [grad.t() @ inputs[0]]
    whole = torch.empty_like(weights[0])
    for x, columns in zip(inputs, whole.split([x.shape[1] for x in inputs], dim=1), strict=True):
        torch.mm(grad.t(), x, out=columns)
    return [whole]


def _stacked_weight_grad(grad: Tensor, x: Tensor) -> Tensor:
    if x.dim() == 2:
        x = x.expand(len(grad), -1, -1)
    if grad.shape[2] > 1:
        return torch.bmm(x.transpose(1, 2), grad)
    return torch.stack([torch.mv(a.t(), b[:, 0]) for a, b in zip(x, grad, strict=True)])[..., None]


def _input_grads(
    grad: Tensor, inputs: Sequence[Tensor], weights: Sequence[Tensor], needed: Sequence[bool]
) -> list[Tensor | None]:
    if grad.dim() == 2:
        columns = weights if len(inputs) == 1 else weights[0].split([x.shape[1] for x in inputs], dim=1)
        return [grad @ weight if n else None for weight, n in zip(columns, needed, strict=True)]
    triples = zip(inputs, weights, needed, strict=True)
    return [_stacked_input_grad(grad, weight, x.dim() == 2) if n else None for x, weight, n in triples]


def _stacked_input_grad(grad: Tensor, weight: Tensor, shared: bool) -> Tensor:
    """:param shared: whether all towers read the same input"""
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
    Forward pass of :class:`~sb3_erl.policies.layers.StdNorm`.

    :return: value, input with zero mean and unit standard deviation, and that deviation ``(..., 1)``
    """
    normed = x - x.mean(-1, keepdim=True)  # torch.var_mean is several times slower on the CPU
    std = torch.linalg.vector_norm(normed, dim=-1, keepdim=True) / math.sqrt(x.shape[-1] - 1)
    normed.div_(std + NORM_EPSILON)
    return torch.addcmul(shift, normed, scale), normed, std


def std_norm_backward(
    grad: Tensor, normed: Tensor, std: Tensor, scale: Tensor, needed: Sequence[bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """
    Backward pass of :func:`std_norm_forward`.

    :param needed: whether the gradients of scale and shift are wanted
    :return: gradients of input, scale and shift
    """
    product = grad * normed
    grad_scale = product.sum_to_size(scale.shape) if needed[0] else None
    grad_shift = grad.sum_to_size(scale.shape) if needed[1] else None
    width = normed.shape[-1]
    column = scale.transpose(-1, -2) if scale.dim() > 1 else scale[:, None]
    # d normed / d x: the mean's share, and the std's share, whose weight is (std + eps) / std / (n - 1)
    along = (product @ column) * ((std + NORM_EPSILON) / (std * (width - 1)))
    mean = (grad @ column) / width
    return (grad * scale).sub_(mean).addcmul_(normed, along, value=-1.0).div_(std + NORM_EPSILON), grad_scale, grad_shift


UNIT_FLOOR = 1e-8
"""Smallest divisor of the normalization of SALE."""


def unit_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """
    Forward pass of :class:`~sb3_erl.policies.layers.AvgL1Norm`.

    :return: value, and the mean absolute value of the input ``(..., 1)``
    """
    size = x.abs().mean(-1, keepdim=True)
    return x / size.clamp(min=UNIT_FLOOR), size


def unit_backward(grad: Tensor, y: Tensor, size: Tensor) -> Tensor:
    """
    Backward pass of :func:`unit_forward`.

    :param y: its value
    :param size: its other result
    """
    share = (grad * y).mean(-1, keepdim=True) * (size >= UNIT_FLOOR)
    return torch.addcmul(grad, y.sign(), share, value=-1).div_(size.clamp(min=UNIT_FLOOR))
