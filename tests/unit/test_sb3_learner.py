"""Wrapped SB3 classes that do something at every environment step: DQN and QR-DQN move their targets there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sb3_contrib import QRDQN
from stable_baselines3 import DQN, TD3
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from sb3_erl import ERL
from sb3_erl.learners.base import Rates
from sb3_erl.learners.sb3 import SB3Learner
from tests.contract.settings import make

SMALL: dict[str, Any] = {"policy_kwargs": {"net_arch": [16]}, "learning_starts": 0, "target_update_interval": 30}


def recorded(model_class: type[OffPolicyAlgorithm], **kwargs: Any) -> tuple[Any, dict[str, torch.Tensor], list[Any]]:
    """A model of SB3's own loop after 83 steps, the tensors it began with, and the batches it learned from."""
    make: Any = model_class
    model = make("MlpPolicy", "CartPole-v1", seed=1, device="cpu", **SMALL, **kwargs)
    start = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    batches, sample = [], model.replay_buffer.sample

    def draw(*args: Any, **kwargs: Any) -> ReplayBufferSamples:
        batches.append(sample(*args, **kwargs))
        return batches[-1]

    model.replay_buffer.sample = draw
    return model.learn(83), start, batches


@pytest.mark.parametrize("model_class", [DQN, QRDQN])
@pytest.mark.parametrize(("train_freq", "gradient_steps"), [(4, 1), (1, 2), (1, 1)])
def test_targets_move_as_in_their_own_loop(
    model_class: type[OffPolicyAlgorithm], train_freq: int, gradient_steps: int
) -> None:
    theirs, start, batches = recorded(model_class, train_freq=train_freq, gradient_steps=gradient_steps)
    spaces = (theirs.observation_space, theirs.action_space)
    learner = SB3Learner(model_class, type(theirs.policy), *spaces, "cpu", **SMALL)
    learner.policy.load_state_dict(start)
    left, n_updates = iter(batches), 0
    for count in (7, len(batches) - 7):  # as in two generations
        per_update = train_freq / gradient_steps
        rates = Rates(theirs.gamma, theirs.tau, n_updates=n_updates, batch_size=32, steps_per_update=per_update)
        learner.begin(rates)
        assert set(learner.update(lambda: next(left), count)) == {"loss", "learning_rate"}
        n_updates += count
    assert learner.model.num_timesteps == n_updates * train_freq // gradient_steps
    for name, tensor in theirs.policy.state_dict().items():
        torch.testing.assert_close(learner.policy.state_dict()[name], tensor, msg=name)
    target = next(name for name in start if "target" in name)
    assert not torch.equal(learner.policy.state_dict()[target], start[target])


class Counting(TD3):
    """A user's class with logic at every step."""

    seen: list[int]

    def _on_step(self) -> None:
        self.seen = [*getattr(self, "seen", []), self.num_timesteps]


def test_a_users_class_is_called_for_every_step_that_updates_stand_for(tmp_path: Any) -> None:
    model = make("erl", learner=Counting).learn(200)
    assert (model.train_freq.frequency, model.gradient_steps) == (4, 1) and model._n_updates > 0
    assert model.learner.model.seen == list(range(1, 4 * model._n_updates + 1))
    model.save(tmp_path / "model")
    loaded = ERL.load(tmp_path / "model", env=model.get_env())
    model.save_replay_buffer(tmp_path / "buffer")
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.set_logger(model.logger)
    loaded.train(2, 16)
    first = 4 * model._n_updates + 1
    assert loaded.learner.model.seen == list(range(first, first + 8))


def test_logged_values_are_means_over_single_updates() -> None:
    learners = [make("erl", learner=each, learning_starts=10_000).learn(60) for each in (TD3, Counting)]
    tables = []
    for model in learners:
        model.train(6, 16)
        tables.append({k: v for k, v in model.logger.name_to_value.items() if k.startswith("train/")})
    plain, counting = tables
    assert counting == pytest.approx(plain, rel=1e-4)
