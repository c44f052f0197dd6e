"""The back-ends by name."""

from __future__ import annotations

from typing import Any, Literal

from sb3_erl.evaluation.process_pool import ProcessEvaluator
from sb3_erl.evaluation.ray_pool import RayEvaluator
from sb3_erl.evaluation.remote import RemoteEvaluator

EvaluatorChoice = Literal["vec", "process", "ray"] | RemoteEvaluator
REMOTE: dict[str, type[RemoteEvaluator]] = {"process": ProcessEvaluator, "ray": RayEvaluator}


def check_evaluator(choice: Any) -> None:
    """
    :param choice: what a model got as ``evaluator``
    :raises ValueError: if it is an unknown name
    :raises TypeError: if it is something else altogether
    """
    known = ["vec", *REMOTE]
    if isinstance(choice, str) and choice not in known:
        raise ValueError(f"evaluator must be one of {known}, or a ProcessEvaluator or RayEvaluator; got {choice!r}")
    if not isinstance(choice, str | RemoteEvaluator):
        raise TypeError(f"evaluator must be one of {known}, or a ProcessEvaluator or RayEvaluator; got {choice!r}")


def remote_evaluator(choice: Any, present: Any) -> RemoteEvaluator | None:
    """
    :param choice: what a model got as ``evaluator``
    :param present: the evaluator it has, which goes on if it is what was chosen
    :return: the one with workers that was chosen, ``None`` for ``"vec"``
    """
    if isinstance(choice, RemoteEvaluator):
        return choice
    if choice not in REMOTE:
        return None
    return present if type(present) is REMOTE[choice] else REMOTE[choice]()
