"""``pickle`` and ``copy.deepcopy`` take every model, before and after ``learn``; the copy learns on, with the same numbers."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize, unwrap_vec_normalize
from stable_baselines3.sac.policies import SACPolicy

from sb3_erl import ERL
from sb3_erl.policies.erl import deploying
from sb3_erl.runs.callbacks import GenerationCheckpoint
from tests.contract.helpers import differences, snapshot
from tests.contract.settings import NAMES, make, toy_actions, variants
from tests.envs import ImageEnv, toy_maker, toy_vec_env

FOREIGN: list[tuple[str, dict[str, Any]]] = [
    ("erl", {"learner": "dqn"}),
    ("erl", {"learner": "stable_baselines3:TD3"}),
    ("erl", {"learner": "sb3_contrib:TQC"}),
    ("cerl", {"learner": "stable_baselines3:SAC"}),
]
"""Learners beside those of :func:`variants`: for discrete actions, and classes of SB3."""


def pickled(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


COPIES: list[Callable[[Any], Any]] = [pickled, copy.deepcopy]


def check_copies(model: Any, n_steps: int = 40) -> None:
    """A pickled copy and a deep copy go on as the model does."""
    twins = [take(model) for take in COPIES]
    assert type(twins[0]) is type(model) and type(twins[0].policy) is type(model.policy)
    for each in (*twins, model):
        each.learn(n_steps, reset_num_timesteps=False)
    for twin in twins:
        assert differences(snapshot(twin), snapshot(model)) == []


@pytest.mark.parametrize(("name", "arguments"), variants() + FOREIGN, ids=str)
def test_models_pickle_before_and_after_learn_and_learn_on(name, arguments):
    actions = {"n_actions": 3} if arguments.get("learner") == "dqn" else toy_actions(name)
    model = make(name, toy_vec_env(**actions), **arguments)
    check_copies(model)  # before: what follows is the first training
    check_copies(model)


@pytest.mark.parametrize("name", ["erl", "td7", "openai_es"])
def test_models_that_write_logs_and_checkpoints_pickle(name, tmp_path, capsys):
    model = make(name, verbose=1, tensorboard_log=str(tmp_path / "logs"))
    model.learn(40, callback=GenerationCheckpoint(save_freq=10, save_path=tmp_path / "checkpoints"))
    check_copies(model)


def stacked() -> VecFrameStack:
    return VecFrameStack(toy_vec_env(2), 2)


@pytest.mark.parametrize("name", ["erl", "td7", "openai_es"])
@pytest.mark.parametrize("wrap", [lambda: VecNormalize(toy_vec_env(2)), stacked], ids=["VecNormalize", "VecFrameStack"])
def test_models_whose_environments_have_wrappers_pickle(name, wrap):
    model = make(name, wrap()).learn(40)
    for twin in (take(model) for take in COPIES):
        assert type(twin.env) is type(model.env) and twin.env is not model.env
        assert twin.get_vec_normalize_env() is unwrap_vec_normalize(twin.env)
    check_copies(model)


@pytest.mark.parametrize("arguments", [{"learner": "sac"}, {}], ids=["sac", "ddpg"])
def test_models_of_images_pickle(arguments):
    model = make("erl", DummyVecEnv([toy_maker(ImageEnv)]), policy="CnnPolicy", policy_kwargs={}, buffer_size=100, **arguments)
    check_copies(model.learn(30), 20)


def test_noise_with_a_memory_goes_on_in_a_copy():
    noise = OrnsteinUhlenbeckActionNoise(np.zeros(2), np.full(2, 0.2))
    check_copies(make("td7", action_noise=noise).learn(13))  # ends within an episode


@pytest.mark.parametrize("name, arguments", [("erl", {"learner": "td3"}), ("erl_re2", {"learner": "td7"})])
def test_a_learner_that_is_one_program_is_copied_uncompiled(name, arguments):
    learner = make(name, **arguments).learner
    learner.compile()
    twin = pickled(learner)
    assert learner.programs is not None and twin.programs is None
    assert learner._is_compiled and not twin._is_compiled


def test_a_learner_whose_losses_are_compiled_is_copied_uncompiled():
    learner = make("td7", policy_kwargs={"net_arch": [8], "optimizer_class": th.optim.RMSprop}).learner
    learner.compile()
    twin = pickled(learner)
    assert learner.programs is None and "_embed" in vars(learner) and "_embed" not in vars(twin)
    assert twin._embed.__func__ is type(learner)._embed


def test_a_pickled_model_is_read_by_another_process(tmp_path):
    path = tmp_path / "model.pkl"
    model = ERL("Pendulum-v1", learner="sac", policy_kwargs={"net_arch": [8]}, buffer_size=500)
    path.write_bytes(pickle.dumps(model))
    code = "import pickle, sys; m = pickle.load(open(sys.argv[1], 'rb')); print(repr(m.learn(20)), m.policy_class.__name__)"
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "num_timesteps=20) DeployingSACPolicy" in result.stdout


def test_classes_made_of_a_policy_of_sb3_are_pickled_as_that_policy():
    made: type[BasePolicy] = deploying(SACPolicy)
    assert pickled(made) is made
    assert pickled(type(made)) is type(made)


def test_environments_in_other_processes_are_named():
    model = make("erl", SubprocVecEnv([toy_maker()], start_method="fork"))
    try:
        with pytest.raises(TypeError, match=r"env must not live in other processes .* DummyVecEnv"):
            pickle.dumps(model)
    finally:
        model.env.close()


def test_every_class_is_covered():
    assert {name for name, _ in variants()} == set(NAMES)
