"""Dict observations: every class sees, stores and learns from them, and goes on from files, as with those in one array."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv, SimpleMultiObsEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.preprocessing import get_obs_shape
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize

from sb3_erl import ALGOS, GenerationCheckpoint
from sb3_erl.buffers.lap import DictLAPReplayBuffer, LAPReplayBuffer
from sb3_erl.core.checks import UnsupportedSpaceError
from sb3_erl.core.observations import packed, take, unpacked, zeros
from sb3_erl.core.parameters import read_parameters
from sb3_erl.remote.process import ProcessEvaluator
from tests.contract.helpers import Witness, differences, snapshot
from tests.contract.settings import (
    DISCRETE,
    GENERATIONAL,
    HYBRIDS,
    LEARNERS,
    NAMES,
    ONE_OF_EACH_FAMILY,
    fast,
    make,
    toy_actions,
)
from tests.envs import DictEnv, toy_maker, toy_vec_env

POLICY = "MultiInputPolicy"
CONTINUOUS_HYBRIDS = [name for name in HYBRIDS if name not in DISCRETE]
OWN_WAYS = list(dict.fromkeys([*ONE_OF_EACH_FAMILY, "pderl", "openai_es"]))
"""Classes that stand for others where only the kind of class matters."""
VARIANTS: list[tuple[str, Any]] = [
    ("erl", "td7"),
    ("erl", "sac"),
    ("erl", "stable_baselines3:SAC"),
    ("erl", "dqn"),
    ("pderl", "dqn"),
]
VARIANTS += [("cem_rl", "td7"), ("cem_rl", "sac"), ("cerl", ["td7", "td3"]), ("erl_re2", "td7"), ("evo_rainbow", "sac")]
"""Learners whose networks or buffers are not the default's."""


def dict_model(name: str, n_envs: int = 1, image: bool = False, env: VecEnv | None = None, **overrides: Any) -> Any:
    """A model whose environments show a vector, a number of a choice and perhaps a picture."""
    settings = fast(name)
    own = {"features_extractor_kwargs": {"cnn_output_dim": 4}} if image else {}
    settings["policy_kwargs"] = {**settings.get("policy_kwargs", {}), **own}
    settings |= {"buffer_size": 300} if name in HYBRIDS else {}
    settings |= {"behavior": partial(_last_action)} if "behavior" in settings else {}
    actions = {"n_actions": 3} if "dqn" in str(overrides.get("learner")) else toy_actions(name)
    env = toy_vec_env(n_envs, env_class=DictEnv, image=image, vary=2, **actions) if env is None else env
    return ALGOS[name](POLICY, env, **{**settings, **overrides})


def _last_action(trace: Any) -> np.ndarray:
    return np.array([sum(trace.rewards), len(trace.rewards)])


def seen(model: Any, n: int = 4) -> dict[str, np.ndarray]:
    """Observations all over the model's space."""
    space = copy.deepcopy(model.observation_space)
    space.seed(1)
    rows = [space.sample() for _ in range(n)]
    return {key: np.stack([row[key] for row in rows]) for key in space.spaces}


def check_acting(model: Any, tmp_path: Path) -> None:
    """Predicts for one and for several, and after loading the same."""
    observations = seen(model)
    actions, _ = model.predict(observations, deterministic=True)
    assert actions.shape == (4, *model.action_space.shape)
    for row in range(4):
        single, _ = model.predict(take(observations, row), deterministic=True)
        assert model.action_space.contains(single) and np.allclose(single, actions[row], atol=1e-5)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model")
    assert np.array_equal(loaded.predict(observations, deterministic=True)[0], actions)


@pytest.mark.parametrize("image", [False, True], ids=["vectors", "picture"])
@pytest.mark.parametrize("name", NAMES)
def test_every_class_learns_from_dicts_in_several_environments(name: str, image: bool, tmp_path: Path) -> None:
    model = dict_model(name, n_envs=3, image=image)
    before = read_parameters(model.policy.deployed)
    model.learn(60 if image else 120)
    assert not th.equal(before, read_parameters(model.policy.deployed)) or name in ("td7", "pop_td7")
    check_acting(model, tmp_path)
    if name in HYBRIDS:
        buffer = model.replay_buffer
        assert model._n_updates > 0 and isinstance(buffer, DictReplayBuffer)
        assert {key: array.shape[2:] for key, array in buffer.observations.items()} == get_obs_shape(model.observation_space)
        n_kinds = len(np.unique(buffer.observations["vector"][: buffer.size(), 0], axis=0))
        assert n_kinds > buffer.size() // 2, "they are those that were seen"
        follows = [np.array_equal(buffer.next_observations[key][:2], array[1:3]) for key, array in buffer.observations.items()]
        assert buffer.n_envs > 1 or all(follows), "one step after another"


