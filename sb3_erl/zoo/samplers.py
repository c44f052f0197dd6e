"""
Search spaces for ``rl_zoo3 train -optimize``, one table for all algorithms.

A space is a tuple of knobs. What is suggested are Optuna's raw parameters (``trial.params``); one function,
:func:`convert`, turns them into constructor arguments, for a running trial and for one read from a study alike.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sb3_erl.zoo.knobs import Choice, Float, Int, Knob

if TYPE_CHECKING:
    import optuna

Sampler = Callable[["optuna.Trial", int, int, dict[str, Any]], dict[str, Any]]


NET_ARCH = {"small": [64, 64], "medium": [256, 256], "big": [400, 300]}

# Discount factors: the published portfolio, a shorter one for tasks without a long horizon, and the two halves of the first
PORTFOLIOS = {
    "published": [0.9, 0.99, 0.997, 0.9995],
    "usual": [0.98, 0.99, 0.995],
    "near": [0.9, 0.99],
    "far": [0.997, 0.9995],
}

# Raw name -> constructor argument (a dot goes into a mapping) and value. Any other raw name is the argument itself.
CONVERSIONS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "one_minus_gamma": ("gamma", lambda raw: 1.0 - raw),
    "batch_size_pow": ("batch_size", lambda raw: 2**raw),
    "net_arch": ("policy_kwargs.net_arch", lambda raw: list(NET_ARCH[raw])),
    "portfolio": ("gammas", lambda raw: list(PORTFOLIOS[raw])),
}

# The arguments most algorithms have; ranges of the Zoo's TD3 and SAC, less the extremes.
OFF_POLICY: tuple[Knob, ...] = (
    Float("one_minus_gamma", 0.0001, 0.03, log=True),
    Float("learning_rate", 1e-5, 0.002, log=True),
    Int("batch_size_pow", 5, 9),
    Float("tau", 0.001, 0.02, log=True),
    Choice("net_arch", tuple(NET_ARCH)),
)

# Fujimoto et al. (2023) use one setting for all tasks; tried here is what their ablations and TD3's tuned settings vary.
# Targets are hard copies, so there is no tau, and the networks keep their published shape.
TD7: tuple[Knob, ...] = (
    *(knob for knob in OFF_POLICY if knob.name not in ("tau", "net_arch")),
    Choice("exploration_noise", (0.05, 0.1, 0.2, 0.3)),
    Choice("target_update_interval", (100, 250, 500)),
    Choice("late_assessment_episodes", (5, 10, 20)),
)

# Khadka & Tumer (2018): values of xi, psi and omega used per task; the rest is as in OFF_POLICY.
ERL: tuple[Knob, ...] = (
    *OFF_POLICY,
    Choice("n_eval_episodes", (1, 3, 5)),
    Choice("elite_fraction", (0.1, 0.2, 0.3)),
    Choice("sync_period", (1, 10)),
    Float("mutation_prob", 0.5, 1.0),
)

# Li et al. (2024): values of EA_tau, damp and the injection period in the published scripts; the rest is as in OFF_POLICY.
RAINBOW: tuple[Knob, ...] = (
    *OFF_POLICY,
    Choice("ea_tau", (0.0, 0.1, 0.3, 0.5)),
    Float("damp", 1e-4, 1e-1, log=True),
    Choice("sync_period", (1, 10)),
)

# Where an individual without parents begins.
INITIAL: tuple[Knob, ...] = (Choice("init", ("fan_in", "unit_norm")), Float("init_output_std", 1e-2, 1.0, log=True))

# Salimans et al. (2017) use one setting for all tasks; few workers want fewer pairs and larger steps.
STRATEGY: tuple[Knob, ...] = (
    Choice("net_arch", tuple(NET_ARCH)),
    Choice("n_pairs", (2, 4, 8, 16, 32)),
    Float("learning_rate", 1e-3, 1e-1, log=True),
    Float("sigma", 1e-2, 2e-1, log=True),
    Choice("l2_coeff", (0.0, 0.005)),
)
NOVEL_STRATEGY: tuple[Knob, ...] = (*STRATEGY, Choice("meta_population_size", (1, 3, 5)), Choice("novelty_k", (5, 10, 25)))

# Such et al. (2017) use one setting for all tasks, of a thousand children and for networks of millions of parameters.
MUTANTS: tuple[Knob, ...] = (
    Choice("net_arch", tuple(NET_ARCH)),
    Choice("pop_size", (20, 50, 100, 200)),
    Choice("truncation", (5, 10, 20)),
    Float("sigma", 1e-3, 2e-1, log=True),
    *INITIAL,
)

SPACES: dict[str, tuple[Knob, ...]] = {
    # Hao et al. (2023): values of theta, H, beta and K tried per task; the rest is as in OFF_POLICY.
    "erl_re2": (
        *OFF_POLICY,
        Choice("mc_fitness_prob", (0.3, 0.5, 0.7, 0.8)),
        Choice("fitness_horizon", (50, 200)),
        Choice("mutation_fraction", (0.2, 0.5, 0.7, 1.0)),
        Choice("n_shared_heads", (1, 3)),
        Choice("sync_period", (1, 10)),
    ),
    # Li et al. (2024): values of the published scripts; the shared form also chooses how fitness is measured.
    "evo_rainbow": (*RAINBOW, Choice("surrogate_prob", (0.2, 0.4, 0.6, 0.8)), Choice("fitness_horizon", (50, 200))),
    "evo_rainbow_exp": RAINBOW,
    "erl": ERL,
    # Bodnar et al. (2020) vary the magnitude of the noise; the authors' code has both ways of mate choice.
    "pderl": (*ERL, Float("mutation_magnitude", 0.01, 0.2, log=True), Choice("parent_matching", ("fitness", "distance"))),
    # Pourchot & Sigaud (2019), and the second public implementation (larger populations, more damping).
    "cem_rl": (
        *OFF_POLICY,
        Choice("pop_size", (8, 10, 16, 32)),
        Float("sigma_init", 1e-4, 1e-2, log=True),
        Choice("elitism", (False, True)),
    ),
    # Khadka et al. (2019) use one setting for all tasks; tried here are the portfolio and how rollouts are shared out.
    "cerl": (
        *(knob for knob in OFF_POLICY if knob.name != "one_minus_gamma"),
        Choice("portfolio", tuple(PORTFOLIOS)),
        Choice("rollout_size", (4, 10)),
        Choice("sync_period", (1, 5, 10)),
        Float("ucb_coefficient", 0.1, 2.0, log=True),
        Float("mutation_prob", 0.1, 0.9),
    ),
    # Li et al. (2024): the interval of the individuals' targets is the main setting; the rest is as in DQN.
    "veb_rl": (
        *(knob for knob in OFF_POLICY if knob.name not in ("tau", "net_arch")),
        Choice("n_acting_elites", (1, 2)),
        Float("sigma_init", 1e-4, 1e-2, log=True),
        Choice("population_target_interval", (1, 5, 10, 20)),
        Choice("target_update_interval", (250, 1000, 4000)),
        Choice("double_q", (False, True)),
    ),
    "cem": (
        Choice("net_arch", tuple(NET_ARCH)),
        Choice("pop_size", (8, 10, 16, 32)),
        Float("sigma_init", 1e-4, 1e-1, log=True),
        Choice("elitism", (False, True)),
    ),
    # Suri et al. (2020): values of their run settings, with SAC more often where steps are few.
    "esac": (
        *OFF_POLICY,
        Choice("n_pairs", (5, 10)),
        Choice("n_gradient_bases", (1, 2)),
        Float("sigma", 1e-3, 1e-1, log=True),
        Float("es_learning_rate", 1e-3, 1e-1, log=True),
        Choice("sac_interval", (1, 5)),
        Choice("sac_episodes", (1, 5, 10)),
        Float("ent_coef", 0.01, 0.5, log=True),
    ),
    "openai_es": STRATEGY,
    **dict.fromkeys(("ns_es", "nsr_es"), NOVEL_STRATEGY),
    "nsra_es": (*NOVEL_STRATEGY, Choice("weight_patience", (5, 20, 50))),
    "deep_ga": MUTANTS,
    "ga_ns": (*MUTANTS, Choice("novelty_k", (5, 10, 25)), Choice("archive_prob", (0.01, 0.05))),
    "random_search": (Choice("net_arch", tuple(NET_ARCH)), Choice("pop_size", (20, 50, 100, 200)), *INITIAL),
    "td7": TD7,
    # Jaderberg et al. (2017), sections 4.1 to 4.3: their ways to exploit and explore; what members have is searched by PBT.
    "pbt": (
        Choice("pop_size", (4, 8, 16)),
        Choice("ready_steps", (5_000, 20_000, 50_000)),
        Choice("exploit", ("truncation", "tournament")),
        Choice("explore", ("perturb", "resample")),
    ),
    "pop_td7": (*TD7, Int("pop_size", 2, 5), Choice("explore_fraction", (0.1, 0.25, 0.5))),
}


def space(algo: str, algorithm: type) -> tuple[Knob, ...]:
    """
    :param algo: id of the algorithm, a key of ``sb3_erl.ALGOS``
    :param algorithm: its class
    :return: its entry in ``SPACES``; without one, the knobs of ``OFF_POLICY`` whose arguments the class has
    """
    if algo in SPACES:
        return SPACES[algo]
    arguments = inspect.signature(algorithm).parameters
    return tuple(knob for knob in OFF_POLICY if _argument(knob.name) in arguments)


def convert(raw: Mapping[str, Any]) -> dict[str, Any]:
    """
    Turn raw Optuna parameters into constructor arguments.

    :param raw: parameters of a trial
    :return: keyword arguments of the algorithm

    >>> convert({"batch_size_pow": 7, "net_arch": "small", "sync_period": 10})
    {'batch_size': 128, 'policy_kwargs': {'net_arch': [64, 64]}, 'sync_period': 10}
    """
    arguments: dict[str, Any] = {}
    for name, value in raw.items():
        path, to_value = CONVERSIONS.get(name, (name, lambda unchanged: unchanged))
        *outer, last = path.split(".")
        target = arguments
        for key in outer:
            target = target.setdefault(key, {})
        target[last] = to_value(value)
    return arguments


def rollouts(algorithm: type, arguments: Mapping[str, Any]) -> float:
    """
    :param algorithm: a class of ``sb3_erl.ALGOS``
    :param arguments: some of its constructor; the others have their defaults
    :return: rollouts in a generation, and so the largest number of environments; infinity for classes without generations

    >>> from sb3_erl import OpenAIES
    >>> rollouts(OpenAIES, {"n_pairs": 2})
    5
    """
    if not hasattr(algorithm, "n_rollouts"):
        return math.inf
    from sb3_erl.runs.overrides import FOLLOWING  # not at the start, where rl_zoo3 is made ready before this package

    parameters = inspect.signature(algorithm).parameters
    defaults = {name: each.default for name, each in parameters.items() if each.default is not each.empty}
    cls: Any = algorithm
    model = cls.__new__(cls)  # with the arguments that the number follows from, and no networks
    vars(model).update({**defaults, **arguments})
    if "n_pairs" in parameters:
        vars(model).update(FOLLOWING["n_pairs"](model.n_pairs))
    try:
        return int(model.n_rollouts)
    except (AttributeError, TypeError):  # a class of one's own may need more than its arguments
        return math.inf


def with_rollouts(knobs: Sequence[Knob], algorithm: type, n_envs: int) -> tuple[Knob, ...]:
    """
    Leave out the choices with which a generation may have fewer rollouts than there are environments, which is refused.

    :param knobs: of the algorithm
    :param algorithm: its class
    :param n_envs: number of environments
    :return: the same knobs with the choices that have enough rollouts together with any of the others; where the arguments
        that are not searched leave none, those with the most
    """
    arguments = {knob.name for knob in knobs} & set(inspect.signature(algorithm).parameters)
    choices = {knob.name: list(knob.choices) for knob in knobs if isinstance(knob, Choice) and knob.name in arguments}
    fewest = {name: min(given, key=lambda value: rollouts(algorithm, {name: value})) for name, given in choices.items()}
    while rollouts(algorithm, fewest) < n_envs:
        better = {}  # what is left without the choices of a knob that have the fewest rollouts
        for name, given in choices.items():
            more = {value: rollouts(algorithm, {**fewest, name: value}) for value in given}
            left = [value for value in given if more[value] > min(more.values())]
            if left:
                better[name] = (min(more[value] for value in left), left)
        if not better:
            break
        name = max(better, key=lambda each: better[each][0])
        choices[name] = better[name][1]
        fewest[name] = min(choices[name], key=lambda value: rollouts(algorithm, {**fewest, name: value}))
    return tuple(Choice(each.name, tuple(choices[each.name])) if each.name in choices else each for each in knobs)


FIXED: ContextVar[Mapping[str, Any]] = ContextVar("FIXED", default=MappingProxyType({}))
"""Arguments that the trials of a study have in common."""


def with_parts(knobs: Sequence[Knob], fixed: Mapping[str, Any]) -> tuple[Knob, ...]:
    """
    Leave out what a class refuses beside the parts that a study does not search.

    :param knobs: of the algorithm
    :param fixed: arguments that all trials have
    :return: those knobs that the evolver takes, and the choices of as many discount factors as there are learners
    """
    from sb3_erl.core.registry import resolve  # not at the start, see rollouts
    from sb3_erl.engine.population import CEM_ARGUMENTS, GA_ARGUMENTS, OPERATORS

    refused: set[str] = set()
    if "evolver" in fixed:
        found = resolve("evolver", fixed["evolver"])
        for kind, names in (("ga", {*GA_ARGUMENTS, *OPERATORS}), ("cem", set(CEM_ARGUMENTS))):
            if not (isinstance(found, type) and issubclass(found, resolve("evolver", kind))):
                refused |= names
    left, learners = {knob.name: knob for knob in knobs if _argument(knob.name) not in refused}, fixed.get("learner")
    if "portfolio" in left and isinstance(learners, list | tuple):
        del left["portfolio"]
        fitting = tuple(name for name, gammas in PORTFOLIOS.items() if len(gammas) == len(learners))
        left |= {"portfolio": Choice("portfolio", fitting)} if fitting else {}
    return tuple(left.values())


def sampler(algo: str, algorithm: type) -> Sampler:
    """
    :param algo: id of the algorithm
    :param algorithm: its class
    :return: the function the Zoo calls for a trial; it suggests raw parameters and returns constructor arguments
    """
    searched = space(algo, algorithm)

    def sample(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
        knobs = with_rollouts(with_parts(searched, FIXED.get()), algorithm, n_envs)
        raw = {knob.name: knob.suggest(trial) for knob in knobs}
        arguments = convert(raw)
        for knob in knobs:  # the report of the study shows the true values beside the raw ones
            argument = _argument(knob.name)
            if argument != knob.name:
                trial.set_user_attr(argument, arguments[argument])
        return arguments

    return sample


def _argument(name: str) -> str:
    """Constructor argument that a raw parameter ends up in."""
    return CONVERSIONS.get(name, (name,))[0].split(".")[0]
