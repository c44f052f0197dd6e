"""Networks of ERL-Re2 and of EvoRainbow's shared form, with their tensors under the names of the authors' code."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from sb3_erl.policies.cem_rl import TowerCritic
from sb3_erl.policies.erl_re2 import ERLRe2Policy, SharedActor
from sb3_erl.policies.layers import StackedLinear, StdNorm
from tests.parity.cases import Case


def linear_names(layer: nn.Linear, name: str) -> dict[str, Tensor]:
    return {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}


def stacked_names(layer: StackedLinear, name: str, tower: int) -> dict[str, Any]:
    stacks = [layer.weight] + ([] if layer.context_weight is None else [layer.context_weight])
    weights = [stack[tower].t() for stack in stacks]
    return {f"{name}.weight": weights, f"{name}.bias": [layer.bias[tower, 0]]}


def norm_names(norm: StdNorm, name: str, tower: int | None = None) -> dict[str, Tensor]:
    scale, shift = (norm.scale, norm.shift) if tower is None else (norm.scale[tower, 0], norm.shift[tower, 0])
    return {f"{name}.scale": scale, f"{name}.shift": shift}


def encoder_names(actor: SharedActor) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for index in range(len(actor.net_arch)):
        names |= linear_names(actor.trunk[3 * index], f"l{index + 1}")  # type: ignore[arg-type]
        names |= norm_names(actor.trunk[3 * index + 1], f"norm{index + 1}")  # type: ignore[arg-type]
    return names


def tower_names(critic: TowerCritic) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for tower in range(critic.n_critics):
        q = f"q{tower + 1}"
        for index, layer in enumerate(critic.towers.hidden):
            names |= stacked_names(layer, f"{q}.l{index + 1}", tower)  # type: ignore[arg-type]
            names |= norm_names(critic.towers.norms[index], f"{q}.norm{index + 1}", tower)  # type: ignore[index, arg-type]
        names |= stacked_names(critic.towers.out, f"{q}.out", tower)
        for index, layer in enumerate(getattr(critic, "policy_encoder", [])):
            names |= stacked_names(layer, f"{q}.pol{index + 1}", tower)
    return names


def official_names(policy: ERLRe2Policy) -> dict[str, Any]:
    """Every tensor of the policy under its official name, as a view or a list of views side by side."""
    names: dict[str, Any] = {}
    for suffix, actor in (("", policy.actor), ("_target", policy.actor_target)):
        names |= {f"encoder{suffix}/{k}": v for k, v in encoder_names(actor).items()}
        names |= {f"rl_head{suffix}/weight": actor.head.weight, f"rl_head{suffix}/bias": actor.head.bias}
    for name in ("critic", "critic_target", "pevfa", "pevfa_target"):
        names |= {f"{name}/{k}": v for k, v in tower_names(getattr(policy, name)).items()}
    return {k: v if isinstance(v, list) else [v] for k, v in names.items()}


@torch.no_grad()
def load_official(policy: ERLRe2Policy, tensors: dict[str, Tensor]) -> None:
    names = official_names(policy)
    unknown = {name for name in tensors if not name.startswith(("heads/", "pop_heads"))} - set(names)
    assert not unknown, sorted(unknown)
    for name, views in names.items():
        if name in tensors:
            parts = torch.split(tensors[name], [view.shape[-1] for view in views], dim=-1)
            for view, part in zip(views, parts, strict=True):
                view.copy_(part.reshape(view.shape))


def read_official(policy: ERLRe2Policy) -> dict[str, Tensor]:
    return {name: torch.cat([v.detach() for v in views], dim=-1) for name, views in official_names(policy).items()}


def make_policy(case: Case, layout: str = "rows") -> ERLRe2Policy:
    observations = spaces.Box(-np.inf, np.inf, (case["obs_dim"],))
    actions = spaces.Box(-1, 1, (case["action_dim"],))
    lr = case.settings.get("lr_all", 1e-3)
    names = case.arrays
    prefix = "init" if "init/encoder/l1.weight" in names else "weights"
    kwargs: dict[str, Any] = {}
    if f"{prefix}/encoder/l1.weight" in names:
        arch = [len(names[f"{prefix}/encoder/l{i}.bias"]) for i in (1, 2)]
        kwargs["net_arch"] = {"pi": arch, "qf": [len(names[f"{prefix}/critic/q1.l{i}.bias"]) for i in (1, 2)]}
    if "adam_eps" in case.settings:
        kwargs["optimizer_kwargs"] = {"betas": tuple(case["adam_betas"]), "eps": case["adam_eps"]}
    return ERLRe2Policy(
        observations,
        actions,
        lambda _: lr,
        policy_embedding_dim=case.settings.get("policy_embedding_dim", 64),
        pevfa_layout=layout,
        pevfa_input=case.settings.get("pevfa_input", "obs_action"),
        **kwargs,
    )
