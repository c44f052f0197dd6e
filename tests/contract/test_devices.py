"""Where tensors live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_erl import ALGOS
from tests.contract.helpers import modules
from tests.contract.settings import HYBRIDS, make, variants

OBSERVATIONS = np.random.default_rng(3).uniform(-1, 1, (5, 3)).astype(np.float32)
needs_cuda = pytest.mark.skipif(not th.cuda.is_available(), reason="needs a CUDA device")


def devices(model: Any) -> set[str]:
    return {tensor.device.type for module in modules(model) for tensor in (*module.parameters(), *module.buffers())}


@pytest.mark.parametrize("device", ["cpu", "auto"])
@pytest.mark.parametrize(("name", "extra"), variants())
def test_everything_is_on_the_device(name: str, extra: dict[str, Any], device: str) -> None:
    model = make(name, device=device, **extra).learn(60)
    expected = "cuda" if device == "auto" and th.cuda.is_available() else "cpu"
    assert model.device.type == expected and devices(model) == {expected}
    assert name not in HYBRIDS or model.replay_buffer.device.type == expected


@needs_cuda
@pytest.mark.parametrize(("name", "extra"), variants())
def test_saved_on_cuda_loaded_on_cpu(name: str, extra: dict[str, Any], tmp_path: Path) -> None:
    model = make(name, device="cuda", **extra).learn(60)
    model.save(tmp_path / "model")
    loaded = ALGOS[name].load(tmp_path / "model", device="cpu")
    assert devices(model) == {"cuda"} and devices(loaded) == {"cpu"}
    expected = model.predict(OBSERVATIONS, deterministic=True)[0]
    assert np.allclose(loaded.predict(OBSERVATIONS, deterministic=True)[0], expected, atol=1e-5)
