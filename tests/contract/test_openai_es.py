"""What OpenAI-ES promises beside what SB3 promises: batches, start states, statistics, limits, discrete actions."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize

from sb3_erl import OpenAIES
from sb3_erl.core.parameters import read_parameters
from sb3_erl.evolution.fitness.base import FitnessContext, needs
from sb3_erl.evolution.fitness.returns import episode_return
from sb3_erl.evolution.rebuilt import built
from sb3_erl.rollouts.jobs import EpisodeBatch
from sb3_erl.testing import check_part
from tests.contract.helpers import Tables, differences, snapshot, watch_phases
from tests.contract.settings import make
from tests.envs import toy_vec_env

EPISODE = 8  # steps of the toy environment


def make_es(env: Any = None, **kwargs: Any) -> Any:
    return make("openai_es", env, **kwargs)


def told_to(model: Any) -> list[tuple[th.Tensor, np.ndarray]]:
    """What the evolver is told from now on."""
    told, tell = [], model.evolver.tell

    def keep(candidates: th.Tensor, fitness: np.ndarray, rng: Any = None) -> None:
        told.append((built(candidates).clone(), fitness))
        tell(candidates, fitness, rng)

    model.evolver.tell = keep
    return told


def test_the_mean_is_evaluated_but_not_ranked() -> None:
    model = make_es(n_center_episodes=2)
    phases, told, tables = watch_phases(model), told_to(model), Tables(model)
    mean = model.evolver.mean.clone()
    model.learn(6 * EPISODE, log_interval=1)
    (jobs, episodes), (candidates, fitness) = phases[0], told[0]
    assert [job.candidate for job in jobs] == [1, 2, 3, 4, 0, 0] and all(job.explorer is None for job in jobs[4:])
    assert th.allclose((candidates[0] + candidates[1]) / 2, mean, atol=1e-6) and not th.equal(candidates[0], mean)
    returns = [episode.total_reward for episode in episodes.episodes]
    assert fitness.tolist() == pytest.approx(returns[:4])
    assert tables.column("rollout/center_ep_rew_mean")[0] == pytest.approx(np.mean(returns[4:]), abs=1e-5)
    rank = np.mean(np.searchsorted(np.sort(returns[:4]), returns[4:]) / 4)
    assert tables.column("population/rank_of_center")[0] == pytest.approx(rank, abs=1e-5)


def test_deployed_is_the_mean() -> None:
    model = make_es().learn(5 * EPISODE)
    assert th.equal(th.nn.utils.parameters_to_vector(model.policy.deployed.parameters()), model.evolver.mean)


@pytest.mark.parametrize(("least", "n_pairs"), [(0, 2), (4 * EPISODE, 2), (4 * EPISODE + 1, 3), (9 * EPISODE, 5)])
def test_generations_grow_until_they_have_enough_steps(least: int, n_pairs: int) -> None:
    model = make_es(min_timesteps=least, n_center_episodes=0)
    phases, told = watch_phases(model), told_to(model)
    model.learn(1)
    model.learn(20 * EPISODE)
    assert len(told[0][0]) == 2 * n_pairs, "the shortest series, in whole pairs"
    numbers = [job.candidate for jobs, _ in phases[1:] for job in jobs][: 2 * n_pairs]
    assert numbers == list(range(1, 2 * n_pairs + 1))


@pytest.mark.parametrize(("least", "n_wasted"), [(0, None), (5 * EPISODE, 2), (8 * EPISODE, 0)])
def test_pairs_that_were_played_and_not_needed_are_logged(least: int, n_wasted: int | None) -> None:
    model = make_es(min_timesteps=least, n_center_episodes=0)
    tables = Tables(model)
    model.learn(8 * EPISODE)
    assert tables.column("time/wasted_timesteps") == ([] if n_wasted is None else [n_wasted * EPISODE])


def test_pairs_meet_the_same_start_states_on_request() -> None:
    starts: dict[bool, list[Any]] = {True: [], False: []}
    for common, first in starts.items():

        @needs("observations")
        def fitness(episodes: EpisodeBatch, context: FitnessContext, first: list[Any] = first) -> np.ndarray:
            first += [episode.observations[0] for episode in episodes.episodes]
            return episode_return(episodes, context.n_candidates)

        make_es(common_random_numbers=common, n_center_episodes=0, fitness=fitness).learn(4 * EPISODE)
    same = [np.array_equal(a, b) for a, b in zip(starts[True][::2], starts[True][1::2], strict=True)]
    assert all(same) and len(same) == 2 and not np.array_equal(starts[True][0], starts[True][2])
    assert not np.array_equal(starts[False][0], starts[False][1])


def test_statistics_change_between_generations_only_and_see_what_the_policy_saw() -> None:
    seen: list[np.ndarray] = []

    @needs("observations")
    def fitness(episodes: EpisodeBatch, context: FitnessContext) -> np.ndarray:
        for episode in episodes.episodes:
            seen.extend(episode.observations[:-1])
        return episode_return(episodes, context.n_candidates)

    model = make_es(obs_stat_prob=1.0, fitness=fitness)
    statistics = model.policy.deployed.statistics

    def unchanged(*_: Any) -> bool:
        assert float(statistics.count) == pytest.approx(0.01 + EPISODE * 4 * model.n_generations)
        return True

    model.learn(2 * 5 * EPISODE, unchanged)
    assert len(seen) == 2 * 4 * EPISODE, "those of the population"
    assert np.allclose(statistics.mean, np.sum(seen, axis=0) / (len(seen) + 0.01), atol=1e-6)


def test_the_policy_standardizes_what_it_sees() -> None:
    model = make_es(obs_stat_prob=1.0).learn(5 * EPISODE)
    actor, observation = model.policy.deployed, np.full((1, 3), 0.3, np.float32)
    standard = ((th.as_tensor(observation) - actor.statistics.mean) / actor.statistics.std).clamp(-5, 5)
    with th.no_grad():
        expected = np.clip(actor.mu[1:](standard).numpy(), model.action_space.low, model.action_space.high)
    assert np.allclose(model.predict(observation)[0], expected, atol=1e-6)
    loaded_from = model.policy.state_dict()
    assert any(key.endswith("total") for key in loaded_from), "saved with the policy"


def test_nobody_standardizes_twice() -> None:
    env = VecNormalize(toy_vec_env(), norm_reward=False)
    with pytest.warns(UserWarning, match="normalize_obs is off, because env is a VecNormalize"):
        model = make_es(env, obs_stat_prob=1.0).learn(5 * EPISODE)
    assert model.policy.deployed.statistics is None and not model.normalize_obs
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_es(env, normalize_obs=False)
    rewards_only = make_es(VecNormalize(toy_vec_env(), norm_obs=False))
    assert rewards_only.policy.deployed.statistics is not None
    model = make_es(obs_stat_prob=1.0, normalize_obs=False).learn(5 * EPISODE)
    assert model.policy.deployed.statistics is None


def test_episodes_end_at_a_limit_that_grows() -> None:
    model = make_es(episode_cutoff=(3, 0.5, 2.0, 7))
    assert model.cutoff == 3
    model.learn(5 * 3)
    assert model.cutoff == 6, "all were cut"
    model.learn(5 * 6)
    assert model.cutoff == 7, "not beyond the largest"
    fixed = make_es(episode_cutoff=5).learn(25)
    assert fixed.cutoff == 5 and fixed.n_generations == 1


def test_noise_is_in_the_population_only() -> None:
    model = make_es(action_noise_std=0.5)
    phases = watch_phases(model)
    model.learn(5 * EPISODE)
    assert [job.explorer is not None for job in phases[0][0]] == [True] * 4 + [False]


def test_schedules_reach_the_evolver() -> None:
    model = make_es(sigma=lambda left: 0.1 * left + 0.01, learning_rate=lambda left: 0.2 * left)
    model.learn(10 * EPISODE)
    assert model.evolver.sigma == pytest.approx(0.06) and model.evolver.learning_rate == pytest.approx(0.1)


@pytest.mark.parametrize("bins", [2, 5])
def test_binned_actions_are_values_of_a_grid(bins: int) -> None:
    model = make_es(policy_kwargs={"net_arch": [8], "action_bins": bins}).learn(5 * EPISODE)
    actions, _ = model.predict(np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32))
    space = model.action_space
    grid = np.linspace(space.low, space.high, bins).T  # (action_dim, bins)
    assert np.abs(actions[..., None] - grid).min(axis=-1).max() < 1e-6


@pytest.mark.parametrize("kwargs", [{"action_bins": 1}, {"action_bins": 0}])
def test_wrong_bins(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"action_bins.*at least 2"):
        make_es(policy_kwargs=kwargs)


def test_numpy_and_torch_choose_the_same_discrete_action() -> None:
    kwargs: dict[str, Any] = {"noise_table_size": 1_000_000, "policy_kwargs": {"net_arch": [16]}}
    model = OpenAIES("MlpPolicy", "CartPole-v1", n_pairs=2, seed=0, **kwargs)
    observations = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    fast = model.population.act(model.evolver.mean[None])(observations, [0] * 64)
    assert np.array_equal(fast[:, 0].astype(int), model.predict(observations)[0]) and len(np.unique(fast)) == 2


# ---------------------------------------------------------------- other evolvers and fitness functions


@pytest.mark.parametrize("evolver", ["cem", "ga"])
def test_other_evolvers_are_told_what_their_candidates_got(evolver: str) -> None:
    model = make_es(evolver=evolver)
    phases, told, tables = watch_phases(model), told_to(model), Tables(model)
    has_mean = model.evolver.center() is not None
    model.learn(2 * (4 + has_mean) * EPISODE, log_interval=1)
    assert model.n_generations == len(told) == 2 and model.evolver.pop_size == 4
    for (jobs, episodes), (candidates, fitness) in zip(phases, told, strict=True):
        assert [job.candidate for job in jobs] == [1, 2, 3, 4, *([0] if has_mean else [])]
        assert fitness.tolist() == [episode.total_reward for episode in episodes.episodes[:4]] and len(candidates) == 4
    deployed = read_parameters(model.policy.deployed)
    expected = model.evolver.center() if has_mean else told[-1][0][int(told[-1][1].argmax())]
    assert th.equal(deployed, expected.float())
    assert bool(tables.column("rollout/center_ep_rew_mean")) == has_mean


@pytest.mark.parametrize("argument", [{"min_timesteps": 100}, {"common_random_numbers": True}])
def test_other_evolvers_have_no_pairs(argument: dict[str, Any]) -> None:
    (name,) = argument
    with pytest.raises(ValueError, match=rf"{name}={argument[name]} needs an evolver with .*ask_more.*got DiagonalCEM"):
        make_es(evolver="cem", **argument)


def test_mirrored_pairs_by_name_of_their_class_have_the_same_settings() -> None:
    plain = make_es(sigma=0.1, l2_coeff=0.5, min_timesteps=50).learn(20 * EPISODE)
    named = make_es(sigma=0.1, l2_coeff=0.5, min_timesteps=50, evolver="sb3_erl.evolution.es:MirroredES").learn(20 * EPISODE)
    assert differences(snapshot(plain), snapshot(named)) == []
    weak = make_es(sigma=0.1, evolver_kwargs={"l2_coeff": 0.5}, min_timesteps=50).learn(20 * EPISODE)
    assert differences(snapshot(plain), snapshot(weak)) == [], "evolver_kwargs have precedence"


def test_another_evolver_keeps_what_the_package_promises() -> None:
    check_part("cem", "evolver", OpenAIES, n_pairs=2, policy_kwargs={"net_arch": [4]}, total_timesteps=2500)


def test_fitness_of_another_kind_is_followed_and_returns_are_logged() -> None:
    model = make_es(fitness={"return": 0.0, "energy": 1.0})
    phases, told, tables = watch_phases(model), told_to(model), Tables(model)
    model.learn(5 * EPISODE, log_interval=1)
    episodes = phases[0][1].episodes[:4]
    energy = [-float(np.square(np.asarray(episode.actions, dtype=np.float64)).sum()) for episode in episodes]
    assert told[0][1].tolist() == pytest.approx(energy) and tables.column("population/fitness_max") == [
        pytest.approx(max(energy))
    ]
    returns = [episode.total_reward for episode in episodes]
    assert tables.column("population/return_mean") == [pytest.approx(np.mean(returns))]


@pytest.mark.slow
def test_cart_pole_is_balanced() -> None:
    env = Monitor(gym.make("CartPole-v1"))
    kwargs: dict[str, Any] = {"n_pairs": 4, "sigma": 0.1, "learning_rate": 0.05, "noise_table_size": 5_000_000}
    model = OpenAIES("LinearPolicy", env, seed=0, device="cpu", **kwargs)
    before, _ = evaluate_policy(model, env, n_eval_episodes=10)
    model.learn(12_000)
    after, _ = evaluate_policy(model, env, n_eval_episodes=10)
    assert before < 100 and after > 350, f"{before} -> {after} of 500"
