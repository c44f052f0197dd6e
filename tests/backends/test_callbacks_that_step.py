"""Callbacks that step, reset or copy the environments that a run trains in: the run goes on, and loses no episode."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from sb3_erl import GenerationCheckpoint
from sb3_erl.rollouts.slot_envs import Replaced, knows_method
from tests.backends.test_slots import LENGTH, Counting, Shouting, Simulator, single
from tests.contract.settings import NAMES, ONE_OF_EACH_FAMILY, STEPWISE, make, toy_actions
from tests.envs import toy_vec_env

FEW = ("erl", "openai_es", "td7", "erl_re2")


def dummy(name: str, n_envs: int = 2) -> DummyVecEnv:
    return DummyVecEnv([lambda: single(name) for _ in range(n_envs)])


def processes(name: str) -> SubprocVecEnv:
    return SubprocVecEnv([lambda: single(name) for _ in range(2)])


KINDS: dict[str, Callable[[str], VecEnv]] = {
    "bare": dummy,
    "one": lambda name: dummy(name, 1),
    "one, monitored": lambda name: VecMonitor(dummy(name, 1)),
    "monitored": lambda name: VecMonitor(dummy(name)),
    "normalized": lambda name: VecNormalize(dummy(name), norm_reward=False),
    "with steps of its own": lambda name: Shouting([lambda: single(name) for _ in range(2)]),
    "a simulator": lambda name: Simulator(2, **toy_actions(name)),
}


class Evaluating(BaseCallback):
    """Evaluates in the training environments, several times within a generation and also at its last step."""

    def _on_step(self) -> bool:
        if self.n_calls % 3 == 0 or self.num_timesteps >= self.model._total_timesteps:
            returns, _ = evaluate_policy(self.model, self.model.get_env(), 5, return_episode_rewards=True, warn=False)
            assert len(returns) == 5 and set(returns) <= {LENGTH * 1.0, LENGTH * 101.0}  # type: ignore[arg-type]
        return True


def scores_of(model: Any) -> list[np.ndarray]:
    """Fitness of each generation."""
    seen: list[np.ndarray] = []
    score = getattr(model, "_score", None)
    if score is None:
        return seen

    def watch(generation: Any) -> None:
        score(generation)
        if generation.fitness is not None:
            seen.append(np.array(generation.fitness))

    model._score = watch
    return seen


CASES = [(name, kind) for kind in KINDS for name in (NAMES if kind == "monitored" else ONE_OF_EACH_FAMILY)]


@pytest.mark.parametrize(("name", "kind"), CASES)
@pytest.mark.filterwarnings("ignore:.*VecNormalize")
def test_an_evaluation_in_the_training_environments_loses_no_episode(name: str, kind: str) -> None:
    model = make(name, KINDS[kind](name))
    scores = scores_of(model)
    model.learn(120, Evaluating())
    assert 120 <= model.num_timesteps <= 121
    assert all(np.isfinite(fitness).all() for fitness in scores)
    if name not in STEPWISE and model.n_generations > 0:
        assert len(scores) > 0
    model.learn(60, reset_num_timesteps=False)


@pytest.mark.parametrize("name", ["erl", "td7"])
def test_an_eval_callback_in_the_training_environments(name: str) -> None:
    """Also where they live in other processes."""
    for env in (dummy(name, 1), VecMonitor(processes(name))):
        callback = EvalCallback(env, eval_freq=20, n_eval_episodes=3, verbose=0, warn=False)
        make(name, env).learn(100, callback)
        assert callback.last_mean_reward == LENGTH
        env.close()


class Seeded(Counting):
    """Notes with which seeds it was reset."""

    seeds: list[int | None] = []  # noqa: RUF012 of all environments of a test

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.seeds.append(seed)
        return super().reset(seed=seed, options=options)


def test_an_evaluation_takes_no_seed_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a VecEnv with steps of its own, whose environments are reset with the seeds of jobs."""
    monkeypatch.setattr(Seeded, "seeds", [])
    own: list[int | None] = []

    def evaluate(variables: dict[str, Any], _: dict[str, Any]) -> bool:
        before = len(Seeded.seeds)
        evaluate_policy(variables["self"], env, 5, warn=False)
        own.extend(Seeded.seeds[before:])
        return True

    env = Shouting([Seeded, Seeded])
    make("openai_es", env).learn(60, evaluate)
    assert own and set(own) == {None} and set(Seeded.seeds) != {None}


# ---------------------------------------------------------------- copies


class Copying(BaseCallback):
    """Copies the model in the middle of a generation."""

    def __init__(self, copied: Callable[[Any], Any]):
        super().__init__()
        self.copied, self.copies = copied, list[Any]()

    def _on_step(self) -> bool:
        if self.n_calls == 13:
            self.copies.append(self.copied(self.model))
        return True


def stacked(name: str) -> VecEnv:
    return VecFrameStack(dummy(name), 2)


