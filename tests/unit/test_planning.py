"""The CEM planner and the models that it plans in."""

from __future__ import annotations

import multiprocessing
import operator
import pickle
from functools import partial
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TransformReward
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_erl.planning import CEMPlanner, FunctionModel, LearnedModel, RolloutModel, SimulatorModel
from sb3_erl.planning.base import episode_length, steps_left

ROBOTS = ["HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Swimmer-v5", "Ant-v5", "Humanoid-v5"]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# ------------------------------------------------------------------ the planner


def planner(reward: Any, **kwargs: Any) -> CEMPlanner:
    settings = {"action_space": 1, "horizon": 3, "n_candidates": 20, "n_elites": 4, "n_iterations": 2, "seed": 0, **kwargs}
    return CEMPlanner(reward, **settings)


def to_target(seen: list[np.ndarray] | None = None) -> Any:
    def reward(state: float, actions: np.ndarray) -> np.ndarray:
        if seen is not None:
            seen.append(actions)
        return -np.square(actions[..., 0] - state)

    return reward


def test_planner_scores_clipped_actions_and_plans_from_scratch() -> None:
    seen: list[np.ndarray] = []
    plans = planner(to_target(seen), n_candidates=400, n_elites=40, n_iterations=8, init_std=5.0)
    action, first = plans.plan(0.7)
    assert action == first.action == pytest.approx(0.7, abs=0.05) and np.abs(np.concatenate(seen)).max() == 1
    _, second = plans.plan(-0.3)
    assert (second.means[0] == 0).all() and (second.stds[0] == 5).all() and second.action == pytest.approx(-0.3, abs=0.05)
    assert not np.array_equal(first.elites[0], first.elites[1])
    elites = seen[0][first.elites[0]]
    np.testing.assert_allclose(first.means[1], elites.mean(axis=0))
    np.testing.assert_allclose(first.stds[1], np.sqrt(elites.var(axis=0) + 1e-6))
    assert first.best_return == first.returns[-1].max()


def test_planner_discounts_from_the_second_step_on_and_ranks_nan_last() -> None:
    rewards = np.tile([1.0, 10.0, 100.0], (20, 1))
    rewards[2] = np.nan
    rewards[5, 0] = 2.0
    _, plan = planner(lambda state, actions: rewards, discount=0.5).plan(None)
    assert plan.returns[0, 0] == 1 + 5 + 25
    assert plan.elites.tolist() == [[5, 0, 1, 3]] * 2, "ties go to the lower index"


def test_planner_has_one_generator_that_draws_all_numbers_at_once() -> None:
    plans = planner(to_target(), action_noise_std=0.5)
    generator = rng()
    for state in (0.7, -0.2):
        action, plan = plans.plan(state)
        expected = plans.plan_with(state, generator.standard_normal((2, 20, 3, 1)))
        assert np.array_equal(plan.means, expected.means)
        assert action == np.clip(expected.action + 0.5 * generator.standard_normal(1), -1, 1)
    copied = pickle.loads(pickle.dumps(plans))
    copied.model = plans.model
    assert np.array_equal(plans.plan(0.1)[0], copied.plan(0.1)[0])
    assert np.array_equal(plans.plan(0.1, deterministic=True)[0], copied.plan(0.1, deterministic=True)[1].action)


def test_action_repeat_holds_actions_and_adds_rewards() -> None:
    seen: list[np.ndarray] = []
    plans = planner(to_target(seen), action_repeat=4, discount=0.5)
    _, plan = plans.plan(0.5)
    assert seen[0].shape == (20, 12, 1) and (seen[0][:, :4] == seen[0][:, :1]).all()
    per_decision = 4 * -np.square(seen[0][:, ::4, 0] - 0.5)
    np.testing.assert_allclose(plan.returns[0], per_decision @ [1, 0.5, 0.25])


