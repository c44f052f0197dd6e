"""
Start-up hook of ``sb3_erl``: makes the unmodified ``rl_zoo3`` know the algorithms of this package.

Python's ``site`` calls ``install()`` at every start (``sb3_erl_zoo.pth``, or ``sb3_erl_zoo.start`` from Python 3.15 on).
That adds one entry to ``sys.meta_path`` which does nothing until one of four modules of the Zoo is imported; only then
is ``sb3_erl`` imported. No file is read, nothing is sent. ``SB3_ERL_ZOO=0`` in the environment switches the hook off.
"""

import os
import sys
from _thread import get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

SWITCH = "SB3_ERL_ZOO"
ZOO_MODULES = ("rl_zoo3.utils", "rl_zoo3.hyperparams_opt", "rl_zoo3.exp_manager")
HUB_MODULE = "huggingface_sb3.push_to_hub"
HOOKED = frozenset((*ZOO_MODULES, HUB_MODULE))


class ZooFinder:
    """Lets the other finders find the four hooked modules, and adds a step after each has run."""

    is_sb3_erl_zoo_finder = True

    def __init__(self) -> None:
        self.searching: set[tuple[str, int]] = set()

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        if name not in HOOKED:
            return None
        search = (name, get_ident())
        if search in self.searching:  # another finder that also asks all finders, this one included
            return None
        self.searching.add(search)
        try:
            for finder in list(sys.meta_path):
                find = None if finder is self else getattr(finder, "find_spec", None)
                spec = find(name, path, target) if find else None
                if spec is not None:
                    add_step_after_exec(spec.loader, name)
                    return spec
            return None
        finally:
            self.searching.discard(search)


def add_step_after_exec(loader: "Any", name: str) -> None:
    """
    Call :func:`ready` after ``loader`` has run module ``name``.

    An instance attribute is set: the loader keeps its type, so source lookup and resources still work.
    """
    run = getattr(loader, "exec_module", None)
    if run is None:
        return

    def exec_module(module: "ModuleType") -> None:
        if module.__name__ != name:  # zipimport shares one loader between modules
            run(module)
            return
        vars(loader).pop("exec_module", None)
        run(module)
        ready(name, module)

    try:
        loader.exec_module = exec_module
    except AttributeError:
        pass


def ready(name: str, module: "ModuleType") -> None:
    """Complete a hooked module that has just run; a failure is a warning, so the Zoo's own algorithms keep working."""
    try:
        if name == HUB_MODULE:
            restore_generate_metadata(module)
        else:
            from sb3_erl import zoo

            zoo.module_ready(name, module)
    except Exception as error:
        import warnings

        warnings.warn(f"sb3_erl: its algorithms are not registered in {name}: {error!r}", RuntimeWarning, stacklevel=2)


def restore_generate_metadata(module: "Any") -> None:
    """
    Give ``huggingface_sb3`` 3.2 the name that ``rl_zoo3`` 2.9.2 imports from it.

    It calls the function ``_generate_metadata`` and returns an object where the Zoo expects a dict; without this,
    ``python -m rl_zoo3.push_to_hub`` stops with an ImportError for every algorithm.
    """
    private = getattr(module, "_generate_metadata", None)
    if private is None or hasattr(module, "generate_metadata") or "rl_zoo3" not in sys.modules:
        return

    def generate_metadata(*args: "Any", **kwargs: "Any") -> "Any":
        card = private(*args, **kwargs)
        return card.to_dict() if hasattr(card, "to_dict") else card

    module.generate_metadata = generate_metadata


def install() -> None:
    """Put the finder in front of ``sys.meta_path`` once, unless ``SB3_ERL_ZOO=0``."""
    if os.environ.get(SWITCH, "1") == "0":
        return
    if any(getattr(finder, "is_sb3_erl_zoo_finder", False) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, ZooFinder())
    for name in (*ZOO_MODULES, HUB_MODULE):
        if name in sys.modules:
            ready(name, sys.modules[name])
