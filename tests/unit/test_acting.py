from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib.crossq.policies import CrossQPolicy
from sb3_contrib.tqc.policies import TQCPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.dqn.policies import DQNPolicy
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import Actor as TD3Actor
from stable_baselines3.td3.policies import MultiInputPolicy as TD3MultiInputPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

from sb3_erl.core.parameters import read_parameters, write_parameters
from sb3_erl.policies.cem_rl import CEMRLPolicy
from sb3_erl.policies.cerl import CERLNetworks
from sb3_erl.policies.erl import ERLActor, ERLPolicy
from sb3_erl.policies.erl_re2 import ERLRe2Policy
from sb3_erl.policies.es import ESPolicy
from sb3_erl.policies.td7 import SALEPolicy
from sb3_erl.remote.recipes import PlainFactory, actor_factory
from sb3_erl.rollouts.acting import (
    JointActor,
    ModuleActor,
    NetworkPool,
    NumpyActor,
    candidates_stack,
    numpy_population,
    plain_layers,
    single_row_actor,
    tensors_of,
)
from sb3_erl.rollouts.actions import ToEnvironment
from sb3_erl.rollouts.jobs import PopulationActor
from tests.contract.settings import make

OBSERVATIONS = spaces.Box(-10, 10, (5,), dtype=np.float64)
ACTIONS = spaces.Box(-2, 2, (3,), dtype=np.float32)


@pytest.mark.parametrize("policy_class", [ERLPolicy, CERLNetworks, ERLRe2Policy, SALEPolicy, TD3Policy, SACPolicy])
@pytest.mark.parametrize("activation_fn", [nn.Tanh, nn.ReLU, nn.ELU, nn.LeakyReLU, nn.SiLU, nn.Sigmoid])
def test_numpy_actor_agrees_with_torch(policy_class: type, activation_fn: type[nn.Module]) -> None:
    torch.manual_seed(0)
    policy = policy_class(OBSERVATIONS, ACTIONS, lambda _: 1e-3, net_arch=[16, 16], activation_fn=activation_fn)
    networks = [policy.make_actor() for _ in range(4)]
    vectors = torch.stack([read_parameters(network) for network in networks])
    fast = numpy_population(policy.actor, candidates_stack(policy.actor, vectors.numpy()))
    assert fast is not None
    slow = ModuleActor(NetworkPool(policy.make_actor).filled(vectors, policy.actor))
    observations = np.random.default_rng(0).normal(size=(6, 5))
    candidates = [3, 0, 0, 1, 2, 3]
    np.testing.assert_allclose(fast(observations, candidates), slow(observations, candidates), atol=2e-6)


@pytest.mark.parametrize("kind", ["numpy", "modules"])
@pytest.mark.parametrize("policy_class", [ERLPolicy, SALEPolicy])
def test_a_row_does_not_depend_on_the_others(policy_class: type, kind: str) -> None:
    torch.manual_seed(1)
    policy = policy_class(OBSERVATIONS, ACTIONS, lambda _: 1e-3)
    vectors = torch.stack([read_parameters(policy.make_actor()) for _ in range(7)])
    actor: PopulationActor | None = ModuleActor(NetworkPool(policy.make_actor).filled(vectors, policy.actor))
    if kind == "numpy":
        actor = numpy_population(policy.actor, candidates_stack(policy.actor, vectors.numpy()))
    assert actor is not None
    observations = np.random.default_rng(0).normal(size=(7, 5))
    together = actor(observations, range(7))
    for row in range(7):
        assert np.array_equal(actor(observations[row : row + 1], [row])[0], together[row])
    order = [4, 2, 6]
    assert np.array_equal(actor(observations[order], order), together[order])


@pytest.mark.parametrize("activation_fn", [nn.Tanh, nn.ReLU, nn.ELU])
@pytest.mark.parametrize("policy_class", [ERLPolicy, CERLNetworks, ERLRe2Policy, SALEPolicy, TD3Policy, SACPolicy])
def test_acting_alone_is_the_same_to_the_last_bit(policy_class: type, activation_fn: type[nn.Module]) -> None:
    torch.manual_seed(2)
    policy = policy_class(OBSERVATIONS, ACTIONS, lambda _: 1e-3, net_arch=[40, 30], activation_fn=activation_fn)
    vectors = torch.stack([read_parameters(policy.make_actor()) for _ in range(3)])
    actor: Any = numpy_population(policy.actor, candidates_stack(policy.actor, vectors.numpy()))
    observations = np.random.default_rng(0).normal(size=(20, 3, 5))
    alone, seen = [actor.single_row(candidate) for candidate in range(3)], observations.copy()
    for rows in observations:
        together = actor(rows, range(3))
        for candidate in range(3):
            assert np.array_equal(alone[candidate](rows[candidate]), together[candidate])
    assert np.array_equal(observations, seen)


