"""Constructors and methods look like SB3's, and every argument is typed, documented and kept under its own name."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_erl import ALGOS
from tests.contract.settings import ALL, NAMES, make

PARTS = {"learner", "evolver", "exchange", "fitness"}
KEPT_ELSEWHERE = {
    "stats_window_size": "_stats_window_size",
    "policy": "policy_class",
    **{part: f"{part}_class" for part in PARTS},
}
"""Arguments that SB3 itself keeps under another name, and those that name parts, whose objects have their names."""
CONVERTED = {"policy", "env", "device", "train_freq", "policy_kwargs", "replay_buffer_kwargs", "replay_buffer_class"}
"""Arguments that SB3 itself turns into something else."""


def arguments(name: str) -> dict[str, inspect.Parameter]:
    parameters = dict(inspect.signature(ALGOS[name].__init__).parameters)
    del parameters["self"]
    return parameters


@pytest.mark.parametrize("name", ALL)
def test_order_and_defaults_are_sb3s(name: str) -> None:
    parameters = arguments(name)
    assert list(parameters)[:3] == ["policy", "env", "learning_rate"]
    assert list(parameters)[-3:] == ["seed", "device", "_init_setup_model"]
    assert all(p.default is not inspect.Parameter.empty for p in parameters.values()), "load() needs defaults"
    base = OffPolicyAlgorithm if issubclass(ALGOS[name], OffPolicyAlgorithm) else BaseAlgorithm
    theirs = inspect.signature(base.__init__).parameters
    for argument in ("stats_window_size", "tensorboard_log", "verbose", "device", "seed", "optimize_memory_usage", "n_steps"):
        if argument in parameters and argument in theirs:
            assert parameters[argument].default == theirs[argument].default, argument


@pytest.mark.parametrize("name", ALL)
def test_arguments_are_typed_and_documented(name: str) -> None:
    text = "\n".join(inspect.getdoc(cls) or "" for cls in ALGOS[name].__mro__ if cls.__module__.startswith("sb3_erl"))
    documented = set(re.findall(r"^:param (\w+):", text, flags=re.MULTILINE))
    public = {key: p for key, p in arguments(name).items() if not key.startswith("_")}
    assert set(public) <= documented
    assert [key for key, p in public.items() if p.annotation is inspect.Parameter.empty] == []


@pytest.mark.parametrize("name", NAMES)
def test_arguments_become_attributes_unconverted(name: str) -> None:
    model, cls = make(name), ALGOS[name]
    plain = cls("MlpPolicy", model.get_env(), device="cpu")
    for key, parameter in arguments(name).items():
        if key.startswith("_"):
            continue
        kept = KEPT_ELSEWHERE.get(key, key)
        assert hasattr(plain, kept), key
        if key not in CONVERTED:
            assert getattr(plain, kept) == parameter.default, key


@pytest.mark.parametrize("method", ["learn", "predict", "save", "load", "set_env", "get_parameters", "set_parameters"])
@pytest.mark.parametrize("name", ALL)
def test_methods_take_what_sb3s_take(name: str, method: str) -> None:
    def shape(cls: Any) -> list[str]:
        return list(inspect.signature(getattr(cls, method)).parameters)

    further = ["action_masks"] if (name, method) == ("pbt", "predict") else []  # as MaskablePPO of sb3-contrib has it
    assert shape(ALGOS[name]) == [*shape(BaseAlgorithm), *further]
