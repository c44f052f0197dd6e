"""Atari as the papers play it, and the Zoo's entries for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack

from benchmarks.settings import Experiment, load_settings
from sb3_erl import GANS, DeepGA, OpenAIES
from sb3_erl.core.parameters import read_parameters
from sb3_erl.envs.atari import PLAIN_EMULATOR, WHOLE_GAMES, is_atari, make_atari
from sb3_erl.envs.packages import register_namespaces
from sb3_erl.policies.es_pixels import ESPixelPolicy, GAPixelPolicy
from sb3_erl.zoo import hyperparams_file
from tests.contract.helpers import differences, snapshot

GAME = "FrostbiteNoFrameskip-v4"
CHEAP: dict[str, Any] = {"features_extractor_kwargs": {"convolutions": [(4, 8, 4)], "features_dim": 4}}


def make() -> DeepGA:
    few: dict[str, Any] = {"pop_size": 2, "truncation": 1, "n_finalists": 1, "n_finalist_episodes": 1}
    settings: dict[str, Any] = {"noise_table_size": 100_000, "seed": 1, "episode_cutoff": 15, "device": "cpu", **few}
    return DeepGA("CnnPolicy", make_atari(GAME), policy_kwargs=CHEAP, **settings)


def test_both_families_of_ids_are_the_same_game() -> None:
    first, second = (make_atari(env_id, seed=3) for env_id in (GAME, "ALE/Frostbite-v5"))
    assert first.observation_space.shape == (84, 84, 4) and first.action_space == second.action_space
    frames: Any = np.stack([np.asarray(env.reset()) for env in (first, second)])
    assert np.array_equal(*frames) and not frames[0][..., :3].any(), "the stack begins with zeros"
    a: Any
    b: Any
    for action in np.random.default_rng(0).integers(18, size=40):
        (a, *_), (b, *_) = (env.step(np.array([action])) for env in (first, second))
        assert np.array_equal(a, b)
    assert a.any(axis=(0, 1, 2)).all() and not np.array_equal(a[..., 3], a[..., 0])


def test_an_episode_is_a_game_and_its_return_the_score() -> None:
    env = make_atari(GAME, seed=0)
    env.reset()
    actions, lives, rewards, done = np.random.default_rng(0), [], [], False
    while not done:
        _, reward, (done,), (info,) = env.step(actions.integers(18, size=1))
        lives.append(info["lives"])
        rewards.append(float(reward[0]))
    assert set(lives) == {4, 3, 2, 1, 0} and lives[-1] == 0
    assert max(rewards) == 10 and sum(rewards) == info["episode"]["r"]


def test_games_only() -> None:
    register_namespaces(GAME)
    assert is_atari(GAME) and not is_atari("CartPole-v1") and not is_atari("NoSuchGame-v4")
    with pytest.raises(ValueError, match=r"env_id must be that of an Atari game.*got 'CartPole-v1'"):
        make_atari("CartPole-v1")


def test_without_the_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(ImportError, match=r"pip install 'sb3-erl\[atari\]'"):
        make_atari(GAME)


def test_everyday_names_choose_the_papers_networks() -> None:
    assert OpenAIES.policy_aliases["CnnPolicy"] is ESPixelPolicy and DeepGA.policy_aliases["CnnPolicy"] is GAPixelPolicy
    with pytest.raises(ValueError, match=r"at least 10 times the 4052658 parameters.*noise_table_size=40526580"):
        DeepGA("CnnPolicy", make_atari(GAME), pop_size=2, truncation=1, n_finalists=1, noise_table_size=25_000_000)


def test_learning_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    generation = 3 * 15  # resets take long, so there are few episodes
    second = generation + 15  # the elite and one that challenges it
    straight = make().learn(generation + second)
    make().learn(generation).save(tmp_path / "model")
    resumed = DeepGA.load(tmp_path / "model", env=make_atari(GAME))
    assert resumed.n_generations == 1
    resumed.learn(second, reset_num_timesteps=False)
    assert resumed.n_generations == 2 and differences(snapshot(straight), snapshot(resumed)) == []
    resumed.save(tmp_path / "model")
    frames = np.random.default_rng(0).integers(0, 256, (6, 84, 84, 4), dtype=np.uint8)
    actions = straight.predict(frames, deterministic=True)[0]
    assert np.array_equal(DeepGA.load(tmp_path / "model").predict(frames, deterministic=True)[0], actions)
    assert straight.evolver.elite is not None
    elite = straight.evolver.rebuild(straight.evolver.elite)
    assert np.array_equal(elite, read_parameters(straight.policy.deployed))


def novel(behavior: Any = "auto", **kwargs: Any) -> GANS:
    few: dict[str, Any] = {"pop_size": 2, "truncation": 1, "archive_prob": 1.0, "behavior": behavior, **kwargs}
    settings: dict[str, Any] = {"noise_table_size": 100_000, "seed": 1, "episode_cutoff": 15, "device": "cpu", **few}
    return GANS("CnnPolicy", make_atari(GAME), policy_kwargs=CHEAP, **settings)


def test_ga_ns_compares_the_memory_after_the_last_step(tmp_path: Path) -> None:
    chosen, last, all_steps = (novel(behavior).learn(2 * 15) for behavior in ("auto", "final_memory", "memory"))
    assert [entry.shape for entry in chosen.archive.entries] == [(128,)] * 2
    np.testing.assert_array_equal(chosen.archive.entries, last.archive.entries)
    np.testing.assert_array_equal(chosen.archive.entries, [entry[-1] for entry in all_steps.archive.entries])
    squares = np.square(np.diff(np.array(chosen.archive.entries, dtype=np.float64), axis=0)).sum()
    assert squares > 0 and chosen.evolver.fitness.tolist() == pytest.approx([squares] * 2)
    all_steps.behavior = "auto"  # as in files of earlier versions
    all_steps.save(tmp_path / "model")
    loaded = GANS.load(tmp_path / "model", env=make_atari(GAME)).learn(2 * 15, reset_num_timesteps=False)
    assert [entry.shape for entry in loaded.archive.entries] == [(15, 128)] * 5, "they go on with what they have"


def test_the_zoo_plays_by_the_same_rules() -> None:
    from rl_zoo3.utils import get_wrapper_class

    entries = [
        yaml.safe_load(hyperparams_file(algo).read_text())["atari"] for algo in ("deep_ga", "openai_es", "random_search")
    ]
    for entry in entries:
        assert entry["env_kwargs"] == PLAIN_EMULATOR and entry["policy"] == "CnnPolicy" and entry["episode_cutoff"] == 5000
        assert list(entry["env_wrapper"][0].values()) == [WHOLE_GAMES]
    entry = entries[0]
    wrapper: Any = get_wrapper_class(dict(entry))
    zoo = make_vec_env("ALE/Frostbite-v5", seed=5, env_kwargs=entry["env_kwargs"], wrapper_class=wrapper)
    zoo, ours = VecFrameStack(zoo, entry["frame_stack"]), make_atari(GAME, seed=5)
    assert np.array_equal(zoo.reset(), ours.reset())
    for action in range(18):
        for found, expected in zip(zoo.step([action])[:3], ours.step([action])[:3], strict=True):
            assert np.array_equal(found, expected)


def test_the_benchmark_reads_the_zoos_entry() -> None:
    settings, origin = load_settings("deep_ga", GAME)
    assert "entry 'atari'" in origin and settings["frame_stack"] == 4
    env = Experiment("deep_ga", GAME, settings, 100).make_env(seed=1, n_envs=2)
    assert env.observation_space.shape == (84, 84, 4)
    assert np.array_equal(env.reset(), make_atari(GAME, 2, seed=1).reset())
