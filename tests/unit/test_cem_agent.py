"""``CEMAgent`` keeps SB3's promises, as far as an agent without a policy can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.callbacks import CallbackList, CheckpointCallback, EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from benchmarks.planning import main as benchmark
from examples.planning import pendulum_model
from sb3_erl.planning import CEMAgent, CEMPlanner, LearnedModel, RolloutModel, SimulatorModel
from sb3_erl.zoo import main as command
from sb3_erl.zoo.plan import main as plan

SMALL = {"horizon": 4, "n_candidates": 8, "n_elites": 2, "n_iterations": 2}


def pendulum(n_steps: int = 12) -> gym.Env:
    return gym.make("Pendulum-v1", max_episode_steps=n_steps)


def agent(env: Any = None, **kwargs: Any) -> CEMAgent:
    settings = {"planner_kwargs": SMALL, "seed": 1, **kwargs}
    return CEMAgent(env=pendulum() if env is None else env, **settings)


# ------------------------------------------------------------------ acting


@pytest.mark.parametrize("form", ["policy None", "env only", "id only"])
def test_forms_of_the_constructor(form: str) -> None:
    given = {"policy None": (None, pendulum()), "env only": (pendulum(),), "id only": ("Pendulum-v1",)}[form]
    model = CEMAgent(*given, planner_kwargs=SMALL)  # type: ignore[misc]
    assert model.env.num_envs == 1 and model.policy is None and isinstance(model.model, SimulatorModel)


def test_predict_plans_from_the_state_of_the_environment() -> None:
    env = pendulum()
    model = agent(env)
    observation, _ = env.reset(seed=3)
    action, state = model.predict(observation)
    planner = CEMPlanner(SimulatorModel(env), env.action_space, seed=1, **SMALL)
    expected, _ = planner.plan(planner.model.sync())
    assert state is None and action.shape == (1,) and action == expected.astype(np.float32)
    observation = env.step(action)[0]  # below the Monitor and the DummyVecEnv
    expected, _ = planner.plan(planner.model.sync(env))
    assert model.predict(observation, deterministic=True)[0] == expected.astype(np.float32)


def test_planning_does_not_disturb_the_environment() -> None:
    env, untouched = pendulum(), pendulum()
    model = agent(env)
    observation = model.env.reset()
    untouched.reset()
    untouched.unwrapped.state = env.unwrapped.state.copy()
    for _ in range(5):
        action, _ = model.predict(observation)
        observation, reward, _, _ = model.env.step(action)
        expected, expected_reward, *_ = untouched.step(action[0])
        assert np.array_equal(observation[0], expected) and reward[0] == np.float32(expected_reward)
    assert len(model.env.envs[0].rewards) == 5


def test_simulator_and_equations_agree() -> None:
    env = pendulum()
    simulator, equations = agent(env), agent(env, model=pendulum_model())
    observation = simulator.env.reset()
    first, second = (model.predict(observation)[0] for model in (simulator, equations))
    np.testing.assert_allclose(first, second, atol=1e-3)


def test_a_simulator_finds_the_environment_that_shows_the_observation() -> None:
    model, other = agent(), make_vec_env(pendulum, seed=7)
    model.env.reset()
    observation = other.reset()
    model.predict(observation)
    with pytest.raises(ValueError, match="observation must be the current one of the environment that the agent plans in"):
        model.predict(other.step(np.zeros((1, 1)))[0])
    model.add_env(other)
    assert model.predict(other.reset())[0].shape == (1, 1)
    assert model.model.env.unwrapped is other.envs[0].unwrapped
    returns, lengths = evaluate_policy(model, other, n_eval_episodes=2, return_episode_rewards=True)
    assert lengths == [12, 12] and len(returns) == 2
    with pytest.raises(ValueError, match="observation must be a single one"):
        model.predict(np.zeros((2, 3), dtype=np.float32))
    with pytest.raises(TypeError, match="env must be a VecEnv"):
        model.add_env(pendulum())


def test_equations_plan_for_any_observations() -> None:
    model = agent(model=pendulum_model())
    actions, _ = model.predict(np.stack([model.observation_space.sample() for _ in range(3)]))
    assert actions.shape == (3, 1) and len(np.unique(actions)) == 3


def test_action_repeat_holds_an_action_while_the_state_is_given_back() -> None:
    model = agent(planner_kwargs={**SMALL, "action_repeat": 3})
    observation, state, actions = model.env.reset(), None, []
    for t in range(8):
        action, state = model.predict(observation, state, np.array([t == 7]))
        actions.append(float(action[0, 0]))
        observation = model.env.step(action)[0]
    assert actions[0] == actions[1] == actions[2] != actions[3] == actions[4] == actions[5] != actions[6] != actions[7]


def test_a_warm_start_goes_on_while_the_state_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []
    plan_with = CEMPlanner.plan_with

    def watched(self: CEMPlanner, state: Any, noise: np.ndarray, previous: Any = None) -> Any:
        begun.append(None if previous is None else previous.copy())
        return plan_with(self, state, noise, previous)

    monkeypatch.setattr(CEMPlanner, "plan_with", watched)
    model = agent(planner_kwargs={**SMALL, "warm_start": True})
    observation = model.env.reset()
    _, state = model.predict(observation)
    model.predict(observation, state, np.array([False]))
    model.predict(observation, state, np.array([True]))
    model.predict(observation)
    assert begun[0] is begun[2] is begun[3] is None and np.array_equal(begun[1], state[0][0])
    begun.clear()
    model.learn(13)
    assert begun[0] is begun[12] is None and all(mean is not None for mean in begun[1:12]), "a new episode begins from nothing"


# ------------------------------------------------------------------ learning


class Calls(EvalCallback):
    """Counts what SB3 calls, and tests the agent in another environment."""

    def __init__(self, **kwargs: Any):
        super().__init__(make_vec_env(pendulum, seed=9), eval_freq=5, n_eval_episodes=1, verbose=0, **kwargs)
        self.seen: list[float] = []

    def _on_step(self) -> bool:
        self.seen.append(float(self.locals["rewards"][0]))
        return super()._on_step()


def test_learn_fills_the_buffer_and_callbacks_change_nothing(tmp_path: Path) -> None:
    models, calls = [agent(planner_kwargs={**SMALL, "action_noise_std": 0.3}) for _ in range(2)], Calls()
    saves = CheckpointCallback(10, str(tmp_path), save_replay_buffer=True)
    models[0].learn(30, callback=CallbackList([calls, saves]), progress_bar=True)
    models[1].learn(30)
    for model in models:
        assert model.num_timesteps == model.replay_buffer.size() == 30 and model._episode_num == 2
        assert model.replay_buffer.timeouts[11] == 1 and np.abs(model.replay_buffer.actions).max() <= 1
    assert calls.seen == models[0].replay_buffer.rewards[:30, 0].tolist() and calls.last_mean_reward < 0
    assert np.array_equal(models[0].replay_buffer.actions[:30], models[1].replay_buffer.actions[:30])
    loaded = agent()
    loaded.load_replay_buffer(tmp_path / "rl_model_replay_buffer_20_steps.pkl")
    assert loaded.replay_buffer.size() == 19, "callbacks are called before a step is stored, as in SB3"


def test_learn_goes_on_and_stops_when_a_callback_says_so() -> None:
    model = agent()
    model.learn(8).learn(8, reset_num_timesteps=False)
    assert model.num_timesteps == 16 and model._episode_num == 1
    model.learn(50, callback=StopTrainingOnMaxEpisodes(1))
    assert model.num_timesteps == 12
    with pytest.raises(ValueError, match="total_timesteps"):
        model.learn(0)


def test_the_log_has_seconds_per_action(tmp_path: Path) -> None:
    model = agent()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(24)
    table = np.genfromtxt(tmp_path / "progress.csv", delimiter=",", names=True)
    assert (table["timeseconds_per_action"] > 0).all() and table["timetotal_timesteps"].tolist() == [12, 24]
    assert {"rolloutep_rew_mean", "plannerpredicted_return", "plannerstd"} <= set(table.dtype.names)


def test_action_repeat_and_the_end_of_the_budget() -> None:
    model = agent(planner_kwargs={**SMALL, "horizon": 2, "action_repeat": 5})
    model.learn(14)  # an episode of 12 steps: 5, 5, 2; then 2 of 5
    actions = model.replay_buffer.actions[:14, 0, 0]
    assert model.num_timesteps == 14 and model.n_decisions == 4
    assert [len(set(part)) for part in (actions[:5], actions[5:10], actions[10:12], actions[12:])] == [1] * 4


def test_a_learned_model_is_fitted_and_makes_the_agent_better() -> None:
    planner_kwargs = {"horizon": 15, "n_candidates": 60, "n_elites": 6, "n_iterations": 3, "action_noise_std": 0.3}
    kwargs = {"model": "learned", "model_kwargs": {"net_arch": [64, 64]}, "learning_starts": 400, "gradient_steps": 300}
    model = agent("Pendulum-v1", planner_kwargs=planner_kwargs, **kwargs)
    model.learn(1000)
    returns = model.replay_buffer.rewards[:1000, 0].reshape(5, 200).sum(axis=1)
    assert model._n_updates == 4 * 300 and returns[:2].mean() < -700 and returns[3:].mean() > -500, returns


def test_vec_normalize_touches_neither_planned_rewards_nor_data() -> None:
    plain, normalized = agent(make_vec_env(pendulum)), agent(VecNormalize(make_vec_env(pendulum)))
    for model in (plain, normalized):
        model.learn(15)
    assert np.array_equal(plain.replay_buffer.actions[:15], normalized.replay_buffer.actions[:15])
    assert np.array_equal(plain.replay_buffer.rewards[:15], normalized.replay_buffer.rewards[:15])
    np.testing.assert_allclose(plain.replay_buffer.observations[:15], normalized.replay_buffer.observations[:15], atol=1e-6)
    shown = normalized.env.reset()
    normalized.predict(shown)
    assert normalized._env_states._seen is None, "the observation was found in the agent's own env"
    equations = agent(normalized.env, model=pendulum_model())
    same = agent(model=pendulum_model())
    original = normalized._vec_normalize_env.get_original_obs()
    np.testing.assert_allclose(equations.predict(shown)[0], same.predict(original)[0], atol=1e-4)


# ------------------------------------------------------------------ files


@pytest.mark.parametrize("kind", ["simulator", "rollout", "learned", "equations"])
def test_a_loaded_agent_goes_on_as_the_saved_one(kind: str, tmp_path: Path) -> None:
    name = "Hopper-v5" if kind == "rollout" else "Pendulum-v1"
    kwargs = {"model_kwargs": {"net_arch": [8]}, "learning_starts": 10} if kind == "learned" else {}
    env = gym.make(name, max_episode_steps=20)
    model = agent(env, model=pendulum_model() if kind == "equations" else kind, **kwargs)
    model.learn(22)
    observation = model.env.reset()
    model.predict(observation)
    model.save(tmp_path / "agent")
    loaded = CEMAgent.load(tmp_path / "agent", env=env)
    assert loaded.num_timesteps == 22 and loaded.n_decisions == model.n_decisions and loaded.planner.model is loaded.model
    assert np.array_equal(model.predict(observation)[0], loaded.predict(observation)[0])
    without = CEMAgent.load(tmp_path / "agent")
    if kind in ("simulator", "rollout"):
        with pytest.raises(ValueError, match="env must be set before a simulator plans"):
            without.predict(observation)
        without.set_env(gym.make(name, max_episode_steps=20))
        assert without.learn(5).num_timesteps == 5
    else:
        assert np.array_equal(
            without.predict(observation)[0], CEMAgent.load(tmp_path / "agent", env=name).predict(observation)[0]
        )


def test_a_loaded_agent_plans_with_other_planner_kwargs(tmp_path: Path) -> None:
    kwargs = {**SMALL, "warm_start": True}
    model = agent(model=pendulum_model(), planner_kwargs=kwargs)
    model.planner.plan(np.zeros(3))
    model.save(tmp_path / "agent")
    longer = CEMAgent.load(tmp_path / "agent", planner_kwargs={**kwargs, "horizon": 6}).planner
    assert longer.shape == (2, 8, 6, 1) and longer._previous is None
    assert longer.rng.bit_generator.state == model.planner.rng.bit_generator.state
    wider = CEMAgent.load(tmp_path / "agent", planner_kwargs={**kwargs, "n_candidates": 9}).planner
    assert wider.shape == (2, 9, 4, 1) and np.array_equal(wider._previous, model.planner._previous)
    seeded = CEMAgent.load(tmp_path / "agent", planner_kwargs={**kwargs, "seed": 7}).planner
    assert seeded.rng.bit_generator.state == np.random.default_rng(7).bit_generator.state
    with pytest.raises(ValueError, match="horizon must be at most the length of an episode, 5 steps"):
        CEMAgent.load(tmp_path / "agent", env=pendulum(5), planner_kwargs={"horizon": 6})
    with pytest.raises(ValueError, match=r"n_elites must be at most n_candidates \(5\)"):
        CEMAgent.load(tmp_path / "agent", planner_kwargs={"n_candidates": 5})


@pytest.mark.parametrize("is_old", [False, True], ids=["", "file of before"])
def test_a_planner_goes_on_bit_for_bit_from_a_file(is_old: bool, tmp_path: Path) -> None:
    model = agent(model=pendulum_model(), planner_kwargs={**SMALL, "warm_start": True, "seed": 5})
    model.planner.plan(np.zeros(3))
    model.save(tmp_path / "agent", exclude=["_planner_arguments"] if is_old else None)
    loaded = CEMAgent.load(tmp_path / "agent", planner_kwargs=model.planner_kwargs)
    for _ in range(2):
        (action, plan), (other, same) = (each.planner.plan(np.zeros(3)) for each in (model, loaded))
        assert np.array_equal(action, other) and np.array_equal(plan.means, same.means)


def test_parameters_of_a_learned_model() -> None:
    first, second = (agent(model="learned", model_kwargs={"net_arch": [8]}, seed=seed) for seed in (1, 2))
    second.set_parameters(first.get_parameters())
    observation = first.env.reset()
    state, actions = observation[0], np.ones((1, 2, 1))
    assert np.array_equal(first.model.rollout(state, actions), second.model.rollout(state, actions))
    assert isinstance(first.model, LearnedModel) and agent().get_parameters() == {}


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"policy": "MlpPolicy"}, ValueError, "policy must be None"),
        ({"planner_kwargs": {"n_candidates": 5, "n_elites": 6}}, ValueError, r"n_elites must be at most n_candidates \(5\)"),
        ({"planner_kwargs": {"horizon": 13}}, ValueError, "horizon must be at most the length of an episode, 12 steps"),
        ({"planner_kwargs": {"horizon": 13}, "model": pendulum_model()}, ValueError, "horizon must be at most the length"),
        ({"planner_kwargs": {"horizn": 3}}, TypeError, "horizn"),
        ({"planner_kwargs": 3}, TypeError, "planner_kwargs must be None or a dict"),
        ({"model": "simulater"}, ValueError, r"model must be one of \['learned', 'rollout', 'simulator'\]"),
        ({"model": "rollout"}, ValueError, "env must be a MuJoCo environment"),
        ({"model": pendulum_model(), "model_kwargs": {"r": 3}}, ValueError, "model_kwargs must be None beside a model"),
        ({"buffer_size": 0}, ValueError, "buffer_size must be at least 1"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"env": "CartPole-v1"}, ValueError, "continuous actions"),
        ({"env": "Pendulum-v7"}, ValueError, "env must be an environment or the id"),
        ({"env": None}, ValueError, "env must be an environment"),
    ],
)
def test_bad_arguments_are_named(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CEMAgent(**{"env": pendulum(), "planner_kwargs": SMALL, **kwargs})


@pytest.mark.parametrize("model", ["simulator", "learned"])
def test_several_environments_are_refused(model: str) -> None:
    with pytest.raises(ValueError, match="env must be a single environment"):
        agent(DummyVecEnv([pendulum] * 2), model=model)


def test_an_environment_in_another_process_serves_models_of_observations_only() -> None:
    env = SubprocVecEnv([pendulum])
    try:
        with pytest.raises(ValueError, match="env must be in this process"):
            agent(env)
        assert agent(env, model=pendulum_model()).learn(3).num_timesteps == 3
    finally:
        env.close()


def test_a_shorter_episode_is_refused_later_too() -> None:
    model = agent()
    with pytest.raises(ValueError, match="horizon must be at most the length of an episode, 3 steps"):
        model.set_env(pendulum(3))
    assert model.learn(3).num_timesteps == 3


def test_rollouts_are_a_model_of_an_agent() -> None:
    model = agent(gym.make("HalfCheetah-v5", max_episode_steps=5), model=RolloutModel(n_threads=2))
    exact = agent(gym.make("HalfCheetah-v5", max_episode_steps=5))
    for each in (model, exact):
        each.learn(7)
    np.testing.assert_allclose(model.replay_buffer.actions[:7], exact.replay_buffer.actions[:7], atol=1e-6)


# ------------------------------------------------------------------ the command


def test_the_command_plays_and_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--env", "Pendulum-v1", "-n", "2", "--save", str(tmp_path / "agent.zip"), "-params", "n_candidates:4"]
    returns = plan([*words, "n_elites:2", "n_iterations:1", "horizon:3", "action_repeat:5"])
    shown = capsys.readouterr().out
    assert len(returns) == 2 and f"return {returns[1]:.2f}, 200 steps" in shown and "over 2 episodes" in shown
    assert CEMAgent.load(tmp_path / "agent.zip", env="Pendulum-v1").planner.action_repeat == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--env", "Pendulum-v1", "-params", "n_elites:500"], "n_elites must be at most n_candidates"),
        (["--env", "Pendulum-v7"], "env must be an environment or the id"),
        (["--env", "Pendulum-v1", "-n", "0"], "--episodes"),
    ],
)
def test_the_command_names_what_is_wrong(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        plan(words)
    assert message in capsys.readouterr().err


def test_sb3_erl_knows_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["sb3-erl", "plan", "--help"])
    with pytest.raises(SystemExit):
        command()
    assert "usage: sb3-erl plan" in capsys.readouterr().out


@pytest.mark.slow
def test_pendulum_with_its_equations(tmp_path: Path) -> None:
    """One start of the benchmark, whose mean over twenty is in ``docs/planning.md``."""
    assert benchmark(["pendulum", "--episodes", "1", "--out", str(tmp_path)]) > -130
    assert len((tmp_path / "pendulum.csv").read_text().splitlines()) == 2
