"""Hand-written gradients of perceptrons."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sb3_erl.compiled.gradients import frozen
from sb3_erl.policies import fused_mlp as module
from sb3_erl.policies.fused_mlp import ELU, LEAKY_RELU, RELU, TANH, Layer, can_fuse, perceptron
from sb3_erl.policies.layers import AvgL1Norm, StdNorm, Towers
from sb3_erl.policies.sequential import MLP


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def gradients_are_right(layers: list[Layer], *inputs: Tensor) -> bool:
    """Compare with differences of the function's own values, with respect to inputs and parameters."""
    tensors = [tensor for layer in layers for tensor in (*layer.weights, layer.bias, *layer.norm)]
    return torch.autograd.gradcheck(lambda *given: perceptron(layers, *given[: len(inputs)]), (*inputs, *tensors))


@pytest.mark.parametrize("activation", [ELU, LEAKY_RELU, RELU, TANH])
def test_activations(activation: Any) -> None:
    torch.manual_seed(0)
    assert gradients_are_right(
        [Layer((rand(4, 3),), rand(4), activation=activation), Layer((rand(2, 4),), rand(2))], rand(5, 3)
    )


@pytest.mark.parametrize("unit", [False, True])
def test_several_inputs_and_norms(unit: bool) -> None:
    torch.manual_seed(0)
    first = Layer((rand(4, 3),), rand(4), (rand(4), rand(4)) if not unit else (), unit=unit)
    second = Layer((rand(3, 4 + 2),), rand(3), activation=TANH, n_more=1)
    assert gradients_are_right([first, second, Layer((rand(1, 3),), rand(1))], rand(5, 3), rand(5, 2))


@pytest.mark.parametrize("is_shared", [False, True])
def test_towers(is_shared: bool) -> None:
    torch.manual_seed(0)
    first = Layer((rand(2, 3, 4),), rand(2, 1, 4), unit=True)
    second = Layer((rand(2, 4, 3), rand(2, 2, 3)), rand(2, 1, 3), (rand(2, 1, 3), rand(2, 1, 3)), activation=ELU, n_more=1)
    x = rand(5, 3) if is_shared else rand(2, 5, 3)
    assert gradients_are_right([first, second, Layer((rand(2, 3, 1),), rand(2, 1, 1))], x, rand(5, 2))


def test_modules_run_as_perceptrons(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    plain = module._forward
    monkeypatch.setattr(module, "_forward", lambda layer, inputs: (calls.append(1), plain(layer, inputs))[1])  # type: ignore[func-returns-value]
    network = MLP(nn.Linear(3, 4), StdNorm(4), nn.Tanh(), nn.Linear(4, 4), AvgL1Norm(), nn.Softplus(), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    fused = network(x)
    assert len(calls) == 2, "Softplus is not known: it and what follows run as they are"
    assert torch.allclose(fused, nn.Sequential(*network)(x), atol=1e-6)
    Towers(2, 3, [8, 8])(x)
    assert len(calls) == 2 + 3


def test_transforms_see_the_modules() -> None:
    network, x = MLP(nn.Linear(3, 4), nn.ReLU()), torch.randn(6, 5, 3)
    seen: list[bool] = []

    def run(row: Tensor) -> Tensor:
        seen.append(can_fuse(row))
        return network(row)

    assert torch.allclose(torch.vmap(run)(x), network(x.reshape(30, 3)).reshape(6, 5, 4), atol=1e-6)
    assert seen == [False] and can_fuse(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_fuse(x)


def test_frozen_networks_compute_no_gradients_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    plain = module._weight_grads
    monkeypatch.setattr(module, "_weight_grads", lambda *args: (computed.append(1), plain(*args))[1])  # type: ignore[func-returns-value]
    actor, critic, x = MLP(nn.Linear(3, 4), nn.Tanh()), Towers(2, 4, [8]), torch.randn(5, 3)
    parameters = list(critic.parameters())
    with frozen(parameters):
        loss = critic(actor(x)).mean()
    torch.autograd.grad(loss, list(actor.parameters()))
    assert len(computed) == 1, "the actor's layer only"
    assert all(parameter.requires_grad for parameter in parameters)
