"""Arguments of PBT's members in the spellings of the Zoo, which converts only those of the algorithm itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SCHEDULES = ("learning_rate", "clip_range", "clip_range_vf", "delta_std")
EVALUATED = ("policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs")
"""Arguments that may be a text in Python, such as ``"dict(net_arch=[64])"``."""


def members_arguments(choice: Any, manager: Any, names: Mapping[str, Any]) -> Any:
    """
    Convert as the Zoo does; like its own settings, these come from a user's file or command, whose text is evaluated.

    :param choice: value of ``algorithm_kwargs``
    :param manager: the Zoo's ``ExperimentManager``, which makes schedules
    :param names: what texts may name, those of the Zoo's module
    :return: keyword arguments of the members' class; another value than a mapping as it is, which PBT refuses
    """
    arguments = eval(choice, dict(names)) if isinstance(choice, str) else choice
    if not isinstance(arguments, Mapping):
        return choice
    arguments = dict(arguments)
    texts = {key: value for key, value in arguments.items() if isinstance(value, str)}
    arguments |= manager._preprocess_schedules({key: texts[key] for key in SCHEDULES if key in texts})
    arguments |= {key: eval(texts[key], dict(names)) for key in EVALUATED if key in texts}
    return arguments
