"""The toy environments that the other tests stand on."""

from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_checker import check_env

from tests.envs import ImageEnv, ToyEnv


@pytest.mark.parametrize("make", [ToyEnv, lambda: ToyEnv(action_shape=(2, 2)), ImageEnv], ids=["box", "2d", "image"])
def test_sb3_accepts_it(make: type[gym.Env]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice about action bounds
        check_env(make(), skip_render_check=True)


@pytest.mark.parametrize("ending", ["termination", "truncation"])
def test_length_ending_and_seed(ending: str) -> None:
    def episode(seed: int) -> list[tuple[float, bool, bool]]:
        env = ToyEnv(length=4, ending=ending, vary=3)  # type: ignore[arg-type]
        env.reset(seed=seed)
        steps = []
        while not steps or not (steps[-1][1] or steps[-1][2]):
            _, reward, terminated, truncated, _ = env.step(np.array([0.5, -0.5]))
            steps.append((reward, terminated, truncated))
        return steps

    assert episode(1) == episode(1) != episode(2)
    assert {len(episode(seed)) for seed in range(30)} == {4, 5, 6, 7}
    assert all(step[1:] == (False, False) for step in episode(1)[:-1])
    assert episode(1)[-1][1:] == (ending == "termination", ending == "truncation")
