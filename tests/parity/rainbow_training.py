"""Replays the training of EvoRainbow and EvoRainbow-Exp on given batches."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor

from sb3_erl.learners.base import LearnerSettings
from sb3_erl.learners.erl_re2 import EncoderStep, Heads, SharedSettings, SharedTD3Learner
from sb3_erl.learners.td3 import TD3Learner
from sb3_erl.policies.erl_re2 import ERLRe2Policy
from sb3_erl.policies.evo_rainbow import EvoRainbowPolicy
from tests.parity.cases import BF16_VALUES, Case, assert_moved_alike, assert_near, snapshot
from tests.parity.re2_networks import linear_names, norm_names, official_names, tower_names


def official_name(ours: str, n_layers: int) -> str:
    """Name of a critic's or PeVFA's tensor in the authors' code, where both towers are in one module."""
    tower, kind, number, part = re.fullmatch(r"q(\d)\.(l|norm|pol|out)(\d*)\.(\w+)", ours).groups()  # type: ignore[union-attr]
    second = int(tower) - 1
    if kind == "out":
        return f"w_out{'_2' if second else ''}.{part}"
    index = int(number) + second * (3 if kind == "pol" else n_layers)
    part = {"scale": "gamma", "shift": "beta"}.get(part, part)
    return {"l": "w_l", "norm": "lnorm", "pol": "policy_w_l"}[kind] + f"{index}.{part}"


def renamed_encoder(name: str) -> str:
    """``l1.weight`` to ``w_l1.weight``, ``norm1.scale`` to ``lnorm1.gamma``."""
    return re.sub(r"^l(\d)", r"w_l\1", name).replace("norm", "lnorm").replace("scale", "gamma").replace("shift", "beta")


def shared_names(policy: ERLRe2Policy) -> dict[str, list[Tensor]]:
    names = {}
    networks = {"encoder": "embedding", "rl_head": "actor", "critic": "critic", "pevfa": "population_value"}
    for name, views in official_names(policy).items():
        network, _, tensor = name.partition("/")
        suffix = "_target" if network.endswith("_target") else ""
        plain = network.removesuffix("_target")
        if plain == "rl_head":
            tensor = f"w_out.{tensor}"
        tensor = renamed_encoder(tensor) if plain == "encoder" else tensor
        tensor = official_name(tensor, len(policy.critic.towers.hidden)) if plain in ("critic", "pevfa") else tensor
        names[f"{networks[plain]}{suffix}.{tensor}"] = views
    return names


