"""A member of the population: a whole SB3 model as bytes, and its generation as a function of them and of an address."""

from __future__ import annotations

import copy
import io
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from stable_baselines3.her import HerReplayBuffer

from sb3_erl.core.seeding import Address, scoped_generators
from sb3_erl.populations.applying import arguments_with, constructor_arguments, settle, settle_buffer
from sb3_erl.populations.episodes import StepRecorder, Steps, play_episodes
from sb3_erl.populations.normalizers import read_statistics, write_statistics
from sb3_erl.runs.buffer_files import save_buffer
from sb3_erl.runs.loading import brief

Outcome = Literal["trained", "diverged", "failed"]


@dataclass(frozen=True)
class Recipe:
    """
    What all members have in common.

    :param algorithm: class of the members
    :param policy: alias or class
    :param kwargs: arguments of the class beside those that are searched
    :param device: of their networks
    """

    algorithm: type[BaseAlgorithm]
    policy: Any
    kwargs: Mapping[str, Any]
    device: Any = "auto"


@dataclass(frozen=True)
class MemberState:
    """
    Everything of a member between two generations; nothing changes it, so copies may share it.

    :param model: zip file as the ``save`` of its class writes it
    :param hyperparameters: searched values by name
    :param buffer: pickled replay buffer, ``None`` without one
    :param statistics: what a ``VecNormalize`` has learned by its steps, by name; ``None`` without one
    """

    model: bytes
    hyperparameters: Mapping[str, Any]
    buffer: bytes | None = None
    statistics: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Task:
    """
    A member's generation: what it depends on, and nothing else.

    :param number: of the member
    :param recipe: of all members
    :param state: of the member
    :param address: root of the random numbers of the generation
    :param ready_steps: environment steps of training
    :param remaining: progress that remains at the beginning, 1 at that of the call, as SB3's schedules take it
    :param per_step: by how much it falls with each of the member's steps
    :param score: ``"evaluation"`` for separate episodes, ``"training"`` for the last ones of training
    :param n_eval_episodes: episodes that make up a score
    :param n_threads: of PyTorch while it trains
    :param learns_statistics: whether a ``VecNormalize`` learns from the steps; not if its ``training`` is off
    """

    number: int
    recipe: Recipe
    state: MemberState
    address: Address
    ready_steps: int
    remaining: float
    per_step: float
    score: Literal["evaluation", "training"]
    n_eval_episodes: int
    n_threads: int = 1
    learns_statistics: bool = True


@dataclass(frozen=True)
class Result:
    """
    What became of a member in a generation.

    :param number: of the member
    :param outcome: ``"diverged"`` if numbers of it are not finite any more, ``"failed"`` if something raised an error
    :param state: after the generation; before it if the member failed or diverged
    :param score: higher is better, NaN without one
    :param steps: that were made
    :param n_timesteps: the member's own count
    :param reason: an error in a line
    :param message: the error with its traceback
    """

    number: int
    outcome: Outcome
    state: MemberState
    score: float = np.nan
    steps: Steps = field(default_factory=Steps)
    n_timesteps: int = 0
    reason: str = ""
    message: str = ""


# -------------------------------------------------------------------- between models and bytes


def new_model(recipe: Recipe, env: VecEnv, values: Mapping[str, Any], address: Address, number: int) -> BaseAlgorithm:
    """
    :param recipe: of all members
    :param env: of the population
    :param values: searched values
    :param address: root of the random numbers
    :param number: of the member
    :return: an untrained member
    """
    common = {name: copy.deepcopy(value) if isinstance(value, dict) else value for name, value in recipe.kwargs.items()}
    arguments = {**common, **arguments_with(values, recipe.kwargs)}  # SB3 adds to dicts that it is given
    sequence = address.named_sequence("a new member", number)
    seed = int(sequence.generate_state(1)[0] >> 1)
    with scoped_generators(sequence):
        made: Any = recipe.algorithm
        return made(recipe.policy, env, **arguments, **_known(made, {"seed": seed, "device": recipe.device}))


def _known(algorithm: type, arguments: dict[str, Any]) -> dict[str, Any]:
    """Only device and seed, which all of SB3's classes have; a class of a user's own may lack them."""
    return {name: value for name, value in arguments.items() if name in constructor_arguments(algorithm)}


