"""What could be reported of a model: which candidates a class has, and that testing them leaves a run as it is."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import TD3
from stable_baselines3.common.callbacks import BaseCallback

from benchmarks.evaluation import (
    COLUMNS,
    Checkpoints,
    Curve,
    LearningCurveCallback,
    candidates_of,
    evaluate_candidates,
    read_rows,
)
from benchmarks.report import plot, read_curves, summarize
from sb3_erl import ALGOS
from tests.contract.helpers import Witness, differences, snapshot
from tests.contract.settings import ALL, make
from tests.envs import toy_vec_env

OBSERVATIONS = np.random.default_rng(0).uniform(-2, 2, (50, 3)).astype(np.float32)
KNOWN: dict[str, tuple[str, str]] = {
    "cem": ("mean champion", "mean"),
    "cem_rl": ("mean champion", "mean"),
    "cerl": ("learner champion", "champion"),
    "deep_ga": ("champion", "champion"),
    "erl": ("learner champion", "champion"),
    "erl_re2": ("learner champion", "learner champion"),
    "esac": ("learner sampled_learner mother winner", "sampled_learner"),
    "evo_rainbow": ("learner champion mean", "learner champion"),
    "evo_rainbow_exp": ("learner champion mean", "learner champion"),
    "ga_ns": ("champion", "champion"),
    "ns_es": ("mean", "mean"),
    "nsr_es": ("mean", "mean"),
    "nsra_es": ("mean", "mean"),
    "openai_es": ("mean", "mean"),
    "pderl": ("learner champion", "champion"),
    "pop_td7": ("learner checkpoint", "checkpoint"),
    "random_search": ("champion", "champion"),
    "td7": ("learner checkpoint", "checkpoint"),
    "veb_rl": ("learner champion mean", "learner mean"),
}
"""Candidates of a class, and those of them whose best the authors' code reports."""


def act(agent: Any) -> np.ndarray:
    torch.manual_seed(0)  # some act at random
    return agent.predict(OBSERVATIONS, deterministic=True)[0]


class EveryFewSteps(LearningCurveCallback):
    """Tests all candidates every 7 steps; the toy environments are their own."""

    def __init__(self, path: Path, model: Any):
        curve = Curve(path / "seed_1.csv", 0, candidates_of(model))
        clock = {"train_seconds": 0.0, "total_seconds": 0.0}
        env = toy_vec_env(2, vary=3)
        super().__init__(env, curve, Checkpoints(path / "saved"), 10_000, 7, 10_000, clock, report=lambda line: None)


class Nothing(BaseCallback):
    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("name", ALL)
def test_a_run_with_tests_is_the_run_without(name: str, tmp_path: Path) -> None:
    """Weights, optimizers, buffers and counters bit for bit, and all global generators."""

    def states() -> list[Any]:
        return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # type: ignore[index]

    plain, tested = make(name, toy_vec_env(vary=3)), make(name, toy_vec_env(vary=3))
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    plain.learn(190, Nothing())
    before = states()
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    callback = EveryFewSteps(tmp_path, tested)
    tested.learn(190, callback)
    assert differences(snapshot(plain), snapshot(tested)) == []
    assert states() == before
    rows = read_rows(tmp_path / "seed_1.csv")
    assert len(rows) >= 20
    columns = [f"{candidate}_return" for candidate in candidates_of(tested)]
    for row in rows:
        returns = {column.removesuffix("_return"): float(row[column]) for column in columns}
        best = [returns[candidate] for candidate in tested.reported_candidates if candidate in returns]
        assert float(row["reported"]) == max(best, default=float(row["mean"]))


@pytest.mark.parametrize("name", list(KNOWN))
def test_candidates_are_the_same_ones_all_along(name: str, tmp_path: Path) -> None:
    model, (candidates, reported) = make(name), (set(words.split()) for words in KNOWN[name])
    assert set(model.candidates_for_report()) == candidates and set(model.reported_candidates) == reported
    witness = Witness()
    model.learn(200, witness)
    model = make(name).learn(witness.generation_ends[-1])
    found = model.candidates_for_report()
    assert set(found) == candidates
    for agent in found.values():
        assert act(agent).shape[0] == 50
    assert any(np.array_equal(act(model), act(agent)) for agent in found.values()), "one of them is deployed"
    model.save(tmp_path / "model")
    loaded = ALGOS[name].load(tmp_path / "model", device="cpu").candidates_for_report()
    assert {key: act(agent).tolist() for key, agent in loaded.items()} == {
        k: act(agent).tolist() for k, agent in found.items()
    }


