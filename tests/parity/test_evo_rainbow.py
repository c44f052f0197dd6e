"""EvoRainbow and EvoRainbow-Exp against numbers from the authors' code (kinds as documented with the reference cases)."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor

from sb3_erl import EvoRainbow
from sb3_erl.algorithms import evo_rainbow
from sb3_erl.core.parameters import write_parameters
from sb3_erl.core.seeding import Stream
from sb3_erl.engine.generation import run_generation
from sb3_erl.evolution.cem import DiagonalCEM
from sb3_erl.evolution.fitness.surrogate import h_step_value, surrogate_fitness
from sb3_erl.learners.base import LearnerSettings
from sb3_erl.learners.erl_re2 import Heads, SharedSettings, SharedTD3Learner
from sb3_erl.learners.td3 import TD3Learner
from sb3_erl.policies.erl_re2 import ERLRe2Policy
from sb3_erl.policies.evo_rainbow import EvoRainbowPolicy
from sb3_erl.rollouts.jobs import Episode, EpisodeBatch, EpisodeRecord, Job
from tests.parity.cases import BF16_VALUES, Case, dispatch, snapshot
from tests.parity.test_erl_re2 import linear_names, norm_names, official_names, tower_names

SYSTEM = "evo_rainbow"


# ------------------------------------------------------------------ whole generations with given rollouts


class Recorded:
    """A generator whose standard normal numbers are those of the case."""

    def __init__(self, noise: np.ndarray):
        self.noise = noise

    def standard_normal(self, *, out: np.ndarray) -> np.ndarray:
        assert out.shape == self.noise.shape
        out[:] = self.noise
        return out


def replayed_model(case: Case) -> Any:
    """A model whose individuals have as many parameters as those of the case: a linear head, or a linear actor."""
    config, n_params = case["config"], case.array("mu").shape[1]
    is_whole = "whole" in config["evolved"]
    env = gym.make("Pendulum-v1")
    if is_whole:
        env = gym.wrappers.TransformObservation(env, lambda obs: obs, spaces.Box(-1, 1, (n_params - 1,), np.float32))
    return EvoRainbow(
        "MlpPolicy",
        env,
        architecture="private" if is_whole else "shared",
        learning_starts=int((~case.array("evolution_active")).sum()),
        pop_size=config["pop_size"],
        surrogate_prob=1 - config["theta"],
        ea_tau=config["EA_tau"],
        sync_period=config["sync_period"],
        sigma_init=config["sigma_init"],
        damp=config["damp"],
        damp_limit=config["damp_limit"],
        damp_tau=config["damp_tau"],
        tell_during_warmup=True,
        evolver_kwargs={"n_parents": config["parents"], "antithetic": config["antithetic"]},
        policy_kwargs={"net_arch": {"pi": [] if is_whole else [n_params - 1], "qf": [4]}},
    )


class Replay:
    """Runs the generations of a case in the model's own order, with its rollouts and updates replaced by given numbers."""

    def __init__(self, case: Case, monkeypatch: pytest.MonkeyPatch):
        self.case, self.model, self.number = case, replayed_model(case), 0
        model = self.model
        model.set_logger(Logger(None, []))
        model.evolver.mean.copy_(case.tensor("mu_init"))
        self.write("actor_before", "target_before")
        plain = model.run.rng
        noise = lambda stream: Recorded(self.array("noise")) if stream is Stream.EVOLUTION else plain(stream)  # noqa: E731
        monkeypatch.setattr(model.run, "rng", noise)
        monkeypatch.setattr(model, "_fitness_draw", lambda: float(self.array("theta_draw")))
        monkeypatch.setattr(model.rollouts, "run", self.run)
        monkeypatch.setattr(model, "train", lambda *_: self.write("actor_after_training", "target_after_training"))
        monkeypatch.setattr(evo_rainbow, "surrogate_fitness", lambda *_: self.array("bootstrapped"))
        steps = [
            ("tell", self.check_distribution),
            ("soft_update", self.check_soft_update),
            ("exchange", self.check_injection),
        ]
        model.extra_steps = [Step(after, check) for after, check in steps]

    def array(self, name: str) -> np.ndarray:
        return self.case.array(name)[self.number]

    def write(self, actor: str, target: str) -> None:
        for network, name in ((self.model.policy.actor, actor), (self.model.policy.actor_target, target)):
            write_parameters(torch.as_tensor(self.array(name)), self.model.population.representation.own_part(network))

    def read(self, network: Any) -> Tensor:
        return self.model.population.representation.read(network)

    def run(self, jobs: list[Job], *_: Any, **__: Any) -> EpisodeBatch:
        rewards = [0.0] if jobs[0].candidate == self.model.pop_size else self.array("returns")
        self.model.n_learner_steps += jobs[0].candidate == self.model.pop_size
        assert self.array("evolution_active") or len(jobs) == 1
        episodes = [Episode.from_rewards(job, np.array([r]), True, False) for job, r in zip(jobs, rewards, strict=True)]
        return EpisodeBatch(tuple(episodes), len(jobs))

    def check_distribution(self, generation: Any) -> None:
        case, evolver = self.case, self.model.evolver
        case.close(generation.asked, self.array("solutions"))
        if self.array("evolution_active"):
            case.close(generation.fitness, self.array("fitness"))
            assert int(np.argmax(generation.fitness)) == self.array("best_index")
        for ours, theirs in ((evolver.mean, "mu"), (evolver.variance, "cov"), (evolver.damping, "damp")):
            case.close(ours, self.array(theirs))
        case.close(evolver.weights, case.array("weights"))

    def check_soft_update(self, generation: Any) -> None:
        case, tau, best = self.case, self.case["config"]["EA_tau"], int(self.array("best_index"))
        injected_before = self.number > 0 and case.array("injected_slot")[self.number - 1] >= 0
        for name, network in (("actor", self.model.policy.actor), ("target", self.model.policy.actor_target)):
            before, after = self.array(f"{name}_before"), self.array(f"{name}_after_soft_update")
            if best == self.array("rl_slot_before") and not injected_before and self.array("evolution_active"):
                np.testing.assert_array_equal(after, before)  # the official slot is stale; ours holds no learner by now
                after = tau * self.array("solutions")[best] + (1 - tau) * before
            case.close(self.read(network), after)

    def check_injection(self, generation: Any) -> None:
        slot = self.model._injected_slot
        assert (-1 if slot is None else slot) == self.array("injected_slot")
        self.case.close(self.read(self.model.policy.actor), self.array("actor_after_training"))


