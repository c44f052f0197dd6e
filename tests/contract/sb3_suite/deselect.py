"""Which of SB3's tests contradict a class, and why."""

from __future__ import annotations

COMMON: dict[str, str] = {}
BY_CLASS: dict[str, dict[str, str]] = {}


def deselected(name: str) -> dict[str, str]:
    """
    :param name: key in ALGOS
    :return: reason by test name
    """
    return {**COMMON, **BY_CLASS.get(name, {})}
