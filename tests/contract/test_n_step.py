"""n-step returns through SB3's buffer."""

from __future__ import annotations

import numpy as np
import pytest
from stable_baselines3.common.buffers import NStepReplayBuffer

from tests.contract.settings import having, make
from tests.envs import toy_vec_env


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("name", having("n_steps", "gamma"))
def test_buffer_and_targets(name: str, n_envs: int) -> None:
    model = make(name, toy_vec_env(n_envs), n_steps=3, gamma=0.9).learn(100)
    buffer = model.replay_buffer
    assert isinstance(buffer, NStepReplayBuffer) and (buffer.n_steps, buffer.gamma) == (3, 0.9)
    assert model._n_updates > 0
    size = buffer.size()
    batch = buffer._get_samples(np.arange(size))
    assert batch.discounts is not None
    ends = buffer.dones[:size, 0].astype(bool)
    steps = [1 + int(not ends[i]) * (1 + int(not ends[i + 1])) for i in range(size - 2)]
    assert np.allclose(batch.discounts.numpy()[: size - 2, 0], 0.9 ** np.array(steps)), "never beyond the end of a rollout"
    raw = buffer.rewards[:size, 0]
    returns = [sum(0.9**k * raw[i + k] for k in range(n)) for i, n in enumerate(steps)]
    assert np.allclose(batch.rewards.numpy()[: size - 2, 0], returns, atol=1e-5)


@pytest.mark.parametrize("name", having("n_steps"))
def test_memory_saving_n_step_is_refused(name: str) -> None:
    with pytest.raises(NotImplementedError):
        kwargs = {"handle_timeout_termination": False}
        make(name, n_steps=3, optimize_memory_usage=True, replay_buffer_kwargs=kwargs)
