"""What cannot work is refused at construction, in a sentence that names argument, value and way out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_erl import ALGOS
from tests.contract.settings import (
    DISCRETE,
    GENERATIONAL,
    HYBRIDS,
    NAMES,
    STEPWISE,
    fast,
    having,
    known,
    make,
    n_rollouts,
    pop_size,
)
from tests.envs import OddSpaces, toy_vec_env

UNBOUNDED = spaces.Box(-np.inf, np.inf, (2,), np.float32)
DICT = spaces.Dict({"a": spaces.Box(-1, 1, (2,), np.float32)})

SPACES: dict[str, tuple[dict[str, spaces.Space], list[str]]] = {
    "discrete": ({"action_space": spaces.Discrete(3)}, ["action", "Discrete(3)", "learner='dqn'"]),
    "multi-discrete": ({"action_space": spaces.MultiDiscrete([2, 2])}, ["action", "MultiDiscrete", "OpenAIES", "Wrapper"]),
    "unbounded": ({"action_space": UNBOUNDED}, ["action_space", "finite", "RescaleAction"]),
    "continuous": ({"action_space": spaces.Box(-1, 1, (2,), np.float32)}, []),
    "dict": ({"observation_space": DICT}, ["policy must be 'MultiInputPolicy'", "'MlpPolicy'", "FlattenObservation"]),
}

VALUES: list[tuple[str, Any]] = [
    ("pop_size", 0),
    ("buffer_size", 0),
    ("batch_size", 0),
    ("learning_starts", -1),
    ("gradient_steps", -2),
    ("n_steps", 0),
    ("tau", 1.5),
    ("gamma", -0.1),
    ("train_freq", (1, "minute")),
    ("train_freq", ("one", "step")),
    ("elite_fraction", 1.5),
    ("elite_fraction", 1.0),
    ("tournament_size", 1),
    ("mutation_prob", 2.0),
    ("crossover_prob", -1.0),
    ("sync_period", 0),
    ("n_migrants", 3),
    ("n_eval_episodes", 0),
    ("n_learner_episodes", 0),
    ("n_noisy_episodes", -1),
    ("n_gradient_actors", 99),
    ("n_parents", 0),
    ("sigma_init", 0.0),
    ("reward_mode", "sparse"),
    ("gammas", (1.5, 0.9)),
    ("gammas", ()),
    ("gammas", 0.99),
    ("rollout_size", 1),
    ("min_elites", 0),
    ("min_elites", 3),
    ("ucb_coefficient", -0.9),
    ("value_smoothing", 0.0),
    ("fitness_horizon", 0),
    ("mc_fitness_prob", 1.1),
    ("mutation_fraction", -0.5),
    ("n_shared_heads", 6),
    ("pevfa_heads_per_step", 0),
    ("pevfa_layout", "columns"),
    ("encoder_step", "never"),
    ("deploy", "best"),
    ("target_policy_noise", -0.5),
    ("target_noise_clip", -0.5),
    ("learner", "dreamer"),
    ("learner", DQN),
    ("policy_delay", 0),
    ("target_update_interval", 0),
    ("exploration_noise", -0.1),
    ("lap_alpha", -0.4),
    ("lap_min_priority", -1),
    ("bc_coef", -2),
    ("early_assessment_episodes", 0),
    ("late_assessment_episodes", 0),
    ("updates_before_late_phase", -3),
    ("checkpoint_reset_weight", 1.5),
    ("checkpoint_reset_rule", "drop"),
    ("encoder_lr", -0.1),
    ("critic_lr", -0.1),
    ("actor_lr", -0.1),
    ("explore_fraction", 1.5),
    ("explore_steps", 0),
    ("update_budget", "half"),
    ("priorities", "none"),
    ("selection", "oracle"),
    ("selection_window", 0),
    ("n_selection_episodes", 0),
    ("catch_up", 1.1),
    ("copy_interval", 0),
    ("n_gradient_bases", 2),
    ("es_learning_rate", -0.1),
    ("amt_clip", -0.1),
    ("amt_interval", 0),
    ("amt_signal", "losses"),
    ("sac_interval", 0),
    ("sac_episodes", 0),
    ("sac_probability", (1.0, 1.5, 10)),
    ("sac_probability", (1.0, 0, 0)),
    ("ent_coef", -0.1),
    ("ent_coef", "automatic"),
    ("n_acting_elites", 3),
    ("fitness_batch_size", 0),
    ("fitness_interval", 0),
    ("population_target_interval", 0),
    ("copy_targets", True),
    ("loss", "l1"),
    ("exploration_initial_eps", 1.5),
    ("exploration_final_eps", -0.1),
    ("exploration_decay_steps", 0),
]
ONLY_SOME: list[tuple[list[str], str, Any]] = [
    (GENERATIONAL, "pop_size", 1),
    (STEPWISE, "train_freq", 4),
    (STEPWISE, "train_freq", (1, "episode")),
    (having("gammas"), "learner", ["td3", "td3", "td3"]),
    (having("gammas"), "learner", ["td3", "dreamer"]),
    (having("gammas"), "learner_kwargs", [{}]),
]


def has(name: str, argument: str) -> bool:
    return bool(known(name, {argument: None}))


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("name", NAMES)
def test_spaces(name: str, kind: str) -> None:
    odd, words = SPACES[kind]
    if name in DISCRETE and kind in ("unbounded", "continuous"):
        words = ["action_space", "gymnasium.spaces.Discrete", "ERL"]
    elif kind == "continuous":
        assert make(name, DummyVecEnv([lambda: OddSpaces(**odd)])).predict(np.zeros((1, 3), np.float32))[0].shape == (1, 2)
        return
    if kind == "discrete" and getattr(ALGOS[name], "takes_discrete_actions", False) is True:
        assert make(name, DummyVecEnv([lambda: OddSpaces(**odd)])).predict(np.zeros((1, 3), np.float32))[0].dtype == np.int64
        return
    if kind == "multi-discrete" and getattr(ALGOS[name], "takes_several_choices", False):
        assert make(name, DummyVecEnv([lambda: OddSpaces(**odd)])).predict(np.zeros((1, 3), np.float32))[0].shape == (1, 2)
        return
    with pytest.raises(ValueError) as caught:
        make(name, DummyVecEnv([lambda: OddSpaces(**odd)]))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert isinstance(caught.value, AssertionError), "as SB3's own classes"


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        *((n, a, v) for n in NAMES for a, v in VALUES if has(n, a)),
        *((n, a, v) for names, a, v in ONLY_SOME for n in names if has(n, a)),
    ],
)
def test_values(name: str, argument: str, value: Any) -> None:
    with pytest.raises(ValueError) as caught:
        make(name, **{argument: value})
    shown = value
    if isinstance(value, tuple) and value:
        shown = value[1] if value[0] == 1 else value[0]
    elif isinstance(value, list):
        shown = value[-1]
    assert argument in str(caught.value)
    assert str(getattr(shown, "__name__", shown)) in str(caught.value), "says what came"


@pytest.mark.parametrize("name", NAMES)
def test_types(name: str) -> None:
    if has(name, "pop_size"):
        with pytest.raises(TypeError, match=r"pop_size.*2\.5"):
            make(name, pop_size=2.5)
    with pytest.raises(TypeError, match="batch_size"):
        make(name, batch_size="many")


@pytest.mark.parametrize("name", having("learner"))
def test_unknown_learner_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"'ddpg'.*'td3'.*'dreamer'"):
        make(name, learner="dreamer")


@pytest.mark.parametrize("name", NAMES)
def test_a_string_that_is_neither_policy_nor_environment(name: str) -> None:
    with pytest.raises(ValueError) as caught:
        ALGOS[name]("Pendulm-v1")
    assert all(word in str(caught.value) for word in ("MlpPolicy", "Pendulm-v1", "Pendulum-v1"))


@pytest.mark.parametrize("name", NAMES)
def test_unknown_policy_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError) as caught:
        make(name, policy="MlpPolcy")
    assert all(word in str(caught.value) for word in (*ALGOS[name].policy_aliases, "MlpPolcy"))


@pytest.mark.parametrize("name", NAMES)
def test_something_else_altogether(name: str) -> None:
    with pytest.raises(TypeError, match=r"policy.*float"):
        ALGOS[name](3.5)
    with pytest.raises(TypeError, match="use_sde"):
        ALGOS[name]("MlpPolicy", None, **fast(name, use_sde=True))


@pytest.mark.parametrize("name", NAMES)
def test_learning_without_an_environment(name: str) -> None:
    model = ALGOS[name]("MlpPolicy", None, _init_setup_model=False)
    assert model.get_env() is None
    with pytest.raises((AssertionError, ValueError), match="env"):
        model.learn(10)


@pytest.mark.parametrize("name", [name for name in HYBRIDS if name in GENERATIONAL])
def test_collect_rollouts_says_what_to_call(name: str) -> None:
    with pytest.raises(NotImplementedError, match="learn"):
        make(name).collect_rollouts()


@pytest.mark.parametrize("name", GENERATIONAL)
def test_more_environments_than_rollouts(name: str) -> None:
    most = n_rollouts(name)
    words = rf"n_envs={most + 1}, but {most} rollouts with pop_size={pop_size(name)}.*"
    words += "lower n_envs or raise (pop_size|n_learner_episodes)"
    with pytest.raises(ValueError, match=words):
        make(name, toy_vec_env(most + 1))
    assert make(name, toy_vec_env(most)).n_envs == most
