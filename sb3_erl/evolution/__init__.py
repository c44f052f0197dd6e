"""Evolvers (ask and tell), with their operators and fitness functions."""