def test_a_warm_start_goes_on_one_decision_later_only_where_it_is_wanted() -> None:
    noise = rng().standard_normal((2, 20, 3, 1))
    previous = np.array([[0.1], [0.2], [0.3]])
    plan = planner(to_target()).plan_with(0.5, noise, previous)
    assert plan.means[0].ravel().tolist() == [0.2, 0.3, 0.0] and (plan.stds[0] == 1).all()
    warm, cold = planner(to_target(), warm_start=True), planner(to_target())
    for plans in (warm, cold):
        _, first = plans.plan(0.5)
        _, second = plans.plan(0.5)
        np.testing.assert_array_equal(second.means[0][:-1], first.mean[1:] if plans.warm_start else 0)
    warm.reset()
    assert (warm.plan(0.5)[1].means[0] == 0).all()
    given = warm.plan(0.5, mean=previous)[1]
    assert given.means[0].ravel().tolist() == [0.2, 0.3, 0.0]


def test_momentum_mixes_old_and_new_beliefs() -> None:
    noise = rng().standard_normal((1, 20, 3, 1))
    plain, slow = (planner(to_target(), n_iterations=1, momentum=m).plan_with(0.5, noise) for m in (0.0, 0.25))
    np.testing.assert_allclose(slow.means[1], 0.75 * plain.means[1])
    np.testing.assert_allclose(slow.stds[1], 0.25 + 0.75 * plain.stds[1])


def test_plans_are_rescaled_to_the_space_and_batches_change_nothing() -> None:
    box = spaces.Box(np.array([-2.0, 0.0], dtype=np.float32), np.array([2.0, 10.0], dtype=np.float32))
    seen: list[np.ndarray] = []
    plans = planner(to_target(seen), action_space=box, batch_size=7)
    action, plan = plans.plan(1.5)
    assert [len(part) for part in seen[:3]] == [7, 7, 6]
    flat = np.concatenate(seen).reshape(-1, 2)
    assert (flat.min(axis=0) == [-2, 0]).all() and (flat.max(axis=0) == [2, 10]).all()
    np.testing.assert_allclose(action, [2 * plan.action[0], 5 + 5 * plan.action[1]])
    whole = planner(to_target(), action_space=box).plan(1.5)[1]
    np.testing.assert_array_equal(whole.means, plan.means)


def test_random_shooting_takes_the_best_sequence() -> None:
    seen: list[np.ndarray] = []
    action, _ = planner(to_target(seen), n_iterations=1, n_elites=1).plan(0.5)
    assert action == seen[0][np.square(seen[0][..., 0] - 0.5).sum(axis=1).argmin(), 0]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_elites": 21}, r"n_elites must be at most n_candidates \(20\); got 21"),
        ({"n_elites": 0}, "n_elites must be at least 1"),
        ({"horizon": 0}, "horizon must be at least 1"),
        ({"n_iterations": 0}, "n_iterations"),
        ({"action_repeat": 0}, "action_repeat"),
        ({"momentum": 1.0}, "momentum must be below 1"),
        ({"std_rule": "range"}, "std_rule must be one of"),
        ({"batch_size": 0}, "batch_size"),
        ({"action_space": spaces.Discrete(3)}, "action_space must be a bounded Box"),
        ({"action_space": spaces.Box(-np.inf, np.inf, (2,))}, "action_space must have finite bounds"),
    ],
)
def test_planner_refuses(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planner(to_target(), **kwargs)


def test_planner_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"rollout must return rewards of shape \(20, 3\), .*; got \(20,\)"):
        planner(lambda state, actions: np.zeros(20)).plan(None)
    with pytest.raises(ValueError, match="noise must have shape"):
        planner(None).plan_with(None, np.zeros((1, 20, 3, 1)))


def test_a_horizon_longer_than_the_episode_is_refused() -> None:
    model = SimulatorModel(gym.make("Pendulum-v1"))
    assert planner(model, horizon=50, action_repeat=4).shape[2] == 50
    with pytest.raises(ValueError, match=r"horizon must be at most the length of an episode, 200 steps \(50 decisions"):
        planner(model, horizon=51, action_repeat=4)


