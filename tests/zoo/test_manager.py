"""The Zoo's ``ExperimentManager`` with what this package adds to it, in this process."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.her import HerReplayBuffer
from torch import nn

from benchmarks.killed_run import differences, fingerprint
from sb3_erl.zoo import register
from sb3_erl.zoo.members import members_arguments

pytestmark = [pytest.mark.zoo, pytest.mark.slow, pytest.mark.xdist_group("zoo_manager")]


@pytest.fixture(scope="module")
def manager_class() -> Any:
    """The Zoo's class, complete."""
    register()
    from rl_zoo3.exp_manager import ExperimentManager  # type: ignore[import-untyped]

    return ExperimentManager


def setup(manager_class: Any, folder: Path, settings: dict[str, Any], algo: str = "pbt", **words: Any) -> tuple[Any, Any]:
    """
    :param manager_class: of the Zoo
    :param folder: for files
    :param settings: what the YAML file has
    :param algo: key
    :param words: of the command line, by the names of arguments
    :return: manager and model
    """
    (folder / "settings.yml").write_text(yaml.safe_dump({"default": {"policy": "MlpPolicy", **settings}}))
    args = argparse.Namespace(**{"n_timesteps": -1, **words})
    common = {
        "eval_freq": -1,
        "log_interval": -1,
        "verbose": 0,
        "device": "cpu",
        "config": str(folder / "settings.yml"),
        "seed": 1,
    }
    manager = manager_class(args, algo, words.pop("env", "Pendulum-v1"), str(folder / "logs"), **common, **vars(args))
    made = manager.setup_experiment()
    return manager, None if made is None else made[0]


# -------------------------------------------------------------------- arguments of PBT's members

SMALL = {"n_timesteps": 400, "pop_size": 2, "ready_steps": 64, "n_eval_episodes": 1, "n_report_episodes": 0}
RATE = {"learning_rate": "LogUniform(1e-4, 1e-2)"}


def test_schedules_of_members_are_scaled_or_taken(manager_class: Any, tmp_path: Path) -> None:
    kwargs = {"n_steps": 64, "learning_rate": "lin_3e-4", "clip_range": "lin_0.2", "policy_kwargs": "dict(net_arch=[8])"}
    settings = {**SMALL, "algorithm": "ppo", "search_space": RATE, "algorithm_kwargs": kwargs}
    manager, model = setup(manager_class, tmp_path, settings)
    for number in range(2):
        member, begin = model.individual(number), model._members[number].hyperparameters["learning_rate"]
        assert [member.lr_schedule(progress) for progress in (1.0, 0.5)] == [pytest.approx(begin), pytest.approx(begin / 2)]
        assert [member.clip_range(progress) for progress in (1.0, 0.5)] == [pytest.approx(0.2), pytest.approx(0.1)]
        assert member.policy.net_arch == [8]
    manager.learn(model)
    assert model.n_generations >= 1
    config = (tmp_path / "logs" / "pbt" / "Pendulum-v1_1" / "Pendulum-v1" / "config.yml").read_text()
    assert "lin_3e-4" in config and "dict(net_arch=[8])" in config, "what a user wrote"


def test_members_get_what_the_zoo_would_give_their_class(manager_class: Any, tmp_path: Path) -> None:
    kwargs = {"train_freq": [1, "episode"], "noise_type": "normal", "noise_std": 0.1, "buffer_size": 1000}
    settings = {**SMALL, "algorithm": "td3", "search_space": RATE, "algorithm_kwargs": kwargs}
    member = setup(manager_class, tmp_path, settings)[1].individual(0)
    assert (member.train_freq.frequency, member.train_freq.unit.value) == (1, "episode")
    assert isinstance(member.action_noise, NormalActionNoise) and member.action_noise._sigma.tolist() == [0.1]


def test_a_text_may_be_all_arguments(manager_class: Any, tmp_path: Path) -> None:
    settings = {**SMALL, "algorithm": "a2c", "search_space": RATE, "algorithm_kwargs": "dict(n_steps=7)"}
    assert setup(manager_class, tmp_path, settings)[1].individual(0).n_steps == 7
    with pytest.raises(TypeError, match="algorithm_kwargs must be None or a dict"):
        setup(manager_class, tmp_path, {**settings, "algorithm_kwargs": "[7]"})


def test_texts_are_those_of_the_zoos_module(manager_class: Any) -> None:
    from rl_zoo3 import exp_manager

    given = {
        "replay_buffer_class": "HerReplayBuffer",
        "replay_buffer_kwargs": "dict(n_sampled_goal=2)",
        "policy_kwargs": "dict(activation_fn=nn.ReLU)",
        "clip_range_vf": -1,
        "learning_rate": 0.1,
    }
    before = dict(given)
    found = members_arguments(given, manager_class, vars(exp_manager))
    assert given == before, "the Zoo writes them to its own files as they are"
    assert found["replay_buffer_class"] is HerReplayBuffer and found["replay_buffer_kwargs"] == {"n_sampled_goal": 2}
    assert found["policy_kwargs"] == {"activation_fn": nn.ReLU} and (found["clip_range_vf"], found["learning_rate"]) == (
        -1,
        0.1,
    )
    assert members_arguments(None, manager_class, {}) is None