@pytest.mark.parametrize("name", ["openai_es", "deep_ga"])
def test_acting_alone_with_what_a_class_adds(name: str) -> None:
    """Standardized observations, discrete actions, actors that are made when they are needed; and in a worker."""
    model = make(name, policy_kwargs={"net_arch": [16]})
    shown: list[Any] = []
    evaluate = model.rollouts.run

    def show(jobs: Any, actor: Any, *rest: Any, **kwargs: Any) -> Any:
        shown.append((jobs, actor))
        return evaluate(jobs, actor, *rest, **kwargs)

    model.rollouts.run = show
    model.learn(300)
    observation = np.random.default_rng(0).normal(size=3)
    jobs, here = shown[-1]
    for actor in (here, pickle.loads(pickle.dumps(here))):
        for candidate in {jobs[0].candidate, jobs[-1].candidate}:
            assert np.array_equal(actor.single_row(candidate)(observation), actor(observation[None], [candidate])[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_actions_are_stretched_to_the_last_bit_as_by_sb3(dtype: type) -> None:
    space = spaces.Box(np.array([-2.0, 0.1, -1.0]).astype(dtype), np.array([3.0, 0.7, 1.0]).astype(dtype), dtype=dtype)
    policy = TD3Policy(OBSERVATIONS, space, lambda _: 1e-3, net_arch=[4])
    actions = np.tanh(np.random.default_rng(0).normal(size=(500, 3))).astype(np.float32)
    for rows in (actions, actions[:1]):
        found, expected = ToEnvironment(space, squashed=True)(rows), policy.unscale_action(rows)
        assert found.dtype == expected.dtype and np.array_equal(found, expected)


def test_unknown_layers_fall_back_to_modules() -> None:
    policy = ERLPolicy(OBSERVATIONS, ACTIONS, lambda _: 1e-3, activation_fn=nn.Softplus)
    assert numpy_population(policy.actor, tensors_of) is None
    with pytest.raises(ValueError, match="modules must be linear layers"):
        NumpyActor([nn.Softplus()], [])


class DoublingExtractor(FlattenExtractor):
    def forward(self, observations: Tensor) -> Tensor:
        return 2 * super().forward(observations)


class NegativeLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return -super().forward(input)


class NegativeSequence(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


def test_only_flat_observations_are_read_by_layers() -> None:
    images = spaces.Box(0, 255, (36, 36, 1), dtype=np.uint8)
    assert numpy_population(ERLPolicy(images, ACTIONS, lambda _: 1e-3, net_arch=[8]).actor, tensors_of) is None
    doubled = ERLPolicy(OBSERVATIONS, ACTIONS, lambda _: 1e-3, features_extractor_class=DoublingExtractor)
    assert numpy_population(doubled.actor, tensors_of) is None


@pytest.mark.parametrize("changed", [NegativeLinear, NegativeSequence])
def test_a_subclass_of_a_known_layer_is_an_unknown_one(changed: type[nn.Module]) -> None:
    actor = TD3Policy(OBSERVATIONS, ACTIONS, lambda _: 1e-3, net_arch=[8]).actor
    assert numpy_population(actor, tensors_of) is not None
    if changed is NegativeLinear:
        actor.mu[0] = NegativeLinear(5, 8)
    else:
        actor.mu = NegativeSequence(*actor.mu)
    assert numpy_population(actor, tensors_of) is None


# -------------------------------------------------------------------- networks that act in a way of their own


def acting_networks() -> dict[str, tuple[Any, str]]:
    """A network of each class that is known to the NumPy path, and a method by which it acts beside ``forward``."""
    torch.manual_seed(3)
    small: dict[str, Any] = {"net_arch": [6, 6]}
    schedule = lambda _: 1e-3  # noqa: E731
    made = {
        "ERL": (ERLPolicy(OBSERVATIONS, ACTIONS, schedule, **small).actor, "_predict"),
        "CEM-RL": (CEMRLPolicy(OBSERVATIONS, ACTIONS, schedule, **small).actor, "extract_features"),
        "CERL": (CERLNetworks(OBSERVATIONS, ACTIONS, schedule, **small).actor, "_predict"),
        "ES": (ESPolicy(OBSERVATIONS, ACTIONS, schedule, **small).deployed, "_predict"),
        "ERL-Re2": (ERLRe2Policy(OBSERVATIONS, ACTIONS, schedule, **small).actor, "encode"),
        "SALE": (SALEPolicy(OBSERVATIONS, ACTIONS, schedule, zs_dim=6, **small).actor, "trunk"),
        "TD3": (TD3Policy(OBSERVATIONS, ACTIONS, schedule, **small).actor, "_predict"),
        "SAC": (SACPolicy(OBSERVATIONS, ACTIONS, schedule, **small).actor, "get_action_dist_params"),
        "TQC": (TQCPolicy(OBSERVATIONS, ACTIONS, schedule, **small).actor, "get_action_dist_params"),
        "DQN": (DQNPolicy(OBSERVATIONS, spaces.Discrete(4), schedule, **small).q_net, "_predict"),
    }
    plain_crossq = CrossQPolicy(OBSERVATIONS, ACTIONS, schedule, batch_norm=False, **small)
    return made | {"CrossQ": (plain_crossq.actor, "get_action_dist_params")}


@pytest.mark.parametrize("name", acting_networks())
def test_a_subclass_that_acts_differently_is_not_run_by_its_parents_layers(name: str) -> None:
    network, method = acting_networks()[name]
    observations = np.random.default_rng(0).normal(size=(6, 5))
    expected = ModuleActor([network])(observations, [0] * 6)
    as_layers: Any = numpy_population(network, tensors_of)
    np.testing.assert_allclose(as_layers(observations, [0] * 6), expected, atol=2e-6)

    network.__class__ = type("SameActor", (type(network),), {})
    assert numpy_population(network, tensors_of) is not None, "a subclass that changes nothing keeps its layers"
    assert (plain_layers(network) is None) == (name == "SALE")

    own, acts = type(network), getattr(type(network), method)
    for changed in ("forward", method):
        network.__class__ = type("OwnActor", (own,), {changed: lambda *args, **kwargs: acts(*args, **kwargs)})
        assert numpy_population(network, tensors_of) is None
        assert plain_layers(network) is None


def test_own_forward_acts_in_a_run() -> None:
    calls: list[int] = []

    class CountingActor(ERLActor):
        def forward(self, obs: Any) -> Tensor:
            calls.append(len(obs))
            return super().forward(obs)

    class CountingPolicy(ERLPolicy):
        def make_actor(self, features_extractor: Any = None) -> ERLActor:
            actor = super().make_actor(features_extractor)
            actor.__class__ = CountingActor
            return actor

    model = make("erl", policy=CountingPolicy, learning_starts=10_000)
    model.learn(200)
    assert sum(calls) == model.num_timesteps >= 200


def test_a_users_network_can_say_its_layers() -> None:
    class Doubled(TD3Actor):
        def forward(self, obs: Any) -> Tensor:
            return self.last(super().forward(obs))

        def rollout_layers(self) -> list[nn.Module]:
            return [*self.mu, self.last]  # type: ignore[misc, list-item]

    actor: Any = TD3Policy(OBSERVATIONS, ACTIONS, lambda _: 1e-3, net_arch=[8]).actor
    actor.last = nn.Linear(3, 3)
    actor.__class__ = Doubled
    with torch.no_grad():
        actor.last.weight.copy_(2 * torch.eye(3))
    fast, observations = numpy_population(actor, tensors_of), np.random.default_rng(0).normal(size=(1, 5))
    assert isinstance(fast, NumpyActor)
    np.testing.assert_allclose(fast(observations, [0]), ModuleActor([actor])(observations, [0]), atol=1e-6)


@pytest.mark.parametrize(("policy_class", "arguments"), [(SACPolicy, {"use_sde": True}), (CrossQPolicy, {})])
def test_networks_with_parts_of_their_own_run_as_modules(policy_class: type, arguments: dict[str, Any]) -> None:
    """State-dependent exploration clips the mean; CrossQ has batch renormalization."""
    actor = policy_class(OBSERVATIONS, ACTIONS, lambda _: 1e-3, net_arch=[8], **arguments).actor
    assert numpy_population(actor, tensors_of) is None


# -------------------------------------------------------------------- Q-networks


def test_q_networks_act_by_the_highest_value() -> None:
    torch.manual_seed(5)
    policy = DQNPolicy(OBSERVATIONS, spaces.Discrete(4), lambda _: 1e-3, net_arch=[16, 16])
    vectors = torch.stack([read_parameters(policy.make_q_net()) for _ in range(5)])
    fast: Any = numpy_population(policy.q_net, candidates_stack(policy.q_net, vectors.numpy()))
    slow = ModuleActor(NetworkPool(policy.make_q_net).filled(vectors, policy.q_net))
    observations = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    candidates = [row % 5 for row in range(200)]
    actions = fast(observations, candidates)
    assert actions.shape == (200, 1) and actions.dtype == np.float32
    assert len(np.unique(actions)) == 4
    together = slow(observations, candidates)
    assert together.dtype == np.float32 and np.array_equal(actions, together)
    for row in range(10):
        assert np.array_equal(fast.single_row(candidates[row])(observations[row]), actions[row])
    write_parameters(vectors[3], policy.q_net)
    with torch.no_grad():
        values = policy.q_net(torch.as_tensor(observations[3::5]))
    assert values.argmax(1).tolist() == actions[3::5, 0].tolist()


def test_q_networks_are_rebuilt_in_workers() -> None:
    network = DQNPolicy(OBSERVATIONS, spaces.Discrete(4), lambda _: 1e-3, net_arch=[16]).q_net
    factory = pickle.loads(pickle.dumps(actor_factory(network)))
    assert isinstance(factory, PlainFactory)
    observations = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    found = [factory(read_parameters(network).numpy())(row[None], [0])[0, 0] for row in observations]
    assert found == [network.predict(row, deterministic=True)[0] for row in observations]


# -------------------------------------------------------------------- Dict observations

DICT = spaces.Dict({"position": spaces.Box(-1, 1, (3,)), "goal": spaces.Box(-1, 1, (2,)), "tile": spaces.Discrete(3)})


def dict_observations(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    flat = {key: rng.uniform(-1, 1, (n, size)).astype(np.float32) for key, size in (("position", 3), ("goal", 2))}
    return flat | {"tile": rng.integers(0, 3, n)}


def dict_policy() -> TD3Policy:
    return TD3MultiInputPolicy(DICT, ACTIONS, lambda _: 1e-3, net_arch=[8])


def test_modules_act_on_dict_observations() -> None:
    torch.manual_seed(6)
    policy = dict_policy()
    assert numpy_population(policy.actor, tensors_of) is None
    networks = [policy.make_actor() for _ in range(3)]
    vectors = torch.stack([read_parameters(network) for network in networks])
    acts = ModuleActor(NetworkPool(policy.make_actor).filled(vectors, policy.actor))
    observations, candidates = dict_observations(6), [2, 0, 0, 1, 2, 1]
    actions = acts(observations, candidates)
    assert actions.shape == (6, 3) and actions.dtype == np.float32
    for row, candidate in enumerate(candidates):
        observation = {key: array[row] for key, array in observations.items()}
        tensor, _ = networks[candidate].obs_to_tensor(observation)
        with torch.no_grad():
            assert np.array_equal(networks[candidate](tensor)[0].numpy(), actions[row])
    assert single_row_actor(acts, 0) is None


def test_groups_act_on_their_rows_of_dict_observations() -> None:
    torch.manual_seed(7)
    policy, other = dict_policy(), dict_policy()
    parts = [ModuleActor([policy.make_actor() for _ in range(2)]), ModuleActor([other.make_actor()])]
    members = [(0, 1), (1, 0), (0, 0)]
    joint = JointActor(parts, members)
    for candidates in ([1, 2, 0], [0, 1, 2], [0, 1, 2], [2, 0], [1]):
        observations = dict_observations(len(candidates))
        actions = joint(observations, candidates)
        for row, (part, number) in enumerate(members[candidate] for candidate in candidates):
            alone = parts[part]({key: array[[row]] for key, array in observations.items()}, [number])
            assert np.array_equal(alone[0], actions[row])


def test_rebuilt_actors_act_on_dict_observations() -> None:
    torch.manual_seed(8)
    network = dict_policy().actor
    factory = pickle.loads(pickle.dumps(actor_factory(network)))
    acts = factory(read_parameters(network).numpy())
    observations = dict_observations(1)
    assert np.array_equal(acts(observations, [0]), ModuleActor([network])(observations, [0]))
