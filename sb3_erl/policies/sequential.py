"""Sequences of layers, run as one perceptron where they are of known kinds, and the layers that choose actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim
from torch import Tensor, cat, nn

from sb3_erl.policies.fused_mlp import Activation, Layer, activation_of, can_fuse, has_hooks, perceptron
from sb3_erl.policies.layers import AvgL1Norm, BestAction, StdNorm, in_full_precision, use_plain_norms


class MLP(nn.Sequential):
    """``nn.Sequential`` that computes its linear layers, with norms and activations between them, in one go where it can."""

    def forward(self, x: Tensor) -> Tensor:
        """:return: what ``nn.Sequential`` returns"""
        return run_sequential(self, x)


def fuse_sequentials(network: nn.Module) -> None:
    """Let each plain ``nn.Sequential`` in a network of another library (SB3's actors and critics) run as :class:`MLP`."""
    for module in network.modules():
        if type(module) is nn.Sequential:
            module.__class__ = MLP


def run_sequential(network: nn.Sequential, x: Tensor) -> Tensor:
    """
    :param network: any sequence; as many of its first modules as are known run as a perceptron
    :param x: ``(batch, in_features)``
    :return: the output of the network, ``(batch, out_features)``
    """
    layers, others = leading_layers(network) if x.dim() == 2 and can_fuse(x) else ([], tuple(network))
    if layers:
        x = perceptron(layers, x)
    for module in others:
        gives_value = isinstance(module, nn.Linear) and module.out_features == 1
        x = in_full_precision(module, x) if gives_value else module(x)
    return x


class _Plan(NamedTuple):
    """Modules that make up one layer of a perceptron."""

    linear: nn.Linear
    norm: StdNorm | None = None
    unit: bool = False
    activation: Activation | None = None


class _Planned(NamedTuple):
    """
    :param modules: of the sequence when this was planned
    :param steps: layers of a perceptron that its first modules make up
    :param others: the other modules
    """

    modules: tuple[nn.Module, ...]
    steps: list[_Plan]
    others: tuple[nn.Module, ...]


_plans: WeakKeyDictionary[nn.Sequential, _Planned] = WeakKeyDictionary()


def leading_layers(network: nn.Sequential) -> tuple[list[Layer], tuple[nn.Module, ...]]:
    """
    :param network: any sequence
    :return: the layers of a perceptron that its first modules make up, and the other modules
    """
    modules, planned = tuple(network), _plans.get(network)
    if planned is None or planned.modules != modules:
        planned = _plans[network] = _Planned(modules, *_plan(modules))
    _, steps, others = planned
    if any(map(has_hooks, modules)) or (use_plain_norms.get() and any(step.norm is not None for step in steps)):
        return [], modules
    norms = [() if step.norm is None else step.norm.parts() for step in steps]
    parts = zip(steps, norms, strict=True)
    return [Layer((a.linear.weight,), a.linear.bias, norm, a.unit, a.activation) for a, norm in parts], others


def _plan(modules: tuple[nn.Module, ...]) -> tuple[list[_Plan], tuple[nn.Module, ...]]:
    steps: list[_Plan] = []
    for index, module in enumerate(modules):
        last = steps[-1] if steps else None
        if type(module) is nn.Linear and module.bias is not None:
            steps.append(_Plan(module))
            continue
        if last is None or last.activation is not None or last.unit:
            return steps, modules[index:]
        if type(module) is StdNorm and last.norm is None:
            steps[-1] = last._replace(norm=module)
        elif type(module) is AvgL1Norm and last.norm is None:
            steps[-1] = last._replace(unit=True)
        elif (activation := activation_of(module)) is not None:
            steps[-1] = last._replace(activation=activation)
        else:
            return steps, modules[index:]
    return steps, ()


def mlp(
    in_features: int,
    net_arch: Sequence[int],
    activation_fn: type[nn.Module],
    norm_class: type[StdNorm] | None = StdNorm,
    norm_last: bool = False,
) -> MLP:
    """
    :param in_features: size of the input
    :param net_arch: widths of the layers; empty for the identity
    :param activation_fn: activation after each layer
    :param norm_class: put one before each activation, ``None`` for none
    :param norm_last: put the norms after the activations
    :return: ``[linear, norm, activation] * len(net_arch)``
    """
    layers: list[nn.Module] = []
    for width in net_arch:
        steps: list[nn.Module] = [] if norm_class is None else [norm_class(width)]
        steps.insert(0 if norm_last else 1, activation_fn())
        layers += [nn.Linear(in_features, width), *steps]
        in_features = width
    return MLP(*layers)


class BestActions(nn.Module):
    """
    Scores to the numbers of the choices with the highest ones, ``(batch, len(sizes))``; the first of equals.

    :param sizes: how many choices there are each time, of a ``MultiDiscrete`` space
    """

    def __init__(self, sizes: Sequence[int]):
        super().__init__()
        self.sizes = tuple(int(size) for size in sizes)

    def forward(self, scores: Tensor) -> Tensor:
        return cat([part.argmax(dim=-1, keepdim=True) for part in scores.split(self.sizes, dim=-1)], dim=-1).to(scores.dtype)


class Bits(nn.Module):
    """Scores to bits: 1 where a score is positive, of a ``MultiBinary`` space."""

    def forward(self, scores: Tensor) -> Tensor:
        return (scores > 0).to(scores.dtype)


def choice_of(action_space: spaces.Space) -> tuple[int, list[nn.Module]]:
    """
    :param action_space: of the environment
    :return: number of outputs that a network has, and the layer that makes an action of them; none for a box
    """
    if isinstance(action_space, spaces.Discrete):
        return int(action_space.n), [BestAction()]
    if isinstance(action_space, spaces.MultiDiscrete):
        sizes = action_space.nvec.ravel().tolist()
        return sum(sizes), [BestActions(sizes)]
    return get_action_dim(action_space), [Bits()] if isinstance(action_space, spaces.MultiBinary) else []
