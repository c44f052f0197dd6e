"""Domains of optional packages: their ids are known although nothing of the package has been imported."""

from __future__ import annotations

from importlib import import_module
from typing import Any

MODULES = {"dm_control": "sb3_erl.envs.dmc", "ALE": "sb3_erl.envs.atari"}
"""
Namespace of ids (what stands before the slash) and the module whose ``register_envs()`` registers them with Gymnasium.

Such a module registers its ids also where its package is missing; making one of them then raises
:func:`~sb3_erl.core.extras.missing_extra`.
"""


def register_namespaces(*env_ids: Any) -> None:
    """
    Register the ids of optional packages that are about to be looked up.

    ``import sb3_erl`` does not do so, since the ids belong to other packages, which may register them themselves.

    :param env_ids: ids of environments, of which each registers its whole namespace; whatever else an argument ``env`` may be
        is passed over. Without any, all namespaces are registered
    """
    names = {_namespace(env_id) for env_id in env_ids if isinstance(env_id, str)} if env_ids else set(MODULES)
    for name in names & set(MODULES):
        import_module(MODULES[name]).register_envs()


def _namespace(env_id: str) -> str:
    """The namespace of an id; games of the emulator's older ids have none."""
    return "ALE" if "NoFrameskip-v" in env_id else env_id.partition("/")[0]
