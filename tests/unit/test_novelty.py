from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_erl.envs.behavior import EpisodeTrace, make_behavior, mean_behavior, read_behavior
from sb3_erl.envs.behavior_wrapper import BehaviorWrapper
from sb3_erl.evolution.fitness.novelty import NoveltyArchive, behavior_distances
from sb3_erl.evolution.fitness.shaping import centered_ranks
from sb3_erl.evolution.novelty import (
    AdaptiveWeight,
    member_probabilities,
    mix_ranks,
    next_member,
    reward_weight,
    select_by_novelty,
    truncation_parents,
)


def filled(*entries: Any, **kwargs: Any) -> NoveltyArchive:
    archive = NoveltyArchive(**kwargs)
    archive.extend([np.asarray(entry) for entry in entries])
    return archive


# ------------------------------------------------------------------ distance and novelty


def test_the_shorter_sequence_goes_on_with_its_own_last_row() -> None:
    short, long = np.array([[1.0], [5.0]]), np.array([[1.0], [5.0], [8.0]])
    assert behavior_distances([short], [long])[0, 0] == behavior_distances([long], [short])[0, 0] == 3.0


def test_bytes_do_not_wrap_around() -> None:
    low, high = np.zeros((1, 3), np.uint8), np.full((1, 3), 200, np.uint8)
    assert behavior_distances([low], [high])[0, 0] == pytest.approx(200 * np.sqrt(3))
    assert filled(low).novelty([high], 1)[0] == pytest.approx(200 * np.sqrt(3))
    assert behavior_distances(np.array([[0]], np.uint8), np.array([[200]], np.uint8))[0, 0] == 200


def test_neighbors_that_nearly_coincide_are_told_apart() -> None:
    assert behavior_distances(np.array([[1e6 + 1e-3, 0.0]]), np.array([[1e6, 0.0]]))[0, 0] == pytest.approx(1e-3, rel=1e-6)


def test_large_populations_are_measured_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.random.default_rng(0).standard_normal((30, 2))
    archive = filled(*points[:7])
    whole = archive.novelty(points, 5, extra=points, exclude_self=range(30))
    monkeypatch.setattr("sb3_erl.evolution.fitness.novelty._BLOCK", 80)
    assert np.array_equal(archive.novelty(points, 5, extra=points, exclude_self=range(30)), whole)


def test_fewer_entries_than_neighbors_and_none_at_all() -> None:
    archive = filled([0.0], [4.0])
    assert archive.novelty(np.array([[1.0]]), k=10)[0] == 2.0
    assert np.isnan(NoveltyArchive().novelty(np.array([[1.0]]), k=10)).all()


def test_equal_entries_count_each_and_so_does_the_query_itself() -> None:
    archive = filled([0.0], [0.0], [6.0])
    assert archive.novelty(np.array([[0.0]]), k=3)[0] == 2.0
    assert archive.novelty(np.array([[0.0]]), k=2)[0] == 0.0


def test_squared_distances_rank_otherwise() -> None:
    queries = np.array([[0.0], [10.0]])
    near_and_far, middle = [[-1.0], [5.5]], [[13.4], [6.6]]
    plain = filled(*near_and_far, *middle).novelty(queries, 2)
    squared = filled(*near_and_far, *middle, distance="sqeuclidean").novelty(queries, 2)
    assert plain[0] < plain[1] and squared[0] > squared[1]


def test_an_individual_is_not_its_own_neighbor_but_its_double_is() -> None:
    population = np.array([[0.0], [0.0], [9.0]])
    novelty = NoveltyArchive().novelty(population, 1, extra=population, exclude_self=range(3))
    assert novelty.tolist() == [0.0, 0.0, 9.0]
    assert NoveltyArchive().novelty(population, 1, extra=population).tolist() == [0.0, 0.0, 0.0]


