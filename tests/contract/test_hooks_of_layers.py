"""Layers with hooks, such as spectral norms and masks, and layers that write into what they are given."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.nn.utils import prune

from sb3_erl import ALGOS
from sb3_erl.policies.sequential import MLP
from tests.contract.settings import make
from tests.envs import toy_vec_env


class Layers(BaseFeaturesExtractor):
    """Layers that a test gives."""

    def __init__(self, space: Any, make_layers: Any):
        super().__init__(space, 6)
        self.net = make_layers()

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.net(observations)


def with_layers(make_layers: Any) -> dict[str, Any]:
    return {"net_arch": [8], "features_extractor_class": Layers, "features_extractor_kwargs": {"make_layers": make_layers}}


def spectral() -> nn.Sequential:
    return nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 6)), nn.ReLU())


def weight_normed() -> nn.Sequential:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # there is a newer form, which is no hook
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 6)), nn.ReLU())


@pytest.mark.parametrize("layers", [spectral, weight_normed])
@pytest.mark.parametrize(("name", "more"), [("erl", {"learner": "sac"}), ("erl", {}), ("cem_rl", {})])
def test_hooks_of_layers_are_called(name: str, more: dict[str, Any], layers: Any) -> None:
    model = make(name, seed=1, policy_kwargs=with_layers(layers), **more)
    before = {key: value.clone() for key, value in model.policy.critic.named_parameters() if "net.0" in key}
    model.learn(300)
    after = dict(model.policy.critic.named_parameters())
    assert len(before) >= 2 and not any(th.equal(value, after[key]) for key, value in before.items())


def pruned() -> nn.Sequential:
    layer = nn.Linear(3, 6)
    prune.l1_unstructured(layer, "weight", 0.5)
    return nn.Sequential(layer, nn.ReLU())


@pytest.mark.parametrize("name", ["erl", "cem", "deep_ga"])
def test_a_mask_on_weights_is_kept_by_all_who_act(name: str, tmp_path: Path) -> None:
    more = {"learner": "sac"} if name == "erl" else {}
    model = make(name, seed=1, policy_kwargs=with_layers(pruned), **more)
    model.learn(300)
    observation = np.ones(3, np.float32)
    action = model.predict(observation, deterministic=True)[0]
    layer = next(module for module in model.policy.deployed.modules() if isinstance(module, Layers)).net[0]
    assert (layer.weight_mask == 0).sum() == 9 and (layer.weight[layer.weight_mask == 0] == 0).all()
    model.save(tmp_path / "model")
    again = ALGOS[name].load(tmp_path / "model", env=toy_vec_env())
    np.testing.assert_array_equal(again.predict(observation, deterministic=True)[0], action)


def test_hooks_and_layers_that_come_later_count() -> None:
    network = MLP(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = th.ones(5, 3)
    first = network(x)
    network[1] = nn.Tanh()
    assert not th.equal(network(x), first) and th.allclose(network(x), network[2](th.tanh(network[0](x))))
    handle = network[0].register_forward_hook(lambda module, inputs, output: output * 0)
    assert th.allclose(network(x), network[2].bias.expand(5, 2))
    handle.remove()
    assert not th.allclose(network(x), network[2].bias.expand(5, 2))


@pytest.mark.parametrize("learner", ["sac", "td3", "ddpg"])
def test_layers_that_write_into_what_they_are_given(learner: str) -> None:
    model = make(
        "erl", seed=1, learner=learner, policy_kwargs={"net_arch": [8], "activation_fn": partial(nn.SiLU, inplace=True)}
    )
    model.learn(300)
    assert model._n_updates > 0


def test_the_gradient_of_layers_whose_output_is_written_into() -> None:
    fused, plain = MLP(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    plain.load_state_dict(fused.state_dict())
    x = th.randn(5, 3)
    grads = [th.autograd.grad(th.relu_(net(x)).square().sum(), list(net.parameters())) for net in (fused, plain)]
    for mine, torchs in zip(*grads, strict=True):
        th.testing.assert_close(mine, torchs)
