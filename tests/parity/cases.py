"""Loader of the reference format: one JSON (settings, events, tolerances) and one NPZ (arrays) per case."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

BF16_VALUES = 0.1
"""Allowed with updates in bfloat16: distance of an array from the reference over its norm, of a number over 1 at least."""
BF16_MOVES = 0.6
"""Allowed with updates in bfloat16: distance of a network from the reference over how far the reference's has moved."""


Tensors = Mapping[str, torch.Tensor]
"""Tensors of a network by name."""


def assert_moved_alike(actual: Tensors, expected: Tensors, start: Tensors) -> None:
    """The distance between two networks, over how far the second has moved, is at most ``BF16_MOVES``."""
    ours, theirs, before = (
        torch.cat([tensors[k].detach().reshape(-1) for k in expected]) for tensors in (actual, expected, start)
    )
    assert_near(ours.numpy(), theirs.numpy(), torch.linalg.norm(theirs - before), BF16_MOVES)


def assert_near(actual: Any, expected: Any, scale: Any, share: float) -> None:
    """The distance of two arrays is at most a share of a scale."""
    distance = np.linalg.norm(actual - expected)
    assert distance <= share * scale + 1e-6, f"{distance} from the reference; allowed is {share} of {scale}"


def snapshot(tensors: Tensors) -> dict[str, torch.Tensor]:
    """:return: copies"""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@dataclass
class Case:
    """
    One reference case; ``case["key"]`` reads the JSON, ``case.array("name")`` the NPZ.

    :param path: of the JSON
    :param is_bf16: whether updates were made in bfloat16, which cannot reach the case's own tolerances
    """

    path: Path
    is_bf16: bool = False

    @property
    def name(self) -> str:
        return self.path.stem

    @cached_property
    def _data(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        settings = json.loads(self.path.read_text())
        arrays = self.path.with_suffix(".npz")
        return settings, dict(np.load(arrays)) if arrays.exists() else {}

    @property
    def settings(self) -> dict[str, Any]:
        return self._data[0]

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        return self._data[1]

    def __getitem__(self, key: str) -> Any:
        return self.settings[key]

    def array(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def tensor(self, name: str) -> torch.Tensor:
        return torch.as_tensor(self.arrays[name])

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        """Arrays whose names begin with ``prefix``, without it."""
        return {k[len(prefix) :]: torch.as_tensor(v) for k, v in self.arrays.items() if k.startswith(prefix)}

    def close(self, actual: Any, expected: Any) -> None:
        """Assert equality within the case's own tolerances, or of whole arrays within ``BF16_VALUES``."""
        actual = actual.detach().numpy() if isinstance(actual, torch.Tensor) else np.asarray(actual)
        expected = np.asarray(expected)
        if self.is_bf16:
            np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
            actual, expected = np.nan_to_num(actual), np.nan_to_num(expected)
            assert_near(actual, expected, max(np.linalg.norm(expected), expected.ndim == 0), BF16_VALUES)
        else:
            np.testing.assert_allclose(actual, expected, rtol=self["rtol"], atol=self["atol"])

    def network_close(self, actual: Tensors, expected: Tensors, start: Tensors) -> None:
        """
        Assert that a network has become the expected one, within the case's own tolerances or ``BF16_MOVES``.

        :param actual: its tensors by name
        :param expected: the reference's
        :param start: before the updates
        """
        assert set(actual) == set(expected)
        if self.is_bf16:
            assert_moved_alike(actual, expected, start)
        else:
            for name, value in expected.items():
                self.close(actual[name], value)


def discover(folder: Path, system: str) -> list[Case]:
    """All cases of a system; a folder without any is an error, not a silent pass."""
    cases = [Case(path) for path in sorted((folder / system).glob("*.json"))]
    if not cases and folder.is_dir() and any(folder.iterdir()):
        return []
    if not cases:
        raise FileNotFoundError(f"no reference cases of {system} under {folder}; give --reference DIR")
    return cases


def dispatch(case: Case, kind: str, checks: dict[str, Any]) -> None:
    """Run the check of this kind of case; an unknown kind fails."""
    if kind not in checks:
        raise AssertionError(f"unknown kind {kind!r} of case {case.path.name}; known: {sorted(checks)}")
    checks[kind](case)