def test_failed_episodes_are_worst_and_not_neighbors_of_others() -> None:
    population = np.array([[0.0, 0.0], [np.nan, 1.0], [3.0, 4.0]])
    archive = NoveltyArchive()
    assert archive.extend(population) == 2 and len(archive) == 2 and not archive.append(population[1])
    novelty = NoveltyArchive().novelty(population, 2, extra=population, exclude_self=range(3))
    assert novelty[[0, 2]].tolist() == [5.0, 5.0] and np.isnan(novelty[1])
    assert truncation_parents(novelty, 3)[-1] == 1


def test_a_bounded_archive_forgets_the_oldest() -> None:
    archive = filled([1.0], [2.0], [3.0], max_size=2)
    assert [float(entry[0]) for entry in archive.entries] == [2.0, 3.0]
    assert archive.n_added == 3
    assert [float(entry[0]) for entry in archive.since(2)] == [3.0]
    assert len(archive.since(0)) == 2 and not archive.since(3)


def test_the_archive_keeps_copies_in_float64() -> None:
    behavior = np.array([0.1, 0.2])
    archive = filled(behavior, behavior.astype(np.float32))
    behavior[:] = 0
    assert archive.entries[0].tolist() == [0.1, 0.2]
    assert archive.entries[1].dtype == np.float64


@pytest.mark.parametrize(
    "entries",
    [[], [[1.0, 2.0], [3.0, 4.0]], [np.ones((3, 2), np.uint8), np.zeros((1, 2), np.uint8)]],
    ids=["empty", "xy", "bytes"],
)
def test_a_saved_archive_is_the_same(entries: list[Any], tmp_path: Path) -> None:
    archive = filled(*entries, distance="sqeuclidean", max_size=5)
    archive.save(tmp_path / "archive")
    for copy in (NoveltyArchive.load(tmp_path / "archive"), pickle.loads(pickle.dumps(archive))):
        assert (copy.distance, copy.max_size, copy.n_added) == ("sqeuclidean", 5, len(entries))
        assert [entry.tolist() for entry in copy.entries] == [entry.tolist() for entry in archive.entries]
        assert [entry.dtype for entry in copy.entries] == [entry.dtype for entry in archive.entries]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: a.append(np.zeros(3)), "equal shapes"),
        (lambda a: a.novelty(np.zeros((1, 3)), 1), "equal shapes"),
        (lambda a: a.novelty(np.zeros(2), 1), "list"),
        (lambda a: a.novelty(np.zeros((1, 2)), 0), "k must be at least 1"),
        (lambda a: a.novelty(np.zeros((1, 2)), 1, exclude_self=[0]), "extra"),
        (lambda a: a.novelty(np.zeros((1, 2)), 1, extra=np.zeros((1, 2)), exclude_self=[1]), "exclude_self"),
        (lambda a: NoveltyArchive("manhattan"), "distance must be one of"),
        (lambda a: NoveltyArchive(max_size=0), "max_size"),
    ],
)
def test_what_does_not_fit_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(filled([0.0, 0.0]))


# ------------------------------------------------------------------ the rules


def test_ranks_are_mixed_not_values() -> None:
    returns, novelty = np.array([[1e6, 0.0], [1.0, 2.0]]), np.array([[0.0, 3e-9], [1e-9, 2e-9]])
    mixed = mix_ranks(returns, novelty, 0.5)
    assert mixed == pytest.approx((centered_ranks(returns) + centered_ranks(novelty)) / 2)
    assert mix_ranks(returns, -novelty, 0.5) != pytest.approx(mixed)


def test_the_weight_multiplies_the_return() -> None:
    returns, novelty = np.array([0.0, 1.0, 2.0]), np.array([2.0, 1.0, 0.0])
    assert mix_ranks(returns, novelty, 1.0).tolist() == [-0.5, 0.0, 0.5]
    assert mix_ranks(returns, novelty, 0.0).tolist() == [0.5, 0.0, -0.5]
    assert (reward_weight("ns").value, reward_weight("nsr").value, reward_weight("nsra").value) == (0.0, 0.5, 1.0)


