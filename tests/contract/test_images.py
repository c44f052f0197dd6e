"""Images through SB3's CNN extractor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import VecTransposeImage, is_vecenv_wrapped

from sb3_erl import ALGOS
from sb3_erl.core.parameters import read_parameters
from tests.contract.settings import GENERATIONAL, IMAGES, having, known, make, online_and_target
from tests.envs import ImageEnv, toy_vec_env


def image_model(name: str, n_envs: int = 1, **overrides: Any) -> Any:
    kwargs = {"net_arch": [8], "features_extractor_kwargs": {"features_dim": 4}}
    env = toy_vec_env(n_envs, env_class=ImageEnv, length=5)
    often = {"train_freq": 4} if name in GENERATIONAL else {}
    settings = {"policy_kwargs": kwargs, "buffer_size": 200, "learning_starts": 5, **often, **overrides}
    return make(name, env, policy="CnnPolicy", **settings)


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("name", IMAGES)
def test_images_are_seen_stored_and_learned_from(name: str, n_envs: int, tmp_path: Path) -> None:
    model = image_model(name, n_envs)
    assert is_vecenv_wrapped(model.get_env(), VecTransposeImage)
    before = read_parameters(model.policy.actor)
    model.learn(60)
    buffer = model.replay_buffer
    assert buffer.observations.dtype == np.uint8 and buffer.observations.shape[-3:] == (1, 36, 36)
    assert len(np.unique(buffer.observations[: buffer.size()])) > 10
    assert not th.equal(before, read_parameters(model.policy.actor)) and model._n_updates > 0
    picture = np.random.default_rng(0).integers(0, 255, (3, 36, 36, 1)).astype(np.uint8)
    actions = model.predict(picture, deterministic=True)[0]
    assert actions.shape == (3, *model.action_space.shape) and model.action_space.contains(actions[0])
    model.save(tmp_path / "model")
    assert np.array_equal(ALGOS[name].load(tmp_path / "model").predict(picture, deterministic=True)[0], actions)


@pytest.mark.parametrize(("tau", "kept"), [(0.0, True), (0.5, False), (1.0, False)])
@pytest.mark.parametrize("name", having("tau", among=IMAGES))
def test_target_extractors_follow_tau(name: str, tau: float, kept: bool) -> None:
    model = image_model(name, tau=tau, **known(name, {"ea_tau": 0.0}))  # nothing but tau moves targets
    first, same = (read_parameters(network) for network in online_and_target(model, name))
    assert th.equal(first, same)
    model.learn(40)
    online, target = (read_parameters(network) for network in online_and_target(model, name))
    assert not th.equal(online, first), "the network learns"
    assert th.equal(target, first) == kept
    assert th.allclose(target, online, rtol=0, atol=1e-7) == (tau == 1.0)