# ------------------------------------------------------------------ the simulator


def play(env: gym.Env, actions: list[np.ndarray]) -> list[tuple[Any, ...]]:
    return [env.step(action)[:4] for action in actions]


def assert_equal(first: list[tuple[Any, ...]], second: list[tuple[Any, ...]]) -> None:
    for (one, *rest), (other, *others) in zip(first, second, strict=True):
        assert np.array_equal(one, other) and rest == others


@pytest.mark.parametrize("name", [*ROBOTS, "Reacher-v5", "Pendulum-v1", "CartPole-v1"])
def test_a_restored_simulator_replays_bit_for_bit(name: str) -> None:
    env = gym.make(name, max_episode_steps=18)
    env.reset(seed=0)
    env.action_space.seed(0)
    play(env, [env.action_space.sample() for _ in range(3)])
    model = SimulatorModel(env)
    state, actions = model.save(), [env.action_space.sample() for _ in range(15)]
    first, after = play(env, actions), env.reset()[0]
    for _ in range(40):  # other steps and episodes in between
        if any(env.step(env.action_space.sample())[2:4]):
            env.reset()
    for _ in range(2):
        model.restore(state)
        assert_equal(play(env, actions), first)
        assert any(first[-1][2:]), "the time limit counts from where it was"
        assert np.array_equal(env.reset()[0], after), "the environment's generator goes on from where it was"


def test_a_rollout_is_what_step_gives_and_leaves_the_environment_alone() -> None:
    env = Monitor(gym.make("Hopper-v5", max_episode_steps=25))
    env.reset(seed=0)
    env.step(env.action_space.sample())
    model = SimulatorModel(env)
    state = model.sync()
    actions = rng().uniform(-1, 1, (4, 30, 3)).astype(np.float32)
    rewards = model.rollout(state, actions)
    assert env.rewards and len(env.rewards) == 1, "Monitor does not see what is planned"
    before = model.save()
    for sequence, row in zip(actions, rewards, strict=True):
        model.restore(state)
        expected = np.zeros(30)
        for t, action in enumerate(sequence):
            _, expected[t], terminated, truncated, _ = model.env.step(action)
            if terminated or truncated:
                break
        assert np.array_equal(row, expected) and t < 29 and (row[t + 1 :] == 0).all()
    model.restore(before)
    assert_equal(play(model.env, list(actions[0][:5])), play_from(model, before, list(actions[0][:5])))


def play_from(model: SimulatorModel, state: Any, actions: list[np.ndarray]) -> list[tuple[Any, ...]]:
    model.restore(state)
    return play(model.env, actions)


class Noisy(gym.Wrapper):
    """Rewards from the environment's generator, a counter, a list and an attribute that only steps make."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.history: list[Any] = [0, {"last": np.zeros(1)}]
        self.children = {"rng": np.random.RandomState(3)}

    def step(self, action: Any) -> Any:
        observation, reward, *rest = self.env.step(action)
        self.history.append(float(reward))
        self.last_action = action
        noise = self.unwrapped.np_random.normal() + self.children["rng"].normal() + len(self.history)
        return observation, float(reward) + noise, *rest


def test_state_of_wrappers_and_generators_is_restored() -> None:
    env = Noisy(gym.make("Pendulum-v1"))
    env.reset(seed=0)
    model = SimulatorModel(env)
    state, actions = model.save(), [np.array([0.5], dtype=np.float32)] * 5
    first = play(env, actions)
    model.restore(state)
    assert len(env.history) == 2 and not hasattr(env, "last_action")
    assert_equal(play(env, actions), first)


class Views(gym.Wrapper):
    """An array that is written in place, and a view of it."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.counts = np.zeros(3)
        self.first = self.counts[:1]
        self.names: list[int] = []
        self.same_names = self.names

    def step(self, action: Any) -> Any:
        self.counts += 1
        self.names.append(len(self.names))
        observation, _, *rest = self.env.step(action)
        return observation, float(self.first[0]) + len(self.same_names), *rest


