"""Files of earlier versions: classes, tensors and attributes are found under their names of today."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

PACKAGE = "sb3_erl"
OLD_FOLDERS = ("common", "evaluation", "exchange", "fitness", "operators")
"""Folders that held modules and are gone."""

MOVED: dict[str, tuple[str, ...]] = {
    "common.arguments": ("core.arguments",),
    "common.callbacks": ("runs.callbacks",),
    "common.cem_policies": ("policies.cem_rl", "policies.erl"),
    "common.cerl_policies": ("policies.cerl", "policies.erl"),
    "common.checkpoints": ("runs.checkpoints",),
    "common.checks": ("core.checks",),
    "common.es_pixel_policies": ("policies.es_pixels", "policies.es"),
    "common.es_policies": ("policies.es", "policies.es_pixels"),
    "common.evolutionary_algorithm": ("policies.es", "engine.pure_evolution"),
    "common.files": ("core.atomic_files",),
    "common.genetic_memory": ("buffers.genetic_memory",),
    "common.interrupts": ("core.interrupts",),
    "common.lap": ("buffers.lap",),
    "common.loading": ("runs.loading",),
    "common.networks": ("policies.layers", "policies.sequential", "policies.fused_mlp", "policies.erl"),
    "common.observation_statistics": ("policies.observation_statistics",),
    "common.parameters": ("core.parameters",),
    "common.perceptron": ("policies.fused_mlp", "policies.sequential", "policies.layers"),
    "common.policies": ("policies.erl", "policies.es", "policies.sequential", "policies.layers", "runs.moved_modules"),
    "common.run_state": ("runs.run_state",),
    "common.sale_policies": ("policies.td7", "policies.sale", "policies.sequential", "policies.layers"),
    "common.seeding": ("core.seeding",),
    "common.sequential": ("policies.sequential",),
    "common.shared_policies": ("policies.erl_re2", "policies.erl"),
    "common.shared_sale_policies": ("policies.td7", "policies.erl_re2", "policies.sale"),
    "common.storing": ("buffers.append",),
    "common.timing": ("core.stopwatch",),
    "evaluation.acting": ("rollouts.acting",),
    "evaluation.base": ("rollouts.jobs", "rollouts.actions"),
    "evaluation.choice": ("remote.choice",),
    "evaluation.environments": ("remote.env_recipe",),
    "evaluation.exploration": ("rollouts.exploration",),
    "evaluation.process_pool": ("remote.process",),
    "evaluation.ray_pool": ("remote.ray",),
    "evaluation.rebuilding": ("remote.recipes",),
    "evaluation.remote": ("remote.evaluator",),
    "evaluation.soundness": ("rollouts.soundness",),
    "evaluation.steps": ("buffers.rollout_steps",),
    "evolution.cem_planner": ("planning.cem_planner",),
    "evolution.distilled": ("evolution.distilled_ga",),
    "evolution.importance_mixing": ("evolution.reuse",),
    "evolution.noise_table": ("core.noise_table",),
    "fitness.assessment": ("learners.assessment",),
    "fitness.behaviour": ("envs.behavior", "envs.behavior_wrapper"),
    "fitness.novelty": ("evolution.fitness.novelty",),
    "fitness.returns": ("evolution.fitness.returns",),
    "fitness.shaping": ("evolution.fitness.shaping",),
    "fitness.surrogate": ("evolution.fitness.surrogate",),
    "learners.erl_re2_td7": ("learners.shared_heads",),
    "learners.shared_td3": ("learners.erl_re2",),
    "learners.shared_td7": ("learners.shared_heads",),
    "offline": ("buffers.offline",),
    "operators.crossover": ("evolution.operators.crossover",),
    "operators.distillation": ("evolution.operators.distillation",),
    "operators.distilled_epoch": ("evolution.operators.distilled_epoch",),
    "operators.matching": ("evolution.operators.matching",),
    "operators.mutation": ("evolution.operators.mutation",),
    "operators.proximal": ("evolution.operators.proximal",),
    "operators.selection": ("evolution.operators.selection",),
    "policies.erl_re2_td7": ("policies.td7",),
}
"""Old module -> modules that may hold its classes now, in the order in which they are searched; names within the package."""
MOVED_CLASSES: dict[str, tuple[str, ...]] = {
    "algorithms.cem_rl": ("algorithms.cem", "policies.cem_rl"),
    "policies.erl": ("policies.cem_rl", "runs.moved_modules"),
    "policies.td7": ("policies.sale",),
}
"""Module that is still there -> modules to which classes of it have moved."""
RENAMED_ATTRIBUTES: dict[str, str] = {
    "learner": "learner_class",
    "evolver": "evolver_class",
    "exchange": "exchange_class",
    "fitness": "fitness_class",
}
"""Argument of a constructor, under whose name earlier versions kept its value -> attribute that has the value now."""


RENAMED_PARTS: dict[str, str] = {"learner_rule": "learner"}
"""Old name of an attribute with networks or optimizers -> its name now."""
RENAMED_TENSORS: dict[str, str] = {"centre": "center"}
"""Old name of a tensor in a state dict -> its name now, without the modules that it is in."""


def attributes_of_today(saved: dict[str, Any]) -> dict[str, Any]:
    """
    :param saved: values by the names of attributes in a file
    :return: the same by their names of today
    """
    names = {name: new for name, new in RENAMED_ATTRIBUTES.items() if new not in saved}
    return {names.get(name, name): value for name, value in saved.items()}


def renamed_parts(parameters: dict[str, Any]) -> dict[str, Any]:
    """
    :param parameters: state dicts or tensors of a model, by the names of its attributes
    :return: the same by their names of today
    """
    parts = ((name, *name.partition(".")) for name in parameters)
    return {f"{RENAMED_PARTS.get(first, first)}{dot}{rest}": parameters[name] for name, first, dot, rest in parts}


OWN_LEARNERS = ("sac",)
"""Keys of learners that were classes of SB3 in earlier versions and are classes of this package now."""


def names_in_own_learner(name: str) -> list[str]:
    """
    :param name: of an optimizer or tensor in the model of an SB3 class, ``learner.model.<name>``
    :return: names that it can have in a learner of this package

    >>> names_in_own_learner("learner.model.actor.optimizer")
    ['actor.optimizer', 'learner.actor.optimizer']
    """
    learner, found, own = name.partition(".model.")
    if not found or learner.partition(".")[0] != "learner":
        return []
    return [own if learner == "learner" else f"{learner}.policy.{own}", f"{learner}.{own}"]


def variables_of_own_learners(variables: dict[str, Any], choice: Any) -> dict[str, Any]:
    """
    :param variables: single tensors of a model, by the names of its attributes
    :param choice: the model's argument ``learner``
    :return: the same, with those of learners that are classes of this package now under their names of today
    """
    found = {}
    for name, tensor in variables.items():
        number = name.removeprefix("learner.learner_").partition(".")[0]
        own = choice[int(number)] if isinstance(choice, list | tuple) and number.isdecimal() else choice
        names = names_in_own_learner(name) if isinstance(own, str) and own in OWN_LEARNERS else []
        if not name.endswith("ent_coef_tensor") or not names:  # a coefficient that is not learned is a setting
            found[names[1] if names else name] = tensor
    return found


def renamed_tensors(parameters: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """
    :param parameters: state dicts by name, of a file
    :param now: state dicts of the model that is to have them
    :return: ``parameters`` with state dicts and tensors of earlier versions under their names of today
    """
    found = renamed_parts(parameters)
    for name in set(found) - set(now):
        own = next((new for new in names_in_own_learner(name) if new in now and new not in found), name)
        found[own] = found.pop(name)
    for name in set(found) & set(now):
        if isinstance(found[name], dict):
            found[name] = {_renamed(key, now[name]): value for key, value in found[name].items()}
    return found


def _renamed(key: str, now: dict[str, Any]) -> str:
    module, dot, last = key.rpartition(".")
    new = f"{module}{dot}{RENAMED_TENSORS.get(last, last)}"
    return new if key not in now and new in now else key


class _OldModule(types.ModuleType):
    """A module that has moved: its names are those of the modules that took its place."""

    def __getattr__(self, name: str) -> Any:
        return _found_in(MOVED.get(self.__name__.removeprefix(f"{PACKAGE}."), ()), name)


def _found_in(modules: Sequence[str], name: str) -> Any:
    """
    :param modules: to search, names within the package
    :param name: of a class or function
    :return: the first of that name
    :raises AttributeError: if there is none
    """
    for new in modules if not name.startswith("__") else ():
        module = importlib.import_module(f"{PACKAGE}.{new}")
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(name)


class _OldModules(MetaPathFinder, Loader):
    """Finds modules that have moved, after Python has found none of that name."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None) -> Any:
        short = name.removeprefix(f"{PACKAGE}.")
        if short == name or short not in (*OLD_FOLDERS, *MOVED):
            return None
        return ModuleSpec(name, self, is_package=short in OLD_FOLDERS)

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _OldModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """There is nothing to run."""


@contextmanager
def old_modules_found() -> Iterator[None]:
    """Inside, a pickle may name a class by the module that it was in before; afterwards there are no such modules."""
    finder = _OldModules()
    sys.meta_path.append(finder)
    changed = [importlib.import_module(f"{PACKAGE}.{name}") for name in MOVED_CLASSES]
    for module, modules in zip(changed, MOVED_CLASSES.values(), strict=True):
        vars(module)["__getattr__"] = partial(_found_in, modules)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for module in changed:
            vars(module).pop("__getattr__", None)
        for name, module in list(sys.modules.items()):
            if isinstance(module, _OldModule):
                del sys.modules[name]
                parent, _, last = name.rpartition(".")
                if isinstance(vars(sys.modules.get(parent, module)).get(last), _OldModule):
                    delattr(sys.modules[parent], last)


def _rebuild(policy_class: type, state: dict[str, Any]) -> Any:
    """
    A policy in a pickle of an earlier version, whose classes made of SB3's policies name this function.

    :param policy_class: of SB3
    :param state: attributes of the policy
    :return: the policy
    """
    cls = importlib.import_module(f"{PACKAGE}.policies.erl").deploying(policy_class)
    policy = cls.__new__(cls)
    vars(policy).update(state)
    return policy