def test_all_values_are_ranked_together_with_ties_shared_and_nan_worst() -> None:
    assert centered_ranks(np.array([[4.0, 3.0], [2.0, 1.0]])).ravel() == pytest.approx([0.5, 1 / 6, -1 / 6, -0.5])
    assert centered_ranks(np.full((3, 2), 7.0)).tolist() == [[0.0, 0.0]] * 3
    assert centered_ranks(np.array([np.nan, 1.0, 0.0])).tolist() == [-0.5, 0.5, 0.0]
    assert centered_ranks(np.array([1.0, 1.0]), "stable").tolist() == [-0.5, 0.5]
    assert centered_ranks(np.array([3.0])).tolist() == [0.0]


def test_the_weight_falls_once_per_patience_and_never_below_its_limit() -> None:
    weight = AdaptiveWeight(0.5, delta=0.25, patience=3, lowest=0.1)
    weight.update(1.0)
    assert weight.value == 0.75
    assert [weight.update(1.0) for _ in range(12)] == [0.75, 0.75, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.1, 0.1, 0.1, 0.1]
    assert weight.update(2.0) == pytest.approx(0.35)


def test_tiny_improvements_do_not_hold_the_weight_up() -> None:
    def values(**kwargs: float) -> list[float]:
        weight = AdaptiveWeight(1.0, 0.5, 4, **kwargs)
        return [weight.update(5.0 + 1e-6 * t) for t in range(9)]

    assert values() == [1.0] * 9
    assert values(improvement_tol=1e-3) == [1.0] * 4 + [0.5] * 4 + [0.0]


def test_a_failed_evaluation_is_no_improvement() -> None:
    weight = AdaptiveWeight(0.5, 0.25, 2)
    assert [weight.update(float("nan")) for _ in range(2)] == [0.5, 0.25]
    assert weight.best == -np.inf


def test_members_are_drawn_in_proportion_to_their_novelty() -> None:
    rng, novelty = np.random.default_rng(0), np.array([0.0, 1.0, 3.0])
    counts = np.bincount([next_member(0, novelty, rng) for _ in range(4000)], minlength=3)
    assert counts[0] == 0 and counts[2] / 4000 == pytest.approx(0.75, abs=0.03)
    assert [next_member(i, novelty, rule="round_robin") for i in range(3)] == [1, 2, 0]


