"""Which of SB3's tests contradict a class, and why; an entry that matches no test fails the run."""

from __future__ import annotations

import inspect
from typing import Any

from sb3_erl import ALGOS
from tests.contract.settings import ONE_OF_EACH_FAMILY

PREDICT = "demands policy.predict == actor.predict for random tensors; predict acts with policy.deployed: test_policy_files.py"

ONE_CLASS = (
    "a network of 0.5 GB, of which a population, targets and acting copies hold a dozen; zip files above 2 GB are SB3's own "
    "code, which its test checks with one class only"
)

COMMON: dict[str, str] = {
    "test_save_load.py::test_save_load_policy[False-MlpPolicy-{cls}]": PREDICT,
    "test_save_load.py::test_save_load_large_model": ONE_CLASS,
    "test_tensorboard.py::test_tensorboard": "expects the folder TD3_1, ours is named after our class: test_logging.py",
}
GENERATIONAL: dict[str, str] = {
    **COMMON,
    "test_cnn.py::test_features_extractor_target_net": (
        "passes TD3's own arguments (policy_delay, share_features_extractor) and calls train() after 100 steps, before the "
        "first generation is complete: test_images.py"
    ),
    "test_identity.py::test_continuous": (
        "400 steps are four episodes of the identity environment, less than one generation: test_identity_learning.py with a "
        "budget that fits"
    ),
    "test_run.py::test_offpolicy_multi_env": (
        "its last assertion wants updates after three vector steps of an unfinished episode; updates follow a whole "
        "generation: test_budget.py"
    ),
    "test_train_eval_mode.py::test_td3_train_with_batch_norm": (
        "200 steps are one episode, so there is no update that could move the statistics: test_batch_norm.py"
    ),
}
EXTRACTOR = (
    "critics have no extractor, they read features of the fixed encoder: test_batch_norm.py, test_feature_extractors.py"
)
SALE: dict[str, str] = {
    **COMMON,
    "test_cnn.py::test_features_extractor_target_net": EXTRACTOR,
    "test_train_eval_mode.py::test_offpolicy_collect_rollout_batch_norm": EXTRACTOR,
    "test_train_eval_mode.py::test_predict_with_dropout_batch_norm": EXTRACTOR,
    "test_train_eval_mode.py::test_td3_train_with_batch_norm": EXTRACTOR,
    "test_custom_policy.py::test_custom_offpolicy[{cls}-net_arch0]": "needs a first layer: the embeddings come in behind it",
    "test_identity.py::test_continuous": (
        "400 steps with the default learning_starts, 25000 here, are random: test_identity_learning.py less of them"
    ),
    "test_n_step_replay.py::test_run": "no argument n_steps, an NStepReplayBuffer is asked for by its class: test_td7.py",
    "test_run.py::test_offpolicy_multi_env": (
        "its last assertion wants updates after a number of steps, train_freq; updates follow an assessment: test_td7.py"
    ),
    "test_save_load.py::test_warn_buffer[True-{cls}]": "no argument optimize_memory_usage: test_lap.py",
}
LEARNER = "is about a learner's networks, optimizers or arguments: there is no learner"
BUFFER = "is about the replay buffer: there is none"
EVOLUTION: dict[str, str] = {
    **COMMON,
    "test_cnn.py::test_features_extractor_target_net": LEARNER,
    "test_custom_policy.py::test_custom_offpolicy[{cls}-net_arch3]": LEARNER + ", hence no critic's widths",
    "test_custom_policy.py::test_custom_optimizer": LEARNER,
    **dict.fromkeys(
        (f"test_dict_env.py::test_{name}" for name in ("consistency", "dict_spaces", "dict_vec_framestack", "vec_normalize")),
        LEARNER + "; test_dict_observations.py",
    ),
    **dict.fromkeys((f"test_her.py::test_{name}" for name in ("her", "multiprocessing", "save_load")), BUFFER),
    "test_identity.py::test_continuous": GENERATIONAL["test_identity.py::test_continuous"],
    "test_n_step_replay.py::test_run": BUFFER,
    "test_run.py::test_offpolicy_multi_env": LEARNER,
    "test_save_load.py::test_save_load_policy[False-MlpPolicy-{cls}]": LEARNER + "; policy.deployed: test_policy_files.py",
    "test_save_load.py::test_save_load_policy[False-CnnPolicy-{cls}]": LEARNER + "; policy.deployed: test_policy_files.py",
    "test_save_load.py::test_save_load_replay_buffer": BUFFER,
    "test_save_load.py::test_warn_buffer": BUFFER,
    "test_train_eval_mode.py::test_offpolicy_collect_rollout_batch_norm": LEARNER,
    "test_train_eval_mode.py::test_predict_with_dropout_batch_norm": LEARNER,
    "test_train_eval_mode.py::test_td3_train_with_batch_norm": LEARNER,
}
DISCRETE_TOO: dict[str, str] = {
    **EVOLUTION,
    "test_spaces.py::test_action_spaces[CartPole-v1-{cls}]": "expects discrete actions to be refused: they are welcome",
}
MEMORIES: dict[str, str] = {
    **GENERATIONAL,
    "test_save_load.py::test_save_load[{cls}]": (
        "overwrites every saved tensor with random floats; genetic memories count in integers: test_save_load.py"
    ),
}
TARGET_ACTOR = "reads the statistics of TD3's target actor, which SAC does not have: test_batch_norm.py"
DQN: dict[str, str] = {
    "test_callbacks.py::test_eval_callback_logs_are_written_with_the_correct_timestep": COMMON[
        "test_tensorboard.py::test_tensorboard"
    ],
    "test_cnn.py::test_features_extractor_target_net": "sets tau; targets are copied: test_dqn_learner.py",
    "test_run.py::test_offpolicy_multi_env": GENERATIONAL["test_run.py::test_offpolicy_multi_env"],
    "test_her.py::test_performance_her": (
        "a threshold of learning for DQN alone; here elites act in half of the steps, greedily: test_dict_observations.py has "
        "the buffer's goals"
    ),
    "test_run.py::test_warn_dqn_multi_env": "the interval of target copies counts updates here, whatever the environments",
    "test_save_load.py::test_save_load_no_target_params": "is about files of SB3's DQN before 2.4",
    "test_train_eval_mode.py::test_dqn_train_with_batch_norm": "calls DQN's _on_step to copy targets: test_batch_norm.py",
}
BY_CLASS: dict[str, dict[str, str]] = {
    "cem": DISCRETE_TOO,
    "deep_ga": DISCRETE_TOO,
    "random_search": DISCRETE_TOO,
    "cem_rl": GENERATIONAL,
    "cerl": {
        **GENERATIONAL,
        "test_n_step_replay.py::test_run": "asks for the one gamma of a model: CERL has gammas, test_cerl.py",
    },
    "erl": GENERATIONAL,
    "pderl": MEMORIES,
    "erl_re2": GENERATIONAL,
    "esac": {
        **GENERATIONAL,
        "test_train_eval_mode.py::test_offpolicy_collect_rollout_batch_norm": TARGET_ACTOR,
        "test_train_eval_mode.py::test_predict_with_dropout_batch_norm": TARGET_ACTOR,
    },
    "evo_rainbow": GENERATIONAL,
    "evo_rainbow_exp": GENERATIONAL,
    **dict.fromkeys(("openai_es", "ga_ns", "ns_es", "nsr_es", "nsra_es"), DISCRETE_TOO),
    "td7": SALE,
    "pop_td7": {**SALE, "test_save_load.py::test_save_load_env_cnn": "asks for train_freq=4, here it is 1: test_images.py"},
    "veb_rl": DQN,
}
"""By key in ALGOS; a class that is not listed has to pass everything."""

