"""A rule of one's own: five critics, the smaller of two drawn at random as target, their mean for the actor (REDQ)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3 import SAC
from torch import Tensor

from sb3_erl import ALGOS
from sb3_erl.compiled import programs
from sb3_erl.core.parameters import read_parameters
from sb3_erl.learners.base import LearnerSettings
from sb3_erl.learners.choice import learner_spec
from sb3_erl.learners.dqn import DQNLearner
from sb3_erl.learners.td3 import TD3Learner
from sb3_erl.learners.td7 import TD7Learner
from sb3_erl.learners.td_rule import DDPGRule, TD3Rule, TD7Rule, TDRule
from tests.contract.settings import make


class Ensemble(TDRule):
    """Chen et al. (2021), https://arxiv.org/abs/2101.05982."""

    n_critics = 5
    actor_towers = None
    use_graphs = False
    learning_rates = (2e-3, 3e-3)

    def target(self, next_values: Tensor) -> Tensor:
        which = torch.randperm(len(next_values), device=next_values.device)[:2]
        return next_values[which].amin(dim=0)

    def actor_value(self, values: Tensor) -> Tensor:
        return values.mean(dim=0)


class PessimisticRule(TD7Rule):
    """The actor maximizes the smaller value."""

    def actor_value(self, values: Tensor) -> Tensor:
        return values.amin(dim=0)


class PessimisticTD7(TD7Learner):
    """TD7 with a rule of one's own."""

    rule_class = PessimisticRule


NAMES = ["erl", "pderl", "cem_rl", "cerl", "erl_re2"]
BY_NAME = "tests.unit.test_td_rule:Ensemble"


def learner_of(model: Any) -> Any:
    return getattr(model.learner, "members", [model.learner])[0]


def critic_after_training(name: str, **arguments: Any) -> tuple[Any, Tensor]:
    model = make(name, learner=Ensemble, **arguments)
    before = read_parameters(model.critic)
    model.learn(250)
    moved = read_parameters(model.critic) - before
    assert model._n_updates > 0 and moved.isfinite().all()
    return model, moved


@pytest.mark.parametrize("name", NAMES)
def test_trains_everywhere(name: str) -> None:
    model, moved = critic_after_training(name)
    assert model.critic.n_critics == 5
    towers = [moved.reshape(-1)[part].abs().sum() for part in tower_slices(model.critic)]
    assert len(towers) == 5 and all(tower > 0 for tower in towers)


def tower_slices(critic: Any) -> list[Tensor]:
    """Places in the flat vector of what belongs to each tower: first axes of length 5."""
    owner = torch.cat(
        [
            torch.arange(5).reshape(-1, *[1] * (p.dim() - 1)).expand(p.shape).reshape(-1)
            if p.shape[0] == 5
            else torch.full((p.numel(),), -1)
            for p in critic.parameters()
        ]
    )
    return [torch.nonzero(owner == tower)[:, 0] for tower in range(5)]


@pytest.mark.parametrize("name", NAMES)
def test_trains_compiled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``aot_eager`` walks through the compiler without generating code, which would take minutes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(programs, "inductor", lambda graph, inputs: graph)
    _, eager = critic_after_training(name)
    _, compiled = critic_after_training(name, compile=True)
    assert (compiled - eager).norm() <= 0.02 * eager.norm()


def test_actor_loss_is_the_mean_of_all_critics() -> None:
    model = make("cem_rl", learner=Ensemble).learn(60)
    learner, batch = model.learner, model.replay_buffer.sample(16)
    actor = dict(model.actor.named_parameters())
    values = model.critic(batch.observations, model.actor(batch.observations))
    loss = learner.individual_loss(actor, learner.critic_snapshot(), batch.observations)
    assert values.shape == (5, 16, 1)
    assert loss.item() == pytest.approx(-values.mean().item(), rel=1e-5)
    assert learner._actor_loss(batch).item() == pytest.approx(-values.mean().item(), rel=1e-5)


def test_own_rates_and_constants_are_used() -> None:
    for name in NAMES:
        model = make(name, learner=Ensemble).learn(120)
        rates = {key: each.param_groups[0]["lr"] for key, each in learner_of(model).optimizers.items()}
        wanted = {key: 2e-3 if key.startswith("actor") else 3e-3 for key in rates}
        assert rates == wanted if name != "cem_rl" else rates["critic.optimizer"] == 3e-3


@pytest.mark.parametrize(("name", "learner"), [("erl", "ddpg"), ("pderl", "td3"), ("cem_rl", "td7"), ("cerl", "td3")])
def test_number_of_critics_is_an_argument(name: str, learner: str) -> None:
    model = make(name, learner=learner, learner_kwargs={"n_critics": 3}).learn(120)
    assert model.critic.n_critics == 3 and model._n_updates > 0


@pytest.mark.parametrize("learner", [Ensemble, BY_NAME, PessimisticTD7])
def test_is_saved_and_loaded(learner: Any, tmp_path: Path) -> None:
    model = make("erl", learner=learner, learner_kwargs={"n_critics": 4}).learn(100)
    model.save(tmp_path / "model")
    loaded = ALGOS["erl"].load(tmp_path / "model", device="cpu")
    assert loaded.learner_class == learner
    assert torch.equal(read_parameters(loaded.critic), read_parameters(model.critic))
    assert type(loaded.learner.rule) is type(model.learner.rule)


def test_choice_by_key_name_class_and_object() -> None:
    for choice in ("td3", TD3Rule, TD3Rule(), "sb3_erl.learners.td_rule:TD3Rule"):
        spec = learner_spec(choice)
        assert spec.learner_class is TD3Learner and type(spec.rule) is TD3Rule and spec.n_critics == 2
    assert learner_spec("ddpg").learning_rates == (5e-5, 5e-4)
    assert learner_spec("ddpg", learning_rates={DDPGRule: (1.0, 2.0)}).learning_rates == (1.0, 2.0)
    assert learner_spec("dqn").learner_class is DQNLearner
    assert learner_spec("td7", {"n_critics": 7, "bc_coef": 1.0}).policy_arguments == {"n_critics": 7}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("erl", {"learner": object()}, "learner must be one of .*'td3'.*TDRule.*got <object"),
        ("erl", {"learner": LearnerSettings}, "learner must be one of .*LearnerSettings"),
        ("erl", {"learner": "dqn"}, "learner must be one for actions of a Box space; got DQNLearner"),
        ("erl", {"learner_kwargs": {"n_critics": 0}}, "n_critics must be"),
        ("erl", {"learner_kwargs": {"policy_dealy": 3}}, "learner_kwargs must be constants of TD3Learner.*got .*policy_dealy"),
        ("cem_rl", {"learner": SAC}, "learner must be one whose critic serves many actors.*SAC.*critic_update"),
        ("cem_rl", {"learner": "dqn"}, "learner must be one whose critic serves many actors.*'dqn'.*critic_update.*use ERL"),
        ("erl", {"learner": "sac", "learner_kwargs": {"use_sde": True}}, "SACLearner.*use_sde.*stable_baselines3:SAC"),
        ("erl_re2", {"learner": "sac"}, "learner must be a TDRule.*TD7Learner.*'sac'"),
    ],
)
def test_wrong_choices(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(name, **arguments)
