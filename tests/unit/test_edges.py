"""Numbers at the edges: too large for float32, all alike, alone, unknown, without end."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_erl import ALGOS, CEMRL, ERL, PBT
from sb3_erl.buffers.offline import fill_replay_buffer
from sb3_erl.evolution.fitness.novelty import NoveltyArchive
from sb3_erl.evolution.fitness.shaping import shape_fitness
from sb3_erl.evolution.novelty import select_by_novelty
from sb3_erl.learners.assessment import Assessment, AssessmentSettings
from sb3_erl.populations.space import Choice
from sb3_erl.rollouts.soundness import NormalizerGuard, is_sound, what_is_wrong
from tests.contract.settings import make
from tests.envs import toy_vec_env


class Counting(gym.Env):
    """Observations of large numbers that count the steps; rewards that a test gives."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, rewards: Any = lambda episode, t: 0.0, start: float = 0.0, length: int = 20):
        self.rewards, self.start, self.length, self.episode = rewards, start, length, 0

    def _seen(self) -> np.ndarray:
        return np.full(1, self.start + self.t)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t, self.episode = 0, self.episode + 1
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        assert np.isfinite(action).all()
        self.t += 1
        return self._seen(), self.rewards(self.episode, self.t), False, self.t >= self.length, {}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_infinite_in_float32_is_not_sound(dtype: Any) -> None:
    fits = np.array([1.0, np.finfo(dtype).max if dtype != np.float64 else np.finfo(np.float32).max], dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if dtype == np.float64 else "ignore")  # a sum of squares may overflow in others
        assert is_sound(fits, 1.0) and what_is_wrong(fits, 1.0) == ""
        for wrong in (np.nan, np.inf, -np.inf, *([1e39, -1e39] if dtype == np.float64 else [])):
            seen = np.array([1.0, wrong], dtype)
            assert not is_sound(seen, 1.0) and what_is_wrong(seen).startswith("observation")
    for reward in (1e39, -1e39, np.float64(1e300), np.nan, -np.inf):
        assert not is_sound(fits[:1], reward) and what_is_wrong(fits[:1], reward) == f"reward {reward}"
    assert is_sound(fits[:1], np.float16(1)) and is_sound(fits[:1], 3e38)


@pytest.mark.parametrize("name", ["erl", "cem_rl", "openai_es"])
def test_an_episode_with_a_reward_beyond_float32_fails(name: str) -> None:
    model = make(name, Counting(lambda episode, t: -1e39 if episode % 4 == 3 and t == 5 else 1.0), seed=1)
    with pytest.warns(UserWarning, match=r"episodes? failed.*reward -1e\+39"):
        model.learn(400)
    assert all(np.isfinite(tensor.numpy()).all() for tensor in model.policy.state_dict().values())
    if name != "openai_es":
        assert np.isfinite(model.replay_buffer.rewards).all()


@pytest.mark.parametrize("net_arch", [[], [8]])
def test_importance_mixing_evaluates_somebody(net_arch: list[int]) -> None:
    arguments: dict[str, Any] = {"n_gradient_actors": 0, "importance_mixing": True, "learning_starts": 10**6, "seed": 1}
    model = CEMRL("MlpPolicy", toy_vec_env(), pop_size=3, policy_kwargs={"net_arch": net_arch}, **arguments)
    model.learn(3000)
    assert model.num_timesteps == 3000


def test_genetic_memories_keep_what_is_normalized_later() -> None:
    env = VecNormalize(DummyVecEnv([lambda: Counting(start=1.7e9)]), training=False, norm_reward=False)
    env.obs_rms.mean[:], env.obs_rms.var[:] = 1.7e9 + 10, 36.0
    model = make("pderl", env=env, seed=1)
    model.learn(300)
    memories: Any = model.evolver.memories
    rows, _ = memories.latest(0, 20)
    seen = model.evolver.learned.states(rows)
    assert memories.observations.dtype == np.float64 and seen.dtype.is_floating_point and seen.element_size() == 4
    assert len(np.unique(seen.numpy())) == len(np.unique(rows)) >= 19


@pytest.mark.parametrize("processes", [DummyVecEnv, SubprocVecEnv])
def test_a_normalizer_forgets_a_reward_beyond_float32(processes: Any) -> None:
    """Other processes give rewards in float64."""
    env = VecNormalize(processes([lambda: Counting(lambda episode, t: 1e39 if episode % 4 == 3 and t == 5 else 1.0)]))
    model = make("erl", env=env, seed=1)
    with pytest.warns(UserWarning, match=r"episodes? failed"):
        model.learn(200)
    assert 0 < env.ret_rms.var < 1e6 and (np.abs(env.returns) < 1e6).all()
    env.close()


def test_the_guard_of_a_normalizer_knows_what_float32_cannot_hold() -> None:
    env = VecNormalize(DummyVecEnv([Counting]))
    env.reset()
    guard, mean = NormalizerGuard(env), float(env.ret_rms.mean)
    with guard.stepping():
        env.ret_rms.update(np.array([1e39]))
        assert env.ret_rms.mean == mean, "other environments are normalized within the step"
        env.ret_rms.mean, env.returns[:], env.old_reward = np.array(7.0), 1e39, np.array([1e39])
    assert guard.restore() and env.ret_rms.mean == mean and env.returns[0] == 0


