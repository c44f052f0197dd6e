"""The floors of the package: a module imports from its own folder and from lower floors only, and nothing in a circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "sb3_erl"
FLOORS = {
    "core": 1,
    "compiled": 2,
    "policies": 2,
    "envs": 2,
    "buffers": 3,
    "planning": 3,
    "rollouts": 4,
    "evolution": 5,
    "remote": 5,
    "learners": 6,
    "runs": 6,
    "engine": 7,
    "algorithms": 8,
    "populations": 8,
    "pictures": 8,
    "zoo": 9,
}
"""Folders on one floor do not import each other. What stands beside the folders (``testing.py``) is above all of them."""

LATE = {"zoo": {"sb3_erl"}}
"""What a folder imports from above, in functions: the Zoo reads the registry of all classes when the package is complete."""

BY_NAME = {"sb3_erl.core.registry"}
"""Modules that may name others in strings: the table of parts, which are imported when a user chooses them."""


def modules() -> dict[str, Path]:
    """All modules by their dotted names."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("sb3_erl", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """What is executed when a module is imported: neither bodies of functions nor what is for type checkers only."""
    for child in ast.iter_child_nodes(node):
        is_for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not is_for_types:
            yield child
            yield from executed(child)


def imported(path: Path, at_start: bool = False) -> Iterator[str]:
    """
    :param path: of a module
    :param at_start: only what is imported when the module itself is
    :return: dotted names of what it imports from this package, also within functions, for type checkers, and by strings such
        as ``"sb3_erl.envs.hard_maze:HardMaze"``
    """
    tree = ast.parse(path.read_text())
    for node in executed(tree) if at_start else ast.walk(tree):
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: imports name modules in full"
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.split(".")[0] == "sb3_erl":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "sb3_erl")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not at_start:
            yield from re.findall(r"^(sb3_erl\.\w[\w.]*)(?::[\w.]+)?$", node.value)


def upward(name: str, path: Path) -> list[str]:
    own = name.split(".")[1] if path.parent != PACKAGE and name not in BY_NAME else ""
    wrong = []
    for other in imported(path):
        folder = other.split(".")[1] if "." in other else ""
        if own and folder != own and FLOORS.get(folder, 10) >= FLOORS[own] and other not in LATE.get(own, {}):
            wrong.append(f"{name} imports {other}")
    return wrong


def test_every_folder_has_a_floor() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders == set(FLOORS)


@pytest.mark.parametrize("name", list(modules()))
def test_no_import_runs_upward(name: str) -> None:
    assert upward(name, modules()[name]) == []


def test_no_circles() -> None:
    known = modules()

    def module_of(dotted: str) -> str:
        while dotted not in known:
            dotted = dotted.rpartition(".")[0]
        return dotted

    edges = {name: {module_of(other) for other in imported(path, at_start=True)} - {name} for name, path in known.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"circle: {' -> '.join([*way[way.index(name) :], name])}"
        if name not in done:
            for other in sorted(edges[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in known:
        visit(name, ())


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    from sb3_erl.engine.hybrid import HybridAlgorithm",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import sb3_erl.engine.hybrid",
        "from importlib import import_module\nimport_module('sb3_erl.engine.hybrid')",
        "from importlib import import_module\nimport_module(f'sb3_erl.engine.{1}')",
        "resolve('evolver', 'sb3_erl.engine.hybrid:HybridAlgorithm')",
        "import sb3_erl",
        "from sb3_erl import ERL",
        "from sb3_erl.learners import base",
    ],
)
def test_an_upward_import_is_found(text: str, tmp_path: Path) -> None:
    """Also one from another folder of the same floor."""
    path = tmp_path / "wrong.py"
    path.write_text(text)
    assert len(upward("sb3_erl.runs.wrong", path)) == 1


def test_a_relative_import_is_found(tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text("def f():\n    from . import saving")
    with pytest.raises(AssertionError, match="imports name modules in full"):
        upward("sb3_erl.runs.wrong", path)


def test_imports_at_start_are_told_from_later_ones(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    later = "if TYPE_CHECKING:\n    import sb3_erl.a\ndef f():\n    import sb3_erl.b\n"
    path.write_text(later + "try:\n    import sb3_erl.c\nexcept ImportError:\n    pass\nclass A:\n    import sb3_erl.d\n")
    assert list(imported(path, at_start=True)) == ["sb3_erl.c", "sb3_erl.d"]
