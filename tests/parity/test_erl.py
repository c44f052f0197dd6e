"""ERL against numbers from the authors' code (2018 revision and current master)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor

from sb3_erl.core.parameters import ParameterLayout
from sb3_erl.evolution.ga import count_elites
from sb3_erl.evolution.operators.crossover import RowCrossover, RowEvents
from sb3_erl.evolution.operators.mutation import GaussianMutation, WeightEvents
from sb3_erl.evolution.operators.selection import plan_epoch, rank_best_first, tournament_winners
from sb3_erl.learners.base import LearnerSettings
from sb3_erl.learners.td3 import TD3Learner
from sb3_erl.learners.td_rule import DDPGRule
from sb3_erl.policies.erl import ERLActor, ERLCritic, ERLPolicy
from tests.parity.cases import Case
from tests.parity.replay import RecordedDraws

SYSTEM = "erl"


# ------------------------------------------------------------------ selection


def recorded(draws: list[list[Any]], n_tournaments: int) -> RecordedDraws:
    of = lambda kind: [value for name, value in draws if name == kind]  # noqa: E731
    assert len(of("randint")) == n_tournaments
    return RecordedDraws(of("randint"), of("bounded"), of("shuffle"), of("choice"), of("random"))


def check_tournament(case: Case) -> None:
    for k, setting in enumerate(case["config"]["cases"]):
        fitness, rows = case.array(f"c{k}_fitness"), case.array(f"c{k}_draws")
        ranking = rank_best_first(fitness)
        np.testing.assert_array_equal(ranking, case.array(f"c{k}_rank"))
        draws = RecordedDraws(rows, [], [], [], [])
        winners = tournament_winners(ranking, setting["num_offspring"], setting["tournament_size"], draws)
        np.testing.assert_array_equal(winners, case.array(f"c{k}_winners"))
        unique = sorted(set(winners))
        np.testing.assert_array_equal(unique, case.array(f"c{k}_unique_sorted"))
        for who, repeat in (("paper", "random"), ("later", winners[-1])):
            repeated = case.array(f"c{k}_{who}_repeated")
            assert len(repeated) == len(unique) % 2
            if len(repeated) and who == "later":
                assert repeated[0] == repeat
            elif len(repeated):
                assert repeated[0] in unique


def events_of(epoch: Any, n: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    copies = [copy for batch in epoch.copies for copy in batch]
    crossings = [pair for batch in epoch.crossings for pair in batch]
    return copies, crossings


def check_epoch(case: Case) -> None:
    config = case["config"]
    n, n_migrants = config["pop_size"], config["migrants"]
    later = n_migrants > 0 or "current master" in case["official"]
    n_elites = count_elites(config["elite_fraction"], n)
    n_elites = max(2, n_elites) if later else n_elites
    ranking = rank_best_first(case.array("fitness"))
    n_tournaments = len(case.array("tournament_draws"))
    assert n_tournaments == n - n_elites - n_migrants
    draws = recorded(case["draws"], n_tournaments)
    winners = tournament_winners(ranking, n_tournaments, config["tournament_size"], draws)
    epoch = plan_epoch(
        ranking,
        list(set(winners)),  # the official order of distinct winners is that of a Python set
        draws,
        n_elites=n_elites,
        n_migrants=n_migrants,
        crossover_prob=config["crossover_prob"],
        mutation_prob=config["mutation_prob"],
        repeat=winners[-1] if later else "random",
        cross_each="pderl" in case["official"],
        official=True,
    )
    assert draws.is_used_up
    copies, crossings = events_of(epoch, n)
    # official copies name slots, ours the original individual: trace the official ones through their own order
    owner: dict[Any, Any] = {i: i for i in range(n)} | {f"migrant{k}": n + k for k in range(n_migrants)}
    expected_copies, expected_crossings = [], []
    for kind, *args in case["events"]:
        if kind == "copy":
            owner[args[1]] = owner[args[0]]
            expected_copies.append((owner[args[0]], args[1]))
        elif kind == "cross_inplace" and args[0] != args[1]:
            expected_crossings.append(tuple(args))
    assert copies == expected_copies
    assert crossings == expected_crossings
    assert epoch.mutants == [args[0] for kind, *args in case["events"] if kind == "mutate"]
    if case["returned_elite_slot"] is not None:
        assert epoch.protected[0] == case["returned_elite_slot"]


# ------------------------------------------------------------------ variation


def layout_of(case: Case, prefix: str, names: list[str]) -> ParameterLayout:
    return ParameterLayout(tuple(names), tuple(case.array(f"{prefix}.{name}").shape for name in names))


def flatten(case: Case, prefix: str, names: list[str]) -> np.ndarray:
    return np.concatenate([case.array(f"{prefix}.{name}").reshape(-1) for name in names])[None]


def check_mutation(case: Case) -> None:
    config = case["config"]
    names = config["state_dict_keys"]
    layout = layout_of(case, "before", names)
    operator = GaussianMutation(
        layout,
        strength=config["mut_strength"],
        fraction=config["num_mutation_frac"],
        super_prob=config["super_mut_prob"],
        super_strength=config["super_mut_strength"],
        reset_prob=config["reset_prob_cumulative"] - config["super_mut_prob"],
        limit=config["weight_limit"],
    )
    tensor, rows, columns = (case.array(f"event_{name}").astype(np.int64) for name in ("tensor", "row", "col"))
    starts = np.array([layout.slices[name].start for name in names])
    widths = np.array([shape[1] if len(shape) > 1 else 1 for shape in layout.shapes])
    index = starts[tensor] + rows * widths[tensor] + columns
    events = WeightEvents(index, case.array("event_uniform"), case.array("event_z"))
    case.close(operator.apply(flatten(case, "before", names), events), flatten(case, "after", names))
    counts, limits = case.array("gate_count"), np.ceil(config["num_mutation_frac"] * operator._sizes)
    assert (counts < limits).all()
    touched = case.array("gate_uniform") < case.array("tensor_prob")[case.array("gate_tensor")]
    np.testing.assert_array_equal(counts >= 0, touched)
    drawn = operator.draw(4000, np.random.default_rng(0))
    which = np.searchsorted(operator._starts, drawn.index % layout.n_params, "right") - 1
    per_matrix = np.bincount(which, minlength=len(limits))
    # a matrix is touched with probability 0.75 and then has (limit - 1) / 2 events on average
    np.testing.assert_allclose(per_matrix / 4000, 0.75 * (limits - 1) / 2, rtol=0.1)


def check_crossover(case: Case) -> None:
    names = case["config"]["parameter_order"]
    layout = layout_of(case, "a_before", names)
    operator = RowCrossover(layout)
    first_row = np.cumsum([0] + [shape[0] for shape in layout.shapes])
    tensor, row = (case.array(f"event_{name}").astype(np.int64) for name in ("tensor", "row"))
    row = first_row[tensor] + row
    events = RowEvents(np.zeros(len(row), dtype=int), row, case.array("event_uniform") < 0.5)
    a, b = operator.apply(flatten(case, "a_before", names), flatten(case, "b_before", names), events)
    np.testing.assert_array_equal(a, flatten(case, "a_after", names))
    np.testing.assert_array_equal(b, flatten(case, "b_after", names))
    counts = case.array("count")
    limits = np.array([shape[0] * (2 if len(shape) > 1 else 1) for shape in layout.shapes])
    assert (counts < limits).all() and counts.sum() == len(row)
    np.testing.assert_array_equal(operator._limits, limits)


# ------------------------------------------------------------------ DDPG


def actor_names(actor: ERLActor) -> dict[str, Tensor]:
    l1, norm1, _, l2, norm2, _, out, _ = actor.mu
    names = {"w_l1": l1, "w_l2": l2, "w_out": out, "lnorm1": norm1, "lnorm2": norm2}
    return expand_names(names)


def expand_names(modules: dict[str, Any]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        if name.startswith("lnorm"):
            tensors |= {f"{name}.gamma": module.scale, f"{name}.beta": module.shift}
        else:
            tensors |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    return tensors


def critic_names(critic: ERLCritic) -> dict[str, Tensor]:
    stacked: dict[str, Any] = {
        "w_state_l1": critic.observation_layer,
        "w_action_l1": critic.action_layer,
        "w_l2": critic.hidden[0],
        "w_out": critic.out,
    }
    names: dict[str, Tensor] = {}
    for name, layer in stacked.items():
        names |= {f"{name}.weight": layer.weight[0].t(), f"{name}.bias": layer.bias[0, 0]}
    assert critic.norms is not None
    norm: Any = critic.norms[0]
    return names | {"lnorm2.gamma": norm.scale[0, 0], "lnorm2.beta": norm.shift[0, 0]}


def policy_names(policy: ERLPolicy) -> dict[str, dict[str, Tensor]]:
    return {
        "actor": actor_names(policy.actor),
        "actor_target": actor_names(policy.actor_target),  # type: ignore[arg-type]
        "critic": critic_names(policy.critic),  # type: ignore[arg-type]
        "critic_target": critic_names(policy.critic_target),  # type: ignore[arg-type]
    }


class UnclippedActor(TD3Learner):
    """The authors' slip: their second clip names the critic, so the actor's gradient is as it comes."""

    def actor_step(self, batch: ReplayBufferSamples) -> Tensor:
        limit, self.settings.max_grad_norm = self.settings.max_grad_norm, None
        loss = super().actor_step(batch)
        self.settings.max_grad_norm = limit
        return loss


def check_ddpg_update(case: Case) -> None:
    config = case["config"]
    hidden = config["critic_hidden"]
    policy = ERLPolicy(
        spaces.Box(-1, 1, (config["obs_dim"],)),
        spaces.Box(-1, 1, (config["act_dim"],)),
        lambda _: config["critic_lr"],
        net_arch={"pi": [config["actor_hidden"]] * 2, "qf": list(hidden)},
    )
    for group in policy.actor.optimizer.param_groups:
        group["lr"] = config["actor_lr"]
    names = policy_names(policy)
    with torch.no_grad():
        for network, tensors in names.items():
            for name, tensor in tensors.items():
                tensor.copy_(case.tensor(f"{network}0.{name}"))
    settings = LearnerSettings(gamma=config["gamma"], tau=config["tau"], max_grad_norm=config["clip"])
    official = "second_clip_applies_to" in config and "critic" in config["second_clip_applies_to"]
    learner = (UnclippedActor if official else TD3Learner)(policy, settings, DDPGRule())
    batches = iter(batches_of(case))
    step = 0
    while f"actor{step + 1}.w_l1.weight" in case.arrays:
        step += 1
        metrics = learner.update(lambda: next(batches), 1)
        for network, tensors in names.items():
            case.network_close(tensors, case.under(f"{network}{step}."), case.under(f"{network}0."))
        for ours, theirs in (("critic_loss", "critic_loss"), ("actor_loss", "actor_loss")):
            case.close(metrics[ours], case.array(theirs)[step - 1])
    assert step == len(case.array("obs"))


def batches_of(case: Case) -> list[ReplayBufferSamples]:
    parts = {name: case.tensor(name).float() for name in ("obs", "act", "next_obs", "done", "rew")}
    columns = ("obs", "act", "next_obs", "done", "rew")
    return [ReplayBufferSamples(*(parts[name][t] for name in columns)) for t in range(len(parts["obs"]))]


def check_ou_noise(case: Case) -> None:
    z, expected = case.array("z"), case.array("noise")
    n = z.shape[1]
    c, ones = case["config"], np.ones(n)
    mean, sigma = c["scale"] * c["mu"] * ones, c["scale"] * c["sigma"] * ones
    noise = OrnsteinUhlenbeckActionNoise(mean, sigma, theta=c["theta"], dt=c["dt"], initial_noise=mean)
    draws = iter(z)
    normal = np.random.normal
    np.random.normal = lambda size=None: next(draws)  # type: ignore[assignment]
    try:
        emitted = np.stack([noise() for _ in range(len(z))])
    finally:
        np.random.normal = normal
    np.testing.assert_allclose(emitted, expected, rtol=1e-6, atol=1e-7)


CHECKS = {
    "tournament": check_tournament,
    "epoch": check_epoch,
    "mutation_gaussian": check_mutation,
    "crossover_rows": check_crossover,
    "ddpg_update": check_ddpg_update,
    "ou_noise": check_ou_noise,
}


def test_case(case: Case) -> None:
    name = case.settings.get("case", case.name)
    kinds = [kind for kind in CHECKS if name.startswith(kind)]
    assert len(kinds) == 1, f"unknown kind of case {name!r}; known: {sorted(CHECKS)}"
    CHECKS[kinds[0]](case)
