"""The loop over generations of a population of whole models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from sb3_erl.core.checks import warn_caller
from sb3_erl.core.seeding import Stream, scoped_generators
from sb3_erl.populations.backends import Workers, run_here
from sb3_erl.populations.episodes import Steps, play_episodes
from sb3_erl.populations.lineage import log_generation, rows_of
from sb3_erl.populations.member import Result, Task, torch_threads, unpacked
from sb3_erl.populations.normalizers import write_statistics
from sb3_erl.populations.selection import select
from sb3_erl.remote.choice import remote_evaluator


def run_generations(model: Any, total_timesteps: int, callback: BaseCallback, log_interval: int | None) -> None:
    """
    Run generations until the budget is spent or a callback says stop.

    Generations are whole: training ends with the one in which ``total_timesteps`` is reached, or a callback says stop.

    :param model: the population
    :param total_timesteps: where ``num_timesteps`` ends
    :param callback: called for every vector step of a member, when the generation is done
    :param log_interval: generations between two log tables, ``None`` for no automatic log
    """
    if model.num_timesteps >= total_timesteps:  # killed after its last checkpoint
        return
    members = model._members  # made before the first generation, also where python -O leaves assertions out
    assert len(members) == model.pop_size
    with _workers(model) as workers:
        goes_on = True
        while goes_on and model.num_timesteps < total_timesteps:
            model.run.at_boundary()
            model.phase += 1
            goes_on = _run_generation(model, workers, total_timesteps, callback)
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
    """
    Train all members, let ``predict`` act as the best of them, and then show their steps to the callbacks.

    What a callback measures or saves at one of these steps is thus the population that was trained in them.

    :return: whether training goes on
    """
    callback.on_rollout_start()
    tasks = plan_tasks(model, total_timesteps)
    with closing(run_here(tasks, model.env) if workers is None else workers.run(tasks)) as running:  # type: ignore[type-var]
        results = list(running)
    model._n_unreported = sum(sum(result.steps.counts) for result in results)
    try:
        selected = select(results, model.rules, model.recipe, model.run.rng(Stream.EVOLUTION), model.env)
        number = model.n_generations + 1
        model.history += rows_of(number, results, model.born_of)
        model._states, model.born_of, model.n_generations = selected.states, selected.parents, number
        champion = results[model.champion if selected.champion is None else selected.champion]  # nobody may have a score yet
        champion_return = _deploy(model, champion) if champion.outcome == "trained" else None
        goes_on = all(report_steps(model, result.steps, callback) for result in results)
    finally:  # all of them were made, whether callbacks have seen them or not
        model.num_timesteps += model._n_unreported
        model._n_unreported = 0
    if goes_on:
        callback.on_rollout_end()
    log_generation(model.logger, number, results, selected)
    if champion_return is not None:
        model.logger.record("population/champion_return", champion_return)
    model._update_current_progress_remaining(model.num_timesteps, total_timesteps)
    return goes_on


def plan_tasks(model: Any, total_timesteps: int) -> list[Task]:
    """
    :param model: the population
    :param total_timesteps: where ``num_timesteps`` ends
    :return: the members' work in this generation; in the last one of a call it is what is left, in equal shares
    """
    share = -(-(total_timesteps - model.num_timesteps) // model.pop_size)
    steps, remaining = min(model.ready_steps, share), 1.0 - model.num_timesteps / total_timesteps
    schedule = (remaining, model.pop_size / total_timesteps)
    normalizer = model.get_vec_normalize_env()
    learns_statistics = normalizer is not None and normalizer.training
    common = (model.run.address, steps, *schedule, model.score, model.n_eval_episodes, model.n_threads, learns_statistics)
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
        model._n_unreported -= count
        variables = steps.variables(step, model.n_envs)
        callback.update_locals(variables)
        if not callback.on_step():
            return False
        if not variables["is_evaluation"]:
            model._update_info_buffer(variables["infos"], variables["dones"])
            model._episode_num += int(variables["dones"].sum())
    return True


def _deploy(model: Any, result: Result) -> float | None:
    """
    Let ``predict`` act as the champion, and play the episodes that select nothing.

    :param model: the population
    :param result: of the champion
    :return: mean return of these episodes, ``None`` without them
    """
    champion = unpacked(result.state, model.recipe, model.env, with_buffer=False)
    model.champion = result.number
    model.policy.load_state_dict(champion.policy.state_dict())
    model.policy.set_training_mode(False)
    write_statistics(model.env, result.state.statistics)
    return _champion_return(model, champion) if model.n_report_episodes > 0 else None


def _champion_return(model: Any, champion: Any) -> float | None:
    """Play the champion's further episodes; an environment that fails in them costs the report and nothing else."""
    sequence = model.run.address.named_sequence("reports")
    seed = int(sequence.generate_state(1)[0] >> 1)
    try:
        with scoped_generators(sequence), torch_threads(model.n_threads):
            returns = play_episodes(champion, model.env, model.n_report_episodes, seed)
    except Exception as error:
        warn_caller(
            f"the champion's episodes for the report failed, champion_return is that of an earlier generation: {error}"
        )
        return None
    model.champion_return = float(np.mean(returns))
    return model.champion_return