@pytest.mark.parametrize(("name", "learner"), VARIANTS, ids=str)
def test_every_kind_of_learner_reads_dicts(name: str, learner: Any, tmp_path: Path) -> None:
    model = dict_model(name, n_envs=2, learner=learner).learn(120)
    assert model._n_updates > 0
    check_acting(model, tmp_path)


def test_the_variants_are_all_that_differ() -> None:
    tried = {(name, str(learner)) for name, learner in VARIANTS}
    own_networks = {"td7", "sac", "dqn"}
    for name, choices in LEARNERS.items():
        for choice in choices[1:]:
            alike = name in ("pderl", "evo_rainbow_exp") and choice in own_networks  # as in ERL and EvoRainbow
            assert (name, str(choice)) in tried or alike or choice in ("td3", "ddpg") or isinstance(choice, list)


# -------------------------------------------------------------------- one run, however it is made


def end_of_generation(name: str) -> int:
    """Steps of a run of some generations, at whose end any number of environments stops."""
    witness = Witness()
    dict_model(name).learn(110, witness)
    return witness.generation_ends[-1]


@pytest.mark.parametrize("name", [name for name in OWN_WAYS if name in GENERATIONAL])
def test_the_number_and_kind_of_environments_change_nothing(name: str) -> None:
    end = end_of_generation(name)
    expected = snapshot(dict_model(name, 1).learn(end))
    assert differences(expected, snapshot(dict_model(name, 3).learn(end))) == []
    env = toy_vec_env(2, subprocess=True, env_class=DictEnv, vary=2, **toy_actions(name))
    try:
        assert differences(expected, snapshot(dict_model(name, env=env).learn(end))) == []
    finally:
        env.close()


@pytest.mark.parametrize("name", [name for name in OWN_WAYS if name in GENERATIONAL])
def test_worker_processes_give_the_same(name: str) -> None:
    expected = snapshot(dict_model(name).learn(90))
    evaluator = ProcessEvaluator(2, toy_maker(DictEnv, vary=2, **toy_actions(name)))
    try:
        assert differences(expected, snapshot(dict_model(name, evaluator=evaluator).learn(90))) == []
    finally:
        evaluator.close()


@pytest.mark.parametrize("name", sorted({*OWN_WAYS, "erl_re2"} - {"pop_td7"} | {"td7"}))
def test_a_run_goes_on_from_its_checkpoint_bit_for_bit(name: str, tmp_path: Path) -> None:
    straight = dict_model(name)
    straight.learn(130, GenerationCheckpoint(40, tmp_path, keep=None))
    middle = sorted(tmp_path.glob("checkpoint_*"))[0]
    resumed = ALGOS[name].resume_from(middle, env=dict_model(name).get_env(), device="cpu")
    assert 0 < resumed.num_timesteps < 90
    assert differences(snapshot(straight), snapshot(resumed.learn(130))) == []


@pytest.mark.parametrize("name", ["erl", "td7", "openai_es"])
def test_files_without_pickles_hold_dicts(name: str, tmp_path: Path) -> None:
    model = dict_model(name).learn(60)
    model.save(tmp_path / "model")
    loaded = ALGOS[name].load(tmp_path / "model", env=model.get_env(), trusted=False)
    if name in HYBRIDS:
        model.save_replay_buffer(tmp_path / "buffer.npz")
        loaded.load_replay_buffer(tmp_path / "buffer.npz", trusted=False)
    assert differences(snapshot(model), snapshot(loaded)) == []


# -------------------------------------------------------------------- wrappers


@pytest.mark.parametrize("name", OWN_WAYS)
def test_vec_normalize_and_frame_stack(name: str, tmp_path: Path) -> None:
    def environment() -> VecEnv:
        makers = [toy_maker(DictEnv, choice=False, **toy_actions(name)) for _ in range(2)]
        return VecNormalize(VecFrameStack(DummyVecEnv(makers), 2), norm_obs_keys=["vector"])

    model = dict_model(name, env=environment()).learn(90)
    check_acting(model, tmp_path)
    if name in HYBRIDS:
        stored = model.replay_buffer.observations["vector"][: model.replay_buffer.size()]
        drawn = model.replay_buffer.sample(50, env=model.get_vec_normalize_env()).observations["vector"].numpy()
        assert abs(drawn.mean()) < 1.5 and stored.shape[-1] == 6
        assert not np.allclose(drawn.std(), stored.std(), rtol=0.02), "stored as they are, normalized when drawn"