def packed(model: Any, values: Mapping[str, Any], with_buffer: bool = True) -> MemberState:
    """
    :param model: a member
    :param values: its hyper-parameters
    :param with_buffer: whether its replay buffer is kept, too
    :return: the member as bytes
    """
    file, buffer_file = io.BytesIO(), io.BytesIO()
    model.save(file)
    if with_buffer and getattr(model, "replay_buffer", None) is not None:
        save_buffer(model.replay_buffer, buffer_file)  # without what was never filled
    normalizer = None if model.env is None else unwrap_vec_normalize(model.env)
    return MemberState(
        file.getvalue(),
        dict(values),
        buffer_file.getvalue() or None,
        None if normalizer is None else read_statistics(normalizer),
    )


def unpacked(state: MemberState, recipe: Recipe, env: VecEnv | None, with_buffer: bool = True) -> Any:
    """
    :param state: of a member
    :param recipe: of all members
    :param env: of the population, ``None`` for a model that only acts
    :param with_buffer: whether it gets its replay buffer back
    :return: the member as a model, with its hyper-parameters of now; global generators are as they were
    """
    arguments = arguments_with(state.hyperparameters, recipe.kwargs)
    buffer_class = recipe.kwargs.get("replay_buffer_class")
    if env is None and isinstance(buffer_class, type) and issubclass(buffer_class, HerReplayBuffer):
        arguments |= {"replay_buffer_class": DictReplayBuffer, "replay_buffer_kwargs": {}, "buffer_size": 1}  # asks no env
    with scoped_generators(np.random.SeedSequence(0)), warnings.catch_warnings():  # SB3 seeds them when it loads a model
        warnings.filterwarnings("ignore", message=".*is ignored because a custom `replay_buffer_class`")  # it is in the buffer
        model: Any = recipe.algorithm.load(io.BytesIO(state.model), env=env, device=recipe.device, **arguments)
        settle(model, arguments)
        if with_buffer and state.buffer is not None and env is not None:
            with warnings.catch_warnings():  # of HER, which says each time what the docstring of run_task says
                warnings.filterwarnings("ignore", message="The last trajectory in the replay buffer will be truncated")
                model.load_replay_buffer(io.BytesIO(state.buffer))
        settle_buffer(model, arguments)
    return model


@contextmanager
def torch_threads(n_threads: int) -> Iterator[None]:
    """PyTorch uses so many threads in the block; the last bits of its sums depend on their number."""
    before = th.get_num_threads()
    th.set_num_threads(n_threads)
    try:
        yield
    finally:
        th.set_num_threads(before)


def is_numerical(error: Exception) -> bool:
    """Whether PyTorch raised an error because of numbers that are too large, or none, in a distribution or an optimizer."""
    if not isinstance(error, ValueError | RuntimeError) or isinstance(error, th.OutOfMemoryError):
        return False
    names = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(name.startswith(("torch.distributions", "torch.optim")) for name in names)


def is_finite(model: Any) -> bool:
    """Whether all numbers of a model's networks are finite."""
    tensors = [value for value in model.policy.state_dict().values() if isinstance(value, th.Tensor)]
    return all(bool(th.isfinite(value).all()) for value in tensors if value.is_floating_point())


# -------------------------------------------------------------------- a generation


def run_task(task: Task, env: VecEnv) -> Result:
    """
    A member's generation: it trains for ``ready_steps`` and is scored.

    SB3's ``learn`` begins with new episodes. Their seeds, exploration and updates derive from the address of the
    generation and the member's number, so the result is the same in any process.

    :param task: what is to be done
    :param env: the population's environments, or others that are alike
    :return: what became of it; errors of environment and algorithm are in it
    """
    with torch_threads(task.n_threads):
        return _run_task(task, env)


