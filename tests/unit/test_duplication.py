"""No algorithm is another one's copy."""

from __future__ import annotations

import ast
import inspect
import itertools
from collections import Counter
from pathlib import Path

from sb3_erl import ALGOS

LARGEST_SHARE = 0.4


def shared(first: list[str], second: list[str]) -> float:
    """Share of lines in the shorter text that the other one has too, wherever they stand."""
    return sum((Counter(first) & Counter(second)).values()) / min(len(first), len(second))


def lines(path: str) -> list[str]:
    """Lines with anything in them, without their indentation; no imports and signatures, which name what is used, not how."""
    source, left_out = Path(path).read_text(), set[int]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            left_out |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        elif isinstance(node, ast.FunctionDef):
            left_out |= set(range(node.lineno, node.body[0].lineno))
    numbered = enumerate(source.splitlines(), start=1)
    return [line.strip() for number, line in numbered if line.strip() and number not in left_out]


def test_measure() -> None:
    assert shared(["a", "b", "b", "c"], ["b", "d"]) == 0.5
    assert shared(["a", "b", "b", "c"], ["b", "c", "b"]) == 1.0


def test_no_two_algorithms_share_many_lines() -> None:
    files = sorted({inspect.getfile(algorithm) for algorithm in ALGOS.values()})
    texts = {Path(file).name: lines(file) for file in files}
    shares = {pair: shared(texts[pair[0]], texts[pair[1]]) for pair in itertools.combinations(texts, 2)}
    too_much = {pair: round(share, 2) for pair, share in shares.items() if share > LARGEST_SHARE}
    assert len(texts) > 5 and max(shares.values()) > 0.05
    assert not too_much, "move what they share into engine/"
