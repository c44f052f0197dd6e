"""Which model an agent plans in, and with which planner."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces

from sb3_erl.planning.base import PlanningModel
from sb3_erl.planning.cem_planner import CEMPlanner
from sb3_erl.planning.learned_model import LearnedModel
from sb3_erl.planning.rollout_model import RolloutModel
from sb3_erl.planning.simulator import SimulatorModel

MODELS: dict[str, type[PlanningModel]] = {"simulator": SimulatorModel, "rollout": RolloutModel, "learned": LearnedModel}
"""Models by key; a :class:`~sb3_erl.planning.function_model.FunctionModel` is given as an object."""


def make_model(
    choice: Any,
    kwargs: dict[str, Any] | None,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    **learned: Any,
) -> Any:
    """
    :param choice: key of :data:`MODELS`, a class, or an object with ``rollout(state, actions)``
    :param kwargs: arguments of a model that is made here
    :param observation_space: of the environment
    :param action_space: of the environment
    :param learned: further arguments of a :class:`~sb3_erl.planning.learned_model.LearnedModel`, where ``kwargs`` does not
        have them
    :return: the model; a simulator has no environment yet
    :raises ValueError: if there is no such model, or an object has arguments beside it
    """
    kind = MODELS.get(choice, choice) if isinstance(choice, str) else choice
    if hasattr(kind, "rollout") and not isinstance(kind, type):
        if kwargs:
            raise ValueError(f"model_kwargs must be None beside a model that is an object; got {kwargs}")
        return kind
    if not (isinstance(kind, type) and issubclass(kind, PlanningModel)):
        raise ValueError(
            f"model must be one of {sorted(MODELS)}, a subclass of PlanningModel, or an object with rollout(state, actions); "
            f"got {choice!r}"
        )
    made: Any = kind
    if issubclass(kind, LearnedModel):
        return made(observation_space, action_space, **{**learned, **(kwargs or {})})
    return made(**(kwargs or {}))


def make_planner(
    model: Any,
    action_space: spaces.Space,
    arguments: dict[str, Any],
    last: CEMPlanner | None = None,
    last_arguments: dict[str, Any] | None = None,
) -> CEMPlanner:
    """
    :param model: what is planned in
    :param action_space: of the environment
    :param arguments: of the planner
    :param last: the agent's planner so far, such as that of its file
    :param last_arguments: those of ``last``; ``None`` if they are not known
    :return: ``last`` itself if its arguments are the same; otherwise a new one, which draws on where ``last`` would have,
        unless it has another seed
    """
    if last is not None and arguments == last_arguments:
        last.model = model
        return last
    assert isinstance(action_space, spaces.Box)
    made = CEMPlanner(model, action_space, **arguments)
    if last is not None:
        made.go_on_from(last, with_generator=last_arguments is None or arguments["seed"] == last_arguments["seed"])
    return made
