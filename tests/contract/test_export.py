"""``export``: files that act as ``predict`` does, on observations of the environment, without this package."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_erl.learners.base import SquashedMean
from sb3_erl.policies.q_network import GridCNN
from tests.contract.helpers import differences, snapshot
from tests.contract.settings import DISCRETE, NAMES, make, toy_actions, variants
from tests.envs import ImageEnv, OddSpaces, ToyEnv, toy_maker, toy_vec_env

onnxruntime = pytest.importorskip("onnxruntime")

ENDINGS = (".pt", ".pt2", ".onnx")
OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("erl", {"learner": "dqn"}),
    ("pderl", {"learner": "dqn"}),
    ("erl", {"learner": "stable_baselines3:TD3"}),
    ("erl", {"learner": "sb3_contrib:TQC"}),
    ("erl", {"learner": "sb3_contrib:CrossQ"}),
    ("openai_es", {"policy_kwargs": {"action_bins": 5}}),
    ("openai_es", {"policy_kwargs": {"net_arch": [8], "layer_norm": True}}),
]
"""Learners beside those of :func:`variants`, and further heads."""


def load(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """
    What a user does with a file.

    :return: gives the actions for observations
    """
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path)
        return lambda observations: session.run(None, {"observation": observations})[0]
    module = torch.jit.load(path) if path.suffix == ".pt" else torch.export.load(path).module()
    return lambda observations: module(torch.from_numpy(observations)).numpy()


def seen(env: Any, n_steps: int = 40) -> np.ndarray:
    """Observations of random episodes."""
    found = [env.reset()]
    for _ in range(n_steps):
        found.append(env.step(np.array([env.action_space.sample() for _ in range(env.num_envs)]))[0])
    return np.concatenate(found)


def check_file(model: Any, path: Path, given: np.ndarray, for_predict: np.ndarray | None = None) -> None:
    """
    :param model: of which the file was made
    :param path: the file
    :param given: observations for the file
    :param for_predict: the same for ``predict``, if they differ
    """
    expected = model.predict(given if for_predict is None else for_predict, deterministic=True)[0]
    act = load(path)
    for size in (1, 2, len(given)):
        actions = act(given[:size])
        assert actions.dtype == expected.dtype
        np.testing.assert_allclose(actions, expected[:size], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_every_class_is_exported_in_every_format(name, tmp_path):
    model = make(name).learn(60)
    observations = seen(toy_vec_env(**toy_actions(name)))
    for ending in ENDINGS:
        path = model.export(tmp_path / f"policy{ending}")
        check_file(model, path, observations)


@pytest.mark.parametrize(("name", "arguments"), variants() + OTHERS, ids=str)
def test_every_learner_is_exported(name, arguments, tmp_path):
    actions = {"n_actions": 3} if arguments.get("learner") == "dqn" else toy_actions(name)
    model = make(name, toy_vec_env(**actions), **arguments).learn(60)
    observations = seen(toy_vec_env(**actions))
    check_file(model, model.export(tmp_path / "policy.pt2"), observations)


@pytest.mark.parametrize("name", [name for name in NAMES if getattr(make(name), "takes_discrete_actions", False)])
def test_classes_that_take_discrete_actions_are_exported_with_them(name, tmp_path):
    model = make(name, toy_vec_env(n_actions=3)).learn(60)
    path = model.export(tmp_path / "policy.onnx")
    check_file(model, path, seen(toy_vec_env(n_actions=3)))
    assert load(path)(np.zeros((4, 3), dtype=np.float32)).shape == (4,)


# -------------------------------------------------------------------- observations and actions


class Scaled(ToyEnv):
    """Observations in float64 of very different sizes, actions in float64 between odd bounds."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
        if isinstance(self.action_space, spaces.Box):
            self.action_space = spaces.Box(-0.1, 0.3, (2,), np.float64)

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        state, info = super().reset(**kwargs)
        return state * [1e-3, 1.0, 1e6] + 1e7, info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        state, *rest = super().step(action)
        return state * [1e-3, 1.0, 1e6] + 1e7, *rest


@pytest.mark.parametrize("name", ["erl", "openai_es", *DISCRETE])
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_statistics_of_vec_normalize_are_part_of_the_file(name, ending, tmp_path):
    env = VecMonitor(VecNormalize(DummyVecEnv([toy_maker(Scaled, **toy_actions(name))]), clip_obs=2.0))
    model = make(name, env).learn(60)
    path = model.export(tmp_path / f"policy{ending}")
    raw = seen(DummyVecEnv([toy_maker(Scaled, **toy_actions(name))]))
    normalizer = model.get_vec_normalize_env()
    check_file(model, path, raw, normalizer.normalize_obs(raw))
    check_file(model, model.export(path, normalize=False), normalizer.normalize_obs(raw))


