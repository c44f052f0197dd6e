"""Files of populations: values that JSON does not have, and members whose replay buffers ask environments."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_erl import PBT, Choice, GenerationCheckpoint
from sb3_erl.populations import saved_states
from sb3_erl.populations.saved_states import has_tuples, mark_tuples, unmark_tuples
from tests.contract.helpers import differences, snapshot
from tests.populations.settings import SHORT, contents, environment, make
from tests.populations.test_parts import HER, goals

STEP, STEPS, EPISODE = (1, "step"), (4, "step"), (1, "episode")
PLAIN: dict[str, Any] = {"buffer_size": 500, "learning_starts": 10, "batch_size": 16}


@dataclass(frozen=True)
class Pair:
    """A knob of one's own, whose values are tuples."""

    def sample(self, rng: np.random.Generator) -> tuple[int, str]:
        return (int(rng.integers(1, 5)), "step")

    def perturb(self, value: Any, rng: np.random.Generator, factors: Any = ()) -> tuple[int, str]:
        assert self.holds(value)
        return self.sample(rng)

    def holds(self, value: Any) -> bool:
        return type(value) is tuple and 1 <= value[0] < 5

    def values(self) -> tuple[Any, ...]:
        return (STEP, STEPS)


SPACES: dict[str, Any] = {
    "choice": Choice([STEP, STEPS, EPISODE]),
    "list": [STEP, STEPS, EPISODE],
    "text": "Choice([(1, 'step'), (4, 'step'), (1, 'episode')])",
    "yaml": [list(STEP), list(STEPS), list(EPISODE)],
    "own": Pair(),
}


def tuned(space: str, **kwargs: Any) -> PBT:
    """A population that searches ``train_freq``."""
    arguments = {"algorithm_kwargs": PLAIN, "search_space": {"train_freq": SPACES[space]}, **SHORT, **kwargs}
    return make("sac", **arguments)


def again(model: PBT, **kwargs: Any) -> PBT:
    """The population from its file."""
    file = io.BytesIO()
    model.save(file, include=["replay_buffers"])
    file.seek(0)
    return PBT.load(file, environment("sac"), device="cpu", **kwargs)


@pytest.mark.parametrize("space", SPACES)
def test_tuples_are_tuples_again(space: str) -> None:
    first = list(STEPS) if space == "yaml" else STEPS
    model = tuned(space, initial_hyperparameters=[{"train_freq": first}]).learn(100)
    loaded = again(model)
    assert differences(contents(model), contents(loaded)) == []
    assert all(type(state.hyperparameters["train_freq"]) is tuple for state in (*model._members, *loaded._members))
    assert loaded._members[0].hyperparameters == model._members[0].hyperparameters
    assert loaded.lineage().equals(model.lineage()) and loaded.lineage().train_freq[0] == STEPS
    if space in ("list", "own"):
        assert loaded.initial_hyperparameters == model.initial_hyperparameters == [{"train_freq": STEPS}]
    for each in (model, loaded):
        each.learn(200, reset_num_timesteps=False)
    assert differences(contents(model), contents(loaded)) == []


def test_a_run_with_tuples_is_continued(tmp_path: Path) -> None:
    whole = tuned("choice", explore="perturb").learn(300, GenerationCheckpoint(1, tmp_path, keep=None))
    folders = sorted(tmp_path.glob("checkpoint_*"))
    assert len(folders) >= 3
    model = PBT.resume_from(folders[0], environment("sac"), "cpu").learn(300)
    assert differences(contents(whole), contents(model)) == []


@pytest.mark.parametrize("space", ["choice", "list"])
def test_files_of_the_first_version_had_lists(space: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tuned(space).learn(100)
    monkeypatch.setattr(saved_states, "has_tuples", lambda value: False)
    monkeypatch.setattr(saved_states, "mark_tuples", lambda value: value)
    loaded = again(model)
    assert differences(contents(model), contents(loaded)) == []
    assert loaded.learn(200, reset_num_timesteps=False).n_generations > model.n_generations


def test_tuples_of_algorithm_kwargs() -> None:
    model = make("sac", algorithm_kwargs={**PLAIN, "train_freq": (2, "episode")}, **SHORT)
    assert again(model).algorithm_kwargs == model.algorithm_kwargs
    listed = make("sac", algorithm_kwargs={**PLAIN, "train_freq": [2, "episode"]}, **SHORT)
    assert listed.algorithm_kwargs == model.algorithm_kwargs and listed.individual(0).train_freq.frequency == 2


def test_marks() -> None:
    value = {"a": (1, [2, (3,)]), "b": [{"c": ()}], "d": "text", "e": None}
    assert has_tuples(value) and not has_tuples(mark_tuples(value))
    assert unmark_tuples(mark_tuples(value)) == value
    assert unmark_tuples({"a": [1, {"b": 2}]}) == {"a": [1, {"b": 2}]}


def test_a_choice_takes_lists_for_tuples() -> None:
    knob = Choice([[1, "step"], (4, "step")])
    assert knob.options == ((1, "step"), (4, "step")) and knob.holds([1, "step"]) and not knob.holds([2, "step"])
    assert knob.perturb([1, "step"], np.random.default_rng(0), (2.0,)) == (4, "step")


# -------------------------------------------------------------------- hindsight, which asks environments for rewards


def hindsight(**kwargs: Any) -> PBT:
    """A population whose members have hindsight replay buffers."""
    common: dict[str, Any] = {"pop_size": 3, "ready_steps": 32, "n_eval_episodes": 1, "n_report_episodes": 1, "seed": 1}
    env = DummyVecEnv([goals])
    return PBT("MultiInputPolicy", env, algorithm="sac", algorithm_kwargs=HER, device="cpu", **{**common, **kwargs})


def test_the_genetic_algorithm_takes_members_with_hindsight() -> None:
    crossing = {"elite_fraction": 0.4, "tournament_size": 2, "crossover_prob": 1.0}
    model = hindsight(exploit="ga", exploit_kwargs=crossing).learn(600)
    assert model.n_generations > 2 and set(model.lineage().outcome) == {"trained"} and model.lineage().parent.iloc[3:].any()
    assert type(model.individual(0).replay_buffer) is HER["replay_buffer_class"]


def test_a_population_with_hindsight_acts_without_environments(tmp_path: Path) -> None:
    model = hindsight().learn(200)
    model.save(tmp_path / "model", include=["replay_buffers"])
    observation = goals().reset(seed=0)[0]
    actor = PBT.load(tmp_path / "model", device="cpu")
    assert np.array_equal(*(each.predict(observation, deterministic=True)[0] for each in (model, actor)))
    actor.save(tmp_path / "again", include=["replay_buffers"])
    loaded = PBT.load(tmp_path / "again", DummyVecEnv([goals]), device="cpu")
    assert differences(snapshot(model.individual(1)), snapshot(loaded.individual(1))) == []
    assert loaded.learn(400, reset_num_timesteps=False).n_generations > model.n_generations
