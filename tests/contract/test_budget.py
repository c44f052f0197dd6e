"""Where ``learn`` stops, what it counts, and how many updates follow."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from sb3_erl import ALGOS
from tests.contract.helpers import Witness
from tests.contract.settings import GENERATIONAL, HYBRIDS, NAMES, expected_updates, known, make, n_stored, whole
from tests.envs import toy_vec_env

LEARNING = [name for name in GENERATIONAL if name in HYBRIDS]


@pytest.mark.parametrize("total", [1, 7, 100])
@pytest.mark.parametrize("n_envs", [1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_stops_where_sb3_stops(name: str, n_envs: int, total: int) -> None:
    model = make(name, toy_vec_env(n_envs)).learn(total)
    assert total <= model.num_timesteps < total + n_envs
    if name in HYBRIDS:
        assert n_stored(model) == model.num_timesteps, "every counted step is stored and no other"


@pytest.mark.parametrize("name", NAMES)
def test_counts_on_or_anew(name: str) -> None:
    model = make(name)
    model.learn(30)
    model.learn(25, reset_num_timesteps=False)
    assert model.num_timesteps == 55
    model.learn(20)
    assert model.num_timesteps == 20
    if name in HYBRIDS:
        assert model.replay_buffer.size() == 75, "nothing is forgotten"


@pytest.mark.parametrize("name", NAMES)
def test_floats_are_budgets_and_nonsense_is_not(name: str) -> None:
    assert make(name).learn(3e1).num_timesteps == 30
    for nonsense in (0, -5):
        with pytest.raises(ValueError, match="total_timesteps"):
            make(name).learn(nonsense)


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize(
    ("frequency", "per_step"),
    [({"train_freq": 3}, 1 / 3), ({"gradient_steps": -1}, 1.0), ({"train_freq": 1, "gradient_steps": 2}, 2.0)],
)
@pytest.mark.parametrize("name", LEARNING)
def test_updates_per_step(name: str, frequency: dict[str, Any], per_step: float, n_envs: int) -> None:
    """The promise of ``gradient_steps=-1`` (as many updates as transitions) at the end of each generation."""
    witness = Witness()
    model = make(name, toy_vec_env(n_envs), learning_starts=0, **frequency).learn(100, witness)
    assert model._n_updates == expected_updates(model, name, witness.generation_ends, per_step) > 0


@pytest.mark.parametrize("name", LEARNING)
def test_updates_per_episode(name: str) -> None:
    witness = Witness()
    settings = {"train_freq": (1, "episode"), "gradient_steps": 3, "learning_starts": 0, **whole(name)}
    model = make(name, **settings).learn(100, witness)
    assert model._n_updates == expected_updates(model, name, witness.generation_ends, 3 / 8) > 0, "episodes of 8 steps"


@pytest.mark.parametrize(
    ("name", "frequency"),
    [(name, f) for name in HYBRIDS for f in ([4, (4, "step"), (1, "episode")] if name in GENERATIONAL else [1, (1, "step")])],
)
def test_train_freq_survives_a_file(name: str, frequency: Any, tmp_path: Path) -> None:
    model = make(name, train_freq=frequency)
    model.learn(40).save(tmp_path / "model")
    kept = ALGOS[name].load(tmp_path / "model", env=toy_vec_env())
    given = ALGOS[name].load(tmp_path / "model", env=toy_vec_env(), train_freq=frequency)
    assert kept.train_freq == given.train_freq == model.train_freq
    assert kept.learn(40).num_timesteps == given.learn(40).num_timesteps == 40


@pytest.mark.parametrize("name", [name for name in HYBRIDS if name != "esac"])  # learns as soon as there is a batch
def test_no_updates_before_learning_starts(name: str) -> None:
    model = make(name, learning_starts=1000).learn(120)
    assert model._n_updates == 0 and model._episode_num > 0


@pytest.mark.parametrize("name", HYBRIDS)
def test_learning_rate_schedule_ends_at_zero(name: str) -> None:
    model = make(name, learning_rate=lambda progress: progress).learn(100)
    assert model._current_progress_remaining == 0.0
    used = [group["lr"] for optimizer in _optimizers(model) for group in optimizer.param_groups]
    assert used and all(type(rate) is float and 0.0 <= rate < 1.0 for rate in used)


def _optimizers(model: Any) -> list[Any]:
    return list(model.learner.optimizers.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_call_that_brought_nothing_says_so(name: str) -> None:
    """Each call begins new episodes, so that a loop of short calls never learns."""
    model = make(name, **known(name, {"learning_starts": 0, "explore_steps": 1, "gradient_steps": -1}))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="learn.. ended inside")
        for _ in range(333):
            model.learn(3, reset_num_timesteps=False)
    with pytest.warns(UserWarning, match=r"learn\(\) ended inside its first .* learned in the last 1002 steps") as caught:
        model.learn(3, reset_num_timesteps=False)
    assert any(warning.filename == __file__ for warning in caught)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="learn.. ended inside")
        model.learn(3, reset_num_timesteps=False)
        model.learn(200, reset_num_timesteps=False)
        assert model.run.wasted_steps == 0
        model.learn(200, lambda *_: False, reset_num_timesteps=False)
