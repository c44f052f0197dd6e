"""What all tests share: toy environments have the actions that the class under test can take."""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver

import pytest

from sb3_erl import ALGOS
from tests import envs


def pytest_sessionstart(session: pytest.Session) -> None:
    """A pytest worker, which has many tests ahead, has the server that forks their processes import all that they need."""
    if hasattr(session.config, "workerinput") and "forkserver" in multiprocessing.get_all_start_methods():
        multiprocessing.get_context("forkserver").set_forkserver_preload(["tests.preloaded"])
        forkserver.ensure_running()


@pytest.fixture(autouse=True)
def toy_actions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Toy environments have discrete actions in a test with a class, named by its key in ALGOS, that needs them."""
    callspec = getattr(request.node, "callspec", None)
    named = [value for value in (callspec.params.values() if callspec else ()) if isinstance(value, str) and value in ALGOS]
    if any(not getattr(ALGOS[name], "takes_continuous_actions", True) for name in named):
        monkeypatch.setattr(envs, "N_ACTIONS", 3)
