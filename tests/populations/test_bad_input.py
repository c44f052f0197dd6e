"""Wrong arguments are named, with what was expected, what came, and the way out."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_erl import PBT, Choice, IntUniform, LogUniform, Uniform
from sb3_erl.populations.applying import REFUSED
from sb3_erl.populations.exploit import BinaryTournament, Truncation
from sb3_erl.populations.explore import Perturb, Resample
from tests.envs import ToyEnv
from tests.populations.settings import environment, make

RATE = {"learning_rate": LogUniform(1e-5, 1e-2)}


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({"algorithm": "pppo"}, ValueError, r"algorithm must be one of .*'ppo'.*did you mean 'ppo'"),
        ({"algorithm": dict}, TypeError, r"algorithm must be a class of SB3.*such as PPO.*got <class 'dict'>"),
        ({"algorithm": PBT}, TypeError, r"algorithm must be a class of SB3.* whose models train alone"),
        ({"algorithm": PPO("MlpPolicy", "CartPole-v1", device="cpu")}, TypeError, r"algorithm must be a class of SB3"),
        ({"algorithm": "collections:OrderedDict"}, TypeError, r"algorithm must be a class of SB3"),
        ({"pop_size": 1}, ValueError, r"pop_size must be at least 2; got 1"),
        ({"pop_size": 2.5}, TypeError, r"pop_size must be an integer; got 2\.5"),
        ({"ready_steps": 15}, ValueError, r"ready_steps must be at least one rollout of PPO.* = 16 \* 1 = 16 steps; got 15"),
        ({"ready_steps": 0}, ValueError, r"ready_steps must be at least 1; got 0"),
        (
            {"search_space": {"n_steps": IntUniform(8, 64)}},
            ValueError,
            r"ready_steps must be at least one rollout of PPO.* = 64 \* 1 = 64 steps; got 48",
        ),
        (
            {"search_space": {"learnin_rate": Uniform(0, 1)}},
            ValueError,
            r"has no 'learnin_rate' \(did you mean 'learning_rate'",
        ),
        ({"search_space": {"tau": Uniform(0, 1)}}, ValueError, r"search_space must name arguments of PPO, which has no 'tau'"),
        ({"search_space": {"policy_kwargs": Choice([1, 2])}}, ValueError, r"must not name 'policy_kwargs': .*which networks"),
        ({"search_space": {}}, ValueError, r"search_space must name at least one argument"),
        ({"search_space": [1]}, TypeError, r"search_space must be a dict of knobs"),
        ({"search_space": {"gamma": 0.9}}, TypeError, r"search_space must map names to one of .*gamma=0\.9"),
        ({"search_space": {"gamma": "Uniform(0.9"}}, ValueError, r"search_space must map names to one of .*gamma='Uniform"),
        ({"search_space": {"gamma": "open('x')"}}, ValueError, r"search_space must map names to one of .*open"),
        ({"search_space": {"gamma": "Uniform(1)"}}, ValueError, r"search_space must have values that fit its kind"),
        ({"search_space": {"sac": RATE}}, ValueError, r"search_space must have an entry for the members' algorithm.*'ppo'"),
        ({"search_space": RATE, "initial_hyperparameters": [{"gamma": 1}]}, ValueError, r"initial_hyperparameters .*'gamma'"),
        (
            {"search_space": RATE, "initial_hyperparameters": [{"learning_rate": 1.0}]},
            ValueError,
            r"initial_hyperparameters must lie in search_space, learning_rate=LogUniform.*got 1\.0",
        ),
        (
            {"initial_hyperparameters": [{}] * 4},
            ValueError,
            r"initial_hyperparameters must be at most pop_size=3 dicts; got 4",
        ),
        ({"initial_hyperparameters": {"gamma": 1}}, TypeError, r"initial_hyperparameters must be a list of dicts"),
        (
            {"algorithm_kwargs": {"n_step": 8}},
            TypeError,
            r"algorithm_kwargs .* PPO, which has no 'n_step'; did you mean 'n_steps'",
        ),
        ({"algorithm_kwargs": "dict(n_steps=8)"}, TypeError, r"algorithm_kwargs must be None or a dict .*n_steps: 256"),
        ({"algorithm_kwargs": {"seed": 8}}, ValueError, r"algorithm_kwargs must not have 'seed'"),
        (
            {"algorithm_kwargs": {"policy_kwargs": {"net_arch": [4]}}},
            ValueError,
            r"algorithm_kwargs must not have 'policy_kwargs' where PBT's own policy_kwargs is given",
        ),
        (
            {"algorithm_kwargs": {"learning_rate": "lin_3e-4"}, "search_space": {"gamma": Choice([0.9, 0.99])}},
            ValueError,
            r"algorithm_kwargs must have a number or a function .* for 'learning_rate'; got 'lin_3e-4'.* settings of the Zoo",
        ),
        (
            {"algorithm_kwargs": {"clip_range": "lin_0.2"}, "search_space": {"clip_range": Choice([0.1, 0.2])}},
            ValueError,
            r"algorithm_kwargs must have a number or a function of the remaining progress for 'clip_range'; got 'lin_0\.2'",
        ),
        (
            {"search_space": {"n_epochs": Uniform(1, 3)}},
            ValueError,
            r"search_space must have integers for 'n_epochs', such as IntUniform .*got Uniform",
        ),
        ({"search_space": {"batch_size": Choice([16, "a"])}}, ValueError, r"search_space must have integers for 'batch_size'"),
        ({"search_space": {"batch_size": Choice([16, 0])}}, ValueError, r"search_space must have values of at least 1 for"),
        (
            {"search_space": {"gamma": Uniform(0.9, 1.5)}},
            ValueError,
            r"search_space must have values of at least 0 and at most 1 for 'gamma'; got Uniform\(low=0\.9, high=1\.5\)",
        ),
        ({"exploit": "best"}, ValueError, r"exploit must be one of .*'truncation'.*got 'best'"),
        ({"exploit": 3}, TypeError, r"exploit must be a key.*got 3"),
        (
            {"exploit_kwargs": {"share": 0.1}},
            TypeError,
            r"exploit_kwargs must be arguments of Truncation; got \{'share': 0\.1\}",
        ),
        ({"exploit": Truncation(), "exploit_kwargs": {"fraction": 0.1}}, ValueError, r"exploit_kwargs must be empty"),
        ({"exploit_kwargs": {"fraction": 0.6}}, ValueError, r"fraction must be greater than 0 and at most 0\.5; got 0\.6"),
        ({"explore": "noise"}, ValueError, r"explore must be one of .*'perturb'.*got 'noise'"),
        ({"explore_kwargs": {"factors": (-1, 2)}}, ValueError, r"factors must be greater than 0; got -1"),
        ({"score": "best"}, ValueError, r"score must be one of \['evaluation', 'training'\]; got 'best'"),
        ({"n_eval_episodes": 0}, ValueError, r"n_eval_episodes must be at least 1; got 0"),
        ({"n_report_episodes": -1}, ValueError, r"n_report_episodes must be at least 0; got -1"),
        ({"n_threads": 0}, ValueError, r"n_threads must be at least 1; got 0"),
        ({"evaluator": "cluster"}, ValueError, r"evaluator must be one of .*got 'cluster'"),
    ],
)
def test_arguments(kwargs: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make("ppo", **kwargs)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_change_while_a_model_trains(name: str) -> None:
    with pytest.raises(ValueError, match=f"search_space must not name '{name}': .+ Give it in algorithm_kwargs"):
        make("sac", search_space={name: Choice([1, 2])})


@pytest.mark.parametrize(
    ("key", "name", "knob"),
    [
        ("a2c", "rms_prop_eps", Uniform(1e-6, 1e-4)),  # the constructor puts it into policy_kwargs
        ("a2c", "use_rms_prop", Choice([True, False])),
        ("sac", "n_steps", IntUniform(1, 3)),
        ("sac", "ent_coef", Choice(["auto", 0.1])),  # one has an optimizer of its own, and the other has none
        ("erl_re2", "policy_embedding_dim", Choice([8, 16])),
    ],
)
def test_arguments_that_are_read_when_a_model_is_constructed(key: str, name: str, knob: Any) -> None:
    with pytest.raises(ValueError, match="search_space must"):
        make(key, search_space={name: knob})


def test_there_is_no_default_space_for_a_class_of_ones_own() -> None:
    class Own(A2C):
        pass

    with pytest.raises(ValueError, match="search_space must be given for Own"):
        make("a2c", algorithm=Own)


def test_an_environment_that_the_members_cannot_learn_in() -> None:
    with pytest.raises(ValueError, match=r"env must be one that SAC can learn in: .*Discrete"):
        PBT("MlpPolicy", "CartPole-v1", algorithm=SAC)
    with pytest.raises(ValueError, match=r"policy must be one of .*got 'MlpLstmPolicy'"):
        make("ppo", policy_kwargs={}).__class__("MlpLstmPolicy", environment("ppo"))


def test_scores_of_training_need_a_monitor() -> None:
    with pytest.raises(ValueError, match="score must be 'evaluation' for an env without SB3's Monitor"):
        make("ppo", DummyVecEnv([ToyEnv]), score="training")
    assert make("ppo", gym.wrappers.TimeLimit(ToyEnv(), 20), score="training").learn(144).n_generations == 1


def test_a_schedule_can_be_searched_where_sb3_takes_schedules() -> None:
    kwargs = {"n_steps": 16, "batch_size": 16, "ent_coef": lambda progress: 0.1}
    with pytest.raises(ValueError, match=r"must not name 'ent_coef' while algorithm_kwargs has a function"):
        make("ppo", algorithm_kwargs=kwargs, search_space={"ent_coef": Uniform(0, 1)})


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Uniform(1, 0),
        lambda: Uniform(0, float("inf")),
        lambda: LogUniform(0, 1),
        lambda: IntUniform(3, 3),
        lambda: Choice([1]),
        lambda: Choice("ab"),
        lambda: Perturb(()),
        lambda: Resample(2.0),
    ],
)
def test_knobs(wrong: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=re.compile("must")):
        wrong()


def test_index_of_a_member() -> None:
    model = make("ppo", exploit=BinaryTournament())
    for index in (-1, 3):
        with pytest.raises(IndexError, match=f"index must be at least 0 and below pop_size=3; got {index}"):
            model.individual(index)


def test_load_takes_the_algorithm_of_the_members(tmp_path: Path) -> None:
    """``rl_zoo3 train -i`` hands the constructor's arguments to ``load``."""
    make("ppo").save(tmp_path / "model")
    for choice in ("ppo", PPO, "stable_baselines3:PPO"):
        loaded = PBT.load(tmp_path / "model", env=environment("ppo"), algorithm=choice)
        loaded.save(tmp_path / "again")
        assert (loaded.member_class, PBT.load(tmp_path / "again").member_class) == (PPO, PPO)
    with pytest.raises(ValueError, match=r"algorithm must stay as it was saved, PPO; got 'a2c' instead\. Load without it"):
        PBT.load(tmp_path / "model", algorithm="a2c")