def test_references_between_attributes_are_kept() -> None:
    env = Views(gym.make("Pendulum-v1"))
    env.reset(seed=0)
    model = SimulatorModel(env)
    rewards = model.rollout(model.sync(), np.zeros((2, 3, 1)))
    assert rewards.tolist() == [[2.0, 4.0, 6.0]] * 2
    env.step(np.zeros(1, dtype=np.float32))
    assert env.first[0] == env.counts[1] == len(env.same_names) == 1


class Repeated(gym.Env):
    """An environment that holds another one in an attribute and steps it several times."""

    def __init__(self, name: str):
        self.inner, self.action_repeat = gym.make(name, max_episode_steps=9), 4
        self.observation_space, self.action_space = self.inner.observation_space, self.inner.action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.inner.reset(seed=seed)

    def step(self, action: Any) -> Any:
        total = 0.0
        for _ in range(self.action_repeat):
            observation, reward, terminated, truncated, info = self.inner.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


@pytest.mark.parametrize("name", ["HalfCheetah-v5", "Pendulum-v1"])
def test_an_environment_inside_another_is_restored(name: str) -> None:
    env = Repeated(name)
    env.reset(seed=0)
    model, actions = SimulatorModel(env), [env.action_space.sample() for _ in range(3)]
    assert model.episode_length == 3 and (model.simulation.physics is None) == (name == "Pendulum-v1")
    state = model.save()
    first, inner = play(env, actions), env.inner
    assert first[-1][3] and steps_left(env) == 0
    model.restore(state)
    assert env.inner is inner and steps_left(env) == 3
    assert_equal(play(env, actions), first)
    if name == "HalfCheetah-v5":
        model.restore(state)
        seen: list[np.ndarray] = []

        def reward_fn(states: np.ndarray, sensors: np.ndarray, actions: np.ndarray) -> np.ndarray:
            seen.append(states)
            return np.zeros(actions.shape[:2])

        fast = RolloutModel(env, reward_fn)
        fast.rollout(fast.sync(), np.array([actions]))
        env.step(actions[0])
        assert np.array_equal(seen[0][0, 1, 1:10], inner.unwrapped.data.qpos)


def test_numbers_of_the_model_are_restored() -> None:
    """Tasks may change masses and targets at a reset."""
    env = gym.make("Reacher-v5")
    env.reset(seed=0)
    model, actions = SimulatorModel(env), [np.array([0.1, -0.1], dtype=np.float32)] * 3
    state = model.save()
    first = play(env, actions)
    env.unwrapped.model.body_mass[:] *= 2.0
    assert not np.array_equal(play_from(model, model.save(), actions)[-1][0], first[-1][0])
    assert_equal(play_from(model, state, actions), first)


@pytest.mark.parametrize("task", ["cheetah-run", "reacher-easy", "finger-turn_hard"])
def test_deepmind_control_is_restored(task: str) -> None:
    shimmy = pytest.importorskip("shimmy")
    pytest.importorskip("dm_control")
    if int(mujoco.__version__.split(".")[0]) >= 4:
        pytest.skip("dm_control needs mujoco below 4")
    gym.register_envs(shimmy)
    env = gym.wrappers.FlattenObservation(gym.make(f"dm_control/{task}-v0"))
    env.reset(seed=0)
    env.action_space.seed(0)
    model = SimulatorModel(env)
    state, actions = model.save(), [env.action_space.sample() for _ in range(15)]
    first, after = play(env, actions), env.reset()[0]
    play(env, actions)
    assert_equal(play_from(model, state, actions), first)
    assert np.array_equal(env.reset()[0], after) and model.episode_length == 1000


class GlobalNoise(gym.RewardWrapper):
    def reward(self, reward: Any) -> float:
        return float(reward) + np.random.rand()


class Handle:
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("cannot copy a handle")