def test_searched_tuples_of_a_file(manager_class: Any, tmp_path: Path) -> None:
    space = {"train_freq": [[1, "step"], [2, "episode"]]}
    first = [{"train_freq": [2, "episode"]}]
    settings = {**SMALL, "algorithm": "sac", "search_space": space, "initial_hyperparameters": first}
    settings["algorithm_kwargs"] = {"buffer_size": 1000, "learning_starts": 10, "batch_size": 16}
    model = setup(manager_class, tmp_path, settings)[1]
    assert model._members[0].hyperparameters == {"train_freq": (2, "episode")}
    assert model.individual(0).train_freq.unit.value == "episode"


# -------------------------------------------------------------------- a run that goes on

ARS: dict[str, Any] = {"policy_kwargs": "dict(net_arch=[8])", "pop_size": 4}


@pytest.mark.parametrize("algo", ["cem", "pbt"])
def test_a_run_goes_on_to_the_steps_of_the_first_command(manager_class: Any, algo: str, tmp_path: Path) -> None:
    """Whatever the YAML file says of new runs; another ``-n`` that was typed is taken, with a warning."""
    settings = {"n_timesteps": 4000, **ARS} if algo == "cem" else {**SMALL, "n_timesteps": 4000, "algorithm": "a2c"}
    manager, model = setup(manager_class, tmp_path, settings, algo, n_timesteps=1200, save_freq=200)
    manager.learn(model)
    checkpoints = sorted((tmp_path / "logs" / algo / "Pendulum-v1_1" / "checkpoints").glob("checkpoint_*"))
    agent = str(checkpoints[0] / "model.zip")
    manager, rest = setup(manager_class, tmp_path, settings, algo, trained_agent=agent)
    assert 0 < rest.num_timesteps < 1200 == manager.n_timesteps
    manager.learn(rest)
    assert rest.num_timesteps == model.num_timesteps >= 1200 and differences(fingerprint(model), fingerprint(rest)) == []
    manager, longer = setup(manager_class, tmp_path, settings, algo, trained_agent=agent, n_timesteps=1600)
    with pytest.warns(UserWarning, match="total_timesteps was 1200 in the call of learn.* and is 1600 now"):
        manager.learn(longer)
    assert longer.num_timesteps >= 1600 and np.isfinite(longer.num_timesteps)


# -------------------------------------------------------------------- studies

NETWORK = {"policy_kwargs": "dict(net_arch=[4])"}
STUDY = {"optimize_hyperparameters": True, "n_trials": 2, "n_startup_trials": 2, "n_evaluations": 1, "no_optim_plots": True}
FEW = {"n_timesteps": 400, "buffer_size": 1000, "learning_starts": 300, **NETWORK}


def studied(manager_class: Any, folder: Path, algo: str, settings: dict[str, Any]) -> list[Any]:
    """The trials of a study of two."""
    optuna = pytest.importorskip("optuna")
    found: list[Any] = []
    create = optuna.create_study

    def remembered(**arguments: Any) -> Any:
        found.append(create(**arguments))
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optuna, "create_study", remembered)
        setup(manager_class, folder, settings, algo, **STUDY)[0].hyperparameters_optimization()
    return found[0].trials


@pytest.mark.parametrize(
    ("algo", "settings"),
    [
        ("erl", {**FEW, "evolver": "cem", "pop_size": 3}),
        ("cem", {"n_timesteps": 400, "evolver": "ga", **NETWORK}),
        ("cem_rl", {**FEW, "evolver": "ga"}),
    ],
)
def test_trials_have_the_arguments_that_the_evolver_takes(
    manager_class: Any, algo: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    trials = studied(manager_class, tmp_path, algo, settings)
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE"]
    names = {name for trial in trials for name in trial.params}
    assert names and names.isdisjoint(
        {"sigma_init", "elitism"} if settings["evolver"] == "ga" else {"mutation_prob", "crossover"}
    )


def test_trials_make_no_checkpoints_of_one_run(manager_class: Any, tmp_path: Path) -> None:
    where = tmp_path / "checkpoints"
    callbacks = [{"sb3_erl.GenerationCheckpoint": {"save_freq": 100, "save_path": str(where)}}, "sb3_erl.PopulationCallback"]
    for given in (callbacks, callbacks[0]):
        trials = studied(manager_class, tmp_path, "cem", {"n_timesteps": 400, "callback": given, **NETWORK})
        assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE"]
    assert not where.exists() or not list(where.iterdir())


def test_a_study_of_another_algorithm_is_the_zoos(manager_class: Any, tmp_path: Path) -> None:
    settings = {
        "n_timesteps": 300,
        "learning_starts": 200,
        "callback": "stable_baselines3.common.callbacks.ProgressBarCallback",
    }
    manager = setup(manager_class, tmp_path, settings, "td3", **STUDY)[0]
    callbacks = manager.specified_callbacks
    manager.hyperparameters_optimization()
    assert callbacks and manager.specified_callbacks in (callbacks, [callbacks])
