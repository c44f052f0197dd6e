"""Benchmarks: how well the algorithms learn, measured with the command a reader can repeat."""