@pytest.mark.parametrize("name", ["erl", "cem_rl", "openai_es", "td7"])
def test_the_environment_of_sb3_with_two_pictures_and_a_vector(name: str, tmp_path: Path) -> None:
    env = DummyVecEnv([lambda: Monitor(SimpleMultiObsEnv(discrete_actions=False, random_start=False))] * 2)
    model = dict_model(name, env=env, image=True)
    check_acting(model.learn(40), tmp_path)


@pytest.mark.parametrize(("name", "own"), [("veb_rl", {}), ("erl", {"learner": "dqn"}), ("deep_ga", {})], ids=str)
def test_the_same_with_discrete_actions(name: str, own: dict[str, Any], tmp_path: Path) -> None:
    env = DummyVecEnv([lambda: Monitor(SimpleMultiObsEnv(random_start=False))] * 2)
    check_acting(dict_model(name, env=env, image=True, **own).learn(40), tmp_path)


# -------------------------------------------------------------------- goals


def bits(name: str, **own: Any) -> VecEnv:
    """SB3's environment in which bits are to be flipped until they are those of the goal."""
    discrete = name in DISCRETE or own.get("learner") == "dqn"
    makers = [lambda: Monitor(BitFlippingEnv(n_bits=4, continuous=not discrete))] * 2
    return DummyVecEnv(makers)


HER: dict[str, Any] = {"replay_buffer_class": HerReplayBuffer, "replay_buffer_kwargs": {"n_sampled_goal": 4}}


@pytest.mark.parametrize(("name", "own"), [*((name, {}) for name in HYBRIDS), ("erl", {"learner": "dqn"})], ids=str)
def test_hindsight_works_in_every_hybrid(name: str, own: dict[str, Any], tmp_path: Path) -> None:
    model = dict_model(name, env=bits(name, **own), **own, **HER).learn(120)
    assert model._n_updates > 0
    batch = model.replay_buffer.sample(200)
    reached = (batch.next_observations["achieved_goal"] == batch.next_observations["desired_goal"]).all(dim=1)
    assert (batch.rewards[:, 0] == th.where(reached, 0.0, -1.0)).all() and reached.float().mean() > 0.3, "goals are relabeled"
    model.save_replay_buffer(tmp_path / "buffer")
    model.save(tmp_path / "model")
    loaded = ALGOS[name].load(tmp_path / "model", env=bits(name, **own))
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert len(loaded.learn(40, reset_num_timesteps=False).replay_buffer.sample(10).rewards) == 10
    copied = copy.deepcopy(model)
    assert len(copied.learn(40, reset_num_timesteps=False).replay_buffer.sample(10).rewards) == 10


@pytest.mark.parametrize("name", ["erl", "veb_rl"])
def test_a_run_with_hindsight_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    straight = dict_model(name, env=bits(name), **HER)
    straight.learn(120, GenerationCheckpoint(40, tmp_path, keep=None))
    middle = sorted(tmp_path.glob("checkpoint_*"))[0]
    resumed = ALGOS[name].resume_from(middle, env=bits(name), device="cpu").learn(120)
    assert differences(snapshot(straight), snapshot(resumed)) == []


@pytest.mark.parametrize("name", ["openai_es", "cem"])
def test_goals_without_hindsight(name: str, tmp_path: Path) -> None:
    check_acting(dict_model(name, env=bits(name)).learn(100), tmp_path)


def test_hindsight_needs_goals() -> None:
    with pytest.raises(
        ValueError, match=r"(?s)HerReplayBuffer needs an env with goals.*got observation_space=.*DictReplayBuffer"
    ):
        dict_model("erl", replay_buffer_class=HerReplayBuffer)
    with pytest.raises(
        ValueError, match=r"replay_buffer_class must be one for observations in one array.*got HerReplayBuffer"
    ):
        make("erl", replay_buffer_class=HerReplayBuffer)


# -------------------------------------------------------------------- what is refused, and what is chosen


@pytest.mark.parametrize("name", NAMES)
def test_an_environment_alone_is_enough(name: str) -> None:
    env = toy_vec_env(env_class=DictEnv, **toy_actions(name))
    model = ALGOS[name](env, **{**fast(name), "policy_kwargs": fast(name).get("policy_kwargs")})
    assert type(model.policy).__name__.endswith(POLICY)


