"""A model and its run in lines of text: what ``print`` shows, and what ``verbose=1`` says beside the tables of generations."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.logger import HumanOutputFormat
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from sb3_erl.core.checks import warn_caller
from sb3_erl.runs.run_state import numbered_callbacks

FIRST_STEPS = 500
"""Environment steps after which there is a table, if there was none before."""
SECONDS = 30.0
"""Seconds after which there is a table again while a generation goes on."""
TRIAL_STEPS = 1000
"""Environment steps without learning of which nobody is warned, as of a short trial of the code."""


class EarlyTables:
    """
    Shows on the screen how a run goes before its first generation is over, and while a long one runs.

    These tables go to the screen only: files of a logger get one row for each ``log_interval``, as always.

    :param model: whose ``learn`` has begun
    """

    def __init__(self, model: Any):
        self._model = model
        self._next_steps: float = model.num_timesteps + FIRST_STEPS
        self._next_time = math.inf

    def look(self) -> None:
        """Show a table if one is due."""
        if self._model.num_timesteps >= self._next_steps or time.monotonic() >= self._next_time:
            self._show()

    def has_shown(self) -> None:
        """A table was shown just now, by whomever."""
        self._next_steps, self._next_time = math.inf, time.monotonic() + SECONDS

    def _show(self) -> None:
        model = self._model
        values: dict[str, Any] = {}
        if model.ep_info_buffer:
            values["rollout/ep_len_mean"] = float(np.mean([info["l"] for info in model.ep_info_buffer]))
            values["rollout/ep_rew_mean"] = float(np.mean([info["r"] for info in model.ep_info_buffer]))
        seconds = max((time.time_ns() - model.start_time) / 1e9, 1e-9)
        values["time/episodes"] = model._episode_num
        values["time/fps"] = int((model.num_timesteps - model._num_timesteps_at_start) / seconds)
        if hasattr(model, "n_generations"):
            values["time/generations"] = model.n_generations
        values["time/time_elapsed"] = int(seconds)
        values["time/total_timesteps"] = model.num_timesteps
        note = warm_up(model)
        if note is not None:
            values["time/warm_up"] = note
        for writer in model.logger.output_formats:
            if isinstance(writer, HumanOutputFormat) and not writer.own_file:
                writer.write(dict(sorted(values.items())), dict.fromkeys(values, ()), model.num_timesteps)
        self.has_shown()


def warm_up(model: Any) -> str | None:
    """
    :param model: of this package
    :return: how far it is from learning, such as "3,200 of 10,000 learner steps"; ``None`` where nothing is waited for
    """
    progress = getattr(model, "_warm_up", None)
    if progress is None:
        return None
    n_steps, of, unit = progress
    return f"{n_steps:,} of {of:,.0f} {unit}" if n_steps < of else None


def log_warm_up(model: Any) -> None:
    """
    Let the next table on the screen say how far the model is from learning.

    :param model: of this package
    """
    note = warm_up(model)
    if note is not None:
        model.logger.record("time/warm_up", note, exclude=("csv", "json", "tensorboard"))


def remember_logged(model: Any) -> None:
    """
    Keep what was logged last where :func:`deployed` finds it; to be called before a table is written.

    :param model: of this package
    """
    numbers = {
        key: float(value) for key, value in model.logger.name_to_value.items() if isinstance(value, int | float | np.number)
    }
    model.run.latest.update(numbers)
    if model.run.tables is not None:
        model.run.tables.has_shown()


# -------------------------------------------------------------------- what is deployed

MEASURED_BY: dict[str, tuple[str, ...]] = {
    "champion": ("population/elite_return", "rollout/best_return", "population/champion_return"),
    "winner": ("population/champion_return",),
    "mean": ("rollout/center_ep_rew_mean",),
    "best member": ("rollout/best_member_return",),
    "learner": ("rollout/learner_ep_rew_mean",),
    "sac": ("rollout/learner_ep_rew_mean",),
    "checkpoint": ("checkpoint/score",),
}
"""By the name of what is deployed: keys of the log that have its return in training."""


def deployed(model: Any) -> tuple[str, float | None]:
    """
    :param model: of this package
    :return: what ``predict`` acts with, by its name in ``deploy`` and ``candidates_for_report``; and its latest return in
        training episodes, ``None`` if it is not known
    """
    name = _deployed_name(model)
    logged = {**model.run.latest, **(model.logger.name_to_value if hasattr(model, "_logger") else {})}
    for key in MEASURED_BY.get(name, ()):
        value = logged.get(key)
        if value is not None and np.isfinite(value):
            return name, float(value)
    saved = getattr(model, "champion_return", None) if name == "champion" else None
    return name, saved


def _deployed_name(model: Any) -> str:
    if hasattr(model, "_deployed_is_learner"):
        return "learner" if model._deployed_is_learner else "checkpoint"
    if getattr(model, "_deploys_checkpoint", False):
        return "checkpoint"
    if hasattr(model, "meta_population_size"):
        return "best member"
    if not hasattr(model, "population"):  # whole models, of which the best one acts
        return "champion"
    population, is_hybrid = model.population, hasattr(model, "learner")
    name = getattr(model, "deploy", None)
    if name is None and is_hybrid:
        return "learner"
    if name is None:
        has_mean = population.evolver.center() is not None and model.algorithm != "EvolutionaryAlgorithm"
        return "mean" if has_mean else "champion"
    has_choice = name != "learner" and "learner" in getattr(model, "deploy_choices", ())
    return "learner" if has_choice and population.champion is None and model.champion_fitness is None else name


def last_line(model: Any, callback: BaseCallback) -> str:
    """
    :param model: whose ``learn`` has ended
    :param callback: all callbacks of the call
    :return: what is deployed, and how good it was when it was measured last
    """
    name, value = deployed(model)
    line = f"Done at step {model.num_timesteps:,}: predict() acts with the {name}"
    evaluations = [each for _, each in numbered_callbacks(callback) if isinstance(each, EvalCallback)]
    if evaluations and np.isfinite(evaluations[0].last_mean_reward):
        return f"{line}, return {evaluations[0].last_mean_reward:,.1f} in the last evaluation"
    if value is None:
        return f"{line}, whose return was not measured in training (evaluate_policy(model, env) does)"
    kind = "lowest return of its episodes" if name == "checkpoint" else "latest return in training"
    return f"{line}, {kind} {value:,.1f}"


class Progress:
    """
    What a call of ``learn`` has brought, for the warning that it brought nothing: each call begins new episodes.

    :param model: before its training loop
    """

    def __init__(self, model: Any):
        self.model, self.n_timesteps = model, model.num_timesteps
        self.before = self._so_far()

    def _so_far(self) -> int:
        found = getattr(self.model, "n_generations", None)
        return int(self.model._n_updates if found is None else found)

    def warn_of_none(self, total_timesteps: int) -> None:
        """
        Warn once when calls in a row have taken ``TRIAL_STEPS`` steps together and learned nothing.

        :param total_timesteps: where the budget ends; nobody is warned whom a callback stopped, nor within a warm-up
        """
        model, n = self.model, self.model.num_timesteps - self.n_timesteps
        is_generational = hasattr(model, "n_generations")
        waits = not is_generational and self.n_timesteps < model.learning_starts
        if self._so_far() > self.before or model.num_timesteps < total_timesteps or waits:
            model.run.wasted_steps = 0
            return
        before, model.run.wasted_steps = model.run.wasted_steps, model.run.wasted_steps + n
        if before < TRIAL_STEPS <= model.run.wasted_steps:
            part = "generation" if is_generational else "assessment of the policy"
            warn_caller(
                f"learn() ended inside its first {part}: nothing was learned in the last {model.run.wasted_steps} steps, and "
                "another call begins a new one. Ask for more total_timesteps in one call; callbacks, such as "
                "GenerationCheckpoint, can act or save in between"
            )


# -------------------------------------------------------------------- a model in a few lines


def env_name(env: VecEnv | None) -> str:
    """:return: the id of an environment, else the name of its class; without asking other processes"""
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    if env is None:
        return "no env"
    if not isinstance(env, DummyVecEnv):
        return type(env).__name__
    spec = getattr(env.envs[0], "spec", None)
    return type(env.envs[0].unwrapped).__name__ if spec is None else spec.id


def describe(model: Any) -> str:
    """
    :param model: of this package
    :return: system, policy, environment, population and learner where there are any, steps and generations, and what
        ``predict`` acts with; a line each
    """
    policy, env = getattr(model, "policy", None), getattr(model, "env", None)
    lines = [type(model).__name__]
    if policy is None:
        return f"{lines[0]} (not set up)"
    n_weights = sum(parameter.numel() for parameter in policy.parameters())
    lines.append(f"  policy:      {type(policy).__name__}, {n_weights:,} weights on {model.device}")
    size = "" if env is None else f", {env.num_envs} in parallel" if env.num_envs > 1 else ""
    spaces = f"observations {_space(model.observation_space)}, actions {_space(model.action_space)}"
    lines.append(f"  environment: {env_name(env)}{size}, {spaces}")
    if hasattr(model, "pop_size"):
        evolver = getattr(model, "evolver", None)
        kind = "" if evolver is None else f", {type(evolver).__name__}"
        lines.append(f"  population:  {model.pop_size}{kind}")
    if hasattr(model, "learner"):
        waits = warm_up(model)
        note = "" if waits is None else f", begins after a warm-up: {waits}"
        lines.append(f"  learner:     {learner_name(model.learner)}, {model._n_updates:,} updates{note}")
    trained = f"{model.num_timesteps:,} steps"
    if hasattr(model, "n_generations"):
        trained += f", {model.n_generations:,} generation{'s' * (model.n_generations != 1)}"
    lines.append(f"  trained:     {trained}, seed {model.run_seed}")
    name, value = deployed(model)
    lines.append(f"  predict:     acts with the {name}" + ("" if value is None else f", return {value:,.1f} in training"))
    return "\n".join(lines)


def learner_name(learner: Any) -> str:
    """
    :param learner: of a model
    :return: by what rule it learns, such as "TD3"; of several learners those of all
    """
    members = getattr(learner, "members", None)
    if members is not None:
        names = [learner_name(member) for member in members]
        return ", ".join(name if names.count(name) == 1 else f"{names.count(name)} {name}" for name in dict.fromkeys(names))
    rule = getattr(learner, "rule", getattr(learner, "model", None))
    name = type(learner if rule is None else rule).__name__
    return name.removeprefix("Shared").removesuffix("Learner").removesuffix("Rule") or name


def _space(space: Any) -> str:
    return f"{type(space).__name__}{space.shape}" if space.shape else str(space)