def test_what_cannot_be_restored_is_refused() -> None:
    env = GlobalNoise(gym.make("Pendulum-v1"))
    env.reset(seed=0)
    model = SimulatorModel(env)
    with pytest.raises(RuntimeError, match="env must give the same rewards from the same state"):
        model.rollout(model.save(), np.zeros((2, 3, 1)))
    env.handle = Handle()  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match=r"whose state can be copied; one of .*GlobalNoise.handle \(Handle\)"):
        SimulatorModel(env)


def test_several_environments_or_one_elsewhere_are_refused() -> None:
    with pytest.raises(ValueError, match=r"env must be a single environment.*n_envs=2"):
        SimulatorModel(DummyVecEnv([lambda: gym.make("Pendulum-v1")] * 2))
    elsewhere = SubprocVecEnv([lambda: gym.make("Pendulum-v1")])
    try:
        with pytest.raises(ValueError, match="env must be in this process"):
            SimulatorModel(elsewhere)
    finally:
        elsewhere.close()
    with pytest.raises(TypeError, match="env must be a Gymnasium environment"):
        SimulatorModel(3)
    with pytest.raises(ValueError, match="env must be given"):
        SimulatorModel().save()


def test_workers_give_the_same_rewards() -> None:
    env = gym.make("Reacher-v5")
    env.reset(seed=0)
    alone, shared = SimulatorModel(env), SimulatorModel(env, n_workers=2)
    actions = rng().uniform(-1, 1, (5, 6, 2))
    state = alone.sync()
    expected = alone.rollout(state, actions)
    try:
        shared.rollout(state, actions)  # the first one is checked in this process
        assert np.array_equal(shared.rollout(state, actions), expected)
        env.step(env.action_space.sample())
        env.unwrapped.model.body_mass[:] *= 2.0  # as a task may do at a reset
        later = alone.sync()
        assert np.array_equal(shared.rollout(later, actions), alone.rollout(later, actions))
        with pytest.raises(RuntimeError, match="n_workers: the environment of a worker raised an error"):
            shared.rollout(later, np.zeros((5, 6, 3)))
    finally:
        shared.close()


@pytest.fixture
def quick_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that start from a process with all imports done."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["stable_baselines3.common.monitor", "sb3_erl.planning.simulator"])
        monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)


def interrupted() -> None:
    """As with Ctrl-C, also where this process ignores the signal, because it was started in the background."""
    raise KeyboardInterrupt


@pytest.mark.usefixtures("quick_workers")
def test_after_an_interruption_or_a_death_workers_are_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    env = gym.make("Pendulum-v1")
    env.reset(seed=0)
    model = SimulatorModel(env, n_workers=2)
    state, first, second = model.sync(), np.full((4, 3, 1), -2.0), np.full((4, 3, 1), 2.0)
    expected = model.rollout(state, second)  # the first one is checked in this process
    try:
        model.rollout(state, first)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(model._workers._pipes[0], "recv", interrupted)  # type: ignore[union-attr]
            model.rollout(state, first)
        assert np.array_equal(model.rollout(state, second), expected), "not the answers of the call before"
        process = model._workers._processes[0]  # type: ignore[union-attr]
        process.kill()
        process.join()
        with pytest.raises(RuntimeError, match="n_workers: a worker process of the planner died"):
            model.rollout(state, second)
        assert np.array_equal(model.rollout(state, second), expected)
    finally:
        model.close()


@pytest.mark.usefixtures("quick_workers")
def test_workers_have_the_environment_that_is_planned_in() -> None:
    plain, tenfold = (TransformReward(gym.make("Pendulum-v1"), partial(operator.mul, k)) for k in (1, 10))
    for env in (plain, tenfold):
        env.reset(seed=0)
    model, actions = SimulatorModel(n_workers=2), np.full((4, 3, 1), 2.0)
    try:
        for env in (plain, tenfold):
            state = model.sync(env)
            expected = model.rollout(state, actions)
            assert np.array_equal(model.rollout(state, actions), expected)
        kept = model._workers
        model.rollout(model.sync(tenfold), actions)
        assert model._workers is kept is not None
    finally:
        model.close()


