"""Populations of whole models: weights and hyper-parameters that evolve while the models train."""
