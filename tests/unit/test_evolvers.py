"""What all evolvers have in common: the best candidate, the center, injection, abilities, state of operators."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sb3_erl.core.noise_table import NoiseTable
from sb3_erl.core.parameters import ParameterLayout
from sb3_erl.evolution.base import Distribution, Evolver, ImportanceMixing, Migration, MirroredPairs, check_capability
from sb3_erl.evolution.cem import DiagonalCEM
from sb3_erl.evolution.es import MirroredES
from sb3_erl.evolution.ga import GA
from sb3_erl.evolution.meta_population import MetaPopulation
from sb3_erl.evolution.operators import RowCrossover
from sb3_erl.evolution.operators.mutation import GaussianMutation
from sb3_erl.evolution.operators.proximal import ProximalMutation
from sb3_erl.evolution.seed_ga import SeedGA

LAYOUT = ParameterLayout(("0.weight", "0.bias"), ((3, 40), (3,)))
D, N = LAYOUT.n_params, 6
TABLE = NoiseTable(130_000, 3)


class Shrinking(Distribution):
    """A search distribution in a few lines, as a user would write it."""

    mean: Tensor

    def __init__(self, mean: Tensor, pop_size: int, width: float = 1.0):
        super().__init__(mean, pop_size)
        self.register_buffer("mean", mean.clone())
        self.width = width

    def propose(self, rng: np.random.Generator) -> Tensor:
        return self.mean + self.width * torch.as_tensor(rng.standard_normal((self.pop_size, D)), dtype=torch.float32)

    def refit(self, candidates: Tensor, fitness: np.ndarray, rng: np.random.Generator | None) -> None:
        self.mean.copy_(candidates[np.argsort(-fitness)[:2]].mean(dim=0))

    def center(self) -> Tensor:
        return self.mean.clone()


def ga(**kwargs: Any) -> GA:
    return GA(torch.as_tensor(np.random.default_rng(9).standard_normal((N, D)), dtype=torch.float32), LAYOUT, **kwargs)


def es() -> MirroredES:
    return MirroredES(torch.linspace(-1, 1, D), N, table=TABLE)


def seed_ga() -> SeedGA:
    return SeedGA(LAYOUT, N, truncation=2, n_finalists=2, table=TABLE)


def meta_population() -> MetaPopulation:
    return MetaPopulation([es(), es()], [nn.Linear(40, 3), nn.Linear(40, 3)])


MAKERS: dict[str, Callable[[], Evolver]] = {
    "ga": ga,
    "cem": lambda: DiagonalCEM(torch.linspace(-1, 1, D), N),
    "own": lambda: Shrinking(torch.linspace(-1, 1, D), N),
    "es": es,
    "seed_ga": seed_ga,
    "meta": meta_population,
}
FITNESS = np.array([1.0, np.nan, 5.0, 2.0, 5.0, 0.0])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def saved(evolver: nn.Module) -> Any:
    """The state as it comes back from a file that holds plain values only."""
    file = io.BytesIO()
    torch.save(evolver.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("key", MAKERS)
def test_best_is_a_snapshot_of_the_last_tell(key: str) -> None:
    evolver = MAKERS[key]()
    assert evolver.best() is None
    candidates = evolver.ask(rng())
    evolver.tell(candidates, FITNESS, rng(1))
    champion = candidates[4 if key == "ga" else 2].clone()  # ERL's authors take the higher index among equals
    candidates.zero_()
    best = evolver.best()
    assert best is not None and torch.equal(best.float(), champion.float())
    best.zero_()
    evolver.ask(rng(2))
    again = evolver.best()
    assert again is not None and torch.equal(again.float(), champion.float())


@pytest.mark.parametrize("key", MAKERS)
def test_center_and_metrics(key: str) -> None:
    evolver = MAKERS[key]()
    evolver.tell(evolver.ask(rng()), FITNESS, rng(1))
    center = evolver.center()
    if key in ("ga", "seed_ga"):
        assert center is None
    else:
        assert center is not None
        mean = (evolver.active if isinstance(evolver, MetaPopulation) else evolver).mean
        assert torch.equal(center, mean) and center is not mean
        assert not torch.equal(center.float(), torch.linspace(-1, 1, D)), "it has moved"
    assert all(isinstance(value, float) for value in evolver.metrics().values())
    assert bool(evolver.metrics()) == (key not in ("ga", "own"))


@pytest.mark.parametrize("key", ["ga", "cem", "own"])
def test_injected_vectors_are_asked_for_next_and_saved(key: str) -> None:
    evolver = MAKERS[key]()
    evolver.tell(evolver.ask(rng()), FITNESS, rng(1))
    vectors = torch.stack([torch.full((D,), 7.0), torch.full((D,), 8.0)])
    evolver.inject(vectors, [4, 1])
    vectors.zero_()
    other = MAKERS[key]()
    other.load_state_dict(saved(evolver))
    for one in (evolver, other, evolver):  # a generation that was interrupted is asked for again
        candidates = one.ask(rng(2))
        assert candidates[4].eq(7).all() and candidates[1].eq(8).all() and not candidates[[0, 2, 3, 5]].ge(7).all()
    evolver.tell(candidates, FITNESS, rng(3))
    assert set(evolver.state_dict()) == set(MAKERS[key]().state_dict())
    if key != "ga":
        assert not evolver.ask(rng(4))[4].eq(7).all()


def test_injecting_twice_adds_up_and_the_later_one_wins() -> None:
    evolver = DiagonalCEM(torch.zeros(D), N)
    evolver.inject(torch.full((2, D), 1.0), [0, 3])
    evolver.inject(torch.full((2, D), 2.0), [3, 5])
    assert evolver.ask(rng())[[0, 3, 5], 0].tolist() == [1.0, 2.0, 2.0]


@pytest.mark.parametrize("key", MAKERS)
def test_injections_that_do_not_fit(key: str) -> None:
    evolver = MAKERS[key]()
    if key in ("es", "meta", "seed_ga"):
        with pytest.raises(ValueError, match=r"slots must be empty with .*got \[0\]. Choose another evolver"):
            evolver.inject(torch.zeros(1, D), [0])
        return
    for vectors, slots, message in (
        (torch.zeros(1, D + 1), [0], rf"vectors must have shape \(1, {D}\).*got \(1, {D + 1}\)"),
        (torch.zeros(1, D), [0, 1], rf"vectors must have shape \(2, {D}\)"),
        (torch.zeros(2, D), [1, 1], r"slots must be different numbers from 0 to 5; got \[1, 1\]"),
        (torch.zeros(1, D), [6], r"slots must be different numbers from 0 to 5; got \[6\]"),
    ):
        with pytest.raises(ValueError, match=message):
            evolver.inject(vectors, slots)


def test_protected_slots() -> None:
    population, gaussian = ga(), DiagonalCEM(torch.zeros(D), N, elitism=True)
    for evolver in (population, gaussian):
        assert evolver.protected == []
        evolver.tell(evolver.ask(rng()), np.arange(6.0), rng(1))
    assert len(population.protected) == population.n_elites
    assert torch.equal(population.candidates[population.protected[0]], population.best())
    assert gaussian.protected == [5] and torch.equal(gaussian.ask(rng())[5], gaussian.elite)


def test_abilities() -> None:
    own, gaussian, mirrored, population = MAKERS["own"](), DiagonalCEM(torch.zeros(D), N), es(), ga()
    check_capability(population, Migration, "n_migrants=1")
    check_capability(gaussian, ImportanceMixing, "importance_mixing=True")
    check_capability(mirrored, MirroredPairs, "min_timesteps=100")
    with pytest.raises(
        ValueError, match=r"n_migrants=1 needs an evolver with tell\(\.\.\., migrants\).*got DiagonalCEM.*leave out n_mig"
    ):
        check_capability(gaussian, Migration, "n_migrants=1")
    with pytest.raises(ValueError, match=r"importance_mixing=True needs an evolver with draw\(\), variance .*got Shrinking"):
        check_capability(own, ImportanceMixing, "importance_mixing=True")
    with pytest.raises(ValueError, match=r"min_timesteps=100 needs an evolver with ask_more\(\), update\(\), source .*got GA"):
        check_capability(population, MirroredPairs, "min_timesteps=100")


# ------------------------------------------------------------------ candidates of an evolution strategy


@pytest.mark.parametrize("n_params", [5, 5000])
def test_candidates_that_were_edited_are_refused(n_params: int) -> None:
    evolver = MirroredES(torch.zeros(n_params), N, table=NoiseTable(1000 * n_params, 3))
    asked = evolver.ask(rng())
    asked = torch.cat([asked, evolver.ask_more(rng(1), 1)])
    before, fitness = evolver.mean.clone(), np.arange(8.0)
    for rows in ([3], [6, 7]):
        edited = asked.clone()
        edited[rows] += 1e-3 * torch.randn(len(rows), n_params)
        with pytest.raises(
            ValueError, match=rf"candidates must be those from ask\(\).*rows {list(rows)}.*".replace("[", r"\[")
        ):
            evolver.tell(edited, fitness, rng(2))
    with pytest.raises(ValueError, match=r"candidates must be those from ask"):
        evolver.tell(asked[[1, 0, 2, 3, 4, 5, 6, 7]], fitness, rng(2))
    assert torch.equal(evolver.mean, before)
    evolver.tell(asked, fitness, rng(2))
    assert not torch.equal(evolver.mean, before)


def test_nan_candidates_are_those_asked_for() -> None:
    evolver = MirroredES(torch.full((D,), torch.nan), N, table=TABLE)
    evolver.tell(evolver.ask(rng()), np.arange(6.0), rng(1))


# ------------------------------------------------------------------ operators by name and their state


class AdaptiveMutation:
    """Gaussian noise whose width falls with every call."""

    def __init__(self, layout: ParameterLayout, std: float = 1.0):
        self.std, self.last = std, torch.zeros(2)

    def __call__(self, parents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        mutants = parents + (self.std * rng.standard_normal(parents.shape)).astype(parents.dtype)
        self.std, self.last = 0.7 * self.std, torch.tensor([self.std, 1.0])
        return mutants


class SavedMutation(AdaptiveMutation):
    def state_dict(self) -> dict[str, Any]:
        return {"std": self.std, "last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.std, self.last = state["std"], state["last"]


class ModuleMutation(nn.Module):
    std: Tensor

    def __init__(self, layout: ParameterLayout):
        super().__init__()
        self.register_buffer("std", torch.tensor(1.0))

    def forward(self, parents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        self.std.mul_(0.7)
        return parents + (float(self.std) * rng.standard_normal(parents.shape)).astype(parents.dtype)


def run(evolver: GA, generations: range) -> GA:
    for generation in generations:
        candidates = evolver.ask(rng(generation))
        evolver.tell(candidates, -candidates.square().sum(dim=1).numpy(), rng(generation))
    return evolver


@pytest.mark.parametrize("mutation", [SavedMutation, ModuleMutation, f"{__name__}:SavedMutation"])
def test_state_of_an_operator_continues_to_the_last_bit(mutation: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole, half = run(ga(mutation=mutation), range(6)), run(ga(mutation=mutation), range(3))
        other = ga(mutation=mutation)
        other.load_state_dict(saved(half))
        run(other, range(3, 6))
        assert torch.equal(other.candidates, whole.candidates)
        assert float(other.mutation.std) == float(whole.mutation.std) < 0.5


def test_an_operator_that_changes_but_has_no_state_is_named_once_at_the_first_save() -> None:
    evolver = ga(mutation=AdaptiveMutation)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(evolver.state_dict()) == ["candidates"], "nothing has changed yet"
        run(ga(), range(3)).state_dict()
    run(evolver, range(1))
    with pytest.warns(UserWarning, match=r"mutation=AdaptiveMutation has changed its attributes, which are not saved"):
        assert list(evolver.state_dict()) == ["candidates"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(evolver, range(1, 2)).state_dict()


def test_states_that_cannot_be_saved_or_loaded() -> None:
    evolver = ga(mutation=SavedMutation)
    state = evolver.state_dict()
    with pytest.raises(ValueError, match=r"mutation must be the operator that the model was saved with.*got GaussianMutation"):
        ga().load_state_dict(state)
    for value in (np.zeros(3), np.float64(0.5), [{"a": np.zeros(3)}]):  # which a file of plain values cannot hold
        evolver.mutation.std = value
        with pytest.raises(TypeError, match=r"state_dict\(\) of mutation=SavedMutation must hold.*got (ndarray|float64)"):
            evolver.state_dict()
    old = ga(mutation=SavedMutation)
    old.load_state_dict(ga().state_dict())
    assert old.mutation.std == 1.0, "a file without a state leaves the operator as it is"


def test_operators_by_key_path_class_and_object() -> None:
    def nothing(parents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return parents

    by_path = "sb3_erl.evolution.operators.crossover:RowCrossover"
    own = GaussianMutation(LAYOUT, strength=0.5)
    made = [ga(crossover=choice) for choice in ("rows", by_path, RowCrossover, RowCrossover(LAYOUT))]
    assert [type(evolver.crossover) for evolver in made] == [RowCrossover] * 4
    assert ga(mutation=own).mutation is own and ga(mutation=nothing).mutation is nothing
    assert ga(mutation="gaussian", mutation_kwargs={"strength": 0.2}).mutation.strength == 0.2
    for choice, kwargs, error, message in (
        ("blend", None, ValueError, r"mutation must be one of \['gaussian', 'head_rows', 'linear_gaussian', 'proximal'\]"),
        (own, {"strength": 1.0}, ValueError, r"mutation_kwargs must be empty"),
        (3, None, TypeError, r"mutation must be a key.*got 3"),
        ("proximal", None, ValueError, r"mutation must be one that works on parameters alone with GA; got 'proximal'.*PDERL"),
        (ProximalMutation(LAYOUT), None, ValueError, r"mutation must be one that works on parameters alone"),
    ):
        with pytest.raises(error, match=message):
            ga(mutation=choice, mutation_kwargs=kwargs)