def test_memories_of_float64_are_float32_for_networks() -> None:
    model = make("pderl", Counting(), seed=1)
    model.learn(300)
    memories: Any = model.evolver.memories
    assert memories.observations.dtype == np.float64
    assert model.evolver.learned.states(memories.latest(0, 5)[0]).element_size() == 4


@pytest.mark.parametrize("name", ["erl", "erl_re2", "evo_rainbow", "cem_rl"])
def test_evolvers_without_place_for_outsiders_are_refused_at_once(name: str) -> None:
    with pytest.raises(ValueError, match=r"^(exchange=\w+|n_gradient_actors=\d) needs an evolver that takes individuals"):
        make(name, evolver="es", pop_size=4)


def test_such_evolvers_are_taken_where_nothing_comes_from_outside() -> None:
    model = make("erl", evolver="es", pop_size=4, exchange="none", seed=1)
    model.learn(300)
    assert model.n_generations > 1


def test_cerl_does_not_deploy_a_learner_without_a_return() -> None:
    model: Any = make("cerl", seed=1, gammas=(0.9, 0.99), deploy="learner")
    model.manager.values[:], model.manager.is_known[:] = (-21.0, 0.0), (True, False)
    assert model._best([0, 1]) is model.learner.actors[0]
    model.manager.is_known[:] = True
    assert model._best([0, 1]) is model.learner.actors[1]


def test_returns_of_any_size_are_compared_by_an_assessment() -> None:
    assessment = Assessment({}, AssessmentSettings())
    outcomes = []
    for total in (5e8, 2e8, 6e8, 1.5e8):
        assessment.begin(0)
        assert assessment.outcome is None, "no episode has ended"
        assessment.finish(0, total)
        outcome = assessment.outcome
        assert outcome is not None
        outcomes.append(outcome)
        assessment.close(outcome, 0)
    assert outcomes == ["accept", "reject", "accept", "reject"] and assessment.score == 6e8


@pytest.mark.parametrize("name", ["cem", "cem_rl"])
def test_of_equal_individuals_the_same_one_is_champion_after_loading(name: str, tmp_path: Path) -> None:
    model: Any = make(name, Counting(lambda episode, t: 1.0), seed=1)
    model.learn(400)
    model.save(tmp_path / "model")
    again = ALGOS[name].load(tmp_path / "model", env=model.get_env())
    seen = np.ones(1)
    actions = [each.candidates_for_report()["champion"].predict(seen, deterministic=True)[0] for each in (model, again)]
    np.testing.assert_array_equal(*actions)


def test_episodes_of_a_dataset_end_where_they_end() -> None:
    model = ERL("MlpPolicy", Counting(), n_steps=3, gamma=1.0, buffer_size=100)
    first, second = (
        SimpleNamespace(
            observations=np.arange(start, start + 5, dtype=np.float64)[:, None],
            actions=np.zeros((4, 2), np.float32),
            rewards=np.full(4, reward),
            terminations=np.zeros(4, bool),
            truncations=np.zeros(4, bool),
        )
        for start, reward in ((0, 1.0), (100, 101.0))
    )
    assert fill_replay_buffer(model, [first, second]) == 8
    drawn: Any = model.replay_buffer._get_samples(np.arange(8), env=None)  # type: ignore[union-attr]
    columns = [getattr(drawn, name).flatten().tolist() for name in ("observations", "rewards", "next_observations")]
    found = list(zip(*columns, strict=True))
    assert found[:4] == [(0, 3, 3), (1, 3, 4), (2, 2, 4), (3, 1, 4)] and found[4] == (100, 303, 103)


def test_signs_of_infinite_fitness_move_nothing_to_nowhere() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shaped = shape_fitness(np.array([np.nan, -np.inf, np.inf, 1.0, -2.0]), "sign")
        assert shaped.tolist() == [-2.0, -2.0, 1.0, 1.0, -2.0]
        assert np.isfinite(shape_fitness(np.array([1e308, -1e308, np.inf]), "sign")).all()
        assert shape_fitness(np.array([np.nan, np.inf]), "sign").tolist() == [0.0, 0.0]


def test_a_factor_of_one_leaves_a_choice() -> None:
    knob, rng = Choice([1, 2, 3, 4, 5]), np.random.default_rng(0)
    assert {knob.perturb(3, rng, factors=(1.0,)) for _ in range(10)} == {3}
    assert {knob.perturb(3, rng, factors=(0.8, 1.0, 1.2)) for _ in range(50)} == {2, 3, 4}


def test_alone_is_better_than_failed() -> None:
    behaviors = [np.full(2, np.nan), np.array([1.0, 2.0]), np.full(2, np.nan)]
    assert NoveltyArchive().novelty_among(behaviors, 5)[1] == 0.0
    chosen = select_by_novelty(NoveltyArchive(), behaviors, np.zeros(3), n_parents=1)
    assert chosen.elite == 1 and np.isnan(chosen.novelty[[0, 2]]).all()


def test_members_with_n_step_returns_are_read_without_a_warning() -> None:
    arguments: dict[str, Any] = {"learning_starts": 10, "batch_size": 8, "buffer_size": 200, "n_steps": 3}
    model = PBT("MlpPolicy", toy_vec_env(), algorithm="sac", pop_size=2, ready_steps=50, algorithm_kwargs=arguments, seed=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*n_steps=3. is ignored")
        model.learn(100)


def test_weights_of_numpy_are_numbers() -> None:
    ERL("MlpPolicy", toy_vec_env(), fitness={"return": np.float32(1), "novelty": np.int64(2)})
