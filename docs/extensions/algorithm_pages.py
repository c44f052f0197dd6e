"""
The directive ``algorithm``: a picture of one round of a system, and what it can be used with.

Nothing in it is written down by hand: the steps come from ``generation_order`` of the class, the table from constructing the
class with small environments of each kind and looking whether it refuses them.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from docutils import nodes
from docutils.parsers.rst import Directive, directives
from gymnasium import spaces

from sb3_erl import ALGOS
from sb3_erl.core.registry import PARTS

POPULATION, ENVIRONMENT, LEARNER, BETWEEN = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
COLORS = {POPULATION: "population", ENVIRONMENT: "environment steps", LEARNER: "gradient learner", BETWEEN: "between both"}
"""Of Okabe and Ito's palette, which people with any kind of color vision can tell apart."""
KINDS = {
    "collect_reference": ENVIRONMENT, "show_members": ENVIRONMENT, "evaluate": ENVIRONMENT, "revalidate": ENVIRONMENT,
    "explore": ENVIRONMENT, "collect": ENVIRONMENT, "learn": LEARNER, "train": LEARNER, "checkpoint": LEARNER,
    "soft_update": BETWEEN, "exchange": BETWEEN, "choose": BETWEEN,
}  # fmt: skip
SILENT = ("deploy", "log", "score")
"""Steps that are in the picture only where the page says something about them."""

VECTOR = spaces.Box(-1, 1, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (3, 84, 84), np.uint8)
BOX = spaces.Box(-1, 1, (2,), np.float32)
OBSERVATIONS = {
    "vectors (`Box`)": ("MlpPolicy", VECTOR),
    "images (`CnnPolicy`)": ("CnnPolicy", IMAGE),
    "`Dict` (`MultiInputPolicy`)": ("MultiInputPolicy", spaces.Dict(a=VECTOR, b=VECTOR)),
}
ACTIONS = {
    "`Box`": BOX,
    "`Discrete`": spaces.Discrete(3),
    "`MultiDiscrete`": spaces.MultiDiscrete([2, 3]),
    "`MultiBinary`": spaces.MultiBinary(3),
}


class Blank(gym.Env):
    """
    An environment that has nothing but spaces.

    :param observation_space: of the environment
    :param action_space: of the environment
    """

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


# -------------------------------------------------------------------- what a class takes


