"""Every ``hyperparams/*.yml`` is one the Zoo can read and its algorithm can be built from."""

from __future__ import annotations

import inspect
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium import spaces
from torch import nn

from sb3_erl import ALGOS
from sb3_erl.envs.packages import MODULES, register_namespaces
from sb3_erl.zoo import hyperparams_file, hyperparams_folder

# Keys that the Zoo uses itself and does not pass on to the constructor
RESERVED = {
    *("n_timesteps", "n_envs", "normalize", "frame_stack", "env_wrapper", "vec_env_wrapper", "callback"),
    *("monitor_kwargs", "env_kwargs", "noise_type", "noise_std"),
}
REQUIRED = {"policy", "n_timesteps"}


def settings(algo: str) -> dict[str, dict[str, Any]]:
    """The entries of a file; of a missing one none, which is the first test's matter."""
    file = hyperparams_file(algo)
    return yaml.safe_load(file.read_text()) if file.is_file() else {}


register_namespaces()  # as the Zoo does
ENTRIES = [(algo, env_id) for algo in ALGOS for env_id in settings(algo)]


def test_one_file_for_every_algorithm() -> None:
    assert {path.stem for path in hyperparams_folder().glob("*.yml")} == set(ALGOS)


@pytest.mark.parametrize("algo", ALGOS)
def test_id_is_lower_case(algo: str) -> None:
    assert algo == algo.lower(), "the Zoo's plots look for a folder in lower case"


@pytest.mark.parametrize("algo", ALGOS)
def test_default_comes_first(algo: str) -> None:
    assert next(iter(settings(algo)), None) == "default"


@pytest.mark.parametrize(("algo", "env_id"), ENTRIES)
def test_keys_are_arguments(algo: str, env_id: str) -> None:
    entry = settings(algo)[env_id]
    assert set(entry) >= REQUIRED
    assert set(entry) - RESERVED <= set(inspect.signature(ALGOS[algo]).parameters)


@pytest.mark.parametrize(("algo", "env_id"), ENTRIES)
def test_environment_is_registered(algo: str, env_id: str) -> None:
    assert env_id in ("default", "atari") or is_atari_game(env_id) or env_id in gym.registry


@pytest.mark.parametrize("algo", ALGOS)
def test_versions_of_a_task_share_their_settings(algo: str) -> None:
    entries = settings(algo)
    for env_id in entries:
        if env_id.endswith("-v4"):
            newer = env_id.replace("-v4", "-v5")
            if "NoFrameskip" in env_id:
                newer = f"ALE/{newer.replace('NoFrameskip', '')}"
            assert entries[newer] == entries[env_id]


class Screen(gym.Env):
    """What the Zoo's wrappers make of an Atari game, as far as spaces go."""

    observation_space = spaces.Box(0, 255, (84, 84, 4), np.uint8)
    action_space = spaces.Discrete(6)


class Numbers(gym.Env):
    """A task of an optional package, as far as spaces go."""

    observation_space = spaces.Box(-np.inf, np.inf, (17,), np.float64)
    action_space = spaces.Box(-1, 1, (6,), np.float64)


def is_atari_game(env_id: str) -> bool:
    ale_py = pytest.importorskip("ale_py") if "Frostbite" in env_id else None
    if ale_py is not None:
        gym.register_envs(ale_py)
    return env_id in gym.registry and "AtariEnv" in str(gym.registry[env_id].entry_point)


def make_env(env_id: str) -> gym.Env:
    if env_id == "atari" or is_atari_game(env_id):
        return Screen()
    if env_id.partition("/")[0] in MODULES:
        return Numbers()
    try:
        return gym.make(env_id)
    except gym.error.DependencyNotInstalled:  # LunarLander needs an extra of Gymnasium
        return gym.make("Pendulum-v1")


FEW = {"pop_size": 4, "truncation": 2, "n_finalists": 2, "n_pairs": 2}
"""A population that has room where the published one, or its networks, fill a cluster."""


@pytest.mark.parametrize(("algo", "env_id"), ENTRIES)
def test_class_can_be_constructed(algo: str, env_id: str) -> None:
    present = inspect.signature(ALGOS[algo]).parameters
    arguments = {key: value for key, value in settings(algo)[env_id].items() if key not in RESERVED}
    if isinstance(arguments.get("policy_kwargs"), str):
        arguments["policy_kwargs"] = eval(arguments["policy_kwargs"], {"nn": nn})  # as the Zoo does
    if "buffer_size" in present:
        arguments["buffer_size"] = 100  # the settings' own would only cost memory here
    if arguments["policy"] == "CnnPolicy" or max(arguments.get(size, 0) for size in ("pop_size", "n_pairs")) > 200:
        arguments |= {key: value for key, value in FEW.items() if key in present}
    usual = "Pendulum-v1" if getattr(ALGOS[algo], "takes_continuous_actions", True) else "CartPole-v1"
    model = ALGOS[algo](env=make_env(usual if env_id == "default" else env_id), device="cpu", seed=0, **arguments)
    for key, value in arguments.items():
        if key not in ("policy", "train_freq", "algorithm"):  # SB3 makes an object of train_freq; PBT's own class is algorithm
            assert getattr(model, key) == value, key


OFFLINE = [
    (path.stem, env_id) for path in hyperparams_folder().glob("offline/*.yml") for env_id in yaml.safe_load(path.read_text())
]


@pytest.mark.parametrize(("algo", "env_id"), OFFLINE)
def test_offline_entry_learns_from_the_dataset_it_names(algo: str, env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rl_zoo3.utils import get_callback_list

    from sb3_erl.buffers import offline

    entry = yaml.safe_load((hyperparams_folder() / "offline" / f"{algo}.yml").read_text())[env_id]
    (callback,) = get_callback_list(entry)
    arguments = {key: value for key, value in entry.items() if key not in RESERVED}
    model = ALGOS[algo](env=gym.make(env_id), device="cpu", seed=0, buffer_size=100, batch_size=4, **arguments)
    named = []

    def fill(model: Any, dataset: str) -> int:
        named.append(dataset)
        shape = (1, model.action_space.shape[0])
        observation = model.observation_space.sample()[None]
        model.replay_buffer.add(observation, observation, np.zeros(shape), np.zeros(1), np.zeros(1), [{}])
        return 1

    monkeypatch.setattr(offline, "fill_replay_buffer", fill)
    model.learn(2, callback)
    assert model._n_updates == 2 and named == [callback.dataset] and env_id.split("-")[0].lower() in callback.dataset
