"""What became of each member in each generation: a table, and curves in the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.logger import Logger

from sb3_erl.engine.generation import log_fitness
from sb3_erl.populations.member import Result
from sb3_erl.populations.selection import Selected

NOT_PRINTED = ("stdout",)
"""Curves of single members go into files only, since a table of all of them would not be read."""


def rows_of(generation: int, results: Sequence[Result], born_of: Sequence[int]) -> list[dict[str, Any]]:
    """
    :param generation: its number, from 1
    :param results: of all members
    :param born_of: for each member the one with whose weights it began the generation, -1 in the first one
    :return: a row per member, with plain values
    """
    return [
        {
            "generation": generation,
            "member": result.number,
            "parent": int(born_of[result.number]),
            "score": float(result.score),
            "outcome": result.outcome,
            "num_timesteps": result.n_timesteps,
            **{name: _plain(value) for name, value in result.state.hyperparameters.items()},
        }
        for result in results
    ]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Any:
    """
    :param rows: from :func:`rows_of`
    :param names: of the hyper-parameters, which are columns also where there are no rows yet
    :return: a ``pandas.DataFrame``
    """
    import pandas as pd

    columns = ["generation", "member", "parent", "score", "outcome", "num_timesteps", *names]
    return pd.DataFrame([dict(row) for row in rows], columns=columns)


def log_generation(logger: Logger, generation: int, results: Sequence[Result], selected: Selected) -> None:
    """
    :param logger: of the population
    :param generation: its number, from 1
    :param results: of all members
    :param selected: what became of them
    """
    logger.record("time/generations", generation, exclude="tensorboard")
    log_fitness(logger, np.array([result.score for result in results]))
    n_replaced = sum(parent != place for place, parent in enumerate(selected.parents))
    logger.record("population/n_replaced", n_replaced)
    for outcome in ("diverged", "failed"):
        logger.record(f"population/n_{outcome}", sum(result.outcome == outcome for result in results))
    if selected.champion is not None:
        logger.record("population/champion", selected.champion)
    for result in results:
        logger.record(f"member_{result.number}/score", float(result.score), exclude=NOT_PRINTED)
        logger.record(f"member_{result.number}/parent", selected.parents[result.number], exclude=NOT_PRINTED)
        for name, value in result.state.hyperparameters.items():
            shown = _plain(value) if isinstance(value, int | float | np.number) else str(value)
            logger.record(f"member_{result.number}/{name}", shown, exclude=NOT_PRINTED)
