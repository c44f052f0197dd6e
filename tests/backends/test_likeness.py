"""Workers make one environment again: where those of a model differ, this is refused, and a run is not resumed with copies."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack

from sb3_erl.remote.env_recipe import environment_maker
from sb3_erl.remote.likeness import is_alike
from sb3_erl.remote.process import ProcessEvaluator
from sb3_erl.runs.run_state import environment_recipe
from tests.contract.settings import make
from tests.populations.settings import make as make_population


def pendulum(**kwargs: Any) -> gym.Env:
    return gym.make("Pendulum-v1", **{"max_episode_steps": 12, **kwargs})


def rescaled(low: float) -> gym.Env:
    return gym.wrappers.RescaleAction(pendulum(), np.float32(low), np.float32(1.0))


def scaled(factor: float) -> gym.Env:
    return gym.wrappers.TransformReward(pendulum(), lambda reward: factor * reward)


def both(make_one: Callable[..., gym.Env], *values: Any) -> VecEnv:
    return DummyVecEnv([functools.partial(make_one, value) for value in values])


DIFFERENT: dict[str, tuple[Callable[[], VecEnv], str]] = {
    "an argument": (lambda: both(lambda g: pendulum(g=g), 1.0, 10.0), r"0 and 1, g 1\.0 and 10\.0"),
    "the last of three": (lambda: both(lambda g: pendulum(g=g), 1.0, 1.0, 10.0), r"0 and 2, g 1\.0 and 10\.0"),
    "an argument of one": (lambda: both(lambda kw: pendulum(**kw), {}, {"g": 3.0}), "g 'not given' and 3.0"),
    "the time limit": (lambda: both(lambda n: pendulum(max_episode_steps=n), 5, 6), "max_episode_steps 5 and 6"),
    "an array of a wrapper": (lambda: both(rescaled, -1.0, -0.5), "min_action of wrapper 0"),
    "a function of a wrapper": (lambda: both(scaled, 1.0, 2.0), "func of wrapper 0"),
    "a wrapper": (lambda: DummyVecEnv([lambda: rescaled(-2.0), pendulum]), "wrappers "),
    "behind wrappers": (lambda: VecFrameStack(both(lambda g: Monitor(pendulum(g=g)), 1.0, 2.0), 2), "g 1.0 and 2.0"),
    "in processes": (lambda: SubprocVecEnv([functools.partial(pendulum, g=1.0), functools.partial(pendulum, g=2.0)]), "g 1"),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_different_environments_are_refused(what: str) -> None:
    env, text = DIFFERENT[what][0](), DIFFERENT[what][1]
    with pytest.raises(ValueError, match=rf"all made alike.*{text}.*ProcessEvaluator\(make_env=\.\.\.\)"):
        environment_maker(env, None)
    assert environment_recipe(env) is None
    environment_maker(env, pendulum)
    env.close()


def test_evaluators_and_populations_of_models_refuse_them() -> None:
    env = DIFFERENT["an argument"][0]()
    with pytest.raises(ValueError, match="all made alike"):
        make("openai_es", env, evaluator="process").learn(10)
    with pytest.raises(ValueError, match="all made alike"):
        make_population("ppo", env, evaluator=ProcessEvaluator(1)).learn(32)


def recorded(index: int, folder: Path) -> gym.Env:
    env = pendulum(render_mode="rgb_array")
    return gym.wrappers.RecordVideo(env, str(folder), episode_trigger=lambda _: False) if index == 0 else env


ALIKE: dict[str, Callable[[Path], VecEnv]] = {
    "make_vec_env": lambda folder: make_vec_env(
        "Pendulum-v1", 3, seed=3, monitor_dir=str(folder), wrapper_class=gym.wrappers.FlattenObservation
    ),
    "processes": lambda folder: make_vec_env("Pendulum-v1", 2, seed=3, vec_env_cls=SubprocVecEnv),
    "functions made twice": lambda folder: both(scaled, 2.0, 2.0),
    "arrays": lambda folder: both(rescaled, -1.0, -1.0),
    "a video of the first": lambda folder: both(functools.partial(recorded, folder=folder), 0, 1),
    "a monitor of the first": lambda folder: DummyVecEnv([lambda: Monitor(pendulum()), pendulum]),
}


@pytest.mark.parametrize("what", ALIKE)
@pytest.mark.filterwarnings("ignore:.*Overwriting existing videos")
def test_alike_environments_are_made_again(what: str, tmp_path: Path) -> None:
    env = ALIKE[what](tmp_path)
    recipe = environment_recipe(env)
    assert recipe is not None
    again = pickle.loads(recipe)(2)
    assert again.observation_space == env.observation_space and again.num_envs == 2
    for each in (env, again):
        each.close()


class Plain:
    def __init__(self, value: Any):
        self.value = value


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (1, 1.0, True),
        (np.nan, float("nan"), True),
        (np.array([1.0, np.nan]), np.array([1.0, np.nan]), True),
        (np.array([1.0]), np.array([1.0, 2.0]), False),
        ({"a": [1, (2,)]}, {"a": [1, (2,)]}, True),
        ({"a": [1, (2,)]}, {"a": [1, (3,)]}, False),
        (Plain(np.zeros(2)), Plain(np.zeros(2)), True),
        (Plain(np.zeros(2)), Plain(np.ones(2)), False),
        (np.random.default_rng(1), np.random.default_rng(2), True),
        (functools.partial(pendulum, g=1), functools.partial(pendulum, g=2), False),
        (functools.partial(pendulum, g=1), functools.partial(pendulum, g=1), True),
        (pendulum, rescaled, False),
        (gym.spaces.Discrete(2), gym.spaces.Discrete(3), False),
    ],
)
def test_arguments_that_mean_the_same(one: Any, other: Any, expected: bool) -> None:
    assert is_alike(one, other) is expected
