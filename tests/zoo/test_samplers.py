"""Search spaces for ``-optimize``: what is sampled fits the constructor, and a study gives back the same arguments."""

from __future__ import annotations

import inspect
import types
from typing import Any

import gymnasium as gym
import optuna
import pytest

from sb3_erl import ALGOS
from sb3_erl.zoo import module_ready
from sb3_erl.zoo.samplers import (
    PORTFOLIOS,
    SPACES,
    Choice,
    _argument,
    convert,
    rollouts,
    sampler,
    space,
    with_parts,
    with_rollouts,
)

ADDITIONAL = {"using_her_replay_buffer": False, "her_kwargs": {}}


def trials(algo: str, number: int, seed: int = 0, n_envs: int = 1) -> list[tuple[dict[str, Any], optuna.trial.FrozenTrial]]:
    """Arguments sampled for a few trials, and these trials as a study remembers them."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    sampled = []
    for _ in range(number):
        trial = study.ask()
        sampled.append(sampler(algo, ALGOS[algo])(trial, 1, n_envs, dict(ADDITIONAL)))
        study.tell(trial, 0.0)
    return list(zip(sampled, study.trials, strict=True))


@pytest.mark.parametrize("algo", ALGOS)
def test_sampled_values_are_arguments(algo: str) -> None:
    parameters = inspect.signature(ALGOS[algo]).parameters
    for arguments, _ in trials(algo, 5):
        assert set(arguments) <= set(parameters)
        assert {"policy", "env", "seed", "device", "verbose", "tensorboard_log"}.isdisjoint(arguments)


@pytest.mark.parametrize("algo", ALGOS)
def test_study_gives_back_the_same_arguments(algo: str) -> None:
    for arguments, trial in trials(algo, 5):
        assert convert(trial.params) == arguments


@pytest.mark.parametrize("algo", ALGOS)
def test_report_shows_true_values(algo: str) -> None:
    for arguments, trial in trials(algo, 2):
        for name, value in trial.user_attrs.items():
            assert arguments[name] == value
        assert {"gamma", "gammas", "batch_size"} & set(arguments) <= set(trial.user_attrs)


LEARN_THEMSELVES = [algo for algo in ALGOS if not getattr(ALGOS[algo], "trains_whole_models", False)]
"""Others search the hyper-parameters of learning while they train."""


@pytest.mark.parametrize("algo", LEARN_THEMSELVES)
def test_table_has_an_entry(algo: str) -> None:
    tuned, parameters = {_argument(knob.name) for knob in SPACES[algo]}, inspect.signature(ALGOS[algo]).parameters
    learns = "batch_size" in parameters
    of_learners, of_evolution = {"gamma", "gammas", "learning_rate", "batch_size"}, {"sigma_init", "sigma", "init_output_std"}
    assert tuned >= (of_learners if learns else of_evolution) & set(parameters) > set()


@pytest.mark.parametrize("algo", ["td7", "pop_td7"])
def test_td7_is_not_tuned_by_what_it_does_not_have(algo: str) -> None:
    names = {_argument(knob.name) for knob in SPACES[algo]}
    assert "tau" not in names and {"exploration_noise", "target_update_interval", "late_assessment_episodes"} <= names
    assert ({"pop_size", "explore_fraction"} <= names) == (algo == "pop_td7")


@pytest.mark.parametrize("algo", ALGOS)
def test_class_takes_sampled_values(algo: str) -> None:
    present = inspect.signature(ALGOS[algo]).parameters
    small = {name: size for name, size in {"buffer_size": 100, "noise_table_size": 2_000_000}.items() if name in present}
    for arguments, _ in trials(algo, 3):
        env_id = "Pendulum-v1" if getattr(ALGOS[algo], "takes_continuous_actions", True) else "CartPole-v1"
        model = ALGOS[algo]("MlpPolicy", gym.make(env_id), device="cpu", **{**arguments, **small})
        assert {name: getattr(model, name) for name in arguments} == arguments


@pytest.mark.parametrize("n_envs", [8, 16])
@pytest.mark.parametrize("algo", ALGOS)
def test_generations_have_a_rollout_for_each_environment(algo: str, n_envs: int) -> None:
    names = [knob.name for knob in SPACES[algo]]
    for arguments, trial in trials(algo, 20, n_envs=n_envs):
        assert [*trial.params] == names
        assert rollouts(ALGOS[algo], arguments) >= min(n_envs, rollouts(ALGOS[algo], {}))


@pytest.mark.parametrize("algo", ["cem", "openai_es", "ns_es"])
def test_rollouts_are_those_of_the_model(algo: str) -> None:
    for arguments, _ in trials(algo, 3, seed=1):
        more = {} if algo == "cem" else {"noise_table_size": 2_000_000}
        model = ALGOS[algo]("MlpPolicy", gym.make("Pendulum-v1"), device="cpu", **arguments, **more)
        assert rollouts(ALGOS[algo], arguments) == model.n_rollouts


def test_choices_that_have_enough_rollouts_stay() -> None:
    kept = {knob.name: knob for knob in with_rollouts(SPACES["openai_es"], ALGOS["openai_es"], 8)}
    assert kept["n_pairs"] == Choice("n_pairs", (4, 8, 16, 32))
    assert with_rollouts(SPACES["openai_es"], ALGOS["openai_es"], 5) == SPACES["openai_es"]


def test_table_names_only_registered_algorithms() -> None:
    assert set(SPACES) <= set(ALGOS)


def test_algorithm_without_entry_gets_the_arguments_it_has() -> None:
    class Plain:
        def __init__(self, policy: str, env: str, gamma: float = 0.99, policy_kwargs: dict[str, Any] | None = None): ...

    assert [knob.name for knob in space("plain", Plain)] == ["one_minus_gamma", "net_arch"]


def test_convert() -> None:
    raw = {"one_minus_gamma": 0.25, "batch_size_pow": 5, "net_arch": "big", "elite_fraction": 0.3}
    expected = {"gamma": 0.75, "batch_size": 32, "policy_kwargs": {"net_arch": [400, 300]}, "elite_fraction": 0.3}
    assert convert(raw) == expected
    convert(raw)["policy_kwargs"]["net_arch"].append(1)
    assert convert(raw) == expected, "two trials share no list"


def test_module_ready_refuses_other_modules() -> None:
    with pytest.raises(ValueError, match="name must be one of"):
        module_ready("rl_zoo3.train", types.ModuleType("rl_zoo3.train"))


def test_knobs_of_an_evolver_go_with_it() -> None:
    names = {knob.name for knob in SPACES["erl"]}
    left = {knob.name for knob in with_parts(SPACES["erl"], {"evolver": "cem"})}
    assert left < names and names - left == {
        name
        for name in names
        if _argument(name) in {"elite_fraction", "mutation_prob", "crossover_prob", "tournament_size", "mutation", "crossover"}
    }
    assert with_parts(SPACES["erl"], {}) == with_parts(SPACES["erl"], {"evolver": "ga"}) == tuple(SPACES["erl"])
    own = {knob.name for knob in with_parts(SPACES["cem"], {"evolver": "ga"})}
    assert own.isdisjoint({"sigma_init", "elitism"}) and own


def test_a_portfolio_is_as_long_as_the_list_of_learners() -> None:
    def portfolios(learner: Any) -> Any:
        found = [knob.choices for knob in with_parts(SPACES["cerl"], {"learner": learner}) if knob.name == "portfolio"]
        return found[0] if found else None

    for name, gammas in PORTFOLIOS.items():
        assert name in portfolios(["td3"] * len(gammas))
    assert portfolios("td3") == tuple(PORTFOLIOS) and portfolios(["td3"] * 17) is None
    assert {len(PORTFOLIOS[name]) for name in portfolios(["td3"] * 4)} == {4}
