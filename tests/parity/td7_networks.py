"""Networks of TD7 with their tensors under the names of the reference."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.utils import ConstantSchedule
from torch import nn

from sb3_erl.policies.sale import SALEActor, SALECritic
from sb3_erl.policies.td7 import TD7Policy
from tests.parity.cases import Case

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "elu": nn.ELU, "tanh": nn.Tanh, "leaky_relu": nn.LeakyReLU}
Tensors = dict[str, torch.Tensor]


def linears(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if isinstance(part, nn.Linear)]


def encoder_tensors(state: nn.Module, action: nn.Module) -> Tensors:
    found = {}
    for letter, module in (("f", state), ("g", action)):
        for index, layer in enumerate(linears(module)):
            found |= {f"{letter}{index}.weight": layer.weight, f"{letter}{index}.bias": layer.bias}  # type: ignore[dict-item]
    return found


def actor_tensors(actor: SALEActor) -> Tensors:
    found = {}
    hidden = [(f"h{index}", layer) for index, layer in enumerate(linears(actor.hidden))]
    for name, layer in [("in", actor.first[0]), *hidden, ("out", actor.head)]:
        found |= {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}  # type: ignore[dict-item]
    return found


def critic_tensors(critic: SALECritic) -> Tensors:
    """Copies in the reference's layout; the layer behind the embeddings reads (hidden, zsa, zs)."""
    found = {}
    for tower in range(critic.n_critics):
        second = torch.cat([critic.second.weight[tower], critic.zsa_weight[tower], critic.zs_weight[tower]]).t()
        found |= {f"q{tower + 1}.h0.weight": second, f"q{tower + 1}.h0.bias": critic.second.bias[tower, 0]}
        names = ["in", *(f"h{i + 1}" for i in range(len(critic.rest) - 1)), "out"]
        for name, layer in zip(names, [critic.first, *critic.rest], strict=True):
            found[f"q{tower + 1}.{name}.weight"] = layer.weight[tower].t()  # type: ignore[index, operator]
            found[f"q{tower + 1}.{name}.bias"] = layer.bias[tower, 0]  # type: ignore[index]
    return found


@torch.no_grad()
def load_critic(critic: SALECritic, tensors: Tensors) -> None:
    width, zs_dim = critic.second.weight.shape[1], critic.zs_dim
    for tower in range(critic.n_critics):
        of = {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(f"q{tower + 1}.")}
        parts = of["h0.weight"].t().split([width, zs_dim, zs_dim])
        for place, value in zip((critic.second.weight, critic.zsa_weight, critic.zs_weight), parts, strict=True):
            place[tower] = value
        critic.second.bias[tower, 0] = of["h0.bias"]
        names = ["in", *(f"h{i + 1}" for i in range(len(critic.rest) - 1)), "out"]
        for name, layer in zip(names, [critic.first, *critic.rest], strict=True):
            layer.weight[tower] = of[f"{name}.weight"].t()  # type: ignore[index, operator]
            layer.bias[tower, 0] = of[f"{name}.bias"]  # type: ignore[index, operator]


@torch.no_grad()
def load(places: Tensors, tensors: Tensors) -> None:
    assert set(places) == set(tensors)
    for name, place in places.items():
        place.copy_(tensors[name])


def networks(policy: TD7Policy) -> dict[str, Tensors]:
    """All networks in the reference's order of ``weight_norms``."""
    return {
        "encoder": encoder_tensors(policy.encoder.state, policy.encoder.action),
        "fixed_encoder": encoder_tensors(policy.actor.encoder, policy.fixed_action_encoder),
        "fixed_encoder_target": encoder_tensors(policy.actor_target.encoder, policy.target_action_encoder),
        "actor": actor_tensors(policy.actor),
        "actor_target": actor_tensors(policy.actor_target),
        "critic": critic_tensors(policy.critic),
        "critic_target": critic_tensors(policy.critic_target),
    }


def policy_of(case: Case) -> TD7Policy:
    c = case["config"]
    observation_space = spaces.Box(-np.inf, np.inf, (c["obs_dim"],), np.float32)
    action_space = spaces.Box(-c["max_action"], c["max_action"], (c["act_dim"],), np.float32)
    policy = TD7Policy(
        observation_space,
        action_space,
        ConstantSchedule(1e-3),
        net_arch={"pi": [c["actor_hdim"]] * 3, "qf": [c["critic_hdim"]] * 3, "encoder": [c["enc_hdim"]] * 2},
        zs_dim=c["zs_dim"],
        activation_fn=ACTIVATIONS[c["activations"]["actor"]],
        critic_activation_fn=ACTIVATIONS[c["activations"]["critic"]],
        encoder_activation_fn=ACTIVATIONS[c["activations"]["encoder"]],
        optimizer_kwargs={"betas": tuple(c["adam"]["betas"]), "eps": c["adam"]["eps"]},
    )
    load(encoder_tensors(policy.encoder.state, policy.encoder.action), case.under("init/encoder/"))
    load(actor_tensors(policy.actor), case.under("init/actor/"))
    load_critic(policy.critic, case.under("init/critic/"))
    for _ in range(2):  # fixed encoder, then its copy for the targets
        policy.fix_encoder()
        for source, target in policy.target_pairs():
            target.load_state_dict(source.state_dict())
    policy.deploy(policy.actor)
    for name in ("encoder", "actor", "critic"):
        getattr(policy, name).optimizer.param_groups[0]["lr"] = c[f"{name}_lr"]
    return policy
