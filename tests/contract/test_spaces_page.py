"""The table of docs/spaces.md says which observations and actions each class takes; every cell is tried."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv

from sb3_erl import ALGOS
from sb3_erl.core.checks import UnsupportedSpaceError
from tests.contract.settings import DISCRETE, HYBRIDS, NAMES, known, make
from tests.envs import OddSpaces

PAGE = (Path(__file__).parents[2] / "docs" / "spaces.md").read_text()
VECTOR, IMAGE = spaces.Box(-1, 1, (3,), np.float32), spaces.Box(0, 255, (1, 36, 36), np.uint8)
OBSERVATIONS: dict[str, list[tuple[str, spaces.Space]]] = {
    "vectors, discrete values, images": [
        ("MlpPolicy", VECTOR),
        ("MlpPolicy", spaces.Discrete(3)),
        ("MlpPolicy", spaces.MultiDiscrete([2, 3])),
        ("MlpPolicy", spaces.MultiBinary(3)),
        ("CnnPolicy", IMAGE),
    ],
    "Dict": [("MultiInputPolicy", spaces.Dict(a=VECTOR, b=spaces.Discrete(2))), ("MultiInputPolicy", spaces.Dict(c=IMAGE))],
}
ACTIONS: dict[str, list[spaces.Space]] = {
    "Box": [spaces.Box(-3, 5, (2, 2), np.float64), spaces.Box(0, 5, (2,), np.int64)],
    "Discrete": [spaces.Discrete(3)],
    "MultiDiscrete, MultiBinary": [spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)],
}


def table() -> dict[str, dict[str, str]]:
    """By class and heading what the page says."""
    rows = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("|")]
    header = next(row for row in rows if row[0] == "class")
    own = [row for row in rows if len(row) == len(header) and row[0].startswith("`")]
    return {name: dict(zip(header[1:], row[1:], strict=True)) for row in own for name in re.findall(r"`(\w+)`", row[0])}


TABLE = table()


def works(name: str, policy: str = "MlpPolicy", **own: Any) -> bool:
    """Whether a model is made, which acts; it is refused by name otherwise."""
    arguments = {key: own.pop(key) for key in ("learner",) if key in own}
    if name in DISCRETE and "action_space" not in own:
        own["action_space"] = spaces.Discrete(3)
    env = OddSpaces(**own)
    extractor = {"CnnPolicy": {"features_dim": 4}, "MultiInputPolicy": {"cnn_output_dim": 4}}.get(policy, {})
    small: Any = {"net_arch": [8], "features_extractor_kwargs": extractor}
    try:
        model = make(name, env, policy=policy, policy_kwargs=small, **arguments)
    except UnsupportedSpaceError as error:
        assert re.search(r"(?s)needs an env.*; got action_space=.*(Wrapper|Use a|Wrap it)", str(error)), str(error)
        return False
    env.observation_space.seed(0)
    action, _ = model.predict(env.observation_space.sample(), deterministic=True)
    return bool(env.action_space.contains(action))


def test_the_page_has_every_class() -> None:
    assert sorted(TABLE) == sorted(NAMES)
    assert {*TABLE["erl"]} == {*OBSERVATIONS, *ACTIONS, "HER"}


@pytest.mark.parametrize("heading", OBSERVATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_observations_of_the_page(name: str, heading: str) -> None:
    for policy, space in OBSERVATIONS[heading]:
        assert works(name, policy, observation_space=space) == (TABLE[name][heading] == "yes"), space


@pytest.mark.parametrize("heading", ACTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_actions_of_the_page(name: str, heading: str) -> None:
    said = TABLE[name][heading]
    for space in ACTIONS[heading]:
        assert works(name, action_space=space) == (said == "yes"), space
        learner = re.fullmatch(r'`learner="(\w+)"`', said)
        if learner:
            assert works(name, action_space=space, learner=learner.group(1))
        elif said == "no" and heading == "Discrete" and known(name, {"learner": "dqn"}):
            try:
                assert not works(name, action_space=space, learner="dqn")
            except ValueError as error:
                assert "learner must be" in str(error), "of those that fit the class"


@pytest.mark.parametrize("name", NAMES)
def test_hindsight_of_the_page(name: str) -> None:
    assert TABLE[name]["HER"] == ("yes" if name in HYBRIDS else "no buffer")
    if name in HYBRIDS:
        env = BitFlippingEnv(4, continuous=name not in DISCRETE)
        model = make(name, env, policy="MultiInputPolicy", replay_buffer_class=HerReplayBuffer)
        assert type(model.replay_buffer) is HerReplayBuffer
    else:
        assert not known(name, {"replay_buffer_class": None}) and name in ALGOS
