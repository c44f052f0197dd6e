"""Variation and selection on stacked parameters ``(n, n_params)``; operators are pure functions of arrays and a generator."""

from sb3_erl.evolution.operators.crossover import HeadRowCrossover, RowCrossover
from sb3_erl.evolution.operators.mutation import GaussianMutation, HeadMutation

CROSSOVERS = {"rows": RowCrossover, "head_rows": HeadRowCrossover}
MUTATIONS = {"gaussian": GaussianMutation, "head_rows": HeadMutation}

__all__ = ["CROSSOVERS", "MUTATIONS", "GaussianMutation", "HeadMutation", "HeadRowCrossover", "RowCrossover"]