class Step:
    """A step of a generation that checks what the verb before it has done."""

    def __init__(self, after: str, check: Any):
        self.after, self.check = after, check

    def __call__(self, model: Any, generation: Any) -> None:
        self.check(generation)


def check_generations(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    replay = Replay(case, monkeypatch)
    for number in range(case["config"]["generations"]):
        replay.number = number
        assert run_generation(replay.model, None)  # type: ignore[arg-type]
        replay.model.n_generations += 1
    assert replay.model.n_evaluations == case.array("evolution_active").sum()


# ------------------------------------------------------------------ fitness from partial rollouts


def fitness_of(entry: dict[str, Any], rewards: np.ndarray, q: float, gamma: float, terminated: bool) -> float:
    """Our fitness of one rollout with a value function of a given output."""
    record = EpisodeRecord(rewards)
    episode = Episode.from_rewards(Job(0), rewards, terminated, not terminated, np.zeros(1), record=record)
    kinds = {"critic Q1": "h_step_critic", "population value function Q1": "h_step_pevfa", "none": "truncated_return"}

    def value(observation: Any, *_: Any, pessimistic: bool) -> float:
        assert not pessimistic  # the first head, not the smaller one
        return q

    learner = SimpleNamespace(value=value, bootstrap=value)
    agent = SimpleNamespace(
        obs_to_tensor=lambda obs: (torch.as_tensor(obs), True), _predict=lambda *_, **__: None, head=torch.nn.Linear(1, 1)
    )
    surrogate: Any = kinds[entry.get("value_function", "critic Q1")]
    return float(surrogate_fitness(surrogate, EpisodeBatch((episode,), len(rewards)), gamma, learner, [agent])[0])


def check_h_step_fitness(case: Case, _: Any) -> None:
    for index, entry in enumerate(case["config"]["cases"]):
        rewards, q = case.array(f"c{index}_rewards"), float(case.array(f"c{index}_q"))
        horizon = max(1, entry["H"])  # the official 0 acts like 1, which is the least that ours takes
        n = min(len(rewards), horizon)
        assert n == case.array(f"c{index}_steps_used")
        # the official code bootstraps a terminal exactly at step H; ours does not, so that case is played as a cut
        ours = fitness_of(entry, rewards[:n], q, entry["gamma"], terminated=n < horizon)
        case.close(ours, case.array(f"c{index}_fitness"))
        case.close(rewards[:n].sum(), case.array(f"c{index}_partial_return"))
        if entry["episode_length"] == horizon and entry["value_function"] != "none":
            masked = fitness_of(entry, rewards[:n], q, entry["gamma"], terminated=True)
            assert masked == pytest.approx(ours - entry["gamma"] ** n * q)


def check_h_step_fitness_metaworld(case: Case, _: Any) -> None:
    """The released variant discounts each reward once more than ours; the value at the end has the same exponent."""
    gamma = case["config"]["gamma"]
    for index, entry in enumerate(case["config"]["cases"]):
        rewards, q = case.array(f"c{index}_rewards"), float(case.array(f"c{index}_q"))
        n = min(len(rewards), entry["H"])
        assert n == case.array(f"c{index}_steps_used")
        discounted = fitness_of(entry, rewards[:n], q, gamma, terminated=True)
        whole = fitness_of(entry, rewards[:n], q, gamma, terminated=n < entry["H"])
        case.close(gamma * discounted + (whole - discounted), case.array(f"c{index}_fitness"))


# ------------------------------------------------------------------ training


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


def check_train_shared(case: Case, _: Any) -> None:
    config = case["config"]
    individuals = [case.under(f"init/individual{i}.w_out.") for i in range(config["pop_size"])]
    population = Heads(*(torch.stack([each[name] for each in individuals]) for name in ("weight", "bias")))
    before = population.weight.clone(), population.bias.clone()
    for encoder_step in ("joint", "torch11"):  # ours, and what the authors' code computed on its torch
        policy = ERLRe2Policy(
            **policy_arguments(case),
            policy_embedding_dim=config["policy_representation"],
            pevfa_layout="flat",
        )
        names = shared_names(policy)
        load(names, case)
        start, picks, losses = read(names), iter(case.array("actor_picks")), []
        learner = SharedTD3Learner(policy, SharedSettings(**constants(case), encoder_step=encoder_step))  # type: ignore[arg-type]
        for index in range(config["iterations"]):
            on_policy_step = index % config["policy_freq"] == 0
            td_heads, shared = [next(picks)], [next(picks)] if on_policy_step else []
            noise = case.tensor("policy_noise")[index].float()
            losses.append(learner.iterate(batch_of(case, index), noise, population, td_heads, shared, on_policy_step))
        assert next(picks, None) is None
        check_final(case, names, start)
        check_losses(case, losses)
    assert torch.equal(population.weight, before[0]) and torch.equal(population.bias, before[1])


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


# ------------------------------------------------------------------ the blind warm-up


def check_blind_warmup(case: Case, _: Any) -> None:
    """Informative: how far the distribution wanders if it is told zeros, which ours is only if asked to."""
    config = case["config"]
    for index, entry in enumerate(config["cases"]):
        cem = DiagonalCEM(
            torch.zeros(config["dims"]), config["pop_size"], config["parents"], damping_init=entry["damp"], antithetic=False
        )
        rng = np.random.default_rng(0)
        for _generation in range(entry["blind_generations"]):
            cem.tell(cem.ask(rng), np.zeros(config["pop_size"]))
        spread, std, damping = case.array(f"c{index}_mean_std__sample_std__damp")[-1]
        assert float(cem.damping) == pytest.approx(damping)
        assert float(cem.variance.sqrt().mean()) == pytest.approx(std, rel=case["rtol"])
        assert float(cem.mean.std()) == pytest.approx(spread, rel=case["rtol"])


CHECKS = {
    "generations": check_generations,
    "h_step_fitness": check_h_step_fitness,
    "h_step_fitness_metaworld": check_h_step_fitness_metaworld,
    "train_shared": check_train_shared,
    "train_exp": check_train_exp,
    "blind_warmup": check_blind_warmup,
}


def kind_of(case: Case) -> str:
    """The kind of a case; other sizes and seeds of one have its name with a suffix, or the same arrays."""
    arrays, names = case.arrays, [case["case"], case.name]
    if "actor_after_soft_update" in arrays:
        return "generations"
    if "init/embedding.w_l1.weight" in arrays:
        return "train_shared"
    if "init/actor.state_embedding.w_l1.weight" in arrays:
        return "train_exp"
    if "c0_fitness" in arrays:
        return "h_step_fitness" if "value_function" in case["config"]["cases"][0] else "h_step_fitness_metaworld"
    return "blind_warmup" if any("warmup" in name for name in names) else names[0]


def test_case(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatch(case, kind_of(case), {kind: lambda case, check=check: check(case, monkeypatch) for kind, check in CHECKS.items()})


def test_values_are_those_of_the_first_head() -> None:
    """The bootstrap of a partial rollout is not discounted or masked by accident: a value of 0 leaves the rewards alone."""
    rewards = np.array([1.0, 2.0])
    episode = Episode.from_rewards(Job(0), rewards, False, True, np.zeros(1), record=EpisodeRecord(rewards))
    batch = EpisodeBatch((episode,), 2)
    assert h_step_value(batch, 1, 0.5, lambda *_: 4.0)[0] == 1.0 + 0.5 * 2.0 + 0.25 * 4.0
