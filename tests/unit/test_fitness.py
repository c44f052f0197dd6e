"""Fitness functions by name: what they make of episodes, what they need, their sums and their state."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from sb3_erl.core import registry
from sb3_erl.evolution.fitness.base import Fitness, FitnessContext, WeightedSum, make_fitness, needs
from sb3_erl.evolution.fitness.parts import Energy, Novelty
from sb3_erl.rollouts.jobs import EpisodeBatch, Job


@dataclass(frozen=True)
class Played:
    """An episode with what fitness functions may read."""

    job: Job
    rewards: np.ndarray = field(default_factory=lambda: np.array([1.0, -2.0, 4.0]))
    actions: np.ndarray = field(default_factory=lambda: np.array([[0.5, 0.0], [1.0, -1.0], [0.0, 0.0]]))
    behavior: np.ndarray | None = None
    last_observation: np.ndarray | None = None
    record: Any = None
    failed: bool = False

    @property
    def length(self) -> int:
        return len(self.rewards)

    @property
    def total_reward(self) -> float:
        return math.nan if self.failed else float(self.rewards.sum())

    @property
    def sign_sum(self) -> float:
        return math.nan if self.failed else float(np.sign(self.rewards).sum())


def batch(*episodes: Any) -> EpisodeBatch:
    return EpisodeBatch(episodes, sum(episode.length for episode in episodes))


def context(n: int, **changes: Any) -> FitnessContext:
    values = {"candidates": None, "gamma": 0.5, "generation": 1, "rng": np.random.default_rng(0)}
    return FitnessContext(n, **{**values, **changes})


def at(candidate: int, *place: float, **changes: Any) -> Played:
    return Played(Job(candidate), behavior=np.array(place), **changes)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("return", 3.0),
        ("sign_sum", 1.0),
        ("discounted_return", 1.0 - 1.0 + 1.0),
        ("energy", -2.25),
        ({"return": 2.0, "energy": 0.5}, 6.0 - 1.125),
    ],
)
def test_one_number_per_candidate_and_nan_without_or_with_a_failed_episode(choice: Any, expected: float) -> None:
    twice = [Played(Job(0)), Played(Job(0, 1))]
    broken = [Played(Job(1)), Played(Job(1, 1), failed=True)]
    values = make_fitness(choice)(batch(*twice, *broken), context(3))
    np.testing.assert_allclose(values, [expected, np.nan, np.nan])


def test_episodes_are_averaged() -> None:
    longer = Played(Job(0, 1), rewards=np.array([0.0, 0.0, 0.0, 8.0]))
    assert make_fitness("return")(batch(Played(Job(0)), longer), context(1)).tolist() == [5.5]
    assert make_fitness("discounted_return")(batch(Played(Job(0)), longer), context(1)).tolist() == [1.0]
    whole = make_fitness("discounted_return", {"gamma": 1.0})
    assert whole(batch(longer), context(1)).tolist() == [8.0]


def test_what_is_needed() -> None:
    wanted = {
        "return": set(),
        "sign_sum": set(),
        "discounted_return": {"rewards"},
        "energy": {"actions"},
        "novelty": {"behavior"},
    }
    assert set(wanted) <= set(registry.PARTS["fitness"])
    for key, parts in wanted.items():
        assert make_fitness(key).needs == parts, key
    assert make_fitness({"energy": 1, "novelty": 1, "return": 1}).needs == {"actions", "behavior"}
    assert make_fitness(lambda episodes, context: np.zeros(2)).needs == {"rewards"}
    with pytest.raises(ValueError, match=r"needs must be some of .*'rewards'.*got \['reward'\]"):
        needs("reward")


@needs("actions", "rewards")
def greedy(episodes: EpisodeBatch, context: FitnessContext) -> np.ndarray:
    values = [episode.rewards.max() - abs(episode.actions).max() for episode in episodes.episodes]
    return episodes.mean_per_candidate(values, context.n_candidates)


class Length(Fitness):
    def __init__(self, scale: float = 1.0):
        self.scale = scale

    def __call__(self, episodes: EpisodeBatch, context: FitnessContext) -> np.ndarray:
        return self.scale * episodes.mean_per_candidate([e.length for e in episodes.episodes], context.n_candidates)


def test_functions_classes_objects_and_paths() -> None:
    episodes = batch(Played(Job(0)), Played(Job(1), rewards=np.ones(5)))
    by_path = make_fitness(f"{__name__}:greedy")
    assert by_path.needs == {"actions", "rewards"} and by_path(episodes, context(2)).tolist() == [3.0, 0.0]
    own = Length(3.0)
    assert make_fitness(own) is own
    assert make_fitness(Length, {"scale": 2.0})(episodes, context(2)).tolist() == [6.0, 10.0]
    both = make_fitness({f"{__name__}:Length": 1.0, f"{__name__}:greedy": 10.0}, {f"{__name__}:Length": {"scale": 2.0}})
    assert both(episodes, context(2)).tolist() == [36.0, 10.0]


@pytest.mark.parametrize(
    ("choice", "kwargs", "error", "message"),
    [
        ("retrun", None, ValueError, r"fitness must be one of .*'return'.*got 'retrun' \(did you mean 'return'"),
        (3.0, None, TypeError, r"fitness must be a key.*got 3.0"),
        (greedy, {"scale": 1.0}, ValueError, r"fitness_kwargs must be empty.*got \{'scale': 1.0\}"),
        ({"return": math.nan}, None, ValueError, r"finite weights; got 'return': nan"),
        ({"return": "1"}, None, ValueError, r"finite weights; got 'return': '1'"),
        ({}, None, ValueError, r"at least one name"),
        ({"return": 1.0}, {"novelty": {}}, ValueError, r"arguments of \['novelty'\]"),
        ("novelty", {"k": 0}, ValueError, r"k must be"),
        ("novelty", {"archive_prob": 2.0}, ValueError, r"archive_prob"),
        ("discounted_return", {"gamma": 1.5}, ValueError, r"gamma"),
    ],
)
def test_wrong_choices(choice: Any, kwargs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_fitness(choice, kwargs)


def test_a_function_that_returns_one_number_per_episode_is_refused() -> None:
    fitness = make_fitness(lambda episodes, context: [episode.total_reward for episode in episodes.episodes])
    with pytest.raises(ValueError, match=r"must return shape \(1,\), one number per candidate; got \(2,\)"):
        fitness.checked(batch(Played(Job(0)), Played(Job(0, 1))), context(1))


def test_energy_of_discrete_bytes_does_not_overflow() -> None:
    actions = np.full((2, 1), 200, dtype=np.uint8)
    assert Energy()(batch(Played(Job(0), actions=actions)), context(1)).tolist() == [-80_000.0]


def test_novelty_is_the_distance_to_the_archive_and_to_the_others() -> None:
    fitness = Novelty(k=1)
    first = fitness(batch(at(0, 0.0, 0.0), at(1, 3.0, 4.0), at(2, 0.0, 1.0)), context(3))
    assert first.tolist() == [1.0, np.sqrt(18.0), 1.0]
    second = fitness(batch(at(0, 3.0, 4.0), at(1, 10.0, 4.0)), context(2))
    assert second.tolist() == [0.0, 7.0], "now the first generation is in the archive"
    assert len(fitness.archive) == 5


def test_novelty_leaves_out_failed_candidates_and_averages_episodes() -> None:
    fitness = Novelty(k=5)
    episodes = batch(at(0, 0.0), at(0, 4.0), at(1, 5.0), at(2, 9.0, failed=True), at(3, 1.0), at(3, 1.0, failed=True))
    values = fitness(episodes, context(5))
    np.testing.assert_allclose(values, [3.0, 3.0, np.nan, np.nan, np.nan])
    assert [entry.tolist() for entry in fitness.archive.entries] == [[2.0], [5.0]]
    nothing = Novelty()(batch(at(0, 1.0, failed=True)), context(1))
    assert np.isnan(nothing).all()


def test_novelty_falls_back_to_the_last_observation() -> None:
    there, here = Played(Job(0), last_observation=np.array([2.0], np.float32)), at(1, 5.0)
    assert Novelty()(batch(there, here), context(2)).tolist() == [3.0, 3.0]
    with pytest.raises(ValueError, match=r"env must report a behavior.*BehaviorWrapper"):
        Novelty()(batch(Played(Job(0), last_observation=np.zeros((3, 3)))), context(1))


def test_a_share_of_the_behaviors_is_archived_by_the_generator_of_the_run() -> None:
    sizes = []
    for _ in range(2):
        fitness = Novelty(archive_prob=0.5)
        fitness(batch(*(at(i, float(i)) for i in range(100))), context(100))
        sizes.append([entry.item() for entry in fitness.archive.entries])
    assert sizes[0] == sizes[1] and 30 < len(sizes[0]) < 70


@pytest.mark.parametrize("dtype", [np.float64, np.uint8])
def test_state_is_json_and_continues_to_the_last_bit(dtype: Any) -> None:
    def generation(fitness: Fitness, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        places = [(255 * rng.random(3)).astype(dtype) for _ in range(6)]
        return fitness(batch(*(Played(Job(i), behavior=place) for i, place in enumerate(places))), context(6))

    def make() -> Fitness:
        return make_fitness({"return": 1.0, "novelty": 0.5}, {"novelty": {"k": 3, "archive_max_size": 8}})

    whole, half = make(), make()
    for seed in range(3):
        for fitness in (whole, half):
            generation(fitness, seed)
    loaded = make()
    loaded.load_state_dict(json.loads(json.dumps(half.state_dict())))
    assert np.array_equal(generation(loaded, 3), generation(whole, 3))
    assert isinstance(loaded, WeightedSum) and isinstance(loaded.parts["novelty"], Novelty)
    archive = loaded.parts["novelty"].archive
    assert len(archive) == 8 and archive.n_added == 24 and archive.entries[0].dtype == dtype
    assert make_fitness("return").state_dict() == {} == make_fitness({"return": 1.0}).state_dict()
