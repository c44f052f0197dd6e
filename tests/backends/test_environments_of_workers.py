"""What workers and resumed runs make of a model's environments, and what is refused because they would make another."""

from __future__ import annotations

import copy
import pickle
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import FlattenObservation, OrderEnforcing, TimeLimit
from gymnasium.wrappers.stateful_observation import NormalizeObservation
from gymnasium.wrappers.stateful_reward import NormalizeReward
from stable_baselines3.common.atari_wrappers import ClipRewardEnv, MaxAndSkipEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor

from sb3_erl import ALGOS, CEM, ERL
from sb3_erl.core.atomic_files import replacing
from sb3_erl.remote.env_recipe import environment_maker
from sb3_erl.remote.process import ProcessEvaluator
from sb3_erl.runs.run_state import environment_recipe
from sb3_erl.zoo.info import main as info
from tests.backends.test_unusual_vec_envs import OfSimulator, Simulator
from tests.contract.settings import make
from tests.envs import ToyEnv, toy_vec_env

# -------------------------------------------------------------------- what is made again


class Tripled(gym.ActionWrapper):
    """A wrapper of one's own that records no arguments."""

    def action(self, action: Any) -> Any:
        return 3 * action


def clipped(**kwargs: Any) -> gym.Env:
    return ClipRewardEnv(ToyEnv(**kwargs))


def tripled(**kwargs: Any) -> gym.Env:
    return Tripled(MaxAndSkipEnv(ToyEnv(**kwargs), 2))


gym.register("SB3ERLClipped-v0", f"{__name__}:clipped", max_episode_steps=6)
gym.register("SB3ERLUnordered-v0", f"{__name__}:clipped", max_episode_steps=6, order_enforce=False)
gym.register("SB3ERLTripled-v0", f"{__name__}:tripled", max_episode_steps=6)


def chain(env: Any) -> list[str]:
    names = [type(env).__name__]
    while isinstance(env, gym.Wrapper):
        env = env.env
        names.append(type(env).__name__)
    return names


@pytest.mark.parametrize("env_id", ["SB3ERLClipped-v0", "SB3ERLTripled-v0", "Pendulum-v1"])
def test_wrappers_of_an_entry_point_are_made_there(env_id: str) -> None:
    env = DummyVecEnv([lambda: Monitor(ClipRewardEnv(gym.make(env_id)))])
    made = environment_maker(env, None)()
    assert chain(made.envs[0]) == chain(env.envs[0])  # type: ignore[attr-defined]
    recipe = environment_recipe(env)
    assert recipe is not None and chain(pickle.loads(recipe)().envs[0]) == chain(env.envs[0])


@pytest.mark.parametrize(
    "make_env",
    [
        lambda: Monitor(TimeLimit(MaxAndSkipEnv(gym.make("Pendulum-v1"), 4), 40)),
        lambda: Monitor(TimeLimit(gym.make("Pendulum-v1"), 400)),
        lambda: TimeLimit(MaxAndSkipEnv(TimeLimit(gym.make("Pendulum-v1"), 100), 4), 20),
    ],
)
def test_time_limits_that_a_description_does_not_know(make_env: Any) -> None:
    env = DummyVecEnv([make_env])
    with pytest.raises(ValueError, match=r"env must have the time limit of gymnasium.make.*max_episode_steps.*make_env="):
        environment_maker(env, None)
    assert environment_recipe(env) is None


@pytest.mark.parametrize(
    "make_env",
    [
        lambda: Monitor(TimeLimit(gym.make("Pendulum-v1", max_episode_steps=-1), 40)),
        lambda: TimeLimit(Monitor(gym.make("Pendulum-v1", max_episode_steps=-1)), 40),
        lambda: TimeLimit(Monitor(gym.make("Pendulum-v1")), 40),
        lambda: Monitor(OrderEnforcing(TimeLimit(gym.make("Pendulum-v1"), 40))),
    ],
)
def test_time_limits_that_mean_the_same_where_they_are(make_env: Any) -> None:
    env = DummyVecEnv([make_env])
    made = environment_maker(env, None)()
    assert lengths_of(made) == lengths_of(env) == 40


