"""Novelty search: who is compared with whom, what is kept, and what it is good for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_erl import GANS, NSES, NSRAES, NSRES, OpenAIES
from sb3_erl.core.parameters import read_parameters, write_parameters
from sb3_erl.envs import VecHardMaze
from sb3_erl.evolution.fitness.novelty import NoveltyArchive
from tests.contract.helpers import Tables, watch_phases
from tests.contract.settings import fast, make
from tests.envs import toy_vec_env

EPISODE = 8
"""Steps of a toy episode."""
GENERATION = 6 * EPISODE
"""Two members and two pairs."""


def final(episode: Any) -> np.ndarray:
    return np.asarray(episode.last_observation, dtype=np.float64)


def means(model: NSES) -> th.Tensor:
    members: list[Any] = list(model.evolver.members)
    return th.stack([member.mean for member in members])


def test_the_archive_holds_first_everybody_then_who_moved() -> None:
    model = make("ns_es")
    phases = watch_phases(model)
    model.learn(3 * GENERATION)
    members = [episodes for jobs, episodes in phases if len(jobs) == 2]
    assert [len(jobs) for jobs, _ in phases] == [2, 4] * 3
    moved = [0, int(model.evolver.active_member)]
    expected = [final(e) for e in members[0].episodes] + [final(members[1].episodes[0])]
    np.testing.assert_array_equal(model.archive.entries[:3], expected)
    assert len(model.archive) == 2 + 2 and model.moved == moved[1]


def test_pairs_follow_novelty_among_the_archive() -> None:
    model = make("ns_es", meta_population_size=1, novelty_k=2)
    phases = watch_phases(model)
    model.learn(4 * 5 * EPISODE)
    entries = [final(episodes.episodes[0]) for jobs, episodes in phases if len(jobs) == 1]
    archive = NoveltyArchive()
    archive.extend(entries)
    novelty = archive.novelty([final(e) for e in phases[-1][1].episodes], 2)
    shaped = model.evolver.active.last_update.shaped
    assert np.argsort(shaped).tolist() == np.argsort(novelty).tolist() and len(entries) == 4


def test_the_probabilities_with_which_members_are_drawn_are_logged() -> None:
    model = make("ns_es", meta_population_size=3)
    phases, tables = watch_phases(model), Tables(model)
    model.learn(7 * EPISODE)
    shown = [final(e) for e in phases[0][1].episodes]
    archive = NoveltyArchive()
    archive.extend(shown)
    novelty = archive.novelty(shown, 3)
    found = [tables.column(f"novelty/member_{member}_prob") for member in range(3)]
    assert np.array(found)[:, 0] == pytest.approx(novelty / novelty.sum()) and novelty.min() > 0


def test_only_the_active_member_moves_and_each_keeps_its_own_state() -> None:
    model = make("ns_es", meta_population_size=3, parent_selection="round_robin", obs_stat_prob=1.0)
    before = means(model).clone()
    model.learn(7 * EPISODE)
    after = means(model)
    assert (before != after).any(1).tolist() == [True, False, False]
    assert th.unique(before, dim=0).shape[0] == 3, "members begin apart"
    counts = [float(network.statistics.count) for network in model.evolver.networks]
    assert counts[0] > 30 and counts[1] == counts[2] < 1
    assert [float(member.optimizer.n_steps) for member in model.evolver.members] == [1, 0, 0]
    model.learn(14 * EPISODE, reset_num_timesteps=False)
    assert [float(member.optimizer.n_steps) for member in model.evolver.members] == [1, 1, 1], "one after the other"


def test_a_generation_that_was_cut_off_leaves_no_trace() -> None:
    model, whole = make("nsra_es", weight_patience=1), make("nsra_es", weight_patience=1)
    whole.learn(3 * GENERATION)
    model.learn(3 * GENERATION + 3 * EPISODE)
    assert model.num_timesteps > whole.num_timesteps
    np.testing.assert_array_equal(model.archive.entries, whole.archive.entries)
    assert vars(model.weight) == vars(whole.weight) and model.moved == whole.moved
    assert th.equal(means(model), means(whole))


def test_loaded_individuals_see_with_the_statistics_of_the_member_that_moved(tmp_path: Path) -> None:
    model = make("ns_es", parent_selection="round_robin", obs_stat_prob=1.0).learn(2 * GENERATION)
    assert model.moved == 1
    model.save(tmp_path / "model")
    loaded = NSES.load(tmp_path / "model")
    counts = [float(network.statistics.count) for network in model.evolver.networks]
    assert counts[0] == counts[1] > 30
    statistics = [policy.statistics for policy in (model.individual(0), loaded.individual(0), model.evolver.networks[1])]
    for other in statistics[1:]:
        assert th.equal(other.total, statistics[0].total) and th.equal(other.mean, statistics[0].mean)
    assert not th.equal(statistics[0].total, model.evolver.networks[0].statistics.total)
    observations = np.random.default_rng(0).uniform(-1, 1, (6, 3)).astype(np.float32)
    assert np.array_equal(model.individual(0).predict(observations)[0], loaded.individual(0).predict(observations)[0])
    assert np.array_equal(model.member(1).predict(observations)[0], loaded.member(1).predict(observations)[0])


def test_deployed_is_the_member_with_the_best_return() -> None:
    model = make("ns_es", meta_population_size=4, n_bc_episodes=2)
    phases = watch_phases(model)
    actors: list[th.Tensor] = []
    model.learn(20 * EPISODE)
    show = model.evolver.show

    def keep_and_show(member: int) -> None:
        actors.extend(read_parameters(network).clone() for network in model.evolver.networks)
        show(member)

    model.evolver.show = keep_and_show
    model.learn(12 * EPISODE, reset_num_timesteps=False)
    episodes = [episodes for jobs, episodes in phases if len(jobs) == 8][-1].episodes
    returns = np.array([e.total_reward for e in episodes]).reshape(4, 2).mean(1)
    assert th.equal(read_parameters(model.policy.deployed), actors[int(returns.argmax())])
    assert model.evolver.returns.numpy() == pytest.approx(returns)


def test_with_all_weight_on_the_return_it_is_the_plain_strategy() -> None:
    plain = make("openai_es")
    model = make("nsra_es", meta_population_size=1)
    write_parameters(plain.evolver.mean, model.evolver.networks[0])
    for member in model.evolver.members:
        member.mean.copy_(plain.evolver.mean)
    plain.learn(5 * 5 * EPISODE)
    model.learn(5 * 5 * EPISODE)
    assert plain.n_generations == model.n_generations == 5
    assert th.equal(means(model)[0], plain.evolver.mean)


def test_half_and_half() -> None:
    model = make("nsr_es")
    phases = watch_phases(model)
    model.learn(GENERATION)
    episodes = phases[-1][1].episodes
    returns = np.array([e.total_reward for e in episodes])
    novelty = model.archive.novelty([final(e) for e in episodes], 3)
    ranks = [np.argsort(np.argsort(values)) / 3 - 0.5 for values in (returns, novelty)]
    assert model.evolver.active.last_update.shaped == pytest.approx(sum(ranks) / 2)


def test_the_share_of_the_return_falls_after_patience() -> None:
    model = make("nsra_es", weight_patience=2, weight_delta=0.25, improvement_tol=1e6)
    tables = Tables(model)
    model.learn(7 * GENERATION)
    # The first return is an improvement over none, and the share cannot rise above 1.
    assert tables.column("novelty/reward_weight") == [1.0, 1.0, 1.0, 0.75, 0.75, 0.5, 0.5]


def test_individuals_of_ga_ns_are_compared_with_archive_and_population() -> None:
    model = make("ga_ns", archive_prob=1.0)
    phases, tables = watch_phases(model), Tables(model)
    model.learn(2 * 4 * EPISODE)
    first, second = ([final(e) for e in episodes.episodes] for _, episodes in phases)
    archive = NoveltyArchive("sqeuclidean")
    novelty = archive.novelty(first, 3, extra=first, exclude_self=range(4))
    assert tables.column("novelty/pop_mean")[0] == pytest.approx(novelty.mean())
    elite = first[int(novelty.argmax())]
    archive.extend(first)
    population = [*second, elite]
    novelty = archive.novelty(population, 3, extra=population, exclude_self=range(5))
    assert tables.column("novelty/pop_mean")[1] == pytest.approx(novelty.mean())
    assert len(model.archive) == 9, "the elite enters the archive once more"


def test_ga_ns_deploys_the_best_return_and_gives_the_most_novel() -> None:
    model = make("ga_ns", pop_size=6)
    phases = watch_phases(model)
    model.learn(4 * 6 * EPISODE)
    assert model.best_return == max(e.total_reward for _, episodes in phases for e in episodes.episodes)
    novel = model.most_novel()
    assert th.equal(read_parameters(novel), model.evolver.rebuild(model.evolver.elite))
    assert not th.equal(read_parameters(novel), read_parameters(model.policy.deployed))


@pytest.mark.parametrize("cls", [GANS, NSES])
def test_behaviors_out_of_reach_are_an_error(cls: type[Any]) -> None:
    name = "ga_ns" if cls is GANS else "ns_es"
    env = toy_vec_env(subprocess=True)
    try:
        model = make(name, env, behavior=lambda trace: np.zeros(1))
        with pytest.raises(ValueError, match="make_vec_env"):
            model.learn(10)
    finally:
        env.close()


def test_unknown_behaviors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"behavior must be one of .*'speed'"):
        make("ns_es", behavior="speed")


@pytest.mark.slow
def test_novelty_spreads_over_the_maze() -> None:
    settings = fast("ga_ns", pop_size=30, truncation=6, sigma=0.1, init_output_std=1.0, novelty_k=10, behavior="auto")
    model = GANS("MlpPolicy", VecHardMaze(30), **settings)
    model.learn(400 * 30 * 5)
    ends = np.array(model.archive.entries)
    assert np.ptp(ends, axis=0).min() > 60, "maze units, from a start in a corner"


def test_classes_differ_in_their_share_of_the_return_only() -> None:
    assert issubclass(NSRES, NSES) and issubclass(NSRAES, NSES) and issubclass(NSES, OpenAIES)
    assert [make(name).weight.value for name in ("ns_es", "nsr_es", "nsra_es")] == [0.0, 0.5, 1.0]
