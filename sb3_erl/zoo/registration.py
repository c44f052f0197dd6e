"""Adds the algorithms, their search spaces and their default hyper-parameters to the modules of ``rl_zoo3``."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from sb3_erl.zoo.hyperparams import hyperparams_file
from sb3_erl.zoo.members import members_arguments
from sb3_erl.zoo.samplers import FIXED, convert, sampler

WRAPPED = "wrapped_by_sb3_erl"
NESTED = "algorithm_kwargs"
"""Argument that holds arguments of another class."""


def module_ready(name: str, module: ModuleType) -> None:
    """
    Complete one module of ``rl_zoo3``; calling it twice changes nothing, and no entry of the Zoo is overwritten.

    :param name: ``rl_zoo3.utils``, ``rl_zoo3.hyperparams_opt`` or ``rl_zoo3.exp_manager``
    :param module: the module of that name, completely executed
    :raises ValueError: for any other name
    """
    if name not in STEPS:
        raise ValueError(f"name must be one of {sorted(STEPS)}, got {name!r}")
    STEPS[name](module)


def register() -> None:
    """Import the modules of ``rl_zoo3`` that matter and complete them, for notebooks and for ``sb3-erl``."""
    for name in STEPS:
        module_ready(name, importlib.import_module(name))
    hook = startup_hook()
    hook.restore_generate_metadata(importlib.import_module(hook.HUB_MODULE))


def startup_hook() -> Any:
    """The start-up module: at the top level where the package is installed, in ``startup/`` in a bare checkout."""
    try:
        return importlib.import_module("_sb3_erl_zoo")
    except ModuleNotFoundError:
        return importlib.import_module("sb3_erl.zoo.startup._sb3_erl_zoo")


def _algorithms() -> dict[str, type]:
    import sb3_erl  # not at module level: the registry is complete only after the package has been imported

    return dict(sb3_erl.ALGOS)


def _add_algorithms(module: Any) -> None:
    for algo, algorithm in _algorithms().items():
        module.ALGOS.setdefault(algo, algorithm)


def _add_samplers(module: Any) -> None:
    for algo, algorithm in _algorithms().items():
        module.HYPERPARAMS_SAMPLER.setdefault(algo, sampler(algo, algorithm))
        module.HYPERPARAMS_CONVERTER.setdefault(algo, convert)


def _use_own_defaults(module: Any) -> None:
    """Let an experiment with one of our algorithms read our file where the Zoo would look for one of its own."""
    manager = module.ExperimentManager
    original = manager.__init__
    if getattr(original, WRAPPED, False):
        return
    zoo = Path(str(module.__file__)).parent

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        wanted = Path(self.config)
        is_default = wanted in (folder / "hyperparams" / f"{self.algo}.yml" for folder in (zoo, zoo.parent))
        if is_default and self.algo in _algorithms() and not wanted.exists():
            self.config = str(hyperparams_file(self.algo))

    setattr(__init__, WRAPPED, True)
    manager.__init__ = __init__


def _save_and_resume_exactly(module: Any) -> None:
    """
    ``--save-freq`` also writes checkpoints of ours, and ``--trained-agent`` with the model of one of them continues that run.

    Replay buffers are only written with ``--save-replay-buffer``, and without its buffer a run cannot be continued.
    """
    manager = module.ExperimentManager
    original_create = getattr(manager, "create_callbacks", None)
    original_load = getattr(manager, "_load_pretrained_agent", None)
    if original_create is None or original_load is None or getattr(original_load, WRAPPED, False):
        return

    @functools.wraps(original_create)
    def create_callbacks(self: Any) -> None:
        from sb3_erl.runs.callbacks import GenerationCheckpoint

        save_freq = self.save_freq
        original_create(self)
        algorithm = _algorithms().get(self.algo)
        if save_freq > 0 and algorithm is not None and not self.optimize_hyperparameters:
            if self.save_replay_buffer or not hasattr(algorithm, "save_replay_buffer"):
                self.callbacks.append(GenerationCheckpoint(save_freq, Path(self.save_path) / "checkpoints"))

    @functools.wraps(original_load)
    def _load_pretrained_agent(self: Any, hyperparams: dict[str, Any], env: Any) -> Any:
        from sb3_erl.runs.checkpoints import read_manifest

        algorithm, folder = _algorithms().get(self.algo), Path(self.trained_agent).parent
        if algorithm is None or read_manifest(folder) is None:
            return original_load(self, hyperparams, env)
        print(f"Resuming the run that was saved in {folder}")
        log = {"tensorboard_log": self.tensorboard_log, "verbose": self.verbose}
        model = algorithm.resume_from(folder, env, self.device, **log)  # type: ignore[attr-defined]
        if getattr(self.args, "n_timesteps", -1) <= 0:  # no -n was typed; what stands in the YAML file is for new runs
            self.n_timesteps = model._total_timesteps - model._num_timesteps_at_start
            print(f"Continuing to the n_timesteps of that run, {self.n_timesteps}")
        return model

    setattr(_load_pretrained_agent, WRAPPED, True)
    manager.create_callbacks, manager._load_pretrained_agent = create_callbacks, _load_pretrained_agent


def _search_beside_what_is_fixed(module: Any) -> None:
    """Samplers see the settings that all trials have; exact checkpoints of them would lie in one folder, so none are made."""
    manager = module.ExperimentManager
    original = getattr(manager, "objective", None)
    if original is None or getattr(original, WRAPPED, False):
        return

    @functools.wraps(original)
    def objective(self: Any, trial: Any) -> Any:
        from sb3_erl.runs.callbacks import GenerationCheckpoint

        chosen = self.specified_callbacks or []
        chosen = chosen if isinstance(chosen, list) else [chosen]
        self.specified_callbacks = [each for each in chosen if not _makes(each, GenerationCheckpoint)]
        token = FIXED.set(self._hyperparams)
        try:
            return original(self, trial)
        finally:
            FIXED.reset(token)

    setattr(objective, WRAPPED, True)
    manager.objective = objective


def _makes(callback: Any, kind: type) -> bool:
    """Whether an entry of ``callback`` in a file of hyper-parameters stands for a callback of this kind."""
    from rl_zoo3.utils import get_class_by_name

    name = next(iter(callback)) if isinstance(callback, dict) and callback else callback
    found = get_class_by_name(name) if isinstance(name, str) else type(name)
    return issubclass(found, kind)


def _convert_arguments_of_members(module: Any) -> None:
    """``algorithm_kwargs`` of :class:`~sb3_erl.populations.pbt.PBT` may be spelled as the arguments of any algorithm."""
    manager = module.ExperimentManager
    preprocess = getattr(manager, "_preprocess_hyperparams", None)
    add_noise = getattr(manager, "_preprocess_action_noise", None)
    if preprocess is None or add_noise is None or getattr(preprocess, WRAPPED, False):
        return

    @functools.wraps(preprocess)
    def _preprocess_hyperparams(self: Any, hyperparams: dict[str, Any]) -> Any:
        processed, *others = preprocess(self, hyperparams)
        if NESTED in processed and self.algo in _algorithms():
            processed[NESTED] = members_arguments(processed[NESTED], self, vars(module))
        return processed, *others

    @functools.wraps(add_noise)
    def _preprocess_action_noise(self: Any, hyperparams: dict[str, Any], *others: Any) -> dict[str, Any]:
        processed = add_noise(self, hyperparams, *others)
        nested = processed.get(NESTED)
        if isinstance(nested, dict) and self.algo in _algorithms():
            processed[NESTED] = add_noise(self, nested, *others)
        return processed

    setattr(_preprocess_hyperparams, WRAPPED, True)
    manager._preprocess_hyperparams, manager._preprocess_action_noise = _preprocess_hyperparams, _preprocess_action_noise


def _complete_manager(module: Any) -> None:
    from sb3_erl.envs.packages import register_namespaces

    register_namespaces()  # the Zoo refuses an id that is not in the registry
    _use_own_defaults(module)
    _save_and_resume_exactly(module)
    _convert_arguments_of_members(module)
    _search_beside_what_is_fixed(module)


STEPS = {
    "rl_zoo3.utils": _add_algorithms,
    "rl_zoo3.hyperparams_opt": _add_samplers,
    "rl_zoo3.exp_manager": _complete_manager,
}
