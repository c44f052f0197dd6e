"""Parts of one's own: each example of ``examples/extending`` keeps every promise, by public names and in at most 40 lines."""

from __future__ import annotations

import ast
import importlib
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

import sb3_erl
from sb3_erl import CEM, CEMRL, CERL, ERL, PDERL, Distribution, ERLRe2, OpenAIES, Reseed, every, register
from sb3_erl.core.registry import PARTS
from sb3_erl.testing import PartError, check_part
from tests.envs import toy_maker
from tests.zoo.conftest import Command, command, fresh_python, wheel  # noqa: F401 fixtures

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for path in (ROOT / "examples" / "extending").glob("*.py") if path.name != "__init__.py")
OWN = "examples.extending"
QUICK: dict[str, Any] = {"env": toy_maker(length=10), "total_timesteps": 400, "learning_starts": 60}
SMALL: dict[str, Any] = {**QUICK, "policy_kwargs": {"net_arch": [16]}}
"""A budget of several generations, in most of which the learner learns."""
PURE: dict[str, Any] = {"env": toy_maker(length=10), "total_timesteps": 200, "policy_kwargs": {"net_arch": [16]}}
CARTPOLE: dict[str, Any] = {"env": "CartPole-v1", "total_timesteps": 800, "learning_starts": 100}


# -------------------------------------------------------------------- the files


