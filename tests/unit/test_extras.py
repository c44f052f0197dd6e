"""Optional dependencies that are missing: one line says what to install."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from sb3_erl import TD7, OpenAIES
from sb3_erl.buffers.offline import fill_replay_buffer
from sb3_erl.core.extras import EXTRAS, missing_extra
from sb3_erl.envs import HardMaze, atari, draw_positions
from sb3_erl.envs.minatar import MinAtar
from sb3_erl.envs.packages import register_namespaces
from sb3_erl.remote.ray import import_ray

PROJECT = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]


def test_every_extra_of_a_feature_is_known() -> None:
    assert set(EXTRAS) == set(PROJECT["optional-dependencies"]) - {"dev", "docs"}
    with pytest.raises(KeyError, match=r"extra must be one of \['atari'.*got 'atria'"):
        missing_extra("Games", "atria")


def offline() -> None:
    fill_replay_buffer(TD7("Pendulum-v1", buffer_size=10), "mujoco/hopper/expert-v0")


USES: list[tuple[str, str, Callable[[], Any]]] = [
    ("matplotlib", "plots", lambda: draw_positions(HardMaze(), [np.zeros((2, 2))])),
    ("minatar", "minatar", lambda: MinAtar("breakout")),
    ("minari", "offline", offline),
    ("ray", "ray", import_ray),
    ("ale_py", "atari", lambda: atari.make_atari("ALE/Pong-v5")),
    ("cv2", "atari", lambda: atari.make_atari("ALE/Pong-v5")),
]


@pytest.mark.parametrize(("module", "extra", "use"), USES, ids=[module for module, _, _ in USES])
def test_what_is_missing_is_named_with_its_line(
    module: str, extra: str, use: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=re.escape(f"pip install 'sb3-erl[{extra}]'")):
        use()


@pytest.mark.parametrize("env_id", ["ALE/Pong-v5", "PongNoFrameskip-v4"])
def test_an_atari_game_without_the_emulator(env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In both forms of a constructor, and in the Zoo, which first looks whether it knows the id and whether it is Atari's."""
    for known in [known for known in gym.registry if atari.is_atari(known)]:
        monkeypatch.delitem(gym.registry, known)
    monkeypatch.setattr(gym.envs.registration, "registry", gym.registry)
    monkeypatch.setitem(sys.modules, "ale_py", None)
    before = dict(gym.registry)
    try:
        for arguments in (("CnnPolicy", env_id), (env_id,)):
            with pytest.raises(
                ImportError, match=re.escape("Atari games need ale-py and OpenCV; pip install 'sb3-erl[atari]'")
            ):
                OpenAIES(*arguments)
        register_namespaces()
        assert env_id in gym.registry and atari.is_atari(env_id)
    finally:
        gym.registry.clear()
        gym.registry.update(before)


def test_all_ids_that_stand_in_for_games_are_the_emulators() -> None:
    pytest.importorskip("ale_py")
    atari.register_envs()
    assert {f"ALE/{game}-v5" for game in atari.GAMES.split()} <= set(gym.registry)
    assert {f"{game}NoFrameskip-v4" for game in atari.GAMES.split()} <= set(gym.registry)
