"""A warning of observations whose normalization moves."""

from __future__ import annotations

from stable_baselines3.common.vec_env import VecNormalize

from sb3_erl.core.checks import warn_caller


def warn_of_moving_statistics(normalizer: VecNormalize | None) -> None:
    """
    Warn that individuals will act otherwise than when they were evaluated; it points to the line that called ``learn``.

    :param normalizer: around the environments of an algorithm that keeps individuals over generations, ``None`` for none
    """
    if normalizer is None or not (normalizer.training and normalizer.norm_obs):
        return
    warn_caller(
        "env has a VecNormalize(norm_obs=True) that is still learning: with its statistics the meaning of genomes changes. "
        "Load statistics and set training=False, or give norm_obs=False"
    )