def _run_task(task: Task, env: VecEnv) -> Result:
    steps, model = Steps(), None
    try:
        write_statistics(env, task.state.statistics)
        model = unpacked(task.state, task.recipe, env)
        _train(model, task, env, steps)
        score = _score(model, task, env, steps)
        outcome: Outcome = "trained" if np.isfinite(score) and is_finite(model) else "diverged"
        if task.score == "training" and len(model.ep_info_buffer or ()) == 0 and is_finite(model):
            outcome = "trained"  # no episode has ended yet
        state = packed(model, task.state.hyperparameters) if outcome == "trained" else task.state
        return Result(task.number, outcome, state, score, steps, int(model.num_timesteps))
    except Exception as error:
        has_diverged = (model is not None and not is_finite(model)) or is_numerical(error)
        before = 0 if model is None else int(model.num_timesteps)
        outcome = "diverged" if has_diverged else "failed"
        return Result(task.number, outcome, task.state, np.nan, steps, before, brief(error), traceback.format_exc())


def _train(model: Any, task: Task, env: VecEnv, steps: Steps) -> None:
    sequence = task.address.named_sequence("a member's training", task.number)
    seed = int(sequence.generate_state(1)[0] >> 1)
    model.set_logger(Logger(folder=None, output_formats=[]))
    model.seed = seed
    if hasattr(model, "run_seed"):  # of a class of this package
        model.run_seed = seed
    model.action_space.seed(seed)
    end_episode(getattr(model, "replay_buffer", None))
    normalizer = unwrap_vec_normalize(env)
    if normalizer is not None:
        normalizer.training = task.learns_statistics
    env.seed(seed)
    model._last_obs = None  # so that learn() begins with new episodes
    begin = model.num_timesteps

    def follow(num_timesteps: int, total_timesteps: int) -> None:
        model._current_progress_remaining = max(0.0, task.remaining - task.per_step * (num_timesteps - begin))

    model._update_current_progress_remaining = follow
    follow(begin, begin)
    extra = {}
    if hasattr(model.learn, "__func__") and "use_masking" in model.learn.__func__.__code__.co_varnames:
        from sb3_contrib.common.maskable.utils import is_masking_supported

        extra = {"use_masking": is_masking_supported(env)}
    try:
        with scoped_generators(sequence):
            recorder = StepRecorder(steps)
            model.learn(task.ready_steps, recorder, log_interval=None, reset_num_timesteps=False, **extra)
    finally:
        del model._update_current_progress_remaining


def _score(model: Any, task: Task, env: VecEnv, steps: Steps) -> float:
    """:return: mean return of the episodes by which members are compared; those of a generation are the same for all"""
    if not is_finite(model):
        return float("nan")
    if task.score == "training":
        last = [info["r"] for info in list(model.ep_info_buffer or ())[-task.n_eval_episodes :]]
        return float(np.mean(last)) if last else float("nan")
    sequence = task.address.named_sequence("scores")
    with scoped_generators(sequence):
        seed = int(sequence.generate_state(1)[0] >> 1)
        return float(np.mean(play_episodes(model, env, task.n_eval_episodes, seed, steps)))


def end_episode(buffer: Any) -> None:
    """
    Mark the step that was stored last as the end of its episode, which the next generation does not continue.

    :param buffer: a replay buffer of SB3, or ``None``; HER's do so themselves when they are loaded
    """
    is_plain = all(isinstance(getattr(buffer, name, None), np.ndarray) for name in ("dones", "timeouts"))
    if is_plain and not hasattr(buffer, "ep_start") and (buffer.full or buffer.pos > 0):
        last = (buffer.pos - 1) % buffer.buffer_size
        if not getattr(buffer, "optimize_memory_usage", False):  # its successor is the next row, which will be overwritten
            buffer.timeouts[last] = np.logical_or(buffer.timeouts[last], np.logical_not(buffer.dones[last]))
        buffer.dones[last] = 1


def replaced(
    state: MemberState, parent: MemberState, values: Mapping[str, Any], buffer: bool, statistics: bool
) -> MemberState:
    """
    :param state: of a member that gives up its weights
    :param parent: of the one with whose weights it goes on
    :param values: its new hyper-parameters
    :param buffer: whether it gets the parent's replay buffer, too
    :param statistics: whether it gets the parent's ``VecNormalize`` statistics, too
    :return: the state with which it goes on
    """
    own: dict[str, Any] = {} if buffer else {"buffer": state.buffer}
    own |= {} if statistics else {"statistics": state.statistics}
    return replace(parent, hyperparameters=dict(values), **own)
