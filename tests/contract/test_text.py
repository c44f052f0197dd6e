"""What ``print(model)`` shows."""

from __future__ import annotations

import inspect
import re
from typing import Any

import gymnasium as gym
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_erl import ALGOS
from sb3_erl.runs.description import deployed, env_name
from tests.contract.settings import GENERATIONAL, HYBRIDS, NAMES, make
from tests.envs import toy_vec_env


@pytest.mark.parametrize("name", NAMES)
def test_a_printed_model_says_what_it_is(name: str) -> None:
    model = make(name).learn(60)
    lines = str(model).splitlines()
    assert lines[0] == type(model).__name__ and 5 <= len(lines) <= 7
    parts = {line.split(":")[0].strip(): line for line in lines[1:]}
    assert set(parts) >= {"policy", "environment", "trained", "predict"}
    assert f"acts with the {deployed(model)[0]}" in parts["predict"]
    assert type(model.policy).__name__ in parts["policy"] and "ToyEnv" in parts["environment"]
    assert f"{model.num_timesteps} steps" in parts["trained"] and "seed 3" in parts["trained"]
    n = getattr(model, "n_generations", None)
    counted = "" if n is None else "1 generation," if n == 1 else f"{n} generations,"
    assert (n is not None) == (name in GENERATIONAL) and counted in parts["trained"]
    assert ("population" in parts) == hasattr(model, "pop_size")
    assert ("learner" in parts) == (name in HYBRIDS)
    if name in HYBRIDS:
        assert f"{model._n_updates} updates" in parts["learner"]
        assert not {"Learner", "Rule", "Shared"} & set(re.findall("[A-Z][a-z]+", parts["learner"]))


@pytest.mark.parametrize("name", NAMES)
def test_the_first_line_of_code_in_a_docstring_fits_the_class(name: str) -> None:
    """Where a docstring begins with an example, it is one of this class, with arguments that it has."""
    text = (inspect.getdoc(ALGOS[name]) or "").split(":param")[0]
    found = re.search(r"``(\w+)(\([^`]*?\))\.learn\(", text)
    if found is None:
        assert name not in ("erl", "erl_re2", "cerl", "pderl", "cem", "deep_ga", "ga_ns")
        return
    cls: Any = ALGOS[name]
    assert found.group(1) == cls.__name__
    eval(f"inspect.signature(cls).bind{found.group(2)}", {"inspect": inspect, "cls": cls})


def test_short_form() -> None:
    env = VecNormalize(make_vec_env("Pendulum-v1", 2))
    assert repr(ALGOS["td7"]("MlpPolicy", env)) == "TD7(TD7Policy, Pendulum-v1, num_timesteps=0)"
    assert env_name(None) == "no env" and env_name(toy_vec_env()) == "ToyEnv"
    processes = toy_vec_env(2, subprocess=True)
    assert env_name(processes) == "SubprocVecEnv", "other processes are not asked"
    processes.close()


def test_a_model_that_could_not_be_made_has_a_text() -> None:
    seen: list[str] = []
    default = ALGOS["cem"].policy_aliases["MlpPolicy"].__name__

    class Broken(ALGOS["cem"]):  # type: ignore[misc, name-defined, valid-type]
        def _setup_model(self) -> None:
            seen.extend([str(self), repr(self)])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        Broken("MlpPolicy", gym.make("Pendulum-v1"))
    assert seen == ["Broken (not set up)", f"Broken({default}, Pendulum-v1, num_timesteps=0)"]