def takes(cls: Any, policy: str, observations: spaces.Space, actions: spaces.Space, **arguments: Any) -> bool:
    """
    :param cls: class of this package
    :param policy: key of a policy
    :param observations: space of observations
    :param actions: space of actions
    :param arguments: further arguments
    :return: whether a model can be made so
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cls(policy, Blank(observations, actions), **arguments)
    except (ValueError, TypeError, AssertionError, ImportError):
        return False
    return True


def usage(cls: Any) -> dict[str, str]:
    """
    :param cls: class of this package
    :return: for each kind of observations and actions, and each way to step several environments: "yes", "no" or a condition
    """
    with_dqn = [{"learner": "dqn"}] if takes(cls, "MlpPolicy", VECTOR, ACTIONS["`Discrete`"], learner="dqn") else []
    usual = next(space for space in ACTIONS.values() if takes(cls, "MlpPolicy", VECTOR, space))
    found = {}
    for name, (policy, space) in OBSERVATIONS.items():
        found[f"observations: {name}"] = _answer(cls, policy, space, usual, [])
    for name, space in ACTIONS.items():
        found[f"actions: {name}"] = _answer(cls, "MlpPolicy", VECTOR, space, with_dqn)
    found["several environments (`VecEnv`)"] = "yes"
    found['worker processes and Ray (`evaluator="process"`, `"ray"`)'] = (
        "yes" if takes(cls, "MlpPolicy", VECTOR, usual, evaluator="process") else "no, use `SubprocVecEnv`"
    )
    if learners := ", ".join(f'`"{key}"`' for key in _learners(cls, usual)):
        found["learner"] = learners
    return found


def _answer(cls: Any, policy: str, observations: spaces.Space, actions: spaces.Space, more: list[dict[str, Any]]) -> str:
    for arguments in ({}, *more):
        if takes(cls, policy, observations, actions, **arguments):
            return "yes" + "".join(f' with `{name}="{value}"`' for name, value in arguments.items())
    return "no"


def _learners(cls: Any, usual: spaces.Space) -> Iterator[str]:
    for key in PARTS["learner"]:
        actions = ACTIONS["`Discrete`"] if key == "dqn" else usual
        if takes(cls, "MlpPolicy", VECTOR, actions, learner=key):
            yield key


# -------------------------------------------------------------------- the picture


def steps_of(cls: Any, texts: dict[str, str]) -> list[tuple[str, str]]:
    """
    :param cls: class of this package
    :param texts: what a page says of each step
    :return: the steps in their order with these texts
    :raises ValueError: if the page speaks of a step that the class does not have, or leaves one out
    """
    order = getattr(cls, "generation_order", None) or tuple(texts)
    unknown, missing = set(texts) - set(order), set(order) - set(texts) - set(SILENT)
    if unknown or missing:
        raise ValueError(f"{cls.__name__} has the steps {order}; the page has {sorted(unknown)} and lacks {sorted(missing)}")
    return [(step, texts[step]) for step in order if step in texts]


def draw(steps: list[tuple[str, str]], path: Path) -> None:
    """
    Draw the steps of one round from left to right.

    :param steps: names and texts
    :param path: SVG file to be written
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    width = 2.0
    figure, axes = pyplot.subplots(figsize=(width * len(steps) * 0.78, 2.6))
    for number, (name, text) in enumerate(steps):
        color, left = KINDS.get(name, POPULATION), number * width
        axes.add_patch(FancyBboxPatch((left, 0), width * 0.72, 0.5, "round,pad=0.03", color=color, linewidth=0))
        axes.text(left + width * 0.36, 0.25, name.replace("_", " "), color="white", ha="center", va="center", weight="bold")
        axes.text(left + width * 0.36, -0.14, "\n".join(textwrap.wrap(text, 19)), ha="center", va="top", fontsize=8.5)
        if number + 1 < len(steps):
            start, end = (left + width * 0.75, 0.25), (left + width * 0.97, 0.25)
            axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color="#555555"))
    last, first = ((len(steps) - 1) * width + width * 0.36, 0.55), (width * 0.36, 0.55)
    turn = "bar,fraction=" + str(round(0.35 / (last[0] - first[0]), 4))
    axes.add_patch(FancyArrowPatch(last, first, arrowstyle="-|>", mutation_scale=12, color="#555555", connectionstyle=turn))
    used = {KINDS.get(name, POPULATION) for name, _ in steps}
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=color) for color in COLORS if color in used]
    labels = [text for color, text in COLORS.items() if color in used]
    axes.set_xlim(-0.1, len(steps) * width - width * 0.2)
    axes.set_ylim(-1.35, 1.0)
    axes.axis("off")
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, bbox_inches="tight", transparent=False, metadata={"Date": None})
    pyplot.close(figure)


# -------------------------------------------------------------------- the directive


class AlgorithmDirective(Directive):
    """``{algorithm} key`` with a line ``step: text`` for each step of a round; ``:picture-only:`` leaves the table out."""

    required_arguments = 1
    option_spec = {"picture-only": directives.flag}  # noqa: RUF012 as docutils has it
    has_content = True

    def run(self) -> list[nodes.Node]:
        key = self.arguments[0]
        cls = ALGOS[key]
        source = self.state.document.settings.env.app.srcdir
        texts = dict(
            line.split(": ", 1) for line in " \n".join(self.content).replace("\n  ", " ").split(" \n") if line.strip()
        )
        path = Path(source) / "_static" / "generated" / f"{key}.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        steps = steps_of(cls, texts)
        draw(steps, path)
        alt = f"One round of {cls.__name__}: " + "; ".join(f"{name}: {text}" for name, text in steps)
        picture = nodes.image(uri=f"/_static/generated/{key}.svg", alt=alt)
        return [picture, *([] if "picture-only" in self.options else self._table(cls))]

    def _table(self, cls: Any) -> list[nodes.Node]:
        lines = ["| | |", "|---|---|", *(f"| {name} | {answer} |" for name, answer in usage(cls).items())]
        parsed = nodes.container()
        self.state.nested_parse(_strings(["**Can I use …?**", "", *lines]), self.content_offset, parsed)
        return list(parsed.children)


def _strings(lines: list[str]) -> Any:
    from docutils.statemachine import StringList

    return StringList(lines, source="")


def setup(app: Any) -> dict[str, Any]:
    app.add_directive("algorithm", AlgorithmDirective)
    return {"parallel_read_safe": True}
