"""
The algorithms of this package inside the original RL Zoo: ``rl_zoo3 train --algo erl_re2 --env Ant-v4``.

A start-up file next to the package (``startup/``) calls :func:`module_ready` whenever a module of ``rl_zoo3`` has been
imported. Where Python does not read start-up files (``python -S``, ``pip install --target``, ``SB3_ERL_ZOO=0``), use
``sb3-erl train ...`` or ``python -m sb3_erl.zoo train ...`` instead, or :func:`register` in a notebook.

Nothing here imports ``rl_zoo3`` before a function is called: the first call arrives while ``rl_zoo3`` is half imported.
"""

from sb3_erl.zoo.command import main
from sb3_erl.zoo.hyperparams import hyperparams_file, hyperparams_folder
from sb3_erl.zoo.registration import module_ready, register

__all__ = ["hyperparams_file", "hyperparams_folder", "main", "module_ready", "register"]
