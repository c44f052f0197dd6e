"""What a measurement is, and how its parts are timed so that a noisy machine cancels out."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch


@dataclass(frozen=True)
class Options:
    """
    What the user of the program chose.

    :param rounds: how often each part is timed
    :param device: ``"cpu"`` or ``"cuda"``, of models and matrix products
    :param n_threads: threads of torch in this process
    :param scale: factor on the amount of work in a round
    :param arguments: further arguments of the constructors of this package, where a class has an argument of that name
    """

    rounds: int = 7
    device: str = "cpu"
    n_threads: int = 1
    scale: float = 1.0
    arguments: dict[str, Any] = field(default_factory=dict)

    def count(self, n: int) -> int:
        """:return: ``n`` at the chosen scale, at least 1"""
        return max(1, round(n * self.scale))


class Sample(NamedTuple):
    """So many units of work took so many seconds, of the clock on the wall and of this process (``None``: others worked)."""

    units: float
    seconds: float
    cpu_seconds: float | None


Part = Callable[[], Sample]
"""Does some work and says how much of it took how long."""


@dataclass
class Measurement:
    """
    Parts that are timed in turn.

    :param unit: of which each part does some number per second
    :param parts: by name
    :param ratios: pairs of names: the rate of the first over that of the second, round by round
    :param facts: numbers that belong to the result and are not timed
    :param more: called with the rates when all is timed; gives further lines of the result
    :param target: for ratios or rates, what should be reached, shown beside them
    """

    unit: str
    parts: dict[str, Part]
    ratios: Sequence[tuple[str, str]] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    more: Callable[[dict[str, np.ndarray]], dict[str, Any]] | None = None
    target: dict[str, str] = field(default_factory=dict)


Maker = Callable[[Options], Measurement]
MEASUREMENTS: dict[str, Maker] = {}
"""All there are, in the order in which they run."""


def measurement(make: Maker) -> Maker:
    """Enter a function that prepares a measurement; its name, with blanks, is that of the measurement."""
    MEASUREMENTS[make.__name__.replace("_", "-")] = make
    return make


def timed(work: Callable[[], float | None], device: str = "cpu") -> Part:
    """
    :param work: does the work and returns the number of units, ``None`` for one
    :param device: work on ``"cuda"`` is waited for before either reading of the clock
    :return: times it with the wall clock
    """

    def run() -> Sample:
        wait_for(device)
        start, cpu = time.perf_counter(), time.process_time()
        units = work()
        wait_for(device)
        return Sample(1.0 if units is None else units, time.perf_counter() - start, time.process_time() - cpu)

    return run


def wait_for(device: str) -> None:
    """Until everything is done that was asked of the device."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def spread(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """:return: median and quartiles"""
    low, median, high = np.percentile(np.asarray(values, dtype=np.float64), [25, 50, 75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def run(measure: Measurement, rounds: int) -> dict[str, Any]:
    """
    Time all parts once without counting it, then in ``rounds`` rounds, each round all parts one after the other.

    :param measure: what is to be timed
    :param rounds: how often
    :return: rates and ratios with their quartiles, every single rate, and facts
    """
    rates: dict[str, list[float]] = {name: [] for name in measure.parts}
    cpu_rates: dict[str, list[float]] = {name: [] for name in measure.parts}
    for number in range(rounds + 1):
        gc.collect()
        gc.disable()  # garbage of one part is not collected at the cost of another
        try:
            for name, part in measure.parts.items():
                sample = part()
                if number > 0:
                    rates[name].append(sample.units / sample.seconds)
                    if sample.cpu_seconds is not None:
                        cpu_rates[name].append(sample.units / max(sample.cpu_seconds, 1e-9))
        finally:
            gc.enable()
    wall, cpu = ({name: np.array(values) for name, values in kind.items() if values} for kind in (rates, cpu_rates))
    result: dict[str, Any] = {
        "unit": measure.unit,
        "per_second": {name: spread(values) for name, values in wall.items()},
        "per_cpu_second": {name: spread(values) for name, values in cpu.items()},
        "ratios": {f"{a} / {b}": spread(wall[a] / wall[b]) for a, b in measure.ratios},
        "cpu_ratios": {f"{a} / {b}": spread(cpu[a] / cpu[b]) for a, b in measure.ratios if {a, b} <= set(cpu)},
        "target": measure.target,
        "facts": dict(measure.facts),
        "rounds": rates,
    }
    if measure.more is not None:
        result["facts"] |= measure.more(wall)
    return result