@pytest.mark.parametrize(
    ("name", "deploy"), [("erl", "learner"), ("erl_re2", "learner"), ("cerl", "learner"), ("cem_rl", "mean")]
)
def test_the_champion_is_known_where_another_one_is_deployed(name: str, deploy: str, tmp_path: Path) -> None:
    witness = Witness()
    make(name, deploy=deploy).learn(220, witness)
    other = make(name, deploy="champion").learn(witness.generation_ends[-1])
    model = make(name, deploy=deploy).learn(witness.generation_ends[-1])
    champion = model.candidates_for_report()["champion"]
    assert np.array_equal(act(champion), act(other)) and not np.array_equal(act(champion), act(model))
    model.save(tmp_path / "model")
    loaded = ALGOS[name].load(tmp_path / "model", device="cpu")
    assert np.array_equal(act(loaded.candidates_for_report()["champion"]), act(other))


def test_learner_alone_and_checkpoints() -> None:
    alone = make("erl_re2", evolution=False).learn(100)
    assert set(alone.candidates_for_report()) == {"learner"}
    checkpoint = make("erl_re2", learner="td7").learn(100)
    assert set(checkpoint.candidates_for_report()) == {"learner", "champion", "checkpoint"}
    assert checkpoint.candidates_for_report()["checkpoint"] is checkpoint.policy.deployed
    assert set(make("td7", use_checkpoints=False).candidates_for_report()) == {"learner"}
    assert set(make("erl", evolver="cem", pop_size=4, deploy="learner").candidates_for_report()) == {"learner", "champion"}


@pytest.mark.parametrize("name", ["erl", "pderl", "cerl", "erl_re2", "evo_rainbow"])
def test_without_evolution_only_the_learner_acts_and_learns(name: str, tmp_path: Path) -> None:
    model = make(name, evolution=False)
    start = model.evolver.candidates.clone()
    model.learn(200)
    assert model._n_updates > 0 and model.num_timesteps == model.n_learner_steps
    assert model.champion_fitness is None and model._n_injections == 0
    assert torch.equal(model.evolver.candidates, start)
    assert set(model.candidates_for_report()) == {"learner"}
    assert np.array_equal(act(model), act(model.candidates_for_report()["learner"]))
    model.save(tmp_path / "model")
    assert ALGOS[name].load(tmp_path / "model", device="cpu").evolution is False


def test_what_is_reported_is_the_best_of_those_that_the_authors_report() -> None:
    model = make("erl_re2", deploy="learner").learn(200)
    asked: list[Any] = []

    def test(agent: Any) -> np.ndarray:
        asked.append(agent)
        return np.array([1.0, 3.0]) * (5 if len(asked) > 1 else 1)

    returns, means, reported = evaluate_candidates(model, test)
    assert returns.tolist() == [1.0, 3.0] and means == {"learner": 2.0, "champion": 10.0} and reported == 10.0
    assert asked[0] is model and len(asked) == 2, "the learner is what is deployed, and not tested again"
    model.__class__ = type("OfMine", (type(model),), {"reported_candidates": ()})
    asked.clear()
    assert evaluate_candidates(model, test)[2] == 2.0, "what is deployed, if nothing is said"
    baseline = TD3("MlpPolicy", toy_vec_env(), device="cpu")
    asked.clear()
    assert evaluate_candidates(baseline, test)[1:] == ({}, 2.0) and candidates_of(baseline) == {}


def test_curves_of_earlier_versions_are_read_and_continued(tmp_path: Path) -> None:
    old = tmp_path / "seed_3.csv"
    old.write_text("steps,train_seconds,total_seconds,mean,std,champion,learner\n100,1,2,5,1,0.5,4\n200,2,4,6,1,0.6,7\n")
    (curve,) = read_curves(tmp_path)
    assert np.isnan(curve.reported).all() and curve.candidates["learner"].tolist() == [4, 7] and len(curve.candidates) == 1
    (tmp_path / "config.json").write_text("{}")
    summary = summarize(tmp_path, "")["seeds"]["3"]
    assert (summary["final"], summary["final_learner"], summary["final_reported"]) == (6.0, 7.0, None)
    continued = Curve(old, 150, ["learner", "champion"])
    row = dict.fromkeys(COLUMNS, 1.0)
    continued.append({**row, "steps": 250, "mean": 8, "reported": 9, "learner_return": 8, "champion_return": 9})
    (curve,) = read_curves(tmp_path)
    assert (
        curve.steps.tolist() == [100, 250]
        and curve.reported.tolist()[1] == 9
        and curve.candidates["champion"].tolist()[1] == 9
    )
    assert read_rows(old)[0]["champion"] == "0.5", "nothing that was there is lost"
    assert plot(tmp_path / "curve.png", "task", {"a": tmp_path}) and (tmp_path / "curve.png").stat().st_size > 5000


def test_published_results_are_read() -> None:
    results = Path(__file__).parents[2] / "docs" / "results"
    folders = sorted({path.parent for path in results.rglob("seed_*.csv")})
    assert folders and all(len(curve.steps) > 0 for folder in folders for curve in read_curves(folder))