@pytest.mark.parametrize("novelty", [[0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_without_usable_novelty_every_member_is_equally_likely(novelty: list[float]) -> None:
    assert member_probabilities(np.array(novelty)).tolist() == [0.5, 0.5]


def test_a_generation_is_measured_before_the_archive_grows() -> None:
    archive = filled([0.0], distance="sqeuclidean")
    population = np.array([[1.0], [2.0], [10.0]])
    selection = select_by_novelty(archive, population, np.array([0.0, 0.5, 0.009]), k=1, n_parents=2)
    assert selection.novelty.tolist() == [1.0, 1.0, 64.0]
    assert selection.parents.tolist() == [2, 0] and selection.elite == 2
    assert selection.archived.tolist() == [True, False, True]
    assert [entry.tolist() for entry in archive.entries] == [[0.0], [1.0], [10.0]]


def test_the_elite_loses_its_novelty_when_others_follow() -> None:
    archive = NoveltyArchive("sqeuclidean")
    coins = np.ones(3)
    first = select_by_novelty(archive, np.array([[0.0], [0.1], [9.0]]), coins, k=2, n_parents=1)
    second = select_by_novelty(archive, np.array([[9.0], [9.1], [0.0]]), coins, k=2, n_parents=1)
    assert first.elite == 2 and second.elite == 2 and second.novelty[0] < first.novelty[2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mix_ranks(np.zeros((2, 2)), np.zeros(4), 0.5), "shape of returns"),
        (lambda: mix_ranks(np.zeros(2), np.zeros(2), 1.5), "reward_weight"),
        (lambda: AdaptiveWeight(patience=0), "weight_patience"),
        (lambda: AdaptiveWeight(0.1, lowest=0.2), "reward_weight"),
        (lambda: reward_weight("es"), "mode must be one of"),  # type: ignore[arg-type]
        (lambda: next_member(0, np.ones(2)), "rng"),
        (lambda: member_probabilities(np.array([-1.0, 2.0])), "at least 0"),
        (lambda: truncation_parents(np.zeros(3), 4), "n_parents"),
        (lambda: select_by_novelty(NoveltyArchive(), np.zeros((3, 1)), np.zeros(2), n_parents=1), "uniforms"),
    ],
)
def test_wrong_numbers_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# ------------------------------------------------------------------ behaviors


class Line(gym.Env):
    """Walks by its action for three steps; says where it is only if told to."""

    observation_space = spaces.Box(-100, 100, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, talks: bool = False):
        self.talks, self.x, self.t = talks, 0.0, 0

    def _info(self) -> dict[str, Any]:
        return {"bc": np.array([self.x])} if self.talks else {"x_position": self.x}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.x, self.t = 0.0, 0
        return np.array([self.x], np.float32), self._info()

    def step(self, action: np.ndarray) -> Any:
        self.x, self.t = self.x + float(action[0]), self.t + 1
        return np.array([self.x], np.float32), 1.0, self.t == 3, False, self._info()


@pytest.mark.parametrize(
    ("talks", "behavior", "kwargs", "expected"),
    [
        (True, "auto", {}, [1.5]),
        (True, "info", {}, [1.5]),
        (False, "info", {"key": "x_position"}, [1.5]),
        (False, "final_position", {"point": "torso"}, [1.5, 0.0]),
        (False, "trajectory", {"point": "torso", "max_steps": 4}, [0.5, 1.0, 1.5, 1.5, 0.0, 0.0, 0.0, 0.0]),
        (False, lambda trace: [len(trace.observations), len(trace.actions), sum(trace.rewards)], {}, [4.0, 3.0, 3.0]),
    ],
)
def test_the_behavior_survives_the_automatic_reset(talks: bool, behavior: Any, kwargs: Any, expected: Any) -> None:
    env = DummyVecEnv([lambda: BehaviorWrapper(Line(talks), behavior, kwargs)])
    for _ in range(2):  # the second episode starts afresh
        env.reset()
        steps = [env.step(np.array([[0.5]])) for _ in range(3)]
        observations: Any
        observations, _, dones, infos = steps[-1]
        assert dones[0] and observations[0, 0] == 0.0
        assert read_behavior(infos[0]).tolist() == expected


def test_an_episode_that_is_cut_off_has_a_behavior_too() -> None:
    env = DummyVecEnv([lambda: BehaviorWrapper(Line(talks=True))])
    env.reset()
    env.step(np.array([[0.5]]))
    assert env.env_method("current_behavior")[0].tolist() == [0.5]
    with pytest.raises(ValueError, match="reset"):
        BehaviorWrapper(Line()).current_behavior()


@pytest.mark.parametrize(
    ("behavior", "message"),
    [
        ("info", "BehaviorWrapper"),
        ("final_position", "MuJoCo"),
        ("memory", "Atari"),
        ("final_memory", "Atari"),
        (lambda trace: "far", "number"),
    ],
)
def test_an_environment_without_behavior_is_an_error(behavior: Any, message: str) -> None:
    env = BehaviorWrapper(Line(), behavior)
    env.reset()
    with pytest.raises(ValueError, match=message):
        for _ in range(3):
            env.step(np.array([0.5]))


def test_a_vector_is_its_own_behavior_where_nothing_else_is_known() -> None:
    env = BehaviorWrapper(Line())
    env.reset()
    *_, info = [env.step(np.array([0.5])) for _ in range(3)][-1]
    assert info["bc"].tolist() == [1.5] and info["bc"].dtype == np.float64


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="behavior must be one of"):
        make_behavior("position")


