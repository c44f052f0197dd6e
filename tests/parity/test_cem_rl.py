"""CEM-RL against numbers from the authors' code."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import ConstantSchedule
from torch import nn

from sb3_erl.algorithms.cem_rl import CEMRL
from sb3_erl.core.parameters import read_parameters
from sb3_erl.evolution.cem import DiagonalCEM, log_rank_weights
from sb3_erl.evolution.reuse import DiagonalGaussian, importance_mixing
from sb3_erl.learners.base import LearnerSettings
from sb3_erl.learners.gradient_steps import GradientSteps
from sb3_erl.learners.td3 import TD3Learner
from sb3_erl.learners.td_rule import DDPGRule, TD3Rule
from sb3_erl.policies.cem_rl import CEMRLPolicy
from sb3_erl.policies.layers import PlainNorm, StackedLinear
from tests.parity.cases import Case, dispatch
from tests.parity.replay import RecordedNormals

SYSTEM = "cem_rl"


def kind_of(case: Case) -> str:
    """What a case fixes, told from its contents."""
    if "sequence_of_blocks" in case.settings:
        return "schedule"
    for kind, array in (("importance mixing", "reuse_u"), ("update", "batch_index"), ("cem", "told")):
        if array in case.arrays:
            return kind
    return "weights" if any(name.startswith("parents_") for name in case.arrays) else str(case["case"])


# ------------------------------------------------------------------ the distribution


def untied(scores: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Scores of which no two are equal: equal ones are lowered by some last digits, in the order of the authors' sort."""
    assert (np.diff(scores[order]) <= 0).all()
    lowered = scores.astype(np.float64)
    for better, worse in pairwise(order):
        lowered[worse] = min(lowered[worse], np.nextafter(lowered[better], -np.inf))
    return lowered


def check_cem(case: Case) -> None:
    c = case["config"]
    evolver = DiagonalCEM(
        case.tensor("mu_init"),
        c["pop_size"],
        n_parents=c["parents_argument"],
        variance_init=c["sigma_init"],
        damping_init=c["damp"],
        damping_final=c["damp_limit"],
        damping_decay=c["tau"],
        antithetic=c["antithetic"] and c["pop_size"] % 2 == 0,
        elitism=c["elitism"],
    )
    assert evolver.n_parents == c["parents_used"]
    case.close(evolver.weights, case.array("weights"))
    if c["elitism"]:  # the authors' code begins with an elite that nobody has evaluated
        evolver.elite.copy_(case.tensor("elite_init"))
        evolver.elite_score.fill_(0.0)
    for g in range(c["generations"]):
        if "noise" in case.arrays:
            rng: Any = RecordedNormals(case.array("noise")[g])
            asked = evolver.ask(rng)
            assert rng.is_used_up
            if "asked" in case.arrays:
                case.close(asked, case.array("asked")[g])
        evolver.tell(case.tensor("told")[g], untied(case.array("scores")[g], case.array("order")[g]))
        case.close(evolver.mean, case.array("mu")[g])
        case.close(evolver.variance, case.array("cov")[g])
        case.close(evolver.damping, case.array("damp")[g])
        case.close(evolver.elite, case.array("elite")[g])
        case.close(-evolver.elite_score, case.array("elite_score_stored")[g])


def check_weights(case: Case) -> None:
    for n in case["config"]["parents"]:
        case.close(log_rank_weights(n), case.array(f"parents_{n}"))


class GivenDraws:
    """Recorded uniforms and normals of importance mixing, in the order in which the authors' code asks for them."""

    def __init__(self, case: Case):
        reuse, candidates = list(case.array("reuse_u")), list(case.array("cand_u"))
        self.uniforms: list[float] = []
        while reuse or candidates:
            self.uniforms += [float(part.pop(0)) for part in (reuse, candidates) if part]
        self.normals = [*case.array("cand_noise"), *case.array("fill_noise")]

    def uniform(self) -> float:
        return self.uniforms.pop(0)

    def normal(self, n: int) -> np.ndarray:
        noise = self.normals.pop(0)
        assert len(noise) == n
        return noise


