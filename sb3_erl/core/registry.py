"""Parts by name: operators, evolvers, fitness functions, learners and exchanges, of this package and of others."""

from __future__ import annotations

import copy
import difflib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from importlib import import_module
from typing import Any

_OPERATORS = "sb3_erl.evolution.operators"
_FITNESS = "sb3_erl.evolution.fitness.parts"

PARTS: dict[str, dict[str, Any]] = {
    "crossover": {
        "rows": f"{_OPERATORS}.crossover:RowCrossover",
        "linear_rows": f"{_OPERATORS}.crossover:LinearRowCrossover",
        "head_rows": f"{_OPERATORS}.crossover:HeadRowCrossover",
        "distillation": f"{_OPERATORS}.distillation:DistillationCrossover",
    },
    "mutation": {
        "gaussian": f"{_OPERATORS}.mutation:GaussianMutation",
        "linear_gaussian": f"{_OPERATORS}.mutation:LinearMutation",
        "head_rows": f"{_OPERATORS}.mutation:HeadMutation",
        "proximal": f"{_OPERATORS}.proximal:ProximalMutation",
    },
    "evolver": {
        "ga": "sb3_erl.evolution.ga:GA",
        "cem": "sb3_erl.evolution.cem:DiagonalCEM",
        "es": "sb3_erl.evolution.es:MirroredES",
        "distilled_ga": "sb3_erl.evolution.distilled_ga:DistilledGA",
    },
    "learner": {
        "ddpg": "sb3_erl.learners.td_rule:DDPGRule",
        "td3": "sb3_erl.learners.td_rule:TD3Rule",
        "td7": "sb3_erl.learners.td7:TD7Learner",
        "sac": "sb3_erl.learners.sac:SACLearner",
        "dqn": "sb3_erl.learners.dqn:DQNLearner",
    },
    "fitness": {
        "return": f"{_FITNESS}:Return",
        "discounted_return": f"{_FITNESS}:DiscountedReturn",
        "sign_sum": f"{_FITNESS}:SignSum",
        "energy": f"{_FITNESS}:Energy",
        "novelty": f"{_FITNESS}:Novelty",
    },
    "exchange": {
        "replace_weakest": "sb3_erl.engine.replace:ReplaceWeakest",
        "imitate": "sb3_erl.engine.replace:ImitateLearner",
        "none": "sb3_erl.engine.replace:NoExchange",
    },
    "step": {},
    "exploit": {
        "truncation": "sb3_erl.populations.exploit:Truncation",
        "tournament": "sb3_erl.populations.exploit:BinaryTournament",
        "ga": "sb3_erl.populations.exploit:GeneticExploit",
        "none": "sb3_erl.populations.exploit:NoExploit",
    },
    "explore": {
        "perturb": "sb3_erl.populations.explore:Perturb",
        "resample": "sb3_erl.populations.explore:Resample",
        "none": "sb3_erl.populations.explore:NoExplore",
    },
    "algorithm": {
        **{key: f"stable_baselines3:{key.upper()}" for key in ("a2c", "ddpg", "dqn", "ppo", "sac", "td3")},
        **{key: f"sb3_contrib:{key.upper()}" for key in ("ars", "qrdqn", "tqc", "trpo")},
        "crossq": "sb3_contrib:CrossQ",
        "ppo_lstm": "sb3_contrib:RecurrentPPO",
        "ppo_mask": "sb3_contrib:MaskablePPO",
        "td7": "sb3_erl.algorithms.td7:TD7",
        "erl_re2": "sb3_erl.algorithms.erl_re2:ERLRe2",
    },
}
"""For each kind its parts by key: ``"module:Name"``, which is imported when it is wanted, or the part itself."""
BUILT_IN = frozenset(part for parts in PARTS.values() for part in parts.values())
"""Those of this package, which every program knows; what is registered later is known to one program only."""


_imports: ContextVar[bool] = ContextVar("_imports", default=True)
_libraries: ContextVar[bool] = ContextVar("_libraries", default=False)