def lengths_of(env: Any) -> int:
    one, n = env.envs[0], 0
    one.reset(seed=1)
    while True:
        n += 1
        *_, terminated, truncated, _ = one.step(one.action_space.sample())
        if terminated or truncated:
            return n


@pytest.mark.parametrize("kind", [DummyVecEnv, SubprocVecEnv])
@pytest.mark.parametrize("env_id", ["SB3ERLTripled-v0", "SB3ERLUnordered-v0"])
def test_wrappers_of_an_entry_point_are_not_made_twice(kind: Any, env_id: str) -> None:
    env = kind([partial(_monitored, env_id)] * 2)
    made = environment_maker(env, None)()
    own = Monitor(gym.make(env_id))
    assert chain(made.envs[0]) == chain(own)  # type: ignore[attr-defined]
    env.close()


def test_a_wrapper_outside_is_not_taken_for_one_of_gymnasium() -> None:
    env = DummyVecEnv([lambda: Monitor(OrderEnforcing(FlattenObservation(gym.make("Pendulum-v1"))))])
    made = environment_maker(env, None)()
    assert "FlattenObservation" in chain(made.envs[0])  # type: ignore[attr-defined]


@pytest.mark.parametrize("wrapper", [NormalizeObservation, NormalizeReward])
def test_statistics_of_single_environments_cannot_be_shared(wrapper: Any) -> None:
    env = DummyVecEnv([lambda: Monitor(wrapper(gym.make("Pendulum-v1")))])
    with pytest.raises(ValueError, match=rf"learns statistics for an evaluator with workers.*{wrapper.__name__}"):
        CEM("MlpPolicy", env, evaluator="process", pop_size=4).learn(800)


def test_a_vecenv_without_descriptions_is_refused_with_a_message() -> None:
    class Silent(OfSimulator):
        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            raise AttributeError(attr_name)

    with pytest.raises(ValueError, match=r"env must be a VecEnv of single environments.*Silent raised.*make_env="):
        environment_maker(Silent(Simulator(2)), None)


def test_a_factory_that_returns_nothing() -> None:
    with pytest.raises(TypeError, match="make_env must return an environment; got None"):
        environment_maker(toy_vec_env(), lambda: None)()  # type: ignore[arg-type,return-value]


# -------------------------------------------------------------------- workers in callbacks


class Acts(BaseCallback):
    """Does something with the workers at a step, or as a rollout ends."""

    def __init__(self, step: Any = None, end: Any = None):
        super().__init__()
        self.step, self.end, self.n_ends = step, end, 0

    def _on_step(self) -> bool:
        if self.step is not None and self.n_calls == 15:
            self.step(self.model.workers)  # type: ignore[attr-defined]
        return True

    def _on_rollout_end(self) -> None:
        self.n_ends += 1
        if self.end is not None and self.n_ends == 1:
            self.end(self.model.workers)  # type: ignore[attr-defined]


def grow(workers: Any) -> None:
    workers.add_workers(1)
    workers.settle()


@pytest.mark.timeout(60)
def test_workers_may_be_settled_and_closed_in_callbacks() -> None:
    ends = []
    for callback in (
        None,
        Acts(step=grow),
        Acts(step=lambda workers: workers.settle()),
        Acts(end=lambda workers: workers.close()),
    ):
        with ProcessEvaluator(1, make_env=ToyEnv) as evaluator:
            model = make("cem", seed=1, evaluator=evaluator)
            model.learn(150, callback=callback)
            ends.append(model.evolver.mean.clone())
    assert all((ends[0] == other).all() for other in ends[1:])


@pytest.mark.timeout(60)
def test_workers_are_not_closed_under_a_step() -> None:
    with ProcessEvaluator(1, make_env=ToyEnv) as evaluator:
        model = make("cem", seed=1, evaluator=evaluator)
        with pytest.raises(RuntimeError, match=r"close\(\) must not be called while workers play.*_on_rollout_end"):
            model.learn(150, callback=Acts(step=lambda workers: workers.close()))
        evaluator.close()
        model.learn(100)
        assert model.num_timesteps >= 100


