"""What all tests share: toy environments have the actions that the class under test can take."""

from __future__ import annotations

import pytest

from sb3_erl import ALGOS
from tests import envs


@pytest.fixture(autouse=True)
def toy_actions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Toy environments have discrete actions in a test with a class, named by its key in ALGOS, that needs them."""
    callspec = getattr(request.node, "callspec", None)
    named = [value for value in (callspec.params.values() if callspec else ()) if isinstance(value, str) and value in ALGOS]
    if any(not getattr(ALGOS[name], "takes_continuous_actions", True) for name in named):
        monkeypatch.setattr(envs, "N_ACTIONS", 3)
