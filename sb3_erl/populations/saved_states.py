"""Members as plain values in the data of an SB3 zip file, so that nothing of them is pickled there."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.running_mean_std import RunningMeanStd

from sb3_erl.core.array_text import array_to_text, text_to_array
from sb3_erl.populations.member import MemberState


def to_plain(state: MemberState) -> dict[str, Any]:
    """
    :param state: of a member
    :return: it without its replay buffer, as text and numbers
    """
    statistics = state.statistics
    return {
        "model": base64.b64encode(state.model).decode(),
        "hyperparameters": dict(state.hyperparameters),
        "statistics": None if statistics is None else {name: _plain(value) for name, value in statistics.items()},
    }


def from_plain(saved: Mapping[str, Any]) -> MemberState:
    """
    :param saved: from :func:`to_plain`
    :return: the member, without a replay buffer
    """
    statistics = saved["statistics"]
    found = None if statistics is None else {name: _moments(value) for name, value in statistics.items()}
    return MemberState(base64.b64decode(saved["model"]), dict(saved["hyperparameters"]), None, found)


def _plain(moments: Any) -> dict[str, Any]:
    """Running moments, or those of each part of a Dict observation."""
    if isinstance(moments, dict):
        return {"parts": {key: _plain(part) for key, part in moments.items()}}
    return {"mean": array_to_text(moments.mean), "var": array_to_text(moments.var), "count": float(moments.count)}


def _moments(plain: Mapping[str, Any]) -> Any:
    if "parts" in plain:
        return {key: _moments(part) for key, part in plain["parts"].items()}
    found = RunningMeanStd()
    found.mean, found.var, found.count = text_to_array(plain["mean"]), text_to_array(plain["var"]), plain["count"]
    return found