def test_a_wrapper_above_vec_normalize_that_changes_observations_is_named(tmp_path):
    model = make("cem", VecFrameStack(VecNormalize(toy_vec_env()), 2))
    with pytest.raises(ValueError, match=r"env must have no VecFrameStack above its VecNormalize.*normalize=False"):
        model.export(tmp_path / "policy.pt")
    model.export(tmp_path / "policy.pt", normalize=False)
    stacked = make("cem", VecNormalize(VecFrameStack(toy_vec_env(), 2)))
    observations = seen(VecFrameStack(toy_vec_env(), 2))
    check_file(stacked, stacked.export(tmp_path / "policy.pt"), observations, stacked.env.normalize_obs(observations))


def pictures() -> DummyVecEnv:
    return DummyVecEnv([toy_maker(ImageEnv)])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("erl", {}), ("erl", {"learner": "sac"}), ("erl_re2", {}), ("openai_es", {}), ("deep_ga", {})],
    ids=str,
)
def test_images_and_virtual_batch_norms_are_exported(name, arguments, tmp_path):
    sizes = {"noise_table_size": 10_000_000} if name in ("openai_es", "deep_ga") else {"buffer_size": 300}
    model = make(name, pictures(), policy="CnnPolicy", policy_kwargs={}, **sizes, **arguments)
    model.learn(30)
    observations = model.env.reset()  # channels first
    for ending in ENDINGS:
        check_file(model, model.export(tmp_path / f"policy{ending}"), np.repeat(observations, 3, axis=0))


@pytest.mark.parametrize("name", ["openai_es", "veb_rl"])
def test_numbers_of_actions_are_those_of_predict_also_from_another_first_one_on(name, tmp_path):
    model = make(name, DummyVecEnv([lambda: OddSpaces(spaces.Discrete(3, start=-1))]))
    check_file(model, model.export(tmp_path / "policy.pt2"), np.random.default_rng(2).normal(size=(20, 3)).astype(np.float32))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    "space",
    [spaces.Box(0, 255, (2,), np.uint8), spaces.Box(-100, 20, (2,), np.int8), spaces.Box(-5, 70_000, (2,), np.int32)],
    ids=str,
)
def test_whole_numbers_are_clipped_before_they_are_cast(space, ending, tmp_path):
    model = make("openai_es", DummyVecEnv([lambda: OddSpaces(space)]))
    for parameter in model.policy.deployed.parameters():
        parameter.data *= 500 * float(space.high.max())
    given = np.random.default_rng(2).normal(size=(50, 3)).astype(np.float32)
    actions = model.predict(given, deterministic=True)[0]
    found = set(actions.ravel().tolist())
    assert {space.low.min(), space.high.max()} < found, "some are clipped, some are not"
    assert np.array_equal(load(model.export(tmp_path / f"policy{ending}"))(given), actions)


class Grid(OddSpaces):
    """A small grid with channels last, as MinAtar's."""

    def __init__(self) -> None:
        super().__init__(spaces.Discrete(3), spaces.Box(0, 1, (6, 6, 2), np.float32))


@pytest.mark.parametrize("space", [spaces.Discrete(4), spaces.MultiBinary(3)], ids=str)
def test_discrete_observations_are_exported_where_a_class_takes_them(space, tmp_path):
    model = make("erl", DummyVecEnv([lambda: OddSpaces(observation_space=space)]))
    given = np.stack([space.sample() for _ in range(20)])
    check_file(model, model.export(tmp_path / "policy.onnx"), given)


def test_small_grids_are_exported(tmp_path):
    model = make("veb_rl", DummyVecEnv([Grid]), policy="AutoPolicy", policy_kwargs={})
    assert isinstance(model.policy.deployed.features_extractor, GridCNN)
    given = np.random.default_rng(1).random((20, 6, 6, 2), dtype=np.float32)
    check_file(model, model.export(tmp_path / "policy.onnx"), given)


# -------------------------------------------------------------------- the file


