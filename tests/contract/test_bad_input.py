"""Wrong calls, a row each: the error names the argument, what came, and the way out. ``test_wrong_input`` has the ranges."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import DQN, TD3
from stable_baselines3.common.vec_env import VecNormalize

from sb3_erl import ALGOS, ProcessEvaluator, RayEvaluator
from sb3_erl.evolution.fitness.novelty import NoveltyArchive
from tests.contract.settings import ALL, GENERATIONAL, HYBRIDS, STEPWISE, fast, having, make
from tests.envs import ToyEnv, toy_vec_env

NOVELTY = having("behavior", among=ALL)
NOVELTY_ES = having("parent_selection", among=ALL)
ES = having("n_pairs", "noise_table_size", among=ALL)
POPULATIONS = having("pop_size", among=GENERATIONAL)
EPISODES = having("n_eval_episodes", among=ALL)


class Row(NamedTuple):
    """One wrong call: of which classes, what it is given, the error it must raise and what the message must say in order."""

    names: list[str]
    given: Any
    error: type[Exception]
    words: str


# -------------------------------------------------------------------- constructors

CONSTRUCTORS = [
    Row(ALL, {"policy": "MlpPolcy"}, ValueError, r"policy must be one of .*'MlpPolicy'.*'MlpPolcy'"),
    Row(ALL, {"policy": 3.5}, TypeError, r"policy must be an alias out of .*'MlpPolicy'.*got float"),
    Row(ALL, {"policy": None}, TypeError, r"policy must be an alias out of .*got NoneType"),
    Row(ALL, {"policy": dict}, TypeError, r"policy must be an alias out of .*got type"),
    Row(ALL, {"env": None}, ValueError, r"env must be an environment or the id of a registered one .*got None"),
    Row(ALL, {"env": "Pendulm-v1"}, ValueError, r"env must be an environment or the id.*Pendulm.*Did you mean: `Pendulum`"),
    Row(ALL, {"env": "Pendulum-v99"}, ValueError, r"env must be an environment or the id.*v99.*Pendulum"),
    Row(ALL, {"env": "nomodule:Thing-v0"}, ModuleNotFoundError, r"nomodule.*can be imported"),
    Row(ALL, {"env": 5}, TypeError, r"env must be an environment, a VecEnv or the id of a registered one; got 5"),
    Row(ALL, {"env": ToyEnv}, TypeError, r"env must be an environment, a VecEnv or .*got <class .*ToyEnv"),
    Row(ALL, {"seed": -1}, ValueError, r"seed must be at least 0 and at most .*got -1"),
    Row(ALL, {"seed": 2**40}, ValueError, r"seed must be at least 0 and at most .*got 1099511627776"),
    Row(ALL, {"seed": "lucky"}, TypeError, r"seed must be an integer; got 'lucky'"),
    Row(ALL, {"seed": 1.5}, TypeError, r"seed must be an integer; got 1\.5"),
    Row(ALL, {"device": "gpu0"}, ValueError, r"device must be 'auto', 'cpu', 'cuda'.*gpu0"),
    Row(ALL, {"verbose": 3}, ValueError, r"verbose must be at least 0 and at most 2; got 3"),
    Row(ALL, {"verbose": "yes"}, TypeError, r"verbose must be an integer; got 'yes'"),
    Row(ALL, {"stats_window_size": 0}, ValueError, r"stats_window_size must be at least 1; got 0"),
    Row(ALL, {"stats_window_size": "all"}, TypeError, r"stats_window_size must be an integer; got 'all'"),
    Row(ALL, {"learning_rate": "fast"}, TypeError, r"learning_rate must be a number; got 'fast'"),
    Row(ALL, {"learning_rate": -0.1}, ValueError, r"learning_rate must be at least 0; got -0\.1"),
    Row(ALL, {"learning_rate": float("nan")}, ValueError, r"learning_rate must be at least 0; got nan"),
    Row(ALL, {"policy_kwargs": [64, 64]}, TypeError, r"policy_kwargs must be None or a dict.*got \[64, 64\]"),
    Row(ALL, {"popsize": 5}, TypeError, r"unexpected keyword argument 'popsize'"),
    Row(
        [name for name in ALL if name not in ("cerl",)],
        {"policy_kwargs": {"net_arc": [4]}},
        TypeError,
        r"policy_kwargs must be arguments of \w+, which are .*'net_arch'.*got \['net_arc'\]|argument 'net_arc'",
    ),
    Row(GENERATIONAL, {"evaluator": "threads"}, ValueError, r"evaluator must be one of \['vec', 'process', 'ray'\].*'thr"),
    Row(GENERATIONAL, {"evaluator": 3}, TypeError, r"evaluator must be one of .*ProcessEvaluator.*got 3"),
    Row(GENERATIONAL, {"evaluator": ProcessEvaluator}, TypeError, r"evaluator must be one of .*got <class"),
    Row(POPULATIONS, {"pop_size": 1}, ValueError, r"pop_size must be at least 2; got 1"),
    Row(POPULATIONS, {"pop_size": 2.5}, TypeError, r"pop_size must be an integer; got 2\.5"),
    Row(POPULATIONS, {"pop_size": True}, TypeError, r"pop_size must be an integer; got True"),
    Row(POPULATIONS, {"pop_size": "10"}, TypeError, r"pop_size must be an integer; got '10'"),
    Row(
        having("n_eval_episodes", among=ALL),
        {"n_eval_episodes": 0},
        ValueError,
        r"n_eval_episodes must be at least 1; got 0",
    ),
    Row(EPISODES, {"n_eval_episodes": 1.0}, TypeError, r"n_eval_episodes must be an integer"),
    Row(HYBRIDS, {"action_noise": "ou"}, TypeError, r"action_noise must be an ActionNoise.*NormalActionNoise; got 'ou'"),
    Row(HYBRIDS, {"action_noise": 0.1}, TypeError, r"action_noise must be an ActionNoise.*NormalActionNoise; got 0\.1"),
    Row(HYBRIDS, {"replay_buffer_class": "LAP"}, TypeError, r"replay_buffer_class must be None or a subclass.*got 'LAP'"),
    Row(HYBRIDS, {"replay_buffer_class": dict}, TypeError, r"replay_buffer_class must be None or a subclass.*dict"),
    Row(HYBRIDS, {"replay_buffer_kwargs": [1]}, TypeError, r"replay_buffer_kwargs must be None or a dict; got \[1\]"),
    Row(HYBRIDS, {"buffer_size": 0}, ValueError, r"buffer_size must be at least 1; got 0"),
    Row(HYBRIDS, {"buffer_size": 1e6}, TypeError, r"buffer_size must be an integer; got 1000000\.0"),
    Row(HYBRIDS, {"batch_size": -4}, ValueError, r"batch_size must be at least 1; got -4"),
    Row(HYBRIDS, {"batch_size": "many"}, TypeError, r"batch_size must be an integer; got 'many'"),
    Row(HYBRIDS, {"learning_starts": -1}, ValueError, r"learning_starts must be at least 0; got -1"),
    Row(HYBRIDS, {"learning_starts": None}, TypeError, r"learning_starts must be a number; got None"),
    Row(having("gamma"), {"gamma": 1.01}, ValueError, r"gamma must be at least 0 and at most 1; got 1\.01"),
    Row(having("gamma"), {"gamma": "high"}, TypeError, r"gamma must be a number; got 'high'"),
    Row(having("gamma"), {"gamma": float("nan")}, ValueError, r"gamma must be at least 0 and at most 1; got nan"),
    Row(having("tau"), {"tau": -0.1}, ValueError, r"tau must be at least 0 and at most 1; got -0\.1"),
    Row(HYBRIDS, {"gradient_steps": 0.5}, TypeError, r"gradient_steps must be an integer; got 0\.5"),
    Row(having("train_freq"), {"train_freq": (1, "minute")}, ValueError, r"train_freq|train frequency.*minute"),
    Row(having("n_steps"), {"n_steps": 0}, ValueError, r"n_steps must be at least 1; got 0"),
    Row(having("deploy", among=ALL), {"deploy": "best"}, ValueError, r"deploy must be one of .*got 'best'"),
    Row(["erl", "pderl", "cerl"], {"learner": DQN}, ValueError, r"learner must be .*DQN"),
    Row(having("learner"), {"learner": "dreamer"}, ValueError, r"learner must be .*'td3'.*got 'dreamer'"),
    Row(STEPWISE, {"train_freq": 4}, ValueError, r"train_freq must be 1.*got .*Set gradient_steps"),
    Row(["td7"], {"deploy": "checkpoint", "use_checkpoints": False}, ValueError, r"deploy must be 'learner' or None"),
    Row(["td7"], {"offline": True, "use_checkpoints": True}, ValueError, r"use_checkpoints must be None or False"),
    Row(["cem_rl"], {"importance_mixing": True, "elitism": True}, ValueError, r"elitism must be False with importance_mixing"),
    Row(["cem_rl"], {"learner_kwargs": {"policy_delay": 2}}, ValueError, r"learner_kwargs must be constants.*policy_delay"),
    Row(["cem", "cem_rl"], {"antithetic": True, "pop_size": 5}, ValueError, r"antithetic must be False or None with an odd"),
    Row(["cem", "cem_rl"], {"n_parents": 9}, ValueError, r"n_parents must be at least 1 and at most 4; got 9"),
    Row(["cerl"], {"gammas": ()}, ValueError, r"gammas must be a sequence of discount factors.*got \(\)"),
    Row(["cerl"], {"gammas": (0.9, 2.0)}, ValueError, r"gammas must be at least 0 and at most 1; got 2\.0"),
    Row(["cerl"], {"rollout_size": 1}, ValueError, r"rollout_size must be at least the number.*Raise rollout_size"),
    Row(["cerl"], {"learner": ["td3"]}, ValueError, r"learner must be one for all learners or a sequence"),
    Row(["erl_re2"], {"deploy": "checkpoint"}, ValueError, r"deploy must be 'learner' or 'champion' with learner='td3'"),
    Row(["erl_re2"], {"pevfa_layout": "columns"}, ValueError, r"pevfa_layout must be one of .*got 'columns'"),
    Row(["erl_re2"], {"pevfa_input": "state"}, ValueError, r"pevfa_input must be one of .*got 'state'"),
    Row(["erl_re2"], {"pevfa_input": "features"}, ValueError, r"mc_fitness_prob must be 1 .*got 0\.5\. Set mc_fitness_prob=1"),
    Row(["erl_re2"], {"fitness_horizon": 0}, ValueError, r"fitness_horizon must be at least 1; got 0"),
    Row(["pderl"], {"q_filter": "max"}, ValueError, r"q_filter must be one of \['min', 'q1'\]; got 'max'"),
    Row(["pderl"], {"parent_matching": "love"}, ValueError, r"parent_matching must be one of .*got 'love'"),
    Row(["pop_td7"], {"selection": "oracle"}, ValueError, r"selection must be one of .*got 'oracle'"),
    Row(ES, {"n_pairs": 0}, ValueError, r"n_pairs must be at least 1; got 0"),
    Row(ES, {"optimizer": "lion"}, ValueError, r"optimizer must be one of .*got 'lion'"),
    Row(ES, {"ties": "coin"}, ValueError, r"ties must be one of .*got 'coin'"),
    Row([*ES, "deep_ga", "esac"], {"sigma": "lin_0.1"}, ValueError, r"sigma must be a number, or a schedule.*got 'lin_0\.1'"),
    Row(ES, {"sigma": -1.0}, ValueError, r"sigma must be .*got -1"),
    Row(["openai_es"], {"fitness_shaping": "rank"}, ValueError, r"fitness_shaping must be one of .*got 'rank'"),
    Row(ES, {"episode_cutoff": (100, 0.5)}, ValueError, r"episode_cutoff must be None, a number of steps, or .*\(100, 0\.5\)"),
    Row(ES, {"noise_table_size": 10}, ValueError, r"noise_table_size must be .*got 10"),
    Row(["deep_ga"], {"truncation": 99}, ValueError, r"truncation must be .*got 99"),
    Row(["deep_ga", "random_search"], {"n_finalists": 99}, ValueError, r"n_finalists must be .*got 99"),
    Row(["deep_ga", "ga_ns", "random_search"], {"init": "zeros"}, ValueError, r"init must be one of .*got 'zeros'"),
    Row(NOVELTY, {"behavior": "style"}, ValueError, r"behavior must be one of .*got 'style'"),
    Row(NOVELTY, {"novelty_k": 0}, ValueError, r"novelty_k must be at least 1; got 0"),
    Row(NOVELTY, {"distance": "taxi"}, ValueError, r"distance must be one of .*got 'taxi'"),
    Row(NOVELTY, {"archive_max_size": 0}, ValueError, r"max_size must be at least 1; got 0"),
    Row(
        ["ns_es", "nsr_es", "nsra_es"],
        {"parent_selection": "oldest"},
        ValueError,
        r"parent_selection must be one of .*'oldest'",
    ),
    Row(["nsra_es"], {"reward_weight": 2.0}, ValueError, r"reward_weight must be .*at most 1; got 2\.0"),
]


def rows(table: list[Row]) -> Any:
    """A case per row and class."""
    found = [pytest.param(name, *row[1:], id=f"{name}-{n}") for n, row in enumerate(table) for name in row.names]
    return pytest.mark.parametrize(("name", "given", "error", "words"), found)


def expect(error: type[Exception], words: str, call: Callable[[], Any]) -> None:
    """The call raises the error itself, not one that it is a kind of by chance, and says these words."""
    with pytest.raises(error) as caught:
        call()
    assert re.search(words, str(caught.value), re.DOTALL), f"{type(caught.value).__name__}: {caught.value}"


@rows(CONSTRUCTORS)
def test_constructors(name: str, given: dict[str, Any], error: type[Exception], words: str) -> None:
    settings = {"policy": "MlpPolicy", "env": toy_vec_env(), **fast(name), **given}
    expect(error, words, lambda: ALGOS[name](**settings))


# -------------------------------------------------------------------- learn

LEARNS = [
    Row(ALL, {"total_timesteps": 0}, ValueError, r"total_timesteps must be greater than 0.*got 0"),
    Row(ALL, {"total_timesteps": -10}, ValueError, r"total_timesteps must be greater than 0.*got -10"),
    Row(ALL, {"total_timesteps": "1e6"}, TypeError, r"total_timesteps must be a number; got '1e6'"),
    Row(ALL, {"total_timesteps": None}, TypeError, r"total_timesteps must be a number; got None"),
    Row(ALL, {"total_timesteps": float("nan")}, ValueError, r"total_timesteps must be greater than 0.*got nan"),
    Row(ALL, {"total_timesteps": float("inf")}, ValueError, r"total_timesteps must be greater than 0 and at most .*got inf"),
    Row(ALL, {"callback": 5}, TypeError, r"callback must be None, a BaseCallback, a list of them or a function; got 5"),
    Row(ALL, {"callback": ["eval"]}, TypeError, r"callback must be None, a BaseCallback, a list .*got 'eval'"),
    Row(ALL, {"log_interval": 0}, ValueError, r"log_interval must be at least 1; got 0"),
    Row(ALL, {"log_interval": "often"}, TypeError, r"log_interval must be an integer; got 'often'"),
    Row(ALL, {"logging": 1}, TypeError, r"unexpected keyword argument 'logging'"),
]
_models: dict[str, Any] = {}


def model_of(name: str) -> Any:
    """One that was never trained; each class has a single one, because calls that are refused leave it as it is."""
    if name not in _models:
        _models[name] = make(name)
    return _models[name]


@rows(LEARNS)
def test_learn(name: str, given: dict[str, Any], error: type[Exception], words: str) -> None:
    model = model_of(name)
    expect(error, words, lambda: model.learn(**{"total_timesteps": 10, **given}))
    assert model.num_timesteps == 0


# -------------------------------------------------------------------- load and what a model is given later


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files: a model and a buffer of each class, and others that are none."""
    folder = tmp_path_factory.mktemp("files")
    for name in ALL:
        model_of(name).save(folder / name)
    for name in HYBRIDS:
        model_of(name).save_replay_buffer(folder / name)
    TD3("MlpPolicy", toy_vec_env(), buffer_size=10, policy_kwargs={"net_arch": [4]}).save(folder / "sb3_td3")
    make("erl", toy_vec_env(action_shape=(3,))).save_replay_buffer(folder / "wide")
    for suffix in ("zip", "pkl"):
        (folder / f"text.{suffix}").write_text("not what you think")
        (folder / f"nothing.{suffix}").write_bytes(b"")
    (folder / "folder").mkdir()
    NoveltyArchive().save(folder / "archive.pkl")
    with zipfile.ZipFile(folder / "other.zip", "w") as archive:
        archive.writestr("data", "{}")
    return folder


