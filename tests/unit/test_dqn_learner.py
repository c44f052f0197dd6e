"""What the Q-learner can do beside SB3's update: double DQN, priorities, copies counted in updates, both policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import ConstantSchedule

from sb3_erl.buffers.lap import LAPReplayBuffer
from sb3_erl.core.parameters import read_parameters
from sb3_erl.learners.base import Rates
from sb3_erl.learners.choice import learner_spec
from sb3_erl.learners.dqn import DQNSettings
from sb3_erl.learners.graphs import UpdateGraphs
from sb3_erl.policies.q_network import QNetworkCnnPolicy, QNetworkPolicy
from tests.parity.test_sb3_learners import dqn, own_dqn
from tests.unit.test_graphs import record_operations


def test_double_dqn_lets_the_online_network_choose() -> None:
    model = dqn()
    learner, batch = own_dqn(model, double=True, gamma=0.9), model.replay_buffer.sample(64)  # type: ignore[union-attr]
    with torch.no_grad():
        online, target = model.q_net(batch.next_observations), model.q_net_target(batch.next_observations)
        online, batch = -online, batch  # the two networks agree about most actions otherwise
        learner.policy.q_net.q_net[-1].weight.neg_()  # type: ignore[operator, union-attr]
        learner.policy.q_net.q_net[-1].bias.neg_()  # type: ignore[operator, union-attr]
    best = target[torch.arange(64), online.argmax(dim=1)]
    targets = batch.rewards[:, 0] + 0.9 * (1 - batch.dones[:, 0]) * best
    values = learner.value(batch.observations, batch.actions)
    torch.testing.assert_close(learner.td_errors(batch), values - targets)
    assert not torch.allclose(best, target.amax(dim=1))


def test_priorities_are_written_where_the_buffer_has_them() -> None:
    model = dqn(replay_buffer_class=LAPReplayBuffer)
    buffer: Any = model.replay_buffer
    learner = own_dqn(model, loss="huber", lap_min_priority=0.5)
    learner.begin(Rates(0.9, 1.0), buffer)
    batches: list[Any] = []

    def sample() -> Any:
        batches.append(buffer.sample(16))
        return batches[-1]

    errors = []
    step = learner._steps
    learner._steps = lambda batch: (errors.append(learner.td_errors(batch)), step(batch))[1]  # type: ignore[method-assign, func-returns-value]
    learner.update(sample, 1)
    expected = errors[0].detach().abs().clamp(min=0.5) ** 0.4
    assert buffer.trees[0].priority[buffer._drawn] == pytest.approx(expected.numpy(), rel=1e-5)


def test_recorded_updates_are_the_updates() -> None:
    model = dqn()
    plain, recorded = (own_dqn(model, loss="huber", max_grad_norm=1.0, target_update_interval=4) for _ in range(2))
    recorded.policy.load_state_dict(plain.policy.state_dict())
    recorded.graphs = UpdateGraphs(recorded._state, lambda: list(recorded.optimizers.values()), record_operations)
    for learner in (plain, recorded):
        np.random.seed(2)
        learner.update(lambda: model.replay_buffer.sample(16), 12)  # type: ignore[union-attr]
    assert recorded.graphs.problem is None and any(each is not None for each in recorded.graphs._recordings.values())
    for expected, actual in zip(plain.policy.parameters(), recorded.policy.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_targets_are_copied_every_so_many_updates() -> None:
    model = dqn()
    learner, buffer = own_dqn(model, target_update_interval=3), model.replay_buffer
    policy = learner.policy
    equal = []
    for n_updates in range(7):
        learner.begin(Rates(0.9, 1.0, n_updates=n_updates))
        learner.update(lambda: buffer.sample(16), 1)  # type: ignore[union-attr]
        equal.append(torch.equal(read_parameters(policy.q_net), read_parameters(policy.q_net_target)))
    assert equal == [False, False, True, False, False, True, False]


@pytest.mark.parametrize(
    ("alias", "space", "expected"),
    [
        ("MlpPolicy", spaces.Box(-1, 1, (4,), np.float32), QNetworkPolicy),
        ("CnnPolicy", spaces.Box(0, 255, (4, 36, 36), np.uint8), QNetworkCnnPolicy),
    ],
)
def test_policy_acts_with_deployed_and_is_a_file(
    alias: str, space: spaces.Box, expected: type[BasePolicy], tmp_path: Path
) -> None:
    policy_class = learner_spec("dqn").policy_class(alias, {})
    assert policy_class is expected
    make: Any = policy_class
    policy = make(space, spaces.Discrete(3), ConstantSchedule(1e-3))
    states = np.stack([space.sample() for _ in range(20)])
    learner = learner_spec("dqn", {"double": True}).build(policy, {"max_grad_norm": 10.0})
    assert learner.settings == DQNSettings(double=True) and learner.policy is policy
    individual = policy.make_actor()
    policy.deploy(individual)
    actions = policy.predict(states, deterministic=True)[0]
    assert np.array_equal(actions, individual.predict(states)[0])
    policy.save(tmp_path / "policy")
    assert np.array_equal(make.load(tmp_path / "policy").predict(states)[0], actions)
    greedy = learner.greedy_actor()(policy.obs_to_tensor(states)[0])
    assert np.array_equal(greedy[:, 0].int(), policy.actor.predict(states)[0])


def test_solves_a_chain() -> None:
    """Walking right earns 1 at the far end of five states; learned from random steps alone."""
    observation_space, action_space = spaces.Box(0, 1, (5,), np.float32), spaces.Discrete(2)
    buffer = LAPReplayBuffer(2000, observation_space, action_space, device="cpu")
    states, rng, place = np.eye(5, dtype=np.float32), np.random.default_rng(0), 0
    for _ in range(2000):
        action = int(rng.integers(2))
        following = max(place - 1, 0) if action == 0 else place + 1
        done = following == 4
        buffer.add(states[place], states[following], np.array([action]), np.array([float(done)]), np.array([done]), [{}])
        place = 0 if done else following
    torch.manual_seed(0)
    policy = QNetworkPolicy(observation_space, action_space, ConstantSchedule(1e-3), net_arch=[32])
    learner = learner_spec("dqn", {"loss": "huber", "target_update_interval": 50}).build(policy)
    learner.begin(Rates(gamma=0.9, tau=1.0, learning_rate=1e-3), buffer)
    learner.update(lambda: buffer.sample(32), 1500)
    right = learner.value(torch.as_tensor(states[:4]), torch.ones(4, 1))
    assert right.detach().numpy() == pytest.approx(0.9 ** np.arange(3, -1, -1), abs=0.05)
    assert policy.actor.predict(states[:4])[0].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "l1"}, "loss must be one of"),
        ({"target_update_interval": 0}, "target_update_interval must be"),
        ({"n_critics": 2}, "learner_kwargs must be constants of DQNLearner"),
    ],
)
def test_wrong_constants(arguments: dict[str, Any], message: str) -> None:
    policy = QNetworkPolicy(spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2), ConstantSchedule(1e-3))
    with pytest.raises(ValueError, match=message):
        learner_spec("dqn", arguments).build(policy)


@pytest.mark.parametrize("double", [False, True])
def test_errors_of_many_networks_are_those_of_each(double: bool) -> None:
    """One after the other or stacked, in parts or at once, each with its own target."""
    model = dqn()
    learner = own_dqn(model, double=double, gamma=0.9)
    batch = model.replay_buffer.sample(1100)  # type: ignore[union-attr]
    networks = [learner.policy.make_actor() for _ in range(6)]
    vectors = torch.stack([read_parameters(network) for network in networks])
    expected = torch.stack([learner.td_errors(batch, *networks[k : k + 2]) for k in range(5)])
    for stacked in (False, True, None):
        errors = learner.td_errors_of(batch, vectors[:5].double(), vectors[1:], stacked)
        torch.testing.assert_close(errors, expected, rtol=1e-4, atol=1e-5)
