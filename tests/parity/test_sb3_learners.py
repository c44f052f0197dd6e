"""TD3, DDPG, DQN and SAC of this package against SB3's own ``train`` on the same batches and seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import DDPG, DQN, SAC, TD3
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import ConstantSchedule

from sb3_erl.learners.base import LearnerSettings
from sb3_erl.learners.dqn import DQNLearner, DQNSettings
from sb3_erl.learners.sac import SACLearner, SACSettings
from sb3_erl.learners.td3 import TD3Learner
from sb3_erl.learners.td_rule import DDPGRule, TD3Rule, TDRule
from sb3_erl.policies.q_network import QNetworkPolicy
from tests.parity.cases import assert_moved_alike, snapshot

CASES: list[tuple[type[OffPolicyAlgorithm], type[TDRule], dict[str, Any]]] = [
    (TD3, TD3Rule, {"policy_delay": 2, "target_policy_noise": 0.2}),
    (DDPG, DDPGRule, {"policy_delay": 1, "target_policy_noise": 0.0}),
]


def filled(model_class: type[OffPolicyAlgorithm], n_steps: int) -> OffPolicyAlgorithm:
    make: Any = model_class
    model = make("MlpPolicy", "Pendulum-v1", seed=3, n_steps=n_steps, learning_starts=10_000, buffer_size=1000)
    return model.learn(300)


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize(("model_class", "rule_class", "settings"), CASES, ids=["td3", "ddpg"])
def test_rule_equals_sb3(
    model_class: type[OffPolicyAlgorithm],
    rule_class: type[TDRule],
    settings: dict[str, Any],
    n_steps: int,
    pytestconfig: pytest.Config,
) -> None:
    theirs, ours = filled(model_class, n_steps), filled(model_class, n_steps)
    np.random.seed(5)
    torch.manual_seed(5)
    theirs.train(gradient_steps=7, batch_size=32)
    np.random.seed(5)
    torch.manual_seed(5)
    learner = TD3Learner(ours.policy, LearnerSettings(**settings), rule_class())  # type: ignore[arg-type]
    learner.update(lambda: ours.replay_buffer.sample(32), 7)  # type: ignore[union-attr]
    fresh = filled(model_class, n_steps)
    actual, expected, start = (model.policy.state_dict() for model in (ours, theirs, fresh))
    assert sum(float((tensor - start[name]).abs().sum()) for name, tensor in actual.items()) > 1.0
    if pytestconfig.getoption("--updates") == "bf16":
        assert_moved_alike(actual, expected, start)
    else:
        for name, tensor in expected.items():
            torch.testing.assert_close(actual[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


# ---------------------------------------------------------------- deep Q-learning


def dqn(n_steps: int = 1, **kwargs: Any) -> DQN:
    """A DQN of SB3 that has collected 300 transitions and whose target network differs from its Q-network."""
    arguments: dict[str, Any] = {"learning_starts": 10_000, "buffer_size": 1000, "policy_kwargs": {"net_arch": [16, 16]}}
    model = DQN("MlpPolicy", "CartPole-v1", seed=3, device="cpu", n_steps=n_steps, **arguments, **kwargs).learn(300)
    with torch.no_grad():
        for parameter in model.q_net_target.parameters():
            parameter.mul_(1.2)
    return model


def own_dqn(model: DQN, **settings: Any) -> DQNLearner:
    """The same networks with the rule of this package."""
    policy = QNetworkPolicy(model.observation_space, model.action_space, ConstantSchedule(1e-4), net_arch=[16, 16])  # type: ignore[arg-type]
    policy.q_net.load_state_dict(model.q_net.state_dict())
    policy.q_net_target.load_state_dict(model.q_net_target.state_dict())
    return DQNLearner(policy, DQNSettings(**settings))


@pytest.mark.parametrize("n_steps", [1, 3])
def test_dqn_equals_sb3(n_steps: int, pytestconfig: pytest.Config) -> None:
    theirs = dqn(n_steps)
    ours, start = own_dqn(theirs, loss="huber", max_grad_norm=10), dict(own_dqn(theirs).policy.q_net.state_dict())
    buffer: Any = theirs.replay_buffer
    np.random.seed(5)
    theirs.train(gradient_steps=9, batch_size=32)
    np.random.seed(5)
    loss = ours.update(lambda: buffer.sample(32), 9)["loss"]
    actual, expected = ours.policy.q_net.state_dict(), theirs.q_net.state_dict()
    if pytestconfig.getoption("--updates") == "bf16":
        assert_moved_alike(actual, expected, start)
    else:
        assert loss == pytest.approx(theirs.logger.name_to_value["train/loss"], rel=1e-5)
        for name, tensor in expected.items():
            torch.testing.assert_close(actual[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


# ---------------------------------------------------------------- soft actor-critic


@pytest.mark.parametrize(
    "settings", [{}, {"ent_coef": "auto_0.3", "target_entropy": -2.0}, {"ent_coef": 0.2}], ids=["auto", "auto_0.3", "fixed"]
)
@pytest.mark.parametrize("n_steps", [1, 3])
def test_sac_equals_sb3(settings: dict[str, Any], n_steps: int, pytestconfig: pytest.Config) -> None:
    arguments: dict[str, Any] = {"learning_starts": 10_000, "buffer_size": 1000, "policy_kwargs": {"net_arch": [16, 16]}}
    theirs, ours = (
        SAC("MlpPolicy", "Pendulum-v1", seed=3, device="cpu", n_steps=n_steps, **arguments, **settings).learn(300)
        for _ in range(2)
    )
    learner, start = SACLearner(ours.policy, SACSettings(**settings)), snapshot(theirs.policy.state_dict())
    buffer: Any = ours.replay_buffer
    for model in (theirs, ours):
        np.random.seed(5)
        torch.manual_seed(5)
        if model is theirs:
            theirs.train(gradient_steps=9, batch_size=32)
        else:
            metrics = learner.update(lambda: buffer.sample(32), 9)
    actual, expected = ours.policy.state_dict(), theirs.policy.state_dict()
    if pytestconfig.getoption("--updates") == "bf16":
        assert_moved_alike(actual, expected, start)
        return
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=1e-4, atol=2e-6, msg=name)
    logged = {key.removeprefix("train/"): value for key, value in theirs.logger.name_to_value.items() if "train/" in key}
    assert metrics == pytest.approx({key: logged[key] for key in metrics}, rel=1e-4, abs=1e-5)
    if theirs.log_ent_coef is not None:
        torch.testing.assert_close(learner.log_ent_coef.detach(), theirs.log_ent_coef.detach())