def pickled(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("kind", ["bare", "normalized", "with steps of its own", "stacked"])
@pytest.mark.parametrize("name", FEW)
@pytest.mark.filterwarnings("ignore:.*VecNormalize")
def test_a_model_that_a_callback_copied_learns_on(name: str, kind: str) -> None:
    env = stacked(name) if kind == "stacked" else KINDS[kind](name)
    for copied in (copy.deepcopy, pickled):
        callback = Copying(copied)
        model = make(name, env).learn(60, callback)
        (other,) = callback.copies
        base = other.get_env().unwrapped
        assert not any(isinstance(value, Replaced) for thing in (base, *base.envs) for value in vars(thing).values())
        assert base is not env.unwrapped and all(
            one is not theirs for one, theirs in zip(base.envs, env.unwrapped.envs, strict=True)
        )  # type: ignore[attr-defined]
        before = other.num_timesteps
        other.learn(60, reset_num_timesteps=False)
        assert other.num_timesteps >= before + 60 and model.num_timesteps < before + 60


# ---------------------------------------------------------------- simulators that answer in other ways


def answers(answer: Any) -> Callable[..., list[Any]]:
    def env_method(self: Any, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return env_method


@pytest.mark.parametrize(
    "answer", [[None, None], [], [None], RuntimeError("no"), ValueError("no"), KeyError("no"), AssertionError()]
)
@pytest.mark.parametrize("name", FEW)
def test_a_simulator_may_say_in_any_way_that_it_has_no_single_environments(
    name: str, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Simulator, "env_method", answers(answer))
    assert 80 <= make(name, Simulator(2, **toy_actions(name))).learn(80).num_timesteps <= 81


class NoVecEnv:
    """What an adapter wraps that is no VecEnv of SB3's."""

    def __init__(self, n_actions: int | None = None):
        self.states = Simulator(2, n_actions)
        self.num_envs, self.observation_space, self.action_space = 2, self.states.observation_space, self.states.action_space
        self.render_mode = None

    @property
    def unwrapped(self) -> Any:
        return self


class Adapter(VecEnvWrapper):
    def __init__(self, inside: Any):
        super().__init__(inside)
        self.inside = inside

    def seed(self, seed: int | None = None) -> Any: ...

    def reset(self) -> np.ndarray:
        return self.inside.states.reset()

    def step_async(self, actions: np.ndarray) -> None:
        self.inside.states.step_async(actions)

    def step_wait(self) -> Any:
        return self.inside.states.step_wait()


@pytest.mark.parametrize("name", FEW)
def test_an_adapter_of_something_that_is_no_vec_env(name: str) -> None:
    env = Adapter(NoVecEnv(**toy_actions(name)))
    assert not knows_method(env, "current_behavior")
    assert 80 <= make(name, env).learn(80).num_timesteps <= 81


def test_a_simulator_that_knows_every_attribute_has_no_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Simulator, "get_attr", lambda self, name, indices=None: [None] * self.num_envs)
    assert not knows_method(Simulator(2), "current_behavior")
    assert make("erl", Simulator(2)).learn(80).num_timesteps >= 80


@pytest.mark.parametrize("name", FEW)
def test_checkpoints_of_a_simulator_without_attributes(name: str, tmp_path: Path) -> None:
    model = make(name, Simulator(2, **toy_actions(name)))
    model.learn(80, GenerationCheckpoint(20, tmp_path))
    assert any(tmp_path.iterdir())


# ---------------------------------------------------------------- what callbacks see and do


class Sum(BaseCallback):
    total = 0.0

    def _on_step(self) -> bool:
        self.total += float(np.sum(self.locals["rewards"]))
        return True


class Lasting(Counting):
    """Has longer episodes."""

    def step(self, action: Any) -> Any:
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, self.time >= 2 * LENGTH, info


@pytest.mark.parametrize("wrap", [lambda env: env, VecMonitor], ids=["bare", "monitored"])
@pytest.mark.parametrize("name", ["erl", "openai_es"])
def test_rewards_of_environments_that_sleep_are_zero(name: str, wrap: Callable[[VecEnv], VecEnv]) -> None:
    callback = Sum()
    model = make(name, wrap(DummyVecEnv([Counting, Lasting]))).learn(150, callback)
    assert callback.total == model.num_timesteps


class Resetting(BaseCallback):
    """Resets when a call of learn begins, as SB3's callbacks may."""

    def _init_callback(self) -> None:
        self.first = self.training_env.reset()

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("name", FEW)
def test_a_callback_may_reset_before_a_second_call(name: str) -> None:
    env = toy_vec_env()
    model, callback = make(name, env), Resetting()
    model.learn(60)
    before = env.get_attr("n_resets")[0]
    model.learn(60, callback, reset_num_timesteps=False)
    assert np.any(callback.first) and env.get_attr("n_resets")[0] > before