IGNORED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("td7", "pop_td7"), ("train_freq", "optimize_memory_usage")),
    "cerl": ("gamma",),
    **dict.fromkeys(
        ("cem", "deep_ga", "openai_es", "random_search", "ga_ns", "ns_es", "nsr_es", "nsra_es"),
        ("learning_starts", "train_freq", "buffer_size", "action_noise", "gamma"),
    ),
}
"""
Arguments that SB3's tests hand to TD3 to be fast or small, and which must not reach a class.

CERL has discount factors in place of one; a class without a learner has none of a learner's arguments; TD7 refuses any
``train_freq`` but 1 (test_wrong_input.py) and has no ``optimize_memory_usage``; the tests that use them are about something
else, and what is left of them is run.
"""

SMALL: dict[str, Any] = {
    **{
        "pop_size": 4,
        "n_pairs": 2,
        "truncation": 2,
        "n_finalists": 2,
        "n_finalist_episodes": 1,
        "noise_table_size": 3_000_000,
        "meta_population_size": 2,
        "behavior": "final_observation",
        **{"n_gradient_bases": 1, "sac_interval": 1, "sac_episodes": 1, "sac_probability": (1.0, 1.0, 1.0)},
        "store_population_transitions": True,
    },
    **{"batch_size": 32, "train_freq": 4, "policy_kwargs": {"net_arch": [32]}},
}
"""What a test that says nothing else gets, of the arguments that a class has: a small population of small networks."""


def small(name: str) -> dict[str, Any]:
    """
    :param name: key in ALGOS
    :return: arguments that keep runs short
    """
    present = inspect.signature(ALGOS[name].__init__).parameters
    return {key: value for key, value in SMALL.items() if key in present and key not in IGNORED.get(name, ())}


ONCE: dict[str, str] = {
    "test_callbacks.py::test_callbacks": "test_callbacks.py",
    "test_cnn.py::test_cnn": "test_images.py",
    "test_her.py::test_multiprocessing": "test_dict_observations.py",
    "test_save_load.py::test_save_load_env_cnn": "test_images.py",
    "test_spaces.py::test_identity_spaces": "test_predict.py",
}
"""
The longest tests, run with one class of each family; every other class has the same in our own files, but for goals in
processes: those it has in this process there, and what asks processes for rewards is SB3's buffer.
"""


def deselected(name: str) -> dict[str, str]:
    """
    :param name: key in ALGOS
    :return: reason by test name
    """
    cls = ALGOS[name].__name__
    reasons = dict(BY_CLASS.get(name, {}))
    if name not in ONE_OF_EACH_FAMILY:
        reasons = {**{pattern: f"runs with another class of the family; {file}" for pattern, file in ONCE.items()}, **reasons}
    return {pattern.replace("{cls}", cls): reason for pattern, reason in reasons.items()}
