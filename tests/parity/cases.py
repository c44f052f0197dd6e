"""Loader of the reference format: one JSON (settings, events, tolerances) and one NPZ (arrays) per case."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Case:
    """One reference case; ``case["key"]`` reads the JSON, ``case.array("name")`` the NPZ."""

    path: Path

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
        """Assert equality within the case's own tolerances."""
        actual = actual.detach().numpy() if isinstance(actual, torch.Tensor) else np.asarray(actual)
        np.testing.assert_allclose(actual, np.asarray(expected), rtol=self["rtol"], atol=self["atol"])


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
