"""What one dimension of a search space may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Float:
    """A real number in ``[low, high]``, drawn on a logarithmic scale if ``log``."""

    name: str
    low: float
    high: float
    log: bool = False

    def suggest(self, trial: optuna.Trial) -> Any:
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)


@dataclass(frozen=True)
class Int:
    """An integer in ``[low, high]``."""

    name: str
    low: int
    high: int

    def suggest(self, trial: optuna.Trial) -> Any:
        return trial.suggest_int(self.name, self.low, self.high)


@dataclass(frozen=True)
class Choice:
    """One of a few numbers or words."""

    name: str
    choices: tuple[float | int | str | bool, ...]

    def suggest(self, trial: optuna.Trial) -> Any:
        return trial.suggest_categorical(self.name, self.choices)


Knob = Float | Int | Choice
