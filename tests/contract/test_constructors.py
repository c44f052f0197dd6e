"""How classes take their arguments and what they are called: faults of the first version that must not come back."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.logger import Logger

from sb3_erl import ALGOS, CEM, CEMRL, ERL
from sb3_erl.core.arguments import inherits_arguments
from sb3_erl.engine.hybrid import HybridAlgorithm
from sb3_erl.evolution.cem import DiagonalCEM
from tests.contract.settings import GENERATIONAL, HYBRIDS, NAMES, fast, make
from tests.envs import toy_vec_env


class Counted(ERL):
    """A user's class that hands on whatever it is given."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.n_made = 1
        super().__init__(*args, **kwargs)


class Named(Counted):
    """A user's class beyond one that takes anything."""

    @inherits_arguments(pop_size=3)
    def __init__(self, policy: Any = "MlpPolicy", env: Any = None, learning_rate: Any = None, title: str = "", **kwargs: Any):
        self.title = title
        super().__init__(policy, env, learning_rate, **kwargs)


def test_arguments_pass_classes_that_take_anything() -> None:
    model = Named("MlpPolicy", toy_vec_env(), title="x", learning_starts=77, policy_kwargs={"net_arch": [8]})
    assert (model.title, model.pop_size, model.learning_starts, model.n_made) == ("x", 3, 77, 1)
    assert {"title", "gamma", "tournament_size", "device"} <= set(inspect.signature(Named).parameters)


@pytest.mark.parametrize("name", list(ALGOS))
def test_unknown_arguments_are_named(name: str) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'learning_raet'") as error:
        ALGOS[name]("MlpPolicy", toy_vec_env(), learning_raet=1)
    if "__init__" in vars(ALGOS[name]):
        assert str(error.value).startswith(ALGOS[name].__name__) and "did you mean 'learning_rate'?" in str(error.value)


def test_parts_have_the_names_of_the_arguments_that_choose_them() -> None:
    model = make("erl", learner="td3", fitness="discounted_return")
    assert (model.learner_class, model.evolver_class, model.exchange_class) == ("td3", "ga", "replace_weakest")
    assert model.fitness_class == "discounted_return"
    assert type(model.learner).__name__ == "TD3Learner" and type(model.evolver).__name__ == "GA"
    assert CEM.__name__ != DiagonalCEM.__name__
    cem = make("cem", sigma_init=0.25)
    assert np.allclose(cem.evolver.variance, 0.25), "sigma_init is a variance"


@pytest.mark.parametrize("name", [name for name in HYBRIDS if name in GENERATIONAL])
def test_individuals_are_made_in_one_place(name: str) -> None:
    assert ALGOS[name].individual is HybridAlgorithm.individual
    model = make(name)
    assert all(model.is_of_population(job) == (job.candidate < model.pop_size) for job in _jobs(model))


def _jobs(model: Any) -> Any:
    return model._plan_rollouts(model.evolver.ask(np.random.default_rng(0)))[0]


def test_cem_rl_tells_and_trains() -> None:
    """Its evolver is told of a generation by the verb ``tell``, and ``train`` makes critic steps on the mean."""
    model: Any = CEMRL("MlpPolicy", toy_vec_env(), **fast("cem_rl"))
    told, tell = [], model._tell
    model._tell = lambda generation: (told.append(generation), tell(generation))[1]  # type: ignore[func-returns-value]
    shares: list[float] = []
    record = Logger.record

    def keep(self: Logger, key: str, value: Any, exclude: Any = None) -> None:
        if key == "population/gradient_parents_share":
            shares.append(value)
        record(self, key, value, exclude)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Logger, "record", keep)
        model.learn(200)
    assert [generation.number for generation in told] == list(range(1, model.n_generations + 1)) and len(told) > 2
    parents = [np.argsort(-generation.fitness)[: model.evolver.n_parents] for generation in told]
    assert shares == [np.mean(rows < model.pop_size // 2) for rows in parents] and len(set(shares)) > 1
    before, n_updates = [p.clone() for p in model.critic.parameters()], model._n_updates
    model.train(3)
    assert model._n_updates == n_updates + 3
    assert any(not np.array_equal(a.detach(), b.detach()) for a, b in zip(before, model.critic.parameters(), strict=True))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in HYBRIDS])
def test_widths_of_an_actor_in_a_dict(name: str) -> None:
    """SB3's form for an actor and a critic; pure evolution has no critic."""
    shapes = []
    for net_arch in ([7], {"pi": [7], "qf": [9]}):
        model = make(name, policy_kwargs={"net_arch": net_arch})
        shapes.append([tuple(parameter.shape) for parameter in model.policy.deployed.parameters()])
    assert shapes[0] == shapes[1]
    with pytest.raises(ValueError, match="net_arch must be a list, or a dict with the key 'pi'"):
        make(name, policy_kwargs={"net_arch": {"qf": [9]}})
