"""Networks for images: sizes, padding, and normalization by the moments of a reference batch."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.torch_layers import NatureCNN
from torch import nn

from sb3_erl import DeepGA, OpenAIES
from sb3_erl.core.parameters import read_parameters, write_parameters
from sb3_erl.engine.reference_batch import ImageStore
from sb3_erl.policies.es_pixels import ESPixelPolicy, GAPixelPolicy, PixelActor, SameConv2d, VirtualBatchNorm
from sb3_erl.rollouts.acting import ModuleActor, NetworkPool
from tests.contract.helpers import Witness, differences, snapshot
from tests.envs import ImageEnv, toy_vec_env

FRAMES = spaces.Box(0, 255, (4, 84, 84), np.uint8)
SMALL_FRAMES = spaces.Box(0, 255, (2, 21, 18), np.uint8)
JOYSTICK = spaces.Discrete(18)
CHEAP = {"convolutions": [(3, 8, 4), (4, 4, 2)], "features_dim": 6}
EPISODE = 8
PICTURES = np.random.default_rng(0).integers(0, 256, (5, 36, 36, 1), dtype=np.uint8)


def small_actor(seed: int = 0, n_reference: int = 5, space: spaces.Box = SMALL_FRAMES) -> tuple[PixelActor, th.Tensor]:
    """An actor with random parameters, and a reference batch that it has not got yet."""
    policy = ESPixelPolicy(space, JOYSTICK, lambda _: 0.0, features_extractor_kwargs=CHEAP, n_reference=n_reference)
    actor, numbers = policy.deployed, th.Generator().manual_seed(seed)
    assert isinstance(actor, PixelActor)
    vector = read_parameters(actor)
    write_parameters(vector + 0.1 * th.randn(vector.shape, generator=numbers), actor)
    return actor, th.randint(0, 256, (n_reference, *space.shape), generator=numbers, dtype=th.uint8)


def make(cls: type = OpenAIES, n_envs: int = 1, **kwargs: Any) -> Any:
    """A model on small pictures with episodes of 8 steps."""
    own: dict[str, Any] = {"n_pairs": 2} if cls is OpenAIES else {"pop_size": 4, "truncation": 2, "n_finalists": 2}
    own |= {} if cls is OpenAIES else {"n_finalist_episodes": 1}
    network = {"features_extractor_kwargs": CHEAP, "n_reference": 12, "virtual_batch_norm": True}
    settings = {"noise_table_size": 100_000, "seed": 1, "policy_kwargs": network, "device": "cpu", **own, **kwargs}
    return cls("CnnPolicy", toy_vec_env(n_envs, env_class=ImageEnv, length=EPISODE), **settings)


# -------------------------------------------------------------------- networks


@pytest.mark.parametrize(
    ("policy_class", "kwargs", "n_params"),
    [
        (ESPixelPolicy, {}, 1_009_058),
        (ESPixelPolicy, {"virtual_batch_norm": False}, 1_008_450),
        (GAPixelPolicy, {}, 4_052_658),
        (GAPixelPolicy, {"network": "small"}, 1_008_450),
    ],
)
def test_published_sizes(policy_class: type[ESPixelPolicy], kwargs: dict[str, Any], n_params: int) -> None:
    policy = policy_class(FRAMES, JOYSTICK, lambda _: 0.0, **kwargs)
    assert len(read_parameters(policy.deployed)) == n_params
    assert policy.predict(FRAMES.sample())[0] in JOYSTICK


def convolution(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int) -> np.ndarray:
    """TensorFlow's definition of padding "same", one output pixel after the other."""
    kernel, outputs = weight.shape[-1], [-(-size // stride) for size in x.shape[-2:]]
    totals = [max((n - 1) * stride + kernel - size, 0) for n, size in zip(outputs, x.shape[-2:], strict=True)]
    padded = np.pad(x, [(0, 0), (0, 0), *[(total // 2, total - total // 2) for total in totals]])
    y = np.empty((len(x), len(weight), *outputs))
    for row, column in np.ndindex(*outputs):
        window = padded[..., row * stride : row * stride + kernel, column * stride : column * stride + kernel]
        y[..., row, column] = np.tensordot(window, weight, axes=([1, 2, 3], [1, 2, 3])) + bias
    return y


@pytest.mark.parametrize(("kernel", "stride", "size"), [(8, 4, (84, 84)), (4, 2, (21, 20)), (3, 1, (11, 11)), (2, 3, (7, 9))])
def test_padding_is_tensorflows(kernel: int, stride: int, size: tuple[int, int]) -> None:
    th.manual_seed(0)
    layer, x = SameConv2d(2, 3, kernel, stride), th.randn(2, 2, *size)
    weight, bias = (parameter.detach().double().numpy() for parameter in layer.parameters())
    expected = convolution(x.double().numpy(), weight, bias, stride)
    assert np.allclose(layer(x).detach().numpy(), expected, atol=1e-5)


def normalized(x: np.ndarray, reference: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both batches by the moments of the second one, then ReLU."""
    axes = tuple(axis for axis in range(x.ndim) if axis != 1)
    shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
    mean = reference.mean(axis=axes, keepdims=True)
    variance = np.square(reference - mean).mean(axis=axes, keepdims=True)
    gain = scale.reshape(shape) / np.sqrt(variance + 1e-3)
    return np.maximum((x - mean) * gain + shift.reshape(shape), 0), np.maximum(
        (reference - mean) * gain + shift.reshape(shape), 0
    )


def test_arithmetic() -> None:
    actor, reference = small_actor()
    actor.set_reference(reference)
    x = th.randint(0, 256, (3, *SMALL_FRAMES.shape), dtype=th.uint8, generator=th.Generator().manual_seed(9))
    tensors = [parameter.detach().double().numpy() for parameter in actor.parameters()]
    a, b = x.numpy() / 255.0, reference.numpy() / 255.0
    for stride in (4, 2):
        weight, bias, scale, shift, *tensors = tensors
        a, b = normalized(convolution(a, weight, bias, stride), convolution(b, weight, bias, stride), scale, shift)
    weight, bias, scale, shift, *tensors = tensors
    a, b = (y.reshape(len(y), -1) @ weight.T + bias for y in (a, b))
    a, _ = normalized(a, b, scale, shift)
    weight, bias = tensors
    scores = a @ weight.T + bias
    found = actor.mu[:-1](actor.extract_features(x, actor.features_extractor)).detach().numpy()
    assert found.std() > 0.1 and np.allclose(found, scores, atol=1e-4)
    assert np.array_equal(actor.predict(x.numpy(), deterministic=True)[0], scores.argmax(axis=1))


def test_weights_begin_as_in_the_sheet() -> None:
    th.manual_seed(0)
    actor = ESPixelPolicy(FRAMES, JOYSTICK, lambda _: 0.0).deployed
    for layer in actor.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bound = float(np.sqrt(6 / (layer.weight[0].numel() + layer.weight[:, 0].numel())))
            assert 0.95 * bound < float(layer.weight.detach().abs().max()) <= bound
            assert layer.bias is not None and not layer.bias.any()
        if isinstance(layer, VirtualBatchNorm):
            assert (layer.scale == 1).all() and not layer.shift.any()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"network": "huge"}, "network must be one of"),
        ({"n_reference": 1}, "n_reference must be at least 2"),
        ({"features_extractor_class": NatureCNN, "virtual_batch_norm": True}, "needs features_extractor_class=PixelExtractor"),
    ],
)
def test_wrong_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ESPixelPolicy(FRAMES, JOYSTICK, lambda _: 0.0, **kwargs)


def test_wrong_images() -> None:
    with pytest.raises(ValueError, match="CnnPolicy needs images"):
        ESPixelPolicy(spaces.Box(-1, 1, (3,)), JOYSTICK, lambda _: 0.0)
    actor, reference = small_actor()
    with pytest.raises(ValueError, match=r"images must have the shape \(5, 2, 21, 18\); got \(4, 2, 21, 18\)"):
        actor.set_reference(reference[:4])
    plain = GAPixelPolicy(SMALL_FRAMES, JOYSTICK, lambda _: 0.0, features_extractor_kwargs=CHEAP).deployed
    assert isinstance(plain, PixelActor) and not plain.needs_reference
    with pytest.raises(ValueError, match="virtual_batch_norm=True"):
        plain.set_reference(reference)


def test_other_extractors_still_fit() -> None:
    policy = ESPixelPolicy(FRAMES, JOYSTICK, lambda _: 0.0, features_extractor_class=NatureCNN)
    assert isinstance(policy.deployed.features_extractor, NatureCNN)
    assert policy.predict(FRAMES.sample())[0] in JOYSTICK


# -------------------------------------------------------------------- candidates


def test_every_candidate_has_moments_of_its_own_and_no_row_depends_on_others() -> None:
    actor, reference = small_actor()
    actor.set_reference(reference)
    vectors = read_parameters(actor) + th.randn(6, len(read_parameters(actor)), generator=th.Generator().manual_seed(1))
    alone = []
    pictures = np.random.default_rng(1).integers(0, 256, (6, *SMALL_FRAMES.shape), dtype=np.uint8)
    networks = NetworkPool(lambda: small_actor(7)[0]).filled(vectors, actor)
    for candidate, vector in enumerate(vectors):
        own, _ = small_actor(3)
        write_parameters(vector, own)
        own.set_reference(reference)
        alone.append(own.predict(pictures[candidate], deterministic=True)[0])
        for norm, pooled in zip(own.norms, networks[candidate].norms, strict=True):
            assert th.equal(norm.mean, pooled.mean) and th.equal(norm.variance, pooled.variance)
            assert not th.equal(norm.mean, actor.norms[own.norms.index(norm)].mean)
    act = ModuleActor(networks)
    for order in ([0, 1, 2, 3, 4, 5], [5, 2, 2], [4], [0, 5]):
        assert act(pictures[order], order)[:, 0].tolist() == [int(alone[candidate]) for candidate in order]
    assert len({int(action) for action in alone}) > 1


def test_moments_are_taken_once_per_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(n_envs=2).learn(12 + 5 * EPISODE)
    assert model.n_generations == 1
    taken, take = [], PixelActor.parameters_changed

    def count(actor: PixelActor) -> None:
        taken.append(actor)
        take(actor)

    monkeypatch.setattr(PixelActor, "parameters_changed", count)
    model.learn(5 * EPISODE, reset_num_timesteps=False)
    assert model.n_generations == 2
    assert len(taken) == 4 + 1 + 1, "four candidates, the mean in its episode, the mean that is deployed"
    assert len(model.population.representation.networks.networks) <= 2, "as many networks as environments"


def test_networks_of_a_pool_belong_to_the_phase_that_acts() -> None:
    pool = NetworkPool(lambda: small_actor()[0])
    n = len(read_parameters(small_actor()[0]))
    first, second = pool.filled(th.zeros(2, n)), pool.filled(th.ones(2, n))
    for networks, value in ((first, 0), (second, 1), (first, 0)):
        assert (read_parameters(networks[1]) == value).all()
    assert len(pool.networks) == 1


# -------------------------------------------------------------------- the reference batch of a run


@pytest.mark.parametrize("cls", [OpenAIES, DeepGA])
def test_reference_follows_from_the_seed(cls: type) -> None:
    n_steps, references = 12 + 1, {}
    for n_envs, seed in ((1, 1), (2, 1), (1, 2)):
        model = make(cls, n_envs, seed=seed)
        assert model.policy.deployed.needs_reference
        model.learn(n_steps)
        references[n_envs, seed] = model.policy.deployed.reference.numpy().copy()
        assert len(np.unique(references[n_envs, seed].reshape(12, -1), axis=0)) == 12
    assert np.array_equal(references[1, 1], references[2, 1])
    assert not np.array_equal(references[1, 1], references[1, 2])


def test_reference_steps_count_and_are_taken_once() -> None:
    model, witness = make(), Witness()
    (env,) = [wrapped.unwrapped for wrapped in model.get_env().unwrapped.envs]
    model.learn(12 + 5 * EPISODE, CallbackList([witness]))
    assert model.n_generations == 1 and model.num_timesteps == env.n_steps == 12 + 5 * EPISODE
    reference = model.policy.deployed.reference.clone()
    model.learn(2 * 5 * EPISODE, reset_num_timesteps=False)
    assert model.n_generations == 3 and th.equal(reference, model.policy.deployed.reference)


@pytest.mark.parametrize("cls", [OpenAIES, DeepGA])
def test_images_are_kept_while_they_are_collected(cls: type) -> None:
    model = make(cls)
    asks_for_steps: list[bool] = []

    def note(*_: Any) -> bool:
        asks_for_steps.append(model.rollouts.summarizer is None)
        return True

    model.learn(7, note)
    assert not [thing for thing in gc.get_objects() if type(thing) is ImageStore]
    model.learn(12 + 7 * EPISODE, note)
    assert model.n_generations == 1 and not [thing for thing in gc.get_objects() if type(thing) is ImageStore]
    assert asks_for_steps == [True] * (7 + 12) + [False] * 7 * EPISODE, "workers send no images of whole episodes"


@pytest.mark.parametrize("cls", [OpenAIES, DeepGA])
def test_individuals_act_as_they_do_in_the_population(cls: type) -> None:
    model = make(cls).learn(12 + 7 * EPISODE)
    candidates = model.evolver.candidates
    act, space = model.population.act(candidates), model.action_space
    for index in range(len(candidates)):
        individual = model.individual(index)
        together = np.clip(act(PICTURES, [index] * len(PICTURES)), space.low, space.high)
        assert np.allclose(individual.predict(PICTURES, deterministic=True)[0], together, atol=1e-4)
        assert not th.equal(individual.norms[0].mean, model.policy.deployed.norms[0].mean)


def test_half_a_reference_batch_is_none() -> None:
    model = make().learn(7)
    assert model.num_timesteps == 7 and model.policy.deployed.needs_reference
    model.learn(12 + 5 * EPISODE)
    assert model.n_generations == 1 and not model.policy.deployed.needs_reference


@pytest.mark.parametrize("cls", [OpenAIES, DeepGA])
def test_saved_with_its_reference_batch(cls: type, tmp_path: Path) -> None:
    model = make(cls).learn(12 + 7 * EPISODE)
    assert model.n_generations == 1
    model.save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model")
    assert loaded.env is None and differences(snapshot(model), snapshot(loaded)) == []
    assert not loaded.policy.deployed.needs_reference
    actions = model.predict(PICTURES, deterministic=True)[0]
    assert np.array_equal(loaded.predict(PICTURES, deterministic=True)[0], actions) and np.ptp(actions) > 0
    same = model.individual(1).predict(PICTURES, deterministic=True)[0]
    assert np.array_equal(loaded.individual(1).predict(PICTURES, deterministic=True)[0], same)
    assert not loaded.individual(1).needs_reference
    model.policy.save(tmp_path / "policy")
    policy = type(model.policy).load(tmp_path / "policy")
    assert np.array_equal(policy.predict(PICTURES, deterministic=True)[0], actions)


@pytest.mark.parametrize("cls", [OpenAIES, DeepGA])
def test_continued_from_a_file(cls: type, tmp_path: Path) -> None:
    generation = (5 if cls is OpenAIES else 6) * EPISODE
    straight = make(cls).learn(12 + 2 * generation)
    make(cls).learn(12 + generation).save(tmp_path / "model")
    resumed = cls.load(tmp_path / "model", env=toy_vec_env(env_class=ImageEnv, length=EPISODE))
    resumed.learn(generation, reset_num_timesteps=False)
    assert straight.n_generations == resumed.n_generations == 2
    assert differences(snapshot(straight), snapshot(resumed)) == []
