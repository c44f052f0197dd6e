"""Spaces that networks need help with: actions that arrive are in the space, or the class refuses it by name."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_erl import ALGOS, ERL, DeepGA, OpenAIES
from sb3_erl.core.action_spaces import inside, is_plain
from sb3_erl.core.checks import UnsupportedSpaceError
from sb3_erl.core.noise_table import NoiseTable
from sb3_erl.planning import CEMAgent
from sb3_erl.rollouts.acting import ModuleActor, single_row_actor
from sb3_erl.rollouts.actions import ToEnvironment
from tests.contract.settings import NAMES, make

CONTINUOUS = [name for name in NAMES if getattr(ALGOS[name], "takes_continuous_actions", True)]
DISCRETE = [(name, {}) for name, algo in ALGOS.items() if getattr(algo, "takes_discrete_actions", False) is True]
DISCRETE += [(name, {"learner": "dqn"}) for name in ("erl", "pderl")]


class Strict(gym.Env):
    """Ten steps; takes only actions that its space contains, and remembers them."""

    def __init__(self, action_space: spaces.Space, observation_space: spaces.Space | None = None):
        self.action_space = action_space
        self.observation_space = observation_space or spaces.Box(-10, 10, (3,), np.float32)
        self.taken: list[Any] = []

    def _observation(self) -> Any:
        return self.observation_space.sample()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.n_steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.taken.append(copy.copy(action))
        self.n_steps += 1
        return self._observation(), float(np.sum(action)), False, self.n_steps == 10, {}


ACTIONS = {
    "whole numbers": spaces.Box(np.array([-3, 0]), np.array([5, 255]), dtype=np.int32),
    "float16": spaces.Box(-2, 2, (2,), np.float16),
    "float64 with bounds that rounding exceeds": spaces.Box(-0.1, 0.3, (2,), np.float64),
    "two axes and a component without choice": spaces.Box(
        np.array([[0.0, -1.0], [0.1, -0.7]]), np.array([[0.0, 3.0], [2.7, 0.3]]), dtype=np.float32
    ),
}


SEVERAL: dict[str, spaces.Space] = {
    "several choices": spaces.MultiDiscrete([2, 3]),
    "several choices that count from somewhere": spaces.MultiDiscrete([3, 2, 4], start=[-1, 5, 0]),
    "a table of choices": spaces.MultiDiscrete(np.array([[2, 3], [4, 2]])),
    "several bits": spaces.MultiBinary(3),
}
SEVERAL_FOR_ALL = ["several choices that count from somewhere", "several bits"]
SEVERAL_FOR_ONE = ["several choices", "a table of choices"]
TAKES_SEVERAL = [name for name, algo in ALGOS.items() if getattr(algo, "takes_several_choices", False)]


def trained(algo: str, env: gym.Env, **kwargs: Any) -> Any:
    return make(algo, DummyVecEnv([lambda: env]), **kwargs).learn(90)


@pytest.mark.parametrize("kind", ACTIONS)
@pytest.mark.parametrize("algo", CONTINUOUS)
def test_actions_are_in_the_space(algo: str, kind: str) -> None:
    env = Strict(ACTIONS[kind])
    model = trained(algo, env)
    assert len(env.taken) >= 90
    rng = np.random.default_rng(0)
    for scale in (0.1, 1000.0):  # in the middle, and at the bounds
        observations = (scale * rng.standard_normal((5, 3))).astype(np.float32)
        for action in (*model.predict(observations)[0], model.predict(observations[0], deterministic=True)[0]):
            assert env.action_space.contains(action)


@pytest.mark.parametrize(("algo", "arguments"), DISCRETE, ids=[name for name, _ in DISCRETE])
def test_discrete_actions_count_from_the_start_of_their_space(algo: str, arguments: dict[str, Any]) -> None:
    env = Strict(spaces.Discrete(3, start=-1))
    model = trained(algo, env, **arguments)
    assert set(env.taken) <= {-1, 0, 1} and -1 in env.taken
    predicted, _ = model.predict(np.random.default_rng(0).uniform(-10, 10, (200, 3)).astype(np.float32))
    assert set(predicted.tolist()) <= {-1, 0, 1}
    if hasattr(model, "replay_buffer"):
        assert set(np.unique(model.replay_buffer.actions[: model.replay_buffer.size()])) <= {0, 1, 2}  # what networks count
    numbers, _ = ALGOS[algo].load(_saved(model), env=Strict(spaces.Discrete(3, start=-1))).predict(np.ones((4, 3), np.float32))
    assert set(numbers.tolist()) <= {-1, 0, 1}


def _saved(model: Any) -> Any:
    import io

    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    return file


@pytest.mark.parametrize(("algo", "kind"), [*product(TAKES_SEVERAL, SEVERAL_FOR_ALL), *product(["cem"], SEVERAL_FOR_ONE)])
def test_several_choices_at_a_time(algo: str, kind: str) -> None:
    env = Strict(SEVERAL[kind])
    model = trained(algo, env)
    assert len(env.taken) >= 90 and len({str(action) for action in env.taken}) > 1
    observations = np.random.default_rng(0).uniform(-10, 10, (50, 3)).astype(np.float32)
    many, _ = model.predict(observations)
    assert many.shape == (50, *(env.action_space.shape or ())) and many.dtype == env.action_space.dtype
    single = [model.predict(row, deterministic=True)[0] for row in observations[:5]]
    assert all(env.action_space.contains(action) for action in (*many, *single)) and np.array_equal(single, many[:5])
    loaded = ALGOS[algo].load(_saved(model), env=Strict(SEVERAL[kind]))
    assert np.array_equal(loaded.predict(observations)[0], many)
    for agent in (model.individual(0), *model.candidates_for_report().values()):
        assert env.action_space.contains(agent.predict(observations[0])[0])


@pytest.mark.parametrize("kind", SEVERAL)
@pytest.mark.parametrize("algo", ["cem", "openai_es"])
def test_one_candidate_chooses_as_many_do(algo: str, kind: str) -> None:
    """The three ways in which candidates act: one row, stacks of layers, and modules."""
    model = trained(algo, Strict(SEVERAL[kind]))
    vectors = model.evolver.ask(np.random.default_rng(1))
    fast = model.population.act(vectors)
    slow = ModuleActor([model.population.representation.agent(vector) for vector in vectors])
    observations = np.random.default_rng(0).uniform(-10, 10, (len(vectors), 3)).astype(np.float32)
    numbers = list(range(len(vectors)))
    chosen = fast(observations, numbers)
    assert np.array_equal(chosen, slow(observations, numbers))
    for number in numbers:
        row = single_row_actor(fast, number)
        assert row is not None and np.array_equal(row(observations[number]), chosen[number])


@pytest.mark.parametrize("ending", [".pt", ".pt2", ".onnx"])
@pytest.mark.parametrize("kind", ["several choices that count from somewhere", "several bits", "whole numbers"])
def test_such_actions_are_exported(kind: str, ending: str, tmp_path: Path) -> None:
    space = {**SEVERAL, **ACTIONS}[kind]
    assert trained("cem", Strict(space)).export(tmp_path / f"policy{ending}").exists()  # checked against predict in there


@pytest.mark.parametrize("algo", ["veb_rl", "openai_es", "deep_ga", "cem"])
def test_agents_of_the_population_count_from_the_start_too(algo: str) -> None:
    model = trained(algo, Strict(spaces.Discrete(3, start=5)))
    for agent in (model.individual(0), *model.candidates_for_report().values()):
        actions, _ = agent.predict(np.zeros((2, 3), np.float32))
        assert set(actions.tolist()) <= {5, 6, 7}


@pytest.mark.parametrize("algo", ["td7", "pop_td7", "esac", "erl_re2"])
def test_agents_of_a_run_act_within_the_space_too(algo: str) -> None:
    space = spaces.Box(-2, 2, (2,), np.float16)
    model = trained(algo, Strict(space))
    single = [model.individual(0)] if hasattr(model, "individual") else []
    for agent in (*single, *model.candidates_for_report().values()):
        assert space.contains(agent.predict(np.zeros(3, np.float32))[0])


def test_the_planner_acts_within_the_space() -> None:
    env = Strict(spaces.Box(-0.1, 0.3, (2,), np.float64))
    planner = {"horizon": 2, "n_candidates": 4, "n_elites": 2, "n_iterations": 1, "init_std": 100.0}
    CEMAgent(None, env, planner_kwargs=planner, seed=0).learn(20)
    assert len(env.taken) == 20 and max(action.max() for action in env.taken) == 0.3  # planned at the bounds


REFUSED_ACTIONS = {
    "a span that is no whole number of its dtype": (spaces.Box(-128, 127, (2,), np.int8), "difference is a number"),
    "no components": (spaces.Box(-1, 1, (0,), np.float32), "at least one component"),
    "no bounds": (spaces.Box(-np.inf, np.inf, (2,), np.float32), "finite bounds"),
    "a span that is no number": (spaces.Box(-3e38, 3e38, (2,), np.float32), "difference is a number"),
    "several bits": (SEVERAL["several bits"], "gymnasium.spaces.Box"),
    "several choices": (SEVERAL["several choices"], "gymnasium.spaces.Box"),
    "a table of bits": (spaces.MultiBinary((2, 2)), "one axis"),
    "a tuple": (spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2))), "gymnasium.spaces.Box"),
    "a dict": (spaces.Dict(a=spaces.Discrete(2)), "gymnasium.spaces.Box"),
}
REFUSED_OBSERVATIONS = {
    "no axis": (spaces.Box(-1, 1, (), np.float32), "one axis"),
    "no components": (spaces.Box(-1, 1, (0,), np.float32), "at least one component"),
    "numbers with a start": (spaces.Discrete(4, start=2), "count from 0"),
    "choices with a start": (spaces.MultiDiscrete([2, 3], start=[1, 0]), "count from 0"),
    "choices with two axes": (spaces.MultiDiscrete(np.array([[2, 3], [2, 2]])), "one axis"),
    "text": (spaces.Text(5), "Box, Discrete, MultiDiscrete or MultiBinary"),
    "a sequence": (spaces.Sequence(spaces.Discrete(3)), "Box, Discrete, MultiDiscrete or MultiBinary"),
}


@pytest.mark.parametrize("kind", REFUSED_ACTIONS)
@pytest.mark.parametrize("algo", CONTINUOUS)
def test_actions_that_are_refused(algo: str, kind: str) -> None:
    if kind in SEVERAL and algo in TAKES_SEVERAL:
        return
    space, expected = REFUSED_ACTIONS[kind]
    with pytest.raises(UnsupportedSpaceError, match=f"(?s){expected}.*got action_space=") as error:
        ALGOS[algo]("MlpPolicy", Strict(space))
    assert any(word in str(error.value) for word in ("Wrap it", "ActionWrapper", "version of the task"))


@pytest.mark.parametrize("kind", REFUSED_OBSERVATIONS)
@pytest.mark.parametrize("algo", NAMES)
def test_observations_that_are_refused(algo: str, kind: str) -> None:
    space, expected = REFUSED_OBSERVATIONS[kind]
    actions = spaces.Box(-1, 1, (2,), np.float32) if algo in CONTINUOUS else spaces.Discrete(3)
    with pytest.raises(UnsupportedSpaceError, match=f"(?s){expected}.*got observation_space=.*gymnasium"):
        ALGOS[algo]("MlpPolicy", Strict(actions, space))


@pytest.mark.parametrize("space", [spaces.Discrete(4), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)], ids=str)
@pytest.mark.parametrize("algo", [ERL, OpenAIES, DeepGA])
def test_observations_that_are_numbers_of_choices(algo: Any, space: spaces.Space) -> None:
    env = Strict(spaces.Box(-1, 1, (2,), np.float32), space)
    name = next(key for key, value in ALGOS.items() if value is algo)
    model = trained(name, env)
    action, _ = model.predict(space.sample())
    assert env.action_space.contains(action)


@pytest.mark.parametrize("space", [*ACTIONS.values(), spaces.Box(-0.4, 0.4, (17,), np.float32)], ids=str)
def test_scaled_actions_do_not_leave_the_bounds(space: spaces.Box) -> None:
    scaled = np.linspace(-1, 1, 2001, dtype=np.float32)
    batch = np.broadcast_to(scaled.reshape(-1, *[1] * len(space.shape)), (2001, *space.shape)).astype(np.float32)
    for action in ToEnvironment(space, squashed=True)(batch.copy()):
        assert space.contains(action)


def test_plain_spaces_are_left_to_sb3() -> None:
    assert is_plain(spaces.Box(-1, 1, (2,), np.float32)) and is_plain(spaces.Discrete(3))
    assert not is_plain(spaces.Box(-0.1, 0.3, (2,), np.float64)) and not is_plain(spaces.Discrete(3, start=1))
    assert inside(np.array([0.30000000000000004]), spaces.Box(-0.1, 0.3, (1,), np.float64)).tolist() == [0.3]


class Clock(gym.Env):
    """Shows a large number that grows by one, so that float32 cannot tell observations apart."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.t = 0
        return np.array([1.7e9]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return np.array([1.7e9 + self.t]), 0.0, False, self.t == 20, {}


@pytest.mark.parametrize("algo", [name for name in CONTINUOUS if issubclass(ALGOS[name], OffPolicyAlgorithm)])
def test_what_vecnormalize_changes_is_not_rounded_before(algo: str) -> None:
    """The learner sees the values that the policy sees."""
    env = VecNormalize(DummyVecEnv([Clock]), training=False, norm_reward=False)
    env.obs_rms.mean, env.obs_rms.var = np.array([1.7e9 + 10]), np.array([36.0])
    model = make(algo, env).learn(60)
    batch = model.replay_buffer.sample(200, env=env)
    assert len(np.unique(batch.observations.numpy().round(4))) == 20


def test_a_small_population_needs_no_further_arguments() -> None:
    env = Strict(spaces.Box(-1, 1, (2,), np.float32))
    model = DeepGA("MlpPolicy", env, pop_size=4, n_finalist_episodes=1, policy_kwargs={"net_arch": [8]}).learn(60)
    small: Any = model.evolver
    assert (small.truncation, small.n_finalists) == (2, 4) and model.truncation is None
    large: Any = DeepGA("MlpPolicy", env).evolver
    assert (large.truncation, large.n_finalists) == (20, 10)


def test_default_noise_tables_follow_the_network(recwarn: pytest.WarningsRecorder) -> None:
    env = Strict(spaces.Box(-1, 1, (6,), np.float32), spaces.Box(-1, 1, (17,), np.float32))
    for algo in (OpenAIES, DeepGA):
        assert NoiseTable.for_network(algo("MlpPolicy", env).policy.deployed, None, 0).size == 25_000_000
        large = algo("MlpPolicy", env, policy_kwargs={"net_arch": [600, 600]})
        n_params = sum(parameter.numel() for parameter in large.policy.deployed.parameters())
        assert NoiseTable.for_network(large.policy.deployed, None, 0).size == 100 * n_params > 25_000_000
    assert not [warning for warning in recwarn if "noise_table_size" in str(warning.message)]
    with pytest.raises(
        ValueError, match=r"at least 10 times the 126 .*got 100\. Leave it out or set noise_table_size=1260 at"
    ):
        OpenAIES("MlpPolicy", env, noise_table_size=100, policy_kwargs={"net_arch": [5]})


class Constant(Strict):
    """Every reward is 1."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, *rest = super().step(action)
        return (observation, 1.0, *rest)


@pytest.mark.parametrize("ties", ["average", "stable"])
def test_no_step_is_taken_where_all_returns_are_equal(ties: Any) -> None:
    model = OpenAIES("MlpPolicy", Constant(spaces.Discrete(3)), n_pairs=2, ties=ties, policy_kwargs={"net_arch": [8]})
    before = model.evolver.center().clone()
    model.learn(1000)
    assert model.n_generations >= 20 and (model.evolver.center() == before).all()
