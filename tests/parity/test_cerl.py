"""CERL against numbers from the authors' code."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

from sb3_erl.evolution.ga import count_elites
from sb3_erl.evolution.operators.selection import plan_epoch, rank_best_first, tournament_winners
from sb3_erl.learners.allocation import ResourceManager, allocate, allocation_probabilities, normalized_values, ucb_scores
from sb3_erl.learners.base import LearnerSettings
from sb3_erl.learners.td3 import TD3Learner
from tests.parity.cases import Case, dispatch
from tests.parity.test_erl import events_of, recorded

SYSTEM = "cerl"


def kind_of(case: Case) -> str:
    """What a case fixes, told from its contents."""
    if "draws" in case.settings:
        return "epoch"
    found = {"td3": "init/actor.f1.weight", "loop": "final_allocation", "ucb": "c0_scores", "scaling": "c0_policy_output"}
    return next((kind for kind, array in found.items() if array in case.arrays), str(case["case"]))


# ------------------------------------------------------------------ the resource manager


def check_ucb(case: Case) -> None:
    for k, c in enumerate(case["config"]["cases"]):
        of = lambda name, k=k: case.array(f"c{k}_{name}")  # noqa: E731
        scores = ucb_scores(of("values"), of("visits"), c["c"])
        case.close(normalized_values(of("values")), of("normalised_values"))
        case.close(scores, of("scores"))
        case.close(allocation_probabilities(scores), of("probabilities"))
        np.testing.assert_array_equal(allocate(scores, of("uniforms")), of("allocation"))
        assert len(of("allocation")) == c["allocation_size"]


def check_loop(case: Case) -> None:
    c = case["config"]
    manager = ResourceManager(c["learners"], c["rollout_size"], c["c"], c["value_gamma"])
    for g in range(c["generations"]):
        np.testing.assert_array_equal(manager.allocation, case.array("allocation")[g])
        for learner, total in zip(manager.allocation, case.array("fitness")[g], strict=True):
            manager.report(int(learner), float(total))
        case.close(manager.values, case.array("values")[g])
        np.testing.assert_array_equal(manager.visits, case.array("visits")[g])
        case.close(manager.scores, case.array("scores")[g])
        manager.reallocate(case.array("uniforms")[g])
    np.testing.assert_array_equal(manager.allocation, case.array("final_allocation"))


# ------------------------------------------------------------------ neuroevolution


def check_epoch(case: Case) -> None:
    c = case["config"]
    n, n_migrants, order = c["pop_size"], c["migrants"], case.array("arrival_order")
    n_elites = max(c["min_elites"], count_elites(c["elite_fraction"], n))
    places = rank_best_first(case.array("fitness")[order])  # the official code ranks places in the order of arrival
    draws = recorded(case["draws"], len(case.array("tournament_draws")))
    winners = tournament_winners(places, n - n_elites - n_migrants, c["tournament_size"], draws)
    epoch = plan_epoch(
        order[places],
        [int(order[place]) for place in set(winners)],  # the official order of distinct winners is that of a Python set
        draws,
        n_elites=n_elites,
        n_migrants=n_migrants,
        crossover_prob=c["crossover_prob"],
        mutation_prob=c["mutation_prob"],
        repeat=int(order[winners[-1]]),
        order=[int(i) for i in order],
        official=True,
    )
    assert draws.is_used_up
    copies, crossings = events_of(epoch, n)
    owner: dict[Any, Any] = {i: i for i in range(n)} | {f"migrant{k}": n + k for k in range(n_migrants)}
    expected_copies, expected_crossings = [], []
    for kind, *args in case["events"]:
        if kind == "copy":
            owner[args[1]] = owner[args[0]]
            expected_copies.append((owner[args[0]], args[1]))
        elif kind == "cross_inplace" and args[0] != args[1]:
            expected_crossings.append(tuple(args))
    assert copies == expected_copies and crossings == expected_crossings
    assert epoch.mutants == [args[0] for kind, *args in case["events"] if kind == "mutate"]


# ------------------------------------------------------------------ TD3 on actions in [0, 1]


class Normed(nn.Module):
    """``[linear, elu, layer norm] * 2, linear`` with the names of the reference."""

    def __init__(self, prefix: str, sizes: list[int], names: tuple[str, ...]):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(nn.LayerNorm(size) for size in sizes[1:-1])
        self.named = dict(zip([prefix + name for name in names], [*self.layers, *self.norms], strict=True))

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=False):
            x = norm(nn.functional.elu(layer(x)))
        return self.layers[-1](x)


class UnitActor(nn.Module):
    """The reference's action in [0, 1] as one in [-1, 1]."""

    def __init__(self, sizes: list[int]):
        super().__init__()
        self.net = Normed("", sizes, ("f1", "f2", "w_out", "ln1", "ln2"))

    def forward(self, obs: Tensor) -> Tensor:
        return 2 * torch.sigmoid(self.net(obs)) - 1