def private_names(policy: EvoRainbowPolicy) -> dict[str, list[Tensor]]:
    names: dict[str, Any] = {}
    for name, actor in (("actor", policy.actor), ("actor_target", policy.actor_target)):
        layers, inner = list(actor.mu), {}
        for index in range(len(layers) // 3):
            inner |= linear_names(layers[3 * index], f"l{index + 1}")  # type: ignore[arg-type]
            inner |= norm_names(layers[3 * index + 1], f"norm{index + 1}")  # type: ignore[arg-type]
        names |= {f"{name}.state_embedding.{renamed_encoder(key)}": tensor for key, tensor in inner.items()}
        names |= {f"{name}.{key}": tensor for key, tensor in linear_names(actor.output_layer, "w_out").items()}
    for name in ("critic", "critic_target"):
        critic: Any = getattr(policy, name)
        n_layers = len(critic.towers.hidden)
        names |= {f"{name}.{official_name(key, n_layers)}": views for key, views in tower_names(critic).items()}
    return {key: views if isinstance(views, list) else [views] for key, views in names.items()}


@torch.no_grad()
def load(names: dict[str, list[Tensor]], case: Case) -> None:
    tensors = {key: value for key, value in case.under("init/").items() if not key.startswith("individual")}
    assert set(tensors) == set(names)
    for name, views in names.items():
        parts = torch.split(tensors[name], [view.shape[-1] for view in views], dim=-1)
        for view, part in zip(views, parts, strict=True):
            view.copy_(part.reshape(view.shape))


def read(names: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    return snapshot({name: torch.cat([view.detach() for view in views], dim=-1) for name, views in names.items()})


def check_final(case: Case, names: dict[str, list[Tensor]], start: dict[str, Tensor]) -> None:
    actual, expected = read(names), case.under("final/")
    networks = {name.partition(".")[0] for name in expected}
    assert networks == {name.partition(".")[0] for name in names}
    for network in networks:
        ours, theirs, before = (
            {key: value for key, value in tensors.items() if key.partition(".")[0] == network}
            for tensors in (actual, expected, start)
        )
        case.network_close({key: ours[key].reshape(theirs[key].shape) for key in theirs}, theirs, before)


def batch_of(case: Case, index: int) -> ReplayBufferSamples:
    parts = (case.tensor(name)[index].float() for name in ("obs", "action", "next_obs", "done", "reward"))
    return ReplayBufferSamples(*parts)


class OldAdam(torch.optim.Optimizer):
    """
    Adam as torch 1.1 computed it: epsilon is added before the bias correction of the second moment, not after it.

    Parameters with gradients near 1e-7, as those of policy encoders, take other steps in the first iterations.
    """

    def __init__(self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            (first, second), eps = group["betas"], group["eps"]
            for parameter in group["params"]:
                state, grad = self.state[parameter], parameter.grad
                if not state:
                    state.update(step=0, mean=torch.zeros_like(grad), square=torch.zeros_like(grad))
                state["step"] += 1
                state["mean"].mul_(first).add_((1 - first) * grad)
                state["square"].mul_(second).add_((1 - second) * grad * grad)
                size = group["lr"] * (1 - second ** state["step"]) ** 0.5 / (1 - first ** state["step"])
                parameter.sub_(size * state["mean"] / (state["square"].sqrt() + eps))


def policy_arguments(case: Case) -> dict[str, Any]:
    config = case["config"]
    return {
        "observation_space": spaces.Box(-np.inf, np.inf, (config["obs_dim"],)),
        "action_space": spaces.Box(-1, 1, (config["act_dim"],)),
        "lr_schedule": lambda _: config["lr"],
        "net_arch": {"pi": [*config["widths"][:-1], config["feature_dim"]], "qf": config["widths"]},
        "optimizer_class": OldAdam,
    }


def constants(case: Case) -> dict[str, Any]:
    config = case["config"]
    own = {"gamma": config["gamma"], "tau": config["tau"], "max_grad_norm": config["grad_clip_norm"]}
    return {**own, "policy_delay": config["policy_freq"], "target_policy_noise": 1.0, "policy_first": True}


def check_losses(case: Case, losses: list[dict[str, Any]]) -> None:
    expected = case.array("mean_losses")
    for name, theirs in (("actor_loss", expected[0]), ("critic_loss", expected[1]), ("pevfa_loss", expected[2])):
        ours = [float(each[name].detach()) for each in losses if name in each]
        n = len(ours) + (name == "pevfa_loss")  # their list begins with a zero
        near = BF16_VALUES * max(1.0, abs(theirs)) if case.is_bf16 else case["atol"] + case["rtol"] * abs(theirs)
        assert sum(ours) / n == pytest.approx(theirs, abs=near), name


def joint_gradients(case: Case, learner: SharedTD3Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``"joint"`` encoder and head get the gradients of one pass, before either steps; whole vectors, to 1e-4."""
    actor, limit, step = learner.policy.actor, learner.settings.max_grad_norm or torch.inf, learner._policy_step

    def checked(batch: ReplayBufferSamples, population: Heads, which: Tensor) -> dict[str, Tensor]:
        features = actor.encode(batch.observations)
        loss = learner._rl_loss(batch, torch.tanh(actor.head(features)))
        loss = loss + learner._pevfa_terms(batch, features, population, which)  # a constant for the learner's head
        expected = iter(torch.autograd.grad(loss, [*learner._head, *learner._encoder]))
        losses = step(batch, population, which)
        for parameters in (learner._head, learner._encoder):
            grads = ((p.grad.reshape(-1), next(expected).reshape(-1)) for p in parameters)  # type: ignore[union-attr]
            used, plain = (torch.cat(each) for each in zip(*grads, strict=True))
            plain *= min(1.0, limit / float(plain.norm()))
            assert_near(used, plain, plain.norm(), BF16_VALUES if case.is_bf16 else 1e-4)
        return losses

    monkeypatch.setattr(learner, "_policy_step", checked)


class SharedTraining:
    """
    The training of a case with one of the orders of head and encoder step.

    :param names: tensors after it, by their official names
    :param start: before it
    :param first: after the first iteration
    :param losses: of each iteration
    """

    def __init__(self, case: Case, encoder_step: EncoderStep, monkeypatch: pytest.MonkeyPatch):
        config = case["config"]
        individuals = [case.under(f"init/individual{i}.w_out.") for i in range(config["pop_size"])]
        population = Heads(*(torch.stack([each[name].float() for each in individuals]) for name in ("weight", "bias")))
        before = [part.clone() for part in population]
        width = config["policy_representation"]
        policy = ERLRe2Policy(**policy_arguments(case), policy_embedding_dim=width, pevfa_layout="flat")
        self.names = shared_names(policy)
        load(self.names, case)
        self.start, self.first = read(self.names), dict[str, Tensor]()
        learner = SharedTD3Learner(policy, SharedSettings(**constants(case), encoder_step=encoder_step))
        if encoder_step == "joint":
            joint_gradients(case, learner, monkeypatch)
        picks, noises, self.losses = iter(case.array("actor_picks")), case.tensor("policy_noise").float(), []
        for index in range(config["iterations"]):
            on_policy_step = index % config["policy_freq"] == 0
            td_heads, shared = [next(picks)], [next(picks)] if on_policy_step else []
            batch = batch_of(case, index)
            self.losses.append(learner.iterate(batch, noises[index], population, td_heads, shared, on_policy_step))
            self.first = self.first or read(self.names)
        assert next(picks, None) is None
        assert all(torch.equal(part, old) for part, old in zip(population, before, strict=True))


def check_train_shared(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The order that the authors' code computed on its torch reaches the numbers; ours shares with it what does not depend on it.

    Both gradients differ a little, and Adam makes a full step of a gradient near zero whatever its sign.
    """
    released, ours = (SharedTraining(case, order, monkeypatch) for order in ("torch11", "joint"))
    check_final(case, released.names, released.start)
    check_losses(case, released.losses)
    assert set(ours.losses[0]) == set(released.losses[0])
    for name in set(ours.losses[0]) - {"encoder_loss"}:
        case.close(ours.losses[0][name], released.losses[0][name].detach())
    final = read(ours.names), read(released.names), released.start
    for network in {name.partition(".")[0] for name in released.first} - {"embedding", "embedding_target"}:
        actual, expected = ({k: v for k, v in each.first.items() if k.startswith(f"{network}.")} for each in (ours, released))
        case.network_close(actual, expected, released.start)
        assert_moved_alike(*({k: tensors[k] for k in expected} for tensors in final))


def check_train_exp(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = EvoRainbowPolicy(**policy_arguments(case))
    names = private_names(policy)
    load(names, case)
    start, losses = read(names), list[dict[str, Any]]()
    learner = TD3Learner(policy, LearnerSettings(**constants(case)))
    noises, steps = iter(case.tensor("policy_noise").float()), learner._steps
    clip = learner.settings.target_noise_clip
    monkeypatch.setattr(learner, "_smoothing_noise", lambda _: next(noises).clamp(-clip, clip))

    def counted(*args: Any, **kwargs: Any) -> dict[str, Any]:
        losses.append(steps(*args, **kwargs))
        return losses[-1]

    monkeypatch.setattr(learner, "_steps", counted)
    batches = iter([batch_of(case, index) for index in range(case["config"]["iterations"])])
    learner.update(lambda: next(batches), case["config"]["iterations"])
    check_final(case, names, start)
    check_losses(case, losses)