@pytest.mark.parametrize("arguments", [{"episode_timeout": 60.0}, {"verify": 0.01}])
def test_pbt_has_no_episodes_of_individuals(arguments: dict[str, Any]) -> None:
    evaluator = ProcessEvaluator(1, **arguments)
    model = ALGOS["pbt"](
        "MlpPolicy", "Pendulum-v1", algorithm="ppo", algorithm_kwargs={"n_steps": 32}, pop_size=2, evaluator=evaluator
    )
    with pytest.raises(
        ValueError, match="evaluator must have no episode_timeout and no verify where workers train whole models"
    ):
        model.learn(100)


# -------------------------------------------------------------------- files


def test_what_load_is_given_is_not_read_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("gone_after_this")
    exec("class Factory:\n    def __call__(self):\n        raise NotImplementedError\n", vars(module))
    module.Factory.__module__ = "gone_after_this"
    monkeypatch.setitem(sys.modules, "gone_after_this", module)
    model = make("erl", seed=1, learning_rate=1e-3)
    model.evaluator = ProcessEvaluator(1, make_env=module.Factory())
    model.save(tmp_path / "model")
    monkeypatch.delitem(sys.modules, "gone_after_this")
    with pytest.raises(ImportError):
        ERL.load(tmp_path / "model")
    assert ERL.load(tmp_path / "model", evaluator="vec").evaluator == "vec"


@pytest.mark.parametrize("env", ["Pendulum-v1", None])
def test_what_sb3_reads_itself_stays_in_the_file(env: Any, tmp_path: Path) -> None:
    model = ERL("MlpPolicy", "Pendulum-v1", pop_size=2, buffer_size=100)
    model.save(tmp_path / "model")
    for given in ({"verbose": 1}, {"verbose": 0, "seed": 3}, {"observation_space": model.observation_space}):
        again = ERL.load(tmp_path / "model", env=env, **given)
        assert all(getattr(again, name) == value for name, value in given.items())


def test_rates_that_load_is_given(tmp_path: Path) -> None:
    make("erl", seed=1, learning_rate=lambda remaining: 1e-3 * remaining).save(tmp_path / "model")
    again = ERL.load(tmp_path / "model", learning_rate=2e-3, env=toy_vec_env())
    assert again.lr_schedule(0.5) == 2e-3 and again.learn(100).num_timesteps >= 100


@pytest.mark.parametrize("vectorized", [False, True])
def test_copies_of_monitored_environments_write_no_file(vectorized: bool, tmp_path: Path) -> None:
    if vectorized:
        env: Any = VecMonitor(DummyVecEnv([ToyEnv]), str(tmp_path / "log"))
    else:
        env = make_vec_env(ToyEnv, monitor_dir=str(tmp_path))
    model = make("erl", env, seed=1)
    model.learn(60)
    (path,) = tmp_path.glob("*monitor.csv")
    n_lines = len(path.read_text().splitlines())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.learn(60)
        assert other.num_timesteps >= 60
    assert len(path.read_text().splitlines()) == n_lines
    model.learn(60)
    assert len(path.read_text().splitlines()) > n_lines


def test_a_file_with_the_name_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "ant.v4").mkdir()
    model = make("cem", seed=1)
    with pytest.warns(UserWarning, match=r"is a folder; the file is written as 'ant.v4_2'"):
        model.save(tmp_path / "ant.v4")
    assert (tmp_path / "ant.v4_2").is_file() and not list((tmp_path / "ant.v4").iterdir())
    with replacing(tmp_path / "other.txt", ".txt") as file:
        file.write_text("x")
    assert (tmp_path / "other.txt").read_text() == "x"


def test_info_on_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        info([str(tmp_path)])
    assert "it is a folder" in capsys.readouterr().err


def test_steps_of_the_two_back_ends_are_the_same() -> None:
    ends = []
    for evaluator in ("vec", ProcessEvaluator(1)):
        model = make("cem", DummyVecEnv([_tripled]), seed=1, evaluator=evaluator)
        model.learn(60)
        ends.append(model.evolver.mean.numpy())
        lengths = {info["l"] for info in model.ep_info_buffer}
        assert lengths == {4}, "of eight steps two at a time"
    np.testing.assert_array_equal(*ends)


def _monitored(env_id: str) -> gym.Env:
    return Monitor(gym.make(env_id))


def _tripled() -> gym.Env:
    return _monitored("SB3ERLTripled-v0")
