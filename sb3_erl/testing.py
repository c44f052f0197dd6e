"""Checks that a part of one's own keeps what the package promises: an operator, an evolver, a fitness, a learner, ..."""

from __future__ import annotations

import copy
import inspect
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_erl.core.registry import PARTS, resolve
from sb3_erl.evolution.base import Evolver
from sb3_erl.evolution.fitness.base import Fitness
from sb3_erl.learners.base import Learner
from sb3_erl.learners.td_rule import TDRule
from sb3_erl.remote.process import ProcessEvaluator
from sb3_erl.runs.callbacks import GenerationCheckpoint

SMALL: dict[str, Any] = {
    **{"pop_size": 4, "n_pairs": 2, "n_gradient_bases": 1, "sync_period": 1, "seed": 1},
    **{"learning_starts": 200, "batch_size": 16, "train_freq": 8, "fitness_horizon": 50},
}
"""Settings with which a run takes seconds, as far as a class has such arguments."""
OFTEN: dict[str, dict[str, Any]] = {"crossover": {"crossover_prob": 1.0}, "mutation": {"mutation_prob": 1.0}}
"""Settings with which a part of a kind is used in each generation, as far as a class has such arguments."""


NOT_TRIED = ("exploit", "explore", "algorithm")
"""Kinds of parts of :class:`~sb3_erl.populations.pbt.PBT`, whose members are models of other classes."""


class PartError(AssertionError):
    """A part does not keep a promise; the message says which one, and what usually is the reason."""


def check_part(
    part: Any,
    kind: str | None = None,
    algorithm: Any = None,
    env: Any = "Pendulum-v1",
    total_timesteps: int = 4000,
    n_workers: int = 2,
    **kwargs: Any,
) -> Any:
    """
    Check that a part trains, saves, loads, resumes bit for bit, and gives the same result in worker processes.

    It takes some seconds. The environment is made anew for each run, and an object is copied for each of them.

    :param part: a class, function or object, or its name ``"package.module:Name"``
    :param kind: ``"crossover"``, ``"mutation"``, ``"evolver"``, ``"fitness"``, ``"learner"``, ``"exchange"`` or ``"step"``;
        ``None`` to tell it from the part
    :param algorithm: class in which it is tried, :class:`~sb3_erl.algorithms.erl.ERL` if ``None``
    :param env: id of an environment, or a function that makes one
    :param total_timesteps: length of each run, several generations
    :param n_workers: worker processes
    :param kwargs: further arguments of the algorithm
    :return: the model of the uninterrupted run
    :raises PartError: if a promise is not kept
    :raises ValueError: if the kind cannot be told from the part, or is unknown
    """
    from sb3_erl.algorithms.erl import ERL

    cls = ERL if algorithm is None else algorithm
    kind = _kind_of(part) if kind is None else kind
    if kind not in tried_kinds():
        raise ValueError(f"kind must be one of {tried_kinds()}; got {kind!r}")
    arguments = {**_known(cls, {**SMALL, **OFTEN.get(kind, {})}), "device": "cpu", **kwargs}
    argument = "generation_steps" if kind == "step" else kind

    def make(**more: Any) -> Any:
        value = copy.deepcopy(part)
        own = {argument: [value] if kind == "step" else value}
        return cls("MlpPolicy", env() if callable(env) else env, **{**arguments, **own, **more})

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        before = _state(make())
        whole = _trained(make(), total_timesteps)
        if whole.n_generations < 2:
            raise ValueError(f"total_timesteps must be enough for two generations; got {total_timesteps}")
        if _equal(before, _state(whole)):
            raise PartError("training changed no parameter: does the part return what it was given?")
        again = make()
        for seed in (random.seed, np.random.seed, th.manual_seed):  # a run must not depend on global generators
            seed(total_timesteps)
        _check_equal(_trained(again, total_timesteps), whole, "two runs with one seed differ", _RANDOM)
        _check_saved(cls, whole, path / "model.zip")
        _check_resumed(cls, make, whole, total_timesteps, path / "checkpoints")
        with ProcessEvaluator(n_workers, env if callable(env) else None) as workers:
            remote = _trained(make(evaluator=workers), total_timesteps)
            _check_equal(remote, whole, "a run in worker processes differs from one in this process", _REMOTE)
    return whole


_REMOTE = "does it read what it did not declare, or global state that workers lack?"
_RANDOM = "all random numbers must come from the generator that is handed in, or from model.rng(name)"
_STATE = "state that changes must be saved: in buffers of an nn.Module, or by state_dict() and load_state_dict(state)"


