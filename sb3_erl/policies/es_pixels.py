"""Networks of evolution strategies and Deep GA for images, with or without virtual batch normalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch as th
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from sb3_erl.core.checks import UnsupportedSpaceError, check_choice, check_range
from sb3_erl.policies.erl import ERLActor
from sb3_erl.policies.es import ESActor, ESLinearPolicy, ESMultiInputPolicy, ESPolicy, drawn_layers

Convolution = tuple[int, int, int]
"""Filters, size of the kernel, stride."""

NETWORKS: dict[str, tuple[tuple[Convolution, ...], int]] = {
    "small": (((16, 8, 4), (32, 4, 2)), 256),
    "large": (((32, 8, 4), (64, 4, 2), (64, 3, 1)), 512),
}
"""Convolutions and the width of the layer after them."""


class SameConv2d(nn.Conv2d):
    """
    A convolution whose output has ``ceil(size / stride)`` rows and columns: TensorFlow's padding "same", with zeros.

    Where the padding is odd, the greater half lies below and to the right.

    >>> SameConv2d(1, 1, 4, stride=2)(th.zeros(1, 1, 21, 20)).shape
    torch.Size([1, 1, 11, 10])
    """

    def forward(self, x: Tensor) -> Tensor:
        """:return: ``(batch, filters, ceil(height / stride), ceil(width / stride))``"""
        sizes = zip(x.shape[-2:], self.kernel_size, self.stride, strict=True)
        high, wide = (max((-(-size // stride) - 1) * stride + kernel - size, 0) for size, kernel, stride in sizes)
        if high % 2 or wide % 2:
            x = F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
            high = wide = 0
        return F.conv2d(x, self.weight, self.bias, self.stride, (high // 2, wide // 2))


class VirtualBatchNorm(nn.Module):
    """
    ``(x - mean) / sqrt(variance + 1e-3) * scale + shift`` with the moments of a fixed reference batch.

    Salimans et al. (2016), https://arxiv.org/abs/1606.03498, in the form of the Atari networks of Salimans et al. (2017);
    code: uber-research/deep-neuroevolution, ``es_distributed/policies.py: ESAtariPolicy``. The moments belong to the
    parameters of the layers before this one: after these change, the reference batch must pass through the network again
    while :attr:`measuring` is set. Before the first time the mean is 0 and the variance 1.

    :param size: number of features, which are axis 1 of the input
    """

    epsilon: ClassVar[float] = 1e-3
    mean: Tensor
    variance: Tensor

    def __init__(self, size: int):
        super().__init__()
        self.scale = nn.Parameter(th.ones(size))
        self.shift = nn.Parameter(th.zeros(size))
        self.register_buffer("mean", th.zeros(size))
        self.register_buffer("variance", th.ones(size))
        self.measuring = False
        """Whether inputs are the reference batch, whose moments are kept."""

    def forward(self, x: Tensor) -> Tensor:
        """
        :param x: ``(batch, size, ...)``
        :return: same shape as ``x``
        """
        if self.measuring:
            axes = [axis for axis in range(x.dim()) if axis != 1]
            variance, mean = th.var_mean(x, axes, correction=0)
            self.mean.copy_(mean)
            self.variance.copy_(variance)
        return F.batch_norm(x, self.mean, self.variance, self.scale, self.shift, False, 0.0, self.epsilon)


class PixelExtractor(BaseFeaturesExtractor):
    """
    ``[convolution, norm, relu] * n, flatten, linear, norm, relu`` with padding "same".

    :param observation_space: images with channels first, as SB3 hands them to extractors
    :param convolutions: (filters, kernel, stride) of each
    :param features_dim: width of the linear layer
    :param virtual_batch_norm: whether there are norms
    :raises ValueError: if observations are no images
    """

    def __init__(
        self,
        observation_space: spaces.Box,
        convolutions: Sequence[Convolution] = NETWORKS["large"][0],
        features_dim: int = NETWORKS["large"][1],
        virtual_batch_norm: bool = False,
    ):
        super().__init__(observation_space, features_dim)
        shape = observation_space.shape
        if len(shape) != 3:
            raise ValueError(
                f"CnnPolicy needs images as observations, with the shape (height, width, channels); got {observation_space}. "
                "Use MlpPolicy, or wrap the environment (for Atari: sb3_erl.envs.atari.make_atari)"
            )
        channels, high, wide = shape
        layers: list[nn.Module] = []
        for filters, kernel, stride in convolutions:
            layers += [SameConv2d(channels, filters, kernel, stride), *_norm(filters, virtual_batch_norm), nn.ReLU()]
            channels, high, wide = filters, -(-high // stride), -(-wide // stride)
        dense = nn.Linear(channels * high * wide, features_dim)
        self.layers = nn.Sequential(*layers, nn.Flatten(), dense, *_norm(features_dim, virtual_batch_norm), nn.ReLU())

    @property
    def norms(self) -> list[VirtualBatchNorm]:
        """From input to output; empty without virtual batch normalization."""
        return [layer for layer in self.layers if isinstance(layer, VirtualBatchNorm)]

    def forward(self, observations: Tensor) -> Tensor:
        """:return: ``(batch, features_dim)``"""
        return self.layers(observations)


def _norm(size: int, wanted: bool) -> list[nn.Module]:
    return [VirtualBatchNorm(size)] if wanted else []


class PixelActor(ESActor):
    """
    :class:`~sb3_erl.policies.es.ESActor` on images, which may normalize by a reference batch of them.

    Weights begin as Glorot's uniform numbers, biases as 0 (the authors' library has these defaults).

    :param n_reference: images in the reference batch, at least 2
    """

    reference: Tensor
    reference_count: Tensor

    def __init__(self, *args: Any, n_reference: int = 128, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.n_reference = n_reference
        for layer in drawn_layers(self):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        if self.norms:
            space = self.observation_space
            images = th.as_tensor(space.sample()).new_zeros((n_reference, *space.shape))  # type: ignore[misc]
            self.register_buffer("reference", images)
            self.register_buffer("reference_count", th.zeros(()))

    @property
    def norms(self) -> list[VirtualBatchNorm]:
        """Layers that normalize by the reference batch, from input to output."""
        extractor = self.features_extractor
        return extractor.norms if isinstance(extractor, PixelExtractor) else []

    @property
    def needs_reference(self) -> bool:
        """Whether the network normalizes by a reference batch that is not set yet."""
        return bool(self.norms) and not bool(self.reference_count)

    def set_reference(self, images: Tensor) -> None:
        """
        :param images: ``(n_reference, *obs_shape)`` as the environment gives them, unscaled
        :raises ValueError: if there are more or fewer images, or others, or the network does not normalize by any
        """
        if not self.norms:
            raise ValueError("this network has no virtual batch normalization; make it with virtual_batch_norm=True")
        if images.shape != self.reference.shape:
            raise ValueError(f"images must have the shape {tuple(self.reference.shape)}; got {tuple(images.shape)}")
        self.reference.copy_(images)
        self.reference_count.fill_(len(images))
        self.parameters_changed()

    @th.no_grad()
    def parameters_changed(self) -> None:
        """Compute the moments of the reference batch again; must be called after parameters were written."""
        if not self.norms or self.needs_reference:
            return
        for norm in self.norms:
            norm.measuring = True
        try:
            self.extract_features(self.reference, self.features_extractor)
        finally:
            for norm in self.norms:
                norm.measuring = False

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "n_reference": self.n_reference}


class ESPixelPolicy(ESPolicy):
    """
    The Atari policy of OpenAI-ES: 16 and 32 filters, 256 units, virtual batch normalization (1,009,058 parameters with 18
    actions and four 84x84 frames).

    Salimans et al. (2017), https://arxiv.org/abs/1703.03864; code: uber-research/deep-neuroevolution,
    ``es_distributed/policies.py: ESAtariPolicy``. The reference batch is collected by random actions before the first
    generation and saved with the policy; before that, nothing is normalized. Other features extractors of SB3 can be used
    as well (``features_extractor_class``); the first two parameters then have no effect.

    :param network: ``"small"`` as above, or ``"large"``: 32, 64 and 64 filters, 512 units
    :param virtual_batch_norm: normalize after each hidden layer by the moments of the reference batch
    :param n_reference: images in the reference batch
    :raises ValueError: if ``network`` is unknown, a number out of range, observations are no images, or
        ``virtual_batch_norm`` is wanted of another features extractor
    """

    actor_class: ClassVar[type[ERLActor]] = PixelActor
    default_net_arch: ClassVar[tuple[int, ...]] = ()
    default_network: ClassVar[Literal["small", "large"]] = "small"
    default_norm: ClassVar[bool] = True

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *args: Any,
        network: Literal["small", "large"] | None = None,
        virtual_batch_norm: bool | None = None,
        n_reference: int = 128,
        features_extractor_class: type[BaseFeaturesExtractor] = PixelExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        self.network = self.default_network if network is None else network
        check_choice("policy_kwargs: network", self.network, NETWORKS)
        check_range("policy_kwargs: n_reference", n_reference, 2, integer=True)
        self.n_reference = n_reference
        own: dict[str, Any] = {}
        if issubclass(features_extractor_class, PixelExtractor):
            convolutions, width = NETWORKS[self.network]
            norm = self.default_norm if virtual_batch_norm is None else virtual_batch_norm
            own = {"convolutions": convolutions, "features_dim": width, "virtual_batch_norm": norm}
        elif virtual_batch_norm:
            raise ValueError(
                "policy_kwargs: virtual_batch_norm=True needs features_extractor_class=PixelExtractor or a class derived from "
                f"it; got {features_extractor_class.__name__}"
            )
        if kwargs.get("normalize_images", True) and not is_image_space(observation_space, check_channels=False):
            raise UnsupportedSpaceError(
                "CnnPolicy needs images as observations, a Box of uint8 from 0 to 255 with three dimensions; got "
                f"{observation_space}. Use MlpPolicy, or, for images that are scaled already, "
                "policy_kwargs={'normalize_images': False}"
            )
        kwargs["features_extractor_kwargs"] = {**own, **(features_extractor_kwargs or {})}
        kwargs["features_extractor_class"] = features_extractor_class
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)

    def _actor_arguments(self) -> dict[str, Any]:
        return {**super()._actor_arguments(), "n_reference": self.n_reference}

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = {"network": self.network, "n_reference": self.n_reference}  # the extractor's arguments say the rest
        return {**super()._get_constructor_parameters(), **own}


class GAPixelPolicy(ESPixelPolicy):
    """
    The Atari policy of Deep GA: 32, 64 and 64 filters, 512 units, no normalization (4,052,658 parameters with 18 actions and
    four 84x84 frames).

    Such et al. (2017), https://arxiv.org/abs/1712.06567; code: uber-research/deep-neuroevolution, ``gpu_implementation``.
    Parameters are those of :class:`ESPixelPolicy`, with other defaults.
    """

    default_network: ClassVar[Literal["small", "large"]] = "large"
    default_norm: ClassVar[bool] = False


ES_POLICIES: dict[str, type[BasePolicy]] = {
    "MlpPolicy": ESPolicy,
    "LinearPolicy": ESLinearPolicy,
    "CnnPolicy": ESPixelPolicy,
    "MultiInputPolicy": ESMultiInputPolicy,
}
"""Networks of evolution strategies, by alias."""
GA_POLICIES: dict[str, type[BasePolicy]] = {**ES_POLICIES, "CnnPolicy": GAPixelPolicy}
"""Networks of Deep GA, by alias."""