def test_limits_of_episodes() -> None:
    env = gym.make("Pendulum-v1", max_episode_steps=7)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    assert (episode_length(env), steps_left(env)) == (7, 6)
    assert episode_length(env.unwrapped) is steps_left(env.unwrapped) is None


# ------------------------------------------------------------------ MuJoCo's rollouts


@pytest.mark.parametrize(
    ("name", "n_steps"),
    [("HalfCheetah-v5", 12), ("HalfCheetah-v4", 5), ("Swimmer-v5", 5), ("Hopper-v5", 50), ("Walker2d-v5", 50)],
)
def test_rollouts_in_threads_equal_the_simulator(name: str, n_steps: int) -> None:
    env = gym.make(name)
    env.reset(seed=0)
    env.action_space.seed(0)
    play(env, [env.action_space.sample() for _ in range(5)])
    exact, fast = SimulatorModel(env), RolloutModel(env, n_threads=2)
    actions = rng().uniform(-1, 1, (8, n_steps, env.action_space.shape[0]))
    expected, found = exact.rollout(exact.sync(), actions), fast.rollout(fast.sync(), actions)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), expected.sum(axis=1), rtol=0, atol=1e-6)
    if name in ("Hopper-v5", "Walker2d-v5"):
        assert (expected == 0).any(), "episodes end inside the horizon"


def test_rollouts_take_a_reward_of_ones_own_and_stop_at_the_time_limit() -> None:
    env = gym.make("Reacher-v5", max_episode_steps=4)
    env.reset(seed=0)

    def reward_fn(states: np.ndarray, sensors: np.ndarray, actions: np.ndarray) -> np.ndarray:
        assert len(states) == len(sensors) == len(actions) == 3 and states.shape[1] == 1 + actions.shape[1] == 7
        assert (states[:, 0] == states[0, 0]).all() and np.allclose(np.diff(states[:, :, 0]), env.unwrapped.dt)
        return -np.square(actions).sum(axis=2) - 1.0

    model = RolloutModel(env, reward_fn)
    rewards = model.rollout(model.sync(), np.zeros((3, 6, 2)))
    assert rewards.tolist() == [[-1.0] * 4 + [0.0] * 2] * 3
    with pytest.raises(ValueError, match="reward_fn must return rewards of shape"):
        wrong = RolloutModel(env, lambda states, sensors, actions: np.zeros(3))
        wrong.rollout(wrong.sync(), np.zeros((3, 6, 2)))


def test_rollouts_refuse_what_they_cannot_do() -> None:
    with pytest.raises(ValueError, match="env must be a MuJoCo environment"):
        RolloutModel(gym.make("Pendulum-v1"))
    with pytest.raises(ValueError, match="env must have MuJoCo's controls as actions"):
        RolloutModel(gym.wrappers.RescaleAction(gym.make("Hopper-v5"), -0.5, 0.5))
    with pytest.raises(ValueError, match="reward_fn must be given"):
        RolloutModel(gym.make("Ant-v5"))
    with pytest.raises(TypeError, match="reward_fn must be None or a function"):
        RolloutModel(gym.make("Hopper-v5"), reward_fn="speed")
    with pytest.raises(ValueError, match="env must be given"):
        RolloutModel().sync()


# ------------------------------------------------------------------ functions and networks


def test_function_model_stops_counting_after_the_end() -> None:
    model = FunctionModel(
        lambda x, a: x + a,
        lambda x, a: x[:, 0],
        terminated=lambda x: x[:, 0] > 2,
        state_of=lambda observation: observation * 2,
    )
    rewards = model.rollout(np.array([0.5]), np.ones((2, 4, 1)))
    assert rewards.tolist() == [[1.0, 2.0, 0.0, 0.0]] * 2
    following = FunctionModel(lambda x, a: x + a, lambda x, a, y: y[:, 0])
    assert following.rollout(np.array([0.5]), np.ones((1, 2, 1))).tolist() == [[1.5, 2.5]]


