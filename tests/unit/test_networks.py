from __future__ import annotations

import torch
from torch import nn

from sb3_erl.policies.layers import NORM_EPSILON, StackedLinear, StdNorm, Towers, _StdNormFunction


def test_std_norm_gradient_is_the_derivative() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, dtype=torch.double, requires_grad=True)
    scale = torch.randn(2, 1, 5, dtype=torch.double, requires_grad=True)
    shift = torch.randn(2, 1, 5, dtype=torch.double, requires_grad=True)
    function = lambda *args: _StdNormFunction.apply(*args)[0]  # noqa: E731
    assert torch.autograd.gradcheck(function, (x, scale, shift), check_undefined_grad=False)


def test_std_norm_divides_by_n_minus_1_and_adds_epsilon_outside() -> None:
    x = torch.tensor([[1e-6, 3e-6, 2e-6]])
    expected = (x - x.mean()) / (x.std(correction=1) + NORM_EPSILON)
    assert torch.allclose(StdNorm(3)(x), expected)
    assert not torch.allclose(StdNorm(3)(x), nn.functional.layer_norm(x, (3,)))


def test_towers_are_independent_and_context_is_a_common_input() -> None:
    torch.manual_seed(0)
    towers = Towers(2, 3, [8, 8], n_context=4)
    x, context = torch.randn(5, 3), torch.randn(2, 1, 4)
    both = towers(x, context)
    assert both.shape == (2, 5, 1)
    assert torch.allclose(towers(x, context[:1], n_towers=1), both[:1], atol=1e-6)
    first = towers.hidden[0]
    assert isinstance(first, StackedLinear) and first.context_weight is not None
    joined = torch.cat([x.expand(2, 5, 3), context.expand(2, 5, 4)], dim=-1)
    weight = torch.cat([first.weight, first.context_weight], dim=1)
    assert torch.allclose(first(x, context), joined @ weight + first.bias, atol=1e-6)
    gradient = torch.autograd.grad(both[0].sum(), first.weight)[0]
    assert gradient[0].abs().sum() > 0 and gradient[1].abs().sum() == 0


def test_stacked_linear_starts_like_torch_linear() -> None:
    torch.manual_seed(0)
    layer = StackedLinear(3, 16, 2000)
    bound = 1 / 4
    assert layer.weight.abs().max() <= bound and layer.weight.abs().max() > 0.99 * bound
    assert layer.bias.abs().max() <= bound and layer.bias.std() > 0.5 * bound
