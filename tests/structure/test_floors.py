"""The floors of the package: a module imports from its own folder and from lower floors only, and nothing in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "sb3_erl"
FLOORS = {
    "core": 1,
    "policies": 2,
    "envs": 2,
    "planning": 2,
    "buffers": 3,
    "rollouts": 4,
    "evolution": 5,
    "remote": 5,
    "learners": 6,
    "runs": 6,
    "engine": 7,
    "algorithms": 8,
    "zoo": 9,
}
"""Folders on one floor do not import each other. What stands beside the folders (``testing.py``) is above all of them."""

LATE = {"zoo": {"sb3_erl"}}
"""What a folder imports from above, in functions: the Zoo reads the registry of all classes when the package is complete."""


def modules() -> dict[str, Path]:
    """All modules by their dotted names."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("sb3_erl", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, at_start: bool = False) -> Iterator[str]:
    """
    :param path: of a module
    :param at_start: only what is imported when the module itself is
    :return: dotted names of what it imports from this package, also within functions and for type checkers
    """
    tree = ast.parse(path.read_text())
    nodes = tree.body if at_start else list(ast.walk(tree))
    for node in nodes:
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: imports name modules in full"
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.split(".")[0] == "sb3_erl":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "sb3_erl")


def upward(name: str, path: Path) -> list[str]:
    own = name.split(".")[1] if path.parent != PACKAGE else ""
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


def test_an_upward_import_is_found(tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text("def f():\n    from sb3_erl.engine.hybrid import HybridAlgorithm\n")
    assert upward("sb3_erl.core.wrong", path) == ["sb3_erl.core.wrong imports sb3_erl.engine.hybrid.HybridAlgorithm"]
