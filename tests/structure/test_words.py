"""American spelling, and the field's words instead of private ones."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sb3_erl"
SOURCES = sorted(PACKAGE.rglob("*.py"))
OTHERS = ("*.md", "docs/*.md", "examples/**/*.py", "benchmarks/**/*.py", "hyperparams/*.yml")
TEXTS = [*SOURCES, *(path for pattern in OTHERS for path in sorted(ROOT.glob(pattern)))]
OLD_NAMES = {PACKAGE / "runs" / "moved_modules.py"}
"""Files that must have the names by which older files know things."""

BRITISH = re.compile(
    r"\w*(?:behaviou|colou|favou|honou|neighbou|normalis|initialis|optimis|vectoris|prioritis|generalis|standardis|regularis"
    r"|serialis|recognis|minimis|maximis|organis|summaris|parametris|penalis|realis|quantis|discretis|utilis|categoris"
    r"|synchronis|randomis|customis|centred|centring|modell|labell|cancell(?!ation)|travell|analyse|catalogue|licence"
    r"|artefact|learnt|whilst|towards)\w*|\b(?:centres?|grey|metres?)\b",
    re.IGNORECASE,
)
PRIVATE = {"fate", "fates", "judge", "judges", "judged", "news", "home", "homes", "turn", "turns", "digest"}
"""
What names are not made of: they are an outcome, an assessment, what is sent, a place, what is active, and a summary.
"""


def names(path: Path) -> Iterator[str]:
    """Names that a module gives: to classes, functions, parameters, variables and attributes."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def words(name: str) -> set[str]:
    """The words of a name in ``snake_case`` or ``CamelCase``."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_american_spelling(path: Path) -> None:
    text = path.read_text()
    assert path in OLD_NAMES or BRITISH.findall(text) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_names_have_the_words_of_the_field(path: Path) -> None:
    assert {name for name in names(path) if words(name) & PRIVATE} == set()


def test_wrong_words_are_found() -> None:
    assert BRITISH.findall("The behaviour of its neighbours, in metres") == ["behaviour", "neighbours", "metres"]
    assert words("whose_turn") == {"whose", "turn"} and words("NewsOfERL") == {"news", "of", "erl"}
