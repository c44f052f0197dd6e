"""Domains of optional packages: their ids are known although nothing of the package has been imported."""

from __future__ import annotations

from importlib import import_module
from typing import Any

MODULES = {"dm_control": "sb3_erl.envs.dmc"}
"""
Namespace of ids (what stands before the slash) and the module whose ``register_envs()`` registers them with Gymnasium.

Such a module imports its package only when an environment is made, and raises :func:`missing_package` where it cannot.
"""


def register_namespaces(*env_ids: Any) -> None:
    """
    Register the ids of optional packages that are about to be looked up.

    ``import sb3_erl`` does not do so, since the ids belong to other packages, which may register them themselves.

    :param env_ids: ids of environments, of which each registers its whole namespace; whatever else an argument ``env`` may be
        is passed over. Without any, all namespaces are registered
    """
    names = {env_id.partition("/")[0] for env_id in env_ids if isinstance(env_id, str)} if env_ids else set(MODULES)
    for name in names & set(MODULES):
        import_module(MODULES[name]).register_envs()


def missing_package(env_id: str, reason: str, extra: str) -> ImportError:
    """
    :param env_id: of the environment that was wanted
    :param reason: what it needs, and what is the matter with it
    :param extra: of this package that installs what is needed
    :return: the error to raise, with the line that installs it
    """
    return ImportError(f"env {env_id!r} {reason}; pip install 'sb3-erl[{extra}]', see docs/domains.md")