@contextmanager
def nothing_imported() -> Iterator[None]:
    """In the block, ``"package.module:Name"`` finds parts of modules that are loaded, or that were registered, only."""
    token = _imports.set(False)
    try:
        yield
    finally:
        _imports.reset(token)


@contextmanager
def libraries_imported() -> Iterator[None]:
    """In the block, which is for files that are trusted, :func:`loaded_module` imports what is not loaded yet."""
    token = _libraries.set(True)
    try:
        yield
    finally:
        _libraries.reset(token)


def loaded_module(name: str) -> Any:
    """
    :param name: of a module of this package or of a library that models are made of
    :return: the module; ``None`` if it is not loaded
    """
    if _libraries.get() and name not in sys.modules:
        with suppress(ImportError):
            import_module(name)
    return sys.modules.get(name)


class UnknownPart(ValueError):
    """A key that no part has in this program."""


def register(kind: str, name: str, part: Any) -> None:
    """
    Give a part a name, under which every class, the Zoo and YAML files know it from then on.

    :param kind: key of :data:`PARTS`, such as ``"crossover"``
    :param name: the new name
    :param part: a class or function, or where it is: ``"package.module:Name"``
    :raises ValueError: if the kind is unknown, or the name is that of another part

    >>> from sb3_erl.evolution.operators.crossover import RowCrossover
    >>> register("crossover", "my_rows", RowCrossover)
    >>> resolve("crossover", "my_rows") is RowCrossover
    True
    """
    if kind not in PARTS:
        raise ValueError(f"kind must be one of {sorted(PARTS)}; got {kind!r}")
    known = PARTS[kind].get(name, part)
    if known is not part and known != part:
        raise ValueError(f"name must be one that no other {kind} has; {name!r} is {known!r}. Choose another name")
    PARTS[kind][name] = part


def own_copy(part: Any) -> Any:
    """
    What one model does to a part that has a state must not be seen by another one that was given the same object.

    :param part: class, function or object
    :return: a copy of an object with ``state_dict``, otherwise the part itself
    """
    return copy.deepcopy(part) if not isinstance(part, type) and hasattr(part, "state_dict") else part


def resolve(kind: str, choice: Any, argument: str | None = None) -> Any:
    """
    What a user means by the value of an argument that names a part.

    :param kind: key of :data:`PARTS`
    :param choice: a key, ``"package.module:Name"``, or the part itself (a class, a function or an object)
    :param argument: name of the argument, for messages; the kind by default
    :return: the part; whatever is no string is returned as it is
    :raises ValueError: if there is no such key, module or name

    >>> resolve("crossover", "rows").__name__, resolve("crossover", "collections:OrderedDict").__name__
    ('RowCrossover', 'OrderedDict')
    """
    if not isinstance(choice, str):
        return choice
    argument = argument or kind
    if ":" in choice:
        return _imported(choice, argument)
    known = PARTS[kind]
    if choice not in known:
        close = difflib.get_close_matches(choice, known, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise UnknownPart(
            f"{argument} must be one of {sorted(known)}, 'package.module:Name' or a class; got {choice!r}{hint}. "
            f"sb3_erl.register({kind!r}, {choice!r}, ...) adds a name"
        )
    part = known[choice]
    return _imported(part, argument) if isinstance(part, str) else part


def _imported(path: str, argument: str) -> Any:
    module_name, _, name = path.partition(":")
    is_known = any(path == known for parts in PARTS.values() for known in parts.values())
    if not (is_known or _imports.get() or module_name in sys.modules):
        raise ValueError(f"{argument} must be a part whose module is imported; got {path!r} from a file that is not trusted")
    try:
        part: Any = import_module(module_name)
        for attribute in name.split("."):
            part = getattr(part, attribute)
    except ModuleNotFoundError as error:
        if error.name is not None and not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, but something that it imports is not
        raise ValueError(
            f"{argument} must name a part as 'package.module:Name'; got {path!r}, but there is no module {error.name!r}. "
            "Install its package, or add its folder to PYTHONPATH"
        ) from error
    except (AttributeError, ValueError) as error:
        raise ValueError(
            f"{argument} must name a part as 'package.module:Name'; got {path!r}, but {module_name!r} has no {name!r}"
        ) from error
    return part
