"""
Becomes the ``conftest.py`` beside a copy of SB3's tests: puts one of our classes in the place of TD3 or DQN.

Everything it needs comes through environment variables, so it imports nothing from this repository's tests.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
from typing import Any

import pytest
import stable_baselines3

REPLACES = os.environ["SB3_SUITE_REPLACES"]
_module, _name = os.environ["SB3_SUITE_CLASS"].split(":")
_ORIGINAL = getattr(importlib.import_module(_module), _name)
IGNORED = json.loads(os.environ["SB3_SUITE_IGNORED"])
SMALL = json.loads(os.environ["SB3_SUITE_SMALL"])


class Substitute(_ORIGINAL):  # type: ignore[misc, valid-type]
    """Our class, small, less the arguments that SB3's tests hand to that class and ours does not take."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **SMALL | {key: value for key, value in kwargs.items() if key not in IGNORED})


if "forkserver" in multiprocessing.get_all_start_methods():  # SubprocVecEnv's workers need not import it once each
    multiprocessing.get_context("forkserver").set_forkserver_preload(["stable_baselines3"])
Substitute.__name__ = Substitute.__qualname__ = _name
setattr(stable_baselines3, REPLACES, Substitute)  # before the test modules import it


def concerns_substitute(item: Any) -> bool:
    """Whether a test case runs our class: as a parameter, by the name of the class it replaces, or inside its body."""
    parameters = list(item.callspec.params.values()) if hasattr(item, "callspec") else []
    if any(value is Substitute or (isinstance(value, str) and value == REPLACES.lower()) for value in parameters):
        return True
    about_another_class = any(isinstance(value, type) and hasattr(value, "learn") for value in parameters)
    return not about_another_class and REPLACES in item.function.__code__.co_names


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    deselect = json.loads(os.environ["SB3_SUITE_DESELECT"])
    unused = set(deselect)
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        name = item.nodeid.split("/")[-1]
        reason = next((pattern for pattern in deselect if name == pattern or name.startswith(pattern + "[")), None)
        wanted = concerns_substitute(item)
        if wanted and reason is not None:
            unused.discard(reason)
        (kept if wanted and reason is None else dropped).append(item)
    config.hook.pytest_deselected(items=dropped)
    items[:] = kept
    if unused:
        raise pytest.UsageError(f"deselect entries that match no test: {sorted(unused)}")
