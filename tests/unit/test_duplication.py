"""No algorithm is another one's copy."""

from __future__ import annotations

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
    """Lines with anything in them, without their indentation."""
    return [line.strip() for line in Path(path).read_text().splitlines() if line.strip()]


def test_measure() -> None:
    assert shared(["a", "b", "b", "c"], ["b", "d"]) == 0.5
    assert shared(["a", "b", "b", "c"], ["b", "c", "b"]) == 1.0


def test_no_two_algorithms_share_many_lines() -> None:
    files = sorted({inspect.getfile(algorithm) for algorithm in ALGOS.values()})
    texts = {Path(file).name: lines(file) for file in files}
    shares = {pair: shared(texts[pair[0]], texts[pair[1]]) for pair in itertools.combinations(texts, 2)}
    too_much = {pair: round(share, 2) for pair, share in shares.items() if share > LARGEST_SHARE}
    assert len(texts) > 5 and max(shares.values()) > 0.05
    assert not too_much, "move what they share into common/"