@pytest.mark.parametrize("name", NAMES)
def test_policies_for_other_observations_are_named(name: str) -> None:
    env = toy_vec_env(env_class=DictEnv, **toy_actions(name))
    for policy in {*ALGOS[name].policy_aliases} - {POLICY, "AutoPolicy"}:
        with pytest.raises(UnsupportedSpaceError, match=rf"policy must be '{POLICY}' for Dict.*got '{policy}'.*Flatten"):
            make(name, env, policy=policy)
    with pytest.raises(UnsupportedSpaceError, match=rf"policy must be 'MlpPolicy' or 'CnnPolicy'.*got '{POLICY}'"):
        make(name, policy=POLICY)


NESTED = {
    "a Dict in it": (spaces.Dict(a=spaces.Dict(b=spaces.Discrete(2))), "array observations"),
    "a Tuple in it": (spaces.Dict(a=spaces.Tuple((spaces.Discrete(2),))), "array observations"),
    "a start in it": (spaces.Dict(a=spaces.Discrete(2, start=1)), "count from 0"),
    "text in it": (spaces.Dict(a=spaces.Text(4)), "Box, Discrete, MultiDiscrete or MultiBinary"),
    "a number without an axis": (spaces.Dict(a=spaces.Box(0, 1, (), np.float32)), "one axis"),
}


@pytest.mark.parametrize("kind", NESTED)
@pytest.mark.parametrize("name", ["erl", "openai_es", "td7", "veb_rl"])
def test_parts_that_no_network_reads_are_named(name: str, kind: str) -> None:
    class Odd(DictEnv):
        def __init__(self) -> None:
            super().__init__(**toy_actions(name))
            self.observation_space = NESTED[kind][0]  # type: ignore[assignment]

    with pytest.raises(UnsupportedSpaceError, match=f"(?s)for the key 'a' of its Dict observations.*{NESTED[kind][1]}.*gymn"):
        make(name, Odd(), policy=POLICY)


@pytest.mark.parametrize("name", CONTINUOUS_HYBRIDS)
def test_replay_buffers_for_arrays(name: str) -> None:
    with pytest.raises(ValueError, match=r"(?s)replay_buffer_class must be one for Dict observations.*got ReplayBuffer"):
        dict_model(name, replay_buffer_class=ReplayBuffer)
    assert type(dict_model(name, replay_buffer_class=LAPReplayBuffer).replay_buffer) is DictLAPReplayBuffer


def test_n_step_returns_need_arrays() -> None:
    with pytest.raises(ValueError, match=r"n_steps must be 1 with Dict observations.*got 3.*FlattenObservation"):
        dict_model("erl", n_steps=3)


def test_export_says_why_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)CEM cannot be exported with observations of Dict.*save\(\) writes.*Flatten"):
        dict_model("cem").export(tmp_path / "policy.pt2")


# -------------------------------------------------------------------- parts


def test_priorities_of_dicts() -> None:
    space = spaces.Dict(a=spaces.Box(-1, 1, (2,), np.float64), b=spaces.Box(0, 255, (1, 4, 4), np.uint8))
    buffer = DictLAPReplayBuffer(10, space, spaces.Box(-1, 1, (1,), np.float32))
    for number in range(12):
        row = {"a": np.full((1, 2), number / 20), "b": np.full((1, 1, 4, 4), number)}
        buffer.add(row, row, np.zeros((1, 1)), np.array([number]), np.array([0]), [{}])  # type: ignore[arg-type]
    buffer.sample(30)
    buffer.update_priorities(np.full(30, 1e-9))
    buffer.trees[0].write(np.array([3]), np.array([1.0]))
    drawn = buffer.sample(50)
    assert set(drawn.rewards[:, 0].tolist()) <= {3.0, *range(2, 12)} and (drawn.rewards[:, 0] == 3).float().mean() > 0.05
    assert np.allclose(drawn.observations["a"][:, :1] * 20, drawn.rewards)  # type: ignore[call-overload]
    assert (drawn.observations["b"][:, 0, 0, 0] == drawn.rewards[:, 0]).all()  # type: ignore[call-overload]


def test_packed_observations_are_the_same_again() -> None:
    space = spaces.Dict(a=spaces.Box(-1, 1, (2, 2), np.float64), b=spaces.Discrete(3), c=spaces.Box(0, 255, (3,), np.uint8))
    space.seed(0)
    rows: Any = zeros(space, 5)
    for row in range(5):
        for key, value in space.sample().items():
            rows[key][row] = value
    again = unpacked(packed(rows)[[4, 0]], space)
    for key, array in again.items():
        assert array.dtype == rows[key].dtype and np.array_equal(array, rows[key][[4, 0]])