LOADING = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("sb3_erl", "stable_baselines3", "gymnasium"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import numpy, onnxruntime, torch
folder, observations = sys.argv[1], numpy.load(sys.argv[1] + "/observations.npy")
tensor = torch.from_numpy(observations)
numpy.savez(
    folder + "/actions.npz",
    pt=torch.jit.load(folder + "/policy.pt")(tensor).numpy(),
    pt2=torch.export.load(folder + "/policy.pt2").module()(tensor).numpy(),
    onnx=onnxruntime.InferenceSession(folder + "/policy.onnx").run(["action"], {"observation": observations})[0],
)
"""


def test_files_act_in_a_process_without_this_package(tmp_path):
    model = make("erl", learner="td7").learn(60)
    observations = seen(toy_vec_env())
    np.save(tmp_path / "observations.npy", observations)
    for ending in ENDINGS:
        model.export(tmp_path / f"policy{ending}")
    subprocess.run([sys.executable, "-c", LOADING, str(tmp_path)], check=True, timeout=300)
    expected = model.predict(observations, deterministic=True)[0]
    for name, actions in np.load(tmp_path / "actions.npz").items():
        np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-5, err_msg=name)


class Restless(FlattenExtractor):
    """Gives other features at each call."""

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return super().forward(observations) + torch.randn(1)


class Choosy(FlattenExtractor):
    """Looks at the values of its input, which ``torch.export`` cannot follow."""

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return super().forward(observations) * (2.0 if float(observations.sum()) > 0 else -1.0)


@pytest.mark.parametrize(
    ("extractor", "ending", "said"),
    [(Restless, ".pt", "other actions for"), (Choosy, ".pt", "other actions for"), (Choosy, ".pt2", "cannot express")],
)
def test_a_file_that_would_act_otherwise_is_not_written(extractor, ending, said, tmp_path):
    kwargs = {"net_arch": [8], "features_extractor_class": extractor}
    model = make("erl", policy_kwargs=kwargs)
    path = tmp_path / f"policy{ending}"
    path.write_bytes(b"an older file")
    with pytest.raises(ValueError, match=f"ERL with ERLPolicy cannot be exported as {ending}.*{said}"):
        model.export(path)
    assert path.read_bytes() == b"an older file" and len(list(tmp_path.iterdir())) == 1


def test_an_unknown_ending_is_named_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"path must end in .onnx, .pt, .pt2 .*got '.*policy.zip'"):
        make("erl").export(tmp_path / "policy.zip")


def test_a_missing_package_gives_the_line_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'sb3-erl\[onnx\]'"):
        make("erl").export(tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["cem", "td7"])
def test_an_export_changes_nothing_about_the_run(name, tmp_path):
    models = [make(name).learn(60) for _ in range(2)]
    state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    for ending in ENDINGS:
        models[0].export(tmp_path / f"policy{ending}")
    assert torch.equal(torch.get_rng_state(), state[0]) and np.random.get_state()[1].tolist() == state[1]
    for model in models:
        model.learn(60, reset_num_timesteps=False)
    assert differences(snapshot(models[0]), snapshot(models[1])) == []


# -------------------------------------------------------------------- tracing


def traced(network: torch.nn.Module, *inputs: torch.Tensor) -> None:
    """A traced network, after a file, gives what the network gives, on a batch of another size."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(network, inputs, check_tolerance=1e-4), file)
    file.seek(0)
    bigger = [torch.randn(7, each.shape[1]) for each in inputs]
    torch.testing.assert_close(torch.jit.load(file)(*bigger), network(*bigger))


@pytest.mark.parametrize(("name", "arguments"), variants(), ids=str)
def test_actors_are_traced_as_they_are(name, arguments):
    actor = make(name, **arguments).learn(60).policy.deployed
    traced(SquashedMean(actor) if hasattr(actor, "get_action_dist_params") else actor, torch.randn(2, 3))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # shapes of weights decide how they are multiplied
@pytest.mark.parametrize("name", ["erl", "cem_rl", "erl_re2", "cerl"])
def test_critics_are_traced_as_they_are(name):
    traced(make(name).policy.critic, torch.randn(2, 3), torch.randn(2, 2))


def test_models_without_an_environment_are_exported(tmp_path):
    model = make("erl").learn(30)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model")
    check_file(model, loaded.export(tmp_path / "policy.pt"), seen(toy_vec_env()))


def test_a_registered_environment_is_exported(tmp_path):
    model = make("cem", gym.make("Pendulum-v1"))
    check_file(model, model.export(tmp_path / "deep" / "policy.onnx"), np.eye(3, dtype=np.float32))