def check_mixing(case: Case) -> None:
    old, new = (DiagonalGaussian(case.array(f"{name}_mu"), case.array(f"{name}_cov")) for name in ("old", "new"))
    draws = GivenDraws(case)
    params, reused = importance_mixing(case.array("old_samples"), old, new, case["config"]["pop_size"], draws)
    np.testing.assert_array_equal(reused, case.array("idx_reused"))
    case.close(params, case.array("params"))
    assert not draws.uniforms and not draws.normals


# ------------------------------------------------------------------ gradient steps


def tensors_of(policy: CEMRLPolicy, net: str, n_towers: int) -> dict[str, torch.Tensor]:
    """Tensors of a network under the names of the reference; views, so they can be written."""
    network: Any = getattr(policy, net)
    found = {}
    if net.startswith("actor"):
        linears = [m for m in network.mu if isinstance(m, nn.Linear)]
        norms = [m for m in network.mu if isinstance(m, PlainNorm)]
        for k, linear in enumerate(linears, start=1):
            found |= {f"l{k}.weight": linear.weight, f"l{k}.bias": linear.bias}
        for k, norm in enumerate(norms, start=1):
            found |= {f"n{k}.weight": norm.scale, f"n{k}.bias": norm.shift}
        return found
    stacked: list[StackedLinear] = [*network.towers.hidden, network.towers.out]
    for tower in range(n_towers):
        for k, layer in enumerate(stacked, start=1 + 3 * tower):
            found |= {f"l{k}.weight": layer.weight[tower].t(), f"l{k}.bias": layer.bias[tower, 0]}
        for k, norm in enumerate(network.towers.norms or [], start=1 + 3 * tower):
            found |= {f"n{k}.weight": norm.scale[tower, 0], f"n{k}.bias": norm.shift[tower, 0]}
    return found


@torch.no_grad()
def load(places: dict[str, torch.Tensor], values: dict[str, torch.Tensor]) -> None:
    assert set(places) == set(values)
    for name, place in places.items():
        place.copy_(values[name])


