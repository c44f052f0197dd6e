"""The back-ends by name; those with workers are imported when they are chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from sb3_erl.remote.evaluator import RemoteEvaluator

    EvaluatorChoice = Literal["vec", "process", "ray"] | RemoteEvaluator
else:
    EvaluatorChoice = Any

NAMES = ("vec", "process", "ray")


def check_evaluator(choice: Any) -> None:
    """
    :param choice: the argument ``evaluator`` of a model
    :raises ValueError: if it is an unknown name
    :raises TypeError: if it is neither a name nor an evaluator
    """
    classes = "an object of ProcessEvaluator, RayEvaluator or another RemoteEvaluator"
    wanted = f"evaluator must be one of {list(NAMES)}, or {classes}; got {choice!r}"
    if isinstance(choice, str):
        if choice not in NAMES:
            raise ValueError(wanted)
        return
    from sb3_erl.remote.evaluator import RemoteEvaluator

    if not isinstance(choice, RemoteEvaluator):
        raise TypeError(wanted)


def remote_evaluator(choice: Any, present: Any) -> RemoteEvaluator | None:
    """
    :param choice: the argument ``evaluator`` of a model
    :param present: the evaluator that the model has, which is kept if it is of the chosen class
    :return: the chosen evaluator with workers, ``None`` for ``"vec"``
    """
    if not isinstance(choice, str):
        return choice
    if choice == "vec":
        return None
    from sb3_erl.remote.process import ProcessEvaluator
    from sb3_erl.remote.ray import RayEvaluator

    chosen: type[RemoteEvaluator] = ProcessEvaluator if choice == "process" else RayEvaluator
    return present if type(present) is chosen else chosen()
