"""What README and the other pages show is true."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_erl import ALGOS
from sb3_erl.core.registry import PARTS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
DOCS = ROOT / "docs"
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(page for page in DOCS.rglob("*.md") if not {"results", "_build"} & set(page.parts)),
]


def snippets(text: str) -> list[str]:
    """The Python in a page."""
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


RUNNABLE = [ROOT / "README.md", *sorted((DOCS / "algorithms").glob("*.md"))]
RUNNABLE += [DOCS / "guide" / f"{name}.md" for name in ("quickstart", "callbacks", "more")]
SNIPPETS = [(page.relative_to(ROOT).as_posix(), text) for page in RUNNABLE for text in snippets(page.read_text())]
EXTENDING = snippets((ROOT / "docs" / "extending.md").read_text())


def test_first_example_is_short() -> None:
    assert len(snippets(README)[0].strip().splitlines()) < 10


def test_readme_is_short() -> None:
    assert len(README.split()) <= 900


@pytest.fixture
def learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[BaseAlgorithm]:
    """Models that have learned, each for 250 steps, in a folder of its own."""
    models: list[BaseAlgorithm] = []

    def shortened(learn: Callable[..., Any]) -> Callable[..., Any]:
        def short_learn(self: BaseAlgorithm, total_timesteps: float, *args: Any, **kwargs: Any) -> Any:
            models.append(self)
            return learn(self, 250, *args, **kwargs)

        return short_learn

    for algorithm in ALGOS.values():  # as written, but for the length of training
        monkeypatch.setattr(algorithm, "learn", shortened(algorithm.learn))
    monkeypatch.chdir(tmp_path)
    return models


@pytest.mark.slow
@pytest.mark.parametrize(("page", "text"), SNIPPETS, ids=[f"{page}-{number}" for number, (page, _) in enumerate(SNIPPETS)])
def test_snippet_runs(page: str, text: str, learned: list[Any]) -> None:
    exec(compile(text, page, "exec"), {"__name__": "__main__"})
    whole_generations = [getattr(model, "trains_whole_models", False) for model in learned]
    counts = [
        0 if is_whole else model.num_timesteps - model.n_envs
        for model, is_whole in zip(learned, whole_generations, strict=True)
    ]
    assert learned and all(model.num_timesteps >= 250 for model in learned) and all(count < 250 for count in counts)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(EXTENDING)))
def test_snippet_with_parts_of_ones_own_runs(number: int, learned: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARTS, "crossover", dict(PARTS["crossover"]))  # what is registered is forgotten afterwards
    exec(compile(EXTENDING[number], f"extending.md, snippet {number + 1}", "exec"), {"__name__": "__main__"})
    assert learned and all(model.num_timesteps == 250 for model in learned)


@pytest.mark.slow
def test_script_that_resumes_runs_again_and_again(learned: list[Any]) -> None:
    script = compile(snippets((ROOT / "docs" / "resume.md").read_text())[0], "resume.md", "exec")
    for _ in range(2):
        exec(script, {"__name__": "__main__"})
    first, second = learned
    assert first is not second and first.num_timesteps == second.num_timesteps == 250
    assert first.run_seed == second.run_seed and first.n_generations == second.n_generations


def test_policies_are_exported_and_act(learned: list[Any]) -> None:
    first, *others = snippets((ROOT / "docs" / "export.md").read_text())
    exec(compile(first, "export.md", "exec"), {"__name__": "__main__"})
    raw = np.zeros((1, 3), dtype=np.float32)
    expected = learned[0].predict(learned[0].get_vec_normalize_env().normalize_obs(raw), deterministic=True)[0]
    assert len(others) == 3
    for text in others:
        found: dict[str, Any] = {}
        exec(compile(text, "export.md", "exec"), found)
        np.testing.assert_allclose(found["action"], expected, atol=1e-4)


def test_script_that_plans_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (script,) = snippets((ROOT / "docs" / "planning.md").read_text())
    exec(compile(script, "planning.md", "exec"), {"__name__": "__main__"})
    assert (tmp_path / "planner.zip").is_file()


def test_table_of_algorithms_agrees_with_the_registry() -> None:
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| ((?:`\w+`(?:, )?)+) \| [^|]*\d{4}", README, flags=re.MULTILINE)
    listed = [(key, name) for keys, names in rows for key, name in zip(keys.split(", "), names.split(", "), strict=True)]
    assert {key.strip("`"): name.strip("`") for key, name in listed} == {key: cls.__name__ for key, cls in ALGOS.items()}


def test_each_algorithm_has_a_page_in_the_list() -> None:
    pages = {page.stem for page in (DOCS / "algorithms").glob("*.md")} - {"index"}
    assert pages == set(ALGOS)
    index = (DOCS / "algorithms" / "index.md").read_text()
    assert all(f"]({key}.md)" in index and f"`{cls.__name__}`" in index for key, cls in ALGOS.items())


def anchors(page: Path) -> set[str]:
    """What headings of a page are linked by: in lower case, hyphens for spaces, without punctuation."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_work(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if "://" not in link and not (target.exists() and (not anchor or anchor in anchors(target))):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_source_files_exist(page: Path) -> None:
    named = re.findall(r"`(sb3_erl/[\w/]+\.py)`", page.read_text())
    assert [name for name in named if not (ROOT / name).is_file()] == []