def other(name: str) -> str:
    """Another class than this one."""
    return ALL[(ALL.index(name) + 1) % len(ALL)]


LOADS = [
    Row(ALL, {"path": "absent"}, FileNotFoundError, r"absent"),
    Row(ALL, {"path": "folder"}, ValueError, r"path=.*folder.* must be a zip file.*it is a folder.*resume_from"),
    Row(ALL, {"path": "text"}, ValueError, r"path=.*text.* must be a zip file that save\(\) wrote"),
    Row(ALL, {"path": "nothing"}, ValueError, r"path=.*nothing.* must be a zip file that save\(\) wrote"),
    Row(ALL, {"path": "other"}, ValueError, r"path=.*other.* must hold a model that SB3's save\(\) wrote; it has no policy"),
    Row(ALL, {"path": "sb3_td3"}, ValueError, r"path=.*sb3_td3.*that sb3_erl saved.*another package.*load_parameters"),
    Row(ALL, {"path": other}, ValueError, r"path=.* must hold a saved (\w+); it is a saved (\w+)\. Use \2\.load"),
    Row(ALL, {"popsize": 5}, TypeError, r"load\(\) got \['popsize'\], which \w+ does not have; the closest are"),
    Row(ALL, {"seed": "lucky"}, TypeError, r"seed must be an integer; got 'lucky'"),
    Row(ALL, {"device": "gpu0"}, ValueError, r"device.*gpu0"),
    Row(ALL, {"env": toy_vec_env(action_shape=(3,))}, ValueError, r"Action spaces do not match"),
    Row(ALL, {"env": gym.make("CartPole-v1")}, ValueError, r"Observation spaces do not match"),
    Row(ALL, {"env": "CartPole-v1"}, ValueError, r"Observation spaces do not match"),
    Row(ALL, {"env": "Antelope-v9"}, ValueError, r"env must be an environment or the id of a registered one: .*Antelope"),
    Row(ALL, {"policy_kwargs": {"net_arch": [99]}}, ValueError, r"policy kwargs do not equal the stored"),
    Row(POPULATIONS, {"pop_size": 11}, ValueError, r"(pop_size|path=).*11"),
    Row(POPULATIONS, {"pop_size": 0}, ValueError, r"pop_size must be at least 2; got 0"),
    Row(HYBRIDS, {"buffer_size": 0}, ValueError, r"buffer_size must be at least 1; got 0"),
]
BUFFERS = [
    Row(HYBRIDS, "absent", FileNotFoundError, r"absent"),
    Row(HYBRIDS, "text", ValueError, r"path=.*text.* must be a replay buffer that save_replay_buffer\(\) wrote.*earlier save"),
    Row(HYBRIDS, "nothing", ValueError, r"path=.*nothing.* must be a replay buffer that save_replay_buffer\(\) wrote"),
    Row(HYBRIDS, "archive", ValueError, r"path=.*archive.* must be a replay buffer that save_replay_buffer\(\) wrote"),
    Row(
        HYBRIDS,
        "wide",
        ValueError,
        r"path=.*wide.* with the action_space of the model.*Load the buffer of a model",
    ),
]
LATER = [
    Row(ALL, ("set_env", [toy_vec_env(action_shape=(3,))]), ValueError, r"Action spaces do not match"),
    Row(ALL, ("set_parameters", ["absent.zip"]), FileNotFoundError, r"absent"),
    Row(ALL, ("set_parameters", [{"polcy": {}}]), ValueError, r"polcy"),
    Row(ALL, ("predict", [np.zeros((1, 7), np.float32)]), ValueError, r"observation shape \(1, 7\).*please use \(3,\)"),
    Row(having("pop_size", among=GENERATIONAL), ("individual", [99]), IndexError, r"index"),
]


