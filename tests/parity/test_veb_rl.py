"""Networks, update, fitness, operators and the whole loop against numbers from VEB-RL's authors' code."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import ConstantSchedule
from torch import Tensor

from sb3_erl.core.parameters import ParameterLayout, write_parameters
from sb3_erl.engine.replace import weakest_slot
from sb3_erl.evolution.base import best_first
from sb3_erl.evolution.ga import count_elites
from sb3_erl.evolution.operators.crossover import LinearRowCrossover, RowEvents
from sb3_erl.evolution.operators.mutation import LinearMutation, WeightEvents
from sb3_erl.evolution.operators.selection import plan_epoch, rank_best_first, tournament_winners
from sb3_erl.learners.dqn import DQNLearner, DQNSettings
from sb3_erl.policies.q_network import GridCNN, QNetworkPolicy
from tests.parity.cases import Case, dispatch, snapshot
from tests.parity.test_erl import recorded
from tests.parity.value_loop import replay_loop

SYSTEM = "veb_rl"


class Flat(BaseFeaturesExtractor):
    """The image as a vector, channel first."""

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space, features_dim=int(np.prod(observation_space.shape)))

    def forward(self, observations: Tensor) -> Tensor:
        return observations.permute(0, 3, 1, 2).flatten(1)


def policy_of(channels: int, n_actions: int, net_arch: list[int], maps: int | None = None, lr: float = 1e-3) -> QNetworkPolicy:
    extractor: dict[str, Any] = {"features_extractor_class": Flat}
    if maps is not None:
        extractor = {"features_extractor_class": GridCNN, "features_extractor_kwargs": {"n_maps": maps}}
    space = spaces.Box(0, 1, (10, 10, channels), np.float32)
    return QNetworkPolicy(space, spaces.Discrete(n_actions), ConstantSchedule(lr), net_arch=net_arch, **extractor)


def names(network: Any) -> dict[str, Tensor]:
    """Tensors under the names of the reference; views, so they can be written."""
    conv, hidden, output = network.features_extractor.layers[0], network.q_net[0], network.q_net[2]
    layers = {"conv": conv, "fc_hidden": hidden, "output": output}
    return {f"{name}.{part}": getattr(layer, part) for name, layer in layers.items() for part in ("weight", "bias")}


@torch.no_grad()
def load(network: Any, tensors: dict[str, Tensor]) -> None:
    places = names(network)
    assert set(places) == set(tensors)
    for name, place in places.items():
        place.copy_(tensors[name])


def batch_of(case: Case, rows: Any = slice(None)) -> ReplayBufferSamples:
    state, action, reward, following, done = (
        case.tensor(name)[rows] for name in ("state", "action", "reward", "next_state", "is_terminal")
    )
    column = lambda x: x.float()[:, None]  # noqa: E731
    return ReplayBufferSamples(state.float(), action.long()[:, None], following.float(), column(done), column(reward))


def check_update(case: Case) -> None:
    c, start = case["config"], case.under("init/")
    policy = policy_of(c["channels"], c["actions"], [len(start["fc_hidden.bias"])], len(start["conv.bias"]), c["lr"])
    for network in (policy.q_net, policy.q_net_target):
        load(network, start)
    learner = DQNLearner(policy, DQNSettings(gamma=c["gamma"], target_update_interval=c["target_copy_every"]))
    assert learner.settings.loss == "mse" and learner.settings.max_grad_norm is None
    for step, expected in enumerate(case.array("loss")):
        case.close(learner.update(lambda step=step: batch_of(case, step), 1)["loss"], expected)  # type: ignore[misc]
    case.network_close(snapshot(names(policy.q_net)), case.under("final/"), start)
    case.network_close(snapshot(names(policy.q_net_target)), case.under("final_target/"), start)


def check_network(case: Case) -> None:
    c, weights = case["config"], {name: tensor.float() for name, tensor in case.under("net.").items()}
    policy = policy_of(c["channels"], c["actions"], [len(weights["fc_hidden.bias"])], len(weights["conv.bias"]))
    assert sum(p.numel() for p in policy.make_actor().parameters()) == c["parameters"]
    load(policy.q_net, weights)
    policy.deploy(policy.actor)
    states = case.array("state").astype(np.float32)
    with torch.no_grad():
        case.close(policy.q_net(torch.as_tensor(states)), case.array("q"))
    np.testing.assert_array_equal(policy.predict(states, deterministic=True)[0], case.array("greedy"))


def check_fitness(case: Case) -> None:
    c = case["config"]
    policy = policy_of(c["channels"], c["actions"], [])
    learner, batch = DQNLearner(policy, DQNSettings(gamma=c["gamma"])), batch_of(case)
    networks, targets = (
        torch.cat([case.tensor(f"{name}_{part}").float().flatten(1) for part in ("weight", "bias")], dim=1)
        for name in ("Q_net", "Q_target")
    )
    assert len(networks) == c["pop_size"]
    for stacked in (False, True):
        fitness = -learner.td_errors_of(batch, networks, targets, stacked).square().mean(dim=1)
        case.close(fitness, case.array("fitness"))
        assert best_first(fitness.numpy()).tolist() == case.array("rank").tolist()
        assert weakest_slot(fitness.numpy(), [], "next") == int(case.array("worst"))
    one, own = policy.make_actor(), policy.make_actor()
    for network, vector in ((one, networks[0]), (own, targets[0])):
        write_parameters(vector, network)
    case.close(-learner.td_errors(batch, one, own).square().mean(), case.array("fitness")[0])


def check_epoch(case: Case) -> None:
    c, n_tournaments = case["config"], len(case.array("tournament_draws"))
    n_elites = count_elites(c["elite_fraction"], c["pop_size"])
    assert n_elites == c["elites"] and n_tournaments == c["pop_size"] - n_elites
    draws = recorded(case["draws"], n_tournaments)
    ranking = rank_best_first(case.array("fitness"))
    winners = tournament_winners(ranking, n_tournaments, c["tournament_size"], draws)
    official_order, prob = list(set(winners)), c["mutation_prob"]
    n_losers = c["pop_size"] - len({*winners, *ranking[:n_elites].tolist()})
    n_offspring = len(official_order) + len(official_order) % 2 - max(0, n_elites - n_losers)
    draws.uniforms[:0] = [1.0] * (n_offspring // 2)  # whether offspring are crossed is not even drawn there
    epoch = plan_epoch(ranking, official_order, draws, n_elites=n_elites, mutation_prob=prob, official=True)
    assert draws.is_used_up
    owner, copies, crossings = list(range(c["pop_size"])), [], []
    for kind, *slots in case["events"]:
        if kind == "copy":  # from a slot there, from an original individual here
            owner[slots[1]] = owner[slots[0]]
            copies.append((owner[slots[0]], slots[1]))
        elif kind == "cross_inplace" and slots[0] != slots[1]:
            crossings.append(tuple(slots))
    assert [copy for batch in epoch.copies for copy in batch] == copies
    assert [pair for batch in epoch.crossings for pair in batch] == crossings
    assert epoch.mutants == [slots[0] for kind, *slots in case["events"] if kind == "mutate"]
    assert epoch.protected == case.array("returned_elite_slots").tolist()


def individual(case: Case, prefix: str) -> tuple[ParameterLayout, np.ndarray]:
    """A network as layout and vector; its tensors stand in the file in the order of its parameters."""
    tensors = case.under(prefix)
    layout = ParameterLayout(tuple(tensors), tuple(tuple(tensor.shape) for tensor in tensors.values()))
    return layout, np.concatenate([tensor.numpy().reshape(-1) for tensor in tensors.values()])


def check_mutation(case: Case) -> None:
    settings = dict(case["config"])
    settings["limit"] = settings.pop("weight_limit")
    layout, vector = individual(case, "before.")
    operator, draws = LinearMutation(layout, **settings), iter(case["draws"])

    def draw(wanted: str) -> Any:
        kind, value = next(draws)
        assert kind == wanted
        return value

    for first, *_ in [value for kind, value in case["draws"] if kind == "uniform"]:
        touch = np.minimum(1, 2 * np.array(draw("uniform")))
        assert touch[0] == min(1, 2 * first)
        index, kinds, noise = [], [], []
        for number, shape in enumerate(layout.shapes):
            if len(shape) != 2 or draw("random") >= touch[number]:
                continue
            for _ in range(draw("bounded")):
                row, column = draw("bounded"), draw("bounded")
                index.append(sum(layout.sizes[:number]) + row * shape[1] + column)
                kinds.append(draw("random"))
                noise.append(draw("gauss"))
        events = WeightEvents(np.array(index, dtype=np.int64), np.array(kinds), np.array(noise))
        vector = operator.apply(vector[None], events)[0] if index else vector
    assert next(draws, None) is None
    case.close(vector, individual(case, "after.")[1])
    drawn = operator.draw(200, np.random.default_rng(0)).index % layout.n_params
    can_change = any(len(shape) == 2 and settings["fraction"] * np.prod(shape) > 1 for shape in layout.shapes)
    touched = {len(layout.shapes[k]) for k in np.searchsorted(np.cumsum(layout.sizes), drawn, side="right")}
    assert touched == ({2} if can_change else set())


def check_crossover(case: Case) -> None:
    (layout, first), (_, second) = (individual(case, f"{who}_before.") for who in ("first", "second"))
    draws, rows, into_first, start = iter(case["draws"]), [], [], 0
    for shape in layout.shapes:
        n_copies = next(draws)[1] if len(shape) <= 2 else 0
        for _ in range(n_copies):
            into_first.append(next(draws)[1] < 0.5)
            rows.append(start + next(draws)[1])
        start += shape[0]
    assert next(draws, None) is None
    operator = LinearRowCrossover(layout)
    events = RowEvents(np.zeros(len(rows), dtype=np.int64), np.array(rows, dtype=np.int64), np.array(into_first, dtype=bool))
    children = operator.apply(first[None], second[None], events)
    for child, who in zip(children, ("first", "second"), strict=True):
        np.testing.assert_array_equal(child[0], individual(case, f"{who}_after.")[1])
    drawn = operator.draw(200, np.random.default_rng(0)).row
    starts = np.cumsum([0, *(shape[0] for shape in layout.shapes)])
    for shape, low, high in zip(layout.shapes, starts[:-1], starts[1:], strict=True):
        assert bool(((drawn >= low) & (drawn < high)).any()) == ((len(shape) <= 2 and shape[0] > 1) or len(shape) == 2)


CHECKS = {
    "dqn_update": check_update,
    "q_network": check_network,
    "td_fitness": check_fitness,
    "epoch": check_epoch,
    "ga_mutation": check_mutation,
    "ga_crossover": check_crossover,
    "loop": replay_loop,
}
"""By the beginning of a case's name."""


def test_case(case: Case) -> None:
    kinds = [kind for kind in CHECKS if case["case"].startswith(kind)]
    dispatch(case, kinds[0] if kinds else case["case"], CHECKS)
