"""What ``docs/engine.md`` says about files, names, floors and orders is so."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from sb3_erl import ALGOS
from tests.structure.test_floors import FLOORS, PACKAGE

PAGE = (Path(__file__).parents[2] / "docs" / "engine.md").read_text()
NAMED = re.findall(r"`((?:\w+/)*\w+\.py)(?::\s+([\w.,\s]+))?`", PAGE)
"""Files that the page names, each with the names in it, separated by commas."""
FOLDERS = re.findall(r"`((?:\w+/)+)`", PAGE)


def found(path: str, name: str) -> Any:
    """What a file calls by a dotted name; an attribute that only instances have counts if its class declares it."""
    module = "sb3_erl." + path.removesuffix(".py").replace("/", ".")
    thing: Any = importlib.import_module(module.removesuffix(".__init__"))
    for part in name.split("."):
        thing = getattr(thing, part)
    return thing


def test_the_page_names_files() -> None:
    assert len(NAMED) > 60


@pytest.mark.parametrize("path", sorted({path for path, _ in NAMED}))
def test_files_exist(path: str) -> None:
    assert (PACKAGE / path).is_file() or (PACKAGE.parent / path).is_file()


@pytest.mark.parametrize("path", sorted(set(FOLDERS)))
def test_folders_exist(path: str) -> None:
    assert (PACKAGE / path).is_dir() or (PACKAGE.parent / path).is_dir()


@pytest.mark.parametrize("path, names", sorted({(path, names) for path, names in NAMED if names}))
def test_names_exist(path: str, names: str) -> None:
    for name in names.split(","):
        assert found(path, name.strip()) is not None


def test_floors_are_drawn_as_they_are() -> None:
    drawn = {}
    for floor, folders in re.findall(r"^ (\d)   \|(.*)\|", PAGE, flags=re.MULTILINE):
        drawn.update({folder.strip(): int(floor) for folder in folders.split("|")})
    assert drawn == FLOORS


def test_orders_are_those_of_the_classes() -> None:
    section = PAGE.split("| classes | order |")[1].split("\n\n")[0]
    told = {}
    for keys, order in re.findall(r"^\| (`.*?`) \| (.*?) \|$", section, flags=re.MULTILINE):
        told.update({key: tuple(order.split(", ")) for key in re.findall(r"\w+", keys)})
    assert told == {key: cls.generation_order for key, cls in ALGOS.items() if hasattr(cls, "generation_order")}
