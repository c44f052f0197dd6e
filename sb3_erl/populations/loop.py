"""The loop over generations of a population of whole models."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from sb3_erl.core.seeding import Stream, scoped_generators
from sb3_erl.populations.backends import Workers, run_here
from sb3_erl.populations.episodes import Steps, play_episodes
from sb3_erl.populations.lineage import log_generation, rows_of
from sb3_erl.populations.member import MemberState, Result, Task, torch_threads, unpacked, write_statistics
from sb3_erl.populations.selection import select
from sb3_erl.remote.choice import remote_evaluator


def run_generations(model: Any, total_timesteps: int, callback: BaseCallback, log_interval: int | None) -> None:
    """
    Run generations until the budget is spent or a callback says stop.

    Generations are whole: training ends with the one in which ``total_timesteps`` is reached.

    :param model: the population
    :param total_timesteps: where ``num_timesteps`` ends
    :param callback: called for every vector step of a member, when the member is done
    :param log_interval: generations between two log tables, ``None`` for no automatic log
    """
    if model.num_timesteps >= total_timesteps:  # killed after its last checkpoint
        return
    assert len(model._members) == model.pop_size  # made before the first generation
    with _workers(model) as workers:
        while model.num_timesteps < total_timesteps:
            model.run.at_boundary()
            model.phase += 1
            if not _run_generation(model, workers, total_timesteps, callback):
                return
            if log_interval is not None and model.n_generations % log_interval == 0:
                model.dump_logs()


@contextmanager
def _workers(model: Any) -> Iterator[Workers | None]:
    """Workers that end with the block; ``None`` where this process does the work."""
    evaluator = remote_evaluator(model.evaluator, None)
    if evaluator is None:
        yield None
        return
    with closing(Workers(evaluator, model.env, model.pop_size)) as workers:
        yield workers


def _run_generation(model: Any, workers: Workers | None, total_timesteps: int, callback: BaseCallback) -> bool:
    """:return: whether training goes on; if not, the members are as they were before this generation"""
    callback.on_rollout_start()
    results: list[Result] = []
    tasks = plan_tasks(model, total_timesteps)
    with closing(run_here(tasks, model.env) if workers is None else workers.run(tasks)) as running:  # type: ignore[type-var]
        for result in running:
            results.append(result)
            if not report_steps(model, result.steps, callback):
                return False
    callback.on_rollout_end()
    selected = select(results, model.rules, model.recipe, model.run.rng(Stream.EVOLUTION))
    number = model.n_generations + 1
    log_generation(model.logger, number, results, selected)
    if selected.champion is not None:
        _deploy(model, results[selected.champion].state)
        model.champion = selected.champion
    model.history += rows_of(number, results, model.born_of)
    model._states, model.born_of, model.n_generations = selected.states, selected.parents, number
    model._update_current_progress_remaining(model.num_timesteps, total_timesteps)
    return True


def plan_tasks(model: Any, total_timesteps: int) -> list[Task]:
    """
    :param model: the population
    :param total_timesteps: where ``num_timesteps`` ends
    :return: the members' work in this generation; in the last one of a call it is what is left, in equal shares
    """
    share = -(-(total_timesteps - model.num_timesteps) // model.pop_size)
    steps, remaining = min(model.ready_steps, share), 1.0 - model.num_timesteps / total_timesteps
    schedule = (remaining, model.pop_size / total_timesteps)
    common = (model.run.address, steps, *schedule, model.score, model.n_eval_episodes, model.n_threads)
    return [Task(number, model.recipe, state, *common) for number, state in enumerate(model._members)]


def report_steps(model: Any, steps: Steps, callback: BaseCallback) -> bool:
    """
    Count a member's steps and show them to the callbacks, as if they were made now.

    :param model: the population
    :param steps: of the member
    :param callback: all callbacks
    :return: whether training goes on
    """
    for step, count in enumerate(steps.counts):
        model.num_timesteps += count
        variables = steps.variables(step, model.n_envs)
        callback.update_locals(variables)
        if not callback.on_step():
            return False
        if not variables["is_evaluation"]:
            model._update_info_buffer(variables["infos"], variables["dones"])
            model._episode_num += int(variables["dones"].sum())
    return True


def _deploy(model: Any, state: MemberState) -> None:
    """Let ``predict`` act as the champion, and play the episodes that select nothing."""
    champion = unpacked(state, model.recipe, model.env, with_buffer=False)
    model.policy.load_state_dict(champion.policy.state_dict())
    model.policy.set_training_mode(False)
    write_statistics(model.env, state.statistics)
    if model.n_report_episodes > 0:
        _report(model, champion)


def _report(model: Any, champion: Any) -> None:
    """Play the champion's further episodes; an environment that fails in them costs the report and nothing else."""
    sequence = model.run.address.named_sequence("reports")
    seed = int(sequence.generate_state(1)[0] >> 1)
    try:
        with scoped_generators(sequence), torch_threads(model.n_threads):
            returns = play_episodes(champion, model.env, model.n_report_episodes, seed)
    except Exception as error:
        warnings.warn(
            f"the champion's episodes for the report failed, champion_return is that of an earlier generation: {error}",
            stacklevel=7,
        )
        return
    model.champion_return = float(np.mean(returns))
    model.logger.record("population/champion_return", model.champion_return)