class UnitCritic(nn.Module):
    """Twin critic that reads actions in [0, 1]."""

    def __init__(self, sizes: list[int]):
        super().__init__()
        self.heads = nn.ModuleList(Normed(f"q{k}", sizes, ("f1", "f2", "out", "ln1", "ln2")) for k in (1, 2))

    def forward(self, obs: Tensor, actions: Tensor) -> tuple[Tensor, ...]:
        x = torch.cat([obs, (actions + 1) / 2], dim=1)
        return tuple(head(x) for head in self.heads)

    def q1_forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        return self(obs, actions)[0]


def check_td3(case: Case) -> None:
    c = case["config"]
    actor_sizes = [c["obs_dim"], *c["hidden"], c["act_dim"]]
    critic_sizes = [c["obs_dim"] + c["act_dim"], *c["hidden"], 1]
    networks: dict[str, Any] = {
        "actor": UnitActor(actor_sizes),
        "actor_target": UnitActor(actor_sizes),
        "critic": UnitCritic(critic_sizes),
        "critic_target": UnitCritic(critic_sizes),
    }

    def tensors(name: str) -> dict[str, Tensor]:
        heads = [networks[name].net] if name.startswith("actor") else list(networks[name].heads)
        layers = {key: layer for head in heads for key, layer in head.named.items()}
        return {f"{key}.{part}": getattr(layer, part) for key, layer in layers.items() for part in ("weight", "bias")}

    for name, network in networks.items():
        with torch.no_grad():
            for key, tensor in tensors(name).items():
                tensor.copy_(case.tensor(f"init/{name}.{key}"))
        network.optimizer = torch.optim.Adam(network.parameters(), lr=c["lr"])
    policy: Any = SimpleNamespace(**networks)
    settings = LearnerSettings(
        c["gamma"], c["tau"], c["policy_freq"], target_noise_clip=2 * c["policy_noise_clip"], delay_critic_target=False
    )
    learner = TD3Learner(policy, settings)
    noise, clip = case.tensor("policy_noise").float(), 2 * c["policy_noise_clip"]
    batches = iter(batches_of(case))
    for step in range(c["steps"]):
        learner._smoothing_noise = lambda _, step=step: (2 * noise[step]).clamp(-clip, clip)  # type: ignore[assignment, misc]
        losses = learner.update(lambda: next(batches), 1)
        case.close(losses["critic_loss"], case.array("critic_loss")[step])
    for name in networks:
        case.network_close(tensors(name), case.under(f"final/{name}."), case.under(f"init/{name}."))


def batches_of(case: Case) -> list[ReplayBufferSamples]:
    names = {"obs": ("obs", "state"), "act": ("act", "action"), "next": ("next_obs", "next_state")}
    names |= {"done": ("done", "done"), "rew": ("rew", "reward")}
    found = {}
    for part, choices in names.items():
        key = next(k for k in case.arrays if k.rpartition("/")[2] in choices)
        found[part] = case.tensor(key).float()
    column = lambda x: x.reshape(*x.shape[:2], -1)  # noqa: E731
    rows = zip(found["obs"], found["act"], found["next"], column(found["done"]), column(found["rew"]), strict=True)
    return [ReplayBufferSamples(obs, 2 * act - 1, following, done, rew) for obs, act, following, done, rew in rows]


def check_scaling(case: Case) -> None:
    """Without noise the action is the reference's; with noise it stays in the box (a quirk that is not copied)."""
    for k, c in enumerate(case["config"]["cases"]):
        outputs = case.array(f"c{k}_policy_output")
        n = outputs.shape[1]
        box = spaces.Box(c["low"], c["high"], (n,), np.float32)
        policy = TD3Policy(spaces.Box(-1, 1, (2,)), box, lambda _: 1e-3, net_arch=[2])
        executed = policy.unscale_action((2 * outputs - 1).astype(np.float32))
        rounding = case["atol"] + np.finfo(np.float32).eps * (c["high"] - c["low"])  # ours are float32, theirs float64
        np.testing.assert_allclose(executed, case.array(f"c{k}_executed_without_noise"), rtol=case["rtol"], atol=rounding)
        noisy = np.clip(2 * (outputs + case.array(f"c{k}_noise")) - 1, -1, 1).astype(np.float32)
        executed = policy.unscale_action(noisy)
        assert (executed >= c["low"] - rounding).all() and (executed <= c["high"] + rounding).all()


CHECKS = {"ucb": check_ucb, "loop": check_loop, "epoch": check_epoch, "td3": check_td3, "scaling": check_scaling}


def test_case(case: Case) -> None:
    dispatch(case, kind_of(case), CHECKS)
