"""What a user sees on a model: ``help`` has what is to be called, machinery is private or belongs to a part."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

import sb3_erl
from sb3_erl import ALGOS

CALLED = {
    "learn", "save", "load", "resume_from", "rng", "train", "set_parameters", "dump_logs",
    "individual", "learner_agent", "learner_agents", "member", "most_novel", "mother_agent", "winner_agent",
    "evolver", "heads", "archive", "best", "workers", "champion_fitness", "champion_return", "n_rollouts", "counted_timesteps",
    "candidates_for_report", "export", "lineage",
}  # fmt: skip
"""What users of a trained or running model call and read, beside SB3's own."""
STATED = {
    "default_policy", "policy_aliases", "deploy", "deploy_choices", "takes_discrete_actions", "takes_continuous_actions",
    "takes_several_choices",
    "own_log_interval", "generation_order", "episode_needs", "learner_needs", "published_rates", "mode", "is_of_population",
    "reported_candidates", "trains_whole_models", "checkpoint_includes",
}  # fmt: skip
"""Facts about a class that its author states in its body, and that its users can read."""


@pytest.mark.parametrize("name", list(ALGOS))
def test_public_attributes_are_reviewed(name: str) -> None:
    cls = ALGOS[name]
    base = OffPolicyAlgorithm if issubclass(cls, OffPolicyAlgorithm) else BaseAlgorithm
    own = {attribute for attribute in dir(cls) if not attribute.startswith("_")} - set(dir(base))
    assert own - CALLED - STATED == set()


def test_list_of_public_attributes_has_nothing_else() -> None:
    assert {name for name in CALLED | STATED if not any(hasattr(cls, name) for cls in ALGOS.values())} == set()


@pytest.mark.parametrize("name", list(ALGOS))
def test_public_methods_and_properties_are_documented(name: str) -> None:
    cls: Any = ALGOS[name]
    for attribute in CALLED | STATED:
        member = inspect.getattr_static(cls, attribute, None)
        if isinstance(member, property) or callable(member):
            assert inspect.getdoc(getattr(cls, attribute)), attribute


@pytest.mark.parametrize("name", list(ALGOS))
def test_docstrings_begin_with_a_call_that_trains(name: str) -> None:
    """What stands there can be typed: the class takes these arguments and this environment."""
    text = " ".join((inspect.getdoc(ALGOS[name]) or "").partition(":param")[0].split())
    examples = re.findall(r"``(\w+\([^`]*\))\.learn\(([\d_]+)\)``", text)
    assert [len(examples), examples[0][0].partition("(")[0]] == [1, ALGOS[name].__name__]
    model = eval(examples[0][0], vars(sb3_erl))
    assert type(model) is ALGOS[name] and int(examples[0][1]) >= 10_000
    model.env.close()
