"""What models say of parts that do not fit, and what they do with objects that several of them are given."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.noise import NormalActionNoise

from sb3_erl import CEM, CEMRL, ERL, Evolver, Fitness, OpenAIES, every, register
from sb3_erl.engine.replace import ReplaceWeakest
from sb3_erl.envs import BehaviorWrapper
from sb3_erl.envs.minatar import MinAtar
from sb3_erl.evolution.cem import DiagonalCEM
from sb3_erl.evolution.fitness.parts import Novelty
from sb3_erl.testing import _kind_of, check_part
from tests.contract.settings import make
from tests.envs import toy_vec_env


class OwnSize(DiagonalCEM):
    """Has a number of individuals of its own, as CMA-ES usually does."""

    def __init__(self, mean: th.Tensor, pop_size: int, **kwargs: Any):
        super().__init__(mean, 7, **kwargs)


@pytest.mark.parametrize("cls", [ERL, CEMRL, CEM, OpenAIES])
def test_an_evolver_has_as_many_individuals_as_the_algorithm(cls: type) -> None:
    size = {"n_pairs": 2} if cls is OpenAIES else {"pop_size": 4}
    with pytest.raises(ValueError, match=r"evolver must have 4 individuals of \d+ parameters.*OwnSize has 7 of \d+.*Give"):
        cls("MlpPolicy", toy_vec_env(), evolver=OwnSize, **size)


def test_an_evolver_has_the_parameters_of_the_networks() -> None:
    with pytest.raises(ValueError, match=r"evolver must have 4 individuals of \d+ parameters.*DiagonalCEM has 4 of 3\."):
        ERL("MlpPolicy", toy_vec_env(), evolver=DiagonalCEM(th.zeros(3), 4), pop_size=4)


def test_arguments_beside_objects_are_refused() -> None:
    model = make("erl", evolver="cem", pop_size=4)
    same = DiagonalCEM(th.zeros(model.evolver.n_params), 4)
    with pytest.raises(ValueError, match=r"evolver_kwargs must be empty where evolver is an object.*'nonsense'"):
        make("erl", evolver=same, pop_size=4, evolver_kwargs={"nonsense": 1})
    with pytest.raises(ValueError, match=r"exchange_kwargs must be empty where exchange is an object.*sync_period"):
        make("erl", exchange=ReplaceWeakest(sync_period=2), exchange_kwargs={"sync_period": 3})


class Plain(Evolver):
    """As the pages have it: two methods."""

    def ask(self, rng: np.random.Generator) -> th.Tensor:
        return self.candidates.clone()

    def tell(self, candidates: th.Tensor, fitness: np.ndarray, rng: np.random.Generator) -> None:
        self.candidates.copy_(candidates)


@pytest.mark.parametrize("name", ["erl", "cem_rl", "cem"])
def test_an_evolver_of_two_methods(name: str) -> None:
    model = make(name, evolver=Plain, pop_size=4, seed=1)
    model.learn(100)
    assert np.isfinite(model.predict(np.zeros(3, np.float32))[0]).all()


# -------------------------------------------------------------------- operators


def test_a_mutation_must_return_its_children() -> None:
    def jitter(parents: np.ndarray, rng: np.random.Generator) -> Any:
        parents += 0.1

    with pytest.raises(
        TypeError, match=r"mutation=jitter must return an array of the shape of its parents, \(\d+, \d+\).*got None"
    ):
        make("erl", mutation=jitter, seed=1, pop_size=4).learn(200)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda first, second, rng: first, r"must return two stacks of children; got <class 'numpy.ndarray'>"),
        (lambda first, second, rng: (first, None), r"crossover=<lambda> must return an array.*got None"),
        (lambda first, second, rng: (first, second[0]), r"got shape \(\d+,\)"),
    ],
)
def test_a_crossover_must_return_two_stacks(wrong: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make("erl", crossover=wrong, seed=1, pop_size=6, elite_fraction=0.0, crossover_prob=1.0).learn(300)


def test_check_part_sees_a_mutation_that_returns_nothing() -> None:
    with pytest.raises(Exception, match="must return an array of the shape of its parents"):
        check_part(lambda parents, rng: None, kind="mutation")


# -------------------------------------------------------------------- fitness


class Wrong(Fitness):
    """One number too few, in a list."""

    def __call__(self, episodes: Any, context: Any) -> Any:
        return [0.0] * (context.n_candidates - 1)


class InAList(Fitness):
    """What NumPy would take for an array."""

    def __call__(self, episodes: Any, context: Any) -> Any:
        return list(range(context.n_candidates))


@pytest.mark.parametrize("name", ["erl", "cem"])
def test_fitness_is_one_number_per_candidate(name: str) -> None:
    with pytest.raises(ValueError, match=r"fitness=Wrong must return shape \(4,\), one number per candidate; got \(3,\)"):
        make(name, fitness=Wrong, pop_size=4, seed=1).learn(100)
    assert make(name, fitness=InAList, pop_size=4, seed=1).learn(100).num_timesteps >= 100


# -------------------------------------------------------------------- objects of several models


def test_the_state_of_an_object_is_that_of_one_model() -> None:
    novelty = Novelty(k=2)
    first = make("erl", fitness=novelty, seed=3)
    first.learn(120)
    second = make("erl", fitness=novelty, seed=3)
    second.learn(120)
    assert not novelty.archive.entries and first.fitness is not second.fitness
    np.testing.assert_array_equal(first.fitness.archive.entries, second.fitness.archive.entries)
    assert th.equal(first.evolver.candidates, second.evolver.candidates)


class Fading:
    """A mutation whose steps get smaller."""

    def __init__(self, layout: Any = None):
        self.std = 0.1

    def __call__(self, parents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        self.std *= 0.5
        return parents + self.std * rng.standard_normal(parents.shape).astype(parents.dtype)

    def state_dict(self) -> dict[str, Any]:
        return {"std": self.std}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.std = state["std"]


def test_the_state_of_an_operator_is_that_of_one_model() -> None:
    fading = Fading()
    models = [make("erl", mutation=fading, seed=3) for _ in range(2)]
    for model in models:
        model.learn(120)
    assert fading.std == 0.1 and th.equal(models[0].evolver.candidates, models[1].evolver.candidates)


# -------------------------------------------------------------------- steps, kinds, files


class Step:
    """Counts."""

    after = "tell"
    n = 0

    def __call__(self, model: Any, generation: Any) -> None:
        Step.n += 1


@pytest.mark.parametrize("given", [Step, Step(), f"{__name__}:Step", "counting", every(1, Step(), after="tell")])
def test_a_single_step_is_taken_for_a_list(given: Any) -> None:
    if given == "counting":
        register("step", "counting", Step)
    Step.n = 0
    make("erl", generation_steps=given, seed=1).learn(100)
    assert Step.n > 0


def swap(first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> Any:
    return second.copy(), first.copy()


def jitter(parents: np.ndarray, rng: np.random.Generator) -> Any:
    return parents + 0.01 * rng.standard_normal(parents.shape).astype(parents.dtype)


def shorter(episodes: Any, context: Any) -> Any:
    return np.zeros(context.n_candidates)


@pytest.mark.parametrize(("part", "kind"), [(swap, "crossover"), (jitter, "mutation"), (shorter, "fitness")])
def test_the_kind_of_a_function_follows_from_its_arguments(part: Any, kind: str) -> None:
    assert _kind_of(part) == kind
    with pytest.raises(ValueError, match="kind must be given"):
        _kind_of(lambda: None)


class Mine(ERL):
    """A subclass as users write it."""

    def __init__(self, *args: Any, bonus: float = 0.1, **kwargs: Any):
        self.bonus = bonus
        super().__init__(*args, **kwargs)


def test_parts_of_a_loaded_subclass(tmp_path: Path) -> None:
    model = Mine("MlpPolicy", toy_vec_env(), pop_size=4, policy_kwargs={"net_arch": [4]}, buffer_size=1000)
    model.save(tmp_path / "model")
    again = Mine.load(tmp_path / "model", env=toy_vec_env(), fitness="energy", exchange="none")
    assert again.fitness_class == "energy" and again.exchange_class == "none" and again.bonus == 0.1
    with pytest.raises(TypeError, match=r"load\(\) got \['fitnes'\], which Mine does not have"):
        Mine.load(tmp_path / "model", fitnes="energy")


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("erl", {"learner": "sac", "max_grad_norm": 0.5}, r"max_grad_norm=0.5 has no effect with SACLearner: learner_kwargs"),
        ("erl", {"learner": "td7", "tau": 0.5}, r"tau=0.5 has no effect with TD7Learner: .*target_update_interval"),
        (
            "erl",
            {"learner": "stable_baselines3:SAC", "max_grad_norm": 0.5},
            r"max_grad_norm=0.5 has no effect with SB3Learner",
        ),
        ("cem_rl", {"learner": "sac", "max_grad_norm": 0.5}, r"max_grad_norm=0.5 has no effect with SACLearner"),
        ("cem_rl", {"action_noise": NormalActionNoise(np.zeros(2), np.ones(2))}, r"action_noise=.* see n_noisy_episodes"),
    ],
)
def test_arguments_that_nobody_reads_are_named(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        make(name, **given)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("erl", {"learner": "sac"}),
        ("erl", {"learner": "sac", "max_grad_norm": 10.0}),
        ("erl", {"learner": "sac", "max_grad_norm": 0.5, "learner_kwargs": {"max_grad_norm": 0.5}}),
        ("erl", {"learner": "td3", "max_grad_norm": 0.5, "tau": 0.5}),
        ("erl_re2", {"learner": "td7", "tau": 0.5}),
        ("cem_rl", {"action_noise": NormalActionNoise(np.zeros(2), np.ones(2)), "n_noisy_episodes": 1}),
    ],
)
def test_arguments_that_are_read_are_not(name: str, given: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*has no effect.*")
        make(name, **given)


def test_compiling_what_cannot_be_compiled_is_said() -> None:
    model = make("erl", learner="stable_baselines3:SAC", compile=True, seed=1)
    with pytest.warns(UserWarning, match=r"compile=True has no effect with SB3Learner") as caught:
        model.learn(300)
    assert sum("no effect" in str(each.message) for each in caught) == 1 and model._n_updates > 0


class Reusing(gym.Wrapper):
    """Writes into one ``info`` all the time."""

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, _ = self.env.step(action)
        self.own: dict[str, Any] = getattr(self, "own", {"place": np.zeros(1)})
        self.own["place"] += 1
        return observation, reward, terminated, truncated, self.own


def test_a_behavior_sees_each_info_as_it_was() -> None:
    def places(episode: Any) -> np.ndarray:
        return np.array([float(info["place"][0]) for info in episode.infos[1:]])

    env = BehaviorWrapper(Reusing(gym.make("Pendulum-v1", max_episode_steps=4)), behavior=places)
    env.reset(seed=1)
    for _ in range(4):
        *_, info = env.step(env.action_space.sample())
    np.testing.assert_array_equal(info["bc"], [1, 2, 3, 4])


def test_arguments_of_minatar() -> None:
    with pytest.raises(ValueError, match="render_mode"):
        MinAtar("breakout", render_mode="human")
    with pytest.raises(ValueError, match="sticky_action_prob"):
        MinAtar("breakout", sticky_action_prob=1.5)
