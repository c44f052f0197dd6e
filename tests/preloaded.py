"""
Imported once by the process that forks those of the tests, which are then ready at once.

A server that other code had started first would import less, and each process of a later test all the rest by itself.
"""

import gc
import importlib

for name in (
    "torch._dynamo",
    "stable_baselines3.common.monitor",
    "sb3_erl.remote.worker",
    "benchmarks.killed_run",
    "benchmarks.faulty",
    "tests.contract.resumed",
):
    importlib.import_module(name)
gc.freeze()  # a child that collects garbage would copy all memory that it shares