def test_function_model_refuses() -> None:
    with pytest.raises(TypeError, match="r must be a function; got None"):
        FunctionModel(lambda x, a: x, None)
    with pytest.raises(TypeError, match="terminated must be a function or None"):
        FunctionModel(lambda x, a: x, lambda x, a: x, terminated=3)
    with pytest.raises(ValueError, match=r"r must return rewards of shape \(2,\)"):
        FunctionModel(lambda x, a: x, lambda x, a: x).rollout(np.zeros(1), np.zeros((2, 1, 1)))
    with pytest.raises(TypeError, match="FunctionModel plans from observations"):
        FunctionModel(lambda x, a: x, lambda x, a: x).sync(gym.make("Pendulum-v1"))


OBSERVATIONS, ACTIONS = spaces.Box(-np.inf, np.inf, (2,), np.float32), spaces.Box(-2.0, 4.0, (1,), np.float32)


def linear_data(n_envs: int = 2) -> ReplayBuffer:
    """Transitions of x' = A x + b a, reward x1 - a, for a in [-1, 1]."""
    buffer, generator = ReplayBuffer(300, OBSERVATIONS, ACTIONS, "cpu", n_envs), rng()
    for _ in range(250):
        x, a = generator.normal(3, 2, (n_envs, 2)), generator.uniform(-1, 1, (n_envs, 1))
        buffer.add(x, x @ [[0.9, 0.1], [0.0, 0.8]] + a, a, x[:, 0] - a[:, 0], np.zeros(n_envs), [{}] * n_envs)
    return buffer


def test_learned_model_predicts_what_it_was_fitted_on() -> None:
    model = LearnedModel(OBSERVATIONS, ACTIONS, network=torch.nn.Linear(3, 3), learning_rate=3e-2, seed=0)
    first = model.fit(linear_data(), 1)["model_loss"]
    model.fit(linear_data(), 200, batch_size=64)
    assert model.fit(linear_data(), 1)["model_loss"] < 1e-3 < first
    rewards = model.rollout(np.array([1.0, 2.0]), np.array([[[-2.0], [4.0]]]))  # -1 and 1 in normalized units
    np.testing.assert_allclose(rewards, [[2.0, 0.9 - 1 - 1]], atol=0.1)
    model.terminated = lambda x: x[:, 0] < 0
    assert model.rollout(np.array([1.0, 2.0]), np.array([[[-2.0], [4.0]]]))[0, 1] == 0.0


def test_learned_model_depends_on_its_seed_only_and_can_be_pickled() -> None:
    models = [LearnedModel(OBSERVATIONS, ACTIONS, net_arch=(8,), seed=4) for _ in range(2)]
    actions = rng().uniform(-2, 4, (3, 4, 1))
    for model in models:
        torch.rand(1)
        model.fit(linear_data(), 3, batch_size=16)
    copied = pickle.loads(pickle.dumps(models[0]))
    expected = models[0].rollout(np.ones(2), actions)
    assert all(np.array_equal(model.rollout(np.ones(2), actions), expected) for model in (models[1], copied))
    assert copied.fit(linear_data(), 1) and models[0].fit(linear_data(), 1)


def test_learned_model_refuses() -> None:
    with pytest.raises(ValueError, match="observation_space must be a Box with one axis"):
        LearnedModel(spaces.Box(0, 1, (3, 4)), ACTIONS)
    with pytest.raises(ValueError, match=r"network must map \(n, 3\) to \(n, 3\).*; got \(2, 5\)"):
        LearnedModel(OBSERVATIONS, ACTIONS, network=torch.nn.Linear(3, 5))
    with pytest.raises(TypeError, match="network must be None or a torch module"):
        LearnedModel(OBSERVATIONS, ACTIONS, network=3)
    with pytest.raises(ValueError, match="replay_buffer must hold transitions"):
        LearnedModel(OBSERVATIONS, ACTIONS).fit(ReplayBuffer(5, OBSERVATIONS, ACTIONS), 1)
