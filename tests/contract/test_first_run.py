"""What a first run prints: a table soon, the warm-up, and in the end what is deployed; and nothing with ``verbose=0``."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.logger import configure

from sb3_erl import ALGOS, GenerationCheckpoint
from sb3_erl.runs import description
from sb3_erl.runs.description import deployed, warm_up
from tests.contract.settings import GENERATIONAL, HYBRIDS, NAMES, STEPWISE, make, whole
from tests.envs import toy_vec_env

SMALL = {"buffer_size": 3000, "policy_kwargs": {"net_arch": [8]}, "device": "cpu"}
LATE = ["cem_rl", "cerl", "erl", "pderl", "openai_es"]
"""Classes whose first generation on Pendulum has more than 1000 steps."""


@pytest.mark.parametrize("name", LATE)
def test_a_table_in_the_first_thousand_steps(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With the published settings, of which the first generation is longer."""
    settings = {key: value for key, value in SMALL.items() if name != "openai_es" or key != "buffer_size"}
    model = ALGOS[name]("Pendulum-v1", verbose=1, seed=0, **settings).learn(1000)
    text = capsys.readouterr().out
    assert model.n_generations == 0 and text.count("total_timesteps") == 1
    (steps,) = re.findall(r"total_timesteps \| (\d+)", text)
    assert 500 <= int(steps) < 1000 and "ep_rew_mean" in text
    assert ("warm_up" in text) == (name in HYBRIDS)
    assert re.search(r"^Done at step 1,000: predict\(\) acts with the \w+, whose return was not measured", text, re.MULTILINE)


def test_erl_re2_shows_its_warm_up(capsys: pytest.CaptureFixture[str]) -> None:
    """The first example of the README: random steps of the learner before anything is evaluated."""
    ALGOS["erl_re2"]("Pendulum-v1", verbose=1, seed=0, **SMALL).learn(900)
    text = capsys.readouterr().out
    assert re.findall(r"warm_up +\| (.+?) +\|", text) == [f"{n} of 10,000 learner steps" for n in (200, 400, 600, 800)]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_printed_with_verbose_0(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    make(name).learn(700)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", NAMES)
def test_the_last_line_says_what_is_deployed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = make(name, verbose=1, **whole(name)).learn(400)
    line = capsys.readouterr().out.splitlines()[-1]
    deployed_name, value = deployed(model)
    assert line.startswith(f"Done at step 400: predict() acts with the {deployed_name}, ")
    reported = {*model.candidates_for_report(), "sac", "best member"}
    assert deployed_name in reported
    assert ("was not measured" in line) == (value is None)
    assert value is None or line.endswith(f"{value:,.1f}")
    if deployed_name == "champion" and "revalidate" not in model.generation_order and model.champion_return is not None:
        assert value == model.champion_return


def test_the_last_evaluation_counts_more(capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = EvalCallback(toy_vec_env(), eval_freq=50, verbose=0)
    make("erl", verbose=1).learn(200, evaluation)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.endswith(f"return {evaluation.last_mean_reward:,.1f} in the last evaluation")


@pytest.mark.parametrize("name", [name for name in HYBRIDS if name != "esac"])
def test_the_warm_up_ends_where_the_learner_begins(name: str) -> None:
    model = make(name, learning_starts=40)
    notes, updates = [], []

    def note(*_: object) -> bool:
        notes.append(warm_up(model) is not None)
        updates.append(model._n_updates)
        return True

    assert warm_up(model) is not None
    model.learn(300, note)
    assert warm_up(model) is None and notes[0] and not notes[-1]
    assert all(n == 0 for n, waits in zip(updates, notes, strict=True) if waits)


def test_files_of_the_log_have_no_further_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Early tables are for the screen: rows of files come every ``log_interval``."""
    model = make("erl", verbose=1, pop_size=90)
    model.set_logger(configure(str(tmp_path), ["stdout", "csv", "json"]))
    model.learn(2000, log_interval=2)
    shown = capsys.readouterr().out.count("total_timesteps")
    rows = (tmp_path / "progress.csv").read_text().splitlines()
    assert len(rows) - 1 == model.n_generations // 2 == 1 < shown
    assert "warm_up" not in rows[0] and "warm_up" not in (tmp_path / "progress.json").read_text()


def test_no_tables_without_an_interval(capsys: pytest.CaptureFixture[str]) -> None:
    make("erl", verbose=1).learn(900, log_interval=None)
    assert "total_timesteps" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["erl", *STEPWISE])
def test_a_long_generation_is_heard_of(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """There is a table now and then, by the clock."""
    monkeypatch.setattr(description, "SECONDS", 0.0)
    settings = {"pop_size": 60} if name in GENERATIONAL else {}
    make(name, verbose=1, **settings).learn(560, log_interval=10_000)
    assert capsys.readouterr().out.count("total_timesteps") >= 5


@pytest.mark.parametrize("name", ["erl", "openai_es"])
def test_what_is_printed_changes_nothing(name: str) -> None:
    silent, loud = make(name).learn(700), make(name, verbose=1).learn(700)
    for one, other in zip(silent.policy.parameters(), loud.policy.parameters(), strict=True):
        np.testing.assert_array_equal(one.detach().numpy(), other.detach().numpy())


def test_a_resumed_run_knows_what_was_measured_before(tmp_path: Path) -> None:
    model = make("openai_es").learn(200, GenerationCheckpoint(40, tmp_path))
    resumed = ALGOS["openai_es"].resume_from(tmp_path, env=toy_vec_env())
    assert deployed(resumed) == ("mean", None)
    resumed.learn(200)
    assert deployed(resumed) == deployed(model) and deployed(model)[1] is not None
