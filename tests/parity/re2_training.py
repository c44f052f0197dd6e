"""Replays the training of ERL-Re2 on given batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor, nn

from sb3_erl.learners.erl_re2 import Heads, SharedSettings, SharedTD3Learner
from tests.parity.cases import BF16_VALUES, Case
from tests.parity.re2_networks import load_official, make_policy, read_official


def make_learner(case: Case) -> SharedTD3Learner:
    policy = make_policy(case, case["pevfa_layout"])
    load_official(policy, case.under("init/"))
    settings = SharedSettings(
        gamma=case["gamma"],
        tau=case["tau"],
        policy_delay=case["policy_delay"],
        target_policy_noise=case["target_policy_noise_std"],
        target_noise_clip=case["target_noise_clip"],
        max_grad_norm=case["max_grad_norm"],
        encoder_step=case["head_step_order"],
        rl_loss_weight=case["rl_loss_weight"],
        pevfa_loss_weight=case["pevfa_loss_weight"],
    )
    return SharedTD3Learner(policy, settings)


def batch_of(case: Case, index: int) -> ReplayBufferSamples:
    parts = {name: case.tensor(f"batch{index}/{name}").float() for name in ("obs", "act", "next_obs", "done", "rew")}
    column = {name: parts[name].reshape(-1, 1) for name in ("done", "rew")}
    return ReplayBufferSamples(parts["obs"], parts["act"], parts["next_obs"], column["done"], column["rew"])


def close_number(case: Case, actual: float, expected: float, what: str) -> None:
    """A loss or the norm of a gradient; the tolerance is relative to 1 at least."""
    tolerance = BF16_VALUES if case.is_bf16 else case["rtol"]
    assert actual == pytest.approx(expected, abs=tolerance * max(1.0, abs(expected))), what


def check_targets(case: Case, learner: SharedTD3Learner, t: int, heads: Heads | None, td_heads: list[int]) -> None:
    batch, noise = batch_of(case, t), case.tensor(f"batch{t}/target_noise").float()
    targets = {"critic": learner._critic_targets(batch, noise)[:, 0]}
    if heads is not None:
        features = learner.policy.actor.encode(batch.next_observations).detach()
        each = [learner._pevfa_targets(batch, features, heads.weight[j], heads.bias[j])[:, 0] for j in td_heads]
        targets["pevfa"] = torch.stack(each)
    for name, ours in targets.items():
        case.close(ours, case.array(f"expect/{name}_td_target_{t}").reshape(ours.shape))


def recorded_norms(learner: SharedTD3Learner, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """:return: of gradients before they are clipped, by network; filled by updates that are not one program"""
    parts = {"pevfa": learner._pevfa, "critic": learner._critic, "rl_head": learner._head, "encoder": learner._encoder}
    of, norms, plain = {id(tensors[0]): name for name, tensors in parts.items()}, dict[str, float](), nn.utils.clip_grad_norm_

    def clip(parameters: list[Tensor], limit: float) -> Tensor:
        norm = plain(parameters, limit)
        norms[of[id(parameters[0])]] = float(norm)
        return norm

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", clip)
    return norms


def check_iterations(case: Case, learner: SharedTD3Learner, population: Heads | None, norms: dict[str, float]) -> None:
    pairs = {"pevfa_loss": "pevfa_loss", "critic_loss": "critic_loss", "actor_loss": "actor_loss_before_head_step"}
    if case["head_step_order"] != "torch11":  # there the encoder's loss is a linearization with another value
        pairs["encoder_loss"] = "encoder_total_loss"
    for t, expected in enumerate(case["iterations"]):
        on_policy_step = t % case["policy_delay"] == 0
        td_heads: list[int] = []
        shared: list[int] = []
        if population is not None:
            use_all = case["use_all_heads_for_pevfa_td"]
            td_heads = list(range(population.n_heads + 1)) if use_all else [*np.atleast_1d(case["pevfa_td_head_index"][t])]
            if on_policy_step and case["population_evaluations_done"] > 0:
                shared = case["encoder_loss_head_indices"][t // case["policy_delay"]]
        check_targets(case, learner, t, None if population is None else learner.heads(population), td_heads)
        noise = case.tensor(f"batch{t}/target_noise").float()
        losses = learner.iterate(batch_of(case, t), noise, population, td_heads, shared, on_policy_step)
        for ours, theirs in pairs.items():
            assert (theirs in expected) == (ours in losses)
            if theirs in expected:
                close_number(case, float(losses[ours].detach()), expected[theirs], f"{ours} of iteration {t}")
        wanted = {name.removeprefix("grad_norm_"): norm for name, norm in expected.items() if name.startswith("grad_norm_")}
        assert set(norms) == set(wanted) or learner.programs is not None
        for name in norms:
            close_number(case, norms[name], wanted[name], f"norm of {name}'s gradient in iteration {t}")
        norms.clear()


def check_training_step(case: Case) -> None:
    learner, init = make_learner(case), case.under("init/")
    start = read_official(learner.policy)
    population, before = None, list[Tensor]()
    if case["evolution"]:
        population = Heads(init["pop_heads/weight"].float(), init["pop_heads/bias"].float())
        before = [part.clone() for part in population]
        assert population.n_heads == case["population_size"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        check_iterations(case, learner, population, recorded_norms(learner, monkeypatch))
    assert all(torch.equal(part, old) for part, old in zip(population or (), before, strict=True))
    check_final_weights(case, read_official(learner.policy), start)


def check_final_weights(case: Case, actual: dict[str, Tensor], start: dict[str, Tensor]) -> None:
    checked = set()
    networks: dict[str, tuple[dict[str, Tensor], ...]] = {}
    for name, expected in case.arrays.items():
        form, _, tensor = name.partition("/")
        if tensor.startswith("pop_heads") or form not in ("final", "final_full", "final_every37", "final_sum_l2"):
            continue
        flat = actual[tensor].numpy().reshape(-1)
        checked.add(tensor)
        if form == "final_sum_l2":
            norm = np.linalg.norm(flat.astype(np.float64))
            assert norm == pytest.approx(expected[1], rel=BF16_VALUES if case.is_bf16 else 1e-4, abs=1e-3), tensor
            continue
        stride = 37 if form == "final_every37" else 1
        if case.is_bf16:
            kinds = networks.setdefault(tensor.partition("/")[0], ({}, {}, {}))
            ours, before = (tensors[tensor].reshape(-1)[::stride] for tensors in (actual, start))
            for kind, values in zip(kinds, (ours, case.tensor(name).reshape(-1), before), strict=True):
                kind[tensor] = values
            continue
        off = np.abs(flat[::stride] - expected.reshape(-1))
        allowed = max(1, int(1e-3 * off.size))
        assert (off > case["atol"]).sum() <= allowed, (tensor, off.max())
        assert off.max() <= 3e-3, tensor
    for kinds in networks.values():
        case.network_close(*kinds)
    assert checked == set(actual), sorted(set(actual) - checked)
