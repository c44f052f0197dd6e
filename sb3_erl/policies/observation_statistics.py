"""What happens to observations in front of networks: running mean and spread, kept in the policy, and one-hot vectors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from torch import Tensor, nn

from sb3_erl.core.checks import check_range
from sb3_erl.core.observations import combine


@dataclass(frozen=True)
class ObservationSums:
    """
    Sums over the observations of one episode, to be added to the statistics.

    :param count: number of observations
    :param total: their sum, float64, the shape of one observation
    :param squares: the sum of their squares, likewise
    """

    count: int
    total: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, observations: np.ndarray) -> ObservationSums:
        """
        :param observations: ``(T, *shape)``, those that the policy acted on: from the one of the reset to the one before the
            last step; rows with an entry that is not finite are left out, because they would make the sums NaN or infinite
        """
        rows = np.asarray(observations, dtype=np.float64)
        rows = rows[np.isfinite(rows).reshape(len(rows), -1).all(axis=1)]
        return cls(len(rows), rows.sum(axis=0), np.square(rows).sum(axis=0))


class ObservationStatistics(nn.Module):
    """
    Standardizes observations: ``clip((observation - mean) / std, -clip, clip)``.

    Salimans et al. (2017), https://arxiv.org/abs/1703.03864; authors' code: openai/evolution-strategies-starter,
    ``es_distributed/es.py: RunningStat`` and ``policies.py: MujocoPolicy``. Difference: the sums are float64 (the authors'
    float32 sums lose precision after some ten million observations).

    Statistics change in :meth:`merge` only, so they are constant within a generation if it is called once at its end.

    :param shape: of one observation
    :param clip: bound on the standardized observations, in standard deviations
    :param min_std: smallest standard deviation, in units of the observation
    :param prior_count: weight of the prior (mean 0, standard deviation 1), in observations
    :param unit: what observations are divided by on their way to :meth:`forward`; those of :meth:`merge` are not yet
    :raises ValueError: if a number is not positive
    """

    count: Tensor
    total: Tensor
    squares: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self, shape: tuple[int, ...], clip: float = 5.0, min_std: float = 0.1, prior_count: float = 1e-2, unit: float = 1.0
    ):
        super().__init__()
        for name, value in (("clip", clip), ("min_std", min_std), ("prior_count", prior_count), ("unit", unit)):
            check_range(name, value, 0, open_low=True)
        self.clip, self.min_std, self.unit = clip, min_std, unit
        self.register_buffer("count", torch.tensor(prior_count, dtype=torch.float64))
        self.register_buffer("total", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("squares", torch.full(shape, prior_count, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(shape), persistent=False)  # follow from the sums, hence not saved
        self.register_buffer("std", torch.ones(shape), persistent=False)

    @torch.no_grad()
    def merge(self, episodes: Mapping[int, ObservationSums]) -> None:
        """
        Add the sums of episodes in the order of their numbers, so that the result does not depend on which one finished first.

        :param episodes: sums by the episode's number in its generation
        :raises ValueError: if sums have the shape of other observations
        """
        for _, sums in sorted(episodes.items()):
            if sums.total.shape != tuple(self.total.shape):
                raise ValueError(
                    f"observations must have the shape that the model was made for, {tuple(self.total.shape)}; "
                    f"got {sums.total.shape}. Make a new model for an environment with other observations"
                )
            self.count += sums.count
            self.total += torch.as_tensor(sums.total / self.unit, device=self.total.device)
            self.squares += torch.as_tensor(sums.squares / self.unit**2, device=self.total.device)
        self._refresh()

    def forward(self, observations: Tensor) -> Tensor:
        """
        :param observations: ``(..., *shape)``
        :return: float32, the same shape, within ±clip
        """
        return ((observations - self.mean) / self.std).clamp(-self.clip, self.clip)

    @torch.no_grad()
    def _refresh(self) -> None:
        mean = self.total / self.count
        self.mean.copy_(mean)
        self.std.copy_((self.squares / self.count - mean.square()).clamp(min=self.min_std**2).sqrt())

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._refresh()


@contextmanager
def one_hot_before(*networks: nn.Module) -> Iterator[Callable[[Any], Any]]:
    """
    Inside, networks read observations that are prepared already, if some of them are numbers of choices.

    SB3's networks turn such numbers into one-hot vectors, which torch cannot do within ``vmap``.

    :param networks: networks of SB3's kind, or modules that hold such, all with the same observations
    :return: prepares observations ``(n, batch, *obs_shape)`` for these networks
    """
    models = [part for network in networks for part in network.modules() if isinstance(part, BaseModel)]
    space = models[0].observation_space if models else None
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    if not any(isinstance(part, spaces.Discrete | spaces.MultiDiscrete) for part in parts):
        yield lambda observations: observations
        return
    assert space is not None
    kept = [(model, model.observation_space, model.normalize_images) for model in models]
    normalizes = models[0].normalize_images

    def prepare(observations: Any) -> Any:
        rows = combine(lambda tensor: tensor.flatten(0, 1), observations)
        size = next(iter(observations.values())) if isinstance(observations, dict) else observations
        return combine(lambda tensor: tensor.unflatten(0, size.shape[:2]), preprocess_obs(rows, space, normalizes))

    for model in models:
        model.observation_space, model.normalize_images = _prepared_space(space), False
    try:
        yield prepare
    finally:
        for model, own_space, own_normalizes in kept:
            model.observation_space, model.normalize_images = own_space, own_normalizes


def wants_statistics(asked: bool, env: Any) -> bool:
    """
    Whether a policy standardizes observations itself: not where ``VecNormalize`` does it before, of which users are warned.

    :param asked: the argument ``normalize_obs``
    :param env: what the model is made with
    :return: ``asked``, or ``False``
    """
    normalizer = unwrap_vec_normalize(env) if isinstance(env, VecEnv) else None
    if not (asked and normalizer is not None and normalizer.norm_obs):
        return asked
    warnings.warn(
        "normalize_obs is off, because env is a VecNormalize that standardizes observations already. Pass normalize_obs=False "
        "to say so, or give VecNormalize norm_obs=False",
        UserWarning,
        stacklevel=2,
    )
    return False


def _prepared_space(space: spaces.Space) -> spaces.Space:
    """A space of which SB3 leaves observations as they are."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: _prepared_space(part) for key, part in space.spaces.items()})
    return spaces.Box(-np.inf, np.inf, (spaces.flatdim(space),), np.float32)