def check_update(case: Case) -> None:
    c = case["config"]
    rule = TD3Rule() if c["td3"] else DDPGRule()
    n_towers = rule.n_critics
    policy = CEMRLPolicy(
        spaces.Box(-np.inf, np.inf, (c["obs_dim"],), np.float32),
        spaces.Box(-c["max_action"], c["max_action"], (c["act_dim"],), np.float32),
        ConstantSchedule(c["critic_lr"]),
        net_arch=c["hidden"],
        n_critics=n_towers,
        layer_norm=c["layer_norm"],
    )
    load(tensors_of(policy, "actor", n_towers), case.under("actor0."))
    for net in ("critic", "critic_target"):
        load(tensors_of(policy, net, n_towers), case.under("critic0."))
    settings = LearnerSettings(c["gamma"], c["tau"], target_policy_noise=c["policy_noise"], target_noise_clip=c["noise_clip"])
    learner = TD3Learner(policy, settings, rule)
    rows, n_critic = case.array("batch_index"), len(case.array("critic_loss"))
    noise = case.tensor("target_noise_clipped").float() if c["td3"] else torch.zeros(n_critic, 1, c["act_dim"])
    n_actor = len(rows) - n_critic

    def batch(k: int) -> ReplayBufferSamples:
        mem = {name: case.tensor(f"mem_{name}").float()[rows[k]] for name in ("obs", "next_obs", "act", "rew", "done")}
        return ReplayBufferSamples(mem["obs"], mem["act"], mem["next_obs"], mem["done"][:, None], mem["rew"][:, None])

    start = read_parameters(policy.actor)
    for k in range(n_critic):
        learner._smoothing_noise = lambda _, k=k: noise[k]  # type: ignore[method-assign, misc]
        case.close(learner.critic_update(batch(k), policy.actor), case.array("critic_loss")[k])
        for net, prefix in (("critic", f"critic{k + 1}."), ("critic_target", f"critic_target{k + 1}.")):
            case.network_close(tensors_of(policy, net, n_towers), case.under(prefix), case.under("critic0."))

    def adam(tensors: list[torch.Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(tensors, lr=c["actor_lr"])

    steps = GradientSteps(policy.make_actor(), adam)
    for k in range(1, n_actor + 1):  # k steps from the start, twice the same individual side by side
        batches = [batch(n_critic + step).observations for step in range(k)]
        pair: Any = torch.stack([start, start])
        improved, metrics = steps(learner, pair, batch, lambda n, left=batches: [left.pop(0)] * n, 0, k)  # type: ignore[arg-type, misc]
        case.close(improved[0], improved[1])
        torch.nn.utils.vector_to_parameters(improved[0], steps.actor.parameters())
        policy.actor.load_state_dict(steps.actor.state_dict())
        case.network_close(tensors_of(policy, "actor", n_towers), case.under(f"actor{k}."), case.under("actor0."))
        case.close(metrics["actor_loss"], case.array("actor_loss")[:k].mean())


# ------------------------------------------------------------------ when gradients are taken


class Scripted(gym.Env):
    """Episodes of given lengths."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, lengths: list[int]):
        self.lengths, self.episode, self.t = lengths, -1, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        if self.t > 0 or self.episode < 0:
            self.episode += 1
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        self.t += 1
        return np.zeros(2, np.float32), 1.0, self.t == self.lengths[min(self.episode, len(self.lengths) - 1)], False, {}


def check_schedule(case: Case) -> None:
    c, env_steps = case["config"], case.array("env_steps")
    n_jobs = c["n_noisy"] + c["pop_size"] * c["n_episodes"]
    lengths = [steps // n_jobs + (job < steps % n_jobs) for steps in env_steps.tolist() for job in range(n_jobs)]
    model = CEMRL(
        Scripted(lengths),
        learner="td3" if c["use_td3"] else "ddpg",
        pop_size=c["pop_size"],
        n_gradient_actors=c["n_grad"],
        n_noisy_episodes=c["n_noisy"],
        n_eval_episodes=c["n_episodes"],
        learning_starts=c["start_steps"],
        batch_size=4,
        buffer_size=1000,
        policy_kwargs={"net_arch": [4]},
        device="cpu",
        seed=0,
    )
    blocks: list[list[list[Any]]] = []
    critic_update, steps = model.learner.critic_update, GradientSteps.__call__  # type: ignore[attr-defined]
    counted: dict[str, int] = {}

    def count_critic(batch: Any, actor: Any) -> torch.Tensor:
        counted["critic"] = counted.get("critic", 0) + 1
        return critic_update(batch, actor)

    def count_blocks(self: Any, learner: Any, candidates: Any, sample: Any, many: Any, n_critic: int, n_actor: int) -> Any:
        result = steps(self, learner, candidates, sample, many, n_critic, n_actor)
        assert counted.pop("critic", 0) == len(candidates) * n_critic
        blocks[-1] += [["critic", n_critic], ["actor", n_actor]] * len(candidates)
        return result

    totals: list[int] = []

    def note_generation(generation: Any, ask: Any = model._ask) -> Any:
        blocks.append([])
        totals.append(model.num_timesteps)
        return ask(generation)

    model.learner.critic_update = count_critic  # type: ignore[union-attr]
    model._ask = note_generation  # type: ignore[method-assign]
    GradientSteps.__call__ = count_blocks  # type: ignore[assignment,method-assign]
    try:
        model.learn(int(env_steps.sum()))
    finally:
        GradientSteps.__call__ = steps  # type: ignore[method-assign]
    assert blocks == case["sequence_of_blocks"]
    np.testing.assert_array_equal(totals, case.array("total_steps_at_ask"))
    assert model._n_updates == case.array("critic_steps").sum()
    assert model.n_generations == len(env_steps)


CHECKS = {
    "cem": check_cem,
    "weights": check_weights,
    "importance mixing": check_mixing,
    "update": check_update,
    "schedule": check_schedule,
}


def test_case(case: Case) -> None:
    dispatch(case, kind_of(case), CHECKS)