def documented_modules() -> set[str]:
    """The package itself, and the modules that the page names."""
    page = (ROOT / "docs" / "extending.md").read_text()
    return {"sb3_erl"} | {word for word in page.replace("`", " ").split() if word.startswith("sb3_erl.")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_is_short_and_uses_public_names(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 40
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sb3_erl"):
            assert node.module in documented_modules()
            exported = getattr(importlib.import_module(node.module or ""), "__all__", None)
            names = {alias.name for alias in node.names}
            assert not any(name.startswith("_") for name in names) and (exported is None or names <= set(exported))
        elif isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_") or node.attr.endswith("__")


def test_exports() -> None:
    assert all(hasattr(sb3_erl, name) for name in sb3_erl.__all__)


RUNS: dict[str, tuple[float, Any]] = {
    "crossover": (1250, lambda fitness: -2000 < fitness < 0),
    "mutation": (1250, lambda std: 0 < std < 0.1),
    "cma_es": (2100, lambda fitness: -2000 < fitness < 0),
    "fitness": (1050, lambda found: len(found) == 4 and all(np.isfinite(found)) and found[0] < found[1]),
    "learner_rule": (450, lambda n_updates: 0 < n_updates < 450),
    "reseed": (3050, lambda n_generations: n_generations == 3),
    "small_population": (1300, lambda sizes: sizes == (4, 17665)),
    "discrete": (500, lambda mean: 8 <= mean <= 500),
}


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_example_runs(path: Path) -> None:
    steps, is_sensible = RUNS[path.stem]
    assert is_sensible(importlib.import_module(f"{OWN}.{path.stem}").main(steps))


# -------------------------------------------------------------------- trains, saves, loads, resumes, equal in workers

PROMISES: dict[str, tuple[Any, dict[str, Any]]] = {
    "crossover": (f"{OWN}.crossover:UniformCrossover", SMALL),
    "mutation": (f"{OWN}.mutation:DecayingMutation", SMALL),
    "evolver in ERL": (f"{OWN}.cma_es:CMAES", SMALL),
    "evolver in CEM-RL": (f"{OWN}.cma_es:CMAES", {**SMALL, "algorithm": CEMRL}),
    "evolver in ERL-Re2": (f"{OWN}.cma_es:CMAES", {**SMALL, "algorithm": ERLRe2, "policy_embedding_dim": 8}),
    "evolver in CEM": (f"{OWN}.cma_es:CMAES", {**PURE, "algorithm": CEM}),
    "evolver in OpenAI-ES": (f"{OWN}.cma_es:CMAES", {**PURE, "algorithm": OpenAIES}),
    "another evolver of the package in CEM-RL": ("ga", {**SMALL, "algorithm": CEMRL}),
    "another evolver of the package in ERL-Re2": ("cem", {**SMALL, "algorithm": ERLRe2, "policy_embedding_dim": 8}),
    "fitness": (f"{OWN}.fitness:return_minus_energy", SMALL),
    "fitness as weighted sum": ({"return": 1.0, "novelty": 10.0}, {**SMALL, "kind": "fitness"}),
    "fitness in CEM": (f"{OWN}.fitness:return_minus_energy", {**PURE, "algorithm": CEM}),
    "learner rule in ERL": (f"{OWN}.learner_rule:RandomPairRule", SMALL),
    "learner rule in PDERL": (f"{OWN}.learner_rule:RandomPairRule", {**SMALL, "algorithm": PDERL, "distill_epochs": 1}),
    "learner rule in CEM-RL": (f"{OWN}.learner_rule:RandomPairRule", {**SMALL, "algorithm": CEMRL}),
    "learner rule in ERL-Re2": (
        f"{OWN}.learner_rule:RandomPairRule",
        {**SMALL, "algorithm": ERLRe2, "policy_embedding_dim": 8},
    ),
    "step": (f"{OWN}.reseed:NoisyChampion", SMALL),
    "step every third generation": (every(3, Reseed(std=0.1)), SMALL),
    "imitation": ("imitate", {**SMALL, "kind": "exchange", "population_policy_kwargs": {"net_arch": []}, "learner": "td3"}),
    "imitation by heads": (
        "imitate",
        {**SMALL, "kind": "exchange", "algorithm": ERLRe2, "policy_embedding_dim": 8, "exchange_kwargs": {"n_steps": 2}},
    ),
    "discrete": ("dqn", CARTPOLE),
    "discrete, imitation": (
        "imitate",
        {**CARTPOLE, "kind": "exchange", "population_policy_kwargs": {"net_arch": []}, "learner": "dqn"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROMISES)
def test_part_keeps_its_promises(name: str) -> None:
    part, arguments = PROMISES[name]
    model = check_part(part, **arguments)
    assert model.num_timesteps == arguments["total_timesteps"]
    assert "learning_starts" not in arguments or model._n_updates > 0


def test_rows_of_individuals_and_learner_are_never_mixed() -> None:
    kwargs: dict[str, Any] = {"policy_kwargs": {"net_arch": [16]}, "learning_starts": 0, "sync_period": 1, "train_freq": 8}
    model = ERL(toy_maker()(), population_policy_kwargs={"net_arch": []}, pop_size=3, seed=1, **kwargs)
    assert model.evolver.candidates.shape == (3, 3 * 2 + 2) and model.population.representation.from_learner() is None
    model.learn(300)
    assert model._n_updates > 0 and model.n_generations > 0 and model._injected_slot is None
    with pytest.raises(ValueError, match="population_policy_kwargs"):
        Reseed()(model, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("learner", "env"), [("td3", toy_maker()()), ("dqn", "CartPole-v1")])
def test_an_individual_that_imitates_acts_more_like_the_learner_than_the_champion(learner: str, env: Any) -> None:
    kwargs: dict[str, Any] = {"population_policy_kwargs": {"net_arch": []}, "exchange": "imitate", "pop_size": 3, "seed": 1}
    steps = {"n_steps": 300, "learning_rate": 0.02}
    model = ERL(env, learner=learner, learning_starts=10_000, exchange_kwargs=steps, **kwargs).learn(300)
    observations = model.replay_buffer.observations[:200, 0]
    fitness = np.array([1.0, 2.0, 0.0])
    slot = model.exchange(model.population, fitness, model.sync_period, model._stored_observations)
    assert slot is not None and slot not in model.evolver.protected
    own, champion, wanted = (
        agent.predict(observations, deterministic=True)[0]
        for agent in (model.individual(slot), model.policy.deployed, model.learner_agent)
    )
    assert np.square(own - wanted).mean() < 0.3 * np.square(champion - wanted).mean()


def test_systems_refuse_what_their_parts_cannot_do() -> None:
    with pytest.raises(ValueError, match="CERL needs an env with continuous actions"):
        CERL("CartPole-v1", learner="dqn")
    with pytest.raises(TypeError, match="population_policy_kwargs"):
        PDERL("Pendulum-v1", population_policy_kwargs={"net_arch": []})
    with pytest.raises(ValueError, match="whose networks are shared with the population; got 'dqn'"):
        ERLRe2("CartPole-v1", learner="dqn")
    with pytest.raises(ValueError, match="whose actors read its embedding"):
        ERL("Pendulum-v1", learner="td7", population_policy_kwargs={"net_arch": []})


# -------------------------------------------------------------------- parts that break a promise


class ForgetfulMutation:
    """Changes an attribute that is not saved."""

    def __init__(self, layout: Any):
        self.std = 0.1

    def __call__(self, parents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        self.std *= 0.8
        return parents + (self.std * rng.standard_normal(parents.shape)).astype(parents.dtype)


def undeclared(episodes: Any, context: Any) -> np.ndarray:
    """Reads actions, which it did not declare."""
    values = [-np.square(episode.actions).sum() for episode in episodes.episodes]
    return episodes.mean_per_candidate(values, context.n_candidates)


class GlobalNumbers(Distribution):
    """Draws from NumPy's global generator."""

    def propose(self, rng: np.random.Generator) -> th.Tensor:
        noise = np.random.standard_normal(tuple(self.candidates.shape))
        return self.candidates + 0.1 * th.as_tensor(noise, dtype=self.candidates.dtype)

    def refit(self, candidates: th.Tensor, fitness: np.ndarray, rng: np.random.Generator | None) -> None:
        pass


class Idle(Distribution):
    """Proposes the same candidates for ever."""

    def propose(self, rng: np.random.Generator) -> th.Tensor:
        return self.candidates.clone()

    def refit(self, candidates: th.Tensor, fitness: np.ndarray, rng: np.random.Generator | None) -> None:
        pass


class Distorted(GlobalNumbers):
    """Is loaded with other candidates than those that were saved."""

    def propose(self, rng: np.random.Generator) -> th.Tensor:
        noise = rng.standard_normal(tuple(self.candidates.shape))
        return self.candidates + 0.1 * th.as_tensor(noise, dtype=self.candidates.dtype)

    def refit(self, candidates: th.Tensor, fitness: np.ndarray, rng: np.random.Generator | None) -> None:
        self.candidates.copy_(candidates[np.argsort(-fitness)])

    def get_extra_state(self) -> dict[str, float]:
        return {}

    def set_extra_state(self, state: dict[str, float]) -> None:
        self.candidates.add_(1.0)


def local(episodes: Any, context: Any) -> np.ndarray:
    """Depends on whether there are worker processes."""
    sign = -1 if multiprocessing.active_children() else 1
    return sign * episodes.mean_per_candidate([e.total_reward for e in episodes.episodes], context.n_candidates)


@pytest.mark.filterwarnings("ignore:mutation=ForgetfulMutation has changed its attributes:UserWarning")
@pytest.mark.parametrize(
    ("part", "kind", "arguments", "reason"),
    [
        (ForgetfulMutation, "mutation", SMALL, "resumed differs.*state that changes must be saved"),
        (undeclared, "fitness", SMALL, "must declare that it needs 'actions'"),
        (GlobalNumbers, "evolver", SMALL, "two runs with one seed differ.*generator that is handed in"),
        (Idle, "evolver", {**PURE, "algorithm": CEM}, "training changed no parameter"),
        (Distorted, "evolver", {**PURE, "algorithm": CEM}, "a loaded model differs from the saved one"),
        (local, "fitness", {**PURE, "algorithm": CEM}, "in worker processes differs.*global state that workers lack"),
    ],
)
def test_check_part_finds_broken_promises(part: Any, kind: str, arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(PartError, match=reason):
        check_part(part, kind, **arguments)


def test_abilities_that_an_evolver_lacks_are_named_at_construction() -> None:
    evolver = f"{OWN}.cma_es:CMAES"
    with pytest.raises(
        ValueError, match=r"n_migrants=1 needs an evolver with tell\(..., migrants\).*got CMAES.*leave out n_mig"
    ):
        ERL(toy_maker()(), evolver=evolver, n_migrants=1)
    with pytest.raises(ValueError, match=r"importance_mixing=True needs an evolver with draw\(\).*got CMAES"):
        CEMRL(toy_maker()(), evolver=evolver, importance_mixing=True)
    with pytest.raises(ValueError, match=r"CERL needs an evolver with tell\(..., migrants\).*choose another evolver$"):
        sb3_erl.CERL(toy_maker()(), evolver=evolver)


# -------------------------------------------------------------------- one file and one line

SWAP = """
import numpy as np

class Swap:
    def __init__(self, layout):
        self.half = layout.n_params // 2

    def __call__(self, first, second, rng):
        a, b = first.copy(), second.copy()
        a[:, self.half:], b[:, self.half:] = second[:, self.half:], first[:, self.half:]
        return a, b
"""


def test_a_crossover_is_one_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARTS, "crossover", dict(PARTS["crossover"]))  # what is registered is forgotten afterwards
    (tmp_path / "my_crossovers.py").write_text(SWAP)
    monkeypatch.syspath_prepend(tmp_path)
    register("crossover", "swap", "my_crossovers:Swap")
    model = ERL(toy_maker()(), crossover="swap", crossover_prob=1.0, pop_size=4, seed=1).learn(200)
    assert type(model.evolver.crossover).__module__ == "my_crossovers"
    model.save(tmp_path / "model.zip")
    loaded = ERL.load(tmp_path / "model.zip")
    assert loaded.crossover == "swap" and type(loaded.evolver.crossover).__name__ == "Swap"


# -------------------------------------------------------------------- the Zoo's command line

ZOO: dict[str, tuple[str, dict[str, Any]]] = {
    "parts": (
        "Pendulum-v1",
        {
            "crossover": f"{OWN}.crossover:UniformCrossover",
            "mutation": f"{OWN}.mutation:DecayingMutation",
            "fitness": f"{OWN}.fitness:return_minus_energy",
            "learner": f"{OWN}.learner_rule:RandomPairRule",
            "generation_steps": [f"{OWN}.reseed:NoisyChampion"],
            "crossover_prob": 1.0,
        },
    ),
    "population": (
        "Pendulum-v1",
        {
            "evolver": f"{OWN}.cma_es:CMAES",
            "population_policy_kwargs": {"net_arch": []},
            "exchange": "imitate",
            "exchange_kwargs": {"n_steps": 5},
        },
    ),
    "discrete": ("CartPole-v1", {"learner": "dqn"}),
}


@pytest.mark.zoo
@pytest.mark.slow
@pytest.mark.xdist_group("zoo")
@pytest.mark.parametrize("name", ZOO)
def test_zoo(name: str, command: Command, tmp_path: Path) -> None:  # noqa: F811
    env, parts = ZOO[name]
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    small = {"pop_size": 3, "learning_starts": 300, "batch_size": 16, "train_freq": 8, "sync_period": 1}
    words = [f"{key}:{value!r}" for key, value in {**small, **parts}.items()]
    arguments = ["--algo", "erl", "--env", env, "-n", "1000", "--eval-freq", "-1", "-f", "logs", "--seed", "1", "-params"]
    command("-m", "rl_zoo3.train", *arguments, *words, cwd=tmp_path)
    model = ERL.load(tmp_path / "logs" / "erl" / f"{env}_1" / f"{env}.zip")
    given = {"evolver": "evolver_class", "fitness": "fitness_class", "learner": "learner_class", "exchange": "exchange_class"}
    for key, value in parts.items():
        assert getattr(model, given.get(key, key)) == value
    assert model.num_timesteps == 1000 and model._n_updates > 0
