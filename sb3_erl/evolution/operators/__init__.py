"""Variation and selection on stacked parameters ``(n, n_params)``, as functions of arrays and a generator."""

from sb3_erl.evolution.operators.crossover import HeadRowCrossover, LinearRowCrossover, RowCrossover
from sb3_erl.evolution.operators.mutation import GaussianMutation, HeadMutation, LinearMutation

__all__ = [
    "GaussianMutation",
    "HeadMutation",
    "HeadRowCrossover",
    "LinearMutation",
    "LinearRowCrossover",
    "RowCrossover",
]
