"""Q-networks for discrete actions: SB3's DQN policy with the network that acts for the user."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import nn

from sb3_erl.policies.erl import DeployedMixin, fused_adam
from sb3_erl.policies.layers import ReadsDicts, ReadsImages


class QNetworkPolicy(DeployedMixin, DQNPolicy):
    """
    SB3's DQN policy with one more Q-network, ``deployed``, whose greedy action ``predict`` returns.

    Its parameters are those of SB3's ``DQNPolicy``.
    """

    deployed: QNetwork

    def _build(self, lr_schedule: Schedule) -> None:
        self.optimizer_kwargs = fused_adam(self.optimizer_class, self.optimizer_kwargs)
        super()._build(lr_schedule)

    @property
    def actor(self) -> QNetwork:
        """The Q-network that gradients train."""
        return self.q_net

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> QNetwork:
        """A fresh Q-network of the shape of ``q_net``."""
        return self.make_q_net()


class QNetworkCnnPolicy(ReadsImages, QNetworkPolicy):
    """:class:`QNetworkPolicy` behind SB3's ``NatureCNN``."""


class QNetworkMultiInputPolicy(ReadsDicts, QNetworkPolicy):
    """:class:`QNetworkPolicy` behind SB3's ``CombinedExtractor``."""


class GridCNN(BaseFeaturesExtractor):
    """
    One 3x3 convolution for the small grids of MinAtar; with ``net_arch=[128]`` behind it the network of VEB-RL's authors.

    Young & Tian (2019), https://arxiv.org/abs/1903.03176; yeshenpy/VEB-RL, ``agents/dqn.py: QNetwork``. MinAtar gives grids
    with channels last, which SB3 does not take for images; they are moved to the front here.

    :param observation_space: of grids ``(height, width, channels)``, height and width at least 3
    :param n_maps: feature maps, at least 1
    :param channels_last: whether channels are the last axis; ``False`` for ``(channels, height, width)``
    :raises ValueError: if an observation is no such grid
    """

    def __init__(self, observation_space: spaces.Space, n_maps: int = 16, channels_last: bool = True):
        shape = observation_space.shape or ()
        channels, height, width = (shape[2], *shape[:2]) if channels_last and len(shape) == 3 else (*shape, 0, 0, 0)[:3]
        if len(shape) != 3 or min(height, width) < 3:
            raise ValueError(
                f"observation_space must have three axes, of which height and width are at least 3; got {observation_space}. "
                "Use 'MlpPolicy'"
            )
        super().__init__(observation_space, n_maps * (height - 2) * (width - 2))
        self.channels_last = channels_last
        self.layers = nn.Sequential(nn.Conv2d(channels, n_maps, kernel_size=3), nn.ReLU(), nn.Flatten())

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """
        :param observations: ``(batch, height, width, channels)`` floats
        :return: ``(batch, n_maps * (height - 2) * (width - 2))``
        """
        return self.layers(observations.permute(0, 3, 1, 2) if self.channels_last else observations)


class QNetworkAutoPolicy(QNetworkPolicy):
    """
    :class:`QNetworkPolicy` with the features extractor that fits the observations, unless ``policy_kwargs`` names one.

    Images (uint8, at least 36 pixels wide) go through SB3's ``NatureCNN``, smaller grids with three axes through
    :class:`GridCNN` and one hidden layer of 128 units, Dict observations through SB3's ``CombinedExtractor``; everything else
    is flattened.
    """

    def __init__(self, observation_space: spaces.Space, *args: Any, **kwargs: Any):
        if kwargs.get("features_extractor_class") is None:
            kwargs["features_extractor_class"] = fitting_extractor(observation_space)
            if kwargs["features_extractor_class"] is GridCNN and kwargs.get("net_arch") is None:
                kwargs["net_arch"] = [128]
        super().__init__(observation_space, *args, **kwargs)


def fitting_extractor(observation_space: spaces.Space) -> type[BaseFeaturesExtractor]:
    """
    :param observation_space: of the environment
    :return: class of the features extractor, see :class:`QNetworkAutoPolicy`
    """
    if isinstance(observation_space, spaces.Dict):
        return CombinedExtractor
    if is_image_space(observation_space) and sorted(observation_space.shape or ())[1] >= 36:
        return NatureCNN
    return GridCNN if len(observation_space.shape or ()) == 3 else FlattenExtractor