def test_the_center_of_mass_is_not_the_torso() -> None:
    env = BehaviorWrapper(gym.make("Ant-v5", max_episode_steps=20))
    env.reset(seed=0)
    env.action_space.seed(0)
    truncated = terminated = False
    while not (terminated or truncated):
        *_, terminated, truncated, info = env.step(env.action_space.sample())
    inner: Any = env.unwrapped
    mass, places = inner.model.body_mass, inner.data.xipos
    expected = sum(m * place for m, place in zip(mass, places, strict=True))[:2] / mass.sum()
    assert info["bc"] == pytest.approx(expected)
    torso = make_behavior("final_position", point="torso").end(env, info)
    assert torso == pytest.approx([info["x_position"], info["y_position"]])
    assert np.abs(torso - info["bc"]).max() > 1e-3
    without_info = make_behavior("final_position", point="torso").end(env, {})
    assert without_info == pytest.approx(torso, abs=2e-3)  # MuJoCo's bodies are one substep behind


def test_the_memory_of_a_machine_is_a_sequence() -> None:
    class Machine(Line):
        @property
        def ale(self) -> Machine:
            return self

        def getRAM(self) -> np.ndarray:
            return np.full(128, self.t, np.uint8)

    env = BehaviorWrapper(Machine())
    env.reset()
    for _ in range(3):
        *_, info = env.step(np.array([0.0]))
    assert info["bc"].shape == (3, 128) and info["bc"][:, 0].tolist() == [1, 2, 3] and info["bc"].dtype == np.uint8


def test_vectors_are_averaged_over_episodes_and_sequences_are_not() -> None:
    assert mean_behavior([np.array([1.0, 2.0]), np.array([3.0, 6.0])]).tolist() == [2.0, 4.0]
    assert mean_behavior([np.ones((5, 2))]).shape == (5, 2)
    for behaviors in ([np.ones((5, 2)), np.ones((5, 2))], [np.ones(2), np.ones(3)], []):
        with pytest.raises(ValueError, match="n_bc_episodes"):
            mean_behavior(behaviors)


def test_a_function_sees_the_environment_in_its_last_state() -> None:
    def last(trace: EpisodeTrace) -> np.ndarray:
        inner: Any = trace.env.unwrapped
        return np.array([inner.x])

    env = BehaviorWrapper(Line(), last)
    env.reset()
    for _ in range(3):
        *_, info = env.step(np.array([1.0]))
    assert info["bc"].tolist() == [3.0]


class DictLine(Line):
    """Its observations are a dict of arrays, the same ones in every step."""

    observation_space = spaces.Dict({"time": spaces.Discrete(4), "place": spaces.Box(-100, 100, (1,), np.float32)})  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.observation: dict[str, Any] = {"time": 0, "place": np.zeros(1, np.float32)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.observation["place"][:], info = super().reset(seed=seed)
        return self.observation, info

    def step(self, action: np.ndarray) -> Any:
        self.observation["place"][:], *others = super().step(action)
        self.observation["time"] = self.t
        return self.observation, *others


@pytest.mark.parametrize(
    ("behavior", "expected"),
    [
        ("final_observation", [1.5, 3.0]),
        (lambda trace: [part["place"][0] for part in trace.observations], [0.0, 0.5, 1.0, 1.5]),
    ],
)
def test_behaviors_of_dict_observations(behavior: Any, expected: list[float]) -> None:
    env = BehaviorWrapper(DictLine(), behavior)
    env.reset()
    for _ in range(3):
        *_, info = env.step(np.array([0.5]))
    assert info["bc"].tolist() == expected