@rows(LOADS)
def test_load(name: str, given: dict[str, Any], error: type[Exception], words: str, files: Path) -> None:
    settings = {"path": name, **given}
    path = settings.pop("path")
    expect(error, words, lambda: ALGOS[name].load(files / (path(name) if callable(path) else path), **settings))


@rows(BUFFERS)
def test_load_replay_buffer(name: str, given: str, error: type[Exception], words: str, files: Path) -> None:
    model = model_of(name)
    kept = model.replay_buffer
    expect(error, words, lambda: model.load_replay_buffer(files / given))
    assert model.replay_buffer is kept


@rows(LATER)
def test_what_a_model_is_given_later(name: str, given: tuple[str, list[Any]], error: type[Exception], words: str) -> None:
    method, arguments = given
    expect(error, words, lambda: getattr(model_of(name), method)(*arguments))


# -------------------------------------------------------------------- evaluators

EVALUATORS = [
    ({"n_workers": 0}, ValueError, r"n_workers must be at least 1; got 0"),
    ({"n_workers": 1.5}, TypeError, r"n_workers must be an integer; got 1\.5"),
    ({"episode_timeout": 0}, ValueError, r"episode_timeout must be greater than 0; got 0"),
    ({"episode_timeout": "long"}, TypeError, r"episode_timeout must be a number; got 'long'"),
    ({"start_timeout": -1}, ValueError, r"start_timeout must be greater than 0; got -1"),
    ({"make_env": "Pendulum-v1"}, TypeError, r"make_env must be a function that makes one environment; got 'Pendulum-v1'"),
]


@pytest.mark.parametrize(("kwargs", "error", "words"), EVALUATORS)
@pytest.mark.parametrize("kind", [ProcessEvaluator, RayEvaluator])
def test_evaluators(kind: Any, kwargs: dict[str, Any], error: type[Exception], words: str) -> None:
    expect(error, words, lambda: kind(**kwargs))


@pytest.mark.parametrize("name", ["openai_es", "cem"])
def test_a_spoiled_normalizer(name: str) -> None:
    env = VecNormalize(toy_vec_env())
    env.obs_rms.mean[0] = np.nan
    words = r"env has a VecNormalize whose statistics are not finite.*make a new VecNormalize"
    expect(ValueError, words, lambda: make(name, env).learn(10))