def tried_kinds() -> list[str]:
    """:return: kinds of parts that :func:`check_part` can try"""
    return sorted(set(PARTS) - set(NOT_TRIED))


def _kind_of(part: Any) -> str:
    """:raises ValueError: if it cannot be told"""
    kinds = [kind for kind in tried_kinds() if isinstance(part, str) and part in PARTS[kind]]
    if len(kinds) == 1:
        return kinds[0]
    unknown = f"kind must be given, one of {tried_kinds()}; it cannot be told from {part!r}"
    if isinstance(part, str) and ":" not in part:
        raise ValueError(unknown)
    found = resolve("step", part)
    cls = found if isinstance(found, type) else type(found)
    bases: dict[str, tuple[type, ...]] = {"evolver": (Evolver,), "fitness": (Fitness,), "learner": (TDRule, Learner)}
    for kind, classes in bases.items():
        if issubclass(cls, classes):
            return kind
    if hasattr(found, "after"):
        return "step"
    if hasattr(found, "needs"):
        return "fitness"
    if inspect.isfunction(found):
        names = list(inspect.signature(found).parameters)
        is_mutation = names[1:] == ["rng"]  # two arguments also has a fitness that reads no more than rewards
        n_arguments, by_number = len(names), {2: "mutation" if is_mutation else "fitness", 3: "crossover", 4: "exchange"}
    else:
        call = next((vars(base)["__call__"] for base in cls.__mro__ if "__call__" in vars(base)), None)
        n_arguments = 0 if call is None else len(inspect.signature(call).parameters) - 1  # without self
        by_number = {2: "mutation", 3: "crossover", 4: "exchange"}
    if n_arguments not in by_number:
        raise ValueError(unknown)
    return by_number[n_arguments]


def _trained(model: Any, total_timesteps: int) -> Any:
    """:raises PartError: if training raises an error"""
    try:
        return model.learn(total_timesteps)
    except Exception as error:
        raise PartError(f"training ended with an error: {error}") from error


def _known(cls: Any, settings: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(cls).parameters
    return {name: value for name, value in settings.items() if name in parameters}


def _parameters(model: Any) -> list[th.Tensor]:
    """All tensors that a model saves, the optimizers' too."""
    tensors: list[th.Tensor] = []

    def collect(value: Any) -> None:
        if isinstance(value, th.Tensor):
            tensors.append(value.detach().cpu().clone())
        elif isinstance(value, dict):
            for item in value.values():
                collect(item)
        elif isinstance(value, list | tuple):
            for item in value:
                collect(item)

    collect(model.get_parameters())
    return tensors


def _state(model: Any) -> list[th.Tensor]:
    """All parameters, and what is in the replay buffer."""
    buffer = getattr(model, "replay_buffer", None)
    arrays = [] if buffer is None else [getattr(buffer, name)[: buffer.size()] for name in ("actions", "rewards")]
    return [*_parameters(model), *(th.as_tensor(array.copy()) for array in arrays)]


def _equal(first: list[th.Tensor], second: list[th.Tensor]) -> bool:
    """Whether all parameters are equal, NaN included."""
    pairs = zip(first, second, strict=False)
    return len(first) == len(second) and all(
        a.shape == b.shape and th.equal(th.nan_to_num(a), th.nan_to_num(b)) for a, b in pairs
    )


def _check_equal(found: Any, wanted: Any, problem: str, reason: str) -> None:
    if found.num_timesteps != wanted.num_timesteps or not _equal(_state(found), _state(wanted)):
        raise PartError(f"{problem}: {reason}")


def _check_saved(cls: Any, model: Any, path: Path) -> None:
    model.save(path)
    loaded = cls.load(path, device="cpu")
    if not _equal(_parameters(loaded), _parameters(model)):
        raise PartError(f"a loaded model differs from the saved one: {_STATE}")


class _Interruption(BaseCallback):
    """Ends a run in the middle, as a killed process would: nothing after the last checkpoint is kept."""

    def __init__(self, at: int):
        super().__init__()
        self.at = at

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.at:
            raise KeyboardInterrupt
        return True


def _check_resumed(cls: Any, make: Any, whole: Any, total_timesteps: int, folder: Path) -> None:
    model = make()
    try:
        model.learn(
            total_timesteps, [GenerationCheckpoint(total_timesteps // 4, folder), _Interruption(3 * total_timesteps // 4)]
        )
    except KeyboardInterrupt:
        pass
    resumed = cls.resume_from(folder, env=model.get_env(), device="cpu")
    resumed.learn(total_timesteps, GenerationCheckpoint(total_timesteps // 4, folder))
    _check_equal(resumed, whole, "a run that was killed and resumed differs from an uninterrupted one", _STATE)
