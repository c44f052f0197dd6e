"""Callbacks that count: the progress bar ends at the counted steps, and callbacks come at the steps that were asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    ProgressBarCallback,
)

from sb3_erl.remote.process import ProcessEvaluator
from sb3_erl.runs.run import with_progress_bar
from tests.contract.settings import GENERATIONAL, NAMES, known, make, toy_actions
from tests.envs import ToyEnv, toy_vec_env


class Bar:
    """A progress bar that shows nothing."""

    def __init__(self, total: int):
        self.total, self.n, self.is_closed = total, 0, False
        BARS.append(self)

    def update(self, n: int) -> None:
        assert n >= 0
        self.n += n

    def refresh(self) -> None: ...

    def close(self) -> None:
        self.is_closed = True


BARS: list[Bar] = []


@pytest.fixture(autouse=True)
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    BARS.clear()
    monkeypatch.setattr("stable_baselines3.common.callbacks.tqdm", Bar)
    return BARS


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_the_bar_ends_where_the_counted_steps_do(name: str, n_envs: int, bars: list[Bar]) -> None:
    """Slots without a job are not counted, so a step of two environments may count one."""
    model = make(name, toy_vec_env(n_envs, vary=3, **toy_actions(name)))
    model.learn(90, progress_bar=True)
    model.learn(20, callback=lambda *_: True, reset_num_timesteps=False, progress_bar=True)
    first, second = bars
    assert first.total == 90 and first.n + second.n == model.num_timesteps
    assert first.n in (90, 91) and second.total == 20 and second.n in (20, 21)
    assert first.is_closed and second.is_closed


def test_a_bar_among_the_callbacks_counts_steps(bars: list[Bar]) -> None:
    """The Zoo's ``-P`` gives SB3's bar as a callback."""
    for callback in (ProgressBarCallback(), [ProgressBarCallback()], CallbackList([CallbackList([ProgressBarCallback()])])):
        model = make("erl", toy_vec_env(2, vary=3)).learn(90, callback)
        assert bars[-1].n == model.num_timesteps in (90, 91)
    assert len(bars) == 3


def test_the_bar_of_workers_counts_single_steps(bars: list[Bar]) -> None:
    model = make("openai_es", toy_vec_env(2), evaluator=ProcessEvaluator(1, make_env=ToyEnv)).learn(70, progress_bar=True)
    model.evaluator.close()
    assert bars[0].n == bars[0].total == model.num_timesteps == 70


def test_a_bar_without_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stable_baselines3.common.callbacks.tqdm", None)
    with pytest.raises(ImportError, match="tqdm and rich"):
        with_progress_bar(None)


class Notes(BaseCallback):
    """Notes at which counted step it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def _on_step(self) -> bool:
        self.steps.append(self.num_timesteps)
        return True


@pytest.mark.parametrize("name", NAMES)
def test_callbacks_by_counted_steps(name: str, tmp_path: Path) -> None:
    """SB3's EveryNTimesteps counts steps, where ``eval_freq`` and ``save_freq`` count calls."""
    notes, kwargs = Notes(), toy_actions(name)
    evaluation = EvalCallback(toy_vec_env(**kwargs), eval_freq=1, n_eval_episodes=1, log_path=str(tmp_path), verbose=0)
    saving: Any = CheckpointCallback(1, str(tmp_path))
    every = [EveryNTimesteps(30, one) for one in (notes, evaluation, saving)]
    make(name, toy_vec_env(2, vary=3, **kwargs)).learn(100, every)
    assert [at - at % 30 for at in notes.steps] == [30, 60, 90] and all(at % 30 < 6 for at in notes.steps)
    assert evaluation.evaluations_timesteps == notes.steps
    assert sorted(int(path.stem.split("_")[-2]) for path in tmp_path.glob("*_steps.zip")) == notes.steps


@pytest.mark.parametrize("name", GENERATIONAL)
def test_callbacks_are_called_at_every_vector_step(name: str) -> None:
    """``n_calls`` counts vector steps, of which each is between one and ``n_envs`` counted ones."""
    notes = Notes()
    make(name, toy_vec_env(2, vary=3, **toy_actions(name)), **known(name, {})).learn(90, notes)
    gaps = [after - before for before, after in zip([0, *notes.steps], notes.steps, strict=False)]
    assert set(gaps) <= {1, 2} and len(notes.steps) == notes.n_calls
