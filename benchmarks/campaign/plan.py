"""Which runs there are to be, read from YAML files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped,unused-ignore]

PLANS = Path(__file__).parent
BASELINE = "td3"
"""The method whose mean is 1 where tasks are put on one scale."""
LONG_RUN = "readme"
"""The method of one long run, which has a figure of its own and is shown as far as it has come."""


@dataclass(frozen=True)
class Run:
    """
    One method on one task with one seed.

    :param method: name in the plan
    :param task: name in the plan
    :param seed: of model and environment
    :param algo: Zoo name of the algorithm
    :param env: environment id
    :param steps: environment steps
    :param hyperparams: settings on top of the Zoo's entry
    """

    method: str
    task: str
    seed: int
    algo: str
    env: str
    steps: int
    hyperparams: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def file(self) -> Path:
        """Where the curve of the run is kept, relative to the folder of results."""
        return Path(self.task) / f"{self.method}_seed_{self.seed}.csv"


@dataclass(frozen=True)
class Plan:
    """
    The content of a plan's file.

    :param name: of the file, and of the folder of results
    :param commit: whose code the runs use
    :param eval_freq: steps between evaluations
    :param eval_episodes: episodes of each candidate in each evaluation
    :param checkpoint_freq: steps between checkpoints
    :param labels: of methods, for figures, those of ``beside`` first
    :param runs: in the order in which they are to be made
    :param published: what others report: ``task``, ``steps``, ``value``, ``source``
    :param beside: methods of other plans, by plan, whose curves on the same tasks the report shows as well
    """

    name: str
    commit: str
    eval_freq: int
    eval_episodes: int
    checkpoint_freq: int
    labels: dict[str, str]
    runs: list[Run]
    published: list[dict[str, Any]]
    beside: dict[str, list[str]] = field(default_factory=dict)

    @property
    def compared_at(self) -> dict[str, int]:
        """Steps that all runs on a task are to have, by task."""
        return {task: min(run.steps for run in self.runs if run.task == task) for task in {run.task for run in self.runs}}


def read_plan(path: Path) -> Plan:
    """
    :param path: YAML file, see ``campaign.yml`` for its form
    :return: its content; a run that stands in several entries comes where it stands first
    :raises ValueError: if an entry of the order names a method or a task that the file does not have, or ``beside`` a method
        that the other plan does not have
    """
    content = yaml.safe_load(path.read_text())
    runs: dict[Run, None] = {}
    for entry in content["order"]:
        for kind in ("methods", "tasks"):
            unknown = sorted(set(entry[kind]) - set(content[kind]))
            if unknown:
                raise ValueError(f"{kind} in the order of {path.name} must be among {sorted(content[kind])}; got {unknown}")
        for seed in entry["seeds"]:
            for task in entry["tasks"]:
                runs |= dict.fromkeys(_run(content, method, task, seed) for method in entry["methods"])
    labels: dict[str, str] = {}
    beside: dict[str, list[str]] = content.get("beside", {})
    for other, names in beside.items():
        known = yaml.safe_load(path.with_name(f"{other}.yml").read_text())["methods"]
        if unknown := sorted(set(names) - set(known)):
            raise ValueError(f"beside in {path.name} must name methods of {other}.yml, {sorted(known)}; got {unknown}")
        labels |= {name: known[name]["label"] for name in names}
    labels |= {name: method["label"] for name, method in content["methods"].items()}
    own = {key: content[key] for key in ("commit", "eval_freq", "eval_episodes", "checkpoint_freq")}
    published = content.get("published", [])
    return Plan(name=path.stem, labels=labels, runs=list(runs), published=published, beside=beside, **own)


def _run(content: dict[str, Any], method_name: str, task_name: str, seed: int) -> Run:
    method, task = content["methods"][method_name], content["tasks"][task_name]
    hyperparams = {**method.get("hyperparams", {}), **task.get("hyperparams", {})}
    steps = method.get("steps", task.get("steps", content["steps"]))
    return Run(method_name, task_name, seed, method["algo"], task["env"], steps, hyperparams)
