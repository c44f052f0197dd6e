"""What README and the other pages show is true."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_erl import ALGOS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_first_example_is_short() -> None:
    assert len(SNIPPETS[0].strip().splitlines()) < 15


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[BaseAlgorithm] = []

    def shortened(learn: Callable[..., Any]) -> Callable[..., Any]:
        def short_learn(self: BaseAlgorithm, total_timesteps: float, *args: Any, **kwargs: Any) -> Any:
            learned.append(self)
            return learn(self, 250, *args, **kwargs)

        return short_learn

    for algorithm in ALGOS.values():  # as written, but for the length of training
        monkeypatch.setattr(algorithm, "learn", shortened(algorithm.learn))
    monkeypatch.chdir(tmp_path)
    exec(compile(SNIPPETS[number], f"README.md, snippet {number + 1}", "exec"), {"__name__": "__main__"})
    assert learned and all(250 <= model.num_timesteps < 250 + model.n_envs for model in learned)


def test_table_of_algorithms_agrees_with_the_registry() -> None:
    rows = re.findall(r"^\| (`.*?`) \| .*? \| .*? \| (done|planned)", README, flags=re.MULTILINE)
    done = {name for names, status in rows if status == "done" for name in re.findall(r"`(\w+)`", names)}
    assert done == set(ALGOS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_work(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_source_files_exist(page: Path) -> None:
    named = re.findall(r"`(sb3_erl/[\w/]+\.py)`", page.read_text())
    assert [name for name in named if not (ROOT / name).is_file()] == []
