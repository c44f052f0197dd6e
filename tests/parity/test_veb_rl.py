"""Q-networks, their update and their temporal-difference errors against numbers from VEB-RL's authors' code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import ConstantSchedule
from torch import Tensor, nn

from sb3_erl.learners.dqn import DQNLearner, DQNSettings
from sb3_erl.policies.q_network import QNetworkPolicy
from tests.parity.cases import Case, dispatch, snapshot

SYSTEM = "veb_rl"


class ChannelFirst(nn.Module):
    """MinAtar's images are channel last."""

    def forward(self, images: Tensor) -> Tensor:
        return images.permute(0, 3, 1, 2)


class Flat(BaseFeaturesExtractor):
    """The image as a vector, channel first."""

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space, features_dim=int(np.prod(observation_space.shape)))
        self.layers = nn.Sequential(ChannelFirst(), nn.Flatten())

    def forward(self, observations: Tensor) -> Tensor:
        return self.layers(observations)


class SmallCNN(BaseFeaturesExtractor):
    """One convolution, as in ``agents/dqn.py: QNetwork``."""

    def __init__(self, observation_space: spaces.Box, maps: int):
        height, width, channels = observation_space.shape
        super().__init__(observation_space, features_dim=maps * (height - 2) * (width - 2))
        self.layers = nn.Sequential(ChannelFirst(), nn.Conv2d(channels, maps, 3), nn.ReLU(), nn.Flatten())

    def forward(self, observations: Tensor) -> Tensor:
        return self.layers(observations)


def policy_of(channels: int, n_actions: int, net_arch: list[int], maps: int | None = None, lr: float = 1e-3) -> QNetworkPolicy:
    extractor: dict[str, Any] = {"features_extractor_class": Flat}
    if maps is not None:
        extractor = {"features_extractor_class": SmallCNN, "features_extractor_kwargs": {"maps": maps}}
    space = spaces.Box(0, 1, (10, 10, channels), np.float32)
    return QNetworkPolicy(space, spaces.Discrete(n_actions), ConstantSchedule(lr), net_arch=net_arch, **extractor)


def names(network: Any) -> dict[str, Tensor]:
    """Tensors under the names of the reference; views, so they can be written."""
    conv, hidden, output = network.features_extractor.layers[1], network.q_net[0], network.q_net[2]
    layers = {"conv": conv, "fc_hidden": hidden, "output": output}
    return {f"{name}.{part}": getattr(layer, part) for name, layer in layers.items() for part in ("weight", "bias")}


@torch.no_grad()
def load(network: Any, tensors: dict[str, Tensor]) -> None:
    places = names(network)
    assert set(places) == set(tensors)
    for name, place in places.items():
        place.copy_(tensors[name])


def batch_of(case: Case, rows: Any = slice(None)) -> ReplayBufferSamples:
    state, action, reward, following, done = (
        case.tensor(name)[rows] for name in ("state", "action", "reward", "next_state", "is_terminal")
    )
    column = lambda x: x.float()[:, None]  # noqa: E731
    return ReplayBufferSamples(state.float(), action.long()[:, None], following.float(), column(done), column(reward))


def check_update(case: Case) -> None:
    c, start = case["config"], case.under("init/")
    policy = policy_of(c["channels"], c["actions"], [len(start["fc_hidden.bias"])], len(start["conv.bias"]), c["lr"])
    for network in (policy.q_net, policy.q_net_target):
        load(network, start)
    learner = DQNLearner(policy, DQNSettings(gamma=c["gamma"], target_update_interval=c["target_copy_every"]))
    assert learner.settings.loss == "mse" and learner.settings.max_grad_norm is None
    for step, expected in enumerate(case.array("loss")):
        case.close(learner.update(lambda step=step: batch_of(case, step), 1)["loss"], expected)  # type: ignore[misc]
    case.network_close(snapshot(names(policy.q_net)), case.under("final/"), start)
    case.network_close(snapshot(names(policy.q_net_target)), case.under("final_target/"), start)


def check_network(case: Case) -> None:
    c, weights = case["config"], {name: tensor.float() for name, tensor in case.under("net.").items()}
    policy = policy_of(c["channels"], c["actions"], [len(weights["fc_hidden.bias"])], len(weights["conv.bias"]))
    assert sum(p.numel() for p in policy.make_actor().parameters()) == c["parameters"]
    load(policy.q_net, weights)
    policy.deploy(policy.actor)
    states = case.array("state").astype(np.float32)
    with torch.no_grad():
        case.close(policy.q_net(torch.as_tensor(states)), case.array("q"))
    np.testing.assert_array_equal(policy.predict(states, deterministic=True)[0], case.array("greedy"))


def check_fitness(case: Case) -> None:
    c = case["config"]
    policy = policy_of(c["channels"], c["actions"], [])
    learner, batch = DQNLearner(policy, DQNSettings(gamma=c["gamma"])), batch_of(case)
    network, target = policy.make_actor(), policy.make_actor()
    fitness = []
    for individual in range(c["pop_size"]):
        for q_net, name in ((network, "Q_net"), (target, "Q_target")):
            layer: Any = q_net.q_net[0]
            for part in ("weight", "bias"):
                getattr(layer, part).data = case.tensor(f"{name}_{part}")[individual].float()
        fitness.append(-learner.td_errors(batch, network, target).square().mean().item())
    case.close(fitness, case.array("fitness"))
    assert np.argsort(fitness)[::-1].tolist() == case.array("rank").tolist()


CHECKS = {
    "dqn_update": check_update,
    "q_network": check_network,
    "td_fitness_small": check_fitness,
    "td_fitness_breakout_like": check_fitness,
}


def test_case(case: Case) -> None:
    if case.name.startswith(("epoch", "ga_", "loop")):
        pytest.skip("concerns the population, not the learner")
    dispatch(case, case["case"], CHECKS)
