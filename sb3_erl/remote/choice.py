"""The back-ends by name; those with workers are imported when somebody wants them."""

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
    :param choice: what a model got as ``evaluator``
    :raises ValueError: if it is an unknown name
    :raises TypeError: if it is something else altogether
    """
    wanted = f"evaluator must be one of {list(NAMES)}, or a ProcessEvaluator or RayEvaluator; got {choice!r}"
    if isinstance(choice, str):
        if choice not in NAMES:
            raise ValueError(wanted)
        return
    from sb3_erl.remote.evaluator import RemoteEvaluator

    if not isinstance(choice, RemoteEvaluator):
        raise TypeError(wanted)


def remote_evaluator(choice: Any, present: Any) -> RemoteEvaluator | None:
    """
    :param choice: what a model got as ``evaluator``
    :param present: the evaluator it has, which goes on if it is what was chosen
    :return: the one with workers that was chosen, ``None`` for ``"vec"``
    """
    if not isinstance(choice, str):
        return choice
    if choice == "vec":
        return None
    from sb3_erl.remote.process import ProcessEvaluator
    from sb3_erl.remote.ray import RayEvaluator

    chosen: type[RemoteEvaluator] = ProcessEvaluator if choice == "process" else RayEvaluator
    return present if type(present) is chosen else chosen()
