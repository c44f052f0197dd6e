from __future__ import annotations

import pytest
import torch
from torch import nn

from sb3_erl.core.parameters import ParameterLayout, read_parameters, soft_update, write_parameters


def test_write_copies_and_never_shares_memory() -> None:
    module = nn.Linear(2, 3)
    vector = torch.arange(9.0)
    write_parameters(vector, module)
    assert torch.equal(read_parameters(module), vector)
    with torch.no_grad():
        module.weight.add_(1.0)
    assert torch.equal(vector, torch.arange(9.0))


def test_write_refuses_another_length() -> None:
    with pytest.raises(ValueError, match="9 parameters of Linear; got 8"):
        write_parameters(torch.zeros(8), nn.Linear(2, 3))


def test_layout_splits_in_order() -> None:
    layout = ParameterLayout.of(nn.Linear(2, 3))
    parts = layout.split(torch.arange(18.0).reshape(2, 9))
    assert parts["weight"].shape == (2, 3, 2) and parts["bias"][1].tolist() == [15.0, 16.0, 17.0]


def test_soft_update_moves_by_tau() -> None:
    source, target = torch.ones(3), torch.zeros(3)
    soft_update([source], [target], 0.25)
    assert torch.allclose(target, torch.full((3,), 0.25))
