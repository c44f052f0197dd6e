"""Variation and selection on stacked parameters ``(n, n_params)``, as functions of arrays and a generator."""

from sb3_erl.evolution.operators.crossover import HeadRowCrossover, RowCrossover
from sb3_erl.evolution.operators.mutation import GaussianMutation, HeadMutation

__all__ = ["GaussianMutation", "HeadMutation", "HeadRowCrossover", "RowCrossover"]
