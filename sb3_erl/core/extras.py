"""Optional dependencies: one function makes the error with the line that installs what is missing."""

from __future__ import annotations

EXTRAS = ("atari", "box2d", "classic", "dmc", "minatar", "offline", "onnx", "plots", "ray")
"""Extras of this package that features need."""


def missing_extra(subject: str, extra: str, way_out: str = "") -> ImportError:
    """
    :param subject: beginning of the sentence: what is wanted, and what it needs
    :param extra: one of :data:`EXTRAS`
    :param way_out: another way, or where to read on; comes after the line for pip
    :return: the error to raise, with the line that installs what is needed
    :raises KeyError: if there is no such extra

    >>> print(missing_extra("Atari games need ale-py and OpenCV", "atari"))
    Atari games need ale-py and OpenCV; pip install 'sb3-erl[atari]'
    """
    if extra not in EXTRAS:
        raise KeyError(f"extra must be one of {list(EXTRAS)}; got {extra!r}")
    return ImportError(f"{subject}; pip install 'sb3-erl[{extra}]'" + (f", {way_out}" if way_out else ""))
