"""Q-networks for discrete actions: SB3's DQN policy with the network that acts for the user."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork

from sb3_erl.policies.erl import DeployedMixin, fused_adam


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


class QNetworkCnnPolicy(QNetworkPolicy):
    """:class:`QNetworkPolicy` behind SB3's ``NatureCNN``."""

    def __init__(self, *args: Any, features_extractor_class: type[BaseFeaturesExtractor] = NatureCNN, **kwargs: Any):
        kwargs["features_extractor_class"] = features_extractor_class
        super().__init__(*args, **kwargs)
