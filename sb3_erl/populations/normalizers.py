"""Statistics of ``VecNormalize``, of which each member has its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

STATISTICS = ("obs_rms", "ret_rms")
"""What a ``VecNormalize`` has learned."""


def read_statistics(normalizer: VecNormalize) -> dict[str, Any]:
    """:return: a copy of what it has learned"""
    return {name: copy.deepcopy(getattr(normalizer, name)) for name in STATISTICS if hasattr(normalizer, name)}


def write_statistics(env: VecEnv | None, statistics: Mapping[str, Any] | None) -> None:
    """
    :param env: perhaps with a ``VecNormalize``
    :param statistics: from :func:`read_statistics`
    """
    normalizer = None if env is None else unwrap_vec_normalize(env)
    if normalizer is not None and statistics is not None:
        for name, value in statistics.items():
            setattr(normalizer, name, copy.deepcopy(value))


@contextmanager
def statistics_kept(env: VecEnv) -> Iterator[None]:
    """The ``VecNormalize`` of an environment has after the block what it had before, and learns as it did before."""
    normalizer = unwrap_vec_normalize(env)
    before = None if normalizer is None else (read_statistics(normalizer), normalizer.training)
    try:
        yield
    finally:
        if normalizer is not None and before is not None:
            write_statistics(env, before[0])
            normalizer.training = before[1]
